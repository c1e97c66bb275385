"""The networks of both latency tables, the searches for those that are probed, and the file of what was measured."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from navprune.costs.latency import device_name
from navprune.costs.probing import Timer
from navprune.costs.runtimes import runtime_of
from navprune.errors import UserError
from navprune.files import write_file
from navprune.machine import cores
from navprune.models.build import build
from navprune.models.spec import EncoderSpec, encoder_spec
from navprune.pruning.choosing import importance_kept, importances
from navprune.pruning.config import ProbeConfig, PruningConfig
from navprune.pruning.losses import Evidence
from navprune.pruning.methods.scores import SCORES
from navprune.pruning.prune import prune
from navprune.pruning.structure import structure_of

GATES = Path(__file__).parent / "gates.json"
DENSE, RESNET18 = "ResNet50", "ResNet18"
HALVES = "macs=0.5", "latency=0.5"
"""The budgets of the networks that are compared in the tables."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What all networks of a study share: the side of their images in pixels, and the channels they begin with."""

    size: int = 256
    base: int = 32

    def encoder(self, name: str = "resnet50", width: float = 1.0) -> EncoderSpec:
        """An encoder of depth images."""
        return encoder_spec(name, (1, self.size, self.size), self.base, width=width)

    def uniform(self, share: float = 0.5) -> EncoderSpec:
        """ResNet50 with the same share of every layer left, at this share of the multiply-accumulates."""
        return prune(self.encoder(), PruningConfig(method="uniform", budget=f"macs={share:g}")).spec

    def fixed(self) -> dict[str, EncoderSpec]:
        """The networks that need no clock, the dense one first; gates.json is of the default base."""
        found = {DENSE: self.encoder(), "uniform": self.uniform()}
        if self.base == Setting.base:
            gates = EncoderSpec.from_json(json.loads(GATES.read_text()))
            found["gates"] = replace(gates, input=found[DENSE].input, output=found[DENSE].output)
        return found | {RESNET18: self.encoder("resnet18")}

    def kept(self, spec: EncoderSpec) -> float:
        """The share of the dense ResNet50's importance (l1, random weights) that a spec of its blocks keeps."""
        structure = replace(structure_of(build(self.encoder(), 0)), with_blocks=True)
        scores = SCORES["l1"](structure, Evidence(torch.Generator()))
        return importance_kept(structure, importances(structure, scores, "l1"), spec.channels)


@dataclass(frozen=True)
class Probes:
    """How searches go about it: the device, the random networks they measure, and after how many seconds they stop."""

    device: torch.device
    networks: int
    seconds: float

    def search(self, setting: Setting, runtime: str, budget: str, *, fresh: bool) -> Row:
        """ResNet50 cut to a budget at batch 1, on one thread of a CPU: the network, the times, the seconds taken.

        Unless it is to be `fresh`, it begins with what was probed here before.
        """
        timer = Timer(runtime_of(runtime), self.device, 1 if self.device.type == "cpu" else None)
        probe = ProbeConfig(networks=self.networks, seconds=self.seconds, fresh=fresh)
        found = prune(setting.encoder(), PruningConfig(method="probe", budget=budget, probe=probe), clock=timer)
        told = ("dense_ms", "predicted_ms", "measured_ms", "importance_kept", "error")
        return {
            "runtime": runtime,
            "budget": budget,
            "seconds": found.search_seconds,
            "fresh": fresh,
            "reached": dict(found.reached),
            **{name: found.report[name] for name in told},
            "spec": found.spec.to_json(),
        }


class Results:
    """What was measured on one machine, in a file of one row a line, written anew with each row."""

    def __init__(self, path: Path, setting: Setting, runtimes: Sequence[str], device: torch.device) -> None:
        """Raises UserError where the file is of another machine, other versions or another setting."""
        self.path, self.rows, self.device = path, read_rows(path), device
        faults = {name: runtime_of(name).missing(device) for name in runtimes}
        self.missing = {name: fault for name, fault in faults.items() if fault}
        self.runtimes = [name for name, fault in faults.items() if not fault]
        if not self.rows:
            self.rows.append({"step": "place", "versions": {}, "missing": {}})
        self.place = self.rows[0]
        here = {"device": device_name(device, cores()), "python": platform.python_version(), **asdict(setting)}
        versions = {name: runtime_of(name).version() for name in self.runtimes}
        before = {**self.place, **self.place["versions"]}
        if any(before.get(name, value) != value for name, value in {**here, **versions}.items()):
            told = ", ".join(map(str, dict.fromkeys([*here.values(), *versions.values()])))
            raise UserError(f"{path} is of another machine, versions or setting than here ({told}); move it away")
        self.place |= here
        self.place["versions"] |= versions
        self.place["missing"] = {n: f for n, f in (self.place["missing"] | self.missing).items() if n not in versions}

    def of(self, step: str, **key: Any) -> list[Row]:
        """The rows of a step that have these values."""
        return [row for row in self.rows if row["step"] == step and all(row[name] == key[name] for name in key)]

    def put(self, step: str, rows: Sequence[Mapping[str, Any]], **key: Any) -> None:
        """Put rows, with these values, in the place of those that have them."""
        former = {id(row) for row in self.of(step, **key)}
        self.rows = [row for row in self.rows if id(row) not in former]
        self.rows += [{"step": step, **key, **row} for row in rows]
        self.place["date"] = date.today().isoformat()
        write_file(self.path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())

    def searched(self, runtime: str, budgets: Sequence[str] = HALVES) -> dict[str, EncoderSpec]:
        """The probed networks of a runtime by their budgets."""
        rows = {row["budget"]: row for row in self.of("search", runtime=runtime)}
        return {name: EncoderSpec.from_json(rows[name]["spec"]) for name in budgets if name in rows}


def read_rows(path: Path) -> list[Row]:
    """The rows of a file of results; none where there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

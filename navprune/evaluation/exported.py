"""Policies that left PyTorch: the files of a step, the contract beside each, and how both are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from navprune.errors import UserError, plain
from navprune.installing import DEPLOY
from navprune.models.build import known_format
from navprune.models.spec import PolicySpec
from navprune.models.step import OUTPUTS

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
"""How a file of each format ends."""
CONTRACT = ".policy_contract.json"
"""What the name of a contract has behind the whole name of its file."""
Step = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""Inputs by name -> outputs by name, as `models.step.PolicyStep` has them, of batch 1."""


def contract_of(path: Path) -> Path:
    """Where the contract of an exported file lies."""
    return path.with_name(path.name + CONTRACT)


def sha256(data: bytes) -> str:
    """The hash that contracts name their files by."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Exported:
    """An exported policy as its contract describes it: `contract` is the JSON, `spec` the network's."""

    path: Path
    contract: dict[str, Any]
    spec: PolicySpec

    def step(self) -> Step:
        """What runs the file; raises UserError where its runtime is not installed."""
        return step_of(self.path)


def step_of(path: Path) -> Step:
    """What runs a file, in the runtime that its suffix names; raises UserError where that is not installed."""
    try:
        return _RUN[path.suffix.lower()](path)
    except ImportError as error:
        raise UserError(f"{path} needs {error.name}, which is not installed: {DEPLOY}") from None


def read_exported(path: Path) -> Exported:
    """A file and its contract; raises UserError where the two do not belong together or one of them is damaged."""
    place = contract_of(path)
    again = "write both again with `navprune export`"
    try:
        contract = known_format(place, json.loads(place.read_text()))
        files: dict[str, str] = contract["files"]
        spec = PolicySpec.from_json(contract["spec"])
        known = path.name in files and isinstance(contract["config"], dict)
    except FileNotFoundError:
        raise UserError(f"there is no {place.name} beside {path}; {again}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{place} cannot be read ({plain(error)}); {again}") from None
    if not known:
        raise UserError(f"{place} is not the contract of {path.name}; {again}")
    for name, digest in files.items():
        file = path.with_name(name)
        if not file.is_file() or sha256(file.read_bytes()) != digest:
            raise UserError(f"{file} is not the file that {place.name} was written for; {again}")
    return Exported(path, contract, spec)


def _onnx(path: Path) -> Step:
    from navprune.costs.runtimes.onnx_runtime import session_of

    session = session_of(path.read_bytes())

    def step(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = session.run(list(OUTPUTS), {name: tensor.numpy() for name, tensor in inputs.items()})
        return dict(zip(OUTPUTS, map(torch.from_numpy, found)))

    return step


def _openvino(path: Path) -> Step:
    from navprune.costs.runtimes.openvino import request_of

    request = request_of(cast(Any, path))  # reads paths as well as bytes

    def step(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = request.infer({name: tensor.numpy() for name, tensor in inputs.items()}, share_inputs=True)
        return {name: torch.from_numpy(found[name].copy()) for name in OUTPUTS}

    return step


def _torch(path: Path) -> Step:
    module = torch.export.load(path).module()

    @torch.inference_mode()
    def step(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(OUTPUTS, module(*inputs.values())))

    return step


_RUN: dict[str, Callable[[Path], Step]] = {".onnx": _onnx, ".xml": _openvino, ".pt2": _torch}

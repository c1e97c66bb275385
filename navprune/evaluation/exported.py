"""Networks that left PyTorch: files of policies' steps and of classifiers, their contracts, how both are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from navprune.costs.runtimes.base import as_tuple
from navprune.errors import UserError, plain
from navprune.installing import DEPLOY
from navprune.models.build import known_format
from navprune.models.spec import PolicySpec
from navprune.models.step import OUTPUTS

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
"""How a file of each format ends."""
CONTRACT = ".policy_contract.json"
CLASSIFIER_CONTRACT = ".classifier_contract.json"
"""What the name of a contract has behind the whole name of its file: of a policy and of a classifier."""
Step = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""Inputs by name -> outputs by name: of a policy those of `models.step.PolicyStep`, of batch 1."""


def contract_of(path: Path, ending: str = CONTRACT) -> Path:
    """Where the contract of an exported file lies; `ending` says of what kind."""
    return path.with_name(path.name + ending)


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


def step_of(path: Path, outputs: Sequence[str] = OUTPUTS) -> Step:
    """What runs a file that answers with tensors of these names, in the runtime that its suffix names.

    Raises UserError where that is not installed.
    """
    try:
        return _RUN[path.suffix.lower()](path, outputs)
    except ImportError as error:
        raise UserError(f"{path} needs {error.name}, which is not installed: {DEPLOY}") from None


def read_exported(path: Path) -> Exported:
    """A policy's file and its contract; raises UserError where the two do not belong together or one is damaged."""
    place = contract_of(path)
    again = "write both again with `navprune export`"
    try:
        contract = known_format(place, json.loads(place.read_text()))
        files: dict[str, str] = contract["files"]
        spec = PolicySpec.from_json(contract["spec"])
        known = path.name in files and isinstance(contract["config"], dict)
    except FileNotFoundError:
        if contract_of(path, CLASSIFIER_CONTRACT).is_file():
            fault = "is an exported classifier, which only runs; give the checkpoint that it was made of"
            raise UserError(f"{path} {fault}") from None
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


def _onnx(path: Path, outputs: Sequence[str]) -> Step:
    from navprune.costs.runtimes.onnx_runtime import session_of

    session = session_of(path.read_bytes())

    def step(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = session.run(list(outputs), {name: tensor.numpy() for name, tensor in inputs.items()})
        return dict(zip(outputs, map(torch.from_numpy, found)))

    return step


def _openvino(path: Path, outputs: Sequence[str]) -> Step:
    from navprune.costs.runtimes.openvino import request_of

    request = request_of(cast(Any, path))  # reads paths as well as bytes

    def step(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = request.infer({name: tensor.numpy() for name, tensor in inputs.items()}, share_inputs=True)
        return {name: torch.from_numpy(found[name].copy()) for name in outputs}

    return step


def _torch(path: Path, outputs: Sequence[str]) -> Step:
    module = torch.export.load(path).module()

    @torch.inference_mode()
    def step(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(outputs, as_tuple(module(*inputs.values()))))

    return step


_RUN: dict[str, Callable[[Path, Sequence[str]], Step]] = {".onnx": _onnx, ".xml": _openvino, ".pt2": _torch}

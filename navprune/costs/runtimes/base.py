"""What a runtime is: a way to run a module on a device, for whatever times, probes, exports or evaluates."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

Example = tuple[Tensor, ...]
Run = Callable[..., tuple[Tensor, ...]]
"""Takes tensors of the example's shapes, on its device; gives the module's outputs."""


class Runtime(Protocol):
    """One way to run a module. Its threads on a CPU are torch's (`torch.get_num_threads`) when it is prepared."""

    @property
    def name(self) -> str:
        """As commands take it."""

    def missing(self, device: torch.device) -> str | None:
        """Why it does not run here, with what to do, in one line; None where it does."""

    def version(self) -> str:
        """Of all that decides how fast it is, in words."""

    def prepare(self, module: nn.Module, example: Example) -> Run:
        """The module, in evaluation, ready to run on inputs of the example's shapes; the module stays as it is."""


def as_tuple(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a module answers, as a tuple."""
    return (output,) if isinstance(output, Tensor) else tuple(output)


def absent(install: str, *packages: str) -> str | None:
    """The first package that cannot be imported, with the command that installs it, in one line; None if all can."""
    for package in packages:
        try:
            importlib.import_module(package)
        except (ImportError, OSError) as error:  # OSError: of a library that its own parts miss
            there = importlib.util.find_spec(package) is not None
            fault = f"cannot be imported ({' '.join(str(error).split())})" if there else "is not installed"
            return f"{package} {fault}: {install}"
    return None

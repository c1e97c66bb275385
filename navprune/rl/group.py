"""What the workers of a run do together: each learns the same network in environments of its own.

The environments of all workers stand in one order, each worker having as many as the next. What is random is drawn for
all of them by every worker, from generators in the same state, so that a run does not depend on how many share it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

T = TypeVar("T")
ENVIRONMENTS = "environments"
"""Key of a state below which tensors, arrays and lists have an entry for each environment."""


class Group:
    """One worker among `size`; this one is alone, and what it sums and gathers is its own."""

    rank, size = 0, 1
    local_rank, on_machine = 0, 1
    """Its place among the workers of its machine, and how many these are."""

    @property
    def leads(self) -> bool:
        """Whether this worker is the one that writes and speaks."""
        return self.rank == 0

    def say(self, line: str) -> None:
        """Tell the user on standard error what all workers would: the first one does."""
        if self.leads:
            print(line, file=sys.stderr)

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of the workers' tensors of one shape, which may stand in the place of `value`."""
        return value

    def gather(self, value: T) -> list[T]:
        """Return what each worker gave, in their order: plain data, tensors and arrays."""
        return [value]

    def gather_first(self, value: T) -> list[T] | None:
        """As `gather`, for the first worker alone; None for the others."""
        return [value]

    def lead(self, value: T) -> T:
        """Return what the first worker gave."""
        return value

    def count(self, name: str, add: int = 1) -> int:
        """Add to a number that the workers share, and return it; does not wait for them."""
        raise NotImplementedError("a single worker shares no numbers")

    def rows(self, environments: int) -> slice:
        """Where the environments of this worker, so many, stand among those of all."""
        return slice(self.rank * environments, (self.rank + 1) * environments)

    def sum_gradients(self, model: nn.Module, extra: Tensor) -> Tensor:
        """Replace the gradients by their sums over the workers; returns that of `extra` [K], by the way."""
        if self.size == 1:
            return extra
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        flat = self.sum(torch.cat([*(gradient.flatten() for gradient in gradients), extra.to(gradients[0].dtype)]))
        parts = flat.split([*(gradient.numel() for gradient in gradients), extra.numel()])
        torch._foreach_copy_(gradients, [part.view(g.shape) for part, g in zip(parts, gradients)])
        return parts[-1].to(extra.dtype)


def joined(states: Sequence[Any], each: bool = False) -> Any:
    """Return one state of those of several workers, in their order.

    Below a key `environments` tensors, arrays and lists are put one behind the other; all else is the same for all.
    """
    first = states[0]
    if isinstance(first, dict):
        return {key: joined([state[key] for state in states], each or key == ENVIRONMENTS) for key in first}
    if each and isinstance(first, Tensor):
        return torch.cat(list(states))
    if each and isinstance(first, np.ndarray):
        return np.concatenate(states)
    if each and isinstance(first, list):
        return [item for state in states for item in state]
    return first


def part_of(state: Any, rows: slice, each: bool = False) -> Any:
    """Return of a state what belongs to the environments `rows`: undoes `joined`."""
    if isinstance(state, dict):
        return {key: part_of(value, rows, each or key == ENVIRONMENTS) for key, value in state.items()}
    return state[rows] if each and isinstance(state, Tensor | np.ndarray | list) else state

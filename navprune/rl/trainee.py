"""What is trained: a network in one worker, with what goes along with it whatever it learns."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from navprune.errors import UserError
from navprune.rl.group import Group, part_of
from navprune.rl.monitor import Timers


class NotFinite(UserError):
    """A number that training needs is infinite or none at all."""


class Trainee:
    """A network that learns on a device, with a generator that is in the same state in all workers of a `group`.

    `ended` are the measures of what came to its end (episodes, passes over images that were held out), each with two
    numbers that put those of all workers in one order, until someone takes them. `weight_masks` say which weights
    are held at zero (False), {parameter name: bool}; who holds them sets them.
    """

    unit = "frames"
    """What a run counts: of an agent environment steps."""
    score = "spl"
    """The measure by which the best checkpoint is chosen."""
    shown: tuple[str, ...] = ("success", "spl", "reward")
    """The measures on the line of progress."""
    longer = "a larger trainer.total_frames trains longer"
    """What to do where a run is complete."""
    environments = 0
    """Of all workers together, where there are any."""

    def __init__(
        self,
        network: Any,
        *,
        device: torch.device,
        generator: torch.Generator,
        timers: Timers,
        bf16: bool = False,
        group: Group | None = None,
    ) -> None:
        self.network, self.device = network, device
        self.generator, self.timers, self.bf16 = generator, timers, bf16
        self.group = group or Group()
        self.ended: list[tuple[int, int, dict[str, float]]] = []
        self.weight_masks: Mapping[str, Tensor] = {}

    def reset(self) -> None:
        """Be ready for a run that begins."""

    def autocast(self) -> AbstractContextManager:
        """Return the context in which the network runs: bfloat16 where asked for."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def note(self, first: int, second: int, measures: Mapping[str, float]) -> None:
        """Note the measures of what ended, in the order of two numbers."""
        self.ended.append((first, second, dict(measures)))

    @property
    def rows(self) -> slice:
        """Where this worker's environments stand among those of all."""
        return self.group.rows(self.environments // self.group.size)

    def part_of(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return what belongs to this worker's environments of a state of all."""
        return state if self.group.size == 1 else part_of(state, self.rows)

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on from here bit for bit, network and generator apart."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what the `state_dict` of all workers joined."""

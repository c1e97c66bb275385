"""What a phase of a run is to its trainer: something that is updated, kept and gone on with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol


class Update(NamedTuple):
    """What an update came to.

    `frames` are the environment steps of all workers that it took in, `losses` means by name, `scalars` what
    TensorBoard shall show beside them by its whole name. `renewed` says that another network acts from now on,
    `restart` that the schedules begin anew.
    """

    frames: int
    losses: dict[str, float]
    scalars: Mapping[str, float] = {}
    renewed: bool = False
    restart: bool = False


class Learner(Protocol):
    """Improves the network of an actor, `actor.policy`, by an update at a time."""

    def update(self, progress: float, frames: int) -> Update:
        """Act, learn, and say what came of it; schedules are at `progress` in [0, 1], the run is at `frames`."""

    def store(self) -> None:
        """Write to disk what is too large for a state."""

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on from here bit for bit, environments apart (`group.ENVIRONMENTS`)."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""

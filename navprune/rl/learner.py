"""What a phase of a run is to its trainer: something that is updated, kept and gone on with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from navprune.rl.callbacks import Callback
from navprune.rl.group import Group
from navprune.rl.trainee import NotFinite, Trainee

if TYPE_CHECKING:
    from navprune.models.classifiers import Classifier
    from navprune.models.policy import PointNavPolicy


class Update(NamedTuple):
    """What an update came to.

    `frames` are the environment steps or images of all workers that it took in, `losses` means by name, `scalars` what
    TensorBoard shall show beside them by its whole name. `renewed` says that another network learns from now on,
    `restart` that the schedules begin anew.
    """

    frames: int
    losses: dict[str, float]
    scalars: Mapping[str, float] = {}
    renewed: bool = False
    restart: bool = False


class Learner(Protocol):
    """Improves the network of a trainee by an update at a time."""

    def update(self, progress: float, frames: int) -> Update:
        """Act, learn, and say what came of it; schedules are at `progress` in [0, 1], the run is at `frames`."""

    def store(self) -> None:
        """Write to disk what is too large for a state."""

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on from here bit for bit, environments apart (`group.ENVIRONMENTS`)."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""


def gradient_step(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    loss: Tensor,
    max_norm: float,
    group: Group | None = None,
    parts: Tensor | None = None,
) -> Tensor:
    """Move the weights once against the gradient of `loss`, scaled down to `max_norm`; returns `parts` [K].

    Of a group of workers, losses, gradients and parts are first summed over all of them. Raises NotFinite before it
    moves the weights where the loss or its gradient is not finite.
    """
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    told = loss.detach()[None] if parts is None else torch.cat([loss.detach()[None], parts.detach()])
    if group is not None:
        told = group.sum_gradients(network, told)
    norm = nn.utils.clip_grad_norm_(network.parameters(), max_norm)
    value, slope = torch.stack([told[0], norm.to(told.dtype)]).tolist()  # together, since a GPU is waited for
    if not (math.isfinite(value) and math.isfinite(slope)):
        raise NotFinite(
            f"the loss is {value:g} and the norm of its gradient {slope:g}; lower lr, or the weight of whatever else "
            "enters the loss"
        )
    optimiser.step()
    return told[1:]


class GradientLearner:
    """A learner that descends by one optimiser, and the callbacks that go along with it."""

    def __init__(self, trainee: Trainee, callbacks: Sequence[Callback] = ()) -> None:
        self.trainee, self.callbacks = trainee, tuple(callbacks)
        self.updates = 0
        self.frames = 0
        """At which the running update began."""
        self.replace(trainee.network, None)

    @property
    def network(self) -> PointNavPolicy | Classifier:
        """The network that learns."""
        return self.trainee.network

    @property
    def partial(self) -> bool:
        """Whether a part of the network stands still at present."""
        return False

    @property
    def frames_per_update(self) -> int:
        """Environment steps or images of all workers that one update takes in at most."""
        raise NotImplementedError

    @property
    def steps_per_update(self) -> int:
        """Steps of the optimiser in an update, at most."""
        raise NotImplementedError

    def new_optimiser(self, network: nn.Module) -> torch.optim.Optimizer:
        """A fresh optimiser of all weights of a network."""
        raise NotImplementedError

    def learn(self, progress: float) -> tuple[int, dict[str, float]]:
        """Take the steps of an update; returns the frames that it took in, and mean losses by name."""
        raise NotImplementedError

    def loss_of(self, network: nn.Module, batch: Any) -> Tensor:
        """The loss of `network`, which need not be the one that learns, on one of `recent` batches: a scalar."""
        raise NotImplementedError

    def recent(self) -> Iterable[Any]:
        """This worker's part of what was learnt from latest, in batches as `loss_of` takes them."""
        raise NotImplementedError

    def replace(self, network: PointNavPolicy | Classifier, optimiser: dict[str, Any] | None) -> None:
        """Go on with another network and its optimiser's state (None: a fresh one)."""
        self.trainee.network = network
        self.optimiser = self.new_optimiser(network)
        if optimiser is not None:
            self._remember(optimiser)
        for callback in self.callbacks:
            callback.attach(self)

    def _remember(self, state: dict[str, Any]) -> None:
        """Let the optimiser go on with what another one knew of the weights; its settings are its own."""
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state["state"]})

    def set_rate(self, rate: float) -> None:
        """Learn at this rate from here on."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    def update(self, progress: float, frames: int) -> Update:
        """Learn, and let the callbacks act; schedules are at `progress` in [0, 1], the run is at `frames`."""
        self.frames = frames
        gained, losses = self.learn(progress)
        self.updates += 1
        renewed = restart = False
        for callback in self.callbacks:  # each on what the one before it left
            with self.trainee.timers("callbacks"):
                replacement = callback.on_update(self, frames + gained)
            if replacement is not None:
                self.replace(replacement.network, replacement.optimiser)
                self.trainee.ended = []  # which was the network before
                renewed, restart = True, restart or replacement.restart
        scalars = {name: value for callback in self.callbacks for name, value in callback.scalars().items()}
        return Update(gained, losses, scalars, renewed, restart)

    def store(self) -> None:
        """Nothing here is too large for a state."""

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state, the number of updates and what callbacks keep; the trainee keeps the rest."""
        kept = {callback.name: callback.state_dict() for callback in self.callbacks}
        return {"optimiser": self.optimiser.state_dict(), "updates": self.updates, "callbacks": kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned, and what callbacks kept that were there."""
        self._remember(state["optimiser"])
        self.updates = state["updates"]
        for callback in self.callbacks:
            if callback.name in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][callback.name])

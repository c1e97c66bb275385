"""What may go along with a learner: add to its loss, act on its steps, and replace its network between updates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from navprune.models.classifiers import Classifier
    from navprune.models.policy import PointNavPolicy
    from navprune.rl.learner import GradientLearner


class Replacement(NamedTuple):
    """A network to go on with, of the same answers and recurrent state as the one before.

    `optimiser` is the optimiser's state for it, None for a fresh one. With `restart` the schedules of learning rate and
    clip begin anew.
    """

    network: PointNavPolicy | Classifier
    optimiser: dict[str, Any] | None = None
    restart: bool = False


class Callback:
    """The hooks in the order in which they are called; these do nothing.

    A subclass that chooses anything at random keeps its own generator, and all that it needs to go on from a
    checkpoint in `state_dict`.
    """

    name: str
    """Under which its state is kept in a checkpoint."""

    def attach(self, learner: GradientLearner) -> None:
        """Meet a network and its optimiser: when learning begins, and after each replacement."""

    def on_rollout(self, learner: GradientLearner) -> None:
        """See what an agent collected, before anything is learnt from it."""

    def loss(self, batch: Any, output: Any) -> Tensor | float:
        """Return what to add to the loss of a batch that the network answered by `output`.

        Of PPO these are the indices [B] of environments and `PolicyOutput` [T, B], of classification (images, labels)
        and logits. Of several workers it is each one's part, of which the sum over them is the loss.
        """
        return 0.0

    def on_update(self, learner: GradientLearner, frames: int) -> Replacement | None:
        """Act between two updates, `frames` into the run; what is returned takes the network's place."""
        return None

    def scalars(self) -> dict[str, float]:
        """Return what TensorBoard shall show, by name."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on from here bit for bit: plain data, tensors and arrays.

        What has an entry for each of this worker's environments stands below the key `environments`.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""

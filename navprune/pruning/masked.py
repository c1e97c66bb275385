"""Training under masks: the weights that masks take away are zero behind every step."""

from __future__ import annotations

from navprune.pruning.masks import Masks, apply_masks
from navprune.rl.callbacks import Callback
from navprune.rl.learner import GradientLearner


class Masking(Callback):
    """Holds masks over the network that learns, and has them kept in each checkpoint.

    Masked weights get no gradient either, as if the network multiplied its weights by the masks (ShrinkBench's way):
    they count neither in the gradient's norm nor in the optimiser's moments.
    """

    name = "masks"

    def __init__(self, masks: Masks) -> None:
        self.masks = masks

    def attach(self, learner: GradientLearner) -> None:
        """Act on gradients and behind each step of the optimiser; raises UserError for masks of another network."""
        network = learner.network
        masks = {name: mask.to(learner.trainee.device) for name, mask in self.masks.items()}
        apply_masks(network, masks)
        for name, mask in masks.items():
            network.get_parameter(name).register_hook(lambda slope, mask=mask: slope * mask)
        # An optimiser may move weights without a gradient, by noise or by decay towards something else than zero.
        learner.optimiser.register_step_post_hook(lambda *_: apply_masks(network, masks))
        learner.trainee.weight_masks = self.masks

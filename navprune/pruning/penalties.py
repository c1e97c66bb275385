"""Penalties while a network trains: two that bring whole units to zero, and one that only shrinks.

The group lasso over coupled channels:

    penalty = sum over groups g of sqrt(|g|) * ||W_g||_2        (Yuan & Lin, JRSS B 2006)

A group g holds the weights of one unit: the filters that write it, the channels of the filters that read it, both,
or all weights of a residual block (Wen et al., Learning Structured Sparsity in Deep Neural Networks, NeurIPS 2016),
in all layers that are coupled. |g| counts the weights that are not zero, so that a network with masked weights and
the slim network pay the same. Either add strength * `group_lasso` to the loss (the gradient never reaches zero), or
call `proximal_step` behind each step of the optimiser (it does).

Network slimming, over the scales of norms, by `soft_threshold` behind each step of the optimiser:

    penalty = sum over norms and their channels of |gamma|      (Liu et al., ICCV 2017)

And `sum_squares`, a term of the loss, the rule of the public code that `comparisons.published` describes.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from navprune.errors import UserError
from navprune.models.encoders import ChannelGroup
from navprune.pruning.config import LASSOS, NORM_SCALE, SUM_SQUARES, PruningScheduleConfig
from navprune.pruning.groups import BOTH, CHANNELS, FILTERS, block_layers, spread, unit_weights, units
from navprune.pruning.structure import structure_of
from navprune.rl.callbacks import Callback
from navprune.rl.learner import GradientLearner

SCALES = "scales"
"""What `survivors` look at behind `soft_threshold`: the scales of a unit's norms."""


def group_lasso(model: nn.Module, groups: Sequence[ChannelGroup], over: str = FILTERS) -> Tensor:
    """The penalty, a differentiable scalar, over "filters", "channels" or "both" of widths; of blocks, over all.

    Its gradient at a group of zeros is zero.
    """
    return torch.stack([(sizes * norms).sum() for sizes, norms in _measures(model, groups, over)]).sum()


@torch.no_grad()
def proximal_step(model: nn.Module, groups: Sequence[ChannelGroup], threshold: float, over: str = FILTERS) -> None:
    """Shrink each group in place: W_g <- max(0, 1 - threshold * sqrt(|g|) / ||W_g||_2) * W_g.

    `threshold` is the optimiser's learning rate x the penalty's strength. This is the penalty's proximal operator
    (group soft threshold; Yuan & Lin 2006) where groups do not overlap; over "both", where a weight lies in the
    groups of its row and of its column, both factors apply, each from the norms before the step. A unit whose
    filters, or a block whose weights, come to zero loses its biases and its norms' scale and shift as well: behind
    a norm, filters of zero would still leave a constant. So `slim` to the `survivors` changes nothing.
    """
    _check_threshold(threshold)
    _check(model, groups, over)
    measures = _measures(model, groups, over)
    factors = [(1 - threshold * sizes / norms.clamp_min(1e-38)).clamp_min(0) for sizes, norms in measures]
    for group, factor, (_, norms) in zip(groups, factors, measures):
        alive = factor * norms > 0  # also what earlier steps set to zero: gradients may have moved its norms since
        if group.block:
            for layer in block_layers(model, group):
                _scale(layer, 0, factor if layer.get_parameter("weight").dim() > 1 else alive, alive)
            continue
        if over != CHANNELS:
            for name in group.producers:
                _scale(model.get_submodule(name), 0, factor, alive)
            for name in group.norms:
                _scale(model.get_submodule(name), 0, alive, alive)
        if over != FILTERS:
            for name in group.readers:
                _scale(model.get_submodule(name), 1, factor)


@torch.no_grad()
def soft_threshold(model: nn.Module, groups: Sequence[ChannelGroup], threshold: float) -> None:
    """Shrink the scales of the norms behind widths in place: gamma <- sign(gamma) * max(0, |gamma| - threshold).

    `threshold` is the optimiser's learning rate x the penalty's strength; this is the proximal operator of the sum of
    |gamma|. A unit all of whose scales are zero loses its norms' shift as well, which would still be a constant. So
    `slim` to the `survivors` over "scales" changes nothing. Raises UserError where no width has such norms.
    """
    _check_threshold(threshold)
    _check(model, groups, SCALES)
    for group in groups:
        scales = _scales(model, group)
        for scale in scales:
            scale.copy_(scale.sign() * (scale.abs() - threshold).clamp_min(0))
        if scales:
            alive = _weights(model, group, SCALES).ne(0).any(1)
            for name in group.norms:
                _scale(model.get_submodule(name), 0, alive, alive)


def sum_squares(model: nn.Module) -> Tensor:
    """The sum of squares of the weights of all convolutions, a differentiable scalar."""
    weights = [layer.weight for layer in model.modules() if isinstance(layer, nn.modules.conv._ConvNd)]
    return torch.stack([weight.square().sum() for weight in weights]).sum()


def survivors(model: nn.Module, groups: Sequence[ChannelGroup], over: str = FILTERS) -> dict[str, Tensor]:
    """The units whose group is not zero, {group name: bool [units]}, as `slim` takes them; of a width at least one.

    `over` is as for `proximal_step`, or "scales" behind `soft_threshold`.
    """
    _check(model, groups, over)
    keep = {}
    for group in groups:
        weights = _weights(model, group, over).detach()
        alive = weights.ne(0).any(1).cpu() if weights.numel() else torch.ones(units(group), dtype=torch.bool)
        if not group.block and not alive.any():
            alive[0] = True
        keep[group.name] = alive
    return keep


def _check(model: nn.Module, groups: Sequence[ChannelGroup], over: str) -> None:
    """Raise UserError for units that zeros would not silence, or that are made of something unknown."""
    if over == SCALES:
        if not any(_scales(model, group) for group in groups):
            raise UserError(f"{type(model).__name__} has no norms with scales to shrink: choose another penalty")
        return
    if over not in (FILTERS, CHANNELS, BOTH):
        raise UserError(f"a group lasso is over {FILTERS}, {CHANNELS} or {BOTH}, not {over!r}")
    for name in (name for group in groups for name in group.norms if over != CHANNELS):
        norm = model.get_submodule(name)
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.weight is None:
            raise UserError(f"{name} has no scale to set to zero (affine=False): filters of zero give a constant")


def _weights(model: nn.Module, group: ChannelGroup, over: str) -> Tensor:
    """All weights of each unit, or scales of its norms, [units, |g|]; none where the group has none."""
    if over == SCALES:
        weights = [scale.reshape(units(group), -1) for scale in _scales(model, group)]
    else:
        weights = unit_weights(model, group, over)
    return torch.cat(weights, dim=1) if weights else next(model.parameters()).new_zeros(units(group), 0)


def _scales(model: nn.Module, group: ChannelGroup) -> list[Tensor]:
    """The scales of the norms of a width, each [channels]; none where zeros in all of them would not silence it."""
    scales = [scale for name in group.norms if isinstance(scale := model.get_submodule(name).weight, Tensor)]
    silencing = not group.block and {*group.ends} <= {*group.norms} and len(scales) == len(group.norms)
    return scales if silencing else []


def _check_threshold(threshold: float) -> None:
    if not threshold >= 0:
        raise UserError(f"a proximal step's threshold is {threshold:g}: give learning rate x strength, 0 or more")


def _measures(model: nn.Module, groups: Sequence[ChannelGroup], over: str) -> list[tuple[Tensor, Tensor]]:
    """sqrt(|g|) and ||W_g||_2 of each unit of each group."""
    # Over all layers at once: the gradient of a root of sums would be NaN at zero.
    units = [_weights(model, group, over) for group in groups]
    return [(each.detach().ne(0).sum(1).to(each.dtype).sqrt(), torch.linalg.vector_norm(each, dim=1)) for each in units]


def _scale(layer: nn.Module, dim: int, weight: Tensor, bias: Tensor | None = None) -> None:
    """Multiply weights along a dimension, and biases, by a factor for each unit."""
    for name, factor in (("weight", weight), ("bias", bias)):
        parameter = getattr(layer, name, None)
        if isinstance(parameter, Tensor) and factor is not None:
            parameter.mul_(spread(factor, parameter, dim).to(parameter))


class Penalty(Callback):
    """Has the network that learns pay for its weights: all along, or until the last cut where some are made.

    By the penalty's proximal operator behind each step of the optimiser or, of sum-squares, by a term of the loss.
    """

    name = "penalty"
    learner: GradientLearner

    def __init__(self, config: PruningScheduleConfig, frames: tuple[int, int]) -> None:
        """`config` names a penalty of all units; its phase begins and ends at `frames`."""
        self.penalty, self.strength = config.penalty, config.weight
        self.begin, self.end = config.between(frames) if config.budget else (0.0, math.inf)

    @property
    def due(self) -> bool:
        """Whether it is paid in the running update."""
        return self.begin <= self.learner.frames < self.end - 1e-6  # by rounding the last cut may seem to be to come

    def attach(self, learner: GradientLearner) -> None:
        """Act behind each step of the optimiser."""
        self.learner = learner
        network, groups = learner.network, structure_of(learner.network).groups

        def step(optimiser: torch.optim.Optimizer, *_: Any) -> None:
            if not self.due or learner.partial:
                return
            threshold = optimiser.param_groups[0]["lr"] * self.strength
            if over := LASSOS.get(self.penalty or ""):
                proximal_step(network, groups, threshold, over)
            elif self.penalty == NORM_SCALE:
                soft_threshold(network, groups, threshold)

        learner.optimiser.register_step_post_hook(step)

    def loss(self, batch: Any, output: Any) -> Tensor | float:
        """This worker's part of the term."""
        if self.penalty != SUM_SQUARES or not self.due:
            return 0.0
        return self.strength * sum_squares(self.learner.network) / self.learner.trainee.group.size

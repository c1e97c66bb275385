"""The group lasso over coupled channels: what brings whole units to zero while a network trains.

    penalty = sum over groups g of sqrt(|g|) * ||W_g||_2        (Yuan & Lin, JRSS B 2006)

A group g holds the weights of one unit: the filters that write it, the channels of the filters that read it, both,
or all weights of a residual block (Wen et al., Learning Structured Sparsity in Deep Neural Networks, NeurIPS 2016),
in all layers that are coupled. |g| counts the weights that are not zero, so that a network with masked weights and
the slim network pay the same. Either add strength * `group_lasso` to the loss (the gradient never reaches zero), or
call `proximal_step` behind each step of the optimiser (it does).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from navprune.errors import UserError
from navprune.models.encoders import ChannelGroup
from navprune.pruning.groups import BOTH, CHANNELS, FILTERS, block_layers, spread, unit_weights, units


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
    if not threshold >= 0:
        raise UserError(f"a proximal step's threshold is {threshold:g}: give learning rate x strength, 0 or more")
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


def survivors(model: nn.Module, groups: Sequence[ChannelGroup], over: str = FILTERS) -> dict[str, Tensor]:
    """The units whose group is not zero, {group name: bool [units]}, as `slim` takes them; of a width at least one."""
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
    """Raise UserError for units that filters of zero would not silence, or that are made of something unknown."""
    if over not in (FILTERS, CHANNELS, BOTH):
        raise UserError(f"a group lasso is over {FILTERS}, {CHANNELS} or {BOTH}, not {over!r}")
    for name in (name for group in groups for name in group.norms if over != CHANNELS):
        norm = model.get_submodule(name)
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.weight is None:
            raise UserError(f"{name} has no scale to set to zero (affine=False): filters of zero give a constant")


def _weights(model: nn.Module, group: ChannelGroup, over: str) -> Tensor:
    """All weights of each unit, [units, |g|]; none where no layer reads the group."""
    weights = unit_weights(model, group, over)
    return torch.cat(weights, dim=1) if weights else next(model.parameters()).new_zeros(units(group), 0)


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

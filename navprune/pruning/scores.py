"""Scores of the units of a model: the higher, the sooner kept.

A score is a function `(model, generator) -> {group name: float [units]}` whose values can be compared across
groups; to add one, write it, name it in `SCORES` and say what it is in `methods`.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from navprune.models.encoders import ChannelGroup
from navprune.pruning.groups import groups_of, units

Scores = dict[str, Tensor]


def random(model: nn.Module, generator: torch.Generator) -> Scores:
    """Uniform in [0, 1): the control that any other method must beat (Blalock et al., MLSys 2020)."""
    return {
        group.name: torch.rand(units(group), generator=generator, dtype=torch.float64) for group in groups_of(model)
    }


def uniform(model: nn.Module, generator: torch.Generator) -> Scores:
    """The same share of every group, its largest filters first.

    The unit at rank r of n, by L1 magnitude, scores 1 - (r + 1/2) / n: a threshold cuts all groups alike.
    """
    shares = {}
    for name, score in magnitude(model, generator).items():
        rank = score.argsort(descending=True, stable=True).argsort()
        shares[name] = 1 - (rank + 0.5) / len(score)
    return shares


def magnitude(model: nn.Module, _generator: torch.Generator, order: int = 1) -> Scores:
    """L1 (or L2) norm of a unit's filters over all coupled producers, relative to its group's mean.

    score_u = (sum over producers W and channels c of u of |W[c]|^order)^(1/order) / mean over the group.
    Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017; the division makes layers of
    different fan-in comparable.
    """
    return {group.name: _magnitude(model, group, order) for group in groups_of(model)}


def _magnitude(model: nn.Module, group: ChannelGroup, order: int) -> Tensor:
    total = torch.zeros(units(group), dtype=torch.float64)
    for name in group.producers:
        weight = model.get_parameter(f"{name}.weight").detach().double().cpu()
        total += weight.abs().pow(order).reshape(units(group), -1).sum(1)
    norm = total.pow(1 / order)
    return norm / norm.mean().clamp_min(torch.finfo(norm.dtype).tiny)


SCORES: dict[str, Callable[[nn.Module, torch.Generator], Scores]] = {
    "random": random,
    "uniform": uniform,
    "magnitude": magnitude,
    "magnitude-l2": partial(magnitude, order=2),
}

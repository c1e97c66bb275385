"""Scores of the units of a network: the higher, the sooner kept.

A score takes a `Structure` and an `Evidence` and gives {group name: float64 [units]}, comparable across groups. To add
one that looks at one group at a time, write a function (model, group) -> [units], name it at the end of this file
and say what it is in `methods`. Scores know groups alone, so that they serve encoders, policies, classifiers and any
network that `structure_of` can follow. None changes the model.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from navprune.errors import UserError
from navprune.models.encoders import ChannelGroup
from navprune.models.modes import evaluating
from navprune.pruning.config import Budget
from navprune.pruning.groups import BOTH, CHANNELS, FILTERS, unit_weights, units
from navprune.pruning.losses import Evidence, loss_of, outputs, run_batch
from navprune.pruning.methods.base import BATCHES, LOSS, Context, Method, Outcome, Scores, check_reach, chosen_units
from navprune.pruning.structure import Structure

Measure = Callable[[nn.Module, ChannelGroup], Tensor | None]
Score = Callable[[Structure, Evidence], Scores]


def weight_norm(model: nn.Module, group: ChannelGroup, over: str = FILTERS, order: int = 2) -> Tensor:
    """Norm of the weights of each unit, (sum |w|^order)^(1/order), float64 [units]."""
    total = torch.zeros(units(group), dtype=torch.float64)
    for weight in unit_weights(model, group, over):
        total += weight.detach().double().abs().pow(order).sum(1).cpu()
    return total.pow(1 / order)


def group_size(model: nn.Module, group: ChannelGroup, over: str = FILTERS) -> Tensor:
    """|g| of each unit, int64 [units] on the model's device: its weights that are not zero."""
    counts = [weight.detach().ne(0).sum(1) for weight in unit_weights(model, group, over)]
    return torch.stack(counts).sum(0) if counts else torch.zeros(units(group), dtype=torch.long)


def mean_abs(model: nn.Module, group: ChannelGroup) -> Tensor:
    """Mean |w| over the unit's filters: the score of the public code behind the VGG16 table."""
    count = sum(weight.shape[1] for weight in unit_weights(model, group))
    return weight_norm(model, group, order=1) / count


def sum_squares(model: nn.Module, group: ChannelGroup) -> Tensor:
    """||W_g||_2^2: what the same code calls group lasso."""
    return weight_norm(model, group) ** 2


def group_lasso_strength(model: nn.Module, group: ChannelGroup, over: str = FILTERS) -> Tensor:
    """||W_g||_2 / sqrt(|g|): the strength at which a proximal step of the group lasso sets the group to zero.

    Wen et al., Learning Structured Sparsity in Deep Neural Networks, NeurIPS 2016; Yuan & Lin, JRSS B 2006. Groups
    of all sizes compare, as in training with the penalty; without it, layers of small weights go first.
    """
    return weight_norm(model, group, over) / group_size(model, group, over).cpu().double().clamp_min(1).sqrt()


def geometric_median(model: nn.Module, group: ChannelGroup) -> Tensor:
    """sum over v of ||W_u - W_v||_2: units near the geometric median of their group say what others say.

    He et al., Filter Pruning via Geometric Median, CVPR 2019.
    """
    if group.block:
        raise UserError("'geometric-median' does not compare residual blocks, whose shapes differ: prune widths alone")
    filters = torch.cat(unit_weights(model, group), dim=1).detach().double()
    # Not by scalar products, whose rounding would depend on the order of the units.
    return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


def norm_scale(model: nn.Module, group: ChannelGroup) -> Tensor | None:
    """Mean |scale| of a unit's channels over all its norms; None where there is no norm with scales.

    Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017.
    """
    scales = [model.get_submodule(name).weight for name in group.norms]
    found = [scale.detach().double().abs().reshape(units(group), -1) for scale in scales if isinstance(scale, Tensor)]
    return torch.cat(found, dim=1).mean(1) if found else None


def _each(
    measure: Callable[[nn.Module, ChannelGroup], Tensor | None], structure: Structure, evidence: Evidence
) -> Scores:
    """A score from a function of one group; groups for which it has no answer get no score, and so stay whole."""
    scores = {group.name: measure(structure.model, group) for group in structure.groups}
    return {name: score for name, score in scores.items() if score is not None}


def _relative(measure: Callable[[nn.Module, ChannelGroup], Tensor], structure: Structure, evidence: Evidence) -> Scores:
    """The same, over the mean of the group."""
    return _over_means(structure.groups, _each(measure, structure, evidence))


def _over_means(groups: Sequence[ChannelGroup], scores: Scores) -> Scores:
    """Scores over the mean of their group, so that layers of different fan-in compare; of blocks, over all blocks."""
    blocks = [scores[group.name] for group in groups if group.block]
    means = {group.name: torch.cat(blocks).mean() for group in groups if group.block}
    tiny = torch.finfo(torch.float64).tiny
    return {name: score / means.get(name, score.mean()).clamp_min(tiny) for name, score in scores.items()}


def random(structure: Structure, evidence: Evidence) -> Scores:
    """Uniform in [0, 1): the control that any other method must beat (Blalock et al., MLSys 2020)."""
    draw = partial(torch.rand, generator=evidence.generator, dtype=torch.float64)
    return {group.name: draw(units(group)) for group in structure.groups}


def uniform(structure: Structure, evidence: Evidence) -> Scores:
    """The same share of every group, its largest filters first.

    The unit at rank r of n, by L1 norm, scores 1 - (r + 1/2) / n: a threshold cuts all groups alike. Residual
    blocks are ranked together.
    """
    norms = SCORES["l1"](structure, evidence)
    ranks = {name: _ranks(norm) for name, norm in norms.items()}
    if blocks := [group.name for group in structure.groups if group.block]:
        ranks |= zip(blocks, _ranks(torch.cat([norms[name] for name in blocks])).split(1))
    return ranks


def _ranks(score: Tensor) -> Tensor:
    rank = score.argsort(descending=True, stable=True).argsort()
    return 1 - (rank + 0.5) / len(score)


def taylor(structure: Structure, evidence: Evidence) -> Scores:
    """Mean over batches of |d loss / d gate|, a gate of 1 on each unit behind its norm.

    To first order the change of the loss when the unit goes, hence comparable across groups: the sum of activation
    x gradient and, equally, of weight x gradient over the norm's scale and shift. Molchanov et al., Importance
    Estimation for Neural Network Pruning, CVPR 2019. The filters' own weight x gradient would not do: a norm divides
    by their scale, so that over a norm group it sums to zero.
    """
    if evidence.loss is None:
        raise UserError("'taylor' scores follow a loss: give one, such as classification_loss")
    model = structure.model
    ones = next(model.parameters()).new_ones
    gates = {group.name: ones(units(group), requires_grad=True) for group in structure.groups}
    totals = {name: torch.zeros(len(gate), dtype=torch.float64) for name, gate in gates.items()}
    count = 0
    with evaluating(model), structure.scaled(gates):
        for batch in evidence.drawn("taylor"):
            loss = loss_of("taylor", evidence.loss, model, batch)
            slopes = torch.autograd.grad(loss, list(gates.values()), allow_unused=True)
            for total, slope in zip(totals.values(), slopes):
                total += 0 if slope is None else slope.double().abs().cpu()
            count += 1
    if not any(total.any() for total in totals.values()):
        raise UserError("'taylor' scores are all zero: the loss has no slope here, as of a copy of its own teacher")
    return {name: total / count for name, total in totals.items()}


def activation(structure: Structure, evidence: Evidence) -> Scores:
    """Mean |activation| of a unit as the layers that read it get it, over images and pixels, relative to its group.

    So it is measured behind the nonlinearity, as in Molchanov et al., Pruning Convolutional Neural Networks for
    Resource Efficient Inference, ICLR 2017; of several readers it is the mean. Of a residual block it is what its
    branch adds. The loss, where one is given, says how a batch is run through the model.
    """
    groups = structure.groups
    places = {group.name: group.norms if group.block else group.readers for group in groups}
    behind = {layer for group in groups if group.block for layer in group.norms}
    means = mean_magnitudes("activation", structure.model, evidence, set().union(*places.values()), behind)
    scores = {group.name: torch.zeros(units(group), dtype=torch.float64) for group in groups}
    for group in groups:
        for layer in filter(means.__contains__, places[group.name]):  # behind a flatten a channel is several features
            scores[group.name] += means[layer].view(units(group), -1).mean(1) / len(places[group.name])
    return _over_means(groups, scores)


def mean_magnitudes(
    method: str, model: nn.Module, evidence: Evidence, layers: Iterable[str], behind: Collection[str] = ()
) -> Scores:
    """Mean |x| of each feature that layers get, over images and pixels: {layer name: float64 [features]}.

    Of those named in `behind` it is what they give. Layers that are not reached say nothing. Raises UserError without
    batches, or for one that does not fit.
    """
    totals: Scores = {}
    counts: dict[str, int] = {}

    def add(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        value = output if name in behind else next(iter((*args, *kwargs.values())))
        features = value.detach().movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1)
        # A sum over images: the last batch may be smaller.
        totals[name] = totals.get(name, 0) + len(value) * features.double().abs().mean(1).cpu()
        counts[name] = counts.get(name, 0) + len(value)

    with ExitStack() as hooks, evaluating(model), torch.no_grad():
        for name in layers:
            hook = partial(add, name)
            hooks.enter_context(model.get_submodule(name).register_forward_hook(hook, with_kwargs=True))
        for batch in evidence.drawn(method):
            run_batch(method, evidence.loss or outputs, model, batch)
    return {name: total / counts[name] for name, total in totals.items()}


def _checked(method: str, score: Score, structure: Structure, evidence: Evidence) -> Scores:
    scores = {name: values.double().cpu() for name, values in score(structure, evidence.of(structure.model)).items()}
    if not scores:
        raise UserError(f"{method!r} finds nothing to score in {type(structure.model).__name__}: choose another method")
    for name, values in scores.items():
        if not torch.isfinite(values).all():
            raise UserError(f"{method!r} scores of {name!r} are not finite: look for NaN in weights or batches")
    return scores


def _run(method: str, structure: Structure, budget: Budget, context: Context) -> Outcome:
    if NEEDS.get(method):
        check_reach(structure, structure.groups, budget, context)
    scores = SCORES[method](structure, context.evidence)
    return Outcome(structure, chosen_units(structure, scores, budget, context), scores)


_SCORES: dict[str, Score] = {
    "l1": partial(_relative, partial(weight_norm, order=1)),
    "l2": partial(_relative, weight_norm),
    "magnitude": partial(_relative, partial(weight_norm, order=1)),
    "mean-abs": partial(_each, mean_abs),
    "sum-squares": partial(_each, sum_squares),
    "group-lasso": partial(_each, group_lasso_strength),
    "group-lasso-channel": partial(_each, partial(group_lasso_strength, over=CHANNELS)),
    "group-lasso-both": partial(_each, partial(group_lasso_strength, over=BOTH)),
    "geometric-median": partial(_relative, geometric_median),
    "norm-scale": partial(_each, norm_scale),
    "taylor": taylor,
    "activation": activation,
    "uniform": uniform,
    "random": random,
}

SCORES: dict[str, Score] = {name: partial(_checked, name, score) for name, score in _SCORES.items()}

NEEDS = {"taylor": frozenset({BATCHES, LOSS}), "activation": frozenset({BATCHES})}
METHODS = {name: Method(name=name, run=partial(_run, name), needs=NEEDS.get(name, frozenset())) for name in SCORES}

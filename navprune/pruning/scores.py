"""Scores of the units of a network: the higher, the sooner kept.

A score takes a model and an `Evidence` and gives {group name: float64 [units]}, comparable across groups. To add
one that looks at one group at a time, write a function (model, group) -> [units], name it at the end of this file
and say what it is in `methods`. Scores know groups alone, so that they serve encoders, policies, classifiers and any
network that `groups_of` can follow. None changes the model.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from navprune.errors import UserError
from navprune.models.encoders import ChannelGroup
from navprune.models.modes import evaluating
from navprune.models.spec import BLOCK
from navprune.pruning.graph import Example, reason_of
from navprune.pruning.groups import encoder_in, groups_of, scaled, units

Scores = dict[str, Tensor]

LossFunction = Callable[[nn.Module, Any], Tensor]
"""(model, batch) -> scalar. A batch is whatever the loss reads."""

FILTERS, CHANNELS, BOTH = "filters", "channels", "both"


@dataclass(frozen=True)
class Evidence:
    """What a score may look at beside the weights.

    `generator` is what chance comes from; `batches` and `loss` are asked for by some scores alone. `example` and
    `blocks` are those of `groups_of`: an input of a network that comes from elsewhere, and whether residual blocks
    are scored, too.
    """

    generator: torch.Generator
    batches: Iterable[Any] | None = None
    loss: LossFunction | None = None
    example: Example | None = None
    blocks: bool = False

    def groups(self, model: nn.Module) -> list[ChannelGroup]:
        """The groups to score."""
        return groups_of(model, self.example, blocks=self.blocks)

    def drawn(self, method: str) -> Iterator[Any]:
        """The batches; raises UserError, with the method's name, where there are none."""
        batch = None
        if isinstance(self.batches, Tensor) or not isinstance(self.batches, Iterable | None):
            kind = type(self.batches).__name__
            raise UserError(f"{method!r} scores look at batches, not at one {kind}: give a list of them")
        for batch in self.batches or ():
            yield batch
        if batch is None:
            raise UserError(f"{method!r} scores need batches of the network's inputs: give at least one")


Score = Callable[[nn.Module, Evidence], Scores]


def unit_weights(model: nn.Module, group: ChannelGroup, over: str = FILTERS) -> list[Tensor]:
    """The weights of convolutions and linear layers that belong to each unit, layer by layer, each [units, n].

    Over "filters": those that write it, rows of its producers; over "channels": those that read it, columns of its
    readers; over "both": either. To a residual block belong all weights in it. Differentiable.
    """
    count = units(group)
    if group.block:
        weights = [layer.get_parameter("weight") for layer in block_layers(model, group)]
        return [weight.reshape(1, -1) for weight in weights if weight.dim() > 1]
    written = group.producers if over != CHANNELS else ()
    read = [model.get_parameter(f"{name}.weight") for name in (group.readers if over != FILTERS else ())]
    return [
        *(model.get_parameter(f"{name}.weight").reshape(count, -1) for name in written),
        *(weight.reshape(len(weight), count, -1).movedim(1, 0).reshape(count, -1) for weight in read),
    ]


def block_layers(model: nn.Module, group: ChannelGroup) -> list[nn.Module]:
    """The layers with weights inside a residual block."""
    block = model.get_submodule(block_of(group))
    return [layer for layer in block.modules() if isinstance(getattr(layer, "weight", None), Tensor)]


def block_of(group: ChannelGroup) -> str:
    """The name of the module of a residual block ("backbone.layer2.1"), from that of its last norm."""
    match = BLOCK.search(group.norms[0])
    assert match is not None
    return group.norms[0][: match.end()]


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


def _each(measure: Callable[[nn.Module, ChannelGroup], Tensor | None], model: nn.Module, evidence: Evidence) -> Scores:
    """A score from a function of one group; groups for which it has no answer get no score, and so stay whole."""
    scores = {group.name: measure(model, group) for group in evidence.groups(model)}
    return {name: score for name, score in scores.items() if score is not None}


def _relative(measure: Callable[[nn.Module, ChannelGroup], Tensor], model: nn.Module, evidence: Evidence) -> Scores:
    """The same, over the mean of the group."""
    return _over_means(evidence.groups(model), _each(measure, model, evidence))


def _over_means(groups: Sequence[ChannelGroup], scores: Scores) -> Scores:
    """Scores over the mean of their group, so that layers of different fan-in compare; of blocks, over all blocks."""
    blocks = [scores[group.name] for group in groups if group.block]
    means = {group.name: torch.cat(blocks).mean() for group in groups if group.block}
    tiny = torch.finfo(torch.float64).tiny
    return {name: score / means.get(name, score.mean()).clamp_min(tiny) for name, score in scores.items()}


def random(model: nn.Module, evidence: Evidence) -> Scores:
    """Uniform in [0, 1): the control that any other method must beat (Blalock et al., MLSys 2020)."""
    draw = partial(torch.rand, generator=evidence.generator, dtype=torch.float64)
    return {group.name: draw(units(group)) for group in evidence.groups(model)}


def uniform(model: nn.Module, evidence: Evidence) -> Scores:
    """The same share of every group, its largest filters first.

    The unit at rank r of n, by L1 norm, scores 1 - (r + 1/2) / n: a threshold cuts all groups alike. Residual
    blocks are ranked together.
    """
    norms = SCORES["l1"](model, evidence)
    ranks = {name: _ranks(norm) for name, norm in norms.items()}
    if blocks := [group.name for group in evidence.groups(model) if group.block]:
        ranks |= zip(blocks, _ranks(torch.cat([norms[name] for name in blocks])).split(1))
    return ranks


def _ranks(score: Tensor) -> Tensor:
    rank = score.argsort(descending=True, stable=True).argsort()
    return 1 - (rank + 0.5) / len(score)


def taylor(model: nn.Module, evidence: Evidence) -> Scores:
    """Mean over batches of |d loss / d gate|, a gate of 1 on each unit behind its norm.

    To first order the change of the loss when the unit goes, hence comparable across groups: the sum of activation
    x gradient and, equally, of weight x gradient over the norm's scale and shift. Molchanov et al., Importance
    Estimation for Neural Network Pruning, CVPR 2019. The filters' own weight x gradient would not do: a norm divides
    by their scale, so that over a norm group it sums to zero.
    """
    if evidence.loss is None:
        raise UserError("'taylor' scores follow a loss: give one, such as classification_loss")
    ones, groups = next(model.parameters()).new_ones, evidence.groups(model)
    gates = {group.name: ones(units(group), requires_grad=True) for group in groups}
    totals = {name: torch.zeros(len(gate), dtype=torch.float64) for name, gate in gates.items()}
    count = 0
    with evaluating(model), scaled(model, gates, evidence.example):
        for batch in evidence.drawn("taylor"):
            loss = loss_of("taylor", evidence.loss, model, batch)
            slopes = torch.autograd.grad(loss, list(gates.values()), allow_unused=True)
            for total, slope in zip(totals.values(), slopes):
                total += 0 if slope is None else slope.double().abs().cpu()
            count += 1
    if not any(total.any() for total in totals.values()):
        raise UserError("'taylor' scores are all zero: the loss has no slope here, as of a copy of its own teacher")
    return {name: total / count for name, total in totals.items()}


def activation(model: nn.Module, evidence: Evidence) -> Scores:
    """Mean |activation| of a unit as the layers that read it get it, over images and pixels, relative to its group.

    So it is measured behind the nonlinearity, as in Molchanov et al., Pruning Convolutional Neural Networks for
    Resource Efficient Inference, ICLR 2017; of several readers it is the mean. Of a residual block it is what its
    branch adds. The loss, where one is given, says how a batch is run through the model.
    """
    groups = evidence.groups(model)
    places = {group.name: group.norms if group.block else group.readers for group in groups}
    behind = {layer for group in groups if group.block for layer in group.norms}
    means = mean_magnitudes("activation", model, evidence, set().union(*places.values()), behind)
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


def run_batch(method: str, run: LossFunction, model: nn.Module, batch: Any) -> Tensor:
    """What `run` makes of a model and a batch; raises UserError, with the method's name, for one that does not fit."""
    try:
        return run(model, batch)
    except (RuntimeError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        complaint = f"a batch does not fit the network ({reason_of(error)}); check the shapes it holds"
        raise UserError(f"{method}: {complaint}") from error


def loss_of(method: str, loss: LossFunction, model: nn.Module, batch: Any) -> Tensor:
    """The loss of a batch, a scalar with a slope; raises UserError as `run_batch`, or for any other value."""
    value = run_batch(method, loss, model, batch)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        found = f"a tensor of {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"{method}: the loss of a batch is {found}: give one number that depends on the network")
    return value.reshape(())


def outputs(model: nn.Module, batch: Any) -> Tensor:
    """What a model says of a batch: images, (images, labels), or observations by name, which its encoder reads.

    Raises UserError where it lacks an observation, or images have another shape than the network's input.
    """
    device = next(model.parameters()).device
    if isinstance(batch, Mapping):
        _, model = encoder_in(model)
        if missing := [name for name in model.spec.observations if name not in batch]:
            raise UserError(f"a batch lacks {missing[0]!r}, which the network sees; it holds {', '.join(batch)}")
        images = model.images({name: value.to(device) for name, value in batch.items()})
    else:
        images = (batch if isinstance(batch, Tensor) else batch[0]).to(device)
    wanted = getattr(getattr(model, "spec", None), "input", None)
    if wanted and tuple(images.shape[1:]) != tuple(wanted):
        shape = list(images.shape[1:])
        raise UserError(f"a batch holds images of {shape} and the network sees {list(wanted)}; make them alike")
    return model(images)


def classification_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of (images [B, C, H, W], labels int64 [B]), the mean over the batch.

    Raises UserError for labels that do not fit the images or the classes.
    """
    logits, labels = outputs(model, batch), batch[1]
    if labels.shape != logits.shape[:1] or not (0 <= labels.min() and labels.max() < logits.shape[1]):
        count, classes = logits.shape
        raise UserError(f"a batch of {count} images needs {count} labels from 0 to {classes - 1}, one for each image")
    return F.cross_entropy(logits, labels.to(logits.device))


def distillation_loss(teacher: nn.Module) -> LossFunction:
    """The loss that compares a model's outputs with a teacher's: their mean squared difference.

    Of an encoder or a policy, the encoder's features; of a classifier, the logits (Ba & Caruana, NeurIPS 2014). It
    has no slope at the teacher itself. Raises UserError where the two differ in shape.
    """

    def loss(model: nn.Module, batch: Any) -> Tensor:
        with torch.no_grad(), evaluating(teacher):
            wanted = outputs(teacher, batch)
        found = outputs(model, batch)
        if found.shape != wanted.shape:
            shapes = f"{list(wanted.shape[1:])} and the network {list(found.shape[1:])}"
            raise UserError(f"the teacher answers {shapes} to an input: give the network that this one was cut from")
        return F.mse_loss(found, wanted.to(found))

    return loss


def _checked(method: str, score: Score, model: nn.Module, evidence: Evidence) -> Scores:
    scores = {name: values.double().cpu() for name, values in score(model, evidence).items()}
    if not scores:
        raise UserError(f"{method!r} finds nothing to score in {type(model).__name__}: choose another method")
    for name, values in scores.items():
        if not torch.isfinite(values).all():
            raise UserError(f"{method!r} scores of {name!r} are not finite: look for NaN in weights or batches")
    return scores


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

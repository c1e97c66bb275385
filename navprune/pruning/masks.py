"""Masks of single weights or of whole units, and the metrics by which pruned networks are compared.

After Blalock et al., What is the State of Neural Network Pruning?, MLSys 2020 (ShrinkBench): a strategy maps a model,
one batch and compression ratios to {parameter name: bool mask}. Unlike its code, nothing here is seeded once the
model is built (chance comes from the generator of the `Evidence`), a compression ratio is met to the weight, ties
fall to the earlier weight, the last batch of an evaluation counts by its size, and no epoch is chosen by the set that
is reported.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from navprune.costs.counting import module_layers, total
from navprune.errors import UserError
from navprune.images.measures import MEASURES, measured
from navprune.models.modes import evaluating
from navprune.models.policy import PointNavPolicy
from navprune.pruning.config import SCOPES
from navprune.pruning.groups import Keep, Widths, block_of, checked_keep
from navprune.pruning.losses import Evidence, loss_of, outputs, run_batch
from navprune.pruning.methods.base import BATCHES, LOSS, ONE_BATCH, Criterion
from navprune.pruning.methods.scores import NEEDS, SCORES, mean_magnitudes
from navprune.pruning.search import BudgetUnmet, largest, search
from navprune.pruning.slim import cut_group
from navprune.pruning.structure import Structure, structure_of

POLICY_HEADS = ("action_distribution.linear", "critic.fc")

Masks = dict[str, Tensor]
"""{parameter name: bool, of the parameter's shape}; parameters that are not named stay whole."""


def weighted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Convolutions and linear layers by name, in order of definition."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}


def prunable(model: nn.Module, classifier: bool = False) -> dict[str, Tensor]:
    """Weights and biases of convolutions and linear layers, by parameter name; as in ShrinkBench.

    The last of the layers, which says the classes, is left out unless `classifier` is set: pruned, it makes some
    classes impossible. Of a policy these are the heads of actions and value.
    """
    layers = weighted_layers(model)
    last = POLICY_HEADS if isinstance(model, PointNavPolicy) else tuple(layers)[-1:]
    chosen = [name for name in layers if classifier or name not in last]
    return {f"{name}.{own}": values for name in chosen for own, values in layers[name].named_parameters(recurse=False)}


def kept_weights(model: nn.Module, chosen: Mapping[str, Tensor], compression: float) -> int:
    """How many of the `chosen` weights stay so that all parameters shrink by the ratio, to the weight.

    Raises UserError for a ratio below 1 or one that the other parameters alone exceed.
    """
    if not compression >= 1:
        raise UserError(f"compression {compression:g} is not a ratio of at least 1: give 4 for a quarter of the size")
    total = sum(parameter.numel() for parameter in model.parameters())
    free = sum(parameter.numel() for parameter in chosen.values())
    kept = int(total / compression) - (total - free)
    if kept < 1:
        most = total / (total - free + 1)
        raise UserError(f"compression {compression:g} is out of reach: what is not pruned allows {most:.4g} at most")
    return kept


Importance = Callable[[nn.Module, Mapping[str, Tensor], Evidence], dict[str, Tensor]]


def magnitude(_model: nn.Module, chosen: Mapping[str, Tensor], _evidence: Evidence) -> dict[str, Tensor]:
    """|w| (Han et al., NeurIPS 2015)."""
    return {name: weight.detach().abs() for name, weight in chosen.items()}


def magnitude_activation(model: nn.Module, chosen: Mapping[str, Tensor], evidence: Evidence) -> dict[str, Tensor]:
    """|w| x mean |input| of the channel that it reads, on one batch; a bias takes the mean over its layer's inputs.

    Blalock et al., MLSys 2020. The loss, where one is given, says how the batch is run through the model.
    """
    method = "magnitude x activation"
    layers = {name: layer for name, layer in weighted_layers(model).items() if f"{name}.weight" in chosen}
    means = mean_magnitudes(method, model, replace(evidence, batches=[next(evidence.drawn(method))]), layers)
    factors = {f"{name}.bias": mean.mean() for name, mean in means.items()}
    for name, mean in means.items():
        weight = chosen[f"{name}.weight"]
        groups = len(mean) // weight.shape[1]  # filters of a grouped convolution read the inputs of their group
        read = mean.view(groups, -1).repeat_interleave(len(weight) // groups, dim=0)
        factors[f"{name}.weight"] = read.view(*read.shape, *[1] * (weight.dim() - 2))
    none = torch.zeros(())  # layers that the batch does not reach
    return {name: weight.detach().cpu().abs() * factors.get(name, none) for name, weight in chosen.items()}


def magnitude_gradient(model: nn.Module, chosen: Mapping[str, Tensor], evidence: Evidence) -> dict[str, Tensor]:
    """|w x gradient| of the loss on one batch (Blalock et al., MLSys 2020; after Mozer & Smolensky, NIPS 1988)."""
    batch = next(evidence.drawn("magnitude x gradient"))
    if evidence.loss is None:
        raise UserError("magnitude x gradient follows a loss on one batch: give a loss")
    with evaluating(model):
        loss = loss_of("magnitude x gradient", evidence.loss, model, batch)
        slopes = torch.autograd.grad(loss, list(chosen.values()), allow_unused=True)
    pairs = zip(chosen.items(), slopes)
    return {name: (w.detach() * (0 if slope is None else slope)).abs() for (name, w), slope in pairs}


def chance(_model: nn.Module, chosen: Mapping[str, Tensor], evidence: Evidence) -> dict[str, Tensor]:
    """Uniform in [0, 1): the control that any other strategy must beat."""
    return {name: torch.rand(weight.shape, generator=evidence.generator) for name, weight in chosen.items()}


def weight_masks(
    importance: Importance,
    layerwise: bool,
    model: nn.Module,
    evidence: Evidence,
    compressions: Sequence[float],
    classifier: bool = False,
) -> list[Masks]:
    """Keep the most important weights, of all layers together or, layerwise, the same share of every parameter.

    Such shares are rounded so that the whole is met (largest remainders first). Raises UserError for an importance
    that is not finite, and before anything is looked at for a ratio that is out of reach.
    """
    chosen = prunable(model, classifier)
    counts = [kept_weights(model, chosen, compression) for compression in compressions]
    found = {name: values.cpu() for name, values in importance(model, chosen, evidence.of(model)).items()}
    for name, values in found.items():
        if not torch.isfinite(values).all():
            raise UserError(f"the importance of {name!r} is not finite: look for NaN in weights or batch")
    flat, sizes = [values.flatten() for values in found.values()], [values.numel() for values in found.values()]
    every: Iterable[Iterable[Tensor]]
    if layerwise:
        every = (map(largest, flat, apportioned(kept, sizes)) for kept in counts)
    else:
        whole = torch.cat(flat)
        every = (largest(whole, kept).split(sizes) for kept in counts)
    return [{name: mask.view(values.shape) for (name, values), mask in zip(found.items(), masks)} for masks in every]


def apportioned(count: int, sizes: Sequence[int]) -> list[int]:
    """Split `count` in proportion to sizes: whole numbers with that sum, each off by less than 1; ties go first."""
    total = sum(sizes)
    shares = [count * size // total for size in sizes]
    remainders = [count * size % total for size in sizes]
    for place in sorted(range(len(sizes)), key=lambda i: -remainders[i])[: count - sum(shares)]:
        shares[place] += 1
    return shares


def structured_masks(structure: Structure, keep: Keep) -> Masks:
    """Masks of exactly the weights that `slim` takes away at this `keep`, {group name: bool [units]}."""
    groups, parameters = structure.everything, dict(structure.model.named_parameters())
    masks = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in parameters.items()}
    places = {name: torch.arange(mask.numel(), dtype=torch.int32).view(mask.shape) for name, mask in masks.items()}
    keep = checked_keep(groups, keep)
    gone = tuple(f"{block_of(group)}." for group in groups if group.block and not keep[group.name])
    left = {name: place for name, place in places.items() if not (gone and name.startswith(gone))}
    for group in structure.channels:
        cut_group(left, group, keep[group.name])
    for name, place in left.items():
        masks[name].view(-1)[place.flatten().long()] = True
    return masks


def unit_masks(
    score: str,
    model: nn.Module,
    evidence: Evidence,
    compressions: Sequence[float],
    classifier: bool = False,
    structure: Structure | None = None,
) -> list[Masks]:
    """Keep the units of best score, as `search` does, until all parameters shrink by the ratio within 1 %.

    What the last layer says is no unit, whatever `classifier` says. The model's `structure` is asked for where it
    takes an example of the input, or offers whole blocks.
    """
    structure = structure or structure_of(model)
    for ratio in compressions:
        kept_weights(model, dict(model.named_parameters()), ratio)
    scores = SCORES[score](structure, evidence)
    whole = structure.parameters({})

    def share(widths: Widths) -> dict[str, float]:
        return {"parameters": structure.parameters(widths) / whole}

    masks = []
    for ratio in compressions:
        try:
            keep = search(structure.groups, scores, share, {"parameters": 1 / ratio})
        except BudgetUnmet as error:
            raise UserError(f"compression {ratio:g}: {error}") from None
        masks.append(structured_masks(structure, keep))
    return masks


@dataclass(frozen=True, kw_only=True)
class Strategy(Criterion):
    """A way to choose masks: `choose(model, evidence, compressions, classifier=False)` for all ratios, looking once."""

    choose: Callable[..., list[Masks]]

    def __call__(self, model: nn.Module, evidence: Evidence, compression: float, classifier: bool = False) -> Masks:
        """Masks for a single ratio."""
        return self.choose(model, evidence, [compression], classifier)[0]


IMPORTANCES: dict[str, Importance] = {
    "magnitude": magnitude,
    "magnitude-gradient": magnitude_gradient,
    "magnitude-activation": magnitude_activation,
    "random": chance,
}
LOOKING = dict.fromkeys(("magnitude-gradient", "magnitude-activation"), frozenset({BATCHES, LOSS, ONE_BATCH}))
"""Of an agent, the loss runs the whole policy, whose layers behind the encoder are masked too."""
STRATEGIES = {
    strategy.name: strategy
    for strategy in (
        *(
            Strategy(
                name=f"{scope}-{name}",
                choose=partial(weight_masks, importance, scope == "layer"),
                needs=LOOKING.get(name, frozenset()),
            )
            for name, importance in IMPORTANCES.items()
            for scope in SCOPES
        ),
        *(
            Strategy(name=f"structured-{score}", choose=partial(unit_masks, score), needs=NEEDS.get(score, frozenset()))
            for score in SCORES
        ),
    )
}


def strategy_of(name: str) -> Strategy:
    """The strategy of this name; raises UserError for an unknown one."""
    if name not in STRATEGIES:
        raise UserError(f"unknown masks {name!r}; known are {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set masked weights to zero in place, where `Masking` keeps them; raises UserError where they do not fit."""
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        parameter = parameters.get(name)
        if parameter is None or parameter.shape != mask.shape:
            there = "absent" if parameter is None else list(parameter.shape)
            shape = list(mask.shape)
            raise UserError(f"the mask of {name!r} has {shape}, the parameter is {there}: masks of another model")
        if mask.dtype != torch.bool:
            raise UserError(f"the mask of {name!r} is {mask.dtype}: give bool, True where a weight stays")
        parameter.masked_fill_(~mask.to(parameter.device), 0)


def compression_ratio(model: nn.Module, masks: Mapping[str, Tensor]) -> float:
    """Parameters over those left by the masks: original / remaining size."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    left = sum(int(masks[name].sum()) if name in masks else size for name, size in sizes.items())
    return sum(sizes.values()) / left if left else float("inf")


def theoretical_speedup(model: nn.Module, masks: Mapping[str, Tensor], example: Tensor) -> float:
    """Multiply-adds of convolutions and linear layers over those left when masked weights cost nothing."""
    layers = run_batch("theoretical speedup", module_layers, model, example)
    whole = total(layers, {})["macs"]
    positions = {f"{layer.module}.weight": layer.positions for layer in layers if layer.taps}
    lost = sum(times * int((~masks[name]).sum()) for name, times in positions.items() if name in masks)
    return whole / (whole - lost) if lost < whole else float("inf")


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Shares of right answers among all images, {"top1", "top5"}; every image counts the same in any batch.

    A batch is (images [B, C, H, W], labels int64 [B]). Raises UserError when there is none.
    """
    with evaluating(model):
        found = [*measured(partial(run_batch, "accuracy", outputs, model), batches)]
    if not found:
        raise UserError("accuracy needs at least one batch of images and labels")
    return {name: float(torch.cat([batch[name] for batch in found]).double().mean()) for name in MEASURES}

"""A control: the same encoder cut by Torch-Pruning's dependency graph (Fang et al., DepGraph, CVPR 2023).

Torch-Pruning keeps the number of groups of every GroupNorm and thins them all alike: channel k of each group goes or
stays. The statistics of the channels that stay then come from fewer values, so that the smaller network computes
something else than the network with these channels masked; `departure` says how much. Its widths are read back into
our spec, with smaller norm groups, so that the result is an ordinary slim network.

What it scores is the L1 norm of a channel's filters and of the weights that read it, the mean over the layers of its
group, over the group's mean: the nearest to our l1 that it offers. It ranks all channels globally, in five rounds; in
one round, it leaves every layer whole of which it would remove all.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from navprune.errors import UserError
from navprune.models.build import Spec, build
from navprune.models.encoders import Encoder
from navprune.models.spec import EncoderSpec, PolicySpec, convolutions
from navprune.pruning.config import Budget, check_budget
from navprune.pruning.groups import encoder_in
from navprune.pruning.methods import TORCH_PRUNING
from navprune.pruning.methods.base import Context, Method, Outcome
from navprune.pruning.slim import with_encoder
from navprune.pruning.structure import Structure, structure_of

ROUNDS = 5
HALVINGS = 12
"""Of the pruning ratio: as many as tell 4096 places in its ranking apart."""
ENOUGH = 0.99
"""Share of the budget at which bisection ends."""
TOLERANCE = 0.05
"""How far below its budget a cut may end (relative)."""
LEAST_SIDE = 128
"""Traced images have at least so many pixels a side: on single pixels our convolutions are linear layers."""


class Cut(NamedTuple):
    """A smaller network, and which channels of each width stayed, {group name: bool [channels]}."""

    model: nn.Module
    keep: dict[str, Tensor]


def run(structure: Structure, budget: Budget, context: Context) -> Outcome:
    """Cut as `cut` does; raises UserError for what Torch-Pruning does not offer."""
    if not isinstance(structure.spec, EncoderSpec | PolicySpec):
        raise UserError("torch-pruning is a control for encoders and policies alone: give one of these")
    small, keep = cut(structure, budget)
    return Outcome(structure, keep, model=small, widths={name: int(kept.sum()) for name, kept in keep.items()})


def cut(structure: Structure, budget: Budget, tolerance: float = TOLERANCE) -> Cut:
    """Cut the encoder of an encoder or a policy with Torch-Pruning; its model is left as it is.

    Bisects its pruning ratio until every measure of the budget, shares of the structure's cost, is met from
    below, the tightest within `tolerance` (relative): one place in its ranking is a channel of every norm group, which
    in small networks is worth some per cent. The encoder's output stays, and so do the grouped convolutions
    of a ResNeXt, of which our spec cannot express thinner groups. Raises UserError where Torch-Pruning is not
    installed, the network has no encoder of ours, or the budget cannot be met.
    """
    library = _library()
    check_budget(budget)
    prefix, encoder = encoder_in(structure.model)

    best, reached, low, high = Cut(encoder, {}), 0.0, 0.0, 1.0
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        found = _cut_by(library, encoder, ratio)
        shares = structure.shares({name: int(kept.sum()) for name, kept in found.keep.items()})
        value = max(shares[name] / share for name, share in budget.items())
        low, high = (ratio, high) if value > 1 else (low, ratio)
        if reached < value <= 1:
            best, reached = found, value
        if reached >= ENOUGH:
            break
    if reached < 1 - tolerance:
        asked = ",".join(f"{name}={share:g}" for name, share in budget.items())
        raise UserError(f"torch-pruning cannot meet the budget {asked}: it comes to {reached:.3f} of it; ask for more")
    return _within(structure.model, prefix, best)


def departure(model: nn.Module, small: nn.Module, keep: Mapping[str, Tensor], images: Tensor) -> float:
    """max |small(x) - masked(x)| / max |masked(x)|: how far a cut is from merely leaving channels out.

    `small` is an encoder cut from `model`, `keep` {group name: bool [units or channels]} what stayed, `images`
    [B, C, H, W]. The masked network is `model` with the other channels zero behind their norms. It is at float
    rounding for `slim`, and for Torch-Pruning wherever no norm lost part of its channels.
    """

    def silencing(kept: Tensor) -> Callable[..., Tensor]:
        def hook(_layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            each = kept.to(output).repeat_interleave(output.shape[1] // len(kept))
            return output * each.view(-1, *[1] * (output.dim() - 2))

        return hook

    with torch.no_grad():
        with ExitStack() as hooks:
            for group in structure_of(model).channels:
                for layer in group.ends:
                    hooks.enter_context(model.get_submodule(layer).register_forward_hook(silencing(keep[group.name])))
            masked = model(images)
        return ((small(images) - masked).abs().max() / masked.abs().max()).item()


def _library() -> ModuleType:
    try:
        import torch_pruning
    except ImportError:
        raise UserError("torch-pruning is not installed: pip install 'torch-pruning>=1.6'") from None
    return torch_pruning


def _cut_by(library: ModuleType, encoder: Encoder, ratio: float) -> Cut:
    """The encoder cut at one pruning ratio, as a network of our spec."""
    thinned = copy.deepcopy(encoder).requires_grad_()  # the tracer follows gradients
    for module in thinned.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # in place it would hide the convolution before it from the tracer
    names = {thinned.get_submodule(name): group.name for group in encoder.groups() for name in group.producers}
    keep = {group.name: torch.arange(group.channels) for group in encoder.groups()}
    pruner = _pruner(library, thinned, ratio)
    for _ in range(ROUNDS):
        for group in pruner.step(interactive=True):
            root, gone = group[0]
            name = names[root.target.module]
            staying = torch.ones(len(keep[name]), dtype=torch.bool)
            staying[gone] = False
            keep[name] = keep[name][staying]
            group.prune()
    layers = []
    for layer, channels in zip(encoder.spec.layers, encoder.groups()):
        width = len(keep[layer.name])
        norm_group = width * layer.group // layer.channels if channels.norms else layer.group
        layers.append(replace(layer, channels=width, group=norm_group))
    small = build(replace(encoder.spec, layers=tuple(layers)), seed=0)
    small.to(next(encoder.parameters())).train(encoder.training)
    small.load_state_dict(thinned.state_dict())
    kept = {group.name: torch.isin(torch.arange(group.channels), keep[group.name]) for group in encoder.groups()}
    return Cut(small, kept)


def _pruner(library: ModuleType, encoder: Encoder, ratio: float) -> Any:
    convs = convolutions(encoder.spec)
    staying = {"output", *(conv.target for conv in convs if conv.per_group)}
    fixed = [encoder.get_submodule(conv.module) for conv in convs if conv.target in staying]
    channels, *sides = encoder.spec.input
    images = next(encoder.parameters()).new_zeros(1, channels, *(max(side, LEAST_SIDE) for side in sides))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return library.pruner.BasePruner(
            encoder,
            (images,),  # a bare tensor would be taken apart into its images
            library.importance.GroupMagnitudeImportance(p=1, group_reduction="mean", normalizer="mean"),
            global_pruning=True,
            pruning_ratio=ratio,
            iterative_steps=ROUNDS,
            ignored_layers=fixed,
            in_channel_groups={},  # its defaults are shared by all pruners, which write into them
            out_channel_groups={},
        )


def _within(model: nn.Module, prefix: str, found: Cut) -> Cut:
    """The cut of the whole model, given that of its encoder."""
    if not prefix:
        return found
    small = build(with_encoder(cast(Spec, model.spec), cast(EncoderSpec, found.model.spec)), seed=0)
    small.to(next(model.parameters())).train(model.training)
    inside = {prefix + name: tensor for name, tensor in found.model.state_dict().items()}
    small.load_state_dict({name: inside.get(name, tensor) for name, tensor in model.state_dict().items()})
    return Cut(small, found.keep)


METHODS = {
    TORCH_PRUNING: Method(
        name=TORCH_PRUNING,
        run=run,
        heeds=("tolerance",),
        tolerance=TOLERANCE,
        slack="its one pruning ratio cannot make both bind",
    )
}

"""Slimming: a smaller spec and the kept slices of the weights, nothing else."""

from dataclasses import replace
from typing import cast

from torch import Tensor, nn

from navprune.models.encoders import ChannelGroup
from navprune.models.spec import EncoderSpec, PolicySpec, build, with_widths
from navprune.pruning.groups import Keep, checked_keep, groups_of

Spec = EncoderSpec | PolicySpec


def slim(model: nn.Module, keep: Keep) -> nn.Module:
    """The smaller model that computes what `mask(model, keep)` computes, to float rounding.

    `model` comes from `build`, an encoder or a whole policy; whatever lies outside the encoder is copied.
    `keep` is {group name: bool [units]}; groups it does not name are kept whole.
    The answer is an ordinary `build(smaller spec)`. Raises UserError on a keep that does not fit the model.
    """
    groups = groups_of(model)
    full = checked_keep(groups, keep)
    channels = {group.name: int(full[group.name].sum()) * group.unit for group in groups}
    spec = cast(Spec, model.spec)
    small = build(with_encoder(spec, with_widths(encoder_of(spec), channels)), seed=0)
    small.to(next(model.parameters())).train(model.training)
    weights = model.state_dict()
    for group in groups:
        cut_group(weights, group, full[group.name])
    small.load_state_dict(weights)
    return small


def cut_group(weights: dict[str, Tensor], group: ChannelGroup, kept: Tensor) -> None:
    """Cuts one group's channels out of a state dict, in place.

    `kept` is bool [units]. Producers, norms and multipliers lose entries of dimension 0, readers of dimension 1.
    """
    index = kept.repeat_interleave(group.unit).nonzero().flatten()
    owners = {*group.producers, *group.norms, *group.multipliers}
    for name, tensor in weights.items():
        layer = name.rpartition(".")[0]
        index = index.to(tensor.device)
        if layer in owners and tensor.dim() > 0:
            tensor = tensor.index_select(0, index)
        if layer in group.readers and tensor.dim() > 1:
            tensor = tensor.index_select(1, index)
        weights[name] = tensor


def encoder_of(spec: Spec) -> EncoderSpec:
    """The encoder's spec of either kind of spec."""
    return spec.encoder if isinstance(spec, PolicySpec) else spec


def with_encoder(spec: Spec, encoder: EncoderSpec) -> Spec:
    """The same kind of spec with another encoder."""
    return replace(spec, encoder=encoder) if isinstance(spec, PolicySpec) else encoder

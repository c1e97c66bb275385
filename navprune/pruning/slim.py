"""Slimming: the kept slices of the weights in a smaller network, nothing else."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from navprune.errors import UserError
from navprune.models.build import Spec, build
from navprune.models.classifiers import Classifier, ClassifierSpec
from navprune.models.encoders import ChannelGroup, Encoder
from navprune.models.spec import EncoderSpec, PolicySpec, renumbered
from navprune.models.widths import with_widths
from navprune.pruning.channels import long_axis
from navprune.pruning.graph import copied, tensors_in
from navprune.pruning.groups import Keep, encoder_in, spread

INPUTS = ("in_channels", "in_features")
OUTPUTS = ("out_channels", "out_features", "num_features", "num_channels", "num_groups")
"""What layers say of their own widths."""


def slimmed(
    model: nn.Module, groups: Sequence[ChannelGroup], keep: Keep, features: Sequence[tuple[str, str]] = ()
) -> nn.Module:
    """What `Structure.slim` says, of all `groups` at a full `keep`; `features` are attributes that forward keeps."""
    if isinstance(getattr(model, "spec", None), Spec):
        return _rebuilt(model, groups, keep)
    small = copied(model)
    if any(isinstance(part, Encoder) for part in model.modules()):
        prefix, encoder = encoder_in(model)
        own = [*encoder.groups(), *(group for group in groups if group.block)]
        small.set_submodule(prefix.removesuffix("."), _rebuilt(encoder, own, keep))
        return small
    for group in groups:
        _narrow(small, group, keep[group.name])
    _forget(small, model, features)
    for part in small.modules():
        if isinstance(part, Classifier):
            left = {name: len(part.get_parameter(f"{name}.weight")) for name in part.spec.widths}
            part.spec = with_widths(part.spec, left)
    return small


def _rebuilt(model: nn.Module, groups: Sequence[ChannelGroup], keep: Keep) -> nn.Module:
    """What `build` makes of the smaller spec, with the weights kept."""
    removed = [group.name for group in groups if group.block and not keep[group.name]]
    widths = [group for group in groups if not group.block]
    channels = {group.name: int(keep[group.name].sum()) * group.unit for group in widths}
    spec = cast(Spec, model.spec)
    small = build(with_encoder(spec, with_widths(encoder_of(spec), channels).without_blocks(removed)), seed=0)
    small.to(next(model.parameters())).train(model.training)
    weights = model.state_dict()
    for group in widths:
        cut_group(weights, group, keep[group.name])
    names = {name: renumbered(name, removed) for name in weights}
    try:
        small.load_state_dict({new: weights[old] for old, new in names.items() if new})
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"the weights do not fit the network's spec ({reason}): build it from the spec") from error
    return small


def cut_group(weights: dict[str, Tensor], group: ChannelGroup, kept: Tensor) -> None:
    """Cut one group's channels out of a state dict, in place.

    `kept` is bool [units]. Producers, norms and multipliers lose entries of dimension 0, readers of dimension 1,
    vectors of the only one that has several.
    """
    for name in weights:
        for dimension in _dimensions(group, name.rpartition(".")[0]):
            weights[name] = _cut(weights[name], dimension, kept)
        if name in group.vectors:
            weights[name] = _cut(weights[name], long_axis(weights[name]) or 0, kept)


def slimmed_optimiser(
    optimiser: torch.optim.Optimizer, model: nn.Module, groups: Sequence[ChannelGroup], keep: Keep
) -> dict[str, Any]:
    """What `Structure.slim_optimiser` says, of channel `groups` at a full `keep`."""
    packed = optimiser.state_dict()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    if any(id(parameter) not in names for parameter in parameters):
        raise UserError("the optimiser has weights that are not the model's: slim that of this model")
    for i, entry in packed["state"].items():
        kept = [value for value in entry.values() if isinstance(value, Tensor) and value.dim()]
        if not isinstance(i, int) or any(value.shape != parameters[i].shape for value in kept):
            raise UserError(f"{type(optimiser).__name__} keeps more than one value for each weight: begin a fresh one")
    order = [names[id(parameter)] for parameter in parameters]
    state = copy.deepcopy(packed["state"])
    for key in {key for entry in state.values() for key in entry}:
        named = {order[i]: entry[key] for i, entry in state.items() if isinstance(entry.get(key), Tensor)}
        for group in groups:
            cut_group(named, group, keep[group.name])
        for i, entry in state.items():
            if order[i] in named:
                entry[key] = named[order[i]]
    return {**packed, "state": state}


def encoder_of(spec: Spec) -> EncoderSpec | ClassifierSpec:
    """The spec that holds the widths: of a policy its encoder's, otherwise the spec itself."""
    return spec.encoder if isinstance(spec, PolicySpec) else spec


def with_encoder(spec: Spec, encoder: EncoderSpec | ClassifierSpec) -> Spec:
    """The same kind of spec with other widths."""
    return replace(spec, encoder=cast(EncoderSpec, encoder)) if isinstance(spec, PolicySpec) else encoder


def _dimensions(group: ChannelGroup, layer: str) -> list[int]:
    """The dimensions of a layer's tensors along which a group's channels lie."""
    written = layer in (*group.producers, *group.norms, *group.multipliers)
    return [0] * written + [1] * (layer in group.readers)


def _cut(tensor: Tensor, dimension: int, kept: Tensor) -> Tensor:
    """The kept part of a tensor; each unit is one run of entries along the dimension, however long."""
    if tensor.dim() <= dimension:
        return tensor
    index = spread(kept, tensor, dimension).flatten().nonzero().flatten()
    return tensor.index_select(dimension, index.to(tensor.device))


@torch.no_grad()
def _narrow(model: nn.Module, group: ChannelGroup, kept: Tensor) -> None:
    """Cut one group's channels out of a network's layers, in place."""
    tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    smaller = dict(tensors)
    cut_group(smaller, group, kept)
    for name in (name for name, tensor in tensors.items() if smaller[name] is not tensor):
        owner, _, own = name.rpartition(".")
        new, old = smaller[name], tensors[name]
        new = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
        setattr(model.get_submodule(owner), own, new)
    for name in {*group.producers, *group.norms, *group.multipliers, *group.readers}:
        layer = model.get_submodule(name)
        for dimension in _dimensions(group, name):
            grouped = ("in_channels", "groups") if getattr(layer, "groups", 1) > 1 else ()
            for size in INPUTS if dimension else (*OUTPUTS, *grouped):
                if hasattr(layer, size):
                    setattr(layer, size, getattr(layer, size) * int(kept.sum()) // len(kept))


def _forget(small: nn.Module, model: nn.Module, features: Sequence[tuple[str, str]]) -> None:
    """Empties what a copy holds of the features that the original's `forward` has kept."""
    plain = [{k: v for k, v in vars(part).items() if k not in ("_parameters", "_buffers")} for part in model.modules()]
    if next(tensors_in(plain), None) is not None:
        for name, key in features:
            attributes = vars(small.get_submodule(name))
            if key in attributes:
                kind = type(attributes[key])
                attributes[key] = kind() if issubclass(kind, list | dict) else None

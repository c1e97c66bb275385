"""The channel groups of a model, and scaling or masking their channels in place."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from navprune.errors import UserError
from navprune.models.encoders import ChannelGroup, Encoder

Keep = Mapping[str, Tensor]


def encoder_in(model: nn.Module) -> tuple[str, Encoder]:
    """The encoder in an encoder or a policy, after the prefix of its layers ("" or "net.visual_encoder.").

    Raises UserError when there is none with channels to cut.
    """
    for name, module in model.named_modules():
        if isinstance(module, Encoder) and module.groups():
            return f"{name}." if name else "", module
    raise UserError(f"{type(model).__name__} has no channels to prune: give a model with a visual encoder")


def groups_of(model: nn.Module) -> list[ChannelGroup]:
    """Channel groups of an encoder or a policy, with layer names as `model.get_submodule` takes them.

    Raises UserError when there are none.
    """
    prefix, encoder = encoder_in(model)

    def within(layers: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(prefix + layer for layer in layers)

    return [
        replace(
            group,
            producers=within(group.producers),
            norms=within(group.norms),
            readers=within(group.readers),
            multipliers=within(group.multipliers),
        )
        for group in encoder.groups()
    ]


def units(group: ChannelGroup) -> int:
    """Number of units of a group: the entries of its keep mask, scores and gates."""
    return group.channels // group.unit


def is_inner(group: ChannelGroup) -> bool:
    """Whether a group lies inside a residual block or in a plain chain, not on the stem or a trunk."""
    return group.name != "stem" and not group.name.endswith(".trunk")


def checked_keep(groups: list[ChannelGroup], keep: Keep) -> dict[str, Tensor]:
    """`keep` completed for all groups: {name: bool [units]}; groups it does not name are kept whole.

    Raises UserError on a name that does not exist, a wrong length, or a group that would vanish.
    """
    if unknown := set(keep) - {group.name for group in groups}:
        raise UserError(f"no channel group {sorted(unknown)[0]!r}: there are {', '.join(g.name for g in groups)}")
    full = {}
    for group in groups:
        kept = torch.as_tensor(keep.get(group.name, torch.ones(units(group), dtype=torch.bool)))
        if kept.shape != (units(group),) or kept.dtype != torch.bool:
            raise UserError(f"keep of {group.name!r} is {kept.dtype} {list(kept.shape)}: give bool [{units(group)}]")
        if not kept.any():
            raise UserError(f"keep of {group.name!r} removes every channel: keep at least one unit")
        full[group.name] = kept
    return full


@contextmanager
def scaled(model: nn.Module, factors: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """Within the context each unit's channels are multiplied by its factor, after their norm.

    `factors` is {group name: float [units]}; gradients flow into it. Groups it does not name stay the same.
    """
    handles = []
    try:
        for group in groups_of(model):
            if group.name in factors:
                hook = _scaling_hook(factors[group.name], group.unit)
                for layer in group.norms or group.producers:
                    handles.append(model.get_submodule(layer).register_forward_hook(hook))
        yield model
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def mask(model: nn.Module, keep: Keep) -> Iterator[nn.Module]:
    """Within the context the channels that `keep` drops are zero after their norm: what `slim` must equal.

    `keep` is {group name: bool [units]}. Raises UserError on a keep that does not fit the model.
    """
    groups = groups_of(model)
    reference = next(model.parameters())
    full = checked_keep(groups, keep)
    with scaled(model, {name: kept.to(reference) for name, kept in full.items()}):
        yield model


def _scaling_hook(factor: Tensor, unit: int):
    def hook(_module, _inputs, output: Tensor) -> Tensor:
        channels = factor.repeat_interleave(unit)
        return output * channels.view(-1, *[1] * (output.dim() - 2))

    return hook

"""Channel groups: the units of each, and the weights that belong to a unit."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from navprune.errors import UserError
from navprune.models.encoders import ChannelGroup, Encoder
from navprune.models.spec import BLOCK

Keep = Mapping[str, Tensor]
"""{group name: bool [units]}; of a block False where it is removed."""

Widths = Mapping[str, int]
"""{group name: channels}; of a block 1, or 0 where it is removed."""

FILTERS, CHANNELS, BOTH = "filters", "channels", "both"


def encoder_in(model: nn.Module) -> tuple[str, Encoder]:
    """The encoder in an encoder or a policy, after the prefix of its layers ("" or "net.visual_encoder.").

    Raises UserError when there is none with channels to cut.
    """
    for name, module in model.named_modules():
        if isinstance(module, Encoder) and module.groups():
            return f"{name}." if name else "", module
    advice = "give an example of its input, or a model with a visual encoder"
    raise UserError(f"{type(model).__name__} has no channels to prune: {advice}")


def units(group: ChannelGroup) -> int:
    """Number of units of a group: the entries of its keep mask, scores and gates."""
    return group.channels // group.unit


def spread(values: Tensor, tensor: Tensor, dimension: int) -> Tensor:
    """A value of each unit for the channels or features along a tensor's dimension, so that it broadcasts with it.

    Of a channel these are one or, behind a flatten, several; of a block all.
    """
    each = values.repeat_interleave(tensor.shape[dimension] // len(values))
    return each.view(-1, *[1] * (tensor.dim() - dimension - 1))


def is_inner(group: ChannelGroup) -> bool:
    """Whether a group lies inside a residual block or in a plain chain, not on the stem or a trunk."""
    return not group.trunk and not group.block


def check_names(groups: Sequence[ChannelGroup], named: Mapping[str, object]) -> None:
    """Raise UserError for a name that is none of the groups'."""
    if unknown := set(named) - {group.name for group in groups}:
        raise UserError(f"no channel group {min(unknown, key=str)!r}: there are {', '.join(g.name for g in groups)}")


def checked_keep(groups: Sequence[ChannelGroup], keep: Keep) -> dict[str, Tensor]:
    """`keep` completed for all groups: {name: bool [units]}; groups it does not name are kept whole.

    Raises UserError on a name that does not exist, a wrong length, or a width that would vanish.
    """
    if not isinstance(keep, Mapping):
        raise UserError(f"keep is {type(keep).__name__}: give a dict {{group name: bool [units]}}")
    check_names(groups, keep)
    full = {}
    for group in groups:
        kept = torch.as_tensor(keep.get(group.name, torch.ones(units(group), dtype=torch.bool)))
        if kept.shape != (units(group),) or kept.dtype != torch.bool:
            raise UserError(f"keep of {group.name!r} is {kept.dtype} {list(kept.shape)}: give bool [{units(group)}]")
        if not group.block and not kept.any():
            raise UserError(f"keep of {group.name!r} removes every channel: keep at least one unit")
        full[group.name] = kept
    return full


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

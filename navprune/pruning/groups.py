"""The channel groups of a model, and scaling or masking their channels in place."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.classifiers import Classifier, ClassifierSpec
from navprune.models.encoders import ChannelGroup, Encoder
from navprune.pruning.graph import Example, check_plain
from navprune.pruning.trace import ADVICE, trace

Keep = Mapping[str, Tensor]
Within = AbstractContextManager[nn.Module]


def encoder_in(model: nn.Module) -> tuple[str, Encoder]:
    """The encoder in an encoder or a policy, after the prefix of its layers ("" or "net.visual_encoder.").

    Raises UserError when there is none with channels to cut.
    """
    for name, module in model.named_modules():
        if isinstance(module, Encoder) and module.groups():
            return f"{name}." if name else "", module
    advice = "give an example of its input, or a model with a visual encoder"
    raise UserError(f"{type(model).__name__} has no channels to prune: {advice}")


def groups_of(model: nn.Module, example: Example | None = None, *, blocks: bool = False) -> list[ChannelGroup]:
    """Channel groups of any network, with layer names as `model.get_submodule` takes them.

    Encoders, policies and classifiers know theirs; what comes from elsewhere is traced with an `example` input, a
    tensor [B, C, ...] or the tuple of its inputs. With `blocks` the residual blocks of the former that can be removed
    whole follow behind the widths. Raises UserError when there is nothing to cut, and as `trace`.
    """
    check_plain(model)
    if isinstance(model, Classifier):
        groups, removable = list(_classifier_groups(model.spec)), model.spec.removable_blocks()
    elif example is None or any(isinstance(module, Encoder) for module in model.modules()):
        prefix, encoder = encoder_in(model)
        groups = encoder.groups(prefix)
        removable = {name: prefix + norm for name, norm in encoder.spec.removable_blocks().items()}
    else:
        followed = trace(model, example)
        if not followed.groups:
            named = "; ".join(followed.obstacles[:3])
            why = f", and channels cannot be followed through {named}: {ADVICE}" if named else ""
            reason = f"those of its inputs and outputs stay{why}"
            raise UserError(f"{type(model).__name__} has no channels to prune: {reason}")
        groups, removable = list(followed.groups), {}
    whole = removable.items() if blocks else ()
    return groups + [ChannelGroup(name, 1, 1, (), (norm,), (), block=True) for name, norm in whole]


@lru_cache(maxsize=32)
def _classifier_groups(spec: ClassifierSpec) -> tuple[ChannelGroup, ...]:
    with torch.device("meta"):
        model = build(spec)
    return trace(model, torch.empty(1, *spec.input)).groups


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


def _check_names(groups: list[ChannelGroup], named: Mapping[str, Tensor]) -> None:
    if unknown := set(named) - {group.name for group in groups}:
        raise UserError(f"no channel group {min(unknown, key=str)!r}: there are {', '.join(g.name for g in groups)}")


def checked_keep(groups: list[ChannelGroup], keep: Keep) -> dict[str, Tensor]:
    """`keep` completed for all groups: {name: bool [units]}; groups it does not name are kept whole.

    Raises UserError on a name that does not exist, a wrong length, or a width that would vanish.
    """
    if not isinstance(keep, Mapping):
        raise UserError(f"keep is {type(keep).__name__}: give a dict {{group name: bool [units]}}")
    _check_names(groups, keep)
    full = {}
    for group in groups:
        kept = torch.as_tensor(keep.get(group.name, torch.ones(units(group), dtype=torch.bool)))
        if kept.shape != (units(group),) or kept.dtype != torch.bool:
            raise UserError(f"keep of {group.name!r} is {kept.dtype} {list(kept.shape)}: give bool [{units(group)}]")
        if not group.block and not kept.any():
            raise UserError(f"keep of {group.name!r} removes every channel: keep at least one unit")
        full[group.name] = kept
    return full


def scaled(model: nn.Module, factors: Mapping[str, Tensor], example: Example | None = None) -> Within:
    """Within the context each unit's channels are multiplied by its factor, after their norm.

    `factors` is {group name: float [units]}, blocks among them; gradients flow into it, and what is changed in it in
    place counts at once. Groups it does not name stay the same. `example` is that of `groups_of`. Raises UserError on
    factors of a wrong length.
    """
    return _scaled(model, groups_of(model, example, blocks=True), factors)


def mask(model: nn.Module, keep: Keep, example: Example | None = None) -> Within:
    """Within the context the channels that `keep` drops are zero after their norm: what `slim` must equal.

    `keep` is {group name: bool [units]}, False for a block that is skipped; `example` is that of `groups_of`. Raises
    UserError on a keep that does not fit the model.
    """
    groups = groups_of(model, example, blocks=True)
    reference = next(model.parameters())
    full = checked_keep(groups, keep)
    return _scaled(model, groups, {name: kept.to(reference) for name, kept in full.items()})


@contextmanager
def _scaled(model: nn.Module, groups: list[ChannelGroup], factors: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    _check_names(groups, factors)
    with ExitStack() as hooks:
        for group in (group for group in groups if group.name in factors):
            factor = factors[group.name]
            if factor.shape != (units(group),):
                raise UserError(f"factors of {group.name!r} are {list(factor.shape)}: give {units(group)}")
            for layer in group.ends:
                hooks.enter_context(model.get_submodule(layer).register_forward_hook(_scaling_hook(factor)))
        yield model


def _scaling_hook(factor: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def hook(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d) and output.dim() != 4:
            raise UserError(f"channels are scaled in batches, not in {list(output.shape)}: give inputs [B, C, H, W]")
        return output * spread(factor, output, 1)

    return hook  # no partial: `check_plain` knows our hooks by their module

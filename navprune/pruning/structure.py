"""The structure of a network: what can be cut, what it costs at any widths, and how it is slimmed.

It is worked out once, by `structure_of`, and handed along to scores, gates, search and cuts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from navprune.costs.counting import DEPLOYED, TABLE1, LayerCost, encoder_layers, total
from navprune.errors import UserError
from navprune.models.build import Spec, build
from navprune.models.classifiers import Classifier, ClassifierSpec
from navprune.models.encoders import ChannelGroup, Encoder
from navprune.pruning.graph import Example, check_plain
from navprune.pruning.groups import Keep, Widths, block_of, check_names, checked_keep, encoder_in, spread, units
from navprune.pruning.slim import slimmed, slimmed_optimiser
from navprune.pruning.trace import ADVICE, Trace, trace

Within = AbstractContextManager[nn.Module]


@dataclass(frozen=True, eq=False)
class Structure:
    """What can be cut of `model`, and what that saves.

    `channels` are its channel groups and `blocks` the residual blocks that can be removed whole, with layer names as
    `model.get_submodule` takes them; blocks are offered for cutting only `with_blocks`. `layers` are all layers of
    the model with its other parameters, as deployed. Of an encoder of ours, budgets refer to `table1`, its layers by
    that convention; of anything else to `layers`. `features` are attributes that its `forward` keeps.
    """

    model: nn.Module
    channels: tuple[ChannelGroup, ...]
    blocks: tuple[ChannelGroup, ...]
    with_blocks: bool
    layers: tuple[LayerCost, ...]
    table1: tuple[LayerCost, ...] | None = None
    features: tuple[tuple[str, str], ...] = ()

    @property
    def spec(self) -> Spec | None:
        """That of the model; None of what comes from elsewhere."""
        spec = getattr(self.model, "spec", None)
        return spec if isinstance(spec, Spec) else None

    @property
    def convention(self) -> str:
        """The name of the convention in which budgets are counted."""
        return DEPLOYED if self.table1 is None else TABLE1

    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """What is offered for cutting: the channel groups and, with blocks, these behind them."""
        return self.channels + (self.blocks if self.with_blocks else ())

    @property
    def everything(self) -> tuple[ChannelGroup, ...]:
        """Channel groups and blocks, offered or not: what a keep may name."""
        return self.channels + self.blocks

    @property
    def widths(self) -> dict[str, int]:
        """{group name: channels}, without blocks."""
        return {group.name: group.channels for group in self.channels}

    def widths_of(self, keep: Keep) -> dict[str, int]:
        """{group name: channels} that a full `keep` leaves; of a block 1 or 0."""
        return {group.name: int(keep[group.name].sum()) * group.unit for group in self.everything if group.name in keep}

    def cost(self, widths: Widths) -> dict[str, int]:
        """Multiply-accumulates for one input and parameters, {"macs", "parameters"}, in the budgets' convention.

        Arithmetic alone, cheap enough for a search. Groups that are not named keep their channels; a block at 0 is
        removed. Raises UserError for a name that does not exist, or a number below 0.
        """
        return self._total(self.layers if self.table1 is None else self.table1, widths)

    def parameters(self, widths: Widths) -> int:
        """All parameters of the model, whatever the convention of budgets; `widths` as `cost` takes them."""
        return self._total(self.layers, widths)["parameters"]

    def _total(self, layers: tuple[LayerCost, ...], widths: Widths) -> dict[str, int]:
        check_names(self.everything, widths)
        if low := [name for name, count in widths.items() if count < 0]:
            raise UserError(f"{low[0]} cannot have {widths[low[0]]} channels: give 0 or more")
        removed = [block_of(group) for group in self.blocks if widths.get(group.name) == 0]
        return total(layers, {**self.widths, **widths}, removed)

    def shares(self, widths: Widths) -> dict[str, float]:
        """The shares of this network's cost that are left, {"macs", "parameters"}."""
        return {name: found / self._whole[name] for name, found in self.cost(widths).items()}

    @cached_property
    def _whole(self) -> dict[str, int]:
        return self.cost({})

    def scaled(self, factors: Mapping[str, Tensor]) -> Within:
        """Within the context each unit's channels are multiplied by its factor, after their norm.

        `factors` is {group name: float [units]}, blocks among them; gradients flow into it, and what is changed in it
        in place counts at once. Groups it does not name stay the same. Raises UserError on factors of a wrong length.
        """
        return _scaled(self.model, self.everything, factors)

    def mask(self, keep: Keep) -> Within:
        """Within the context the channels that `keep` drops are zero after their norm: what `slim` must equal.

        `keep` is {group name: bool [units]}, False for a block that is skipped. Raises UserError on a keep that does
        not fit the model.
        """
        reference = next(self.model.parameters())
        full = checked_keep(self.everything, keep)
        return self.scaled({name: kept.to(reference) for name, kept in full.items()})

    def slim(self, keep: Keep) -> nn.Module:
        """The smaller model that computes what `mask(keep)` computes, to float rounding.

        `keep` is {group name: bool [units]}; groups it does not name are kept whole, blocks at False removed. Of what
        comes from `build` (an encoder, a whole policy, a classifier) the answer is an ordinary `build(smaller spec)`;
        whatever lies outside the encoder is copied. Of any other network it is a deep copy with narrower layers. With
        BatchNorm it computes the same in training mode, too, since each channel has its own statistics; dropout draws
        other numbers. Raises UserError on a keep that does not fit the model.
        """
        return slimmed(self.model, self.everything, checked_keep(self.everything, keep), self.features)

    def slim_optimiser(self, optimiser: torch.optim.Optimizer, keep: Keep) -> dict[str, Any]:
        """The state of an optimiser of the model for one of `slim(keep)`.

        Whatever it keeps for each weight, as Adam its two moments, loses what the weights lose; the next step on the
        slim model is then that on the masked one. Raises UserError for an optimiser of other weights, or one that
        keeps something else than numbers and one value for each weight.
        """
        return slimmed_optimiser(optimiser, self.model, self.channels, checked_keep(self.channels, keep))


def structure_of(model: nn.Module, example: Example | None = None, *, blocks: bool = False) -> Structure:
    """The structure of any network; with `blocks` residual blocks are offered for cutting, too.

    Encoders, policies and classifiers know their channel groups; what comes from elsewhere is traced with an `example`
    input, a tensor [B, C, ...] or the tuple of its inputs. Raises UserError when there is nothing to cut, and as
    `trace`.
    """
    check_plain(model)
    if isinstance(model, Classifier):
        followed, removable = _classifier_trace(model.spec), model.spec.removable_blocks()
        return Structure(model, followed.groups, _blocks(removable), blocks, followed.layers)
    if example is None or any(isinstance(module, Encoder) for module in model.modules()):
        prefix, encoder = encoder_in(model)
        deployed, table1 = (
            [replace(layer, module=prefix + layer.module) for layer in encoder_layers(encoder.spec, convention)]
            for convention in (DEPLOYED, TABLE1)
        )
        others = sum(p.numel() for p in model.parameters()) - total(deployed, encoder.spec.channels)["parameters"]
        removable = {name: prefix + norm for name, norm in encoder.spec.removable_blocks().items()}
        layers = (*deployed, LayerCost("", None, 0, None, others, 0, 0, 1))
        return Structure(model, tuple(encoder.groups(prefix)), _blocks(removable), blocks, layers, tuple(table1))
    followed = trace(model, example)
    if not followed.groups:
        named = "; ".join(followed.obstacles[:3])
        why = f", and channels cannot be followed through {named}: {ADVICE}" if named else ""
        reason = f"those of its inputs and outputs stay{why}"
        raise UserError(f"{type(model).__name__} has no channels to prune: {reason}")
    return Structure(model, followed.groups, (), blocks, followed.layers, features=followed.features)


def _blocks(removable: Mapping[str, str]) -> tuple[ChannelGroup, ...]:
    """Residual blocks, {name: last norm of its branch}, as groups of one unit."""
    return tuple(ChannelGroup(name, 1, 1, (), (norm,), (), block=True) for name, norm in removable.items())


@lru_cache(maxsize=32)
def _classifier_trace(spec: ClassifierSpec) -> Trace:
    with torch.device("meta"):
        model = build(spec)
    return trace(model, torch.empty(1, *spec.input))


@contextmanager
def _scaled(model: nn.Module, groups: tuple[ChannelGroup, ...], factors: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    check_names(groups, factors)
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

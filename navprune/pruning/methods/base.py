"""What a pruning method is: what it needs, which options are its own, and how it comes to the units to keep."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from navprune.costs.probing import Timer
from navprune.models.encoders import ChannelGroup
from navprune.pruning.config import MEASURES, PPO, Budget, PruningConfig, SearchConfig
from navprune.pruning.groups import Widths, units
from navprune.pruning.losses import Evidence
from navprune.pruning.search import Share, search
from navprune.pruning.structure import Structure

BATCHES, LOSS, PASSES, ONE_BATCH, CLOCK = "batches", "loss", "passes", "one batch", "clock"
"""What a method may need: batches of inputs, a loss on them, more than one pass through them, no more than a single
one of them, a clock."""

SEARCHED = (*(option.name for option in fields(SearchConfig)), "blocks")
"""Options of the search along a ranking."""

Scores = dict[str, Tensor]
"""{group name: float64 [units]}: the higher, the sooner kept."""


@dataclass(frozen=True)
class Context:
    """What a method goes by beside the structure of the dense network and the budget.

    `measured` are shares or milliseconds of those measures of the budget that are costly to ask, and noisy; `clock`
    is there where the method needs one or the budget is of latency.
    """

    config: PruningConfig
    evidence: Evidence
    measured: Mapping[str, Share] = field(default_factory=dict)
    clock: Timer | None = None
    seed: int = 0
    device: torch.device | str = "cpu"


@dataclass(frozen=True)
class Outcome:
    """What a method decides: what stays of the network that it `searched`, {group name: bool [units]}.

    `scores` are of that network, `losses` those of the steps in which they were learned. A method that does not slim
    by `searched.slim(keep)` gives its own smaller `model`, and the `widths` in it. `reached` are measures that
    the method took itself, `report` whatever else `pruning.json` is to say.
    """

    searched: Structure
    keep: dict[str, Tensor]
    scores: Scores = field(default_factory=dict)
    losses: Sequence[float] = ()
    model: nn.Module | None = None
    widths: Widths | None = None
    reached: Mapping[str, float] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """What a way to choose what stays looks at, and which options it makes use of.

    `needs` are some of "batches", "loss", "passes", "one batch" and "clock"; `loss` is the one that agents follow where
    none is asked for. `options` names the section of `PruningConfig` that is its own. It `heeds` some of scope, limits,
    minimum, multiple and blocks.
    """

    name: str
    needs: frozenset[str] = frozenset()
    loss: str = PPO
    options: str | None = None
    heeds: Collection[str] = ()


@dataclass(frozen=True, kw_only=True)
class Method(Criterion):
    """A way to choose what stays of channels: `run` is given the dense structure, a checked budget and the rest.

    What `borrows` takes the importance of units from the method that its options name. `tolerance` and `slack` are how
    far below its budget a cut may end and why, where that is not the search's.
    """

    run: Callable[[Structure, Budget, Context], Outcome]
    heeds: Collection[str] = SEARCHED
    borrows: bool = False
    tolerance: float | None = None
    slack: str = "in whole units along this ranking they cannot bind together"


def chosen_units(
    structure: Structure, scores: Mapping[str, Tensor], budget: Budget, context: Context, dense: Structure | None = None
) -> dict[str, Tensor]:
    """The units to keep by `search`; budget and limits refer to the `dense` structure, by default the one searched."""
    dense = dense or structure
    return search(structure.groups, scores, dense.shares, budget, context.config, context.measured, dense.widths)


def check_reach(
    structure: Structure, cut: Sequence[ChannelGroup], budget: Budget, context: Context, dense: Structure | None = None
) -> None:
    """Raise UserError for limits or a budget that no scores of the groups `cut` could meet, before time goes there."""
    if exact := {name: budget[name] for name in MEASURES if name in budget}:
        alike = {group.name: torch.ones(units(group)) for group in cut}
        loose = replace(context, config=replace(context.config, tolerance=1.0), measured={})
        chosen_units(structure, alike, exact, loose, dense)

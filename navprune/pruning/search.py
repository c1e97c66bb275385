"""Search for the units to keep: one global threshold on the scores that meets a budget from below."""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter

import torch
from torch import Tensor

from navprune.errors import UserError
from navprune.models.encoders import ChannelGroup
from navprune.pruning.groups import units

MEASURES = ("macs", "parameters")

Budget = Mapping[str, float]
"""Largest share of the dense network for each measure, in (0, 1]."""

Unit = tuple[str, int]
"""A unit: its group's name and its number in the group."""

Cost = Callable[[Mapping[str, int]], Mapping[str, float]]
"""Widths {group name: channels} -> share of the dense network by measure; never falls when a width grows."""


def parse_budget(text: str) -> dict[str, float]:
    """Reads `macs=0.5,parameters=0.45`: shares of the dense network, 0 < share <= 1.

    Raises UserError on anything else.
    """
    budget: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in MEASURES or name in budget:
            raise UserError(
                f"budget {text!r}: cannot read {part.strip()!r}; write {' or '.join(MEASURES)}, each once, "
                "as in macs=0.5,parameters=0.45"
            )
        try:
            budget[name] = float(value)
        except ValueError:
            raise UserError(f"budget {text!r}: {value!r} is not a number; write a share such as 0.5") from None
    check_budget(budget)
    return budget


def check_budget(budget: Budget) -> None:
    """Raises UserError unless every entry is a share in (0, 1] of a known measure."""
    if not budget:
        raise UserError(f"the budget is empty: give a share of {' or '.join(MEASURES)}")
    for name, share in budget.items():
        if name not in MEASURES:
            raise UserError(f"budget: unknown measure {name!r}; there are {', '.join(MEASURES)}")
        if not 0 < share <= 1:
            raise UserError(f"budget: {name}={share:g} is not a share of the dense network; give 0 < {name} <= 1")


def search(
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    cost: Cost,
    budget: Budget,
    minimum: int = 1,
    tolerance: float = 0.01,
) -> dict[str, Tensor]:
    """The units to keep, {group name: bool [units]}, so that every measure is within its budget.

    Bisects for the lowest global threshold on the scores (float [units] a group) that meets the budget. Where
    one unit is worth more than `tolerance` of it, the room left is filled with the best units below the
    threshold that still fit, if need be in place of one above it (the worst possible), until the tightest
    measure is within `tolerance` (relative) of its budget. Ties go to the earlier group, then to the lower
    unit. The `minimum` best units of a group always stay; groups without scores stay whole. Raises UserError,
    with the nearest there is, when the budget cannot be met.
    """
    check_budget(budget)
    if minimum < 1:
        raise UserError(f"at least one unit of every group must stay, not {minimum}")
    required, order = _ranked(groups, scores, minimum)
    sizes = {group.name: group.unit for group in groups}

    def channels(chosen: Sequence[Unit]) -> dict[str, int]:
        count = Counter(name for name, _ in (*required, *chosen))
        return {name: count[name] * size for name, size in sizes.items()}

    def load(widths: Mapping[str, int]) -> float:
        shares = cost(widths)
        return max(shares[name] / limit for name, limit in budget.items())

    def filled(chosen: Sequence[Unit], rest: Sequence[Unit]) -> tuple[float, list[Unit]]:
        widths, taken, full = channels(chosen), list(chosen), set()
        for name, unit in rest:
            if load(widths) >= 1 - tolerance:
                break
            if name not in full:
                widths[name] += sizes[name]
                if load(widths) <= 1:
                    taken.append((name, unit))
                else:
                    widths[name] -= sizes[name]
                    full.add(name)
        return load(widths), taken

    fitting = bisect_right(range(len(order) + 1), 1.0, key=lambda n: load(channels(order[:n]))) - 1
    if fitting < 0:
        raise _refusal(budget, cost(channels([])))
    above, below = order[:fitting], order[fitting:]
    reached, chosen = filled(above, below)
    for place in reversed(range(fitting)):
        if reached >= 1 - tolerance or not below:
            break
        reached, chosen = max((reached, chosen), filled(above[:place] + above[place + 1 :], below), key=itemgetter(0))
    if reached < 1 - tolerance and below:
        raise _refusal(budget, cost(channels(chosen)))
    keep = {group.name: torch.zeros(units(group), dtype=torch.bool) for group in groups}
    for name, unit in (*required, *chosen):
        keep[name][unit] = True
    return keep


def _ranked(
    groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor], minimum: int
) -> tuple[list[Unit], list[Unit]]:
    """The units that must stay, and the others from best to worst."""
    required: list[Unit] = []
    others: list[tuple[float, Unit]] = []
    for group in groups:
        if group.name not in scores:
            required += [(group.name, unit) for unit in range(units(group))]
            continue
        score = scores[group.name].detach().double().cpu()
        if score.shape != (units(group),) or not torch.isfinite(score).all():
            raise UserError(f"scores of {group.name!r} must be {units(group)} finite numbers")
        best = score.argsort(descending=True, stable=True).tolist()
        required += [(group.name, unit) for unit in best[:minimum]]
        others += [(float(score[unit]), (group.name, unit)) for unit in best[minimum:]]
    others.sort(key=lambda scored: -scored[0])  # stable: ties stay in group order, then in unit order
    return required, [unit for _, unit in others]


def _refusal(budget: Budget, nearest: Mapping[str, float]) -> UserError:
    asked = ",".join(f"{name}={share:g}" for name, share in budget.items())
    # Rounded up, so that asking for it succeeds.
    found = ",".join(f"{name}={math.ceil(nearest[name] * 1e4) / 1e4:g}" for name in budget)
    return UserError(f"budget {asked} cannot be met in whole units: nearest is {found}; ask for that")

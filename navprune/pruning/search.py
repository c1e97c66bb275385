"""Search for the units to keep: one global threshold on the scores that meets a budget from below."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from navprune.errors import UserError
from navprune.models.encoders import ChannelGroup
from navprune.pruning.groups import units

MEASURES = ("macs", "parameters")

Budget = Mapping[str, float]
"""Largest share of the dense network for each measure, in (0, 1]."""

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
            raise UserError(
                f"budget {text!r}: {value!r} is not a number; write a share such as 0.5"
            ) from None
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
            raise UserError(
                f"budget: {name}={share:g} is not a share of the dense network; give 0 < {name} <= 1"
            )


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
    one unit is worth more than `tolerance` of the budget, the room left is filled with the best units below the
    threshold that still fit, until the tightest measure is within `tolerance` (relative) of its budget.
    Ties go to the earlier group, then to the lower unit. The `minimum` best units of a group always stay;
    groups without scores stay whole. Raises UserError, with the nearest there is, when the budget cannot be
    met.
    """
    check_budget(budget)
    keep, order = _ranked(groups, scores, minimum)
    channels = {group.name: group.unit for group in groups}

    def load(kept: Mapping[str, Tensor]) -> float:
        shares = cost({name: int(flags.sum()) * channels[name] for name, flags in kept.items()})
        return max(shares[name] / limit for name, limit in budget.items())

    def refuse(kept: Mapping[str, Tensor]) -> UserError:
        shares = cost({name: int(flags.sum()) * channels[name] for name, flags in kept.items()})
        nearest = ", ".join(f"{name}={shares[name]:.4f}" for name in budget)
        asked = ", ".join(f"{name}={limit:g}" for name, limit in budget.items())
        return UserError(f"budget {asked} cannot be met with units of these sizes: nearest is {nearest}")

    if load(keep) > 1:
        raise refuse(keep)
    fits, over = 0, len(order) + 1
    while over - fits > 1:
        middle = (fits + over) // 2
        if load(_with(keep, order[:middle])) <= 1:
            fits = middle
        else:
            over = middle
    keep = _with(keep, order[:fits])
    full: set[str] = set()
    for name, unit in order[fits:]:
        if load(keep) >= 1 - tolerance:
            break
        if name not in full:
            larger = _with(keep, [(name, unit)])
            if load(larger) <= 1:
                keep = larger
            else:
                full.add(name)
    everything = all(bool(flags.all()) for flags in keep.values())
    if load(keep) < 1 - tolerance and not everything:
        raise refuse(keep)
    return keep


def _ranked(
    groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor], minimum: int
) -> tuple[dict[str, Tensor], list[tuple[str, int]]]:
    """The units that must stay, and the others from best to worst as (group name, unit)."""
    keep: dict[str, Tensor] = {}
    candidates: list[tuple[float, str, int]] = []
    for group in groups:
        if group.name not in scores:
            keep[group.name] = torch.ones(units(group), dtype=torch.bool)
            continue
        score = scores[group.name].detach().double().cpu()
        if score.shape != (units(group),) or not torch.isfinite(score).all():
            raise UserError(f"scores of {group.name!r} must be {units(group)} finite numbers")
        best = score.argsort(descending=True, stable=True).tolist()
        keep[group.name] = torch.zeros(units(group), dtype=torch.bool)
        keep[group.name][best[:minimum]] = True
        candidates += [(float(score[unit]), group.name, unit) for unit in sorted(best[minimum:])]
    candidates.sort(key=lambda candidate: -candidate[0])  # stable: ties stay in group order, then unit order
    return keep, [(name, unit) for _, name, unit in candidates]


def _with(keep: Mapping[str, Tensor], more: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
    larger = {name: flags.clone() for name, flags in keep.items()}
    for name, unit in more:
        larger[name][unit] = True
    return larger

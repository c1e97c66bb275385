"""Search for the units to keep: one global threshold on the scores that meets every budget from below.

Two budgets, multiply-accumulates and parameters, seldom bind at one threshold. So that both are reached, the
ranking is then tilted: at rank r of n a unit of group g sorts by

    r / n - theta * z_g,    z_g = log(its share of the slack measure / its share of the tight one), scaled to [0, 1]

with the theta in [0, 1] of least size at which neither is slack. Within a group the order of the scores stays.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import combinations_with_replacement, islice, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from navprune.errors import UserError
from navprune.models.encoders import ChannelGroup
from navprune.pruning.config import MEASURES, Budget, SearchConfig, check_budget
from navprune.pruning.groups import Widths, units

MEASURED_TOLERANCE = 0.05
"""How far below its budget a measured cost may end (relative): clocks do not repeat to one per cent."""
TILTS = 14  # halvings of theta: beyond, no unit changes its place
RELEASES = 300  # sets of units above the threshold that are tried to give way to others before a budget is refused

Share = Callable[[Widths], float]
Shares = Callable[[Widths], Mapping[str, float]]
"""Widths -> share of the dense network by measure; never falls when a width grows."""


class BudgetUnmet(UserError):
    """A budget that cannot be met within its tolerance, with the nearest that was found."""


def search(
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    cost: Shares,
    budget: Budget,
    config: SearchConfig | None = None,
    measured: Mapping[str, Share] | None = None,
    dense: Widths | None = None,
) -> dict[str, Tensor]:
    """The units to keep, {group name: bool [units]}, so that every measure is within its budget.

    Bisects for the lowest threshold on the scores (float [units] a group) that meets the budget. Where one unit is
    worth more than the tolerance, the room left is filled with the best units below the threshold that still fit, if
    need be in place of some of the last ones above it, until the tightest measure is within the tolerance of its
    budget; of two measures both, where a tilted ranking brings them together (see above), else the tightest. Ties go
    to the earlier group, then to the lower unit. Groups without scores stay whole.

    `measured` are shares that are costly to ask and noisy, such as milliseconds: they are asked only in bisections
    along the ranking and met within `MEASURED_TOLERANCE`. `dense` is what limits and minimum share refer to, by default
    the groups' own channels. Raises UserError for scores and limits that do not fit, and with the nearest that was
    found where the budget is not met.
    """
    config, measured = config or SearchConfig(), measured or {}
    check_budget(budget, (*MEASURES, *measured))
    exact = {name: share for name, share in budget.items() if name not in measured}
    floors, steps = _steps(groups, scores, config, dense or {})
    space = _Space({group.name: group.unit for group in groups}, floors, cost, exact, config.tolerance)
    order = sorted(steps, key=lambda step: -step.score)  # stable: ties stay in group order, then in unit order
    counts, order = _within(space, order, balance=len(exact) == 2 and config.scope == "global")
    for name in budget.keys() & measured.keys():
        counts = _bisected(space, order, counts, name, budget[name], measured[name])
    keep = {}
    for group in groups:
        score = _checked(group, scores[group.name]) if group.name in scores else torch.zeros(units(group))
        keep[group.name] = largest(score, counts[group.name])
    return keep


def largest(values: Tensor, count: int) -> Tensor:
    """Mask of exactly `count` of the values [n], the largest; ties go to the earlier."""
    mask = torch.zeros(values.shape, dtype=torch.bool)
    mask[values.argsort(descending=True, stable=True)[:count]] = True
    return mask


def shortfall(
    budget: Budget,
    reached: Mapping[str, float],
    tolerance: float,
    why: str = "in whole units along this ranking they cannot bind together",
) -> str | None:
    """One line on the measures that ended further below their budget than the tolerance allows; None without any."""
    loads = {name: reached[name] / share for name, share in budget.items()}
    allowed = {name: tolerance if name in MEASURES else MEASURED_TOLERANCE for name in budget}
    slack = [name for name, load in loads.items() if load < 1 - allowed[name]]
    if not slack:
        return None
    binding = " and ".join(name for name in budget if name not in slack)
    ends = ", ".join(
        f"{name} ended at {reached[name]:.3g}, {1 - loads[name]:.1%} below its budget of {budget[name]:g}"
        for name in slack
    )
    together = f"{binding} binds first, and {why}"
    return f"{ends}: {together if binding else 'the units are too coarse to come nearer'}"


Goal = Callable[..., float]
"""Which of the loads must come near 1: `max`, the tightest, or `min`, all of them."""


class Found(NamedTuple):
    """Units of each group, and how near to its budget the load that matters is."""

    value: float
    counts: Counter[str]


class Growth(NamedTuple):
    """The next best units of a group, which come together."""

    group: str
    units: int
    score: float


def _steps(
    groups: Sequence[ChannelGroup], scores: Mapping[str, Tensor], config: SearchConfig, dense: Widths
) -> tuple[Counter[str], list[Growth]]:
    """The units that must stay of each group, and the steps by which it may grow, the best first."""
    cut = [group.name for group in groups if group.name in scores]
    check_limits(config, cut)
    if unknown := sorted(scores.keys() - {group.name for group in groups}):
        raise UserError(f"scores of {unknown[0]!r}: no such group; there are {', '.join(g.name for g in groups)}")
    floors: Counter[str] = Counter()
    steps = []
    for group in groups:
        if group.name not in scores:
            floors[group.name] = units(group)
            continue
        allowed = sizes(group, config, dense.get(group.name, group.channels))
        best = _checked(group, scores[group.name]).sort(descending=True).values
        floors[group.name] = allowed[0]
        for low, high in pairwise(allowed):
            score = 1 - (low + high) / 2 / units(group) if config.scope == "layer" else float(best[low:high].mean())
            steps.append(Growth(group.name, high - low, score))
    return floors, steps


def check_limits(config: SearchConfig, cut: Sequence[str]) -> None:
    """Raise UserError where limits name a layer that is none of those that are cut."""
    for pattern in config.limits:
        if not any(fnmatchcase(name, pattern) for name in cut):
            raise UserError(f"limits: no layer that this method cuts is called {pattern!r}; it cuts {', '.join(cut)}")


def sizes(group: ChannelGroup, config: SearchConfig, dense: int) -> list[int]:
    """Numbers of units that a group may keep, ascending; limits are shares of so many `dense` channels."""
    if group.block:
        return [0, 1]
    count, whole = units(group), dense / group.unit
    limits = [share for pattern, share in config.limits.items() if fnmatchcase(group.name, pattern)]
    limit = min(limits, default=math.inf)
    least = min(count, max(config.minimum, math.ceil(config.minimum_share * whole - 1e-9)))
    chunk = math.lcm(group.unit, config.multiple) // group.unit
    allowed = [size for size in range(1, count + 1) if size % chunk == 0 or size == count]
    sizes = [size for size in allowed if least <= size <= limit * whole + 1e-9]
    if not sizes:
        raise UserError(
            f"limits: at most {limit:g} of {group.name}'s {dense} channels may stay, which is less than "
            f"the minimum of {max(least, allowed[0]) * group.unit}; allow more, or ask for a smaller minimum"
        )
    return sizes


def _checked(group: ChannelGroup, score: Tensor) -> Tensor:
    score = score.detach().double().cpu()
    if score.shape != (units(group),) or not torch.isfinite(score).all():
        raise UserError(f"scores of {group.name!r} must be {units(group)} finite numbers; check what they come from")
    return score


class _Space:
    """Counts of units of every group, and what they cost against the budget (1 is all of it)."""

    def __init__(
        self, sizes: Mapping[str, int], floors: Counter[str], cost: Shares, budget: Budget, tolerance: float
    ) -> None:
        self.sizes, self.floors, self.cost, self.budget, self.enough = sizes, floors, cost, budget, 1 - tolerance

    def counts(self, steps: Sequence[Growth]) -> Counter[str]:
        """Units of each group after these steps."""
        return self.floors + _units(steps)

    def widths(self, counts: Mapping[str, int]) -> dict[str, int]:
        return {name: counts[name] * size for name, size in self.sizes.items()}

    def loads(self, counts: Mapping[str, int]) -> dict[str, float]:
        shares = self.cost(self.widths(counts))
        return {name: shares[name] / limit for name, limit in self.budget.items()}

    def fits(self, counts: Mapping[str, int]) -> bool:
        return all(load <= 1 for load in self.loads(counts).values())

    def longest(self, order: Sequence[Growth]) -> int:
        """How many of the first steps fit together; -1 where not even the floors do."""
        return bisect_right(range(len(order) + 1), False, key=lambda n: not self.fits(self.counts(order[:n]))) - 1

    def filled(self, counts: Counter[str], rest: Sequence[Growth], full: set[str], goal: Goal) -> Found:
        """These counts with the best further steps that fit, until the goal is met; `full` groups do not grow."""
        counts, full, loads = counts.copy(), set(full), self.loads(counts)
        for step in rest:
            if goal(loads.values()) >= self.enough:
                break
            if step.group in full:
                continue
            counts[step.group] += step.units
            more = self.loads(counts)
            if max(more.values()) <= 1:
                loads = more
            else:
                counts[step.group] -= step.units
                full.add(step.group)
        return Found(goal(loads.values()), counts)

    def closest(self, order: Sequence[Growth], goal: Goal) -> Found:
        """The best steps that fit, the room left filled, if need be in place of some last ones of groups above."""
        fitting = self.longest(order)
        above, below = order[:fitting], order[fitting:]
        whole = self.counts(above)
        best = self.filled(whole, below, set(), goal)
        for released in islice(_releases(above), RELEASES):
            if best.value >= self.enough or not below:
                break
            found = self.filled(whole - _units(released), below, {step.group for step in released}, goal)
            best = found if found.value > best.value else best
        return best


def _releases(steps: Sequence[Growth]) -> Iterator[list[Growth]]:
    """Sets of last steps of each group to take back: first one step, the worst first, then two, and so on."""
    lasts: dict[str, list[Growth]] = {}
    for step in reversed(steps):
        lasts.setdefault(step.group, []).append(step)
    for count in range(1, len(steps) + 1):
        for names in combinations_with_replacement(lasts, count):
            taken = Counter(names)
            if all(many <= len(lasts[name]) for name, many in taken.items()):
                yield [step for name, many in taken.items() for step in lasts[name][:many]]


def _units(steps: Iterable[Growth]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for step in steps:
        counts[step.group] += step.units
    return counts


def _within(space: _Space, order: list[Growth], *, balance: bool) -> tuple[Counter[str], list[Growth]]:
    """The counts that meet the exact budgets, and the ranking they were taken from."""
    if not space.budget:
        return space.counts(order), order
    if not space.fits(space.floors):
        raise _refusal(space.budget, space.cost(space.widths(space.floors)))
    best, ranking = Found(0.0, space.floors), order
    for tilted in _tilted(space, order) if balance else ():
        found = space.closest(tilted, min)
        if found.value > best.value and max(space.loads(found.counts).values()) >= space.enough:
            best, ranking = found, tilted
        if best.value >= space.enough:
            break
    if best.value == 0:
        best = space.closest(order, max)
        if best.value < space.enough:
            raise _refusal(space.budget, space.cost(space.widths(best.counts)))
    return best.counts, ranking


def _tilted(space: _Space, order: list[Growth]) -> list[list[Growth]]:
    """Rankings at which two budgets come nearest to binding together; none where they cannot."""

    def slack(order: list[Growth]) -> float:
        first, second = space.loads(space.counts(order[: space.longest(order)])).values()
        return first - second

    before = slack(order)
    lean = _lean(space, order)
    if abs(before) <= 1 - space.enough or not lean:
        return [order]
    sign = 1 if before > 0 else -1

    def tilted(theta: float) -> list[Growth]:
        places = {id(step): place / len(order) for place, step in enumerate(order)}
        return sorted(order, key=lambda step: places[id(step)] - theta * (lean[step.group] * sign))

    low, high = 0.0, 1.0
    if slack(tilted(high)) * sign > 0:
        return []
    tried = []
    for _ in range(TILTS):
        theta = (low + high) / 2
        found = slack(tilted(theta))
        tried.append((abs(found), theta))
        low, high = (theta, high) if found * sign > 0 else (low, theta)
    return [tilted(theta) for _, theta in sorted(tried)[:4]]


def _lean(space: _Space, order: Sequence[Growth]) -> dict[str, float]:
    """How much more of the second measure than of the first each group's last step takes, from 0 to 1."""
    whole = space.counts(order)
    dense = space.cost(space.widths(whole))
    first, second = space.budget
    lean = {}
    for step in {step.group: step for step in order}.values():
        less = space.cost(space.widths(whole - Counter({step.group: step.units})))
        saved = [max(dense[name] - less[name], 1e-12) for name in (first, second)]
        lean[step.group] = math.log(saved[1] / saved[0])
    if not lean or max(lean.values()) - min(lean.values()) < 1e-9:
        return {}
    least, most = min(lean.values()), max(lean.values())
    return {name: (value - least) / (most - least) for name, value in lean.items()}


def _bisected(
    space: _Space, order: Sequence[Growth], counts: Counter[str], name: str, limit: float, share: Share
) -> Counter[str]:
    """As many of the ranking's best steps, within `counts`, as keep a measured share at its limit or below."""
    if share(space.widths(counts)) <= limit:
        return counts
    shares = {}

    def exceeds(length: int) -> bool:
        shares[length] = share(space.widths(space.counts(order[:length]) & counts))
        return not shares[length] <= limit

    longest = bisect_left(range(len(order) + 1), True, key=exceeds) - 1
    reached = shares[max(longest, 0)]
    if not (1 - MEASURED_TOLERANCE) * limit <= reached <= limit:
        raise _refusal({name: limit}, {name: reached})
    return space.counts(order[:longest]) & counts


def _refusal(budget: Budget, nearest: Mapping[str, float]) -> BudgetUnmet:
    asked = ",".join(f"{name}={share:g}" for name, share in budget.items())
    # Rounded up, so that asking for it succeeds.
    found = ",".join(f"{name}={math.ceil(nearest[name] * 1e4) / 1e4:g}" for name in budget)
    return BudgetUnmet(f"budget {asked} cannot be met in whole units: nearest found is {found}; ask for that")

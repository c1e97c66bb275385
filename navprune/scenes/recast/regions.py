"""Divides the open places of a heightfield into regions without holes that a contour can go round: Recast's watershed.

Water rises from the places farthest from any edge; where two pools meet there is a border. Regions are numbered from
1; 0 is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field as attribute
from itertools import combinations, repeat

import numpy as np

from navprune.kernels import njit
from navprune.scenes.recast.heightfield import FAR, Field, blurred, borders, edge_distance

BATCHES = 8  # levels that are sorted at once
SPREAD = 8  # steps by which pools grow at each level


def partition(field: Field, is_open: np.ndarray, least: int, merge_below: int) -> np.ndarray:
    """The region of each place, int32 [N].

    Connected regions of fewer than `least` places in all are dropped; one of at most `merge_below` places joins its
    smallest neighbour.
    """
    distance = edge_distance(field, is_open)
    regions = _watershed(field, is_open, blurred(field, distance), int(distance.max()))
    return _merge(field, regions, least, merge_below)[regions]


# ---------------------------------------------------------------------------------------------- watershed


@njit(cache=True)
def _grow(field, is_open, regions, steps, work, most):
    """Let regions spread over the places in `work` [K], `most` times or for ever (0), and return the places left.

    `work` is used up. `steps` [N] counts how far a region has come.
    """
    count = len(work)
    reached = np.empty((count, 3), np.int32)
    turn = 0
    while count > 0:
        left, new = 0, 0
        for k in range(count):
            i = work[k]
            best, region = FAR, 0
            for near in field.neighbours[i]:
                if near >= 0 and is_open[near] and regions[near] > 0 and steps[near] + 2 < best:
                    best, region = steps[near] + 2, regions[near]
            if region:
                reached[new, 0], reached[new, 1], reached[new, 2] = i, region, best
                new += 1
            else:
                work[left] = i
                left += 1
        for k in range(new):
            regions[reached[k, 0]], steps[reached[k, 0]] = reached[k, 1], reached[k, 2]
        count = left
        turn += 1
        if new == 0 or turn == most:
            break
    return work[:count]


@njit(cache=True)
def _flood(field, is_open, regions, steps, distance, start, level, region, stack):
    """Fill a new region from a place down to two levels below; returns whether it holds anything."""
    lowest = max(level - 2, 0)
    stack[0], depth = start, 1
    regions[start], steps[start] = region, 0
    filled = 0
    while depth > 0:
        depth -= 1
        i = stack[depth]
        if _touches_another(field, is_open, regions, i, region):
            regions[i] = 0
            continue
        filled += 1
        for near in field.neighbours[i]:
            if near >= 0 and is_open[near] and distance[near] >= lowest and regions[near] == 0:
                regions[near], steps[near] = region, 0
                stack[depth] = near
                depth += 1
    return filled > 0


@njit(cache=True)
def _touches_another(field, is_open, regions, i, region):
    for side in range(4):
        near = field.neighbours[i, side]
        if near < 0 or not is_open[near]:
            continue
        if regions[near] != 0 and regions[near] != region:
            return True
        corner = field.neighbours[near, (side + 1) & 3]
        if corner >= 0 and is_open[corner] and regions[corner] != 0 and regions[corner] != region:
            return True
    return False


@njit(cache=True)
def _flood_all(field, is_open, regions, steps, distance, work, level, region, stack):
    """Fill regions, numbered from `region`, from those places in `work` that have none; returns the next number."""
    for i in work:
        if regions[i] == 0 and _flood(field, is_open, regions, steps, distance, i, level, region, stack):
            region += 1
    return region


def _watershed(field: Field, is_open: np.ndarray, distance: np.ndarray, highest: int) -> np.ndarray:
    """Regions of at most one summit each, int32 [N]."""
    regions, steps, stack = (np.zeros(len(distance), np.int32) for _ in range(3))
    region = 1
    batches: list[np.ndarray] = []
    work = np.empty(0, np.int64)
    for turn, level in enumerate(range(((highest + 1) & ~1) - 2, -1, -2)):
        if turn % BATCHES == 0:
            waiting = np.flatnonzero(is_open & (regions == 0))
            batch = np.maximum((level >> 1) - (distance[waiting] >> 1), 0)
            batches = [waiting[batch == k] for k in range(BATCHES)]
            work = work[:0]
        work = np.concatenate([batches[turn % BATCHES], work])  # what earlier levels left comes last
        work = work[regions[work] == 0]
        work = _grow(field, is_open, regions, steps, work, SPREAD if level else 0)
        region = _flood_all(field, is_open, regions, steps, distance, work, level, region, stack)
    _grow(field, is_open, regions, steps, np.flatnonzero(is_open & (regions == 0)), 0)
    return regions


# ---------------------------------------------------------------------------------------------- merging


@dataclass(slots=True)
class _Region:
    """A region while regions merge: neighbours in the order of its contour, and what lies over or under it."""

    number: int
    size: int
    neighbours: list[int]
    floors: set[int] = attribute(default_factory=set)

    def may_take(self, other: _Region) -> bool:
        """Whether the two would still have one simple border, and nowhere one over the other."""
        return self.neighbours.count(other.number) <= 1 and other.number not in self.floors

    def take(self, other: _Region) -> None:
        """Merge a neighbour into this one: its contour is put in where the two touch."""
        a, b = self.neighbours.index(other.number), other.neighbours.index(self.number)
        around = self.neighbours[a + 1 :] + self.neighbours[:a] + other.neighbours[b + 1 :] + other.neighbours[:b]
        self.neighbours = _without_repeats(around)
        self.floors |= other.floors
        self.size += other.size
        other.size, other.neighbours = 0, []

    def rename(self, old: int, new: int) -> None:
        """Follow a neighbour that has become part of another region."""
        if old in self.neighbours:
            self.neighbours = _without_repeats([new if n == old else n for n in self.neighbours])
        if old in self.floors:
            self.floors = self.floors - {old} | {new}


def _without_repeats(ring: list[int]) -> list[int]:
    """A closed sequence without equal neighbours, its last occurrences kept as Recast keeps them."""
    i = 0
    while i < len(ring) and len(ring) > 1:
        if ring[i] == ring[(i + 1) % len(ring)]:
            del ring[i]
        else:
            i += 1
    return ring


def _merge(field: Field, regions: np.ndarray, least: int, merge_below: int) -> np.ndarray:
    """The final number of each region, int32 [regions + 1]."""
    count = int(regions.max(initial=0)) + 1
    every = [_Region(r, size, []) for r, size in enumerate(np.bincount(regions, minlength=count).tolist())]
    sides = borders(field, regions)
    places = np.flatnonzero(sides * (regions > 0))
    for r, k in zip(*np.unique(regions[places], return_index=True)):
        every[r].neighbours = _without_repeats(_neighbour_ring(field, regions, sides, places[k]).tolist())
    for r, other in _stacked(field, regions, count):
        every[r].floors.add(other)
        every[other].floors.add(r)
    _drop_small(every, least)
    while _merge_once(every, merge_below):
        pass
    numbers: dict[int, int] = {0: 0}
    return np.array([numbers.setdefault(region.number, len(numbers)) for region in every], np.int32)


def _drop_small(every: list[_Region], least: int) -> None:
    visited = {0}
    for start in range(1, len(every)):
        if start in visited or every[start].size == 0:
            continue
        visited.add(start)
        members = [start]
        for r in members:  # grows while it is walked
            for n in every[r].neighbours:
                if n not in visited:
                    visited.add(n)
                    members.append(n)
        if sum(every[r].size for r in members) < least:
            for r in members:
                every[r].number, every[r].size = 0, 0


def _merge_once(every: list[_Region], merge_below: int) -> bool:
    """Give each region that is small, or touches no outer edge, to its smallest neighbour; whether any moved."""
    merged = False
    for region in every:
        number = region.number
        if number == 0 or number in region.floors or region.size == 0:
            continue
        if region.size > merge_below and 0 in region.neighbours:
            continue
        target = None
        for n in region.neighbours:
            other = every[n]
            if other.number == 0 or other.number in other.floors or (target and other.size >= target.size):
                continue
            if region.may_take(other) and other.may_take(region):
                target = other
        if target is None or target is region or number not in target.neighbours:
            continue
        target.take(region)
        for other in every[1:]:
            if other.number == number:
                other.number = target.number
            if other.number:
                other.rename(number, target.number)
        merged = True
    return merged


@njit(cache=True)
def _neighbour_ring(field, regions, sides, start):
    """The regions met on the way round a region's contour from one of its places, runs as one: int32 [K].

    `sides` [N] are bits for the sides of places that lie on a border.
    """
    i, side = start, 0
    while not sides[i] & (1 << side):
        side += 1
    first_side = side
    ring = [regions[0] for _ in range(0)]
    for _ in range(8 * len(regions)):
        near = field.neighbours[i, side]
        if sides[i] & (1 << side):
            other = regions[near] if near >= 0 else np.int32(0)
            if not ring or other != ring[-1]:
                ring.append(other)
            side = (side + 1) & 3
        else:
            i = near
            side = (side + 3) & 3
        if i == start and side == first_side:
            break
    return np.array(ring, np.int32)


def _stacked(field: Field, regions: np.ndarray, count: int) -> Iterator[tuple[int, int]]:
    """Pairs of regions, numbered below `count`, that have places in one cell; repeated."""
    places = np.diff(field.first)
    cells = np.flatnonzero(places > 1)
    for low, high in combinations(range(int(places.max(initial=0))), 2):
        first = field.first[cells[places[cells] > high]]
        pairs = regions[first + low].astype(np.int64) * count + regions[first + high]
        yield from ((a, b) for a, b in map(divmod, np.unique(pairs).tolist(), repeat(count)) if a and b)

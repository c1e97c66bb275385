"""Walks round the regions of a heightfield and straightens what it finds: Recast's contours.

A contour is int32 [K, 3]: x, height and z of corners of cells. Seen from above, with x to the right and z downwards,
its region lies to the left of each edge.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from navprune.kernels import njit
from navprune.scenes.recast.heightfield import Field, borders

REGION, ERODED = 3, 4  # columns of a raw contour: region across the edge; whether the place across it is eroded


class Contour(NamedTuple):
    """A closed line round a region, or round a hole in it."""

    region: int
    points: np.ndarray  # int32 [K, 3]


def outline(field: Field, is_open: np.ndarray, regions: np.ndarray, max_error: float, max_length: int) -> list[Contour]:
    """All contours of all regions in the order of the field, simplified.

    A simplified contour stays within `max_error` cells of the raw one, and its edges along walls are no longer than
    `max_length` cells (0: any length). Corners where three regions meet stay.
    """
    sides = borders(field, regions) * (regions > 0)
    scratch = np.empty((np.unpackbits(sides).sum(), 5), np.int32)
    contours = []
    for i in np.flatnonzero(sides):
        if sides[i] == 0 or sides[i] == 0xF:  # walked already, or a place alone
            sides[i] = 0
            continue
        raw = _walk(field, is_open, regions, sides, i, scratch)
        points = _distinct(raw[_simplify(raw, _fixed_points(raw), np.float32(max_error), max_length), :3])
        if len(points) >= 3:
            contours.append(Contour(int(regions[i]), points))
    return contours


def _distinct(points: np.ndarray) -> np.ndarray:
    """The contour without corners that lie where the next one does in the plane."""
    ring = points.tolist()
    i = 0
    while i < len(ring):
        here, after = ring[i], ring[(i + 1) % len(ring)]
        if here[0] == after[0] and here[2] == after[2]:
            del ring[i]
        i += 1
    return np.array(ring, np.int32).reshape(-1, 3)


@njit(cache=True)
def _corner_height(field, i, side):
    """The highest floor of the up to four places that meet at the corner after a side."""
    highest = field.floor[i]
    after = (side + 1) & 3
    for first, second in ((side, after), (after, side)):
        near = field.neighbours[i, first]
        if near >= 0:
            highest = max(highest, field.floor[near])
            corner = field.neighbours[near, second]
            if corner >= 0:
                highest = max(highest, field.floor[corner])
    return highest


@njit(cache=True)
def _walk(field, is_open, regions, sides, start, points):
    """Write the raw contour that passes a place to `points` [K, 5], and take its edges out of `sides`."""
    i, side = start, 0
    while not sides[i] & (1 << side):
        side += 1
    first_side, count = side, 0
    for _ in range(8 * len(regions)):
        near = field.neighbours[i, side]
        if sides[i] & (1 << side):
            points[count, 0] = field.x[i] + (side == 1 or side == 2)
            points[count, 1] = _corner_height(field, i, side)
            points[count, 2] = field.z[i] + (side == 0 or side == 1)
            points[count, REGION] = regions[near] if near >= 0 else 0
            points[count, ERODED] = near >= 0 and not is_open[near]
            count += 1
            sides[i] &= ~(1 << side)
            side = (side + 1) & 3
        else:
            i = near
            side = (side + 3) & 3
        if i == start and side == first_side:
            break
    return points[:count]


# ---------------------------------------------------------------------------------------------- simplifying


def _fixed_points(raw: np.ndarray) -> np.ndarray:
    """Where the region across a raw contour changes; without other regions, its outermost corners: int64 [K]."""
    across = raw[:, REGION:]
    changes = np.flatnonzero((across != np.roll(across, -1, axis=0)).any(axis=1))
    if len(changes) and across[:, 0].any():
        return changes
    x, z = raw[:, 0], raw[:, 2]
    return np.array([np.lexsort((z, x))[0], np.lexsort((-z, -x))[0]])


@njit(cache=True)
def _simplify(raw, fixed, max_error, max_length):
    """Indices of the points of a raw contour that are enough to follow it, with those that are fixed: int64 [K]."""
    kept, k = [i for i in fixed], 0
    while k < len(kept):
        a, b = kept[k], kept[(k + 1) % len(kept)]
        worst, error = _farthest(raw, a, b)
        if worst >= 0 and error > max_error * max_error:
            kept.insert(k + 1, worst)
        else:
            k += 1
    k = 0
    while k < len(kept) and max_length > 0:
        middle = _middle(raw, kept[k], kept[(k + 1) % len(kept)], max_length)
        if middle >= 0:
            kept.insert(k + 1, middle)
        else:
            k += 1
    return np.array(kept)


@njit(cache=True)
def _goes_up(raw, a, b):
    """Whether an edge leads up in x, then z; edges are looked at in that direction, whichever region they are of."""
    return raw[b, 0] > raw[a, 0] or (raw[b, 0] == raw[a, 0] and raw[b, 2] > raw[a, 2])


@njit(cache=True)
def _farthest(raw, a, b):
    """The point between two that is farthest from their line, and its squared distance; borders of regions stay."""
    n = len(raw)
    step = 1
    if not _goes_up(raw, a, b):
        a, b, step = b, a, n - 1
    i = (a + step) % n
    worst, error = -1, np.float32(0)
    if raw[i, REGION] == 0 or raw[i, ERODED]:
        while i != b:
            distance = _squared_distance(raw[i, 0], raw[i, 2], raw[a, 0], raw[a, 2], raw[b, 0], raw[b, 2])
            if distance > error:
                worst, error = i, distance
            i = (i + step) % n
    return worst, error


@njit(cache=True)
def _squared_distance(x, z, px, pz, qx, qz):
    """From (x, z) to the line from p to q, float32."""
    along_x, along_z = np.float32(qx - px), np.float32(qz - pz)
    length = along_x * along_x + along_z * along_z
    t = along_x * np.float32(x - px) + along_z * np.float32(z - pz)
    if length > 0:
        t /= length
    t = min(max(t, np.float32(0)), np.float32(1))
    dx = np.float32(px) + t * along_x - np.float32(x)
    dz = np.float32(pz) + t * along_z - np.float32(z)
    return dx * dx + dz * dz


@njit(cache=True)
def _middle(raw, a, b, max_length):
    """The point half-way along a wall edge that is too long, or -1."""
    n = len(raw)
    dx, dz = raw[b, 0] - raw[a, 0], raw[b, 2] - raw[a, 2]
    between = (b - a) % n
    if raw[(a + 1) % n, REGION] != 0 or dx * dx + dz * dz <= max_length * max_length or between <= 1:
        return -1
    return (a + (between if _goes_up(raw, a, b) else between + 1) // 2) % n

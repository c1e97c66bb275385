"""A bounding volume hierarchy over the triangles of a scene, built by the surface area heuristic on all cores."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from navprune.kernels import njit
from navprune.machine import cores

LEAF_TRIANGLES = 8
BINS = 16
# From this depth on nodes are halved by count, so that no tree is deeper than STACK_SIZE.
HEURISTIC_DEPTH = 64
STACK_SIZE = 128
BRANCH = 2**14
"""Triangles up to which a node and all below it are one piece of work for one thread."""
NARROW = np.float32(1e-7)  # metres within which centres count as one


class _Range(NamedTuple):
    """A node at work: its number, its triangles `begin` to `end` in the order so far, and its depth."""

    node: int
    begin: int
    end: int
    depth: int


def build_tree(vertices: NDArray) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int32]]:
    """Build the hierarchy over triangles [T, 3, 3].

    Returns boxes and nodes as in `Tree`, and the order of the triangles [T] in the leaves. Works from the
    root down, splitting by the surface area heuristic over 16 bins an axis (Wald, "On fast construction of
    SAH-based bounding volume hierarchies", 2007). The tree is the same for any number of cores.
    """
    a, b, c = vertices[:, 0], vertices[:, 1], vertices[:, 2]
    boxes = np.empty((len(vertices), 6), np.float32)
    boxes[:, :3], boxes[:, 3:] = np.minimum(np.minimum(a, b), c), np.maximum(np.maximum(a, b), c)
    order = np.arange(len(boxes), dtype=np.int32)
    with ThreadPoolExecutor(cores()) as pool:
        bounds, nodes, branches = _build_top(boxes, order, pool)
        below = list(pool.map(lambda branch: _build_branch(boxes, order, *branch[1:]), branches))
    bounds, nodes = _joined(bounds, nodes, branches, below)
    centre = (bounds[:, :3] + bounds[:, 3:]) * np.float32(0.5)
    # The half extent is rounded up, so that a box never loses what it holds.
    half = np.maximum(bounds[:, 3:] - centre, centre - bounds[:, :3])
    half += np.spacing(np.maximum(np.abs(centre), half)) * np.float32(2)
    return np.ascontiguousarray(np.hstack([centre, half])), nodes, order


def _build_top(
    boxes: NDArray, order: NDArray, pool: ThreadPoolExecutor
) -> tuple[NDArray[np.float32], NDArray[np.int32], list[_Range]]:
    """Split level by level, the nodes of a level at once, down to branches: the nodes so far, and the branches."""
    bounds, nodes = [np.zeros(6, np.float32)], [(0, 0)]
    level, branches = [_Range(0, 0, len(boxes), 0)], list[_Range]()
    while level:
        branches += [work for work in level if work.end - work.begin <= BRANCH]
        level = [work for work in level if work.end - work.begin > BRANCH]
        splits = [
            (work, pool.submit(_split, boxes, order, work.begin, work.end, work.depth, bounds[work.node]))
            for work in level
        ]
        level = []
        for (node, begin, end, depth), split in splits:
            middle = split.result()
            nodes[node] = len(nodes), 0
            level.append(_Range(len(nodes), begin, middle, depth + 1))
            level.append(_Range(len(nodes) + 1, middle, end, depth + 1))
            nodes += [(0, 0), (0, 0)]
            bounds += [np.zeros(6, np.float32), np.zeros(6, np.float32)]
    return np.array(bounds, np.float32), np.array(nodes, np.int32), branches


def _joined(
    bounds: NDArray, nodes: NDArray, branches: list[_Range], below: Iterable[tuple[NDArray, NDArray]]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The nodes of the top with those of each branch behind them; a branch's first node is there already."""
    all_bounds, all_nodes, used = [bounds], [nodes], len(nodes)
    for branch, (own_bounds, own_nodes) in zip(branches, below):
        inner = own_nodes[:, 1] == 0
        own_nodes[inner, 0] += used - 1
        bounds[branch.node], nodes[branch.node] = own_bounds[0], own_nodes[0]
        all_bounds.append(own_bounds[1:])
        all_nodes.append(own_nodes[1:])
        used += len(own_nodes) - 1
    return np.concatenate(all_bounds), np.concatenate(all_nodes)


@njit(cache=True, nogil=True)
def _build_branch(boxes, order, begin, end, depth):
    """Bounds and nodes of the tree over triangles `begin` to `end`; its nodes are numbered from 0."""
    count = end - begin
    bounds = np.zeros((1, 6), np.float32) if count == 0 else np.empty((2 * count, 6), np.float32)
    nodes = np.empty((len(bounds), 2), np.int32)
    todo = np.empty((STACK_SIZE, 4), np.int64)  # node, begin, end, depth
    todo[0] = 0, begin, end, depth
    waiting = used = 1
    while waiting > 0:
        waiting -= 1
        node, begin, end, depth = todo[waiting]
        if end - begin <= LEAF_TRIANGLES:
            if count > 0:
                _bound(boxes, begin, end, bounds[node])
            nodes[node, 0], nodes[node, 1] = begin, end - begin
            continue
        middle = _split(boxes, order, begin, end, depth, bounds[node])
        nodes[node, 0], nodes[node, 1] = used, 0
        todo[waiting] = np.array([used, begin, middle, depth + 1])
        todo[waiting + 1] = np.array([used + 1, middle, end, depth + 1])
        waiting += 2
        used += 2
    return bounds[:used].copy(), nodes[:used].copy()


@njit(cache=True, nogil=True)
def _bound(boxes, begin, end, box):
    """Write the bounds of triangles `begin` to `end` and return the least and the greatest of their centres."""
    box[:3], box[3:] = np.inf, -np.inf
    low, high = np.full(3, np.float32(np.inf)), np.full(3, np.float32(-np.inf))
    for triangle in range(begin, end):
        _grow(box, boxes[triangle])
        for axis in range(3):
            centre = _centre(boxes[triangle], axis)
            low[axis] = centre if centre < low[axis] else low[axis]
            high[axis] = centre if centre > high[axis] else high[axis]
    return low, high


@njit(cache=True, nogil=True)
def _grow(box, other):
    for axis in range(3):
        box[axis] = other[axis] if other[axis] < box[axis] else box[axis]
        box[3 + axis] = other[3 + axis] if other[3 + axis] > box[3 + axis] else box[3 + axis]


@njit(cache=True, nogil=True)
def _centre(box, axis):
    return (box[axis] + box[3 + axis]) * np.float32(0.5)


@njit(cache=True, nogil=True)
def _bin(box, axis, low, width):
    return max(0, min(BINS - 1, int((_centre(box, axis) - low[axis]) / width[axis] * np.float32(BINS))))


@njit(cache=True, nogil=True)
def _half_area(box):
    x, y, z = np.float64(box[3] - box[0]), np.float64(box[4] - box[1]), np.float64(box[5] - box[2])
    return x * y + y * z + z * x


@njit(cache=True, nogil=True)
def _split(boxes, order, begin, end, depth, box):
    """Sort triangles `begin` to `end` into two sides by the cheapest split; returns where the second one begins.

    Writes their bounds to `box`. They are halved by count where no split parts them, or the tree grows too deep.
    """
    low, high = _bound(boxes, begin, end, box)
    width = high - low
    axis, where = -1, 0
    if depth < HEURISTIC_DEPTH:
        axis, where = _cheapest(boxes, begin, end, low, width)
    if axis < 0:
        return (begin + end) // 2
    left, right = begin, end - 1
    while left <= right:
        if _bin(boxes[left], axis, low, width) <= where:
            left += 1
            continue
        for column in range(6):
            boxes[left, column], boxes[right, column] = boxes[right, column], boxes[left, column]
        order[left], order[right] = order[right], order[left]
        right -= 1
    return left


@njit(cache=True, nogil=True)
def _cheapest(boxes, begin, end, low, width):
    """Axis (-1: none) and last bin of the first side of the cheapest split."""
    bins, counts = np.empty((3, BINS, 6), np.float32), np.zeros((3, BINS), np.int64)
    bins[:, :, :3], bins[:, :, 3:] = np.inf, -np.inf
    for triangle in range(begin, end):
        box = boxes[triangle]
        for axis in range(3):
            if width[axis] >= NARROW:
                bin_ = _bin(box, axis, low, width)
                counts[axis, bin_] += 1
                _grow(bins[axis, bin_], box)
    best_cost, best_axis, best_bin = np.inf, -1, 0
    for axis in range(3):
        if width[axis] >= NARROW:
            cost, bin_ = _cheapest_bin(bins[axis], counts[axis])
            if cost < best_cost:
                best_cost, best_axis, best_bin = cost, axis, bin_
    return best_axis, best_bin


@njit(cache=True, nogil=True)
def _cheapest_bin(bins, counts):
    """Cost and last bin of the first side for the best split along one axis."""
    # What stands right of each cut, then a sweep from the left.
    right_cost, side, count = np.zeros(BINS), bins[BINS - 1].copy(), 0
    for bin_ in range(BINS - 1, 0, -1):
        _grow(side, bins[bin_])
        count += counts[bin_]
        right_cost[bin_] = _half_area(side) * count if count > 0 else np.inf
    best_cost, best_bin, side, count = np.inf, 0, bins[0].copy(), 0
    for bin_ in range(BINS - 1):
        _grow(side, bins[bin_])
        count += counts[bin_]
        if count > 0:
            cost = _half_area(side) * count + right_cost[bin_ + 1]
            if cost < best_cost:
                best_cost, best_bin = cost, bin_
    return best_cost, best_bin

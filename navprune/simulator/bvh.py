"""A bounding volume hierarchy over the triangles of a scene, built by the surface area heuristic."""

import numpy as np
from numpy.typing import NDArray

from navprune.kernels import njit

LEAF_TRIANGLES = 8
BINS = 16
# From this depth on nodes are halved by count, so that no tree is deeper than STACK_SIZE.
HEURISTIC_DEPTH = 64
STACK_SIZE = 128


def build_tree(vertices: NDArray) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int32]]:
    """Build the hierarchy over triangles [T, 3, 3].

    Returns boxes and nodes as in `Tree`, and the order of the triangles [T] in the leaves. Works from the
    root down, splitting by the surface area heuristic over 16 bins an axis (Wald, "On fast construction of
    SAH-based bounding volume hierarchies", 2007).
    """
    lower = np.ascontiguousarray(vertices.min(axis=1), dtype=np.float32)
    upper = np.ascontiguousarray(vertices.max(axis=1), dtype=np.float32)
    bounds, nodes, order = _build((lower + upper) * np.float32(0.5), lower, upper)
    centre = (bounds[:, :3] + bounds[:, 3:]) * np.float32(0.5)
    # The half extent is rounded up, so that a box never loses what it holds.
    half = np.maximum(bounds[:, 3:] - centre, centre - bounds[:, :3])
    half += np.spacing(np.maximum(np.abs(centre), half)) * np.float32(2)
    return np.ascontiguousarray(np.hstack([centre, half])), nodes, order


@njit(cache=True)
def _build(centres, lower, upper):
    count = len(centres)
    order = np.arange(count).astype(np.int32)
    bounds = np.empty((2 * count, 6), np.float32)
    nodes = np.empty((2 * count, 2), np.int32)
    todo = np.empty((STACK_SIZE, 4), np.int32)  # node, begin, end, depth
    todo[0] = 0, 0, count, 0
    waiting = used = 1
    while waiting > 0:
        waiting -= 1
        node, begin, end, depth = todo[waiting]
        _bound(bounds[node], order[begin:end], lower, upper)
        if end - begin <= LEAF_TRIANGLES:
            nodes[node, 0], nodes[node, 1] = begin, end - begin
            continue
        middle = begin
        if depth < HEURISTIC_DEPTH:
            middle = begin + _split(order[begin:end], centres, lower, upper)
        if middle == begin or middle == end:
            middle = (begin + end) // 2
        nodes[node, 0], nodes[node, 1] = used, 0
        todo[waiting] = np.array([used, begin, middle, depth + 1], np.int32)
        todo[waiting + 1] = np.array([used + 1, middle, end, depth + 1], np.int32)
        waiting += 2
        used += 2
    return bounds[:used].copy(), nodes[:used].copy(), order


@njit(cache=True)
def _bound(box, members, lower, upper):
    box[:3], box[3:] = np.inf, -np.inf
    for triangle in members:
        _grow(box, lower[triangle], upper[triangle])


@njit(cache=True)
def _grow(box, lower, upper):
    for axis in range(3):
        box[axis] = min(box[axis], lower[axis])
        box[3 + axis] = max(box[3 + axis], upper[axis])


@njit(cache=True)
def _bin(value, low, width):
    return min(BINS - 1, int((value - low) / width * BINS))


@njit(cache=True)
def _half_area(box):
    x, y, z = box[3] - box[0], box[4] - box[1], box[5] - box[2]
    return x * y + y * z + z * x


@njit(cache=True)
def _split(members, centres, lower, upper):
    """Sort members into two sides by the cheapest split and return the size of the first (0: no split)."""
    best_cost, best_axis, best_bin = np.inf, -1, 0
    low, width = np.empty(3, np.float32), np.empty(3, np.float32)
    for axis in range(3):
        low[axis] = np.inf
        high = np.float32(-np.inf)
        for triangle in members:
            low[axis] = min(low[axis], centres[triangle, axis])
            high = max(high, centres[triangle, axis])
        width[axis] = high - low[axis]
        if width[axis] < 1e-7:
            continue
        cost, where = _cheapest_bin(members, centres[:, axis], low[axis], width[axis], lower, upper)
        if cost < best_cost:
            best_cost, best_axis, best_bin = cost, axis, where
    if best_axis < 0:
        return 0
    left, right = 0, len(members) - 1
    while left <= right:
        if _bin(centres[members[left], best_axis], low[best_axis], width[best_axis]) <= best_bin:
            left += 1
        else:
            members[left], members[right] = members[right], members[left]
            right -= 1
    return left


@njit(cache=True)
def _cheapest_bin(members, values, low, width, lower, upper):
    """Cost and last bin of the first side for the best split along one axis."""
    boxes, counts = np.empty((BINS, 6)), np.zeros(BINS, np.int64)
    boxes[:, :3], boxes[:, 3:] = np.inf, -np.inf
    for triangle in members:
        bin_ = _bin(values[triangle], low, width)
        counts[bin_] += 1
        _grow(boxes[bin_], lower[triangle], upper[triangle])
    # What stands right of each cut, then a sweep from the left.
    right_cost, side, count = np.zeros(BINS), boxes[BINS - 1].copy(), 0
    for bin_ in range(BINS - 1, 0, -1):
        _grow(side, boxes[bin_, :3], boxes[bin_, 3:])
        count += counts[bin_]
        right_cost[bin_] = _half_area(side) * count if count > 0 else np.inf
    best_cost, best_bin, side, count = np.inf, 0, boxes[0].copy(), 0
    for bin_ in range(BINS - 1):
        _grow(side, boxes[bin_, :3], boxes[bin_, 3:])
        count += counts[bin_]
        if count > 0:
            cost = _half_area(side) * count + right_cost[bin_ + 1]
            if cost < best_cost:
                best_cost, best_bin = cost, bin_
    return best_cost, best_bin

"""Detour's searches over polygons: the corridor to a goal by A*, the nearest wall by Dijkstra."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from navprune.kernels import inner
from navprune.simulator.detour.mesh import (
    COUNT,
    EDGE,
    F0,
    HALF,
    LINK,
    LINK_END,
    OPEN,
    STATE,
    TO,
    distance_between,
    point_of,
    to_edge,
)

MAX_PATH = 256  # polygons of a corridor in Habitat; a longer one counts as unreachable, as does a path of 256 points
MAX_NODES = 2048  # of a search in Habitat; one that needs more fails
HEURISTIC = np.float32(0.999)
CLOSED, WAITING = 2, 1


class Search(NamedTuple):
    """Scratch of one caller for A* and Dijkstra: nodes, the table that finds them, the heap of open ones."""

    table: np.ndarray  # int32 [4 P]: node of a polygon entered from a side, -1 none
    key: np.ndarray  # int32 [N]
    position: np.ndarray  # float32 [N, 3]
    cost: np.ndarray  # float32 [N]
    total: np.ndarray  # float32 [N]
    parent: np.ndarray  # int32 [N]
    flags: np.ndarray  # uint8 [N]
    heap: np.ndarray  # int32 [N]
    corridor: np.ndarray  # int32 [MAX_PATH]
    points: np.ndarray  # float32 [MAX_PATH + 1, 3]


@inner
def new_search(polygon_count):
    """Make the scratch for searches on a mesh of so many polygons."""
    size = min(4 * polygon_count + 1, MAX_NODES)
    return Search(
        np.full(4 * polygon_count, -1, np.int32),
        np.empty(size, np.int32),
        np.empty((size, 3), np.float32),
        np.empty(size, np.float32),
        np.empty(size, np.float32),
        np.empty(size, np.int32),
        np.empty(size, np.uint8),
        np.empty(size, np.int32),
        np.empty(MAX_PATH, np.int32),
        np.empty((MAX_PATH + 1, 3), np.float32),
    )


@inner
def _rise(heap, total, i, node):
    while i > 0 and total[heap[(i - 1) // 2]] > total[node]:
        heap[i] = heap[(i - 1) // 2]
        i = (i - 1) // 2
    heap[i] = node


@inner
def _pop(heap, total, size):
    """Take the best node off a heap of `size`; the heap's new size is one less."""
    best, last = heap[0], heap[size - 1]
    size -= 1
    i, child = 0, 1
    while child < size:
        if child + 1 < size and total[heap[child]] > total[heap[child + 1]]:
            child += 1
        heap[i] = heap[child]
        i, child = child, 2 * child + 1
    _rise(heap, total, i, last)
    return best


@inner
def _push(search, size, node):
    """Open a node, or move it up where it is open already; returns the heap's size."""
    if search.flags[node] & WAITING:
        i = 0
        while search.heap[i] != node:
            i += 1
        _rise(search.heap, search.total, i, node)
        return size
    search.flags[node] = WAITING
    _rise(search.heap, search.total, size, node)
    return size + 1


@inner
def _node(search, count, key):
    """The node of a key, made when it is new; -1 when there is no room. And the count of nodes."""
    node = search.table[key]
    if node >= 0:
        return node, count
    if count >= search.key.shape[0]:
        return -1, count
    search.table[key] = count
    search.key[count] = key
    search.flags[count] = 0
    search.parent[count] = -1
    return count, count + 1


@inner
def _begin(search, polygon, p, total):
    node, count = _node(search, 0, 4 * polygon)
    search.position[node] = p
    search.cost[node], search.total[node] = F0, total
    return count, _push(search, 0, node)


@inner
def _finish(search, count):
    for node in range(count):
        search.table[search.key[node]] = -1


@inner
def _reach(mesh, search, node, link):
    """Put a node at the middle of the edge through which it is entered."""
    for c in range(3):
        search.position[node, c] = (mesh.portals[link, 0, c] + mesh.portals[link, 1, c]) * HALF


@inner
def find_corridor(mesh, search, start, s, goal, g):
    """A* over polygons through the middles of their shared edges; `search.corridor` gets the polygons.

    From a point s in the polygon `start` to a point g in `goal`. Returns the number of polygons, 0 when Habitat
    would find no path.
    """
    if start == goal:
        search.corridor[0] = start
        return 1
    count, waiting = _begin(search, start, s, distance_between(s, g) * HEURISTIC)
    last, complete = -1, True
    while waiting:
        best = _pop(search.heap, search.total, waiting)
        waiting -= 1
        search.flags[best] = CLOSED
        polygon = search.key[best] >> 2
        if polygon == goal:
            last = best
            break
        origin = search.key[search.parent[best]] >> 2 if search.parent[best] >= 0 else -1
        for k in range(mesh.polygons[polygon, LINK], mesh.polygons[polygon, LINK_END]):
            target = mesh.links[k, TO]
            if target == origin or not mesh.polygons[target, OPEN]:
                continue
            node, count = _node(search, count, 4 * target + mesh.links[k, STATE])
            if node < 0:
                complete = False
                continue
            if search.flags[node] == 0:
                _reach(mesh, search, node, k)
            place = point_of(search.position, node)
            cost, left = (
                search.cost[best] + distance_between(point_of(search.position, best), place),
                distance_between(place, g),
            )
            if target == goal:
                cost, left = cost + left, F0
            left *= HEURISTIC
            if search.flags[node] != 0 and cost + left >= search.total[node]:
                continue
            search.parent[node], search.cost[node], search.total[node] = best, cost, cost + left
            waiting = _push(search, waiting, node)
    length, node = 0, last
    while node >= 0:
        length += 1
        node = search.parent[node]
    if not complete or length > MAX_PATH:
        length = 0
    node = last
    for i in range(length - 1, -1, -1):
        search.corridor[i] = search.key[node] >> 2
        node = search.parent[node]
    _finish(search, count)
    return length


@inner
def wall_distance(mesh, search, start, p, limit):
    """Distance in the plane from a point to the nearest wall around it, at most `limit`."""
    squared = limit * limit
    count, waiting = _begin(search, start, p, F0)
    while waiting:
        best = _pop(search.heap, search.total, waiting)
        waiting -= 1
        search.flags[best] = CLOSED
        polygon = search.key[best] >> 2
        origin = search.key[search.parent[best]] >> 2 if search.parent[best] >= 0 else -1
        for edge in range(mesh.polygons[polygon, COUNT]):
            k = _first_link(mesh, polygon, edge)
            if k < 0 or not mesh.polygons[mesh.links[k, TO], OPEN]:
                squared = min(squared, to_edge(mesh, polygon, edge, p)[0])
        for k in range(mesh.polygons[polygon, LINK], mesh.polygons[polygon, LINK_END]):
            target = mesh.links[k, TO]
            if target == origin or not mesh.polygons[target, OPEN]:
                continue
            if to_edge(mesh, polygon, mesh.links[k, EDGE], p)[0] > squared:
                continue
            node, count = _node(search, count, 4 * target)
            if node < 0 or search.flags[node] == CLOSED:
                continue
            if search.flags[node] == 0:
                _reach(mesh, search, node, k)
            total = search.total[best] + distance_between(
                point_of(search.position, best), point_of(search.position, node)
            )
            if search.flags[node] != 0 and total >= search.total[node]:
                continue
            search.parent[node], search.total[node] = best, total
            waiting = _push(search, waiting, node)
    _finish(search, count)
    return np.sqrt(squared)


@inner
def _first_link(mesh, polygon, edge):
    """The first link over an edge, which alone decides whether Detour measures to it as a wall; -1 for none."""
    for k in range(mesh.polygons[polygon, LINK], mesh.polygons[polygon, LINK_END]):
        if mesh.links[k, EDGE] == edge:
            return k
    return -1

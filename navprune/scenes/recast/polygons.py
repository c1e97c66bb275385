"""Cuts contours into convex polygons that share their corners: Recast's polygon mesh."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from navprune.kernels import njit
from navprune.scenes.recast.contours import Contour

NONE = 0xFFFF  # no corner, no neighbour
SAME_HEIGHT = 2  # cells; corners at one place whose heights differ by no more are one
NO_POINT = -1
EAR = 1 << 28  # bit of a corner that may be cut off


class PolygonMesh(NamedTuple):
    """Convex polygons on the grid, wound as Detour wants them."""

    vertices: np.ndarray  # int32 [V, 3], x, height and z in cells
    corners: np.ndarray  # int32 [P, most], NONE after the last
    neighbours: np.ndarray  # int32 [P, most], polygon across each edge, or NONE
    regions: np.ndarray  # int32 [P]


def polygon_mesh(contours: list[Contour], most: int) -> PolygonMesh:
    """Join holes to their outlines, cut the contours into triangles and those together to at most `most` corners."""
    vertices: list[tuple[int, int, int]] = []
    at: dict[tuple[int, int], list[int]] = defaultdict(list)
    corners, regions = [np.zeros((0, most), np.int32)], [np.zeros(0, np.int32)]
    for contour in join_holes(contours):
        indices = np.array([_vertex(vertices, at, *point) for point in contour.points.tolist()], np.int32)
        triangles = indices[_triangulate(contour.points)]
        a, b, c = triangles.T
        merged = _merge_convex(triangles[(a != b) & (b != c) & (c != a)], np.array(vertices, np.int32), most)
        corners.append(merged)
        regions.append(np.full(len(merged), contour.region, np.int32))
    polygons, points = np.concatenate(corners), np.array(vertices, np.int32).reshape(-1, 3)
    return PolygonMesh(points, polygons, _adjacency(polygons), np.concatenate(regions))


def _vertex(vertices: list, at: dict[tuple[int, int], list[int]], x: int, y: int, z: int) -> int:
    """The index of a vertex at (x, z) of about that height, a new one where there is none."""
    for index in reversed(at[x, z]):
        if abs(vertices[index][1] - y) <= SAME_HEIGHT:
            return index
    at[x, z].append(len(vertices))
    vertices.append((x, y, z))
    return len(vertices) - 1


def _adjacency(corners: np.ndarray) -> np.ndarray:
    """The polygon across each edge: int32 [P, most], NONE at walls."""
    neighbours = np.full_like(corners, NONE)
    edges = []
    for p, row in enumerate(corners.tolist()):
        ring = [v for v in row if v != NONE]
        edges += [(a, b, p, k) for k, (a, b) in enumerate(zip(ring, ring[1:] + ring[:1]))]
    upward = defaultdict(list)
    for a, b, p, k in edges:
        if a < b:
            upward[a, b].append((p, k))
    for a, b, p, k in edges:
        if a > b and upward[b, a]:
            other, side = upward[b, a].pop()
            neighbours[p, k], neighbours[other, side] = other, p
    return neighbours


# ---------------------------------------------------------------------------------------------- plane geometry


@njit(cache=True)
def _turn(points, a, b, c):
    """Twice the signed area of three points of a contour; negative where c is to the left of the line from a to b."""
    (ax, _, az), (bx, _, bz), (cx, _, cz) = points[a], points[b], points[c]
    return (bx - ax) * (cz - az) - (cx - ax) * (bz - az)


@njit(cache=True)
def _cross_inside(points, a, b, c, d):
    """Whether two segments cross at a point inside both."""
    abc, abd, cda, cdb = _turn(points, a, b, c), _turn(points, a, b, d), _turn(points, c, d, a), _turn(points, c, d, b)
    if abc == 0 or abd == 0 or cda == 0 or cdb == 0:
        return False
    return (abc < 0) != (abd < 0) and (cda < 0) != (cdb < 0)


@njit(cache=True)
def _between(points, a, b, c):
    """Whether c lies on the segment from a to b."""
    if _turn(points, a, b, c) != 0:
        return False
    axis = 0 if points[a, 0] != points[b, 0] else 2
    low, high = min(points[a, axis], points[b, axis]), max(points[a, axis], points[b, axis])
    return low <= points[c, axis] <= high


@njit(cache=True)
def _meet(points, a, b, c, d):
    """Whether two segments have a point in common."""
    return (
        _cross_inside(points, a, b, c, d)
        or _between(points, a, b, c)
        or _between(points, a, b, d)
        or _between(points, c, d, a)
        or _between(points, c, d, b)
    )


@njit(cache=True)
def _same_place(points, a, b):
    return points[a, 0] == points[b, 0] and points[a, 2] == points[b, 2]


@njit(cache=True)
def _in_cone(points, before, apex, after, c, loose):
    """Whether c lies inside the corner of a contour at `apex`; on its legs too when `loose`."""
    if _turn(points, before, apex, after) <= 0:  # convex
        left, right = _turn(points, apex, c, before), _turn(points, c, apex, after)
        return (left <= 0 and right <= 0) if loose else (left < 0 and right < 0)
    return not (_turn(points, apex, c, after) <= 0 and _turn(points, c, apex, before) <= 0)


# ---------------------------------------------------------------------------------------------- holes


def join_holes(contours: list[Contour]) -> list[Contour]:
    """Contours without those of holes, which are cut into the outline of their region by an edge there and back."""
    outlines: dict[int, int] = {}
    holes = defaultdict(list)
    for k, contour in enumerate(contours):
        if _is_hole(contour.points):
            holes[contour.region].append(k)
        else:
            outlines[contour.region] = k
    joined = list(contours)
    used = set()
    for region, members in holes.items():
        if region not in outlines:
            continue
        outline = outlines[region]
        waiting = sorted(members, key=lambda k: min((x, z) for x, _, z in contours[k].points.tolist()))
        while waiting:
            points, merged = _join(joined[outline].points, [contours[k].points for k in waiting])
            joined[outline] = Contour(region, points)
            if merged:
                used.add(waiting[0])
            waiting = waiting[1:]
    return [contour for k, contour in enumerate(joined) if k not in used]


def _is_hole(points: np.ndarray) -> bool:
    """Whether a contour runs the other way round; one of hardly any area does not."""
    x, z = points[:, 0].astype(np.int64), points[:, 2].astype(np.int64)
    return bool(np.sum(x * np.roll(z, 1) - np.roll(x, 1) * z) <= -3)


def _join(outline: np.ndarray, holes: list[np.ndarray]) -> tuple[np.ndarray, bool]:
    """The outline with the first of the holes cut in, and whether a way was found that crosses none of them."""
    points = np.concatenate([outline, *holes])
    ends = np.cumsum([len(outline)] + [len(hole) for hole in holes])
    a, b = _shortest_cut(points, ends)
    if a == NO_POINT:
        return outline, False
    hole, b = holes[0], b - len(outline)
    return np.concatenate([outline[a:], outline[: a + 1], hole[b:], hole[: b + 1]]), True


@njit(cache=True)
def _shortest_cut(points, ends):
    """A corner of the outline and one of the first hole with nothing between them.

    The outline's points come first, then those of each hole; `ends` says where each stops. The hole's lowest corner
    in x, then z, is tried first.
    """
    outline, first, last = ends[0], ends[0], ends[1]
    corner = first
    for i in range(first, last):
        if points[i, 0] < points[corner, 0] or (points[i, 0] == points[corner, 0] and points[i, 2] < points[corner, 2]):
            corner = i
    for _ in range(last - first):
        candidates, distances, count = np.empty(outline, np.int64), np.empty(outline, np.int64), 0
        for j in range(outline):
            if _in_cone(points, (j - 1) % outline, j, (j + 1) % outline, corner, False):
                dx, dz = points[j, 0] - points[corner, 0], points[j, 2] - points[corner, 2]
                candidates[count], distances[count] = j, dx * dx + dz * dz
                count += 1
        for k in np.argsort(distances[:count], kind="mergesort"):
            blocked, begin = False, 0
            for end in ends:
                blocked = blocked or _blocked(points, candidates[k], corner, begin, end)
                begin = end
            if not blocked:
                return candidates[k], corner
        corner = first + (corner + 1 - first) % (last - first)
    return NO_POINT, NO_POINT


@njit(cache=True)
def _blocked(points, a, b, begin, end):
    """Whether the cut from a to b meets an edge of a contour that has neither of its ends on the cut's."""
    for k in range(begin, end):
        after = k + 1 if k + 1 < end else begin
        if _same_place(points, a, k) or _same_place(points, b, k):
            continue
        if _same_place(points, a, after) or _same_place(points, b, after):
            continue
        if _meet(points, a, b, k, after):
            return True
    return False


# ---------------------------------------------------------------------------------------------- triangles


@njit(cache=True)
def _is_diagonal(points, ring, n, i, j, loose):
    """Whether the line between two corners of a ring of points runs inside it."""
    apex, end = ring[i] & ~EAR, ring[j] & ~EAR
    before, after = ring[i - 1 if i else n - 1] & ~EAR, ring[i + 1 if i + 1 < n else 0] & ~EAR
    if not _in_cone(points, before, apex, after, end, loose):
        return False
    for k in range(n):
        after = k + 1 if k + 1 < n else 0
        if k == i or k == j or after == i or after == j:
            continue
        p, q = ring[k] & ~EAR, ring[after] & ~EAR
        if _same_place(points, apex, p) or _same_place(points, end, p):
            continue
        if _same_place(points, apex, q) or _same_place(points, end, q):
            continue
        if _cross_inside(points, apex, end, p, q) if loose else _meet(points, apex, end, p, q):
            return False
    return True


@njit(cache=True)
def _shortest_ear(points, ring, n, loose):
    """The corner before the ear with the shortest cut, or -1.

    A contour that touches itself can have no proper ear left; `loose` then also takes cuts along its edges, and
    measures them as Recast does: to the corner after.
    """
    best, shortest = -1, 0
    for i in range(n):
        ear, end = (i + 1) % n, (i + 2) % n
        if loose:
            if not _is_diagonal(points, ring, n, i, end, True):
                continue
            end = (i + 3) % n
        elif not ring[ear] & EAR:
            continue
        a, b = ring[i] & ~EAR, ring[end] & ~EAR
        dx, dz = points[b, 0] - points[a, 0], points[b, 2] - points[a, 2]
        if best < 0 or dx * dx + dz * dz < shortest:
            best, shortest = i, dx * dx + dz * dz
    return best


@njit(cache=True)
def _triangulate(points):
    """Triangles int64 [K, 3] of a contour by cutting off ears, shortest cut first; what resists is left out."""
    n = len(points)
    ring = np.arange(n)
    triangles = np.empty((n, 3), np.int64)
    count = 0
    for i in range(n):
        if _is_diagonal(points, ring, n, i, (i + 2) % n, False):
            ring[(i + 1) % n] |= EAR
    while n > 3:
        i = _shortest_ear(points, ring, n, False)
        if i < 0:
            i = _shortest_ear(points, ring, n, True)
        if i < 0:
            return triangles[:count]
        ear = (i + 1) % n
        for k in range(3):
            triangles[count, k] = ring[(i + k) % n] & ~EAR
        count += 1
        n -= 1
        for k in range(ear, n):
            ring[k] = ring[k + 1]
        after = ear if ear < n else 0
        before = after - 1 if after else n - 1
        for apex, left, right in ((before, (before - 1) % n, after), (after, before, (after + 1) % n)):
            ring[apex] &= ~EAR
            if _is_diagonal(points, ring, n, left, right, False):
                ring[apex] |= EAR
    for k in range(3):
        triangles[count, k] = ring[k] & ~EAR
    return triangles[: count + 1]


# ---------------------------------------------------------------------------------------------- convex polygons


@njit(cache=True)
def _merge_convex(triangles, vertices, most):
    """Put triangles together across their longest common edges while they stay convex: int32 [P, most]."""
    count = len(triangles)
    polygons = np.full((count, most), NONE, np.int32)
    polygons[:, :3] = triangles
    sizes = np.full(count, 3)
    while True:
        best, a, b, edge_a, edge_b = 0, 0, 0, 0, 0
        for j in range(count - 1):
            for k in range(j + 1, count):
                if sizes[j] + sizes[k] - 2 > most:
                    continue
                length, i, m = _common_edge(polygons[j, : sizes[j]], polygons[k, : sizes[k]], vertices)
                if length > best:
                    best, a, b, edge_a, edge_b = length, j, k, i, m
        if best == 0:
            return polygons[:count]
        p, q = np.roll(polygons[a, : sizes[a]], -edge_a - 1), np.roll(polygons[b, : sizes[b]], -edge_b - 1)
        sizes[a] = len(p) + len(q) - 2
        polygons[a, : sizes[a]] = np.append(p[:-1], q[:-1])
        count -= 1
        polygons[b], sizes[b] = polygons[count], sizes[count]


@njit(cache=True)
def _common_edge(p, q, vertices):
    """The squared length of the edge that two polygons share and may merge across, or -1, and its place in each."""
    edge_p, edge_q = -1, -1
    for i in range(len(p)):
        for j in range(len(q)):
            a, b, c, d = p[i], p[(i + 1) % len(p)], q[j], q[(j + 1) % len(q)]
            if (a == d and b == c) or (a == c and b == d):
                edge_p, edge_q = i, j
                break
    if edge_p < 0:
        return -1, -1, -1
    n, m = len(p), len(q)
    if _turn(vertices, p[(edge_p + n - 1) % n], p[edge_p], q[(edge_q + 2) % m]) >= 0:
        return -1, -1, -1
    if _turn(vertices, q[(edge_q + m - 1) % m], q[edge_q], p[(edge_p + 2) % n]) >= 0:
        return -1, -1, -1
    a, b = p[edge_p], p[(edge_p + 1) % n]
    dx, dz = vertices[a, 0] - vertices[b, 0], vertices[a, 2] - vertices[b, 2]
    return dx * dx + dz * dz, edge_p, edge_q

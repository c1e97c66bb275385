"""The way between two points: the shortest line through the corridor of a search, by the funnel algorithm."""

import numpy as np

from navprune.kernels import inner
from navprune.simulator.detour.mesh import (
    COUNT,
    F0,
    FAR,
    ISLAND,
    LINK,
    TO,
    between,
    corner_of,
    distance_between,
    is_inside,
    to_edge,
    to_segment,
)
from navprune.simulator.detour.nearest import nearest
from navprune.simulator.detour.search import MAX_PATH, find_corridor

EQUAL_SQUARED = np.float32((1 / 16384) ** 2)
EQUAL = np.float32(1e-5)  # Magnum's tolerance for equal numbers: relative, and absolute near 0
NEAR_PORTAL_SQUARED = np.float32(0.001) * np.float32(0.001)


@inner
def _equal(a, b):
    """Whether Magnum, with which Habitat compares positions, takes two coordinates for equal."""
    away, size = abs(a - b), abs(a) + abs(b)
    return away < EQUAL or (a != F0 and b != F0 and away / size < EQUAL)


@inner
def _area(a, b, c):
    """Twice the signed area of a triangle in the plane."""
    return (c[0] - a[0]) * (b[2] - a[2]) - (b[0] - a[0]) * (c[2] - a[2])


@inner
def _clamp(mesh, polygon, p):
    """A point itself where it is over a polygon, else the nearest point of the polygon's outline."""
    if is_inside(mesh, polygon, p):
        return p
    best, at, edge = FAR, F0, 0
    for i in range(mesh.polygons[polygon, COUNT]):
        squared, t = to_edge(mesh, polygon, i, p)
        if squared < best:
            best, at, edge = squared, t, i
    after = (edge + 1) % mesh.polygons[polygon, COUNT]
    return between(corner_of(mesh.corners, polygon, edge), corner_of(mesh.corners, polygon, after), at)


@inner
def _same(a, b):
    dx, dy, dz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    return dx * dx + dy * dy + dz * dz < EQUAL_SQUARED


@inner
def _append(points, count, p):
    """Add a point to a path unless it repeats the last; returns the number of points."""
    points[count] = p
    return count if count and _same(points[count - 1], points[count]) else count + 1


@inner
def pull_string(mesh, search, length, start, goal):
    """The shortest line through the corridor in `search`, by the funnel algorithm, into `search.points`.

    Returns the number of points, 0 when there would be too many.
    """
    points, corridor = search.points, search.corridor
    apex, goal = _clamp(mesh, corridor[0], start), _clamp(mesh, corridor[length - 1], goal)
    count = _append(points, 0, apex)
    left, right, left_at, right_at = apex, apex, 0, 0
    i = -1
    while i + 1 < length and length > 1:
        i += 1
        to_left, to_right = goal, goal
        if i + 1 < length:
            k = mesh.polygons[corridor[i], LINK]
            while mesh.links[k, TO] != corridor[i + 1]:
                k += 1
            to_left, to_right = corner_of(mesh.portals, k, 0), corner_of(mesh.portals, k, 1)
            if i == 0 and to_segment(apex, to_left, to_right)[0] < NEAR_PORTAL_SQUARED:
                continue
        turned = False
        if _area(apex, right, to_right) <= F0:
            if _same(apex, right) or _area(apex, left, to_right) > F0:
                right, right_at = to_right, i
            else:
                apex, i, turned = left, left_at, True
        if not turned and _area(apex, left, to_left) >= F0:
            if _same(apex, left) or _area(apex, right, to_left) < F0:
                left, left_at = to_left, i
            else:
                apex, i, turned = right, right_at, True
        if turned:
            left, right, left_at, right_at = apex, apex, i, i
            if i == length - 1:
                break
            count = _append(points, count, apex)
            if count >= MAX_PATH:
                return 0
    count = _append(points, count, goal)
    return count if count < MAX_PATH else 0


@inner
def solve(mesh, search, start, end):
    """Length of the path from start to end, and the number of its points in `search.points`."""
    points = search.points
    here, s = nearest(mesh, start)
    there, g = nearest(mesh, end)
    if here < 0 or there < 0:
        return np.inf, 0
    points[0], points[1] = s, g
    if _equal(s[0], g[0]) and _equal(s[1], g[1]) and _equal(s[2], g[2]):
        return 0.0, 2
    if mesh.polygons[here, ISLAND] != mesh.polygons[there, ISLAND]:
        return np.inf, 0
    length = find_corridor(mesh, search, here, s, there, g)
    count = pull_string(mesh, search, length, start, end) if length else 0
    distance = F0
    for i in range(1, count):
        distance += distance_between(points[i - 1], points[i])
    return np.float64(distance) if count else np.inf, count

"""What Python asks of the kernels: whole batches of questions."""

import numpy as np

from navprune.kernels import entry
from navprune.simulator.detour.mesh import point_of
from navprune.simulator.detour.nearest import nearest
from navprune.simulator.detour.paths import solve
from navprune.simulator.detour.search import new_search, wall_distance
from navprune.simulator.detour.steps import try_step


@entry
def locate(mesh, points):
    """Nearest polygon int32 [N], -1 off the mesh, and its nearest point float64 [N, 3] for float32 points."""
    polygons, snapped = np.empty(len(points), np.int32), np.empty(points.shape, np.float64)
    for i in range(len(points)):
        polygons[i], snapped[i] = nearest(mesh, point_of(points, i))
    return polygons, snapped


@entry
def steps(mesh, starts, ends, sliding):
    """`try_step` for each of starts and ends, float32 [N, 3]: float64 [N, 3]."""
    reached = np.empty(starts.shape, np.float64)
    for i in range(len(starts)):
        reached[i] = try_step(mesh, point_of(starts, i), point_of(ends, i), sliding)
    return reached


@entry
def wall_distances(mesh, points, limit):
    """`wall_distance` for each of points float32 [N, 3]: float64 [N], infinite off the mesh."""
    search = new_search(len(mesh.polygons))
    distance = np.full(len(points), np.inf)
    for i in range(len(points)):
        polygon, snapped = nearest(mesh, point_of(points, i))
        if polygon >= 0:
            distance[i] = wall_distance(mesh, search, polygon, snapped, limit)
    return distance


@entry
def path(mesh, start, end):
    """Length of the path between two points float32 [1, 3], infinite if there is none, and its points [P, 3]."""
    search = new_search(len(mesh.polygons))
    distance, count = solve(mesh, search, point_of(start, 0), point_of(end, 0))
    return distance, search.points[:count].copy()


@entry
def path_lengths(mesh, starts, ends):
    """Length of the path from each of starts to its one of ends, float32 [N, 3]: float64 [N]."""
    search = new_search(len(mesh.polygons))
    distance = np.empty(len(starts), np.float64)
    for i in range(len(starts)):
        distance[i], _ = solve(mesh, search, point_of(starts, i), point_of(ends, i))
    return distance


@entry
def next_corners(mesh, starts, ends, apart):
    """The first corner float64 [N, 3] of each path that is farther than `apart` from its start in the plane, else NaN.

    starts: float64 [N, 3]; ends: float32 [N, 3].
    """
    search = new_search(len(mesh.polygons))
    corners = np.full(starts.shape, np.nan)
    for i in range(len(starts)):
        start = np.float32(starts[i, 0]), np.float32(starts[i, 1]), np.float32(starts[i, 2])
        _, count = solve(mesh, search, start, point_of(ends, i))
        for k in range(1, count):
            dx, dz = search.points[k, 0] - starts[i, 0], search.points[k, 2] - starts[i, 2]
            if np.sqrt(dx * dx + dz * dz) > apart:
                corners[i] = search.points[k]
                break
    return corners

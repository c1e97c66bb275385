"""Where an agent can walk in a plan, and that floor as the convex polygons of a navigation mesh."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray

from navprune.scenes.files.navmesh import MAX_CORNERS, NavMesh
from navprune.scenes.files.tile import navmesh_from_polygons
from navprune.scenes.homes.floorplan import FloorPlan

AGENT_RADIUS = 0.1  # metres, Habitat's default
NARROWEST = 0.05  # metres; strips of floor that are narrower are left out
TOLERANCE = 0.02  # metres by which the outline may be simplified, kept in hand beside the radius
GRID = 2.0**-10  # metres; corners lie on this grid, which float32 holds exactly


def walkable_floor(plan: FloorPlan) -> shapely.Polygon:
    """The largest connected floor for an agent's centre: its radius away from walls and furniture."""
    blocked = shapely.union_all([piece.footprint for piece in plan.pieces if piece.blocks])
    free = plan.floor.difference(blocked)
    inner = free.buffer(-AGENT_RADIUS - TOLERANCE - NARROWEST / 2, join_style="mitre", mitre_limit=2.0)
    inner = inner.buffer(NARROWEST / 2, join_style="mitre", mitre_limit=2.0).simplify(TOLERANCE)
    islands = shapely.get_parts(shapely.set_precision(inner, GRID))
    return islands[np.argmax(shapely.area(islands))]


def convex_polygons(area: shapely.Polygon) -> tuple[NDArray[np.float64], list[list[int]]]:
    """Convex polygons that fill an area: corners `[V, 2]` and counter-clockwise lists of corners.

    The area is triangulated without new corners (constrained Delaunay), and triangles are merged over their
    longest edges first while the result stays convex with at most 6 corners (Hertel and Mehlhorn 1983, in the
    order that Recast takes). Furniture breaks the floor up enough for A* over the edges' midpoints: paths are
    0.4 % longer than the shortest ones in the mean. Cutting the floor at tile borders made them longer.
    """
    parts = shapely.get_parts(shapely.constrained_delaunay_triangles(area))
    rings = shapely.get_coordinates(shapely.orient_polygons(parts)).reshape(-1, 4, 2)[:, :3]
    numbers: dict[tuple[float, float], int] = {}
    faces = [[numbers.setdefault((x, y), len(numbers)) for x, y in ring] for ring in rings.tolist()]
    corners = np.array(list(numbers))
    return corners, _merged(faces, corners)


def _merged(faces: list[list[int]], corners: NDArray[np.float64]) -> list[list[int]]:
    """Triangles merged to larger convex polygons, longest shared edges first."""
    owner = {edge: i for i, face in enumerate(faces) for edge in _edges(face)}
    shared = [edge for edge in owner if edge[0] < edge[1] and edge[::-1] in owner]
    shared.sort(key=lambda edge: (-round(float(np.hypot(*(corners[edge[0]] - corners[edge[1]]))), 9), edge))
    merged: dict[int, list[int]] = dict(enumerate(faces))
    for start, end in shared:
        one, other = owner[start, end], owner[end, start]
        if one == other or len(merged[one]) + len(merged[other]) - 2 > MAX_CORNERS:
            continue
        a, b = merged[one], merged[other]
        i, j = a.index(end), b.index(start)
        joined = a[i:] + a[:i] + (b[j:] + b[:j])[1:-1]
        if len(set(joined)) == len(joined) and _convex(corners[joined]):
            merged[one] = joined
            for edge in _edges(merged.pop(other)):
                owner[edge] = one
    return list(merged.values())


def _edges(face: list[int]) -> list[tuple[int, int]]:
    return list(zip(face, [*face[1:], face[0]]))


def _convex(ring: NDArray[np.float64]) -> bool:
    ahead = np.roll(ring, -1, axis=0) - ring
    after = np.roll(ahead, -1, axis=0)
    return bool(np.all(ahead[:, 0] * after[:, 1] - ahead[:, 1] * after[:, 0] >= 0.0))


def home_navmesh(plan: FloorPlan) -> NavMesh:
    """The navigation mesh of a home in Habitat's frame: plan (x, y) at height 0 is (x, 0, -y)."""
    corners, polygons = convex_polygons(walkable_floor(plan))
    vertices = np.column_stack([corners[:, 0], np.zeros(len(corners)), -corners[:, 1]])
    return navmesh_from_polygons(vertices, polygons)

"""Lays convex polygons out as a navigation mesh of one tile, as Detour's `dtCreateNavMeshData` does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from navprune.errors import UserError
from navprune.scenes.files import navmesh as nm
from navprune.scenes.files.navmesh import MAX_CORNERS, MAX_POLYGONS, MAX_VERTICES, NavMesh, NavMeshSettings, Tile

DEFAULTS = NavMeshSettings()


def navmesh_from_polygons(
    vertices: np.ndarray, polygons: Sequence[Sequence[int]], settings: NavMeshSettings = DEFAULTS
) -> NavMesh:
    """Build a one-tile navigation mesh from convex polygons.

    `vertices` [V, 3] metres, y up. Each polygon has 3 to 6 corners in Detour's winding (its normal points to
    +y: clockwise in the (x, z) plane with x to the right and z up); polygons that share an edge share its two
    vertex indices. Raises `UserError` when there is nothing, too much, or a polygon is not of that form.
    """
    points = np.ascontiguousarray(vertices, dtype=np.float32).reshape(-1, 3)
    _check_polygons(points, polygons)
    records = np.zeros(len(polygons), nm.POLYGON)
    edges: dict[tuple[int, int], tuple[int, int]] = {}
    for index, polygon in enumerate(polygons):
        records["corner_count"][index] = len(polygon)
        records["corners"][index, : len(polygon)] = polygon
        for edge, pair in enumerate(zip(polygon, [*polygon[1:], polygon[0]])):
            if pair in edges:
                raise UserError(f"navmesh polygons {edges[pair][0]} and {index} overlap along an edge; split them")
            edges[pair] = (index, edge)
    for (start, end), (index, edge) in edges.items():
        if (end, start) in edges:
            records["neighbours"][index, edge] = edges[end, start][0] + 1
    records["flags"] = nm.WALKABLE

    counts = records["corner_count"].astype(int)
    details = np.zeros(len(polygons), nm.DETAIL)
    details["triangle_count"] = counts - 2
    details["triangle_base"] = np.cumsum(counts - 2) - (counts - 2)
    lower, upper = points.min(axis=0), points.max(axis=0)
    scale = np.float32(1 / settings.cell_size)
    # A fan of triangles in each polygon, with its border edges marked.
    fans = [
        (0, k - 1, k, 1 << 2 | (k == 2) | (k == count - 1) << 4) for count in counts.tolist() for k in range(2, count)
    ]
    triangles, nothing = np.array(fans, np.uint8), np.zeros((0, 3), np.float32)
    volumes = bounding_volumes(points, polygons, lower, scale)
    return one_tile(points, records, details, nothing, triangles, volumes, (lower, upper), scale, settings)


def one_tile(
    vertices: np.ndarray,
    polygons: np.ndarray,
    details: np.ndarray,
    detail_vertices: np.ndarray,
    detail_triangles: np.ndarray,
    bv_nodes: np.ndarray,
    box: tuple[np.ndarray, np.ndarray],
    per_cell: np.float32,
    settings: NavMeshSettings,
) -> NavMesh:
    """A navmesh of one tile from its sections (see `Tile`), its box in metres, and how it was made.

    `per_cell`: cells of the bounding volumes to a metre.
    """
    header, (lower, upper) = np.zeros((), nm.TILE_HEADER), box
    links = np.zeros(polygons["corner_count"].sum(), nm.LINK)
    sections = vertices, polygons, links, details, detail_vertices, detail_triangles, bv_nodes
    kinds = "vertex", "polygon", "link", "detail", "detail_vertex", "detail_triangle", "bv_node"
    for kind, section in zip(kinds, sections):
        header[f"{kind}_count"] = len(section)
    header["magic"], header["version"], header["off_mesh_base"] = nm.TILE_MAGIC, nm.TILE_VERSION, len(polygons)
    header["walkable_height"], header["walkable_radius"] = settings.agent_height, settings.agent_radius
    header["walkable_climb"], header["bv_scale"] = settings.agent_max_climb, per_cell
    header["lower"], header["upper"] = lower, upper
    reference = 1 << (len(polygons) - 1).bit_length()  # salt 1, tile 0, and bits enough for the polygons
    width, _, height = (upper - lower).tolist()
    tile = Tile(reference, header, *sections)
    return NavMesh((tile,), tuple(lower.tolist()), width, height, 1, len(polygons), settings)


def check_counts(vertices: int, polygons: int) -> None:
    """Raise `UserError` where a tile cannot hold so many."""
    if vertices > MAX_VERTICES or polygons > MAX_POLYGONS:
        room = f"at most {MAX_VERTICES} vertices and {MAX_POLYGONS} polygons, not {vertices} and {polygons}"
        raise UserError(f"a navmesh tile holds {room}; make the scene smaller or its cells larger")


def _check_polygons(points: np.ndarray, polygons: Sequence[Sequence[int]]) -> None:
    if not len(polygons):
        raise UserError("a navmesh needs at least one polygon")
    check_counts(len(points), len(polygons))
    if not np.all(np.abs(points) <= nm.MAX_COORDINATE):
        raise UserError("a navmesh vertex is not a sensible position in metres; check the scene")
    for index, polygon in enumerate(polygons):
        if not 3 <= len(polygon) <= MAX_CORNERS or len(set(polygon)) != len(polygon):
            raise UserError(f"navmesh polygon {index} has not 3 to {MAX_CORNERS} different corners")
        if min(polygon) < 0 or max(polygon) >= len(points):
            raise UserError(f"navmesh polygon {index} has a corner that is no vertex")
        flat = points[list(polygon)][:, [0, 2]].astype(float)
        ahead = np.roll(flat, -1, axis=0) - flat
        after = np.roll(ahead, -1, axis=0)
        turns = ahead[:, 0] * after[:, 1] - ahead[:, 1] * after[:, 0]
        slack = 1e-5 * (np.linalg.norm(ahead, axis=1) + np.linalg.norm(after, axis=1))  # float32 corners in a line
        if np.any(turns > slack) or np.all(turns > -1e-9):
            raise UserError(f"navmesh polygon {index} is not convex in Detour's winding")


def bounding_volumes(
    points: np.ndarray, polygons: Sequence[Sequence[int]], lower: np.ndarray, scale: np.float32
) -> np.ndarray:
    """The bounding-volume tree nm.BV_NODE [2 P] in preorder, split at the median of the longest axis.

    A leaf holds its polygon, an inner node minus the nodes to skip when it is missed; the last is unused.
    """
    boxes = np.array([(points[list(p)].min(axis=0), points[list(p)].max(axis=0)) for p in polygons])
    cells = np.floor((boxes - lower) * scale).astype(np.int64)
    if cells.max() > 0xFFFF:
        raise UserError("the scene is too wide for one navmesh tile; make it smaller or its cells larger")
    nodes = np.zeros(2 * len(polygons), nm.BV_NODE)
    cursor = 0

    def subdivide(items: np.ndarray) -> None:
        nonlocal cursor
        here, cursor = cursor, cursor + 1
        least, most = cells[items, 0].min(axis=0), cells[items, 1].max(axis=0)
        nodes["lower"][here], nodes["upper"][here] = least, most
        if len(items) == 1:
            nodes["index"][here] = items[0]
            return
        items = items[np.argsort(cells[items, 0, np.argmax(most - least)], kind="stable")]
        subdivide(items[: len(items) // 2])
        subdivide(items[len(items) // 2 :])
        nodes["index"][here] = here - cursor

    subdivide(np.arange(len(polygons)))
    return nodes

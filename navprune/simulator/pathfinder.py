"""Moves and measures on a navigation mesh for many agents at once, by the rules of habitat-sim's path finder.

Inside, points are float32 as in Habitat, so that answers agree with it; positions come and go as float64.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from navprune.errors import UserError
from navprune.scenes.files import navmesh as layout
from navprune.scenes.files.navmesh import NavMesh, Tile
from navprune.simulator.detour import batches
from navprune.simulator.detour import mesh as detour
from navprune.simulator.detour.mesh import ISLAND, OPEN

MAX_SHIFT = 1e-2  # metres in the plane that a navigable point may be off the mesh
HERE = 1e-3  # metres in the plane within which a corner of a path is where the path begins
OVERLAP_MARGIN = 0.01  # metres by which edges on a tile border must overlap
SIDE_STEPS = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))

Link = tuple[int, int, int, int, int, int]  # as in `_links`
Edges = dict[int, list[tuple[int, int, np.ndarray, np.ndarray]]]  # by side of a tile: polygon, edge and its two ends


class Path(NamedTuple):
    """A shortest path: its length in metres (infinite when there is none) and its points [P, 3]."""

    distance: float
    points: np.ndarray


class PathFinder:
    """Answers navigation queries on one mesh; any number of threads may ask at once.

    Batch methods take and return float64 arrays [N, 3] or [N] and release the GIL. A point with no polygon
    within 2 m in the plane and 4 m in height is off the mesh. Wrong shapes raise `ValueError`.
    """

    def __init__(self, navmesh: NavMesh):
        self.bounds = navmesh.bounds
        self._mesh, areas, owner = _flatten(navmesh)
        self._radius = _find_islands(self._mesh)
        # Only then are they closed: Habitat's islands may hang together by polygons that nobody can enter.
        tiny = np.bincount(owner, areas, minlength=len(self._mesh.polygons)) < layout.SMALLEST_AREA
        self._mesh.polygons[tiny, OPEN] = 0
        is_open = self._mesh.polygons[:, OPEN] != 0
        self._open_triangles = self._mesh.triangles[is_open[owner]]
        self._triangle_areas = areas[is_open[owner]]
        self.navigable_area = float(self._triangle_areas.sum())

    def snap(self, points: np.ndarray) -> np.ndarray:
        """The nearest point of the mesh [N, 3] for each of `points` [N, 3]; NaN off the mesh."""
        return batches.locate(self._mesh, _float32(points))[1]

    def is_navigable(self, points: np.ndarray, max_y_delta: float = 0.5) -> np.ndarray:
        """Whether each of `points` [N, 3] is on the mesh to 1 cm in the plane, `max_y_delta` m in height."""
        points = _float32(points)
        polygons, snapped = batches.locate(self._mesh, points)
        shift = np.abs(snapped - points)
        flat = np.hypot(shift[:, 0], shift[:, 2])
        return (polygons >= 0) & (shift[:, 1] <= max_y_delta) & (flat <= MAX_SHIFT)

    def geodesic_distance(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Length [N] of the path from each of `starts` [N, 3] to its end in `ends`; inf without one."""
        return batches.path_lengths(self._mesh, *_pairs(starts, ends))

    def find_path(self, start: np.ndarray, end: np.ndarray) -> Path:
        """The path from `start` [3] to `end` [3]."""
        distance, points = batches.path(self._mesh, _float32(start), _float32(end))
        return Path(distance, points.astype(np.float64))

    def next_corners(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Where the path from each of `starts` [N, 3] to its end leads first, 1 mm away at least: [N, 3], or NaN."""
        narrow, ends = _pairs(starts, ends)
        return batches.next_corners(self._mesh, _array(starts, np.float64).reshape(narrow.shape), ends, HERE)

    def step(self, starts: np.ndarray, ends: np.ndarray, sliding: bool = True) -> np.ndarray:
        """Where agents at `starts` [N, 3] come that want to go to `ends` [N, 3]: [N, 3].

        Walls deflect them with `sliding` and stop them without.
        """
        return batches.steps(self._mesh, *_pairs(starts, ends), sliding)

    def island_radius(self, points: np.ndarray) -> np.ndarray:
        """Largest distance [N] of a vertex from the centroid of each point's island; 0 off the mesh."""
        polygons, _ = batches.locate(self._mesh, _float32(points))
        return np.where(polygons >= 0, self._radius[self._mesh.polygons[polygons, ISLAND]], 0.0)

    def obstacle_distance(self, points: np.ndarray, limit: float = 2.0) -> np.ndarray:
        """Distance [N] in the plane from each point to the nearest wall, up to `limit`; inf off the mesh."""
        return batches.wall_distances(self._mesh, _float32(points), np.float32(limit))

    def sample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Points [count, 3] uniform over the navigable area; `UserError` where there is none."""
        if self.navigable_area == 0:
            raise UserError("the navmesh has no navigable area to take positions from; generate it anew")
        share = self._triangle_areas / self._triangle_areas.sum()
        a, b, c = np.moveaxis(self._open_triangles[rng.choice(len(share), count, p=share)].astype(np.float64), 1, 0)
        s, t = np.sqrt(rng.random((count, 1))), rng.random((count, 1))
        return (1 - s) * a + s * (1 - t) * b + s * t * c

    def triangles(self) -> np.ndarray:
        """The navigable surface as triangles float32 [K, 3, 3]."""
        return self._open_triangles.copy()


def _float32(points: np.ndarray) -> np.ndarray:
    points = _array(points, np.float32)
    if points.shape[-1:] != (3,):
        raise ValueError(f"positions have shape [N, 3], not {list(points.shape)}")
    return points.reshape(-1, 3)


def _pairs(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    starts, ends = _float32(starts), _float32(ends)
    if len(starts) != len(ends):
        raise ValueError(f"{len(starts)} starts need as many ends, not {len(ends)}")
    return starts, ends


# ---------------------------------------------------------------------------------------------- flattening


def _flatten(navmesh: NavMesh) -> tuple[detour.Mesh, np.ndarray, np.ndarray]:
    """The arrays that queries walk over, and the area and the polygon of each detail triangle."""
    tiles = navmesh.tiles
    base = np.cumsum([0] + [len(tile.polygons) for tile in tiles])
    bv_base = np.cumsum([0] + [len(tile.bv_nodes) for tile in tiles])
    # Where a polygon has fewer corners than others, its first stands for the missing ones.
    used = [np.where(_is_used(tile), tile.polygons["corners"], tile.polygons["corners"][:, :1]) for tile in tiles]
    corners = np.concatenate([tile.vertices[indices] for tile, indices in zip(tiles, used)])
    parts = [_triangles(tile) for tile in tiles]
    triangles = np.concatenate([part[1] for part in parts])
    owner = np.concatenate([part[0] + start for part, start in zip(parts, base)])
    wide = triangles.astype(np.float64)
    areas = np.linalg.norm(np.cross(wide[:, 1] - wide[:, 0], wide[:, 2] - wide[:, 1]), axis=1) / 2
    rows, ranges = _links(navmesh, base)
    lower, upper = corners.min(axis=1), corners.max(axis=1)
    np.minimum.at(lower, owner, triangles.min(axis=1))
    np.maximum.at(upper, owner, triangles.max(axis=1))

    polygons = np.zeros((base[-1], 8), np.int32)
    polygons[:, detour.COUNT] = np.concatenate([tile.polygons["corner_count"] for tile in tiles])
    polygons[:, OPEN] = np.concatenate([tile.polygons["flags"] for tile in tiles]) & layout.WALKABLE
    polygons[:, detour.TILE] = np.repeat(np.arange(len(tiles)), np.diff(base))
    counts = np.bincount(owner, minlength=base[-1])
    polygons[:, detour.TRIANGLE_END] = np.cumsum(counts)
    polygons[:, detour.TRIANGLE] = np.cumsum(counts) - counts
    polygons[:, detour.LINK], polygons[:, detour.LINK_END] = ranges[:-1], ranges[1:]

    # Detour visits tiles row by row, and of those at one place the last added first.
    headers = [tile.header for tile in tiles]
    order = sorted(range(len(tiles)), key=lambda i: (headers[i]["y"], headers[i]["x"], -i))
    places = [(headers[i]["x"], headers[i]["y"], *bv_base[i : i + 2], *base[i : i + 2], i) for i in order]
    boxes = [(*head["lower"], *head["upper"], head["bv_scale"], head["walkable_climb"]) for head in headers]
    states = np.where(rows[:, 3] == layout.INTERNAL_SIDE, 0, rows[:, 3] >> 1)
    mesh = detour.Mesh(
        corners=_array(corners, np.float32),
        polygons=polygons,
        triangles=_array(triangles, np.float32),
        outlines=_array(np.concatenate([part[2] for part in parts]), np.uint8),
        links=_array(np.column_stack([rows[:, 1:3], states]), np.int32),
        portals=_array(_portals(corners, polygons[:, detour.COUNT], rows), np.float32),
        nodes=_array(np.concatenate([_nodes(tile, start) for tile, start in zip(tiles, base)]), np.int32),
        tiles=_array(places, np.int32),
        extents=_array(np.column_stack([lower[:, [0, 2]], upper[:, [0, 2]]]), np.float32),
        boxes=_array(boxes, np.float32),
        grid=_array([navmesh.origin[0], navmesh.origin[2], navmesh.tile_width, navmesh.tile_height], np.float32),
    )
    return mesh, areas, owner


def _array(values: Any, dtype: DTypeLike) -> np.ndarray:
    """An array of the one layout that the compiled queries know."""
    return np.ascontiguousarray(values, dtype=dtype)


def _triangles(tile: Tile) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Owner, corners and outline bits of a tile's detail triangles (see `detour.Mesh`)."""
    owner, points, rows = layout.detail_triangles(tile)
    edges = np.arange(3)
    border = rows[:, 3:] >> (2 * edges) & 1
    bordered = np.bincount(owner, border.any(axis=1), minlength=len(tile.polygons)) > 0
    border |= ~bordered[owner, None]  # a polygon without any mark must still have a nearest point
    seen_later = ~(rows[:, :3] < np.roll(rows[:, :3], -1, axis=1))
    outlines = np.sum((border << edges) | ((1 - border) * seen_later << (3 + edges)), axis=1)
    return owner, points, outlines.astype(np.uint8)


def _nodes(tile: Tile, base: int) -> np.ndarray:
    nodes = tile.bv_nodes
    index = nodes["index"] + np.where(nodes["index"] >= 0, base, 0)
    return np.column_stack([nodes["lower"], nodes["upper"], index])


def _links(navmesh: NavMesh, base: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All links in the order in which Detour visits them, and each polygon's range of them [P + 1].

    A link [6] is polygon, target, edge, side, and the part of the edge that is open, in 255ths. Detour chains
    a polygon's links inside the tile by edge, and puts each new link to another tile in front.
    """
    inner: list[np.ndarray] = []
    for tile, start in zip(navmesh.tiles, base):
        neighbours = np.where(_is_used(tile), tile.polygons["neighbours"], 0)
        polygon, edge = np.nonzero((neighbours > 0) & (neighbours < layout.EXTERNAL))
        side = np.full(len(edge), layout.INTERNAL_SIDE)
        target = neighbours[polygon, edge].astype(int) - 1 + start
        inner.append(np.column_stack([polygon + start, target, edge, side, 0 * side, side]))
    outer = list(_border_links(navmesh.tiles, base))[::-1]
    rows = np.concatenate([np.array(outer, dtype=np.int64).reshape(-1, 6), *inner])
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    counts = np.bincount(rows[:, 0], minlength=base[-1])
    return rows, np.concatenate([[0], np.cumsum(counts)])


def _portals(corners: np.ndarray, counts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Left and right end float32 [L, 2, 3] of each link; of two to one polygon, Detour takes the first."""
    polygon, edge = rows[:, 0], rows[:, 2]
    left, right = corners[polygon, edge], corners[polygon, (edge + 1) % counts[polygon]]
    part = rows[:, 4:] * (np.float32(1) / np.float32(255))
    whole = (rows[:, 4] == 0) & (rows[:, 5] == 255)
    part = np.where(whole[:, None], (0, 1), part).astype(np.float32)[:, :, None]
    ends = left[:, None] + (right - left)[:, None] * part
    ends[whole] = np.stack([left, right], axis=1)[whole]
    _, first, same = np.unique(rows[:, :2], axis=0, return_index=True, return_inverse=True)
    return ends[first[same.reshape(-1)]]


def _is_used(tile: Tile) -> np.ndarray:
    return np.arange(6) < tile.polygons["corner_count"][:, None]


def _border_links(tiles: tuple[Tile, ...], base: np.ndarray) -> Iterator[Link]:
    """Yield links between tiles in the order in which Detour adds them, tile by tile."""
    edges = [_border_edges(tile) for tile in tiles]
    placed: dict[tuple[int, int], list[int]] = defaultdict(list)
    for new, tile in enumerate(tiles):
        x, y = int(tile.header["x"]), int(tile.header["y"])
        for other in reversed(placed[x, y]):
            for pair in ((new, other), (other, new)):
                for side in range(8):
                    yield from _connect(tiles, edges, base, *pair, side)
        for side, (dx, dy) in enumerate(SIDE_STEPS):
            for other in reversed(placed.get((x + dx, y + dy), [])):
                yield from _connect(tiles, edges, base, new, other, side)
                yield from _connect(tiles, edges, base, other, new, (side + 4) & 7)
        placed[x, y].append(new)


def _border_edges(tile: Tile) -> Edges:
    """For each side the polygon, edge and two ends of the edges that lie on it."""
    edges: Edges = defaultdict(list)
    neighbours = np.where(_is_used(tile), tile.polygons["neighbours"], 0)
    for polygon, edge in np.argwhere(neighbours & layout.EXTERNAL).tolist():
        record = tile.polygons[polygon]
        ends = record["corners"][[edge, (edge + 1) % record["corner_count"]]]
        edges[int(neighbours[polygon, edge]) & 0xFF].append((polygon, edge, *tile.vertices[ends].astype(float)))
    return edges


def _connect(
    tiles: tuple[Tile, ...], edges: list[Edges], base: np.ndarray, source: int, target: int, side: int
) -> Iterator[Link]:
    """Links from one tile's edges on a side to the other tile's edges that they overlap."""
    if side % 2:
        return
    along = 2 - side % 4
    for polygon, edge, a, b in edges[source].get(side, ()):
        seen: set[int] = set()
        for other, _, c, d in edges[target].get((side + 4) & 7, ()):
            if other in seen or len(seen) == 4 or abs(a[2 - along] - c[2 - along]) > OVERLAP_MARGIN:
                continue
            overlap = _overlap(a, b, c, d, along, 2 * float(tiles[target].header["walkable_climb"]))
            if overlap is None:
                continue
            seen.add(other)
            part = sorted((value - a[along]) / (b[along] - a[along]) for value in overlap)
            lower, upper = (int(min(max(t, 0.0), 1.0) * 255 + 0.5) for t in part)
            yield polygon + base[source], other + base[target], edge, side, lower, upper


def _overlap(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, along: int, climb: float
) -> tuple[float, float] | None:
    """Where two edges on a tile border overlap, if they do and their heights there are within `climb`."""
    a, b = sorted((a, b), key=lambda point: point[along])
    c, d = sorted((c, d), key=lambda point: point[along])
    lower, upper = max(a[along], c[along]), min(b[along], d[along])
    if lower + OVERLAP_MARGIN > upper - OVERLAP_MARGIN:
        return None
    at = np.array([lower + OVERLAP_MARGIN, upper - OVERLAP_MARGIN])
    gap = np.interp(at, [c[along], d[along]], [c[1], d[1]]) - np.interp(at, [a[along], b[along]], [a[1], b[1]])
    if gap[0] * gap[1] < 0 or np.min(np.abs(gap)) <= climb:
        return lower, upper
    return None


def _find_islands(mesh: detour.Mesh) -> np.ndarray:
    """Numbers the connected sets of polygons in the mesh's island column; returns each island's radius.

    Any polygon may begin an island, and it grows over open ones. Sums are of float32, in Habitat's order.
    """
    polygons = mesh.polygons
    polygons[:, ISLAND] = -1
    is_open, targets = polygons[:, OPEN].tolist(), mesh.links[:, detour.TO].tolist()
    starts, ends = polygons[:, detour.LINK].tolist(), polygons[:, detour.LINK_END].tolist()
    island = [-1] * len(polygons)
    radii: list[float] = []
    for start in range(len(polygons)):
        if island[start] >= 0:
            continue
        island[start] = len(radii)
        members, stack = [], [start]
        while stack:
            polygon = stack.pop()
            members.append(polygon)
            for target in targets[starts[polygon] : ends[polygon]]:
                if island[target] < 0 and is_open[target]:
                    island[target] = len(radii)
                    stack.append(target)
        used = np.arange(6) < polygons[members, detour.COUNT][:, None]
        points = mesh.corners[members][used]
        centre = np.cumsum(points, axis=0, dtype=np.float32)[-1] / np.float32(len(points))
        radii.append(float(np.linalg.norm(points - centre, axis=1).max()))
    polygons[:, ISLAND] = island
    return np.array(radii)

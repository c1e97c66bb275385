"""Builds the navigation mesh of a scene from its triangles, as habitat-sim's `PathFinder::build` does with Recast.

The stages are Recast's, in the order and with the roundings of habitat-sim, so that polygons come out the same:
`heightfield`, `regions`, `contours`, `polygons` and `detail`; here they are put together and laid out as a Detour tile.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from navprune.errors import UserError
from navprune.scenes.files import navmesh as layout
from navprune.scenes.files.mesh import load_triangles
from navprune.scenes.files.navmesh import NavMesh, NavMeshSettings, Tile, write_navmesh
from navprune.scenes.files.places import existing, navmesh_path
from navprune.scenes.files.tile import DEFAULTS, bounding_volumes, check_counts, one_tile
from navprune.scenes.recast import heightfield as voxels
from navprune.scenes.recast.contours import outline
from navprune.scenes.recast.detail import Detail, detail
from navprune.scenes.recast.heightfield import Grid
from navprune.scenes.recast.polygons import NONE, PolygonMesh, polygon_mesh
from navprune.scenes.recast.regions import partition

MEMORY = 2 << 30  # bytes that a build may take
CELL_BYTES = 16  # of each cell of the grid, over the stages
SPAN_BYTES = 100  # of each span in it
MAX_CELLS = 0xFFFF  # along x or z; Recast keeps corners as ushort
DISABLED = 4  # Habitat's polygon flag for those it closes
POSITIVE = ("cell_size", "cell_height", "agent_height")  # settings that may not be 0
SMALLEST_LENGTH = 1e-4  # metres that those may be
STEEPEST = 90  # degrees of a slope
TURN_ERROR = np.float32(2.0**-23)  # of the matrix by which habitat-sim turns a stage from z up to y up

Progress = Callable[[str, float], None]  # what is being done, and the share of the stages that is behind


def build_navmesh(
    triangles: np.ndarray, settings: NavMeshSettings = DEFAULTS, progress: Progress | None = None
) -> NavMesh:
    """The navigation mesh of a scene.

    triangles: [T, 3, 3], metres, y up, fronts counter-clockwise. The mesh has one tile. `progress` is called at the
    beginning of each stage. Raises `UserError` where nothing is walkable, the settings or positions make no sense, the
    grid would need more than 2 GiB, or Detour's format cannot hold the result.
    """
    say = progress or (lambda stage, share: None)
    _check_settings(settings)
    triangles = np.ascontiguousarray(triangles, np.float32).reshape(-1, 3, 3)
    grid = _grid(triangles, settings)
    say("rasterising", 0.0)
    spans = _spans(triangles, grid, settings)
    say("finding places to stand", 0.3)
    field = voxels.standing_field(spans, grid.agent_height, grid.climb)
    is_open = voxels.erode(field, grid.radius)
    if not is_open.any():
        raise _no_floor(settings)
    say("dividing them into regions", 0.4)
    smallest, merged = int(settings.region_min_size**2), int(settings.region_merge_size**2)
    regions = partition(field, is_open, smallest, merged)
    say("drawing contours", 0.7)
    longest = min(int(np.float32(settings.edge_max_length) / grid.cell_size), 2 * MAX_CELLS)
    contours = outline(field, is_open, regions, settings.edge_max_error, longest)
    say("cutting polygons", 0.8)
    mesh = polygon_mesh(contours, int(settings.corners_per_polygon))
    if not len(mesh.corners):
        raise _no_floor(settings)
    check_counts(len(mesh.vertices), len(mesh.corners))
    say("measuring heights", 0.9)
    spacing = grid.cell_size * np.float32(settings.detail_sample_distance * (settings.detail_sample_distance >= 0.9))
    max_error = grid.cell_height * np.float32(settings.detail_sample_max_error)
    search = max(1, math.ceil(np.float32(settings.edge_max_error)))
    details = detail(field, regions, mesh, grid, spacing, max_error, search)
    navmesh = _navmesh(mesh, details, grid, settings)
    say("done", 1.0)
    return navmesh


def build_for(
    glb: Path,
    out: Path | None = None,
    settings: NavMeshSettings = DEFAULTS,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict:
    """Build the navigation mesh of a scene's GLB file and write it, in one piece, to `out` or beside the scene.

    Where only its twin is there, X.glb for X.basis.glb or the other way round, it is that one, as for navmeshes.
    Returns `path`, `area` (m2), `islands`, `polygons`, `triangles` and `seconds`. Raises `UserError` as `load_glb` and
    `build_navmesh` do, and when the file exists and is not to be overwritten, or cannot be written.
    """
    began = time.perf_counter()
    glb = existing(Path(glb))
    out = navmesh_path(glb) if out is None else Path(out)
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists already; pass --overwrite (overwrite=True) to replace it")
    navmesh, count = build_from(glb, settings, progress)
    write_navmesh(out, navmesh)
    return {
        "path": str(out),
        "area": float(_areas(navmesh.tiles[0]).sum()),
        "islands": _islands(navmesh.tiles[0]),
        "polygons": len(navmesh.tiles[0].polygons),
        "triangles": count,
        "seconds": time.perf_counter() - began,
    }


def build_from(glb: Path, settings: NavMeshSettings, progress: Progress | None = None) -> tuple[NavMesh, int]:
    """The navigation mesh of a scene's GLB file, and of how many triangles; raises as `build_for` does."""
    triangles = turned_like_habitat(load_triangles(glb))
    try:
        return build_navmesh(triangles, settings, progress), len(triangles)
    except UserError as error:
        raise UserError(f"{glb}: {error}") from None


def turned_like_habitat(vertices: np.ndarray) -> np.ndarray:
    """Positions float32 [..., 3], y up, with the rounding error of the matrix that turns stages in habitat-sim.

    It comes from a float32 quaternion and is a micrometre at 10 m, and decides where floors fall whose height is
    a whole number of cells.
    """
    x, y, z = np.moveaxis(np.asarray(vertices, np.float32), -1, 0)
    near_one = np.float32(1) + TURN_ERROR
    return np.stack([x, TURN_ERROR * z + near_one * y, near_one * z - TURN_ERROR * y], axis=-1)


# ---------------------------------------------------------------------------------------------- the grid


def _check_settings(settings: NavMeshSettings) -> None:
    for name, value in asdict(settings).items():
        least = SMALLEST_LENGTH if name in POSITIVE else 0
        most = STEEPEST if name == "agent_max_slope" else layout.MAX_COORDINATE
        if not least <= value <= most:
            raise UserError(f"the navmesh setting {name} is {value}; give a number from {least:g} to {most:g}")
    corners = settings.corners_per_polygon
    if not 3 <= int(corners) <= layout.MAX_CORNERS:
        raise UserError(f"a navmesh polygon has 3 to {layout.MAX_CORNERS} corners, not {corners:g}")


def _no_floor(settings: NavMeshSettings) -> UserError:
    return UserError(
        f"no floor on which an agent of {settings.agent_height:g} m height and {settings.agent_radius:g} m radius can "
        "stand; check that the scene is z up, that its floor faces upwards, and the agent's size"
    )


def _grid(triangles: np.ndarray, settings: NavMeshSettings) -> Grid:
    if not len(triangles):
        raise UserError("the scene has no triangles to build a navmesh from; export it with its meshes")
    if not np.all(np.abs(triangles) <= layout.MAX_COORDINATE):
        raise UserError("the scene has vertices that are not sensible positions in metres; export it again")
    lower, upper = triangles.min(axis=(0, 1)), triangles.max(axis=(0, 1))
    size, height = np.float32(settings.cell_size), np.float32(settings.cell_height)
    width, depth = (int((upper[k] - lower[k]) / size + np.float32(0.5)) for k in (0, 2))
    tall = upper[1] - lower[1]
    if tall / height >= voxels.MAX_HEIGHT:
        raise UserError(
            f"the scene is {tall:.0f} m tall, more than {voxels.MAX_HEIGHT} cells; take a cell height "
            f"of {float(tall) / voxels.MAX_HEIGHT * 1.1:.2g} m or more"
        )
    if max(width, depth) > MAX_CELLS or width * depth * CELL_BYTES > MEMORY:
        factor = max(max(width, depth) / MAX_CELLS, math.sqrt(width * depth * CELL_BYTES / MEMORY))
        raise _too_large(settings, 1.1 * factor)
    agent_height = math.ceil(np.float32(settings.agent_height) / height)
    climb = math.floor(np.float32(settings.agent_max_climb) / height)
    radius = math.ceil(np.float32(settings.agent_radius) / size)
    return Grid(lower, upper, size, height, max(width, 1), max(depth, 1), agent_height, climb, radius)


def _too_large(settings: NavMeshSettings, factor: float) -> UserError:
    return UserError(
        f"the scene is too large for cells of {settings.cell_size:g} m: the grid would need over {MEMORY >> 30} GiB; "
        f"take a cell size of about {settings.cell_size * factor:.2g} m"
    )


def _spans(triangles: np.ndarray, grid: Grid, settings: NavMeshSettings) -> voxels.Columns:
    """The solid spans of the scene, walkable where an agent may stand."""
    limit = (MEMORY - grid.width * grid.depth * CELL_BYTES) // SPAN_BYTES
    walkable = voxels.walkable_slopes(triangles, settings.agent_max_slope)
    heads, rows = voxels.rasterise(triangles, walkable, grid, limit)
    if not len(rows):
        raise _too_large(settings, 1.5)
    spans = voxels.columns(grid, heads, rows)
    if settings.filter_low_hanging_obstacles:
        voxels.keep_low_obstacles(spans, grid.climb)
    if settings.filter_ledge_spans:
        voxels.drop_ledges(spans, grid.agent_height, grid.climb)
    if settings.filter_walkable_low_height_spans:
        voxels.drop_low_ceilings(spans, grid.agent_height)
    return spans


# ---------------------------------------------------------------------------------------------- the tile


def _navmesh(mesh: PolygonMesh, details: list[Detail], grid: Grid, settings: NavMeshSettings) -> NavMesh:
    """Lay a polygon mesh out as Detour's `dtCreateNavMeshData` does."""
    scale = np.array([grid.cell_size, grid.cell_height, grid.cell_size], np.float32)
    upper = grid.upper.copy()
    upper[1] += np.float32(grid.agent_height) * grid.cell_height
    records = np.zeros(len(mesh.corners), layout.POLYGON)
    used = mesh.corners != NONE
    most = mesh.corners.shape[1]
    records["corner_count"] = counts = used.sum(axis=1)
    records["corners"][:, :most] = np.where(used, mesh.corners, 0)
    records["neighbours"][:, :most] = np.where(used & (mesh.neighbours != NONE), mesh.neighbours + 1, 0)

    lift = np.array([0, grid.cell_height, 0], np.float32)  # Recast's detail lies a cell over the polygons
    points = [part.points + (grid.lower + lift) for part in details]
    extra = np.array([len(part) for part in points]) - counts
    sizes = np.array([len(part.triangles) for part in details])
    rows = np.zeros(len(details), layout.DETAIL)
    rows["vertex_count"], rows["triangle_count"] = extra, sizes
    rows["vertex_base"], rows["triangle_base"] = np.cumsum(extra) - extra, np.cumsum(sizes) - sizes
    ends = np.cumsum([len(part) for part in points])
    ranges = [range(end - len(part), end) for end, part in zip(ends.tolist(), points)]
    per_cell = np.float32(1) / grid.cell_size
    navmesh = one_tile(
        grid.lower + mesh.vertices.astype(np.float32) * scale,
        records,
        rows,
        np.concatenate([part[count:] for part, count in zip(points, counts)]).astype(np.float32).reshape(-1, 3),
        np.concatenate([part.triangles for part in details]).astype(np.uint8),
        bounding_volumes(np.concatenate(points), ranges, grid.lower, per_cell),
        (grid.lower, upper),
        per_cell,
        settings,
    )
    records["flags"] = np.where(_areas(navmesh.tiles[0]) < layout.SMALLEST_AREA, DISABLED, layout.WALKABLE)
    return navmesh


def _areas(tile: Tile) -> np.ndarray:
    """The area of each polygon's detail, m2 [P]."""
    owner, corners, _ = layout.detail_triangles(tile)
    sides = np.diff(corners.astype(np.float64), axis=1)
    areas = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1) / 2
    return np.bincount(owner, areas, minlength=len(tile.polygons))


def _islands(tile: Tile) -> int:
    """How many sets of open polygons there are that no path connects."""
    neighbours = tile.polygons["neighbours"].astype(int) - 1
    is_open = tile.polygons["flags"] == layout.WALKABLE
    unseen = set(np.flatnonzero(is_open).tolist())
    count = 0
    while unseen:
        count += 1
        stack = [unseen.pop()]
        while stack:
            near = set(neighbours[stack.pop()].tolist()) & unseen
            unseen -= near
            stack += near
    return count

"""Reads and writes Detour navigation meshes in Habitat's `.navmesh` layout.

A file is a set header, for version 2 the settings of the build, and one blob for each tile, all little-endian
and packed like the C structs (`DetourNavMesh.h`, and habitat-sim's `PathFinder.cpp` for the set).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from navprune.errors import UserError
from navprune.files import write_file

SET_MAGIC = 0x4D534554  # 'MSET'
TILE_MAGIC = 0x444E4156  # 'DNAV'
TILE_VERSION = 7
MAX_CORNERS = 6
MAX_VERTICES = 0xFFFE  # corners are ushort, and 0xffff means none
MAX_POLYGONS = 0x7FFE  # neighbours are ushort index + 1, and the top bit marks an edge to another tile
MAX_COORDINATE = 1e6  # metres; beyond it float32 products lose all meaning
SMALLEST_AREA = 1e-5  # m2; Habitat closes smaller polygons, which confuse its queries
WALKABLE = 1  # Habitat's polygon flag for the ground
EXTERNAL = 0x8000  # bit of a neighbour entry: the edge lies on a tile border
INTERNAL_SIDE = 0xFF  # side of a link inside a tile

SET_HEADER = np.dtype(
    [
        *((name, "<i4") for name in ("magic", "version", "tile_count")),
        ("origin", "<f4", 3),
        ("tile_width", "<f4"),
        ("tile_height", "<f4"),
        ("max_tiles", "<i4"),
        ("max_polygons", "<i4"),
    ]
)
SETTINGS = np.dtype([("numbers", "<f4", 13), ("filters", "u1", 4)])
TILE_LEAD = np.dtype([("reference", "<u4"), ("size", "<i4")])
TILE_HEADER = np.dtype(
    [
        *((name, "<i4") for name in ("magic", "version", "x", "y", "layer")),
        ("user_id", "<u4"),
        *((name, "<i4") for name in ("polygon_count", "vertex_count", "link_count")),
        *((name, "<i4") for name in ("detail_count", "detail_vertex_count", "detail_triangle_count")),
        *((name, "<i4") for name in ("bv_node_count", "off_mesh_count", "off_mesh_base")),
        *((name, "<f4") for name in ("walkable_height", "walkable_radius", "walkable_climb")),
        ("lower", "<f4", 3),
        ("upper", "<f4", 3),
        ("bv_scale", "<f4"),
    ]
)
POLYGON = np.dtype(
    [
        ("first_link", "<u4"),
        ("corners", "<u2", MAX_CORNERS),
        ("neighbours", "<u2", MAX_CORNERS),
        ("flags", "<u2"),
        ("corner_count", "u1"),
        ("area_and_type", "u1"),
    ]
)
LINK = np.dtype([("ref", "<u4"), ("next", "<u4"), ("edge", "u1"), ("side", "u1"), ("lower", "u1"), ("upper", "u1")])
DETAIL = np.dtype(
    [("vertex_base", "<u4"), ("triangle_base", "<u4"), ("vertex_count", "u1"), ("triangle_count", "u1"), ("pad", "<u2")]
)
BV_NODE = np.dtype([("lower", "<u2", 3), ("upper", "<u2", 3), ("index", "<i4")])


@dataclass(frozen=True)
class NavMeshSettings:
    """How a navigation mesh was made, with Habitat's defaults; metres and degrees."""

    cell_size: float = 0.05
    cell_height: float = 0.2
    agent_height: float = 1.5
    agent_radius: float = 0.1
    agent_max_climb: float = 0.2
    agent_max_slope: float = 45.0
    region_min_size: float = 20.0
    region_merge_size: float = 20.0
    edge_max_length: float = 12.0
    edge_max_error: float = 1.3
    corners_per_polygon: float = 6.0
    detail_sample_distance: float = 6.0
    detail_sample_max_error: float = 1.0
    filter_low_hanging_obstacles: bool = True
    filter_ledge_spans: bool = True
    filter_walkable_low_height_spans: bool = True
    include_static_objects: bool = False


@dataclass(frozen=True, eq=False)
class Tile:
    """One tile, section by section; the arrays have the structured types of this module."""

    reference: int
    header: np.ndarray  # TILE_HEADER, shape ()
    vertices: np.ndarray  # float32 [V, 3]
    polygons: np.ndarray  # POLYGON [P]
    links: np.ndarray  # LINK [L]; room that Detour fills when it loads the tile
    details: np.ndarray  # DETAIL [P]
    detail_vertices: np.ndarray  # float32 [D, 3]
    detail_triangles: np.ndarray  # uint8 [T, 4]: corners (then detail vertices), and 2 bits for each edge
    bv_nodes: np.ndarray  # BV_NODE [B]; without any, queries look at every polygon

    @property
    def sections(self) -> tuple[np.ndarray, ...]:
        """The arrays in the order of the file, header first."""
        return tuple(getattr(self, field.name) for field in fields(self)[1:])


@dataclass(frozen=True, eq=False)
class NavMesh:
    """A set of tiles on a grid in the horizontal plane, y up, metres."""

    tiles: tuple[Tile, ...]
    origin: tuple[float, float, float]
    tile_width: float  # along x
    tile_height: float  # along z
    max_tiles: int
    max_polygons: int
    settings: NavMeshSettings = NavMeshSettings()

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corner of the box around all tiles, float32 [3] each."""
        lower = np.min([tile.header["lower"] for tile in self.tiles], axis=0)
        return lower, np.max([tile.header["upper"] for tile in self.tiles], axis=0)


# ---------------------------------------------------------------------------------------------- reading


class _Bytes:
    """A cursor over a file's bytes that refuses to read past the end, so no count is believed unchecked."""

    def __init__(self, data: bytes | np.ndarray, name: str):
        self.data, self.name, self.offset = data, name, 0

    def take(self, dtype: np.dtype | str, count: int, what: str) -> np.ndarray:
        dtype = np.dtype(dtype)
        if count < 0:
            raise self.broken(f"a negative number of {what}")
        size = count * dtype.itemsize
        if size > len(self.data) - self.offset:
            raise self.broken(f"it ends inside the {what}")
        array = np.frombuffer(self.data, dtype, count, self.offset)
        self.offset += size
        return array

    def broken(self, reason: str) -> UserError:
        return UserError(f"{self.name} is not a whole .navmesh file: {reason}; copy or generate it anew")


def read_navmesh(path: str | os.PathLike) -> NavMesh:
    """Read a `.navmesh` set of version 1 or 2.

    Raises `UserError` when the file is missing, cut off, of another kind, or its counts and indices disagree.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the navmesh {path}: {error.strerror or error}; check the path") from None
    return parse_navmesh(data, str(path))


def check_navmesh(path: str | os.PathLike) -> None:
    """Raise `UserError` where a file's headers say that it is cut off or of another kind; no more of it is read."""
    data = np.memmap(path, np.uint8, "r") if os.path.getsize(path) else b""
    source = _Bytes(data, str(path))
    head, _ = _set(source)
    for index, _, blob in _blobs(source, head):
        _tile_header(_Bytes(blob, source.name), index)


def parse_navmesh(data: bytes, name: str = "navmesh") -> NavMesh:
    """Read a navigation mesh from the bytes of a file; `name` stands in the errors."""
    source = _Bytes(data, name)
    head, settings = _set(source)
    tiles: list[Tile] = []
    places = set()
    for index, reference, blob in _blobs(source, head):
        tile = _read_tile(_Bytes(blob.tobytes(), name), index, reference)
        place = tuple(int(tile.header[key]) for key in ("x", "y", "layer"))
        if place in places:
            raise source.broken(f"two tiles lie at {place}")
        places.add(place)
        tiles.append(tile)
    if not any(len(tile.polygons) for tile in tiles):
        raise source.broken("it holds no polygon")
    origin, width, height = tuple(head["origin"].tolist()), float(head["tile_width"]), float(head["tile_height"])
    return NavMesh(tuple(tiles), origin, width, height, int(head["max_tiles"]), int(head["max_polygons"]), settings)


def _set(source: _Bytes) -> tuple[np.void, NavMeshSettings]:
    """The header of the set, and how it was made."""
    head = source.take(SET_HEADER, 1, "set header")[0]
    if head["magic"] != SET_MAGIC:
        raise source.broken("it does not begin with the mark of a navmesh set")
    if head["version"] not in (1, 2):
        raise source.broken(f"its version is {head['version']}, and only 1 and 2 are known")
    settings = NavMeshSettings()
    if head["version"] == 2:
        record = source.take(SETTINGS, 1, "settings")[0]
        if not np.all(np.isfinite(record["numbers"])):
            raise source.broken("its settings are not numbers")
        settings = NavMeshSettings(*record["numbers"].tolist(), *(bool(value) for value in record["filters"]))
    grid = (*head["origin"].tolist(), head["tile_width"], head["tile_height"])
    if not np.all(np.abs(grid) <= MAX_COORDINATE) or min(grid[3:]) <= 0:
        raise source.broken("its tile grid is not a sensible one")
    return head, settings


def _blobs(source: _Bytes, head: np.void) -> Iterator[tuple[int, int, np.ndarray]]:
    """Index, reference and bytes of each tile."""
    for index in range(int(head["tile_count"])):
        lead = source.take(TILE_LEAD, 1, f"lead of tile {index}")[0]
        if not lead["reference"] or not lead["size"]:
            break  # as Habitat does, whatever the count says
        yield index, int(lead["reference"]), source.take("u1", int(lead["size"]), f"bytes of tile {index}")


def _tile_header(blob: _Bytes, index: int) -> np.void:
    header = blob.take(TILE_HEADER, 1, f"header of tile {index}")[0]
    if header["magic"] != TILE_MAGIC or header["version"] != TILE_VERSION:
        raise blob.broken(f"tile {index} is not a Detour tile of version {TILE_VERSION}")
    if header["off_mesh_count"] != 0:
        raise blob.broken(f"tile {index} has off-mesh connections, which Habitat never makes")
    return header


def _read_tile(blob: _Bytes, index: int, reference: int) -> Tile:
    header = _tile_header(blob, index)
    count = {key: int(header[key]) for key in TILE_HEADER.names or () if key.endswith("_count")}
    tile = Tile(
        reference,
        np.array(header),
        blob.take("<f4", 3 * count["vertex_count"], "vertices").reshape(-1, 3),
        blob.take(POLYGON, count["polygon_count"], "polygons"),
        blob.take(LINK, count["link_count"], "links"),
        blob.take(DETAIL, count["detail_count"], "detail meshes"),
        blob.take("<f4", 3 * count["detail_vertex_count"], "detail vertices").reshape(-1, 3),
        blob.take("u1", 4 * count["detail_triangle_count"], "detail triangles").reshape(-1, 4),
        blob.take(BV_NODE, count["bv_node_count"], "bounding-volume nodes"),
    )
    if blob.offset != len(blob.data):
        raise blob.broken(f"tile {index} is larger than its counts say")
    if fault := _fault(tile):
        raise blob.broken(f"tile {index} {fault}")
    return tile


def _fault(tile: Tile) -> str | None:
    """Say what in a tile contradicts itself, if anything; all indices that queries follow are checked."""
    polygons, details = tile.polygons, tile.details
    numbers = (tile.vertices, tile.detail_vertices, tile.header["lower"], tile.header["upper"])
    if not all(np.all(np.abs(array) <= MAX_COORDINATE) for array in numbers):
        return "has coordinates that are not sensible metres"
    if not 0 < tile.header["bv_scale"] <= MAX_COORDINATE or not 0 <= tile.header["walkable_climb"] <= MAX_COORDINATE:
        return "has a header without sensible sizes"
    if len(details) != len(polygons):
        return "has not one detail mesh for each polygon"
    corner_counts = polygons["corner_count"].astype(int)
    if np.any((corner_counts < 3) | (corner_counts > MAX_CORNERS)):
        return f"has a polygon without 3 to {MAX_CORNERS} corners"
    used = np.arange(MAX_CORNERS) < corner_counts[:, None]
    neighbours = polygons["neighbours"]
    if np.any(used & (polygons["corners"] >= len(tile.vertices))):
        return "has a polygon corner that is no vertex"
    if np.any(used & (neighbours < EXTERNAL) & (neighbours > len(polygons))):
        return "has a polygon neighbour that does not exist"
    if np.any(polygons["area_and_type"] >> 6):
        return "has polygons that are not ground"
    ends = details["triangle_base"].astype(np.int64) + details["triangle_count"]
    if np.any(ends > len(tile.detail_triangles)):
        return "has a detail mesh with triangles that do not exist"
    _, _, extra, vertex = _detail_rows(tile)
    if np.any((extra >= 0) & (vertex >= len(tile.detail_vertices))):
        return "has a detail triangle whose corner does not exist"
    index = tile.bv_nodes["index"].astype(np.int64)
    if np.any((index >= max(len(polygons), 1)) | (index < -len(index))):
        return "has a bounding volume that leads nowhere"
    return None


def _detail_rows(tile: Tile) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Owner polygon [K] and raw row [K, 4] of every detail triangle, polygon by polygon.

    With them, of its corners [K, 3], the number less the polygon's corners, and where that is not negative, the index
    of the detail vertex.
    """
    keys = "triangle_count", "triangle_base", "vertex_base"
    counts, first_triangle, first_vertex = (tile.details[key].astype(np.int64) for key in keys)
    owner = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = tile.detail_triangles[first_triangle[owner] + within]
    extra = rows[:, :3] - tile.polygons["corner_count"].astype(np.int64)[owner, None]
    return owner, rows, extra, first_vertex[owner, None] + extra


def detail_triangles(tile: Tile) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Owner polygon [K], corners float32 [K, 3, 3] and raw rows uint8 [K, 4] of a tile's detail triangles."""
    owner, rows, extra, detail = _detail_rows(tile)
    on_polygon = extra < 0
    points = tile.vertices[tile.polygons["corners"][owner[:, None], np.where(on_polygon, rows[:, :3], 0)]]
    points[~on_polygon] = tile.detail_vertices[detail[~on_polygon]]
    return owner, points, rows


# ---------------------------------------------------------------------------------------------- writing


def write_navmesh(path: str | os.PathLike, navmesh: NavMesh) -> None:
    """Write a `.navmesh` set of version 2, which habitat-sim loads, in one piece.

    Raises `UserError` when the file cannot be written.
    """
    write_file(Path(path), navmesh_bytes(navmesh))


def navmesh_bytes(navmesh: NavMesh) -> bytes:
    """The bytes of a version-2 `.navmesh` set."""
    head = np.zeros((), SET_HEADER)
    head["magic"], head["version"], head["tile_count"] = SET_MAGIC, 2, len(navmesh.tiles)
    for key in ("origin", "tile_width", "tile_height", "max_tiles", "max_polygons"):
        head[key] = getattr(navmesh, key)
    settings = np.zeros((), SETTINGS)
    values = astuple(navmesh.settings)
    settings["numbers"], settings["filters"] = values[:13], values[13:]
    parts = [head.tobytes(), settings.tobytes()]
    for tile in navmesh.tiles:
        blob = b"".join(section.tobytes() for section in tile.sections)
        parts += [np.array((tile.reference, len(blob)), TILE_LEAD).tobytes(), blob]
    return b"".join(parts)

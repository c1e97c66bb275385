"""Meshes of several tiles and floors: cut up or without a tree, a mesh answers as it does whole."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navprune.scenes.files import navmesh as nm
from navprune.scenes.files.tile import navmesh_from_polygons
from navprune.simulator.pathfinder import PathFinder

REFERENCE = Path(__file__).parents[1] / "data/reference"
SCENES = ["apartment", "duplex"]
seeds = st.integers(0, 2**32 - 1)


# ------------------------------------------------------------------------------------------- cutting


def polygons_of(navmesh):
    """Each polygon's corners [k, 3]."""
    return [
        tile.vertices[record["corners"][: record["corner_count"]]] for tile in navmesh.tiles for record in tile.polygons
    ]


def between(a, b, axis, at):
    """Where an edge meets a plane, the same from both sides of the edge."""
    a, b = sorted((a, b), key=tuple)
    t = (at - float(a[axis])) / (float(b[axis]) - float(a[axis]))
    point = (a + (b - a) * t).astype(np.float32)
    point[axis] = at
    return point


def halves(polygon, axis, at):
    """The parts of a convex polygon below and above a plane."""
    sides = ([], [])
    for a, b in zip(polygon, np.roll(polygon, -1, axis=0)):
        for side, sign in zip(sides, (1, -1)):
            if sign * (a[axis] - at) <= 0:
                side.append(a)
            if (a[axis] - at) * (b[axis] - at) < 0:
                side.append(between(a, b, axis, at))
    return [np.array(side) for side in sides if len(side) > 2]


def cut(polygons, planes):
    """Convex polygons of at most six corners, cut along planes (axis, coordinate)."""
    for axis, at in planes:
        polygons = [part for polygon in polygons for part in halves(polygon, axis, at)]
    small = []
    for polygon in polygons:
        while len(polygon) > 6:
            small.append(polygon[:4])
            polygon = np.concatenate([polygon[:1], polygon[3:]])
        small.append(polygon)
    return small


def build(polygons):
    """A tile of polygons that share vertices where their corners are the same."""
    places = {}
    rows = [[places.setdefault(tuple(corner), len(places)) for corner in polygon.tolist()] for polygon in polygons]
    return navmesh_from_polygons(np.array(list(places)), rows)


def assemble(parts, origin, size):
    """A set of tiles from {(column, row, layer): polygons}, their edges on tile borders marked as Detour does."""
    tiles = []
    for number, ((column, row, layer), polygons) in enumerate(parts.items()):
        (tile,) = build(polygons).tiles
        records, header = tile.polygons.copy(), tile.header.copy()
        header["x"], header["y"], header["layer"] = column, row, layer
        low = [np.float32(origin[0] + column * size), np.float32(origin[1] + row * size)]
        high = [np.float32(origin[0] + (column + 1) * size), np.float32(origin[1] + (row + 1) * size)]
        for record in records:
            corners = tile.vertices[record["corners"][: record["corner_count"]]][:, [0, 2]]
            ends = np.roll(corners, -1, axis=0)
            for side, (axis, at) in {0: (0, high[0]), 2: (1, high[1]), 4: (0, low[0]), 6: (1, low[1])}.items():
                on_border = (corners[:, axis] == at) & (ends[:, axis] == at)
                record["neighbours"][: len(corners)][on_border] = nm.EXTERNAL | side
        tiles.append(replace(tile, reference=number + 1, header=header, polygons=records))
    return nm.NavMesh(tuple(tiles), (origin[0], 0.0, origin[1]), size, size, len(tiles), 1 << 15)


def without_tree(navmesh):
    tiles = []
    for tile in navmesh.tiles:
        header = tile.header.copy()
        header["bv_node_count"] = 0
        tiles.append(replace(tile, header=header, bv_nodes=tile.bv_nodes[:0]))
    return replace(navmesh, tiles=tuple(tiles))


class Cut:
    """A recorded mesh, its polygons cut along a grid: as one tile, and as the tiles of the grid."""

    def __init__(self, name, size=3.1234):
        recorded = nm.read_navmesh(REFERENCE / f"scene_datasets/reference/{name}.navmesh")
        lower, upper = recorded.bounds
        origin = (float(lower[0]) - 0.0567, float(lower[2]) - 0.0891)
        count = [int((upper[axis] - origin[i]) // size) for i, axis in enumerate((0, 2))]
        planes = [
            (axis, np.float32(origin[i] + k * size)) for i, axis in enumerate((0, 2)) for k in range(1, count[i] + 1)
        ]
        polygons = cut(polygons_of(recorded), planes)
        parts = {}
        for polygon in polygons:
            column, row = np.floor((polygon.mean(axis=0)[[0, 2]] - origin) / size).astype(int)
            parts.setdefault((int(column), int(row), 0), []).append(polygon)
        assert len(parts) > 4
        self.recorded = PathFinder(recorded)
        self.whole = PathFinder(build(polygons))
        self.navmesh = assemble(parts, origin, size)
        self.tiled = PathFinder(nm.parse_navmesh(nm.navmesh_bytes(self.navmesh)))
        self.answers = json.loads((REFERENCE / f"expected/{name}_navigation.json").read_text())


@pytest.fixture(scope="module", params=SCENES)
def scene(request):
    return Cut(request.param)


def agree(ours, theirs, tolerance=1e-4):
    """Share of rows that are the same."""
    same = np.isclose(ours, theirs, rtol=0, atol=tolerance, equal_nan=True)
    return np.mean(same if same.ndim == 1 else same.all(axis=1))


def test_a_mesh_in_tiles_answers_as_the_same_polygons_in_one(scene):
    rng = np.random.default_rng(0)
    starts, ends = scene.whole.sample(400, rng), scene.whole.sample(400, rng)
    assert scene.tiled.navigable_area == pytest.approx(scene.whole.navigable_area, rel=1e-5)
    shaken = starts + rng.normal(scale=(0.3, 0.5, 0.3), size=starts.shape)
    assert agree(scene.tiled.snap(shaken), scene.whole.snap(shaken)) == 1
    assert np.array_equal(scene.tiled.is_navigable(shaken), scene.whole.is_navigable(shaken))
    assert agree(scene.tiled.island_radius(starts), scene.whole.island_radius(starts)) == 1
    # Detour does not join tiles over edges of less than 2 cm, which are walls then.
    assert agree(scene.tiled.obstacle_distance(starts), scene.whole.obstacle_distance(starts)) >= 0.98
    near = starts + rng.uniform(-0.3, 0.3, starts.shape) * (1, 0, 1)
    for sliding in (True, False):
        assert agree(scene.tiled.step(starts, near, sliding), scene.whole.step(starts, near, sliding)) >= 0.995
    ours, theirs = scene.tiled.geodesic_distance(starts, ends), scene.whole.geodesic_distance(starts, ends)
    assert np.array_equal(np.isfinite(ours), np.isfinite(theirs)) and np.isfinite(ours).mean() > 0.5
    # A polygon at a border is a node for each side that it is entered from, so corridors may differ a little.
    reached = np.isfinite(theirs)
    error = np.abs(ours[reached] - theirs[reached]) / theirs[reached]
    assert np.median(error) < 1e-6 and np.percentile(error, 90) < 0.05 and error.max() < 0.2


def test_cutting_changes_no_connection(scene):
    starts, ends = (np.array([entry[key] for entry in scene.answers["geodesic"]]) for key in ("start", "end"))
    found = np.array([entry["found"] for entry in scene.answers["geodesic"]])
    distance = scene.tiled.geodesic_distance(starts, ends)
    assert np.array_equal(np.isfinite(distance), found)
    recorded = np.array([entry["distance"] for entry in scene.answers["geodesic"] if entry["found"]])
    assert np.mean(np.abs(distance[found] - recorded) < 0.02 * recorded + 0.01) > 0.9


def test_tiles_in_any_order_are_one_mesh(scene):
    tiles = scene.navmesh.tiles
    rng = np.random.default_rng(0)
    finder = PathFinder(replace(scene.navmesh, tiles=tuple(tiles[i] for i in rng.permutation(len(tiles)))))
    points, ends = scene.whole.sample(200, rng), scene.whole.sample(200, rng)
    assert agree(finder.snap(points), scene.tiled.snap(points)) == 1
    assert agree(finder.geodesic_distance(points, ends), scene.tiled.geodesic_distance(points, ends)) >= 0.9


def test_without_a_tree_every_polygon_is_looked_at(scene):
    rng = np.random.default_rng(0)
    points = scene.tiled.sample(300, rng) + rng.normal(scale=(0.5, 1.0, 0.5), size=(300, 3))
    bare = PathFinder(nm.parse_navmesh(nm.navmesh_bytes(without_tree(scene.navmesh))))
    assert agree(bare.snap(points), scene.tiled.snap(points)) == 1
    far = points + np.array([0.0, 40.0, 0.0])
    assert np.isnan(bare.snap(far)).all()


# ------------------------------------------------------------------------------------------- floors


def squares(columns, rows, height=0.0):
    """A floor of unit squares, as corners."""
    unit = np.array([[0, 0, 0], [0, 0, 1], [1, 0, 1], [1, 0, 0]], np.float32)
    return [unit + np.float32([x, height, z]) for x in range(columns) for z in range(rows)]


HEIGHTS = (0.0, 2.7, 5.4)


@pytest.fixture(scope="module", params=["one tile", "layers", "tiles and layers", "no tree"])
def tower(request):
    """Three floors of 8 x 4 metres, one above the other, 2.7 m apart."""
    floors = {height: squares(8, 4, height) for height in HEIGHTS}
    if request.param in ("one tile", "no tree"):
        whole = build([polygon for floor in floors.values() for polygon in floor])
        return PathFinder(whole if request.param == "one tile" else without_tree(whole))
    size = 8.0 if request.param == "layers" else 4.0
    parts = {}
    for layer, floor in enumerate(floors.values()):
        for polygon in floor:
            parts.setdefault((int(polygon[:, 0].mean() // size), 0, layer), []).append(polygon)
    return PathFinder(assemble(parts, (0.0, 0.0), size))


@settings(max_examples=40, deadline=None)
@given(seed=seeds)
def test_nothing_changes_the_floor(tower, seed):
    rng = np.random.default_rng(seed)
    floor = rng.choice(HEIGHTS, 32)
    points = np.stack([rng.uniform(0.1, 7.9, 32), floor, rng.uniform(0.1, 3.9, 32)], axis=1)
    over = points + np.stack([np.zeros(32), rng.uniform(-1.2, 1.2, 32), np.zeros(32)], axis=1)
    assert np.allclose(tower.snap(over), points, atol=1e-5)
    assert np.all(tower.island_radius(over) == pytest.approx(tower.island_radius(points[:1])[0]))
    targets = points + rng.uniform(-0.5, 0.5, (32, 3)) * (1, 0, 1)
    for sliding in (True, False):
        assert np.allclose(tower.step(points, targets, sliding)[:, 1], floor, atol=1e-5)
    goals = points[rng.permutation(32)]
    assert np.array_equal(np.isfinite(tower.geodesic_distance(points, goals)), points[:, 1] == goals[:, 1])


def test_the_upper_floor_is_reached_by_the_stair_alone():
    finder = Cut("duplex").tiled
    below, above = np.array([[2.883129, 0.2, -3.56149]]), finder.snap([[0.741131, 3.0, -2.675834]])
    distance = finder.geodesic_distance(below, above)[0]
    assert np.isfinite(distance) and distance > 3.5  # metres, with 2.8 of height
    path = finder.find_path(below[0], above[0])
    assert np.all(np.diff(path.points[:, 1]) > -0.3)


# ------------------------------------------------------------------------------------------- Habitat's rules


def test_a_way_closed_to_the_agent_still_joins_islands():
    """Habitat numbers islands before it closes the polygons without area."""
    thin = 1e-6
    sliver = np.float32([[1, 0, 0], [1, 0, 1], [1 + thin, 0, 1], [1 + thin, 0, 0]])
    right = np.float32([[1 + thin, 0, 0], [1 + thin, 0, 1], [2, 0, 1], [2, 0, 0]])
    joined = PathFinder(build([*squares(1, 1), sliver, right]))
    open_floor = PathFinder(build(squares(2, 1)))
    left, beyond = [[0.5, 0, 0.5]], [[1.5, 0, 0.5]]
    assert joined.island_radius(left)[0] == joined.island_radius(beyond)[0] > 1
    assert joined.geodesic_distance(left, beyond)[0] == np.inf
    assert open_floor.geodesic_distance(left, beyond)[0] == pytest.approx(1)
    assert np.allclose(joined.step(left, beyond), [[1, 0, 0.5]], atol=1e-5)


def test_places_that_magnum_takes_for_one_have_no_way_between():
    finder = PathFinder(build(squares(12, 1)))
    starts = np.array([[10.0, 0, 0.5]] * 2)
    near, far = finder.geodesic_distance(starts, starts + np.array([[0.00015, 0, 0], [0.0003, 0, 0]]))
    assert near == 0 and far == pytest.approx(3e-4, rel=0.1)


def test_a_polygon_whose_border_is_not_marked_still_has_a_nearest_point():
    navmesh = build([corners + np.float32([5, 0, 5]) for corners in squares(2, 2)])
    outside = [[4.5, 0, 6.2], [8, 0.3, 5.5]]
    expected = PathFinder(navmesh).snap(outside)
    navmesh.tiles[0].detail_triangles[:, 3] = 0
    assert np.allclose(PathFinder(navmesh).snap(outside), expected)

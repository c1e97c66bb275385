"""Broken navmeshes: each is read and can be asked anything, or is refused in one line."""

from pathlib import Path

import numpy as np
import pytest
from mutations import COUNT, mutants

from navprune.errors import UserError
from navprune.scenes.files import navmesh as nm
from navprune.scenes.files.tile import navmesh_from_polygons
from navprune.simulator.pathfinder import PathFinder

REFERENCE = Path(__file__).parents[2] / "data/reference/scene_datasets/reference"


def small_navmesh():
    """Two squares of one metre and a ramp, without a tree."""
    vertices = np.array([[0, 0, 0], [0, 0, 1], [1, 0, 1], [1, 0, 0], [2, 0, 1], [2, 0, 0], [2, 0.5, 2], [1, 0.5, 2]])
    navmesh = navmesh_from_polygons(vertices, [[0, 1, 2, 3], [3, 2, 4, 5], [2, 7, 6, 4]])
    (tile,) = navmesh.tiles
    tile.header["bv_node_count"] = 0
    object.__setattr__(tile, "bv_nodes", tile.bv_nodes[:0])
    return navmesh


def files():
    yield from ((REFERENCE / f"{name}.navmesh").read_bytes() for name in ("apartment", "duplex"))
    yield nm.navmesh_bytes(small_navmesh())
    yield nm.navmesh_bytes(navmesh_from_polygons(small_navmesh().tiles[0].vertices, [[0, 1, 2, 3], [3, 2, 4, 5]]))


def ask(finder, rng):
    """Puts every question to a path finder; answers must be numbers, and stay near where they were asked for."""
    lower, upper = (np.clip(bound.astype(float), -1e3, 1e3) for bound in finder.bounds)
    corners = finder.triangles().reshape(-1, 3)[:8].astype(float)
    points = np.concatenate([rng.uniform(np.minimum(lower, upper), np.maximum(lower, upper), (8, 3)), corners])
    goals = points[rng.permutation(len(points))]
    snapped = finder.snap(points)
    assert snapped.shape == points.shape and finder.is_navigable(points).dtype == bool
    distance = finder.geodesic_distance(points, goals)
    assert not np.isnan(distance).any() and not np.any(distance < 0)
    finder.find_path(points[0], goals[0])
    for sliding in (True, False):
        assert np.isfinite(finder.step(points, points + rng.normal(scale=0.25, size=points.shape), sliding)).all()
    assert np.isfinite(finder.island_radius(points)).all()
    assert not np.isnan(finder.obstacle_distance(points)).any()


@pytest.mark.timeout(0 if COUNT > 1000 else 300)
def test_broken_files_are_read_or_refused():
    sources = list(files())
    rng = np.random.default_rng(1)
    read = 0
    for number, source in enumerate(sources):
        for mutant in mutants(source, COUNT // len(sources), seed=number):
            try:
                finder = PathFinder(nm.parse_navmesh(mutant))
            except UserError as error:
                assert "\n" not in str(error)
                continue
            ask(finder, rng)
            read += 1
    assert 0 < read < COUNT, "some mutants are to be read, and some refused"


def test_every_whole_file_answers():
    for source in files():
        ask(PathFinder(nm.parse_navmesh(source)), np.random.default_rng(0))


def test_counts_are_not_believed():
    """A file that tells of more than it holds is refused before room is made for it."""
    source = nm.navmesh_bytes(small_navmesh())
    header = nm.SET_HEADER.itemsize + nm.SETTINGS.itemsize + nm.TILE_LEAD.itemsize
    offsets = [header + nm.TILE_HEADER.fields[key][1] for key in nm.TILE_HEADER.names if key.endswith("_count")]
    for offset in [8, header - 4, *offsets]:
        for value in (2**31 - 1, -1, 2**30):
            broken = bytearray(source)
            broken[offset : offset + 4] = int(value).to_bytes(4, "little", signed=True)
            if offset == 8 and value == -1:
                continue  # no tile, told otherwise below
            with pytest.raises(UserError, match="not a whole"):
                nm.parse_navmesh(bytes(broken))

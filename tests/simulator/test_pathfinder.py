import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navprune.errors import UserError
from navprune.scenes.files import navmesh as nm
from navprune.scenes.files.tile import navmesh_from_polygons
from navprune.simulator.pathfinder import PathFinder

DATA = Path(__file__).parents[1] / "data"
SCENES = ["apartment", "duplex"]


def positions(values):
    rows = [[np.nan] * 3 if value is None else value for value in values]
    return np.array(rows, dtype=float)


def numbers(values, missing=np.inf):
    return np.array([missing if value is None else value for value in values], dtype=float)


class Recording:
    """A scene's path finder beside what Habitat answered."""

    def __init__(self, name):
        folder = "tower" if name == "tower" else "reference"
        path = DATA / folder / "scene_datasets" / folder / f"{name}.navmesh"
        self.finder = PathFinder(nm.read_navmesh(path))
        self.answers = json.loads((DATA / folder / "expected" / f"{name}_navigation.json").read_text())

    def column(self, question, key, convert=positions):
        return convert([entry[key] for entry in self.answers[question]])


@pytest.fixture(scope="module", params=SCENES)
def recording(request):
    return Recording(request.param)


@pytest.fixture(scope="module")
def apartment():
    return Recording("apartment").finder


# ------------------------------------------------------------------------------------------- against Habitat


def test_area_is_habitats(recording):
    assert recording.finder.navigable_area == pytest.approx(recording.answers["navigable_area"], rel=1e-6)


def test_geodesic_distances_are_habitats(recording):
    starts, ends = recording.column("geodesic", "start"), recording.column("geodesic", "end")
    expected = recording.column("geodesic", "distance", numbers)
    distance = recording.finder.geodesic_distance(starts, ends)
    assert np.array_equal(np.isfinite(distance), np.isfinite(expected))
    reached = np.isfinite(expected)
    assert np.allclose(distance[reached], expected[reached], rtol=1e-5, atol=1e-5)


def test_paths_go_through_habitats_points(recording):
    for entry in recording.answers["geodesic"]:
        path = recording.finder.find_path(entry["start"], entry["end"])
        assert np.allclose(path.points, np.reshape(entry["points"] or [], (-1, 3)), atol=1e-5)
        if entry["found"]:
            lengths = np.linalg.norm(np.diff(path.points, axis=0), axis=1)
            assert path.distance == pytest.approx(lengths.sum(), abs=1e-4)
        else:
            assert path.distance == np.inf and len(path.points) == 0


def test_snapping_is_habitats(recording):
    points, expected = recording.column("snap", "point"), recording.column("snap", "snapped")
    assert np.allclose(recording.finder.snap(points), expected, atol=1e-5, equal_nan=True)
    navigable = recording.column("snap", "navigable", np.array)
    assert np.array_equal(recording.finder.is_navigable(points), navigable)


def test_islands_and_obstacles_are_habitats(recording):
    points = recording.column("island", "point")
    radius = recording.column("island", "radius", np.array)
    assert np.allclose(recording.finder.island_radius(points), radius, atol=1e-4)
    distance = recording.column("island", "obstacle_distance", numbers)
    assert np.allclose(recording.finder.obstacle_distance(points), distance, atol=1e-5)


@pytest.mark.parametrize("sliding", [True, False])
@pytest.mark.parametrize("recording", [*SCENES, "tower"], indirect=True)
def test_steps_are_habitats(recording, sliding):
    starts, targets = recording.column("step", "start"), recording.column("step", "target")
    expected = recording.column("step", "sliding" if sliding else "no_sliding")
    assert np.allclose(recording.finder.step(starts, targets, sliding), expected, atol=1e-5)


# ------------------------------------------------------------------------------------------- laws

seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_distance_is_at_least_euclids_and_a_step_stays_on_the_mesh(apartment, seed):
    rng = np.random.default_rng(seed)
    starts, ends = apartment.sample(64, rng), apartment.sample(64, rng)
    distance = apartment.geodesic_distance(starts, ends)
    assert np.all(distance >= np.linalg.norm(ends - starts, axis=1) - 1e-4)
    assert np.allclose(apartment.geodesic_distance(starts, starts), 0)
    moved = starts + rng.normal(scale=0.25, size=starts.shape) * (1, 0, 1)
    for sliding in (True, False):
        reached = apartment.step(starts, moved, sliding)
        assert np.all(apartment.is_navigable(reached))
        assert np.all(np.isfinite(apartment.geodesic_distance(starts, reached)))
        left = np.linalg.norm((moved - reached)[:, [0, 2]], axis=1)
        assert np.all(left <= np.linalg.norm(moved - starts, axis=1) + 1e-3)


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_snapping_again_changes_nothing_and_a_batch_is_its_parts(apartment, seed):
    rng = np.random.default_rng(seed)
    points = rng.uniform(-1, 1, (32, 3)) * (8, 2, 6) + (6, 0.5, -4.5)
    snapped = apartment.snap(points)
    on = ~np.isnan(snapped[:, 0])
    assert np.allclose(apartment.snap(snapped[on]), snapped[on], atol=1e-5)
    assert np.all(apartment.is_navigable(snapped[on]))
    singles = np.concatenate([apartment.snap(point[None]) for point in points])
    assert np.array_equal(snapped, singles, equal_nan=True)
    goals = points[rng.permutation(32)]
    distance = apartment.geodesic_distance(points, goals)
    assert [apartment.find_path(a, b).distance for a, b in zip(points, goals)] == distance.tolist()


def test_samples_spread_by_area(apartment):
    points = apartment.sample(20_000, np.random.default_rng(0))
    assert np.all(apartment.is_navigable(points))
    triangles = apartment.triangles().astype(float)
    areas = np.linalg.norm(np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]), axis=1) / 2
    assert areas.sum() == pytest.approx(apartment.navigable_area)
    centre = np.average(triangles.mean(axis=1), axis=0, weights=areas)
    assert np.allclose(points.mean(axis=0), centre, atol=0.1)
    again = apartment.sample(20_000, np.random.default_rng(0))
    assert np.array_equal(points, again)


def test_off_the_mesh_there_is_no_answer(apartment):
    inside = apartment.sample(1, np.random.default_rng(0))[0]
    for place in ([100.0, 0.0, 100.0], [np.nan] * 3, [np.inf, 0.0, 0.0], [1e30, -1e30, 0.0]):
        outside = np.array(place)
        assert np.isnan(apartment.snap(outside[None])).all()
        assert not apartment.is_navigable(outside[None])[0]
        assert apartment.geodesic_distance(inside[None], outside[None])[0] == np.inf
        assert apartment.find_path(outside, inside).distance == np.inf
        assert apartment.island_radius(outside[None])[0] == 0
        assert apartment.obstacle_distance(outside[None])[0] == np.inf
        assert np.allclose(apartment.step(inside[None], outside[None]), inside)
        assert np.array_equal(apartment.step(outside[None], inside[None])[0], np.float32(outside), equal_nan=True)
    assert apartment.snap(np.zeros((0, 3))).shape == (0, 3)


def test_wrong_shapes_are_refused(apartment):
    with pytest.raises(ValueError, match=r"\[N, 3\]"):
        apartment.snap(np.zeros((3, 2)))
    for question in (apartment.geodesic_distance, apartment.step):
        with pytest.raises(ValueError, match="as many ends"):
            question(np.zeros((3, 3)), np.zeros((2, 3)))


def test_a_mesh_closed_throughout_has_no_place():
    navmesh = navmesh_from_polygons(*floor(2, 2))
    navmesh.tiles[0].polygons["flags"] = 0
    finder = PathFinder(navmesh)
    assert np.isnan(finder.snap([[0.5, 0, 0.5]])).all() and finder.triangles().shape == (0, 3, 3)
    with pytest.raises(UserError, match="no navigable area"):
        finder.sample(1, np.random.default_rng(0))


def test_threads_share_a_path_finder(apartment):
    rng = np.random.default_rng(0)
    starts, ends = apartment.sample(400, rng), apartment.sample(400, rng)
    expected = apartment.geodesic_distance(starts, ends)
    with ThreadPoolExecutor(4) as pool:
        for distance in pool.map(lambda _: apartment.geodesic_distance(starts, ends), range(32)):
            assert np.array_equal(distance, expected)


# ------------------------------------------------------------------------------------------- small meshes


def floor(columns, rows, height=0.0, x=0.0):
    """A floor of unit squares; each is one polygon."""
    grid_x, grid_z = np.meshgrid(np.arange(columns + 1.0), np.arange(rows + 1.0))
    vertices = np.stack([grid_x.ravel() + x, np.full(grid_x.size, height), grid_z.ravel()], axis=1)
    width = columns + 1
    polygons = [
        [j * width + i, (j + 1) * width + i, (j + 1) * width + i + 1, j * width + i + 1]
        for j in range(rows)
        for i in range(columns)
    ]
    return vertices, polygons


def test_one_polygon_is_a_whole_world():
    finder = PathFinder(navmesh_from_polygons(*floor(1, 1)))
    assert finder.navigable_area == pytest.approx(1)
    assert finder.geodesic_distance([[0.1, 0, 0.1]], [[0.9, 0, 0.9]])[0] == pytest.approx(0.8 * 2**0.5)
    assert np.allclose(finder.step([[0.5, 0, 0.5]], [[1.5, 0, 0.7]]), [[1, 0, 0.7]], atol=1e-6)
    assert np.allclose(finder.step([[0.5, 0, 0.5]], [[1.5, 0, 0.7]], sliding=False), [[1, 0, 0.6]], atol=1e-6)
    assert finder.obstacle_distance([[0.3, 0, 0.5]])[0] == pytest.approx(0.3)
    assert finder.island_radius([[0.3, 0, 0.5]])[0] == pytest.approx(0.5**0.5)


def test_floors_one_above_the_other_are_islands_of_their_own():
    below, polygons = floor(4, 2)
    above, more = floor(4, 2, height=3.0)
    both = [[corner + len(below) for corner in polygon] for polygon in more]
    finder = PathFinder(navmesh_from_polygons(np.concatenate([below, above]), polygons + both))
    points = np.array([[0.5, 0.1, 0.5], [3.5, 2.9, 1.5], [3.5, 0.1, 1.5]])
    assert np.allclose(finder.snap(points)[:, 1], [0, 3, 0])
    distance = finder.geodesic_distance(points[[0, 0, 1]], points[[1, 2, 2]])
    assert np.isinf(distance[[0, 2]]).all() and distance[1] == pytest.approx(10**0.5, abs=0.01)


def test_a_corridor_of_more_polygons_than_habitat_takes_is_no_way():
    finder = PathFinder(navmesh_from_polygons(*floor(300, 1)))
    ends = np.array([[256.5, 0, 0.5], [255.5, 0, 0.5]])
    assert finder.geodesic_distance([[0.5, 0, 0.5]] * 2, ends).tolist() == [np.inf, 255.0]

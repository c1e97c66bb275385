"""The path finder against Detour itself, on meshes of every kind; see tests/data/detour/README.md."""

from pathlib import Path

import numpy as np
import pytest

from navprune.scenes.files import navmesh as nm
from navprune.simulator.pathfinder import PathFinder

RECORDED = Path(__file__).parents[1] / "data/detour"
NAMES = ["terrain", "tiles", "no_trees", "layers", "maze", "corridor", "crowded"]


@pytest.fixture(scope="module", params=NAMES)
def detour(request):
    with np.load(RECORDED / f"{request.param}.npz") as arrays:
        answers = {key: arrays[key] for key in arrays.files}
    return PathFinder(nm.parse_navmesh(answers["navmesh"].tobytes())), answers


def test_the_nearest_point_its_island_and_its_walls_are_detours(detour):
    finder, answers = detour
    points = answers["start"]
    assert np.allclose(finder.snap(points), answers["snapped"], atol=1e-5, equal_nan=True)
    assert np.allclose(finder.island_radius(points), answers["island_radius"], atol=1e-4)
    assert np.allclose(finder.obstacle_distance(points), answers["obstacle_distance"], atol=1e-5)


def test_ways_are_detours(detour):
    finder, answers = detour
    distance = finder.geodesic_distance(answers["start"], answers["end"])
    assert 0 < np.isfinite(distance).mean()
    assert np.allclose(distance, answers["distance"], rtol=1e-5, atol=1e-5)


def test_steps_are_detours(detour):
    finder, answers = detour
    reached = finder.step(answers["start"], answers["target"])
    assert np.allclose(reached, answers["reached"], atol=1e-5)

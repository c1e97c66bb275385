"""The navmesh builder against the navmeshes that habitat-sim built for the reference scenes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from navprune.errors import UserError
from navprune.scenes.files.navmesh import TILE_HEADER, NavMeshSettings, read_navmesh
from navprune.scenes.recast.build import build_for
from navprune.simulator.pathfinder import PathFinder

DATA = Path(__file__).parents[2] / "data/reference"
SCENES = ["apartment", "duplex"]


@pytest.fixture(scope="module", params=SCENES)
def pair(request, tmp_path_factory):
    """The name of a scene, its built and its recorded navmesh, and what the builder says of it."""
    folder = tmp_path_factory.mktemp(request.param)
    shutil.copy(DATA / f"scene_datasets/reference/{request.param}.glb", folder)
    summary = build_for(folder / f"{request.param}.glb")
    recorded = read_navmesh(DATA / f"scene_datasets/reference/{request.param}.navmesh")
    return request.param, read_navmesh(folder / f"{request.param}.navmesh"), recorded, summary


def expected(name):
    return json.loads((DATA / f"expected/{name}_navigation.json").read_text())


def test_the_file_is_habitats_but_for_the_links_that_loading_makes(pair):
    _, built, recorded, _ = pair
    assert built.settings == recorded.settings
    assert (built.origin, built.tile_width, built.tile_height) == (
        recorded.origin,
        recorded.tile_width,
        recorded.tile_height,
    )
    assert (built.max_tiles, built.max_polygons) == (recorded.max_tiles, recorded.max_polygons)
    ours, theirs = built.tiles[0], recorded.tiles[0]
    assert ours.reference == theirs.reference
    for key in TILE_HEADER.names:
        assert np.array_equal(ours.header[key], theirs.header[key]), key
    for key in ("corner_count", "corners", "neighbours", "flags", "area_and_type"):
        assert np.array_equal(ours.polygons[key], theirs.polygons[key]), key
    for section in ("vertices", "details", "detail_vertices", "detail_triangles", "bv_nodes"):
        assert np.array_equal(getattr(ours, section), getattr(theirs, section)), section


def test_the_area_is_within_two_percent(pair):
    name, built, _, summary = pair
    area = expected(name)["navigable_area"]
    assert PathFinder(built).navigable_area == pytest.approx(area, rel=0.02)
    assert summary["area"] == pytest.approx(area, rel=0.02)
    assert summary["polygons"] == len(built.tiles[0].polygons)
    assert summary["islands"] == 4


def test_both_say_the_same_of_points_away_from_the_border(pair):
    _, built, recorded, _ = pair
    rng = np.random.default_rng(0)
    lower, upper = recorded.bounds
    ours, theirs = PathFinder(built), PathFinder(recorded)
    on_floor = theirs.sample(4000, rng) + rng.normal(0, [0.3, 0.05, 0.3], (4000, 3))
    points = np.concatenate([rng.uniform(lower, upper, (4000, 3)), on_floor])
    sides = np.array([[dx, 0, dz] for dx in (-0.05, 0, 0.05) for dz in (-0.05, 0, 0.05)])
    around = theirs.is_navigable((points[:, None] + sides).reshape(-1, 3)).reshape(-1, 9)
    clear = around.all(axis=1) | ~around.any(axis=1)
    assert around.all(axis=1).sum() > 1000
    assert np.mean(ours.is_navigable(points[clear]) == theirs.is_navigable(points[clear])) >= 0.99


def test_recorded_answers_about_points_hold(pair):
    name, built, _, _ = pair
    rows = expected(name)["snap"]
    points = np.array([row["point"] for row in rows], float)
    snapped = np.array([row["snapped"] for row in rows], float)
    pathfinder = PathFinder(built)
    near = np.isclose(pathfinder.snap(points), snapped, atol=1e-3, equal_nan=True).all(axis=1)
    assert near.mean() >= 0.99
    assert np.mean(pathfinder.is_navigable(points) == [row["navigable"] for row in rows]) >= 0.99


def test_other_settings_make_another_mesh(tmp_path):
    scene = DATA / "scene_datasets/reference/apartment.glb"
    wide = build_for(scene, tmp_path / "wide.navmesh", NavMeshSettings(agent_radius=0.3))
    assert wide["path"] == str(tmp_path / "wide.navmesh")
    assert wide["area"] < 0.9 * expected("apartment")["navigable_area"]
    assert read_navmesh(wide["path"]).settings.agent_radius == pytest.approx(0.3)


def test_nothing_is_overwritten_unless_asked(tmp_path):
    scene = tmp_path / "apartment.glb"
    shutil.copy(DATA / "scene_datasets/reference/apartment.glb", scene)
    scene.with_suffix(".navmesh").write_bytes(b"precious")
    with pytest.raises(UserError, match="exists already"):
        build_for(scene)
    assert scene.with_suffix(".navmesh").read_bytes() == b"precious"
    build_for(scene, overwrite=True)
    assert read_navmesh(scene.with_suffix(".navmesh")).tiles
    assert sorted(path.name for path in tmp_path.iterdir()) == ["apartment.glb", "apartment.navmesh"]


def test_a_failed_build_leaves_no_file_and_names_the_scene(tmp_path):
    scene = tmp_path / "apartment.glb"
    shutil.copy(DATA / "scene_datasets/reference/apartment.glb", scene)
    with pytest.raises(UserError, match=r"apartment\.glb: no floor"):
        build_for(scene, settings=NavMeshSettings(agent_height=50.0))
    with pytest.raises(UserError, match="cannot write "):
        build_for(scene, out=scene / "inside" / "a.navmesh")
    assert [path.name for path in tmp_path.iterdir()] == ["apartment.glb"]

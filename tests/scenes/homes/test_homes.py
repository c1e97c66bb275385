import hashlib
import json
import struct

import numpy as np
import pytest
from cameras import depth_of

from navprune.scenes.files.mesh import load_glb
from navprune.scenes.files.navmesh import read_navmesh
from navprune.scenes.homes.build import home_glb, write_home
from navprune.scenes.homes.floorplan import draw_plan
from navprune.simulator.asset import load_asset
from navprune.simulator.pathfinder import PathFinder


@pytest.fixture(scope="module")
def plan():
    return draw_plan(np.random.default_rng(11), (40, 50))


@pytest.fixture(scope="module")
def path(plan, tmp_path_factory):
    path = tmp_path_factory.mktemp("homes") / "home.glb"
    write_home(path, plan)
    return path


def test_the_file_is_unlit_gltf_with_images_and_the_stated_triangles(plan, path):
    data, triangles = home_glb(plan)
    assert data == path.read_bytes()
    tree = json.loads(data[20 : 20 + struct.unpack("<I", data[12:16])[0]])
    assert all("KHR_materials_unlit" in material["extensions"] for material in tree["materials"])
    assert tree["images"]
    mesh = load_glb(path)
    assert len(mesh.vertices) == triangles >= 20_000
    assert np.isin(mesh.texture, range(len(mesh.textures))).any()
    assert len(np.unique(mesh.colours.reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize("seed", [100, 101, 102])
def test_even_small_homes_have_twenty_thousand_triangles(seed):
    assert home_glb(draw_plan(np.random.default_rng(seed), (40, 44)))[1] >= 20_000


def test_the_home_lies_in_habitats_frame(plan, path):
    corners = load_glb(path).vertices.reshape(-1, 3)
    x0, y0, x1, y1 = plan.floor.bounds
    np.testing.assert_allclose(corners.min(axis=0), (x0, 0.0, -y1), atol=1e-5)
    np.testing.assert_allclose(corners.max(axis=0), (x1, plan.ceiling, -y0), atol=1e-5)


def test_views_have_no_holes_and_fit_the_plan(plan, path):
    """Wherever an agent looks it sees a front face, and the floor below is where the navmesh says."""
    pathfinder = PathFinder(read_navmesh(path.with_suffix(".navmesh")))
    rng = np.random.default_rng(0)
    feet = pathfinder.sample(24, rng)
    yaw = rng.uniform(0, 2 * np.pi, len(feet))
    rotations = np.column_stack([0 * yaw, np.sin(yaw / 2), 0 * yaw, np.cos(yaw / 2)])
    asset = load_asset(path)
    with_camera = feet + np.array([0, 1.25, 0])
    depth = depth_of(asset, with_camera, rotations, 96, 96)
    assert (depth > 0.0).all()
    diagonal = float(np.hypot(plan.floor.bounds[2], plan.floor.bounds[3]))
    assert depth.max() < diagonal
    down = np.tile([-np.sin(np.pi / 4), 0, 0, np.cos(np.pi / 4)], (len(feet), 1))
    low = depth_of(asset, with_camera, down, 96, 96, hfov=10.0)[:, 48, 48]
    assert (low >= 1.25 - 0.2 - 1e-3).all() and (low <= 1.25 + 1e-3).all()  # floor, or what can be stepped on


def test_the_same_plan_gives_the_same_bytes(plan, path):
    again = draw_plan(np.random.default_rng(11), (40, 50))
    assert hashlib.sha256(home_glb(again)[0]).digest() == hashlib.sha256(path.read_bytes()).digest()

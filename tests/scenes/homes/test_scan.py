import hashlib
import json
import struct

import numpy as np
import pytest
from cameras import BOTH, photograph

from navprune.commands.doctor import examine
from navprune.errors import UserError
from navprune.scenes.files.episodes import check_episodes, read_episodes
from navprune.scenes.files.mesh import load_glb
from navprune.scenes.files.navmesh import read_navmesh
from navprune.scenes.homes import scan as scans
from navprune.scenes.homes.atlas import SIDES
from navprune.scenes.homes.build import write_home
from navprune.scenes.homes.cutting import Mesh, edges_of
from navprune.scenes.homes.dataset import generate_dataset
from navprune.scenes.homes.floorplan import draw_plan
from navprune.scenes.homes.scan import FLAKE, FLAKE_SHIFT, SPARSEST, _flakes
from navprune.simulator.asset import RenderAsset
from navprune.simulator.pathfinder import PathFinder

AREA = (40.0, 45.0)
RECIPE = dict(
    train=1, val=1, seed=5, area=AREA, episodes_per_scene=20, val_episodes_per_scene=5, style="scan", density=SPARSEST
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("scans")
    return out, generate_dataset(out, **RECIPE, workers=1)


@pytest.fixture(scope="module")
def scan(made):
    return made[0] / "scene_datasets" / "scans" / "train_0000.glb"


@pytest.fixture(scope="module")
def plan():
    return draw_plan(np.random.default_rng([5, 0, 0, 0]), AREA)  # the one of train_0000


@pytest.fixture(scope="module")
def plain(plan, tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "home.glb"
    write_home(path, plan)
    return path


@pytest.fixture(scope="module")
def meshes(plain, scan):
    return load_glb(plain), load_glb(scan)


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def header(path):
    data = path.read_bytes()
    return json.loads(data[20 : 20 + struct.unpack("<I", data[12:16])[0]])


def pathfinder(path):
    return PathFinder(read_navmesh(path.with_suffix(".navmesh")))


def area(triangles):
    sides = np.diff(triangles, axis=1)
    return np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1) / 2


# ---- the data set


def test_the_same_seed_gives_the_same_bytes_in_parallel_too(made, tmp_path):
    out, statistics = made
    assert generate_dataset(tmp_path, **RECIPE, workers=2) == statistics
    assert digests(tmp_path) == digests(out)


def test_statistics_say_how_dense_the_scans_are_and_doctor_passes_them(made, scan):
    out, statistics = made
    told = json.loads((out / "datasets" / "pointnav" / "scans" / "v1" / "statistics.json").read_text())
    assert told["density"] == statistics.density == SPARSEST and told["name"] == "scans"
    assert statistics.splits["train"].triangles.mean == len(load_glb(scan).vertices)
    assert statistics.splits["train"].navigable_area.mean == pathfinder(scan).navigable_area
    findings = [finding for finding in examine(out) if finding.name.startswith("scans")]
    assert len(findings) == 2 and all(finding.ok for finding in findings)


def test_episodes_run_on_the_scans_own_navmesh(made, scan):
    episodes = read_episodes(made[0], "scans", "train")
    assert len(episodes) == 20
    check_episodes(list(episodes), pathfinder(scan))


@pytest.mark.parametrize("change", [{"style": "sketch"}, {"density": SPARSEST - 1}, {"density": 10**6}])
def test_impossible_arguments_are_refused(tmp_path, change):
    with pytest.raises(UserError, match=r"there is no style sketch|is not within"):
        generate_dataset(tmp_path, **(RECIPE | change))
    assert not list(tmp_path.iterdir())


# ---- the mesh


def test_the_file_is_unlit_gltf_of_several_primitives_with_shared_vertices(scan):
    tree = header(scan)
    assert tree["extensionsUsed"] == ["KHR_materials_unlit"]
    assert all("KHR_materials_unlit" in material["extensions"] for material in tree["materials"])
    primitives = [primitive for mesh in tree["meshes"] for primitive in mesh["primitives"]]
    assert len(primitives) == len(tree["images"]) > 1
    assert {image["mimeType"] for image in tree["images"]} == {"image/jpeg", "image/png"}
    for primitive in primitives:
        indices = tree["accessors"][primitive["indices"]]
        corners = tree["accessors"][primitive["attributes"]["POSITION"]]
        assert indices["componentType"] == 5125
        assert corners["count"] < 0.9 * indices["count"]


def test_triangles_are_as_many_as_asked_small_and_uneven(plan, meshes):
    _, scan = meshes
    assert 0.9 * SPARSEST < len(scan.vertices) / plan.area < 1.1 * SPARSEST
    longest = np.linalg.norm(scan.vertices - np.roll(scan.vertices, 1, axis=1), axis=2).max(axis=1)
    typical = np.sqrt(area(scan.vertices).sum() / len(scan.vertices))
    assert longest.max() < 12 * typical
    assert longest.std() > 0.3 * longest.mean()


def distances(points, triangles):
    """Of points [N, 3] to the nearest of triangles [T, 3, 3] (Ericson 2005, 5.1.5, by clamping to edges)."""
    a, edge1, edge2 = triangles[:, 0], triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    normals = np.cross(edge1, edge2)
    squares = np.maximum((normals**2).sum(axis=1), 1e-20)
    nearest = []
    for point in points:
        to = point - a
        v = np.einsum("tk,tk->t", np.cross(to, edge2), normals) / squares
        w = np.einsum("tk,tk->t", np.cross(edge1, to), normals) / squares
        inside = (v >= 0) & (w >= 0) & (v + w <= 1)
        flat = np.where(inside, np.abs(np.einsum("tk,tk->t", to, normals)) / np.sqrt(squares), np.inf)
        for k in range(3):
            start, along = triangles[:, k], triangles[:, (k + 1) % 3] - triangles[:, k]
            share = np.einsum("tk,tk->t", point - start, along) / np.maximum((along**2).sum(axis=1), 1e-20)
            flat = np.minimum(flat, np.linalg.norm(point - start - np.clip(share, 0, 1)[:, None] * along, axis=1))
        nearest.append(flat.min())
    return np.array(nearest)


def test_vertices_are_near_the_plain_surface_and_flakes_not_far(meshes):
    plain, scan = meshes
    moved = scans.ROUND + np.sqrt(3) * (scans.DRIFT + scans.RIPPLE + scans.GRAIN)
    corners = np.random.default_rng(0).choice(scan.vertices.reshape(-1, 3), 150).astype(float)
    off = distances(corners, plain.vertices.astype(float))
    longest = np.linalg.norm(scan.vertices - np.roll(scan.vertices, 1, axis=1), axis=2).max()
    assert (off <= moved).mean() > 0.96
    assert off.max() <= FLAKE_SHIFT[1] + FLAKE + longest + moved
    assert np.median(off) > 0.002


def test_coincident_corners_move_alike_and_surfaces_stay_closed(meshes):
    """But for the rims of holes, of what was not seen and of walls that end at others, each edge has two faces."""
    scan = Mesh.of(meshes[1].vertices.astype(float))
    _, sides = edges_of(scan.faces, len(scan.vertices))
    assert (np.bincount(sides.ravel()) == 1).mean() < 0.12
    assert len(scan.vertices) < 0.65 * len(scan.faces)


def test_walls_have_holes_and_the_floor_has_none_where_one_walks(plan, plain, scan, meshes):
    def share(direction, height, mesh):
        """Area of faces that look up (1) or down (-1) about that height, against the rooms'."""
        sides = np.diff(mesh.vertices.astype(float), axis=1)
        normals = np.cross(sides[:, 0], sides[:, 1]) / 2
        there = (np.abs(mesh.vertices[:, :, 1].mean(axis=1) - height) < 0.04) & (normals[:, 1] * direction > 0)
        return np.abs(normals[there, 1]).sum() / plan.area

    before, after = meshes
    assert 0.85 < share(-1, plan.ceiling, after) / share(-1, plan.ceiling, before) < 0.998
    ours, theirs = pathfinder(scan), pathfinder(plain)
    assert ours.navigable_area == pytest.approx(theirs.navigable_area, rel=0.15)
    points = theirs.sample(2000, np.random.default_rng(0))
    assert ours.is_navigable(points).mean() > 0.95
    assert 0.6 < area(after.vertices).sum() / area(before.vertices).sum() < 0.99


def test_flakes_are_pieces_of_the_surface_that_float_in_front_of_it():
    x, y = np.meshgrid(np.arange(60), np.arange(60))
    positions = np.column_stack([x.ravel(), y.ravel(), 0 * x.ravel()]) * 0.02
    first = (x[:-1, :-1] + 60 * y[:-1, :-1]).ravel()
    faces = np.concatenate([first[:, None] + [0, 1, 60], first[:, None] + [1, 61, 60]])
    solid = positions[faces, 0].max(axis=1) < 0.8
    loose = _flakes(positions, faces, solid, 20, np.random.default_rng(0))
    np.testing.assert_array_equal(loose.corners[loose.faces], faces[loose.origin])
    assert solid[loose.origin].all() and len(loose.faces) > 20
    heights = loose.positions[loose.faces, 2].mean(axis=1)
    assert (heights > 0).all() and heights.max() < FLAKE_SHIFT[1] + FLAKE
    np.testing.assert_allclose(area(loose.positions[loose.faces]), area(positions[faces[loose.origin]]), rtol=0.8)


# ---- what is seen


def test_images_are_of_the_stated_sizes_and_corners_lie_in_them(meshes):
    _, scan = meshes
    assert all(side in SIDES for image in scan.textures for side in image.shape[:2])
    assert (scan.texture >= 0).all() and (scan.uv >= 0).all() and (scan.uv <= 1).all()


def test_depth_and_colours_are_nearly_those_of_the_plain_home(plain, meshes):
    count, size = 24, 96
    rng = np.random.default_rng(0)
    eyes = pathfinder(plain).sample(count, rng) + np.array([0, 1.25, 0])
    yaw = rng.uniform(0, 2 * np.pi, count)
    rotations = np.column_stack([0 * yaw, np.sin(yaw / 2), 0 * yaw, np.cos(yaw / 2)])
    drawn = [photograph(RenderAsset(mesh), eyes, rotations, size, size, sensors=BOTH) for mesh in meshes]
    depth, rgb = [images["depth"][..., 0] for images in drawn], [images["rgb"] for images in drawn]
    off = np.abs(depth[0] - depth[1])
    assert (off < 0.05).mean() > 0.85
    assert (depth[1] == 0).mean() < 0.03
    difference = np.abs(rgb[0].astype(int) - rgb[1])[off < 0.05]
    assert np.median(difference) < 20 and (difference < 60).mean() > 0.9

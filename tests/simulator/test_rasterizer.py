from pathlib import Path

import numpy as np
import pytest
import torch
from cameras import BOTH, DEPTH, depth_of, photograph
from hypothesis import given, settings
from hypothesis import strategies as st

from navprune.scenes.files.mesh import SceneMesh, load_glb
from navprune.simulator.asset import RenderAsset
from navprune.simulator.bvh import build_tree
from navprune.simulator.drawing import NEAR
from navprune.simulator.rasterizer import Rasterizer
from navprune.simulator.renderer import Camera

REFERENCE = Path(__file__).parents[1] / "data/reference"
LEVEL = np.array([0.0, 0.0, 0.0, 1.0])


@pytest.fixture(scope="module", params=["apartment", "duplex"])
def recorded(request):
    """A scene, its recorded images and the cameras that took them."""
    asset = RenderAsset(load_glb(REFERENCE / f"scene_datasets/reference/{request.param}.glb"))
    with np.load(REFERENCE / f"expected/{request.param}_images.npz") as images:
        eyes = images["position"] + np.array([0.0, 1.25, 0.0])
        return asset, eyes, images["rotation_xyzw"], images["depth_m"], images["rgb"]


def draw(asset, eyes, rotations, width=128, height=128, *, colour=False, **options):
    """Depth, or depth and colour, of cameras in one scene."""
    seen = photograph(asset, eyes, rotations, width, height, sensors=BOTH if colour else DEPTH, **options)
    return (seen["depth"][..., 0], seen["rgb"]) if colour else seen["depth"][..., 0]


def cast(vertices, eye, rotation, width, height, hfov):
    """Depth by testing every pixel's ray against every triangle, and how clear of any edge the ray is.

    Moeller and Trumbore, "Fast, minimum storage ray-triangle intersection", 1997; fronts only.
    """
    x, y, z, w = rotation / np.linalg.norm(rotation)
    to_world = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    focal = 0.5 * width / np.tan(np.radians(hfov) / 2)
    column, row = np.meshgrid(np.arange(width) + 0.5 - width / 2, np.arange(height) + 0.5 - height / 2)
    rays = np.stack([column / focal, -row / focal, -np.ones_like(row)], axis=-1) @ to_world.T
    rays = rays[:, :, None]  # [H, W, 1, 3], of depth 1
    corners = vertices.astype(np.float64)
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    p = np.cross(rays, second)
    determinant = (p * first).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        u = (p * (eye - corners[:, 0])).sum(-1) / determinant
        q = np.cross(eye - corners[:, 0], first)
        v = (rays * q).sum(-1) / determinant
        depth = (q * second).sum(-1) / determinant
        clearance = np.abs(np.stack([u, v, 1 - u - v])).min(0)
    hit = (determinant > 0) & (u >= 0) & (v >= 0) & (u + v <= 1) & (depth >= NEAR)
    nearest = np.where(hit, depth, np.inf).min(-1)
    in_front = np.nan_to_num(clearance, nan=0.0).min(-1)
    return np.where(np.isfinite(nearest), nearest, 0.0), in_front


def soup(rng, count, size):
    """Random triangles around the origin."""
    return (rng.uniform(-3, 3, (count, 1, 3)) + rng.normal(0, size, (count, 3, 3))).astype(np.float32)


def test_depth_is_habitats(recorded):
    asset, eyes, rotations, expected, _ = recorded
    error = np.abs(draw(asset, eyes, rotations) - expected)
    assert (error < 0.002).mean() >= 0.999


def test_colour_is_habitats(recorded):
    asset, eyes, rotations, _, expected = recorded
    count = len(expected)
    drawn_depth, rgb = draw(asset, eyes[:count], rotations[:count], colour=True)
    error = np.abs(rgb.astype(int) - expected).max(axis=-1)
    assert (error <= 2).mean() >= 0.99
    np.testing.assert_array_equal(drawn_depth, draw(asset, eyes[:count], rotations[:count]))


@pytest.mark.parametrize("colour", [False, True])
def test_threads_and_batches_change_nothing(recorded, colour):
    asset, eyes, rotations, _, _ = recorded
    together = draw(asset, eyes, rotations, colour=colour, threads=1)
    threaded = draw(asset, eyes, rotations, colour=colour, threads=3)
    single = [draw(asset, eyes[i : i + 1], rotations[i : i + 1], colour=colour) for i in range(len(eyes))]
    if not colour:
        together, threaded, single = [together], [threaded], [(depth,) for depth in single]
    for k, whole in enumerate(together):
        np.testing.assert_array_equal(whole, threaded[k])
        np.testing.assert_array_equal(whole, np.concatenate([parts[k] for parts in single]))


def test_each_camera_sees_its_own_scene():
    walls = [
        RenderAsset(SceneMesh.from_vertices(np.array([[[-99, -99, -z], [99, -99, -z], [0, 99, -z]]])))
        for z in (2, 5, 3)
    ]
    depth = depth_of(walls, np.zeros((3, 3)), np.tile(LEVEL, (3, 1)), 4, 4)
    np.testing.assert_allclose(depth, np.broadcast_to([[[2]], [[5]], [[3]]], (3, 4, 4)), rtol=1e-6)


@pytest.mark.parametrize("least", [0.0, 0.5, 3.99])
def test_depth_is_clipped_and_scaled_as_habitats_sensor_does(recorded, least):
    asset, eyes, rotations, _, _ = recorded
    metres = draw(asset, eyes, rotations)
    assert metres.max() > 4.0 and metres.min() < max(least, 1.0)
    scaled = draw(asset, eyes, rotations, min_depth=least, max_depth=4.0)
    np.testing.assert_allclose(scaled, (np.clip(metres, least, 4.0) - least) / (4.0 - least), rtol=1e-6, atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 150),
    size=st.sampled_from([0.05, 0.5, 3.0]),  # large ones surround the eye, so they cross the near plane
    width=st.sampled_from([1, 7, 16, 24]),
    height=st.sampled_from([1, 9, 16]),
    hfov=st.sampled_from([40.0, 90.0, 130.0]),
)
def test_agrees_with_casting_a_ray_for_each_pixel(seed, count, size, width, height, hfov):
    rng = np.random.default_rng(seed)
    vertices = soup(rng, count, size)
    eye, rotation = rng.uniform(-1, 1, 3), rng.normal(size=4)
    expected, clearance = cast(vertices, eye, rotation, width, height, hfov)
    depth = draw(
        RenderAsset(SceneMesh.from_vertices(vertices)), eye[None], rotation[None], width, height, hfov=hfov, threads=1
    )[0]
    # On an edge, and where a triangle is cut by the near plane, rounding may decide either way.
    clear = (clearance > 1e-6) & ~((depth > 0) & (depth < NEAR * 1.001))
    np.testing.assert_allclose(depth[clear], expected[clear], rtol=1e-4)


def test_a_floor_that_runs_under_the_camera_is_whole():
    floor = np.array([[[-50, 0, 50], [50, 0, 50], [50, 0, -50]], [[-50, 0, 50], [50, 0, -50], [-50, 0, -50]]])
    size = 64
    depth = draw(RenderAsset(SceneMesh.from_vertices(floor)), np.array([[0.0, 1.25, 0.0]]), LEVEL[None], size, size)[0]
    rows = np.arange(size) + 0.5 - size / 2
    with np.errstate(divide="ignore"):
        along = np.where(rows > 0, 1.25 * (size / 2) / rows, 0.0)
    along[along > 50] = 0
    np.testing.assert_allclose(depth, np.tile(along[:, None], (1, size)), rtol=1e-5)


def test_nothing_nearer_than_the_near_plane_is_drawn():
    # A wall that runs past the eye's right side, from behind it to far ahead.
    wall = np.array([[[0.005, -9, 9], [0.005, 9, 9], [0.005, 0, -90]]])
    depth = draw(RenderAsset(SceneMesh.from_vertices(wall[:, ::-1])), np.zeros((1, 3)), LEVEL[None], 64, 64)[0]
    depth = np.maximum(
        depth, draw(RenderAsset(SceneMesh.from_vertices(wall)), np.zeros((1, 3)), LEVEL[None], 64, 64)[0]
    )
    # Drawn from either side, for only one is the front; from half way right it is nearer than the near plane.
    columns = (np.arange(64) + 0.5 - 32) / 32
    expected = np.where((columns > 0) & (0.005 / columns >= NEAR), 0.005 / columns, 0.0)
    np.testing.assert_allclose(depth[32], expected, rtol=1e-4)
    assert 0 < (expected > 0).sum() < 32


def test_back_faces_are_not_drawn():
    front = np.array([[[-9, -9, -2], [9, -9, -2], [0, 9, -2]]])
    eye = np.zeros((1, 3))
    assert draw(RenderAsset(SceneMesh.from_vertices(front)), eye, LEVEL[None], 8, 8).min() > 0
    assert draw(RenderAsset(SceneMesh.from_vertices(front[:, ::-1])), eye, LEVEL[None], 8, 8).max() == 0


def test_neighbouring_triangles_leave_no_gap():
    # A fan around a point of the image, subdivided: every pixel has to be covered though many lie near edges.
    rng = np.random.default_rng(3)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 500))
    rim = np.stack([20 * np.cos(angles), 20 * np.sin(angles), np.full(500, -2.0)], axis=1)
    fan = np.stack([np.broadcast_to([0.1, 0.2, -2.0], rim.shape), rim, np.roll(rim, -1, axis=0)], axis=1)
    depth = draw(RenderAsset(SceneMesh.from_vertices(fan)), np.zeros((1, 3)), LEVEL[None])
    np.testing.assert_allclose(depth, 2.0, rtol=1e-5)


def test_colours_are_interpolated_in_the_world_not_in_the_image():
    # A floor whose red grows with the distance: a gradient linear in the image would be off by far.
    near, far = 1.0, 9.0
    corners = np.array([[-50, 0, -near], [50, 0, -near], [50, 0, -far], [-50, 0, -far]], dtype=float)
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    red = np.array([0, 0, 240, 240])
    colours = np.zeros((2, 3, 3), np.uint8)
    colours[..., 0] = red[faces]
    plain = SceneMesh.from_vertices(corners[faces])
    mesh = SceneMesh(plain.vertices, colours, plain.uv, plain.texture)
    depth, rgb = draw(RenderAsset(mesh), np.array([[0.0, 1.0, 0.0]]), LEVEL[None], colour=True)
    shown = depth[0] > 0
    expected = 240 * (depth[0] - near) / (far - near)
    assert np.abs(rgb[0, ..., 0][shown] - expected[shown]).max() <= 0.51
    assert (rgb[0][~shown] == 0).all()


def test_textures_are_upright_and_blur_with_distance():
    texture = np.zeros((64, 64, 4), np.uint8)
    texture[::2, ::2] = texture[1::2, 1::2] = 255  # a checkerboard
    texture[:32, :, 0] = 200  # whose upper half is red
    corners = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], dtype=float)
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    uv = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)
    plain = SceneMesh.from_vertices(corners[faces])
    mesh = SceneMesh(plain.vertices, plain.colours, uv[faces], np.zeros(2, np.int32), (texture,))
    eyes = np.array([[0, 0, 1.0], [0, 0, 30.0]])
    _, rgb = draw(RenderAsset(mesh), eyes, np.tile(LEVEL, (2, 1)), 64, 64, colour=True)
    # At this distance one texel is one pixel: the image is the texture itself.
    assert np.abs(rgb[0].astype(int) - texture[..., :3]).max() <= 1
    far = rgb[1][31:33, 31:33]
    assert np.abs(far[..., 1].astype(int) - 127).max() <= 2  # black and white have become grey
    assert far[0, 0, 0] > far[1, 0, 0]  # red is still above


def test_wrong_output_tensors_are_refused():
    renderer = Rasterizer(Camera(8, 4), threads=1)
    camera = ([RenderAsset(SceneMesh.from_vertices(np.zeros((1, 3, 3))))], torch.zeros(1, 3), torch.eye(4)[3:])
    for wrong in (
        torch.empty(1, 8, 4, 1),
        torch.empty(1, 4, 8, 1, dtype=torch.float64),
        torch.empty(1, 4, 16, 1)[:, :, ::2],
        torch.empty(1, 4, 8, 1, device="meta"),
    ):
        with pytest.raises(ValueError, match="depth must be"):
            renderer.draw(*camera, {"depth": wrong})
    with pytest.raises(ValueError, match="lacks depth"):
        renderer.draw(*camera, {})
    with pytest.raises(ValueError, match="eyes have shape"):
        renderer.draw(camera[0], torch.zeros(2, 3), camera[2], {"depth": torch.empty(1, 4, 8, 1)})


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 300), same=st.booleans())
def test_the_tree_holds_every_triangle_once_inside_its_boxes(seed, count, same):
    vertices = soup(np.random.default_rng(seed), count, 0.3)
    if same:
        vertices[:] = vertices[0]
    boxes, nodes, order = build_tree(vertices)
    assert sorted(order) == list(range(count))
    seen = []
    todo = [(0, [])]
    while todo:
        node, above = todo.pop()
        first, size = nodes[node]
        above = [*above, node]
        if size == 0:
            todo += [(first, above), (first + 1, above)]
            continue
        seen.extend(range(first, first + size))
        centre, half = boxes[above, :3], boxes[above, 3:]
        held = vertices[order[first : first + size]].reshape(-1, 1, 3).astype(np.float64)
        assert (np.abs(held - centre) <= half).all()
    assert sorted(seen) == list(range(count))

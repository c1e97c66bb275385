"""The kernels against a plain twin that tries every triangle at every pixel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navprune.scenes.files.mesh import AlphaMasks, SceneMesh
from navprune.simulator.asset import RenderAsset
from navprune.simulator.drawing import make_scratch, show
from navprune.simulator.triangles import EDGE, FAR, NEAR
from navprune.simulator.view import view_of

LEVEL = np.array([0.0, 0.0, 0.0, 1.0])


def show_fast(mesh, eye, rotation, width, height, focal, triangles=True):
    """Closeness and the index in the file of what each pixel shows, by the kernels."""
    asset = RenderAsset(mesh)
    closeness = np.empty((height, width), np.float32)
    shown = np.empty((height, width), np.int32) if triangles else None
    pose = 0, eye[None], rotation[None], focal
    show(asset.tree, asset.cutout, asset.strokes, *pose, closeness, shown, make_scratch(height, width))
    order = np.append(asset.tree.order, -1)  # of no triangle, which is -1, too
    return closeness, None if shown is None else order[shown]


def show_plainly(mesh, eye, rotation, width, height, focal):
    """The same, in the order of the file: a triangle is shown where it is nearer than all before it."""
    axes = view_of(eye, rotation, focal, height, width).axes
    x, y, z = np.moveaxis(mesh.vertices.astype(np.float64) - eye, -1, 0)
    a, b, c = np.stack([each[0] * x + each[1] * y + each[2] * z for each in axes], -1).transpose(1, 0, 2)
    column, row = np.arange(width) + (0.5 - width * 0.5), np.arange(height)[:, None] + (0.5 - height * 0.5)
    closeness, shown = np.full((height, width), 1 / FAR, np.float32), np.full((height, width), -1)
    for index in range(len(a)):
        edges = np.array([cross(c[index], b[index]), cross(a[index], c[index]), cross(b[index], a[index])])
        determinant = a[index, 0] * edges[0, 0] + a[index, 1] * edges[0, 1] + a[index, 2] * edges[0, 2]
        depths = np.array([a[index, 2], b[index, 2], c[index, 2]])
        if determinant <= 0 or (depths <= NEAR).all():
            continue
        normal = (edges[0] + edges[1] + edges[2]) * (1.0 / determinant)
        wide = [(each[0], each[1], each[2] + (abs(each[0]) + abs(each[1])) * EDGE) for each in edges]
        inside = np.all([each[0] * column + (each[1] * row + each[2]) >= 0 for each in wide], axis=0)
        value = normal[0] * column + (normal[1] * row + normal[2])
        inside &= (value <= 1 / NEAR) | (depths > NEAR).all()
        if mesh.masks is not None and mesh.masks.cutoff[index] > 0:
            shares = np.array([each[0] * column + (each[1] * row + each[2]) for each in edges])
            alpha = np.tensordot(mesh.masks.alpha[index] / 255, shares, 1) / np.where(inside, shares.sum(0), 1)
            inside &= alpha >= mesh.masks.cutoff[index] - 1e-6
        nearer = inside & (value.astype(np.float32) > closeness)
        closeness[nearer], shown[nearer] = value[nearer], index
    return np.where(shown < 0, np.float32(0), closeness), shown


def cross(a, b):
    """In the kernels' order of arithmetic."""
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def soup(rng, count, size):
    """Random triangles around the origin."""
    return rng.uniform(-3, 3, (count, 1, 3)) + rng.normal(0, size, (count, 3, 3))


def sheet(rng, count, size):
    """A surface of squares cut in two, 2 m ahead, whose corners lie on the middles of pixels or half way between."""
    side = int(np.ceil(np.sqrt(count / 2)))
    step = 2.0 * rng.choice([1, 2, 4]) / 16
    x, y = np.meshgrid(np.arange(side + 1) - side // 2, np.arange(side + 1) - side // 2)
    corners = np.stack([x * step, y * step, np.full(x.shape, -2.0)], -1)
    a, b, c, d = corners[:-1, :-1], corners[:-1, 1:], corners[1:, 1:], corners[1:, :-1]
    return np.concatenate([np.stack([a, b, c], -2).reshape(-1, 3, 3), np.stack([a, c, d], -2).reshape(-1, 3, 3)])


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from([soup, sheet]),
    count=st.integers(0, 250),
    size=st.sampled_from([0.003, 0.05, 0.5, 3.0]),  # below a pixel, up to triangles that surround the eye
    width=st.sampled_from([1, 7, 16, 40]),
    height=st.sampled_from([1, 9, 16]),
    double=st.booleans(),
    holes=st.booleans(),
    turned=st.booleans(),
)
def test_kernels_show_what_trying_every_triangle_shows(seed, kind, count, size, width, height, double, holes, turned):
    rng = np.random.default_rng(seed)
    vertices = kind(rng, count, size).astype(np.float32)
    if double:
        vertices = rng.permutation(np.concatenate([vertices, vertices]))
    plain = SceneMesh.from_vertices(vertices)
    masks = AlphaMasks(
        rng.choice([0, 255], (len(vertices), 3)).astype(np.uint8),
        rng.choice([0, 0.31, 0.73], len(vertices)).astype(np.float32),
    )
    mesh = SceneMesh(plain.vertices, plain.colours, plain.uv, plain.texture, masks=masks) if holes else plain
    rotation, eye = (rng.normal(size=4), rng.uniform(-1, 1, 3)) if turned else (LEVEL, np.zeros(3))
    camera = eye, rotation, width, height, 8.0
    closeness, shown = show_plainly(mesh, *camera)
    fast_closeness, fast_shown = show_fast(mesh, *camera)
    np.testing.assert_array_equal(fast_shown, shown)
    np.testing.assert_array_equal(fast_closeness, closeness)
    np.testing.assert_array_equal(show_fast(mesh, *camera, triangles=False)[0], closeness)


def test_a_surface_of_dust_is_whole_and_shown_once(seed=5):
    """A wall of triangles far smaller than pixels, beside a coarse one behind it that must not show through."""
    rng = np.random.default_rng(seed)
    fine = sheet(rng, 60_000, 0)
    fine = (fine + rng.normal(0, 1e-4, (1, 1, 3))) * [0.1, 0.1, 1.0]
    coarse = np.array([[[-99, -99, -3], [99, -99, -3], [0, 99, -3]]])
    mesh = SceneMesh.from_vertices(np.concatenate([coarse, fine]))
    closeness, shown = show_fast(mesh, np.zeros(3), LEVEL, 64, 64, 32.0)
    half = np.abs(fine[..., 0]).max() / 2 * 32 - 1
    inside = np.abs(np.arange(64) + 0.5 - 32) < half
    assert inside.sum() > 20 and (shown[np.ix_(inside, inside)] > 0).all()
    np.testing.assert_allclose(closeness[np.ix_(inside, inside)], 0.5, rtol=1e-3)


@pytest.mark.parametrize("distance, seen", [(980.0, True), (989.0, True), (991.0, False), (1e5, False)])
def test_nothing_shows_beyond_the_far_plane(distance, seen):
    wall = np.array([[[-9, -9, -1], [9, -9, -1], [0, 9, -1]]]) * distance
    closeness, shown = show_fast(SceneMesh.from_vertices(wall), np.zeros(3), LEVEL, 8, 8, 4.0)
    assert (shown == (0 if seen else -1)).all()
    np.testing.assert_allclose(closeness, 1 / distance if seen else 0, rtol=1e-6)

"""Lines and points; tests/scenes/files/test_probes.py holds them against habitat-sim's."""

import dataclasses

import numpy as np
from cameras import BOTH, photograph
from hypothesis import given, settings
from hypothesis import strategies as st

from navprune.scenes.files.mesh import SceneMesh, Strokes
from navprune.simulator.asset import RenderAsset
from navprune.simulator.drawing import NEAR

WALL = np.array([[[-99, -99, -5], [99, -99, -5], [0, 99, -5]]])
EYE, LEVEL = np.zeros((1, 3)), np.array([[0.0, 0.0, 0.0, 1.0]])
SIZE = 32


def picture(ends, colours=None):
    """Depth [H, W] and colours [H, W, 3] of strokes before a wall that is 5 m away."""
    ends = np.array(ends, np.float32)
    colours = np.full(ends.shape, 9, np.uint8) if colours is None else np.array(colours, np.uint8)
    mesh = dataclasses.replace(SceneMesh.from_vertices(WALL), strokes=Strokes(ends, colours))
    images = photograph(RenderAsset(mesh), EYE, LEVEL, SIZE, SIZE, sensors=BOTH)
    return images["depth"][0, ..., 0], images["rgb"][0]


def test_a_point_is_the_pixel_that_it_lies_in_unless_something_is_nearer():
    nearer, hidden = [0.3, -0.2, -2.0], [0.3, 0.2, -6.0]
    depth, rgb = picture([[nearer, nearer], [hidden, hidden]])
    row, column = int(16 + 0.2 / 2 * 16), int(16 + 0.3 / 2 * 16)
    assert np.argwhere(depth < 4.99).tolist() == [[row, column]] and abs(depth[row, column] - 2) < 1e-6
    assert rgb[row, column].tolist() == [9, 9, 9] and (rgb == 255).sum() == 3 * (SIZE**2 - 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_line_is_one_pixel_in_each_column_or_row_and_where_it_lies(seed):
    ends = np.random.default_rng(seed).uniform([-1, -1, -4.5], [1, 1, -1.5], (2, 3))
    depth, _ = picture([ends])
    rows, columns = np.nonzero(depth < 4.99)
    (u0, v0), (u1, v1) = ends[:, :2] * [1, -1] / -ends[:, 2:] * 16 + 16
    flat = abs(u1 - u0) >= abs(v1 - v0)
    along, across = (columns, rows) if flat else (rows, columns)
    assert len(along) == len(set(along))
    assert abs(len(along) - max(abs(u1 - u0), abs(v1 - v0))) <= 2 or min(u0, v0, u1, v1) < 0 or max(u0, v0, u1, v1) > 32
    share = (along + 0.5 - (u0 if flat else v0)) / ((u1 - u0) if flat else (v1 - v0))
    assert (np.abs((v0 + (v1 - v0) * share if flat else u0 + (u1 - u0) * share) - across - 0.5) <= 0.5 + 1e-4).all()
    share = np.clip(share, 0, 1)
    closeness = -1 / ends[0, 2] + (1 / ends[0, 2] - 1 / ends[1, 2]) * share
    np.testing.assert_allclose(depth[rows, columns], 1 / closeness, rtol=1e-5)


def test_colours_lie_between_the_ends_as_in_the_world():
    depth, rgb = picture([[[-1, 0.1, -1], [3, 0.1, -4]]], [[[0, 0, 0], [200, 100, 0]]])
    rows, columns = np.nonzero(depth < 4.99)
    assert len(rows) > 20
    share = (depth[rows, columns] - 1) / 3  # depth is linear along a line, too
    np.testing.assert_allclose(rgb[rows, columns, 0], 200 * share, atol=1)
    np.testing.assert_allclose(rgb[rows, columns, 1], 100 * share, atol=1)


def test_a_line_from_behind_the_eye_begins_at_the_near_plane():
    depth, _ = picture([[[0.001, -0.004, 1.0], [0.5, -2.0, -4.0]]])
    assert (depth < 4.99).any() and depth.min() >= NEAR * 0.999
    assert (picture([[[0.1, 0, 1.0], [0.2, 0.1, 0.5]]])[0] > 4.99).all()

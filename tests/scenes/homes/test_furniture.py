import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from navprune.scenes.homes.furniture import KINDS, Piece


def closed(triangles):
    corners = np.round(triangles, 6) + 0.0
    _, index = np.unique(corners.reshape(-1, 3), axis=0, return_inverse=True)
    faces = index.reshape(-1, 3)
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    there, back = np.lexsort(edges.T), np.lexsort(edges[:, ::-1].T)
    return np.array_equal(edges[there], edges[back][:, ::-1])


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_is_closed_faces_outward_and_stays_in_its_size(kind):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        size = KINDS[kind].draw_size(rng)
        piece = Piece(kind, 0.0, 0.0, 0.0, size, 0.0, seed)
        triangles = piece.solid().triangles
        a, b, c = np.moveaxis(triangles, 1, 0)
        assert closed(triangles)
        assert np.einsum("ij,ij->", a, np.cross(b, c)) > 0
        low, high = triangles.min(axis=(0, 1)), triangles.max(axis=(0, 1))
        assert (low >= [-size[0] / 2 - 1e-6, -size[1] / 2 - 1e-6, -1e-9]).all()
        assert (high <= [size[0] / 2 + 1e-6, size[1] / 2 + 1e-6, size[2] + 1e-6]).all()
        assert high[2] > 0.7 * size[2]


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.floats(0, 6.3), st.integers(0, 2**31))
def test_the_footprint_covers_the_solid(kind, angle, seed):
    size = KINDS[kind].draw_size(np.random.default_rng(seed))
    piece = Piece(kind, 3.0, -2.0, angle, size, KINDS[kind].base, seed)
    corners = piece.solid().triangles[..., :2].reshape(-1, 2)
    assert shapely.contains_xy(piece.footprint.buffer(1e-6), corners).all()


@pytest.mark.parametrize(
    ("base", "height", "blocks"), [(0, 0.2, False), (0, 0.21, True), (1.49, 0.3, True), (1.5, 0.3, False)]
)
def test_what_is_low_or_hangs_high_does_not_block(base, height, blocks):
    assert Piece("crate", 0, 0, 0, (0.4, 0.4, height), base, 0).blocks is blocks

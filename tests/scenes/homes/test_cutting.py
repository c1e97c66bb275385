import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navprune.scenes.homes.cutting import Mesh, cut, edges_of, waves
from navprune.scenes.homes.solids import box


def areas(mesh):
    sides = np.diff(mesh.vertices[mesh.faces], axis=1)
    return np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1) / 2


BOX = Mesh.of(box((1.0, 2.0, 0.1), (0, 0, 0)).triangles)


@settings(max_examples=25, deadline=None)
@given(st.integers(20, 3000), st.integers(0, 9), st.lists(st.floats(0.5, 2), min_size=16, max_size=16))
def test_a_closed_mesh_stays_closed_and_its_faces_keep_their_planes_and_areas(count, seed, lengths):
    fine = cut(BOX, np.array(lengths), count, np.random.default_rng(seed))
    assert count <= len(fine.faces) <= count + 1
    _, sides = edges_of(fine.faces, len(fine.vertices))
    assert (np.bincount(sides.ravel()) == 2).all()
    np.testing.assert_allclose(np.bincount(fine.origin, areas(fine)), areas(BOX), rtol=1e-9)
    normals = np.cross(*np.moveaxis(np.diff(BOX.vertices[BOX.faces], axis=1), 1, 0))[fine.origin]
    offsets = fine.vertices[fine.faces] - BOX.vertices[BOX.faces[fine.origin, :1]]
    assert np.abs(np.einsum("fk,fck->fc", normals, offsets)).max() < 1e-9
    turned = np.cross(*np.moveaxis(np.diff(fine.vertices[fine.faces], axis=1), 1, 0))
    assert (np.einsum("fk,fk->f", normals, turned) > 0).all()


def longest_sides(mesh):
    corners = mesh.vertices[mesh.faces]
    return np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(axis=1)


@pytest.mark.parametrize("count", [500, 5000, 20_000])
def test_edges_become_short_everywhere(count):
    """Of N faces on an area A edges are some sqrt(A / N) long; the longest are few times that."""
    longest = longest_sides(cut(BOX, np.ones(16), count, np.random.default_rng(0)))
    assert longest.max() < 5 * np.sqrt(areas(BOX).sum() / count)
    assert longest.std() > 0.1 * longest.mean()


def test_edges_become_shorter_where_it_is_asked():
    upper = BOX.vertices[BOX.faces].mean(axis=1)[:, 1] > 0
    lengths = np.where(upper, 0.3, 1.0)
    fine = cut(BOX, lengths, 5000, np.random.default_rng(0))
    longest = longest_sides(fine)
    assert np.median(longest[upper[fine.origin]]) < 0.5 * np.median(longest[~upper[fine.origin]])


def test_a_part_has_the_vertices_that_it_needs():
    kept = np.arange(len(BOX.faces)) < 2
    part = BOX.part(kept)
    np.testing.assert_array_equal(part.vertices[part.faces], BOX.vertices[BOX.faces[kept]])
    assert len(part.vertices) == len(np.unique(BOX.faces[kept]))


@pytest.mark.parametrize("length", [0.25, 3.0])
def test_waves_are_smooth_over_their_length(length):
    points = np.random.default_rng(0).uniform(0, 10, (4000, 3))
    near = points + np.array([0.05 * length, 0, 0])
    here, there = (waves(p, length, 2, np.random.default_rng(1)) for p in (points, near))
    far = waves(points + 7.3 * length, length, 2, np.random.default_rng(1))
    assert np.abs(here).max() <= 1 and 0.3 < here.std() < 0.7
    assert np.abs(here - there).max() < 0.7 and np.abs(here - there).mean() < 0.5 * np.abs(here - far).mean()

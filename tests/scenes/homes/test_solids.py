import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from navprune.scenes.homes.solids import ball, box, cushion, cylinder, extrude, lathe, plan_triangles, rod, walls

RED = (200, 40, 40)
lengths = st.floats(0.05, 3.0)


def volume(solid):
    a, b, c = np.moveaxis(solid.triangles, 1, 0)
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def open_edges(solid):
    """Directed edges without an opposite one: none in a closed solid."""
    corners = np.round(solid.triangles, 6) + 0.0
    _, index = np.unique(corners.reshape(-1, 3), axis=0, return_inverse=True)
    faces = index.reshape(-1, 3)
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    there = np.unique(edges, axis=0, return_counts=True)
    back = np.unique(edges[:, ::-1], axis=0, return_counts=True)
    return not (np.array_equal(there[0], back[0]) and np.array_equal(there[1], back[1]))


@settings(max_examples=25, deadline=None)
@given(lengths, lengths, lengths, st.floats(0.01, 0.4), st.integers(1, 4))
def test_a_cushion_is_a_box_and_a_ball_added(x, y, z, rounding, steps):
    solid = cushion((x, y, z), RED, rounding=rounding, steps=steps)
    assert not open_edges(solid)
    low, high = solid.triangles.min(axis=(0, 1)), solid.triangles.max(axis=(0, 1))
    np.testing.assert_allclose(high - low, (x, y, z), atol=1e-9)
    r = min(rounding, 0.4995 * min(x, y, z))
    a, b, c = x - 2 * r, y - 2 * r, z - 2 * r
    # Steiner's formula for the sum of a box and a ball bounds the inscribed polyhedron from above.
    steiner = a * b * c + 2 * r * (a * b + b * c + c * a) + np.pi * r**2 * (a + b + c) + 4 / 3 * np.pi * r**3
    assert a * b * c < volume(solid) <= steiner + 1e-9


@settings(max_examples=20, deadline=None)
@given(lengths, lengths, lengths)
def test_volumes_of_simple_solids(x, y, z):
    assert volume(box((x, y, z), RED, (1, 2, 3))) == pytest.approx(x * y * z)
    prism = 14 / 2 * np.sin(2 * np.pi / 14)  # area of the regular polygon that stands for the circle
    assert volume(cylinder(x, z, RED)) == pytest.approx(prism * x**2 * z)
    assert 0.8 < volume(ball((x, y, z), RED, sections=20)) / (4 / 3 * np.pi * x * y * z) < 1.0


@settings(max_examples=20, deadline=None)
@given(st.tuples(lengths, lengths, lengths), st.tuples(lengths, lengths, lengths), st.floats(-3, 3))
def test_rods_and_turns_keep_solids_closed_and_outward(start, direction, angle):
    solid = rod(start, np.add(start, direction), 0.02, RED)
    assert not open_edges(solid)
    for axis in range(3):
        turned = solid.turned(angle, axis)
        assert volume(turned) == pytest.approx(volume(solid), rel=1e-6) and volume(solid) > 0
    spin = box((1, 1, 1), RED, (1, 0, 0)).turned(np.pi / 2)
    np.testing.assert_allclose(spin.triangles.mean(axis=(0, 1))[:2], (0, 1), atol=1e-12)


def test_extrusion_of_a_ring():
    ring = shapely.box(0, 0, 4, 3).difference(shapely.box(1, 1, 2, 2))
    solid = extrude(ring, 0.5, 2.0, RED)
    assert volume(solid) == pytest.approx(ring.area * 1.5)
    assert not open_edges(solid)


def test_walls_face_into_the_room_and_floors_up():
    room = shapely.Polygon([(0, 0), (4, 0), (4, 3), (2, 3), (2, 1), (0, 1)])
    triangles = walls(room, 0.0, 2.5)
    normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    inside = triangles.mean(axis=1) + 1e-3 * normals / np.linalg.norm(normals, axis=1, keepdims=True)
    assert shapely.contains_xy(room, inside[:, :2]).all()
    floor = plan_triangles(room)
    ahead, aside = floor[:, 1] - floor[:, 0], floor[:, 2] - floor[:, 0]
    areas = (ahead[:, 0] * aside[:, 1] - ahead[:, 1] * aside[:, 0]) / 2
    assert (areas > 0).all() and areas.sum() == pytest.approx(room.area)


def test_lathe_closes_open_profiles():
    assert not open_edges(lathe([(1.0, 0.0), (0.5, 1.0), (0.8, 1.5)], RED, 12))

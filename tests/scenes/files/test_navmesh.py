import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from navprune.errors import UserError
from navprune.scenes.files import navmesh as nm
from navprune.scenes.files.tile import navmesh_from_polygons
from navprune.simulator.pathfinder import PathFinder

REFERENCE = Path(__file__).parents[2] / "data/reference/scene_datasets/reference"
SCENES = ["apartment", "duplex"]
FILES = {name: (REFERENCE / f"{name}.navmesh").read_bytes() for name in SCENES}
SET_BYTES, SETTINGS_BYTES = 40, 56


def polygons_of(navmesh):
    records = navmesh.tiles[0].polygons
    return [record["corners"][: record["corner_count"]].tolist() for record in records]


@pytest.mark.parametrize("name", SCENES)
def test_a_recorded_file_is_written_back_byte_for_byte(name, tmp_path):
    navmesh = nm.read_navmesh(REFERENCE / f"{name}.navmesh")
    nm.write_navmesh(tmp_path / "copy.navmesh", navmesh)
    assert (tmp_path / "copy.navmesh").read_bytes() == FILES[name]


def test_version_1_means_the_default_settings():
    data = FILES["apartment"]
    old = struct.pack("<ii", nm.SET_MAGIC, 1) + data[8:SET_BYTES] + data[SET_BYTES + SETTINGS_BYTES :]
    navmesh = nm.parse_navmesh(old)
    assert navmesh.settings == nm.NavMeshSettings()
    recorded = nm.parse_navmesh(data)
    assert np.array_equal(navmesh.tiles[0].polygons, recorded.tiles[0].polygons)
    written = nm.navmesh_bytes(navmesh)
    assert written == data, "the recorded settings are the defaults"


@pytest.mark.parametrize("name", SCENES)
def test_building_from_the_polygons_of_habitat_gives_its_tile(name):
    recorded = nm.parse_navmesh(FILES[name])
    built = navmesh_from_polygons(recorded.tiles[0].vertices, polygons_of(recorded))
    ours, theirs = built.tiles[0], recorded.tiles[0]
    for field in ("corners", "neighbours", "flags", "corner_count", "area_and_type"):
        assert np.array_equal(ours.polygons[field], theirs.polygons[field])
    assert ours.reference == theirs.reference
    assert len(ours.links) == len(theirs.links) and len(ours.bv_nodes) == len(theirs.bv_nodes)
    assert np.array_equal(ours.bv_nodes["index"] < 0, theirs.bv_nodes["index"] < 0)
    same = [key for key in nm.TILE_HEADER.names if not key.startswith("detail") and key not in ("lower", "upper")]
    assert all(ours.header[key] == theirs.header[key] for key in same)
    assert len(nm.navmesh_bytes(built)) == nm.SET_HEADER.itemsize + SETTINGS_BYTES + 8 + sum(
        section.nbytes for section in ours.sections
    )


def grid_of_squares(columns, rows, size, height):
    x, z = np.meshgrid(np.arange(columns + 1.0), np.arange(rows + 1.0))
    vertices = np.stack([x.ravel() * size, np.full(x.size, height), z.ravel() * size], axis=1)
    corner = lambda i, j: j * (columns + 1) + i  # noqa: E731
    return vertices, [
        [corner(i, j), corner(i, j + 1), corner(i + 1, j + 1), corner(i + 1, j)]
        for j in range(rows)
        for i in range(columns)
    ]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.floats(0.1, 5), st.floats(-20, 20))
def test_a_built_mesh_survives_writing_and_reading(columns, rows, size, height):
    vertices, polygons = grid_of_squares(columns, rows, size, height)
    built = navmesh_from_polygons(vertices, polygons, nm.NavMeshSettings(agent_radius=0.25))
    read = nm.parse_navmesh(nm.navmesh_bytes(built))
    for ours, theirs in zip(built.tiles[0].sections, read.tiles[0].sections):
        assert np.array_equal(ours, theirs)
    assert read.settings.agent_radius == 0.25
    assert nm.navmesh_bytes(read) == nm.navmesh_bytes(built)
    inner_edges = np.count_nonzero(read.tiles[0].polygons["neighbours"])
    assert inner_edges == 2 * ((columns - 1) * rows + columns * (rows - 1))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.floats(0.1, 5))
def test_every_bounding_volume_holds_those_below_it(columns, rows, size):
    vertices, polygons = grid_of_squares(columns, rows, size, 0.0)
    nodes = navmesh_from_polygons(vertices, polygons).tiles[0].bv_nodes[:-1]
    assert sorted(nodes["index"][nodes["index"] >= 0]) == list(range(len(polygons)))
    for at, node in enumerate(nodes):
        below = nodes[at : at + max(1, -node["index"])]
        assert np.all(below["lower"] >= node["lower"]) and np.all(below["upper"] <= node["upper"])


SQUARE = np.array([[0, 0, 0], [0, 0, 1], [1, 0, 1], [1, 0, 0]], float)


@pytest.mark.parametrize(
    ("vertices", "polygons", "word"),
    [
        (SQUARE, [], "at least one"),
        (SQUARE, [[0, 1]], "corners"),
        (SQUARE, [[0, 1, 1]], "corners"),
        (SQUARE, [[0, 1, 4]], "no vertex"),
        (SQUARE, [[3, 2, 1, 0]], "winding"),
        (SQUARE, [[0, 2, 1, 3]], "convex"),
        (SQUARE, [[0, 1, 2], [0, 1, 3]], "overlap"),
        (SQUARE * np.nan, [[0, 1, 2, 3]], "position"),
        (SQUARE * 4000, [[0, 1, 2, 3]], "too wide"),
        (np.zeros((0x10000, 3)), [[0, 1, 2, 3]], "at most"),
    ],
)
def test_polygons_that_make_no_mesh_are_refused(vertices, polygons, word):
    with pytest.raises(UserError, match=word):
        navmesh_from_polygons(vertices, polygons)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.navmesh"):
        nm.read_navmesh(tmp_path / "gone.navmesh")
    with pytest.raises(UserError, match="cannot write"):
        nm.write_navmesh(Path(__file__) / "place.navmesh", nm.parse_navmesh(FILES["duplex"]))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SCENES), st.data())
def test_a_cut_off_file_is_refused_in_one_line(name, data):
    length = data.draw(st.integers(0, len(FILES[name]) - 1))
    with pytest.raises(UserError) as caught:
        nm.parse_navmesh(FILES[name][:length], "scene.navmesh")
    assert "scene.navmesh" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("offset", "value", "word"),
    [
        (0, 7, "mark"),
        (4, 3, "version"),
        (8, 2, "ends inside"),
        (8, 0, "no polygon"),
        (28, 0, "grid"),
        (100, -5, "negative"),
        (100, 2**31 - 1, "ends inside"),
        (104, 1, "Detour tile"),
        (104 + 24, 2**31 - 1, "ends inside"),
        (104 + 36, 94, "larger"),
        (104 + 52, 1, "off-mesh"),
    ],
)
def test_a_wrong_number_is_refused(offset, value, word):
    data = bytearray(FILES["apartment"])
    struct.pack_into("<i", data, offset, value)
    with pytest.raises(UserError, match=word):
        nm.parse_navmesh(bytes(data))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(SCENES), st.data())
def test_changed_bytes_are_refused_or_give_a_mesh_that_answers(name, data):
    broken = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 8))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    try:
        navmesh = nm.parse_navmesh(bytes(broken))
    except UserError as error:
        assert "\n" not in str(error)
        return
    again = nm.parse_navmesh(nm.navmesh_bytes(navmesh))
    assert nm.navmesh_bytes(again) == nm.navmesh_bytes(navmesh)
    finder = PathFinder(navmesh)
    starts = np.array([[3.0, 0.2, -3.0], [1.0, 0.2, -6.0], [4.0, 0.2, -4.0]])
    ends = np.array([[8.0, 0.2, -5.0], [1.2, 0.2, -6.0], [3.0, 3.0, -4.0]])
    assert np.all(finder.geodesic_distance(starts, ends) >= 0)
    for sliding in (True, False):
        assert finder.step(starts, ends, sliding).shape == (3, 3)
    assert np.all(finder.obstacle_distance(starts) >= 0)

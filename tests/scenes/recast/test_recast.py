"""Laws of the navmesh builder on worlds small enough to know the answer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navprune.errors import UserError
from navprune.scenes.files.navmesh import NavMeshSettings, navmesh_bytes, parse_navmesh, read_navmesh, write_navmesh
from navprune.scenes.recast.build import build_navmesh
from navprune.simulator.pathfinder import PathFinder

CELL = 0.05
# At the border of the world a cell falls to the ledge filter, and two to the radius of 0.1 m.
MARGIN = 3 * CELL
FINE = NavMeshSettings(cell_height=0.05)


def quad(a, b, c, d):
    """Two triangles [2, 3, 3] whose front is where the corners go round counter-clockwise."""
    return np.array([[a, b, c], [a, c, d]], float)


def floor(x0, z0, x1, z1, y=0.0, y_end=None):
    """A floor that faces upwards and climbs to `y_end` along x."""
    end = y if y_end is None else y_end
    return quad((x0, y, z0), (x0, y, z1), (x1, end, z1), (x1, end, z0))


def ceiling(x0, z0, x1, z1, y):
    return floor(x0, z0, x1, z1, y)[:, ::-1]


def box(x0, z0, x1, z1, top, bottom=0.0):
    """Four walls and a top."""
    corners = [(x0, z0), (x0, z1), (x1, z1), (x1, z0)]
    walls = [
        quad((ax, bottom, az), (bx, bottom, bz), (bx, top, bz), (ax, top, az))
        for (ax, az), (bx, bz) in zip(corners, corners[1:] + corners[:1])
    ]
    return np.concatenate([*walls, floor(x0, z0, x1, z1, top)])


def finder(*parts, **changes):
    return PathFinder(build_navmesh(np.concatenate(parts), NavMeshSettings(**changes)))


def reachable(pathfinder, start, end):
    return bool(np.isfinite(pathfinder.geodesic_distance(np.array([start]), np.array([end])))[0])


@pytest.mark.parametrize("size", [(4.0, 3.0), (2.0, 7.5), (10.0, 10.0)])
def test_a_bare_floor_loses_its_margin(size):
    area = (size[0] - 2 * MARGIN) * (size[1] - 2 * MARGIN)
    assert finder(floor(0, 0, *size)).navigable_area == pytest.approx(area, abs=1e-3)
    shifted = finder(floor(-3.2, 5.0, -3.2 + size[0], 5.0 + size[1], y=1.0))
    assert shifted.navigable_area == pytest.approx(area, abs=1e-3)


def test_a_box_makes_a_hole_of_its_size_and_the_radius():
    around = finder(floor(0, 0, 6, 6), box(2, 2, 2.9, 3.2, top=1.0))
    hole = finder(floor(0, 0, 6, 6)).navigable_area - around.navigable_area
    assert (0.9 + 0.2) * (1.2 + 0.2) - 0.05 < hole < (0.9 + 0.3) * (1.2 + 0.3)
    points = np.array([[2.5, 0.2, 2.6], [1.85, 0.2, 2.6], [3.1, 0.2, 2.6], [2.5, 0.2, 3.4]])
    assert around.is_navigable(points).tolist() == [False, True, True, True]
    way_round = around.find_path(np.array([1.0, 0.2, 2.6]), np.array([4.0, 0.2, 2.6]))
    assert way_round.distance > 3.2, "the way leads round the box"


@pytest.mark.parametrize(("rise", "climbed"), [(0.15, True), (0.3, False)])
def test_a_step_is_climbed_up_to_the_agents_limit(rise, climbed):
    world = np.concatenate([floor(0, 0, 3, 3), box(3, 0, 6, 3, top=rise)])
    pathfinder = PathFinder(build_navmesh(world, FINE))
    assert reachable(pathfinder, [1, 0, 1.5], [5, rise, 1.5]) is climbed


@pytest.mark.parametrize(("rise", "climbed"), [(0.15, True), (0.45, False)])
def test_steps_are_told_apart_by_whole_cells_in_habitats_own_settings(rise, climbed):
    world = (floor(0, 0, 3, 3), box(3, 0, 6, 3, top=rise))
    assert reachable(finder(*world), [1, 0.2, 1.5], [5, rise + 0.2, 1.5]) is climbed


@pytest.mark.parametrize(("degrees", "walkable"), [(20, True), (40, True), (50, False), (70, False)])
@pytest.mark.parametrize("height", [0.05, 0.2])
def test_a_ramp_is_walked_up_to_45_degrees(degrees, walkable, height):
    run = 1.5 / np.tan(np.radians(degrees))
    world = (floor(0, 0, 3, 2), floor(3, 0, 3 + run, 2, 0, 1.5), floor(3 + run, 0, 6 + run, 2, 1.5))
    climb = (
        0.2 if height == 0.2 else 0.25
    )  # with cells as high as long a slope of 45 degrees is a stair of single cells
    pathfinder = finder(*world, cell_height=height, agent_max_climb=climb)
    assert reachable(pathfinder, [1, 0.1, 1], [4.5 + run, 1.6, 1]) is walkable


def test_a_slope_has_the_heights_of_its_floor():
    world = (floor(0, 0, 3, 2), floor(3, 0, 7, 2, 0, 2.0), floor(7, 0, 10, 2, 2.0))
    navmesh = build_navmesh(np.concatenate(world))
    points = np.array([[x, max(0.0, min(x - 3, 4) / 2), 1.0] for x in np.arange(0.5, 9.5, 0.25)])
    off = np.abs(PathFinder(navmesh).snap(points)[:, 1] - points[:, 1])
    assert off.max() < 0.41, "a cell of rounding up, and one of tolerance"
    fine = build_navmesh(np.concatenate(world), NavMeshSettings(cell_height=0.05, detail_sample_max_error=0.5))
    assert np.abs(PathFinder(fine).snap(points)[:, 1] - points[:, 1]).max() < 0.15


def test_details_follow_a_floor_that_is_not_flat():
    x, z = np.meshgrid(np.arange(0, 6.01, 0.5), np.arange(0, 6.01, 0.5))
    bump = np.stack([x, 0.8 * np.exp(-((x - 3) ** 2) - (z - 3) ** 2), z], axis=-1)
    a, b, c, d = bump[:-1, :-1], bump[1:, :-1], bump[1:, 1:], bump[:-1, 1:]
    ground = np.concatenate(
        [np.stack([a, b, c], axis=2).reshape(-1, 3, 3), np.stack([a, c, d], axis=2).reshape(-1, 3, 3)]
    )
    navmesh = build_navmesh(ground, NavMeshSettings(cell_height=0.05, agent_max_climb=0.2))
    assert len(navmesh.tiles[0].detail_vertices)
    top = PathFinder(navmesh).snap(np.array([[3.0, 0.8, 3.0], [1.0, 0.0, 1.0]]))[:, 1]
    assert top == pytest.approx([0.8, 0.0], abs=0.12)


def test_a_low_ceiling_closes_the_floor():
    high, low = (finder(floor(0, 0, 6, 4), ceiling(3, 0, 6, 4, y)).navigable_area for y in (2.5, 1.2))
    assert high == pytest.approx((6 - 2 * MARGIN) * (4 - 2 * MARGIN), abs=1e-3)
    assert low == pytest.approx((3 - MARGIN - 2 * CELL) * (4 - 2 * MARGIN), abs=0.05 * 4)
    with pytest.raises(UserError, match=r"no floor .* 1\.5 m height"):
        finder(floor(0, 0, 6, 4), ceiling(0, 0, 6, 4, 1.2))


def test_two_floors_are_two_islands_until_a_stair_joins_them():
    lower, upper = floor(0, 0, 8, 2), floor(5, 2, 8, 5, y=2.0)
    apart = finder(lower, upper)
    assert not reachable(apart, [1, 0.2, 1], [6, 2.2, 3.5])
    assert apart.navigable_area > finder(lower).navigable_area
    steps = [box(1 + 0.3 * k, 2, 1.3 + 0.3 * k, 5, top=min(0.15 * (k + 1), 2.0)) for k in range(14)]
    landing = floor(0, 0, 1, 5)
    joined = finder(floor(0, 0, 8, 2), upper, *steps, landing)
    assert reachable(joined, [1, 0.2, 1], [6, 2.2, 3.5])


def test_a_floor_over_another_keeps_both():
    both = finder(floor(0, 0, 4, 4), floor(0, 0, 4, 4, y=3.0))
    assert both.navigable_area == pytest.approx(2 * (4 - 2 * MARGIN) ** 2, abs=1e-3)
    assert both.snap(np.array([[2, 0.1, 2], [2, 3.1, 2.0]]))[:, 1] == pytest.approx([0.2, 3.1], abs=0.11)


def test_small_islands_are_dropped():
    assert finder(floor(0, 0, 4, 4), floor(6, 0, 7, 1)).navigable_area == pytest.approx(3.7**2, abs=1e-3)
    kept = finder(floor(0, 0, 4, 4), floor(6, 0, 7, 1), region_min_size=2)
    assert kept.navigable_area == pytest.approx(3.7**2 + 0.5, abs=0.3)


def furnished(rng, count):
    """A room of 6 m x 5 m with boxes [count, 4] (x0, z0, x1, z1) in it."""
    low = rng.uniform([0, 0], [5, 4], (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.1, 1.5, (count, 2))], axis=1)
    return np.concatenate([floor(0, 0, 6, 5), *[box(x0, z0, x1, z1, top=1.0) for x0, z0, x1, z1 in boxes]]), boxes


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 12))
def test_agents_keep_clear_of_boxes_and_reach_all_floor_that_is_clear(seed, count):
    rng = np.random.default_rng(seed)
    world, boxes = furnished(rng, count)
    navmesh = build_navmesh(world, NavMeshSettings(region_min_size=0))
    again = parse_navmesh(navmesh_bytes(navmesh))
    pathfinder = PathFinder(again)
    points = rng.uniform([0, 0, 0], [6, 0.4, 5], (500, 3))
    outside = np.maximum(boxes[None, :, :2] - points[:, None, ::2], points[:, None, ::2] - boxes[None, :, 2:])
    gap = np.linalg.norm(np.maximum(outside, 0), axis=2).min(axis=1, initial=np.inf)
    wall = np.minimum(points[:, ::2], [6, 5] - points[:, ::2]).min(axis=1)
    navigable = pathfinder.is_navigable(points)
    tolerance = 1.3 * CELL + 0.011  # of contours, and of is_navigable
    assert not np.any(navigable & (np.minimum(gap, wall) < 0.1 - tolerance))
    assert np.all(navigable[np.minimum(gap, wall) > 0.1 + 3 * CELL + tolerance])


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_world_turned_by_a_quarter_has_the_same_floor(seed):
    rng = np.random.default_rng(seed)
    world, _ = furnished(rng, 8)
    turned = np.stack([world[..., 2], world[..., 1], -world[..., 0]], axis=-1)
    here, there = PathFinder(build_navmesh(world)), PathFinder(build_navmesh(turned))
    assert there.navigable_area == pytest.approx(here.navigable_area, rel=0.03, abs=0.3)
    starts, ends = here.sample(40, rng), here.sample(40, rng)
    turn = lambda points: np.stack([points[:, 2], points[:, 1], -points[:, 0]], axis=1)  # noqa: E731
    on_both = there.is_navigable(turn(starts)) & there.is_navigable(turn(ends))
    before = here.geodesic_distance(starts, ends)[on_both]
    after = there.geodesic_distance(turn(starts), turn(ends))[on_both]
    assert np.mean(np.isfinite(before) == np.isfinite(after)) >= 0.9
    finite = np.isfinite(before) & np.isfinite(after)
    assert np.mean(np.abs(before[finite] - after[finite]) < 0.15 + 0.1 * before[finite]) >= 0.8


def test_what_is_written_reads_back_as_it_was(tmp_path):
    chosen = NavMeshSettings(agent_radius=0.2, cell_size=0.1)
    world, _ = furnished(np.random.default_rng(1), 5)
    navmesh = build_navmesh(world, chosen)
    write_navmesh(tmp_path / "room.navmesh", navmesh)
    read = read_navmesh(tmp_path / "room.navmesh")
    assert read.settings.agent_radius == pytest.approx(0.2)
    rng = np.random.default_rng(0)
    points = rng.uniform([0, 0, 0], [6, 0.4, 5], (300, 3))
    one, other = PathFinder(navmesh), PathFinder(read)
    assert np.array_equal(one.snap(points), other.snap(points), equal_nan=True)
    assert one.navigable_area == other.navigable_area


def test_triangles_without_area_change_nothing():
    plain = floor(0, 0, 4, 3)
    lines = np.array([[[1, 0, 1]] * 3, [[2, 0, 1], [3, 0, 2], [4, 0, 3]], [[0, 0, 0], [4, 0, 3], [0, 0, 0]]], float)
    assert finder(plain, lines).navigable_area == finder(plain).navigable_area


def test_stages_are_told_in_order():
    seen = []
    build_navmesh(floor(0, 0, 4, 3), progress=lambda stage, share: seen.append((share, stage)))
    assert seen == sorted(seen) and seen[0][0] == 0 and seen[-1] == (1.0, "done")


@pytest.mark.parametrize(
    ("world", "message"),
    [
        (np.zeros((0, 3, 3)), "no triangles"),
        (np.full((1, 3, 3), np.nan), "not sensible positions"),
        (np.full((2, 3, 3), np.inf), "not sensible positions"),
        (floor(0, 0, 4, 4)[:, ::-1], "no floor"),
        (floor(0, 0, 0.1, 0.1), "no floor"),
        (np.zeros((1, 3, 3)), "no floor"),
        (floor(0, 0, 20000, 20000), r"too large for cells of 0\.05 m.*over 2 GiB.*cell size of about 1\.9 m"),
        (floor(0, 0, 20000, 1), r"too large .* cell size of about 0\.34 m"),
        (np.concatenate([floor(0, 0, 4, 4), floor(0, 0, 4, 4, y=2000)]), "2000 m tall.*cell height of 0.27 m"),
    ],
)
def test_a_world_without_an_answer_is_refused_in_one_line(world, message):
    with pytest.raises(UserError, match=message) as caught:
        build_navmesh(world)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"cell_size": 0.0},
        {"cell_height": float("nan")},
        {"agent_radius": -1.0},
        {"agent_height": float("inf")},
        {"cell_height": 1e-300},
        {"edge_max_length": 1e39},
        {"corners_per_polygon": 7.0},
        {"corners_per_polygon": 2.0},
    ],
)
def test_settings_without_sense_are_refused(changes):
    with pytest.raises(UserError, match="navmesh"):
        build_navmesh(floor(0, 0, 4, 4), NavMeshSettings(**changes))

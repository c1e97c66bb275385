import itertools

import numpy as np
import pytest
import shapely

from navprune.errors import UserError
from navprune.scenes.homes.floorplan import DOOR_HEIGHT, draw_plan
from navprune.scenes.homes.walkable import walkable_floor


@pytest.fixture(scope="module")
def plans():
    ranges = itertools.cycle([(40, 60), (40, 200), (150, 200)])
    return [(area, draw_plan(np.random.default_rng(seed), area)) for seed, area in zip(range(15), ranges)]


def test_size_and_rooms_are_within_limits(plans):
    for (low, high), plan in plans:
        assert low <= plan.area <= high
        assert 3 <= len(plan.rooms) <= 10
    kinds = {room.kind for _, plan in plans for room in plan.rooms}
    assert {"corridor", "bathroom", "kitchen", "bedroom", "living room"} <= kinds


def test_rooms_do_not_meet_and_doors_join_their_two_rooms(plans):
    for _, plan in plans:
        for a, b in itertools.combinations(plan.rooms, 2):
            assert a.polygon.distance(b.polygon) > 0.1
        for door in plan.doors:
            width = max(
                door.polygon.bounds[2] - door.polygon.bounds[0],
                door.polygon.bounds[3] - door.polygon.bounds[1],
            )
            assert width >= 0.75
            assert door.height in (DOOR_HEIGHT, plan.ceiling)
            for i in door.rooms:
                assert door.polygon.intersection(plan.rooms[i].polygon).length == pytest.approx(width, abs=1e-6)
        assert plan.floor.geom_type == "Polygon"  # all rooms hang together


def test_pieces_stand_in_one_room_apart_and_clear_of_doors(plans):
    for _, plan in plans:
        for piece in plan.pieces:
            (home,) = [i for i, room in enumerate(plan.rooms) if room.polygon.contains(piece.footprint)]
            assert piece.base + piece.size[2] <= plan.ceiling + 1e-9
            if piece.blocks:
                doors = [door.polygon for door in plan.doors if home in door.rooms]
                assert (shapely.distance(doors, piece.footprint) > 0.7).all()
        for a, b in itertools.combinations(plan.pieces, 2):
            overlap = min(a.base + a.size[2], b.base + b.size[2]) > max(a.base, b.base)
            if overlap and "chair" not in (a.kind, b.kind):
                assert a.footprint.intersection(b.footprint).area < 1e-9


def test_one_walkable_island_reaches_every_room_and_nearly_all_free_floor(plans):
    for _, plan in plans:
        walkable = walkable_floor(plan)
        assert walkable.geom_type == "Polygon" and walkable.is_valid
        for room in plan.rooms:
            assert walkable.intersection(room.polygon).area > 0.25 * room.polygon.area
        blocked = shapely.union_all([piece.footprint for piece in plan.pieces if piece.blocks])
        eroded = plan.floor.difference(blocked).buffer(-0.15)
        assert walkable.intersection(eroded).area > 0.95 * eroded.area


def test_the_seed_settles_the_plan_and_its_digest():
    one, again, other = (draw_plan(np.random.default_rng(seed)) for seed in (4, 4, 5))
    assert one.pieces == again.pieces and one.digest() == again.digest()
    assert one.digest() != other.digest()


def test_a_hopeless_size_is_refused():
    with pytest.raises(UserError, match="widen"):
        draw_plan(np.random.default_rng(0), (3.0, 4.0))

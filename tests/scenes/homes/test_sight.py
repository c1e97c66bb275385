import numpy as np
import shapely

from navprune.scenes.homes.cutting import Mesh, cut
from navprune.scenes.homes.floorplan import draw_plan
from navprune.scenes.homes.sight import HEIGHTS, scanner_places, seen
from navprune.scenes.homes.solids import box, join
from navprune.scenes.homes.walkable import walkable_floor

ROOM = box((4, 4, 2.5), (0, 0, 0)).triangles[:, ::-1]  # seen from inside


def seen_of(inside, places, count=20_000):
    triangles = np.concatenate([ROOM, inside.triangles])
    coarse = Mesh.of(triangles)
    mesh = cut(coarse, np.ones(len(triangles)), count, np.random.default_rng(0))
    return mesh, seen(mesh, triangles, np.array(places, float))


def test_an_empty_room_is_seen_whole():
    _, which = seen_of(join([]), [(0.5, 0.3, 1.2), (-0.7, -0.9, 1.5)])
    assert which.all()


def test_what_is_behind_or_inside_something_is_not_seen():
    wardrobe = join([box((1, 0.6, 2), (0, 0, 0), (0, 1.65, 0)), box((0.3, 0.3, 0.3), (0, 0, 0), (0, 1.65, 1.0))])
    mesh, which = seen_of(wardrobe, [(0.0, -1.0, 1.2), (1.0, -0.5, 1.5)])
    middle = mesh.vertices[mesh.faces].mean(axis=1)
    behind = (mesh.origin < 16) & (middle[:, 1] > 1.99) & (np.abs(middle[:, 0]) < 0.2) & (middle[:, 2] < 1.5)
    inside = mesh.origin >= 32
    front = (mesh.origin >= 16) & (mesh.origin < 32) & (middle[:, 1] < 1.36)
    assert behind.sum() > 5 and not which[behind].any()
    assert inside.sum() > 5 and not which[inside].any()
    assert front.sum() > 5 and which[front].all()


def test_the_scanner_is_carried_over_the_walkable_floor():
    plan = draw_plan(np.random.default_rng(3), (40, 50))
    places = scanner_places(plan, np.random.default_rng(0))
    assert shapely.contains_xy(walkable_floor(plan), places[:, :2]).all()
    assert ((places[:, 2] >= HEIGHTS[0]) & (places[:, 2] <= HEIGHTS[1])).all()
    assert len(places) > 0.5 * walkable_floor(plan).area

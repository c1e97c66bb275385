import heapq

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from navprune.scenes.homes.floorplan import draw_plan
from navprune.scenes.homes.furniture import AGENT_HEIGHT, MAX_CLIMB
from navprune.scenes.homes.walkable import convex_polygons, home_navmesh, walkable_floor
from navprune.simulator.pathfinder import PathFinder


def shortest(area, start, goal):
    """Length of the shortest path in a polygon: Dijkstra over the graph of points that see each other."""
    rings = [shapely.get_coordinates(ring)[:-1] for ring in (area.exterior, *area.interiors)]
    points = np.concatenate([[start, goal], *rings])
    i, j = np.triu_indices(len(points), 1)
    slack = area.buffer(1e-3)
    shapely.prepare(slack)
    seen = shapely.covers(slack, shapely.linestrings(np.stack([points[i], points[j]], axis=1)))
    length = np.full((len(points), len(points)), np.inf)
    length[i[seen], j[seen]] = length[j[seen], i[seen]] = np.linalg.norm(points[i[seen]] - points[j[seen]], axis=1)
    best, queue = np.full(len(points), np.inf), [(0.0, 0)]
    while queue:
        distance, node = heapq.heappop(queue)
        if distance < best[node]:
            best[node] = distance
            for next_node in np.flatnonzero(distance + length[node] < best):
                heapq.heappush(queue, (distance + length[node, next_node], int(next_node)))
    return best[1]


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000))
def test_polygons_are_convex_small_and_tile_the_floor(seed):
    area = walkable_floor(draw_plan(np.random.default_rng(seed), (40, 120)))
    corners, polygons = convex_polygons(area)
    shapes = [shapely.Polygon(corners[polygon]) for polygon in polygons]
    assert all(3 <= len(polygon) <= 6 for polygon in polygons)
    assert sum(shape.area for shape in shapes) == pytest.approx(area.area)
    assert shapely.union_all(shapes).symmetric_difference(area).area < 1e-6
    for shape in shapes:
        assert shape.exterior.is_ccw
        assert shape.convex_hull.area == pytest.approx(shape.area)


def test_the_navmesh_keeps_clear_of_everything_that_blocks():
    for seed in range(4):
        plan = draw_plan(np.random.default_rng(seed), (40, 100))
        corners, polygons = convex_polygons(walkable_floor(plan))
        floor = shapely.union_all([shapely.Polygon(corners[polygon]) for polygon in polygons])
        assert floor.within(plan.floor.buffer(-0.1 + 2e-3, join_style="mitre"))
        for piece in plan.pieces:
            triangles = piece.solid().triangles
            low, high = triangles[..., 2].min(axis=1), triangles[..., 2].max(axis=1)
            in_the_way = triangles[(low < AGENT_HEIGHT) & (high > MAX_CLIMB)]
            if piece.blocks:
                distance = shapely.distance(floor, shapely.multipoints(in_the_way[..., :2]))
                assert (distance > 0.099).all(), piece.kind
            else:
                assert len(in_the_way) == 0


def test_the_path_finder_finds_one_island_and_nearly_shortest_paths():
    ratios = []
    for seed in range(3):
        plan = draw_plan(np.random.default_rng(seed), (40, 90))
        area = walkable_floor(plan)
        pathfinder = PathFinder(home_navmesh(plan))
        assert pathfinder.navigable_area == pytest.approx(area.area, rel=1e-4)
        starts, goals = np.split(pathfinder.sample(20, np.random.default_rng(seed)), 2)
        found = pathfinder.geodesic_distance(starts, goals)
        for start, goal, distance in zip(starts, goals, found):
            truth = shortest(shapely.orient_polygons(area), start[[0, 2]] * [1, -1], goal[[0, 2]] * [1, -1])
            ratios.append(distance / truth)
    assert min(ratios) > 0.998
    assert np.mean(ratios) < 1.02 and max(ratios) < 1.25

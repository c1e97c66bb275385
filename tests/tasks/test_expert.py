"""The expert as a controller of its own, on the reference scenes."""

import math
from pathlib import Path

import numpy as np
import pytest
from headings import forward_of, heading_of

from navprune.scenes.files.episodes import read_episodes, scene_path
from navprune.scenes.files.navmesh import read_navmesh
from navprune.simulator.pathfinder import PathFinder
from navprune.tasks import FORWARD, LEFT, RIGHT, STOP
from navprune.tasks.expert import TURN_COST, USEFUL_SHARE, shortest_path_actions
from navprune.tasks.motion import collided

REFERENCE = Path(__file__).parents[1] / "data" / "reference"
SUCCESS, STRIDE, TURN = 0.2, 0.25, math.radians(10.0)


def pathfinder_of(scene):
    return PathFinder(read_navmesh(scene_path(REFERENCE, f"reference/{scene}.glb").with_suffix(".navmesh")))


def distance_between(pathfinder, position, goal):
    return float(pathfinder.geodesic_distance(position[None], goal[None])[0])


def act(pathfinder, position, heading, goal, sliding):
    distance = distance_between(pathfinder, position, goal)
    task = {"success_distance": SUCCESS, "forward_step": STRIDE, "turn_angle": TURN, "sliding": sliding}
    columns = (np.array([each]) for each in (position, heading, goal, distance))
    return shortest_path_actions(pathfinder, *columns, **task)[0]


# One step of foresight is too little for some narrow places where the agent cannot slide.
@pytest.mark.parametrize(("sliding", "share"), [(True, 1.0), (False, 0.9)])
@pytest.mark.parametrize("scene", ["apartment", "duplex"])
def test_reaches_goals_and_stops_only_there(scene, sliding, share):
    pathfinder, reached = pathfinder_of(scene), []
    for episode in [e for e in read_episodes(REFERENCE, "reference", "val") if scene in e.scene_id]:
        position, goal = np.array(episode.start_position), np.array(episode.goal_position)
        heading = heading_of(np.array(episode.start_rotation))
        for _ in range(500):
            action = act(pathfinder, position, heading, goal, sliding)
            if action == STOP:
                break
            heading += {LEFT: TURN, RIGHT: -TURN}.get(action, 0.0)
            if action == FORWARD:
                target = position + STRIDE * forward_of(heading)
                position = pathfinder.step(position[None], target[None], sliding=sliding)[0]
        near = distance_between(pathfinder, position, goal) < SUCCESS
        assert near == (action == STOP)
        reached.append(near)
    assert np.mean(reached) >= share


def test_stops_where_no_path_leads_to_the_goal():
    pathfinder = pathfinder_of("apartment")
    start = pathfinder.sample(1, np.random.default_rng(0))[0]
    assert act(pathfinder, start, 0.0, np.array([1e3, 0.0, 1e3]), True) == STOP


def plain_action(pathfinder, position, heading, goal, distance, success_distance, forward_step, turn_angle, sliding):
    """The expert for one agent, a heading after the other."""
    if distance < success_distance or not math.isfinite(distance):
        return STOP

    def gain(turns):
        target = position + forward_step * forward_of(heading + turns * turn_angle)
        end = pathfinder.step(position[None], target[None], sliding=sliding)[0]
        if not sliding and collided(position, target, end):
            return -math.inf
        return distance - distance_between(pathfinder, end, goal) - TURN_COST * abs(turns)

    offsets = (corner - position for corner in pathfinder.find_path(position, goal).points[1:])
    offset = next((offset for offset in offsets if math.hypot(offset[0], offset[2]) > 1e-3), np.array([0.0, 0.0, -1.0]))
    direction = math.atan2(-offset[0], -offset[2]) - heading
    lower = math.floor(((direction + math.pi) % (2 * math.pi) - math.pi) / turn_angle)
    gains = {turns: gain(turns) for turns in (lower, lower + 1)}
    if max(gains.values()) < USEFUL_SHARE * forward_step:
        half = round(math.pi / turn_angle)
        gains |= {turns: gain(turns) for turns in range(-half + 1, half + 1)}
    best = max(gains, key=lambda turns: (gains[turns], -abs(turns)))
    return FORWARD if best == 0 else LEFT if best > 0 else RIGHT


@pytest.mark.parametrize("sliding", [True, False])
@pytest.mark.parametrize("scene", ["apartment", "duplex"])
def test_a_batch_acts_as_one_agent_after_the_other(scene, sliding):
    pathfinder, rng = pathfinder_of(scene), np.random.default_rng(5)
    positions, goals = pathfinder.sample(300, rng), pathfinder.sample(300, rng)
    near = rng.random(300) < 0.2
    goals[near] = positions[near] + 0.2 * rng.normal(size=(near.sum(), 3)) * (1, 0, 1)
    goals[7], headings = 1e3, rng.uniform(-9, 9, 300)
    distances = pathfinder.geodesic_distance(positions, goals)
    task = {"success_distance": SUCCESS, "forward_step": STRIDE, "turn_angle": TURN, "sliding": sliding}
    together = shortest_path_actions(pathfinder, positions, headings, goals, distances, **task)
    alone = [plain_action(pathfinder, *row, **task) for row in zip(positions, headings, goals, distances)]
    assert together.tolist() == alone
    assert set(alone) == {STOP, FORWARD, LEFT, RIGHT}
    assert (
        shortest_path_actions(pathfinder, *(x[:0] for x in (positions, headings, goals, distances)), **task).size == 0
    )

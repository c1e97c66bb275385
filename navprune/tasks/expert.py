"""The shortest-path expert: the action that an agent with a map would take."""

import math

import numpy as np
from numpy.typing import NDArray

from navprune.simulator.pathfinder import PathFinder
from navprune.tasks import FORWARD, LEFT, RIGHT, STOP
from navprune.tasks.measures import collided, forward_of

# A forward step must bring the goal nearer by this share of its length, or other headings are tried.
USEFUL_SHARE = 0.2
# Metres that one turn is worth when headings compete: a tie-break, far below a step's length.
TURN_COST = 0.01


def shortest_path_action(
    pathfinder: PathFinder,
    position: NDArray[np.float64],
    heading: float,
    goal: NDArray[np.float64],
    distance: float,
    *,
    success_distance: float,
    forward_step: float,
    turn_angle: float,
    sliding: bool,
) -> int:
    """The action of a greedy follower of the geodesic, as habitat-sim's GreedyGeodesicFollower chooses it.

    It simulates a step along each of the two headings (multiples of the turn from the present one) that enclose
    the direction of the next corner, and takes the one after which the goal is nearer; where neither helps, all
    headings compete. position and goal [3], heading and turn_angle in radians, distance = geodesic distance to
    the goal in metres, sliding as the task has it. Returns 0 stop, 1 forward, 2 left, 3 right; stop where no path
    leads to the goal.
    """
    if distance < success_distance or not math.isfinite(distance):
        return STOP
    corners = pathfinder.find_path(position, goal).points

    def gain(turns: int) -> float:
        target = position + forward_step * forward_of(heading + turns * turn_angle)
        end = pathfinder.step(position[None], target[None], sliding=sliding)
        if not sliding and collided(position, target, end[0]):
            return -math.inf  # Who stands against a wall and cannot slide would run into it for ever.
        return distance - float(pathfinder.geodesic_distance(end, goal[None])[0]) - TURN_COST * abs(turns)

    offset = _first_offset(corners, position)
    direction = math.atan2(-offset[0], -offset[2]) - heading
    lower = math.floor(((direction + math.pi) % (2 * math.pi) - math.pi) / turn_angle)  # the same in [-pi, pi)
    gains = {turns: gain(turns) for turns in (lower, lower + 1)}
    if max(gains.values()) < USEFUL_SHARE * forward_step:
        half = round(math.pi / turn_angle)
        gains |= {turns: gain(turns) for turns in range(-half + 1, half + 1)}
    best = max(gains, key=lambda turns: (gains[turns], -abs(turns)))
    if best == 0:
        return FORWARD
    return LEFT if best > 0 else RIGHT


def _first_offset(corners: NDArray[np.float64], position: NDArray[np.float64]) -> NDArray[np.float64]:
    """Offset [3] to the first corner of a path that is not the position itself."""
    offsets = (corner - position for corner in corners[1:])
    return next((offset for offset in offsets if math.hypot(offset[0], offset[2]) > 1e-3), np.array([0.0, 0.0, -1.0]))


def shortest_path_actions(pathfinder, positions, headings, goals, distances, **task):  # type: ignore[no-untyped-def]
    """`shortest_path_action` for agents one after another."""
    states = zip(positions, headings, goals, distances)
    return np.array([shortest_path_action(pathfinder, *state, **task) for state in states])

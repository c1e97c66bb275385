"""The shortest-path expert: the actions that agents with a map would take."""

import numpy as np
from numpy.typing import NDArray

from navprune.simulator.pathfinder import PathFinder
from navprune.tasks import STOP
from navprune.tasks.motion import collided, first_actions

Floats = NDArray[np.float64]

# A forward step must bring the goal nearer by this share of its length, or other headings are tried.
USEFUL_SHARE = 0.2
# Metres that one turn is worth when headings compete: a tie-break, far below a step's length.
TURN_COST = 0.01


def shortest_path_actions(
    pathfinder: PathFinder,
    positions: Floats,
    headings: Floats,
    goals: Floats,
    distances: Floats,
    *,
    success_distance: float,
    forward_step: float,
    turn_angle: float,
    sliding: bool,
) -> NDArray[np.int64]:
    """The actions [N] by which agents of one scene follow their shortest paths with one step of foresight.

    Each simulates a step along the two headings (multiples of the turn from the present one) that enclose the
    direction of the next corner, and takes the one after which the goal is nearer; where neither helps, all headings
    compete. positions and goals [N, 3], headings [N] and turn_angle in radians, distances [N] = geodesic distances to
    the goals in metres, sliding as the task has it. 0 stop, 1 forward, 2 left, 3 right; stop where no path leads to
    the goal.
    """
    actions = np.full(len(positions), STOP)
    active = np.flatnonzero((distances >= success_distance) & np.isfinite(distances))
    if not len(active):
        return actions
    positions, headings, goals, distances = positions[active], headings[active], goals[active], distances[active]

    def gains(agents: NDArray[np.int64], turns: NDArray[np.int64]) -> Floats:
        """Metres by which a step after each of the turns [A, K] brings the goals nearer."""
        heading = (headings[agents, None] + turns * turn_angle).ravel()
        starts, ends = (np.repeat(points[agents], turns.shape[1], axis=0) for points in (positions, goals))
        targets = starts - forward_step * np.stack([np.sin(heading), 0 * heading, np.cos(heading)], axis=-1)
        reached = pathfinder.step(starts, targets, sliding=sliding)
        left = pathfinder.geodesic_distance(reached, ends)
        if not sliding:  # who stands against a wall and cannot slide would run into it for ever
            left[collided(starts, targets, reached)] = np.inf
        return distances[agents, None] - left.reshape(turns.shape) - TURN_COST * np.abs(turns)

    lower = _turns_to_the_next_corner(pathfinder, positions, headings, goals, turn_angle)
    everyone = np.arange(len(active))
    turns = np.stack([lower, lower + 1], axis=1)
    gained = gains(everyone, turns)
    best = _best_of(gained, turns)
    hard = everyone[gained.max(axis=1) < USEFUL_SHARE * forward_step]
    if len(hard):
        half = round(np.pi / turn_angle)
        around = np.broadcast_to(np.arange(-half + 1, half + 1), (len(hard), 2 * half))
        all_gained = np.hstack([gained[hard], gains(hard, around)])
        best[hard] = _best_of(all_gained, np.hstack([turns[hard], around]))
    actions[active] = first_actions(best)
    return actions


def _best_of(gains: Floats, turns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each row the turns of the largest gain; of equal ones the fewest, then the first."""
    fewest = np.where(gains == gains.max(axis=1, keepdims=True), np.abs(turns), np.iinfo(np.int64).max)
    return turns[np.arange(len(turns)), fewest.argmin(axis=1)]


def _turns_to_the_next_corner(
    pathfinder: PathFinder, positions: Floats, headings: Floats, goals: Floats, turn_angle: float
) -> NDArray[np.int64]:
    """How many whole turns [N], from -half a circle on, lie before the direction of the path's next corner."""
    offsets = pathfinder.next_corners(positions, goals) - positions
    none = np.isnan(offsets[:, 0])
    directions = np.arctan2(np.where(none, 0.0, -offsets[:, 0]), np.where(none, 1.0, -offsets[:, 2])) - headings
    return np.floor(((directions + np.pi) % (2 * np.pi) - np.pi) / turn_angle).astype(np.int64)

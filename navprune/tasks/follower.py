"""habitat-sim's greedy follower of the geodesic, which habitat-lab calls ShortestPathFollower, for many agents at once.

A plan is n turns to one side and a step. It is worth what the step gains of the way, as a share of the step's length,
less what turns, a collision and the nearness of an obstacle cost. The agent takes the best plan's first action. Sums
are rounded as in habitat-sim, whose actions these are.
"""

from collections import deque
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from navprune.simulator.pathfinder import PathFinder
from navprune.tasks import LEFT, RIGHT, STOP, motion

Floats = NDArray[np.float32]

TURN_COST, COLLISION_COST, CLOSE_COST = np.float32(0.0125), np.float32(0.25), np.float32(0.05)
CLOSE = np.float32(0.2)
"""Metres to an obstacle below which a place costs."""
GOOD_ENOUGH = np.float32(0.99)
"""Worth beyond which no more turns are tried."""
THRASHING = 16
"""Turns from side to side after which a plan is followed to its end, lest they go on for ever."""


class Abilities(NamedTuple):
    """What the task lets an agent do: where it stops, its step in metres, its turn in radians, whether it slides."""

    goal_radius: float
    forward_step: float
    turn_angle: float
    sliding: bool


class Plans(NamedTuple):
    """Turns int64 [N] before a step, to the left where positive; and bool [N], which agents have a plan at all."""

    turns: NDArray[np.int64]
    found: NDArray[np.bool_]


class Follower:
    """Chooses the actions of N agents of one scene; it remembers them, see `THRASHING`."""

    def __init__(self, count: int, abilities: Abilities) -> None:
        self._abilities = abilities
        self._taken = [deque[int](maxlen=THRASHING) for _ in range(count)]
        self._kept: dict[int, int] = {}  # by agent the turns that are left of a plan that is followed to its end

    def reset(self, agent: int = 0) -> None:
        """Forget what an agent did, for it has another goal."""
        self._taken[agent].clear()
        self._kept.pop(agent, None)

    def actions(
        self, pathfinder: PathFinder, positions: NDArray, rotations: NDArray, goals: NDArray
    ) -> NDArray[np.int64]:
        """The next actions [N] of agents at positions [N, 3] with rotations [N, 4] (x, y, z, w) and goals [N, 3].

        0 stop, 1 forward, 2 left, 3 right; stop, too, where no path leads to the goal or no plan is worth taking.
        """
        plans = plan(pathfinder, self._abilities, positions.astype(np.float32), rotations.astype(np.float32), goals)
        return np.array([self._take(agent, *each) for agent, each in enumerate(zip(*plans))], np.int64)

    def _take(self, agent: int, turns: int, found: bool) -> int:
        stays = agent in self._kept or (found and _is_thrashing(self._taken[agent]))
        if agent in self._kept:
            turns, found = self._kept.pop(agent), True
        if stays and turns:
            self._kept[agent] = turns - int(np.sign(turns))
        action = int(motion.first_actions(turns)) if found else STOP
        self._taken[agent].append(action)
        return action


def _is_thrashing(taken: deque[int]) -> bool:
    """Whether the last `THRASHING` actions were turns, each to the other side."""
    actions = list(taken)
    return len(actions) == THRASHING and all({a, b} == {LEFT, RIGHT} for a, b in pairwise(actions))


def plan(pathfinder: PathFinder, able: Abilities, positions: Floats, rotations: Floats, goals: NDArray) -> Plans:
    """The best plan of each agent; none within the goal's radius, without a path, or where each costs a collision.

    n = 0, 1, ... turns are tried while n turns are less than half a circle and nothing good enough is found. Of equal
    plans the first wins, the left one before the right one.
    """
    distances = pathfinder.geodesic_distance(positions, goals)
    active = np.flatnonzero(np.isfinite(distances) & (distances >= able.goal_radius))
    worth = np.full(len(positions), -COLLISION_COST, np.float32)
    turns, found = np.zeros(len(positions), np.int64), np.zeros(len(positions), np.bool_)
    sides = {0: rotations, 1: rotations.copy(), -1: rotations.copy()}
    angle, n = np.float32(0), 0
    while angle < np.pi and len(active):
        for sign in (1, -1) if n else (0,):
            if n:
                sides[sign][active] = motion.turn(sides[sign][active], sign * able.turn_angle)
            value = _worth(
                pathfinder, able, positions[active], sides[sign][active], goals[active], distances[active], n
            )
            better = value > worth[active]
            winners = active[better]
            worth[winners], turns[winners], found[winners] = value[better], sign * n, True
        active = active[worth[active] <= GOOD_ENOUGH]
        angle, n = np.float32(float(angle) + able.turn_angle), n + 1
    return Plans(turns, found)


def _worth(
    pathfinder: PathFinder,
    able: Abilities,
    positions: Floats,
    rotations: Floats,
    goals: NDArray,
    distances: NDArray[np.float64],
    turns: int,
) -> Floats:
    """What a step ahead is worth after so many turns, [N]."""
    targets = motion.aim(positions, rotations, able.forward_step)
    reached = pathfinder.step(positions, targets, sliding=able.sliding).astype(np.float32)
    ends = motion.settle(targets, reached)
    close = pathfinder.obstacle_distance(ends, 1.1 * float(CLOSE)) < CLOSE
    cost = TURN_COST * np.float32(turns) + COLLISION_COST * motion.collided(positions, targets, reached)
    gained = (distances - pathfinder.geodesic_distance(ends, goals)).astype(np.float32)
    return (gained.astype(np.float64) / able.forward_step - (cost + CLOSE_COST * close)).astype(np.float32)

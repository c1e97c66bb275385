"""Where N agents stand and in which scenes; what they ask of path finders goes there in one batch a scene."""

import math
from collections.abc import Iterator
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from navprune.simulator.pathfinder import PathFinder
from navprune.tasks import FORWARD, LEFT, RIGHT, motion
from navprune.tasks.config import TaskConfig
from navprune.tasks.measures import headings_of

Rows = NDArray[np.int64]
"""Numbers of environments, or of rows among these."""


class Ground(Protocol):
    """What an episode needs of its scene: where one can walk."""

    @property
    def pathfinder(self) -> PathFinder:
        """Of the whole scene."""


World = TypeVar("World", bound=Ground)


class Walked(NamedTuple):
    """What became of the K agents that went ahead: who, how far in metres [K], who ran into something [K]."""

    envs: Rows
    lengths: NDArray[np.float64]
    collided: NDArray[np.bool_]


class Poses(Generic[World]):
    """Positions float32 [N, 3] in metres, rotations float32 [N, 4] as x, y, z, w; the scenes, None where no agent is.

    The arithmetic is habitat-sim's float32, see `motion`.
    """

    def __init__(self, count: int) -> None:
        self.positions = np.zeros((count, 3), np.float32)
        self.rotations = np.tile(np.array([0, 0, 0, 1], np.float32), (count, 1))
        self.scenes: list[World | None] = [None] * count

    @property
    def headings(self) -> NDArray[np.float64]:
        """Angles about +y in radians [N]; 0 looks along -z, positive is left."""
        return headings_of(self.rotations)

    def scene(self, env: int) -> World:
        """The scene of an environment that has one."""
        scene = self.scenes[env]
        assert scene is not None, "the environment has no episode left"
        return scene

    def by_scene(self, envs: Rows) -> Iterator[tuple[PathFinder, Rows]]:
        """Yield each scene's path finder with the rows of `envs` that are there."""
        groups: dict[int, list[int]] = {}
        for row, env in enumerate(envs.tolist()):
            groups.setdefault(id(self.scenes[env]), []).append(row)
        for rows in groups.values():
            yield self.scene(envs[rows[0]]).pathfinder, np.array(rows)

    def distances(self, envs: Rows, ends: ArrayLike) -> NDArray[np.float64]:
        """Geodesic distances [K] in metres from agents to their `ends` [K, 3]; infinite where none is reached."""
        ends, answer = np.asarray(ends), np.empty(len(envs))
        for finder, rows in self.by_scene(envs):
            answer[rows] = finder.geodesic_distance(self.positions[envs[rows]], ends[rows])
        return answer

    def move(self, envs: Rows, actions: NDArray[np.int64], config: TaskConfig) -> Walked:
        """Turn agents on the spot or move them ahead, as far as walls let them; other actions move nobody."""
        turning = envs[(actions == LEFT) | (actions == RIGHT)]
        if len(turning):
            angle = math.radians(config.turn_angle)
            sides = np.where(actions[(actions == LEFT) | (actions == RIGHT)] == LEFT, angle, -angle)
            self.rotations[turning] = motion.turn(self.rotations[turning], sides)
        walking = envs[actions == FORWARD]
        starts = self.positions[walking]
        targets = motion.aim(starts, self.rotations[walking], config.forward_step)
        reached = np.empty_like(starts)
        for finder, rows in self.by_scene(walking):
            reached[rows] = finder.step(starts[rows], targets[rows], sliding=config.sliding)
        ends = self.positions[walking] = motion.settle(targets, reached)
        lengths = np.linalg.norm(ends.astype(np.float64) - starts, axis=1)
        return Walked(walking, lengths, motion.collided(starts, targets, reached))

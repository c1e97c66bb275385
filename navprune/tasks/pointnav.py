"""PointNav: go to a point and say STOP there. Its goal, reward and measures, for N agents at once."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import ArrayLike, NDArray

from navprune.scenes.files.episodes import Episode
from navprune.simulator.renderer import MakeRenderer
from navprune.simulator.scene import SceneLibrary
from navprune.tasks import GOAL, STOP, measures
from navprune.tasks.config import TaskConfig as TaskConfig
from navprune.tasks.engine import EmbeddedEnv, Outcome
from navprune.tasks.expert import shortest_path_actions
from navprune.tasks.orders import EpisodeOrder as EpisodeOrder
from navprune.tasks.orders import Once as Once
from navprune.tasks.orders import Shuffled as Shuffled
from navprune.tasks.poses import Poses, Rows, Walked


class PointNav:
    """The task; implements `engine.Task`.

    goals [N, 3] and distance [N], geodesic, are in metres; what else it remembers stands in `arrays`.
    """

    def __init__(self, config: TaskConfig, poses: Poses[Any]) -> None:
        self._config, self._poses = config, poses
        count = len(poses.positions)
        self.action_space = gymnasium.spaces.Discrete(4)
        self.goals, self._measured_at = np.zeros((2, count, 3))
        self.distance, self._shortest, self._travelled = np.zeros((3, count))
        self._success = np.zeros(count, bool)
        self._expert = partial(
            shortest_path_actions,
            success_distance=config.success_distance,
            forward_step=config.forward_step,
            turn_angle=math.radians(config.turn_angle),
            sliding=config.sliding,
        )

    @property
    def spaces(self) -> dict[str, gymnasium.Space[Any]]:
        """Of the goal sensor."""
        low, high = np.array([0.0, -np.pi], np.float32), np.array([np.inf, np.pi], np.float32)
        return {GOAL: gymnasium.spaces.Box(low, high, dtype=np.float32)}

    def begin(self, envs: Rows, episodes: Sequence[Episode]) -> None:
        """Begin these episodes."""
        for env, episode in zip(envs, episodes, strict=True):
            self.goals[env] = episode.goal_position
        self._travelled[envs], self._success[envs] = 0, False
        self._measure(envs)
        self._shortest[envs] = self.distance[envs]

    def act(self, envs: Rows, actions: NDArray[np.int64], walked: Walked) -> Outcome:
        """Reward what brought an agent nearer to its goal, and STOP there; STOP ends the episode."""
        config, before = self._config, self.distance[envs]
        self._travelled[walked.envs] += walked.lengths
        self._measure(walked.envs[self._has_moved(walked.envs)])
        now, stopped = self.distance[envs], actions == STOP
        success = self._success[envs] = stopped & (now < config.success_distance)
        return Outcome(config.slack_reward + before - now + config.success_reward * success, stopped)

    def _has_moved(self, envs: Rows) -> NDArray[np.bool_]:
        return measures.has_moved(self._measured_at[envs], self._poses.positions[envs].astype(np.float64))

    def _measure(self, envs: Rows) -> None:
        """Measure the distance to the goal where the agents stand."""
        self._measured_at[envs] = self._poses.positions[envs]
        self.distance[envs] = self._poses.distances(envs, self.goals[envs])

    def observe(self, envs: Rows) -> dict[str, NDArray]:
        """The goal sensor, see `measures.goal_vectors`."""
        poses = self._poses
        return {GOAL: measures.goal_vectors(poses.positions[envs], poses.headings[envs], self.goals[envs])}

    def measures(self, env: int) -> dict[str, float]:
        """Habitat's measures of the running episode so far."""
        distance, shortest, travelled = (float(x[env]) for x in (self.distance, self._shortest, self._travelled))
        success = bool(self._success[env])
        return {
            "success": float(success),
            "spl": measures.spl(success, shortest, travelled),
            "soft_spl": measures.soft_spl(distance, shortest, travelled),
            "distance_to_goal": distance,
        }

    def expert_actions(self, envs: Rows) -> NDArray[np.int64]:
        """The shortest-path actions [K]."""
        positions, headings = self._poses.positions.astype(np.float64), self._poses.headings
        actions = np.empty(len(envs), np.int64)
        for finder, rows in self._poses.by_scene(envs):
            there = envs[rows]
            state = positions[there], headings[there], self.goals[there], self.distance[there]
            actions[rows] = self._expert(finder, *state)
        return actions

    def place(self, env: int, distance: float) -> None:
        """Take it that an agent's goal was `distance` metres away where it stands now."""
        self._measured_at[env], self.distance[env] = self._poses.positions[env], distance

    @property
    def arrays(self) -> dict[str, NDArray]:
        """What it remembers between two steps."""
        kept = {"goals": self.goals, "measured_at": self._measured_at, "distance": self.distance}
        return kept | {"shortest": self._shortest, "travelled": self._travelled}


class PointNavEnv(EmbeddedEnv):
    """N PointNav environments in one process, see `EmbeddedEnv`."""

    task: PointNav

    def __init__(
        self,
        episodes: Sequence[Episode],
        data: Path,
        order: EpisodeOrder,
        num_envs: int,
        config: TaskConfig | None = None,
        *,
        library: SceneLibrary | None = None,
        renderer: MakeRenderer | None = None,
        threads: int | None = None,
    ) -> None:
        """Episodes of a split and the rest as `EmbeddedEnv` takes it."""
        how = {"library": library, "renderer": renderer, "threads": threads}
        super().__init__(episodes, data, order, num_envs, config, PointNav, **how)  # type: ignore[arg-type]

    def place(self, env: int, position: ArrayLike, rotation: ArrayLike, distance: float) -> None:
        """Put an agent at a position [3], metres, and a rotation [4]; distance is what its goal was last away."""
        self.poses.positions[env], self.poses.rotations[env] = position, rotation
        self.task.place(env, distance)

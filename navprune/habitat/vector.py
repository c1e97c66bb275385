"""PointNav for N agents in lockstep over habitat-lab's worker processes."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from habitat.tasks.nav.nav import NavigationEpisode, NavigationGoal
from numpy.typing import NDArray

from navprune.errors import UserError
from navprune.habitat.devices import gpu_of
from navprune.habitat.settings import lab_config
from navprune.habitat.workers import WorkerReport, Workers
from navprune.scenes.files.episodes import Episode, scene_path
from navprune.scenes.recast.bodies import navmesh_for
from navprune.simulator.pathfinder import PathFinder
from navprune.tasks import STOP
from navprune.tasks.config import TaskConfig
from navprune.tasks.engine import Lockstep, Observations
from navprune.tasks.orders import EpisodeOrder
from navprune.tasks.pointnav import PointNav
from navprune.tasks.poses import Rows

if TYPE_CHECKING:
    from navprune.config import DataConfig

KEPT_FLOORS = 100
"""Navmeshes that an environment keeps in memory."""


class Floor(NamedTuple):
    """A scene as the main process needs it: for the expert and for maps, not for images."""

    pathfinder: PathFinder


class HabitatEnv(Lockstep[Floor]):
    """N PointNav environments in habitat-lab's worker processes, over the embedded simulator or habitat-sim.

    Implements VectorEnv with the answers of PointNavEnv, to habitat-lab's float32 positions. The processes begin at
    reset. Raises what Workers raises, and UserError where the simulator is not installed.
    """

    task: PointNav

    def __init__(
        self,
        episodes: Sequence[Episode],
        data: "DataConfig",
        split: str,
        order: EpisodeOrder,
        num_envs: int,
        config: TaskConfig | None = None,
        *,
        simulator: str = "embedded",
        gpu: int | None = None,
        seed: int = 0,
        first: int = 0,
    ) -> None:
        """Episodes of a split of the data; gpu: as `devices.gpu_of` takes it, for habitat_sim alone.

        first: what the first environment is counted as, where others run elsewhere.
        """
        load = lru_cache(KEPT_FLOORS)(lambda path: Floor(PathFinder(navmesh_for(path, self.config.body))))
        super().__init__(episodes, Path(data.folder), order, num_envs, config, PointNav, load)
        gpus = [gpu_of(first + env, gpu) for env in range(num_envs)]
        configs = {gpu: lab_config(self.config, data, split, simulator, gpu, seed) for gpu in set(gpus)}
        self._configs = [configs[gpu] for gpu in gpus]
        self._workers: Workers | None = None
        self._taken: list[list[int]] = [[] for _ in range(num_envs)]
        self._measures: list[dict[str, float]] = [{} for _ in range(num_envs)]
        self._seen: dict[int, dict[str, np.ndarray]] = {}

    def _act(self, envs: Rows, actions: NDArray[np.int64]) -> tuple[NDArray, NDArray[np.bool_], NDArray[np.bool_]]:
        assert self._workers is not None, "step follows reset"
        chosen = dict(zip(envs.tolist(), actions.tolist(), strict=True))
        reward, over = np.zeros(len(envs)), np.zeros(len(envs), dtype=bool)
        for row, (env, answer) in enumerate(self._workers.act(chosen).items()):
            observations, reward[row], over[row], report = answer
            self._taken[env].append(chosen[env])
            self._note(env, observations, report)
        return reward, over & (actions == STOP), over & (actions != STOP)

    def running_measures(self, env: int) -> dict[str, float]:
        """The measures of the running episode so far."""
        return self._measures[env]

    def state_dict(self) -> dict[str, Any]:
        """Which episodes run, which come next, and the actions taken in the running ones."""
        return {**self._course(), "actions": [list(taken) for taken in self._taken]}

    def load_state_dict(self, state: dict[str, Any]) -> Observations:
        """Begin the running episodes anew and take their actions again, as the simulators leave nothing to chance.

        Raises UserError where the episodes were others or ran in another kind of environment.
        """
        self._take_course(state)
        if "actions" not in state:
            raise UserError("this run was saved by the embedded environments; go on with env=embedded")
        self._taken = [list(taken) for taken in state["actions"]]
        self._run(range(self.num_envs))
        return self._observe(np.arange(self.num_envs))

    def close(self) -> None:
        """End the workers."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def _begin(self, envs: Sequence[int]) -> None:
        for env in envs:
            self._taken[env] = []
            self._assign(env, self._order.next(env))
        self._run(envs)

    def _run(self, envs: Sequence[int]) -> None:
        """Begin the episodes of those environments that have one, and take the actions that they have behind them."""
        begun = {}
        for env in envs:
            self._seen.pop(env, None)
            if (index := self._index[env]) is not None:
                begun[env] = self._lab_episode(self._all[index])
                self.task.goals[env] = self._all[index].goal_position
        if self._workers is None:
            idle = self._lab_episode(self._all[0])
            self._workers = Workers(self._configs, [begun.get(env, idle) for env in range(self.num_envs)])
        answers = self._workers.begin({env: (episode, self._taken[env]) for env, episode in begun.items()})
        for env, answer in answers.items():
            self._note(env, *answer)

    def _lab_episode(self, episode: Episode) -> NavigationEpisode:
        return NavigationEpisode(
            episode_id=episode.episode_id,
            scene_id=str(scene_path(self._data, episode.scene_id)),
            start_position=list(episode.start_position),
            start_rotation=list(episode.start_rotation),
            goals=[NavigationGoal(position=list(episode.goal_position), radius=episode.goal_radius)],
            info={} if episode.geodesic_distance is None else {"geodesic_distance": episode.geodesic_distance},
        )

    def _note(self, env: int, observations: dict[str, np.ndarray], report: WorkerReport) -> None:
        self._seen[env] = observations
        self.poses.positions[env], self.poses.rotations[env] = report.position, report.rotation
        self._measures[env], self.task.distance[env] = report.measures, report.measures["distance_to_goal"]

    def _observe(self, envs: Rows) -> Observations:
        idle = {key: np.zeros(space.shape, space.dtype) for key, space in self.observation_space.items()}
        seen = [self._seen.get(env, idle) for env in envs.tolist()]
        return {key: torch.from_numpy(np.array([each[key] for each in seen], idle[key].dtype)) for key in idle}

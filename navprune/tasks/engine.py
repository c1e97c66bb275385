"""N agents in lockstep over the scenes of a data set: who runs which episode, where they stand, what they see.

What an agent is asked to do, and what that is worth, is the task's part (`Task`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from navprune.errors import UserError
from navprune.scenes.files.episodes import Episode, EpisodeTable, check_episodes, scene_path
from navprune.scenes.files.places import check_files
from navprune.sensors import SENSORS
from navprune.simulator.rasterizer import Rasterizer
from navprune.simulator.renderer import Camera, MakeRenderer
from navprune.simulator.scene import Scene, SceneLibrary
from navprune.tasks.config import TaskConfig
from navprune.tasks.measures import rotations_of
from navprune.tasks.orders import EpisodeOrder, Once
from navprune.tasks.poses import Poses, Rows, Walked, World

Observations = dict[str, Tensor]


class Finished(NamedTuple):
    """An episode that ended, in which environment, with its measures."""

    env: int
    episode: Episode
    measures: dict[str, float]


class Step(NamedTuple):
    """What a vector environment answers to N actions; see docs/architecture.md."""

    observations: Observations
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    finished: list[Finished]
    final_observations: Observations | None


class VectorEnv(Protocol):
    """N environments in lockstep; an ended one begins its next episode at once."""

    num_envs: int
    observation_space: gymnasium.spaces.Dict
    action_space: gymnasium.spaces.Discrete

    @property
    def active(self) -> np.ndarray:
        """Which environments still run an episode, bool [N]."""

    @property
    def episodes(self) -> list[Episode | None]:
        """The running episodes, [N]."""

    def reset(self) -> Observations:
        """Begin the first episodes."""

    def step(self, actions: Tensor) -> Step:
        """Take int64 actions [N]."""

    def expert_actions(self) -> Tensor:
        """The shortest-path actions int64 [N] in the present state."""

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on from here."""

    def load_state_dict(self, state: dict[str, Any]) -> Observations:
        """Go on from a state; returns its observations."""

    def close(self) -> None:
        """Free what the environments hold."""


class Outcome(NamedTuple):
    """What an action was worth and whether it ended the episode: K rows each."""

    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]


class Task(Protocol):
    """What N agents are asked to do: its actions, its goal and the sensor of it, reward, measures.

    It keeps what it must remember in arrays of N rows; `envs` [K] are the environments that a call is about.
    """

    action_space: gymnasium.spaces.Discrete

    @property
    def spaces(self) -> dict[str, gymnasium.Space[Any]]:
        """What its own sensors give an agent, by their names."""

    def begin(self, envs: Rows, episodes: Sequence[Episode]) -> None:
        """Begin these episodes, whose agents stand at their starts."""

    def act(self, envs: Rows, actions: NDArray[np.int64], walked: Walked) -> Outcome:
        """Judge the actions that agents took; `walked` is what became of those that went ahead."""

    def observe(self, envs: Rows) -> dict[str, NDArray]:
        """What its own sensors give, [K, ...] each."""

    def measures(self, env: int) -> dict[str, float]:
        """What the running episode is worth so far."""

    def expert_actions(self, envs: Rows) -> NDArray[np.int64]:
        """What an agent with a map would do, [K]."""

    @property
    def arrays(self) -> dict[str, NDArray]:
        """What it remembers, by name, as a state keeps it."""


MakeTask = Callable[[TaskConfig, Poses[Any]], Task]


class Lockstep(ABC, Generic[World]):
    """What every vector environment has: episodes and spaces, who runs what and where, the expert's map.

    Raises UserError when it is made for a scene file that is missing or, by its headers, broken; and, when a scene is
    first used, for an episode there whose start is off the navmesh or whose goal cannot be reached.
    """

    def __init__(
        self,
        episodes: Sequence[Episode],
        data: Path,
        order: EpisodeOrder,
        num_envs: int,
        config: TaskConfig | None,
        make_task: MakeTask,
        load: Callable[[Path], World],
    ) -> None:
        """Episodes of a split, the data folder that holds their scenes; load reads a scene from its path."""
        if not episodes:
            raise UserError("the split holds no episodes; choose another split or generate scenes")
        self.config = config or TaskConfig()
        self.num_envs = num_envs
        self.poses: Poses[World] = Poses(num_envs)
        self.task = make_task(self.config, self.poses)
        self._all, self._data, self._order, self._load = EpisodeTable.of(episodes), data, order, load
        self._by_scene = self._all.by_scene()
        for scene_id in self._by_scene:
            check_files(scene_path(data, scene_id))
        self._checked: set[str] = set()
        self._index: list[int | None] = [None] * num_envs
        self.action_space = self.task.action_space
        images = {name: _space(self.config, name) for name in self.config.sensors}
        self.observation_space = gymnasium.spaces.Dict(self.task.spaces | images)

    @property
    def positions(self) -> NDArray[np.float32]:
        """Where the agents stand, metres [N, 3]."""
        return self.poses.positions

    @property
    def headings(self) -> NDArray[np.float64]:
        """Angles about +y in radians [N]."""
        return self.poses.headings

    @property
    def active(self) -> np.ndarray:
        """Which environments still run an episode, bool [N]."""
        return np.array([index is not None for index in self._index])

    @property
    def episodes(self) -> list[Episode | None]:
        """The running episodes [N], None where nothing is left."""
        return [None if index is None else self._all[index] for index in self._index]

    def scene(self, env: int) -> World:
        """The scene of an environment that still runs an episode."""
        return self.poses.scene(env)

    def reset(self) -> Observations:
        """Begin the first episodes; observations of all N."""
        if isinstance(self._order, Once):
            # All episodes will run: a fault in the last must not cost the others' results.
            for scene_id in self._by_scene:
                self._scene_of(scene_id)
        self._begin(range(self.num_envs))
        return self._observe(np.arange(self.num_envs))

    def step(self, actions: Tensor) -> Step:
        """Move all agents, int64 actions [N]; ended environments begin their next episode."""
        if len(actions) != self.num_envs:
            raise ValueError(f"step takes {self.num_envs} actions, one an environment, not {len(actions)}")
        envs = np.flatnonzero(self.active)
        chosen = actions.numpy()[envs]
        for row in np.flatnonzero((chosen < 0) | (chosen >= self.action_space.n)):
            known = f"actions are 0 to {self.action_space.n - 1}"
            raise ValueError(f"environment {envs[row]} was given action {chosen[row]}; {known}")
        reward = np.zeros(self.num_envs, np.float32)
        terminated, truncated = np.zeros((2, self.num_envs), dtype=bool)
        reward[envs], terminated[envs], truncated[envs] = self._act(envs, chosen)
        over = np.flatnonzero(terminated | truncated).tolist()
        finished = [Finished(env, self._running(env), self.running_measures(env)) for env in over]
        ends = np.flatnonzero(truncated)
        final = self._observe(ends) if len(ends) else None
        self._begin(over)
        flags = torch.from_numpy(terminated), torch.from_numpy(truncated)
        return Step(self._observe(np.arange(self.num_envs)), torch.from_numpy(reward), *flags, finished, final)

    @abstractmethod
    def _begin(self, envs: Sequence[int]) -> None:
        """Begin the next episode of each of these environments, where one is left."""

    @abstractmethod
    def _act(self, envs: Rows, actions: NDArray[np.int64]) -> tuple[NDArray, NDArray[np.bool_], NDArray[np.bool_]]:
        """Take actions [K]; rewards, which episodes they ended, which the time limit cut off, [K] each."""

    @abstractmethod
    def _observe(self, envs: Rows) -> Observations:
        """Observations of these environments; zeros where nothing is left."""

    @abstractmethod
    def running_measures(self, env: int) -> dict[str, float]:
        """The measures of the running episode so far, as Habitat reports them after each step."""

    def expert_actions(self) -> Tensor:
        """The shortest-path actions int64 [N]; STOP where nothing is left."""
        actions, envs = np.zeros(self.num_envs, np.int64), np.flatnonzero(self.active)
        actions[envs] = self.task.expert_actions(envs)
        return torch.from_numpy(actions)

    def _running(self, env: int) -> Episode:
        index = self._index[env]
        assert index is not None, "the environment has no episode left"
        return self._all[index]

    def _scene_of(self, scene_id: str) -> World:
        """A scene that is fit for all its episodes, which are checked on its first use."""
        scene = self._load(scene_path(self._data, scene_id))
        if scene_id not in self._checked:
            check_episodes(self._by_scene[scene_id], scene.pathfinder)
            self._checked.add(scene_id)
        return scene

    def _assign(self, env: int, index: int | None) -> Episode | None:
        """Make the episode of this index the environment's own; None leaves it without one."""
        self._index[env], self.poses.scenes[env] = index, None
        if index is None:
            return None
        episode = self._all[index]
        self.poses.scenes[env] = self._scene_of(episode.scene_id)
        return episode

    def _course(self) -> dict[str, Any]:
        """Which episodes run and which come next, as plain numbers."""
        return {"digest": self._digest, "order": self._order.state_dict(), "index": list(self._index)}

    def _take_course(self, state: dict[str, Any]) -> None:
        """Go back to what `_course` told; raises UserError where its episodes were others."""
        # States saved before the digest was kept lack it and are trusted.
        if state.get("digest", self._digest) != self._digest:
            raise UserError(
                "the data set has changed since this run was saved; use the same data or another run folder"
            )
        self._order.load_state_dict(state["order"])
        for env, index in enumerate(state["index"]):
            self._assign(env, index)

    @cached_property
    def _digest(self) -> str:
        """What tells these episodes, in this order, from others."""
        return self._all.digest()


class EmbeddedEnv(Lockstep[Scene]):
    """N environments of a task in one process over the embedded simulator; scenes are shared. Implements VectorEnv.

    Observations lie on the renderer's device. An order that runs every episode once meets all scenes at its reset.
    """

    def __init__(
        self,
        episodes: Sequence[Episode],
        data: Path,
        order: EpisodeOrder,
        num_envs: int,
        config: TaskConfig | None,
        make_task: MakeTask,
        *,
        library: SceneLibrary | None = None,
        renderer: MakeRenderer | None = None,
        threads: int | None = None,
    ) -> None:
        """Episodes of a split, the data folder that holds their scenes.

        renderer: what draws, by default the CPU on so many threads (None: all cores).
        """
        super().__init__(episodes, data, order, num_envs, config, make_task, self._load_scene)
        task = self.config
        self._library = library or SceneLibrary()
        view = task.width, task.height, task.hfov, task.sensors, task.min_depth, task.max_depth
        self._camera = Camera(*view)
        make_renderer: MakeRenderer = renderer or partial(Rasterizer, threads=threads)
        self._renderer = make_renderer(self._camera)
        self._offset = np.array([0.0, task.camera_height, 0.0])
        self._return = np.zeros(num_envs)
        self._steps, self._collisions = np.zeros((2, num_envs), dtype=np.int64)

    def _load_scene(self, path: Path) -> Scene:
        return self._library.get(path, self.config.alpha_masks, self.config.body, self._renderer.prepare)

    def _begin(self, envs: Sequence[int]) -> None:
        begun = [(env, episode) for env in envs if (episode := self._assign(env, self._order.next(env))) is not None]
        for env, episode in begun:
            self.poses.positions[env], self.poses.rotations[env] = episode.start_position, episode.start_rotation
            self._return[env] = self._steps[env] = self._collisions[env] = 0
        self.task.begin(np.array([env for env, _ in begun], np.int64), [episode for _, episode in begun])

    def _act(self, envs: Rows, actions: NDArray[np.int64]) -> tuple[NDArray, NDArray[np.bool_], NDArray[np.bool_]]:
        walked = self.poses.move(envs, actions, self.config)
        self._collisions[walked.envs] += walked.collided
        self._steps[envs] += 1
        reward, terminated = self.task.act(envs, actions, walked)
        self._return[envs] += reward
        return reward, terminated, ~terminated & (self._steps[envs] >= self.config.max_steps)

    def running_measures(self, env: int) -> dict[str, float]:
        """The measures of the running episode so far, as Habitat reports them after each step."""
        told = {"reward": self._return, "collisions": self._collisions, "steps": self._steps}
        return self.task.measures(env) | {name: float(values[env]) for name, values in told.items()}

    def _observe(self, envs: Rows) -> Observations:
        rows = np.flatnonzero(self.active[envs])
        picked, device = envs[rows], self._renderer.device
        seen = {name: torch.from_numpy(values).to(device) for name, values in self.task.observe(picked).items()}
        if self._camera.sensors:
            images = self._camera.images(len(picked), device)
            eyes = torch.from_numpy(self.poses.positions[picked] + self._offset)
            rotations = torch.from_numpy(self.poses.rotations[picked].astype(np.float64))
            self._renderer.draw([self.scene(env).asset for env in picked], eyes, rotations, images)
            seen |= images
        return {name: _spread(part, rows, len(envs)) for name, part in seen.items()}

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on from here, as plain numbers and tensors."""
        return self._course() | {name: torch.from_numpy(array.copy()) for name, array in self._arrays.items()}

    def load_state_dict(self, state: dict[str, Any]) -> Observations:
        """Go on from a state; returns its observations. Raises UserError where its episodes were others."""
        self._take_course(state)
        if "positions" not in state:
            raise UserError("this run was saved through habitat-lab's workers; go on with env=habitat")
        if "rotations" not in state:  # saved when agents had headings alone
            state = state | {"rotations": torch.from_numpy(rotations_of(state["headings"].numpy()))}
        for name, array in self._arrays.items():
            array[:] = state[name].numpy()
        return self._observe(np.arange(self.num_envs))

    @property
    def _arrays(self) -> dict[str, NDArray]:
        own: dict[str, NDArray] = {
            "positions": self.poses.positions,
            "rotations": self.poses.rotations,
            "return": self._return,
        }
        return own | {"steps": self._steps, "collisions": self._collisions} | self.task.arrays

    def close(self) -> None:
        """Free the renderer."""
        self._renderer.close()


def _space(config: TaskConfig, name: str) -> gymnasium.spaces.Box:
    """Of a sensor's image."""
    sensor, dtype = SENSORS[name], np.dtype(SENSORS[name].dtype).type
    return gymnasium.spaces.Box(sensor.low, sensor.high, (config.height, config.width, sensor.channels), dtype)


def _spread(part: Tensor, rows: Rows, count: int) -> Tensor:
    """These rows of `count`, zeros in the others; `part` itself where there are no others."""
    if len(rows) == count:
        return part
    whole = part.new_zeros((count, *part.shape[1:]))
    whole[torch.from_numpy(rows)] = part
    return whole

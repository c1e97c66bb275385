"""PointNav for N agents in lockstep over the embedded simulator."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import gymnasium
import numpy as np
import torch
from torch import Tensor

from navprune.errors import UserError
from navprune.scenes.files.episodes import Episode, EpisodeTable, check_episodes, scene_path
from navprune.scenes.files.places import check_files
from navprune.simulator.pathfinder import PathFinder
from navprune.simulator.rasterizer import Renderer
from navprune.simulator.scene import Scene, SceneLibrary
from navprune.tasks import FORWARD, GOAL, LEFT, RIGHT, STOP, measures
from navprune.tasks.config import TaskConfig as TaskConfig
from navprune.tasks.expert import shortest_path_actions
from navprune.tasks.orders import EpisodeOrder as EpisodeOrder
from navprune.tasks.orders import Once as Once
from navprune.tasks.orders import Shuffled as Shuffled

Observations = dict[str, Tensor]

MEASURED = ("_measured_at", "_distance", "_shortest", "_travelled", "_return", "_steps", "_collisions")
KEPT = ("positions", "headings", "_goals", *MEASURED)
"""What a state holds of the environments' numbers."""


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


class Ground(Protocol):
    """What an episode needs of its scene: where one can walk."""

    @property
    def pathfinder(self) -> PathFinder:
        """Of the whole scene."""


World = TypeVar("World", bound=Ground)


class Lockstep(ABC, Generic[World]):
    """What every vector environment of PointNav has: episodes and spaces, who runs what and where, the expert's map.

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
        load: Callable[[Path], World],
    ) -> None:
        """Episodes of a split, the data folder that holds their scenes; load reads a scene from its path."""
        if not episodes:
            raise UserError("the split holds no episodes; choose another split or generate scenes")
        self.config = config or TaskConfig()
        self.num_envs = num_envs
        self._all, self._data, self._order, self._load = EpisodeTable.of(episodes), data, order, load
        self._by_scene = self._all.by_scene()
        for scene_id in self._by_scene:
            check_files(scene_path(data, scene_id))
        self._checked: set[str] = set()
        self._turn = math.radians(self.config.turn_angle)
        self._index: list[int | None] = [None] * num_envs
        self._scenes: list[World | None] = [None] * num_envs
        self.positions = np.zeros((num_envs, 3))
        """Where the agents stand, metres [N, 3]."""
        self.headings = np.zeros(num_envs)
        """Angles about +y in radians [N]."""
        self._goals = np.zeros((num_envs, 3))
        self._distance = np.zeros(num_envs)
        self.action_space = gymnasium.spaces.Discrete(4)
        self.observation_space = self._space()

    def _space(self) -> gymnasium.spaces.Dict:
        task, box = self.config, gymnasium.spaces.Box
        low, high = np.array([0.0, -np.pi], np.float32), np.array([np.inf, np.pi], np.float32)
        spaces: dict[str, gymnasium.Space[Any]] = {GOAL: box(low, high, dtype=np.float32)}
        if "depth" in task.sensors:
            spaces["depth"] = box(0.0, 1.0, (task.height, task.width, 1), np.float32)
        if "rgb" in task.sensors:
            spaces["rgb"] = box(0, 255, (task.height, task.width, 3), np.uint8)
        return gymnasium.spaces.Dict(spaces)

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
        scene = self._scenes[env]
        assert scene is not None, "the environment has no episode left"
        return scene

    def reset(self) -> Observations:
        """Begin the first episodes; observations of all N."""
        if isinstance(self._order, Once):
            # All episodes will run: a fault in the last must not cost the others' results.
            for scene_id in self._by_scene:
                self._scene_of(scene_id)
        self._begin(range(self.num_envs))
        return self._observe(range(self.num_envs))

    def step(self, actions: Tensor) -> Step:
        """Move all agents, int64 actions [N]; ended environments begin their next episode."""
        if len(actions) != self.num_envs:
            raise ValueError(f"step takes {self.num_envs} actions, one an environment, not {len(actions)}")
        chosen = {env: action for env, action in enumerate(actions.tolist()) if self._index[env] is not None}
        for env, action in chosen.items():
            if action not in (STOP, FORWARD, LEFT, RIGHT):
                raise ValueError(f"environment {env} was given action {action}; actions are 0 to 3")
        reward = np.zeros(self.num_envs, np.float32)
        terminated, truncated = np.zeros((2, self.num_envs), dtype=bool)
        finished: list[Finished] = []
        for env, gained, measured in self._act(chosen):
            reward[env] = gained
            if measured is not None:
                (terminated if chosen[env] == STOP else truncated)[env] = True
                finished.append(Finished(env, self._all[self._index[env]], measured))  # type: ignore[index]
        ends = np.flatnonzero(truncated)
        final = self._observe(ends) if len(ends) else None
        self._begin([end.env for end in finished])
        flags = torch.from_numpy(terminated), torch.from_numpy(truncated)
        return Step(self._observe(range(self.num_envs)), torch.from_numpy(reward), *flags, finished, final)

    @abstractmethod
    def _begin(self, envs: Sequence[int]) -> None:
        """Begin the next episode of each of these environments, where one is left."""

    @abstractmethod
    def _act(self, chosen: dict[int, int]) -> Iterator[tuple[int, float, dict[str, float] | None]]:
        """Take {environment: action}; yields environment, reward and, where the episode is over, its measures."""

    @abstractmethod
    def _observe(self, envs: Sequence[int] | np.ndarray) -> Observations:
        """Observations of these environments; zeros where nothing is left."""

    def expert_actions(self) -> Tensor:
        """The shortest-path actions int64 [N]; STOP where nothing is left."""
        task = self.config
        expert = partial(
            shortest_path_actions,
            success_distance=task.success_distance,
            forward_step=task.forward_step,
            turn_angle=self._turn,
            sliding=task.sliding,
        )
        columns = self.positions, self.headings, self._goals, self._distance
        states = zip(self._scenes, zip(*(column[:, None] for column in columns)))
        return torch.tensor([STOP if scene is None else expert(scene.pathfinder, *row)[0] for scene, row in states])

    def _scene_of(self, scene_id: str) -> World:
        """A scene that is fit for all its episodes, which are checked on its first use."""
        scene = self._load(scene_path(self._data, scene_id))
        if scene_id not in self._checked:
            check_episodes(self._by_scene[scene_id], scene.pathfinder)
            self._checked.add(scene_id)
        return scene

    def _assign(self, env: int, index: int | None) -> Episode | None:
        """Make the episode of this index the environment's own; None leaves it without one."""
        self._index[env], self._scenes[env] = index, None
        if index is None:
            return None
        episode = self._all[index]
        self._scenes[env] = self._scene_of(episode.scene_id)
        self._goals[env] = episode.goal_position
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


class PointNavEnv(Lockstep[Scene]):
    """N PointNav environments in one process; scenes are shared and cameras render on threads.

    Implements VectorEnv. An order that runs every episode once meets all scenes at its reset.
    """

    def __init__(
        self,
        episodes: Sequence[Episode],
        data: Path,
        order: EpisodeOrder,
        num_envs: int,
        config: TaskConfig | None = None,
        *,
        library: SceneLibrary | None = None,
        threads: int | None = None,
    ) -> None:
        """Episodes of a split, the data folder that holds their scenes; threads render (None: all cores)."""
        super().__init__(episodes, data, order, num_envs, config, self._load_scene)
        task = self.config
        self._library = library or SceneLibrary()
        self._renderer = Renderer(
            task.width, task.height, task.hfov, colour="rgb" in task.sensors, threads=threads, far=task.max_depth
        )
        self._measured_at = np.zeros((num_envs, 3))
        self._shortest, self._travelled, self._return = np.zeros((3, num_envs))
        self._steps, self._collisions = np.zeros((2, num_envs), dtype=np.int64)

    def _load_scene(self, path: Path) -> Scene:
        return self._library.get(path, self.config.alpha_masks, self.config.body)

    def _begin(self, envs: Sequence[int]) -> None:
        for env in envs:
            episode = self._assign(env, self._order.next(env))
            if episode is not None:
                self.positions[env] = self._measured_at[env] = episode.start_position
                self.headings[env] = measures.heading_of(np.asarray(episode.start_rotation))
                self._steps[env] = self._collisions[env] = self._travelled[env] = self._return[env] = 0
                self._distance[env] = self._shortest[env] = self._geodesic(env)

    def _act(self, chosen: dict[int, int]) -> Iterator[tuple[int, float, dict[str, float] | None]]:
        task = self.config
        for env, action in chosen.items():
            before = self._distance[env]
            self._move(env, action)
            success = action == STOP and self._distance[env] < task.success_distance
            gained = task.slack_reward + before - self._distance[env] + task.success_reward * success
            self._return[env] += gained
            over = action == STOP or self._steps[env] >= task.max_steps
            yield env, gained, self.running_measures(env, success) if over else None

    def _move(self, env: int, action: int) -> None:
        self._steps[env] += 1
        if action in (LEFT, RIGHT):
            self.headings[env] += self._turn if action == LEFT else -self._turn
        elif action == FORWARD:
            start = self.positions[env].copy()
            target = start + self.config.forward_step * measures.forward_of(self.headings[env])
            end = self.scene(env).pathfinder.step(start[None], target[None], sliding=self.config.sliding)[0]
            self.positions[env] = end
            self._travelled[env] += float(np.linalg.norm(end - start))
            self._collisions[env] += measures.collided(start, target, end)
            if measures.has_moved(self._measured_at[env], end):
                self._measured_at[env] = end
                self._distance[env] = self._geodesic(env)

    def _geodesic(self, env: int) -> float:
        here, goal = self.positions[env : env + 1], self._goals[env : env + 1]
        return float(self.scene(env).pathfinder.geodesic_distance(here, goal)[0])

    def running_measures(self, env: int, success: bool = False) -> dict[str, float]:
        """The measures of the running episode so far, as Habitat reports them after each step."""
        distance, shortest, travelled = (float(x[env]) for x in (self._distance, self._shortest, self._travelled))
        return {
            "success": float(success),
            "spl": measures.spl(success, shortest, travelled),
            "soft_spl": measures.soft_spl(distance, shortest, travelled),
            "distance_to_goal": distance,
            "reward": float(self._return[env]),
            "collisions": float(self._collisions[env]),
            "steps": float(self._steps[env]),
        }

    def place(self, env: int, position: np.ndarray, heading: float, distance: float) -> None:
        """Put an agent at a position [3], metres, of a heading, radians; distance is what its goal was last away."""
        self.positions[env] = self._measured_at[env] = position
        self.headings[env], self._distance[env] = heading, distance

    def _observe(self, envs: Sequence[int] | np.ndarray) -> Observations:
        task, count = self.config, len(envs)
        running = [row for row, env in enumerate(envs) if self._scenes[env] is not None]
        picked = np.array([envs[row] for row in running], dtype=np.int64)
        goal = np.zeros((count, 2), np.float32)
        goal[running] = measures.goal_vectors(self.positions[picked], self.headings[picked], self._goals[picked])
        shape = len(running), task.height, task.width
        depth = np.empty(shape, np.float32)
        rgb = np.empty((*shape, 3), np.uint8) if "rgb" in task.sensors else None
        if running:
            eyes = self.positions[picked] + np.array([0.0, task.camera_height, 0.0])
            assets = [self.scene(env).asset for env in picked]
            self._renderer.render(assets, eyes, measures.rotations_of(self.headings[picked]), depth, rgb)
        observations = {GOAL: torch.from_numpy(goal)}
        if "depth" in task.sensors:
            observations["depth"] = torch.from_numpy(_spread(depth, running, count))[..., None]
        if rgb is not None:
            observations["rgb"] = torch.from_numpy(_spread(rgb, running, count))
        return observations

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on from here, as plain numbers and tensors."""
        return self._course() | {name: torch.from_numpy(array.copy()) for name, array in self._arrays().items()}

    def load_state_dict(self, state: dict[str, Any]) -> Observations:
        """Go on from a state; returns its observations. Raises UserError where its episodes were others."""
        self._take_course(state)
        if "positions" not in state:
            raise UserError("this run was saved through habitat-lab's workers; go on with env=habitat")
        for name, array in self._arrays().items():
            array[:] = state[name].numpy()
        return self._observe(range(self.num_envs))

    def _arrays(self) -> dict[str, np.ndarray]:
        return {name.lstrip("_"): getattr(self, name) for name in KEPT}

    def close(self) -> None:
        """Stop the rendering threads."""
        self._renderer.close()


def _spread(part: np.ndarray, rows: list[int], count: int) -> np.ndarray:
    """These rows of `count`, zeros in the others; `part` itself where there are no others."""
    if len(rows) == count:
        return part
    whole = np.zeros((count, *part.shape[1:]), part.dtype)
    whole[rows] = part
    return whole

"""PointNav as gymnasium's `NavPrune/PointNav-v0`, single and vector; `old_gym` has gym's four values."""

import dataclasses
import difflib
import os
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from navprune.errors import UserError
from navprune.scenes.files.episodes import Episode, read_episodes
from navprune.sensors import SENSORS, Sensor
from navprune.tasks.config import TaskConfig
from navprune.tasks.engine import Observations
from navprune.tasks.orders import Shuffled
from navprune.tasks.pointnav import PointNavEnv

Arrays = dict[str, NDArray]


class Reshuffled(Shuffled):
    """An endless order of episodes that can be drawn anew."""

    drawn = False

    def draw(self, seed: int | Sequence[int] | None) -> bool:
        """Begin the permutations that belong to a seed, or without one goes on; the first time it draws by chance."""
        if self.drawn and seed is None:
            return False
        self._seed, self._counts = int(np.random.default_rng(seed).integers(2**31)), [0] * len(self._counts)
        self._permutations.clear()
        self.drawn = True
        return True


def make_env(
    num_envs: int,
    threads: int | None = None,
    *,
    data: str = "data",
    name: str = "homes",
    split: str = "train",
    version: str = "v1",
    scenes: Sequence[str] | None = None,
    **task: Any,
) -> tuple[PointNavEnv, Reshuffled]:
    """N environments in lockstep over a split of a data set, and the order in which they take its episodes.

    `scenes` restricts the split to scenes by name (a text is one name); `task` holds fields of `TaskConfig`; threads
    render (None: all cores). Raises UserError for an unknown field and for data that is missing or broken.
    """
    known = [field.name for field in dataclasses.fields(TaskConfig)]
    for key in task:
        if key not in known:
            near = difflib.get_close_matches(key, [*known, "data", "name", "split", "version", "scenes"], 1, 0.0)
            raise UserError(f"PointNav has no setting {key}; did you mean {near[0]}?")
    data = os.path.expanduser(data)
    episodes = read_episodes(data, name, split, version, scenes)
    order = Reshuffled(len(episodes), num_envs, seed=0)
    return PointNavEnv(episodes, Path(data), order, num_envs, TaskConfig(**task), threads=threads), order


class PointNav(gymnasium.Env[Arrays, np.int64]):
    """One environment; settings are those of `make_env`. The seed of a reset decides the order of the episodes.

    `info` holds scene_id, episode_id and the measures of the episode so far, those of the end included.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012 - gymnasium's own name and kind

    def __init__(self, render_mode: str | None = None, **settings: Any) -> None:
        # One thread, for gymnasium's own vector environments put one of these into each process.
        self._env, self._order = make_env(1, threads=1, **settings)
        self.render_mode = render_mode
        self.observation_space = self._env.observation_space
        self.action_space = self._env.action_space
        self._seen: Arrays = {}
        self._next: Arrays | None = None
        """The first observations of the episode that follows the one that has just ended."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Arrays, dict[str, Any]]:
        """Begin the next episode, or the first of the order that the seed draws."""
        super().reset(seed=seed)
        if self._order.draw(seed):
            self._next = None
        self._seen = self._next or _row(_arrays(self._env.reset()), 0)
        self._next = None
        return self._seen, _info(self._env.episodes[0], self._env.running_measures(0))

    def step(self, action: np.int64) -> tuple[Arrays, float, bool, bool, dict[str, Any]]:
        """Take an action: 0 stop, 1 forward, 2 left, 3 right."""
        if not self._seen or self._next:
            raise UserError("the episode has ended or none has begun; call reset() before step()")
        step = self._env.step(torch.tensor([int(action)]))
        seen = _row(_arrays(step.observations), 0)
        if not step.finished:
            self._seen = seen
            info = _info(self._env.episodes[0], self._env.running_measures(0))
        else:
            self._next, last = seen, step.final_observations
            # STOP does not move the agent: it sees what it saw.
            self._seen = deepcopy(self._seen) if last is None else _row(_arrays(last), 0)
            info = _info(step.finished[0].episode, step.finished[0].measures)
        return self._seen, float(step.reward[0]), bool(step.terminated[0]), bool(step.truncated[0]), info

    def render(self) -> NDArray[np.uint8] | None:
        """What the agent sees, colour and depth side by side: [H, W or 2 W, 3]; None without a render mode."""
        return picture(self._seen) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Stop the rendering thread."""
        self._env.close()


class VectorPointNav(gymnasium.vector.VectorEnv[Arrays, NDArray, NDArray]):
    """N environments in lockstep in one process; settings are those of `make_env`.

    An ended episode is followed by the next in the same step: `final_obs` and `final_info` hold its last observations
    and its measures.
    """

    metadata = PointNav.metadata | {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}

    def __init__(self, num_envs: int = 1, render_mode: str | None = None, **settings: Any) -> None:
        self._env, self._order = make_env(num_envs, **settings)
        self.num_envs, self.render_mode = num_envs, render_mode
        self.single_observation_space = self._env.observation_space
        self.single_action_space = self._env.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._seen: Arrays = {}

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Arrays, dict[str, Any]]:
        """Begin an episode everywhere, those of the order that the seed draws where one is given."""
        self._order.draw(seed)
        self._seen = _arrays(self._env.reset())
        return self._seen, {}

    def step(self, actions: NDArray) -> tuple[Arrays, NDArray, NDArray, NDArray, dict[str, Any]]:
        """Take actions [N]: 0 stop, 1 forward, 2 left, 3 right."""
        step = self._env.step(torch.as_tensor(np.asarray(actions, np.int64)))
        cut_short = _arrays(step.final_observations or {})
        rows = {int(env): row for row, env in enumerate(torch.nonzero(step.truncated))}
        infos: dict[str, Any] = {}
        for end in step.finished:
            # STOP does not move the agent: it sees what it saw.
            row = rows.get(end.env)
            final = _row(self._seen, end.env) if row is None else _row(cut_short, row)
            info = {"final_obs": final, "final_info": _info(end.episode, end.measures)}
            infos = self._add_info(infos, info, end.env)
        self._seen = _arrays(step.observations)
        return self._seen, step.reward.numpy(), step.terminated.numpy(), step.truncated.numpy(), infos

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """What each agent sees, see `picture`; None without a render mode."""
        if self.render_mode != "rgb_array":
            return None
        return tuple(picture(_row(self._seen, env)) for env in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """Stop the rendering threads."""
        self._env.close()


def picture(observations: Arrays) -> NDArray[np.uint8]:
    """What one agent sees, sensors side by side, bytes [H, W or more, 3] (depth: white is far); a blind one black."""
    images = [_picture(SENSORS[name], observations[name]) for name in SENSORS if name in observations]
    return np.concatenate(images, axis=1) if images else np.zeros((1, 1, 3), np.uint8)


def _picture(sensor: Sensor, image: NDArray) -> NDArray[np.uint8]:
    """Bytes [H, W, 3] of a sensor's image; of one channel grey."""
    shares = (image - sensor.low) / (sensor.high - sensor.low)
    shown = image if sensor.is_bytes else (shares * 255).astype(np.uint8)
    return shown if sensor.channels == 3 else np.repeat(shown[..., :1], 3, axis=2)


def _info(episode: Episode | None, measures: dict[str, float]) -> dict[str, Any]:
    assert episode is not None, "the order is endless"
    return {"scene_id": episode.scene_id, "episode_id": episode.episode_id, **measures}


def _arrays(observations: Observations) -> Arrays:
    return {key: tensor.cpu().numpy() for key, tensor in observations.items()}


def _row(observations: Arrays, env: int) -> Arrays:
    """The observations of one environment, as arrays of their own."""
    return {key: values[env].copy() for key, values in observations.items()}

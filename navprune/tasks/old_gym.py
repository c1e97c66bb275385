"""PointNav as gym's `NavPrune/PointNav-v0` with Habitat's API of gym 0.22 and 0.23: four values a step."""

from typing import Any

import gym
import numpy as np

from navprune.tasks import gyms


class PointNav(gym.Env):
    """`gyms.PointNav` with `reset() -> observations` and `step(action) -> observations, reward, done, info`."""

    metadata = {"render_modes": ["rgb_array"], "render.modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012

    def __init__(self, **settings: Any) -> None:
        self._env = gyms.PointNav(**{"render_mode": "rgb_array"} | settings)
        self.action_space = gym.spaces.Discrete(int(self._env.action_space.n))
        boxes = self._env.observation_space.spaces
        self.observation_space = gym.spaces.Dict(
            {key: gym.spaces.Box(box.low, box.high, dtype=box.dtype.type) for key, box in boxes.items()}
        )
        self._seed: int | None = None

    def seed(self, seed: int | None = None) -> list[int]:
        """Decide the order of the episodes from the next reset on."""
        self._seed = int(np.random.default_rng().integers(2**31)) if seed is None else seed
        return [self._seed]

    def reset(
        self, *, seed: int | None = None, return_info: bool = False, options: dict[str, Any] | None = None
    ) -> gyms.Arrays | tuple[gyms.Arrays, dict[str, Any]]:
        """Begin the next episode."""
        seed, self._seed = self._seed if seed is None else seed, None
        observations, info = self._env.reset(seed=seed, options=options)
        return (observations, info) if return_info else observations

    def step(self, action: int) -> tuple[gyms.Arrays, float, bool, dict[str, Any]]:
        """Take an action: 0 stop, 1 forward, 2 left, 3 right; `TimeLimit.truncated` says what ended the episode."""
        observations, reward, terminated, truncated, info = self._env.step(np.int64(action))
        done = terminated or truncated
        return observations, reward, done, info | ({"TimeLimit.truncated": truncated} if done else {})

    def render(self, mode: str = "rgb_array") -> np.ndarray | None:
        """What the agent sees, see `gyms.picture`."""
        return self._env.render()

    def close(self) -> None:
        """Stop the rendering thread."""
        self._env.close()

"""A flat world without walls, that steps like the simulator but costs nothing."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from navprune.scenes.files.episodes import Episode
from navprune.tasks import GOAL
from navprune.tasks.engine import Finished, Step

STEP, TURN, LIMIT = 0.25, math.radians(10), 20


def flat_episodes(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Episode(
            episode_id=str(i // 2),  # ids restart with each scene
            scene_id=f"flat{i % 2}.glb",
            start_position=np.zeros(3),
            start_rotation=np.array([0.0, 0.0, 0.0, 1.0]),
            goal_position=np.array([*rng.uniform(-2, 2, 3)]) * [1, 0, 1] + [0.5, 0, 0.5],
            goal_radius=0.2,
            geodesic_distance=1.0,
        )
        for i in range(count)
    ]


class FlatEnv:
    """The VectorEnv contract; the depth image is a smooth function of the pose."""

    def __init__(self, episodes, num_envs, limit=LIMIT):
        self.num_envs, self.limit = num_envs, limit
        self.queue = list(episodes)
        self.episodes = [None] * num_envs
        self.positions, self.headings = np.zeros((num_envs, 3)), np.zeros(num_envs)
        self.steps, self.length, self.total = np.zeros((3, num_envs))

    @property
    def active(self):
        return np.array([episode is not None for episode in self.episodes])

    def scene(self, env):
        return SimpleNamespace(pathfinder=f"path finder of {self.episodes[env].scene_id}")

    def reset(self):
        for env in range(self.num_envs):
            self.begin(env)
        return self.observe()

    def begin(self, env):
        self.episodes[env] = self.queue.pop(0) if self.queue else None
        self.positions[env] = self.headings[env] = self.steps[env] = self.length[env] = self.total[env] = 0

    def goal_vectors(self):
        vectors = np.zeros((self.num_envs, 2), np.float32)
        for env, episode in enumerate(self.episodes):
            if episode is None:
                vectors[env] = np.nan  # what idle environments see must reach nobody
                continue
            x, _, z = episode.goal_position - self.positions[env]
            angle = math.atan2(-x, -z) - self.headings[env]
            vectors[env] = math.hypot(x, z), (angle + math.pi) % (2 * math.pi) - math.pi
        return vectors

    def observe(self):
        vectors = self.goal_vectors()
        grid = np.linspace(0, 3, 32, dtype=np.float32)
        phase = vectors[:, :1, None] * grid[:, None] + vectors[:, 1:, None] * grid
        return {
            "depth": torch.from_numpy(0.5 + 0.5 * np.sin(phase))[..., None],
            GOAL: torch.from_numpy(vectors),
        }

    def expert_actions(self):
        turns = self.goal_vectors()[:, 1]
        ahead = np.where(np.abs(turns) < TURN, 1, np.where(turns > 0, 2, 3))
        return torch.from_numpy(np.where(self.goal_vectors()[:, 0] < 0.2, 0, ahead))

    def step(self, actions):
        terminated, truncated = np.zeros((2, self.num_envs), bool)
        finished = []
        for env, action in enumerate(actions.tolist()):
            if self.episodes[env] is None:
                continue
            self.steps[env] += 1
            self.headings[env] += {2: TURN, 3: -TURN}.get(action, 0.0)
            if action == 1:
                heading = self.headings[env]
                self.positions[env] -= STEP * np.array([math.sin(heading), 0, math.cos(heading)])
                self.length[env] += STEP
            terminated[env] = action == 0
            truncated[env] = action != 0 and self.steps[env] >= self.limit
            if terminated[env] or truncated[env]:
                distance = float(self.goal_vectors()[env, 0])
                success = float(action == 0 and distance < 0.2)
                measures = {"success": success, "distance_to_goal": distance, "length": self.length[env]}
                finished.append(Finished(env, self.episodes[env], measures | {"steps": self.steps[env]}))
        for end in finished:
            self.begin(end.env)
        flags = torch.from_numpy(terminated), torch.from_numpy(truncated)
        return Step(self.observe(), torch.zeros(self.num_envs), *flags, finished, None)


@pytest.fixture
def episodes():
    return flat_episodes(11)


@pytest.fixture
def make_env():
    return FlatEnv

"""A corridor that is quick to step and to learn: the goal lies some cells ahead or behind."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rl.run_folders import run

from navprune.models.policy import PointNavPolicy
from navprune.models.spec import EncoderSpec, Layer, PolicySpec, encoder_spec
from navprune.tasks.engine import Finished, Step

GOAL = "pointgoal_with_gps_compass"
STOP, FORWARD, BACK = 0, 1, 2


class Corridor:
    """`forward` and `left` move one cell to either side; `stop` on the goal's cell succeeds."""

    def __init__(self, num_envs=4, limit=12, seed=0, size=8):
        self.num_envs, self.limit, self.size = num_envs, limit, size
        self.rng = np.random.default_rng(seed)
        self.steps_taken = 0
        self.fail_at = None  # called instead of the step of this number

    def reset(self):
        self.where = np.zeros(self.num_envs, np.int64)
        self.goal, self.age = self.where.copy(), self.where.copy()
        self._begin(np.ones(self.num_envs, bool))
        return self._see(np.arange(self.num_envs))

    def _begin(self, rows):
        self.where[rows], self.age[rows] = 0, 0
        distance = self.rng.integers(1, 5, rows.sum())
        self.goal[rows] = distance * self.rng.choice([-1, 1], rows.sum())

    def _see(self, rows):
        ahead = (self.goal - self.where)[rows]
        depth = torch.zeros(len(rows), self.size, self.size, 1)
        depth[:, : self.size // 2] = torch.as_tensor(ahead > 0).float()[:, None, None, None]
        goal = np.stack([np.abs(ahead), np.where(ahead < 0, np.pi, 0.0)], axis=1)
        return {"depth": depth, GOAL: torch.as_tensor(goal, dtype=torch.float32)}

    def step(self, actions):
        self.steps_taken += 1
        if self.fail_at and self.steps_taken == self.fail_at[0]:
            self.fail_at[1]()
        actions = actions.numpy()
        before = np.abs(self.goal - self.where)
        self.where = self.where + (actions == FORWARD) - (actions == BACK)
        self.age += 1
        now = np.abs(self.goal - self.where)
        success = (actions == STOP) & (now == 0)
        terminated = actions == STOP
        truncated = ~terminated & (self.age >= self.limit)
        reward = -0.01 + (before - now) + 2.5 * success
        done = terminated | truncated
        finished = []
        for i in np.flatnonzero(done):
            spl = float(success[i]) * abs(self.goal[i]) / max(abs(self.goal[i]), self.age[i] - 1)
            measures = {"success": float(success[i]), "spl": spl, "reward": float(reward[i])}
            finished.append(Finished(int(i), None, measures))
        final = self._see(np.flatnonzero(truncated)) if truncated.any() else None
        self._begin(done)
        return Step(
            self._see(np.arange(self.num_envs)),
            torch.as_tensor(reward, dtype=torch.float32),
            torch.as_tensor(terminated),
            torch.as_tensor(truncated),
            finished,
            final,
        )

    def expert_actions(self):
        ahead = self.goal - self.where
        return torch.as_tensor(np.where(ahead > 0, FORWARD, np.where(ahead < 0, BACK, STOP)))

    def state_dict(self):
        arrays = {"where": self.where, "goal": self.goal, "age": self.age}
        return {**arrays, "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state):
        self.where, self.goal, self.age = (state[name].copy() for name in ("where", "goal", "age"))
        self.rng.bit_generator.state = state["rng"]
        return self._see(np.arange(self.num_envs))

    def close(self):
        pass


def tiny_spec(**changes):
    layers = (Layer("stem", 4, 2), Layer("stage1.block0.conv1", 4, 2))
    encoder = EncoderSpec("resnet", (1, 8, 8), ("depth",), "basic", (1,), layers, output=4)
    return PolicySpec(encoder, **{"visual_features": 8, "hidden_size": 16, **changes})


def tiny_policy(seed=0, **changes):
    torch.manual_seed(seed)
    return PointNavPolicy(tiny_spec(**changes))


def blind_spec():
    return PolicySpec(encoder_spec("blind"), visual_features=8, hidden_size=32)


def blind_policy(seed=0):
    torch.manual_seed(seed)
    return PointNavPolicy(blind_spec())


@pytest.fixture(scope="session")
def toys():
    """The corridor and policies small enough for it."""
    return SimpleNamespace(
        Corridor=Corridor,
        policy=tiny_policy,
        spec=tiny_spec,
        blind_policy=blind_policy,
        blind_spec=blind_spec,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory, toys):
    """A run of 96 frames that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(toys, folder, frames=96)
    return folder


@pytest.fixture(scope="module")
def half(tmp_path_factory, toys):
    """The same at 48 frames; to be copied."""
    folder = tmp_path_factory.mktemp("runs") / "half"
    run(toys, folder)
    return folder


@pytest.fixture
def begun(half, tmp_path):
    return shutil.copytree(half, tmp_path / "run", symlinks=True)

"""Colour and depth together, from the scene's file to the policy's action."""

from pathlib import Path

import numpy as np
import pytest
import torch

from navprune.models.policy import PointNavPolicy
from navprune.models.spec import PolicySpec, encoder_spec
from navprune.scenes.files.episodes import read_episodes
from navprune.tasks.pointnav import Once, PointNavEnv, TaskConfig

REFERENCE = Path(__file__).parents[1] / "data/reference"
PLANES = {"depth": 1, "rgb": 3}


def make_env(sensors):
    episodes = read_episodes(REFERENCE, "reference", "val")[:3]
    config = TaskConfig(width=64, height=64, sensors=sensors)
    return PointNavEnv(episodes, REFERENCE, Once(3), 3, config, threads=1)


@pytest.mark.parametrize("sensors", [("depth",), ("rgb",), ("rgb", "depth")])
def test_a_policy_acts_on_what_the_task_shows(sensors):
    env = make_env(sensors)
    channels = sum(PLANES[sensor] for sensor in sensors)
    torch.manual_seed(0)
    policy = PointNavPolicy(PolicySpec(encoder_spec("resnet18", (channels, 64, 64), base_planes=8), hidden_size=16))
    policy.eval()
    observations, state = env.reset(), policy.initial_state(3)
    actions, masks = torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.bool)
    for _ in range(3):
        with torch.no_grad():
            output = policy(observations, state, actions, masks)
        assert output.logits.shape == (3, 4) and output.logits.isfinite().all()
        state, actions, masks = output.state, output.logits[:, 1:].argmax(1) + 1, torch.ones(3, dtype=torch.bool)
        observations = env.step(actions).observations


def test_channels_stand_as_habitat_baselines_joins_them():
    # It joins its visual keys in the order of a gym.spaces.Dict made of a plain dict, which sorts them; bytes become
    # shares of 255.
    env = make_env(("rgb", "depth"))
    spec = encoder_spec("resnet18", (4, 64, 64), base_planes=8)
    visual = tuple(key for key, space in env.observation_space.spaces.items() if len(space.shape) > 1)
    assert spec.observations == visual == ("depth", "rgb")
    observations = env.reset()
    encoder = PointNavPolicy(PolicySpec(spec, hidden_size=16)).net.visual_encoder
    images = encoder.images(observations).numpy()
    np.testing.assert_array_equal(images[:, 0], observations["depth"][..., 0])
    np.testing.assert_allclose(images[:, 1:], np.moveaxis(observations["rgb"].numpy() / 255, -1, 1), atol=1e-6)

"""A sensor that is added to the table, with one function that draws it, is there for everyone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cameras import photograph

from navprune.config import load_config
from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.spec import encoder_spec
from navprune.rl.monitor import Timers
from navprune.rl.rollouts import Actor, Rollout, collect
from navprune.scenes.files.episodes import read_episodes
from navprune.sensors import SENSORS, Sensor, channels_of, with_channels
from navprune.simulator import images
from navprune.source import agent_spec
from navprune.tasks.config import TaskConfig
from navprune.tasks.gyms import picture
from navprune.tasks.orders import Shuffled
from navprune.tasks.pointnav import PointNavEnv

REFERENCE = Path(__file__).parent / "data" / "reference"
SMALL = [
    f"data.folder={REFERENCE}", "data.name=reference", "task.width=32", "task.height=32", "agent.encoder=resnet18",
    "agent.base_planes=4", "agent.visual_features=16", "agent.hidden_size=16",
]  # fmt: skip


def nearness(shown, image):
    """1 / depth, at most 1: what is seen by closeness alone."""
    np.minimum(shown.closeness, 1, out=image[..., 0])


def facets(shown, image):
    """The triangle that a pixel shows, as two bytes, and whether there is one."""
    image[..., 0], image[..., 1], image[..., 2] = (
        shown.triangles & 255,
        shown.triangles >> 8 & 255,
        shown.triangles >= 0,
    )


@pytest.fixture
def toys(monkeypatch):
    """The table with two more rows."""
    monkeypatch.setitem(SENSORS, "nearness", Sensor("nearness", 1, "float32", 0, 1, surface=False))
    monkeypatch.setitem(SENSORS, "facets", Sensor("facets", 3, "uint8", 0, 255, surface=True))
    monkeypatch.setitem(images.IMAGES, "nearness", nearness)
    monkeypatch.setitem(images.IMAGES, "facets", facets)
    return "nearness", "facets"


def make_env(task):
    episodes = read_episodes(REFERENCE, "reference", "val")
    return PointNavEnv(episodes, REFERENCE, Shuffled(len(episodes), 3, 0), 3, task, threads=2)


def test_new_sensors_go_from_the_scene_to_the_rollout(toys):
    config = load_config("pointnav", [*SMALL, "task.sensors=[nearness,rgb,facets,depth]"])
    env, policy = make_env(config.task), build(agent_spec(config))
    assert policy.spec.encoder.observations == ("depth", "facets", "nearness", "rgb")
    assert policy.spec.encoder.input == (8, 32, 32) and policy.spec.encoder.normalise
    how = {"device": torch.device("cpu"), "generator": torch.Generator().manual_seed(0)}
    actor = Actor(env, policy, **how, timers=Timers())
    actor.reset()
    rollout = Rollout.like(actor, 4)
    raw, step = [env.reset()], env.step
    env.step = lambda actions: [raw.append((taken := step(actions)).observations), taken][1]
    collect(actor, rollout)
    for name in config.task.sensors:
        assert rollout.observations[name][2].equal(policy.prepare(raw[2])[name])
    seen = {name: raw[2][name].numpy() for name in config.task.sensors}
    for row in range(3):
        assert all(env.observation_space[name].contains(image[row]) for name, image in seen.items())
    depth = seen["depth"] * config.task.max_depth
    far = (depth > 0) & (depth < config.task.max_depth)
    np.testing.assert_allclose(seen["nearness"][far], np.minimum(1 / depth[far], 1), rtol=1e-5)
    np.testing.assert_array_equal(seen["facets"][..., 2:] > 0, depth > 0)
    assert picture({name: image[0] for name, image in seen.items()}).shape == (32, 4 * 32, 3)


def test_a_sensor_alone_brings_no_other(toys):
    for name in toys:
        env = make_env(TaskConfig(width=16, height=12, sensors=(name,)))
        assert {name, "pointgoal_with_gps_compass"} == env.reset().keys() == env.observation_space.spaces.keys()


def test_what_no_renderer_draws_is_refused(monkeypatch):
    monkeypatch.setitem(SENSORS, "touch", Sensor("touch", 1, "float32", 0, 1, surface=False))
    with pytest.raises(UserError, match="the CPU draws no touch; it draws depth, "):
        photograph([], np.zeros((0, 3)), np.zeros((0, 4)), sensors=("touch",))
    with pytest.raises(UserError, match=r"task\.sensors knows .*touch.*, not sonar"):
        TaskConfig(sensors=("sonar",))


def test_channels_tell_habitats_sensors(toys):
    found = {count: with_channels(count) for count in (1, 3, 4, 99)}
    assert found == {1: ("depth",), 3: ("rgb",), 4: ("depth", "rgb"), 99: ()}
    assert all(channels_of(names) == count for count, names in found.items() if names)
    assert encoder_spec("resnet18", (1, 64, 64)).observations == ("depth",)

"""Whatever draws, the rest only hands tensors on: with a renderer of its own kind, and on a device without memory."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from navprune.comparisons.parity import compare_images
from navprune.comparisons.recordings import read_images, read_settings
from navprune.rl.monitor import Timers
from navprune.rl.rollouts import Actor
from navprune.scenes.files.episodes import read_episodes
from navprune.simulator.scene import SceneLibrary
from navprune.tasks import FORWARD, GOAL, STOP
from navprune.tasks.config import TaskConfig
from navprune.tasks.orders import Once
from navprune.tasks.pointnav import PointNavEnv

REFERENCE = Path(__file__).parents[1] / "data" / "reference"
EPISODES = read_episodes(REFERENCE, "reference", "val")
TASK = TaskConfig(width=6, height=4, sensors=("rgb", "depth"))
PREPARED: list[Path] = []


def prepare(path, alpha_masks=False):
    """A handle without a scene."""
    PREPARED.append(path)
    return SimpleNamespace(nbytes=1, triangles=12)


class Constant:
    """Paints an image in the height of its camera, whatever the scene; in its own words a renderer for a GPU."""

    prepare = staticmethod(prepare)

    def __init__(self, camera, device="cpu"):
        self.camera, self.device, self.drawn, self.closed = camera, torch.device(device), {}, False

    def draw(self, handles, eyes, rotations, out):
        assert eyes.dtype == rotations.dtype == torch.float64
        assert eyes.shape == (len(handles), 3) and rotations.shape == (len(handles), 4)
        assert all(handle.triangles == 12 for handle in handles)
        for image in out.values():
            image.copy_(eyes[:, 1, None, None, None].clamp(0, 1).expand_as(image))
        self.drawn = dict(out)

    def close(self):
        self.closed = True


def make_env(renderer=Constant, num_envs=3, library=None):
    order = Once(len(EPISODES))
    return PointNavEnv(EPISODES, REFERENCE, order, num_envs, TASK, library=library, renderer=renderer)


class Seeing(torch.nn.Module):
    """No policy, but enough for an Actor."""

    def initial_state(self, n):
        return torch.zeros(n, 1)

    def prepare(self, observations):
        return observations


def test_what_was_drawn_reaches_the_rollout_uncopied():
    env = make_env()
    how = {"device": torch.device("cpu"), "generator": torch.Generator()}
    actor = Actor(env, Seeing(), **how, timers=Timers())
    actor.reset()
    for _ in range(2):
        actor.step(torch.tensor([FORWARD, STOP, FORWARD]), actor.state)
        for name in TASK.sensors:
            assert actor.observations[name].data_ptr() == env._renderer.drawn[name].data_ptr()
    height = env.positions[:, 1] + TASK.camera_height
    assert actor.observations["depth"][:, 0, 0, 0].tolist() == pytest.approx(height.clip(0, 1).tolist())
    env.close()
    assert env._renderer.closed


def test_nothing_assumes_a_cpu():
    """Tensors on the device "meta" hold nothing, so that whoever reads or converts them fails."""
    env = make_env(lambda camera: Constant(camera, "meta"))
    seen = env.reset()
    while env.active.any():
        step = env.step(torch.full((3,), STOP))
        seen = step.observations
        assert {name: tuple(image.shape) for name, image in seen.items()} == {
            name: (3, *space.shape) for name, space in env.observation_space.items()
        }
        assert {image.device.type for image in seen.values()} == {"meta"}
    assert seen.keys() == {GOAL, "rgb", "depth"}


def test_renderers_of_a_kind_share_what_they_prepared():
    PREPARED.clear()
    library = SceneLibrary()
    environments = [make_env(library=library), make_env(library=library), make_env(None, library=library)]
    for env in environments:
        env.reset()
    assert sorted(path.stem for path in PREPARED) == ["apartment", "duplex"]
    first, second, other = (env.scene(0) for env in environments)
    assert first is second and first.asset is not other.asset


def test_parity_draws_by_what_it_is_given():
    settings = read_settings(REFERENCE)
    images = read_images(REFERENCE / "expected" / "duplex_images.npz", settings)
    path = REFERENCE / "scene_datasets" / "reference" / "duplex.glb"
    shares = compare_images(path, images, settings, Constant)
    assert shares["depth"]["within_1cm"] < 0.1

import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

import navprune  # noqa: F401 - registers the environments
from navprune.errors import UserError
from navprune.scenes.files.episodes import read_episodes
from navprune.tasks import FORWARD, GOAL, LEFT, STOP
from navprune.tasks.gyms import picture
from navprune.tasks.pointnav import PointNavEnv, Shuffled, TaskConfig

REFERENCE = str(Path(__file__).parents[1] / "data" / "reference")
ID = "NavPrune/PointNav-v0"
SPLIT = {"data": REFERENCE, "name": "reference", "split": "val"}
TASK = {"width": 16, "height": 12, "max_steps": 9}
SETTINGS = SPLIT | TASK


@pytest.fixture
def env():
    env = gymnasium.make(ID, render_mode="rgb_array", **SETTINGS)
    yield env
    env.close()


def test_a_tilde_is_the_home(monkeypatch):
    monkeypatch.setenv("HOME", str(Path(REFERENCE).parent))
    env = gymnasium.make(ID, **SETTINGS | {"data": "~/reference"})
    env.reset(seed=0)
    env.close()


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("imports", ["import navprune, gymnasium", "import gymnasium, navprune"])
def test_importing_navprune_registers_in_any_order_and_loads_nothing(imports):
    code = (
        """
import sys, navprune
assert not {"gymnasium", "numpy", "torch"} & set(sys.modules)
"""
        if imports.startswith("import navprune")
        else ""
    )
    code += f"{imports}\nassert '{ID}' in gymnasium.registry\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", "import sys\n" + code], check=True)


@pytest.mark.parametrize("sensors", [("depth",), ("rgb", "depth"), ()])
def test_gymnasiums_checker_is_content(sensors):
    from gymnasium.utils.env_checker import check_env

    env = gymnasium.make(ID, render_mode="rgb_array", sensors=sensors, **SETTINGS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(infinity|not within the spec).*")
        check_env(env.unwrapped)


def test_stable_baselines_checker_is_content_and_ppo_learns():
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    from stable_baselines3 import PPO

    env = gymnasium.make(ID, sensors=("depth", "rgb"), **SPLIT, width=36, height=36, max_steps=9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on depth, which is no image of bytes
        checker.check_env(env)
    learner = PPO("MultiInputPolicy", env, n_steps=16, batch_size=16, n_epochs=1, device="cpu", seed=0)
    learner.learn(32)
    action, _ = learner.predict(env.reset(seed=0)[0])
    assert env.action_space.contains(int(action))


def test_steps_are_those_of_the_lockstep_environment(env):
    """Five values, the episodes in the seed's order, their measures, and what was seen at the end."""
    observations, info = env.reset(seed=3)
    core = env.unwrapped
    episodes = read_episodes(REFERENCE, "reference", "val")
    order = Shuffled(len(episodes), 1, int(np.random.default_rng(3).integers(2**31)))
    twin = PointNavEnv(episodes, Path(REFERENCE), order, 1, TaskConfig(**TASK))
    expected = twin.reset()
    rng = np.random.default_rng(0)
    ends = set()
    for _ in range(60):
        assert same(observations, {key: value[0].numpy() for key, value in expected.items()})
        action = int(rng.choice([STOP, FORWARD, LEFT], p=[0.1, 0.7, 0.2]))
        before = observations
        observations, reward, terminated, truncated, info = env.step(action)
        step = twin.step(torch.tensor([action]))
        expected = step.observations
        assert reward == step.reward[0] and (terminated, truncated) == (step.terminated[0], step.truncated[0])
        if terminated or truncated:
            ((_, episode, measures),) = step.finished
            assert info == measures | {"scene_id": episode.scene_id, "episode_id": episode.episode_id}
            last = before if terminated else {k: v[0].numpy() for k, v in step.final_observations.items()}
            assert same(observations, last)
            ends.add(terminated)
            observations, info = env.reset()
            assert info["steps"] == 0
        assert (info["scene_id"], info["episode_id"]) == (
            core._env.episodes[0].scene_id,
            core._env.episodes[0].episode_id,
        )
    assert ends == {True, False}


def test_a_seed_decides_the_episodes(env):
    def episodes(seed, count=6):
        infos = [env.reset(seed=seed)[1], *(env.reset()[1] for _ in range(count - 1))]
        return [(info["scene_id"], info["episode_id"]) for info in infos]

    assert episodes(1) == episodes(1) != episodes(2)
    assert len(set(episodes(1, 40))) == 40


def test_an_ended_episode_takes_no_step(env):
    env.reset(seed=0)
    env.step(STOP)
    with pytest.raises(UserError, match=r"call reset\(\)"):
        env.unwrapped.step(FORWARD)


def test_pictures_show_colour_and_depth():
    env = gymnasium.make(ID, render_mode="rgb_array", sensors=("rgb", "depth"), **SETTINGS)
    observations, _ = env.reset(seed=0)
    image = env.render()
    assert image.shape == (12, 32, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(image[:, :16], observations["rgb"])
    assert image[:, 16:].std() > 0 and (image == picture(observations)).all()
    env.close()


def test_vector_steps_are_those_of_the_lockstep_environment_with_ends_in_the_same_step():
    envs = gymnasium.make_vec(ID, num_envs=3, **SETTINGS)
    assert type(envs.unwrapped).__name__ == "VectorPointNav"
    assert envs.metadata["autoreset_mode"] == gymnasium.vector.AutoresetMode.SAME_STEP
    observations, _ = envs.reset(seed=3)
    episodes = read_episodes(REFERENCE, "reference", "val")
    order = Shuffled(len(episodes), 3, int(np.random.default_rng(3).integers(2**31)))
    twin = PointNavEnv(episodes, Path(REFERENCE), order, 3, TaskConfig(**TASK))
    expected = twin.reset()
    rng = np.random.default_rng(0)
    seen = {"terminated": 0, "truncated": 0, "together": 0}
    for _ in range(80):
        assert envs.observation_space.contains(observations)
        assert same(observations, {key: value.numpy() for key, value in expected.items()})
        actions = rng.choice([STOP, FORWARD, LEFT], 3, p=[0.1, 0.65, 0.25])
        before = observations
        observations, reward, terminated, truncated, infos = envs.step(actions)
        step = twin.step(torch.from_numpy(actions))
        expected = step.observations
        np.testing.assert_array_equal(reward, step.reward)
        np.testing.assert_array_equal(terminated, step.terminated)
        np.testing.assert_array_equal(truncated, step.truncated)
        ended = terminated | truncated
        np.testing.assert_array_equal(infos.get("_final_obs", np.zeros(3, bool)), ended)
        for end in step.finished:
            if truncated[end.env]:
                row = list(np.flatnonzero(truncated)).index(end.env)
                last = {key: value[row].numpy() for key, value in step.final_observations.items()}
            else:
                last = {key: value[end.env] for key, value in before.items()}
            assert same(infos["final_obs"][end.env], last)
            for key, value in end.measures.items():
                assert infos["final_info"][key][end.env] == value
            assert infos["final_info"]["episode_id"][end.env] == end.episode.episode_id
        seen["terminated"] += terminated.sum()
        seen["truncated"] += truncated.sum()
        seen["together"] += terminated.any() and truncated.any()
    assert min(seen.values()) > 0, seen
    assert envs.render() is None
    envs.close()


def test_vectors_are_seeded_and_drawn():
    envs = gymnasium.make_vec(ID, num_envs=2, render_mode="rgb_array", **SETTINGS)
    first, again, other = (envs.reset(seed=seed)[0] for seed in (1, 1, 2))
    assert same(first, again) and not same(first, other)
    assert [image.shape for image in envs.render()] == [(12, 16, 3)] * 2
    envs.close()


def test_scenes_restrict_the_split():
    env = gymnasium.make(ID, scenes=["duplex"], **SETTINGS)
    assert {env.reset()[1]["scene_id"] for _ in range(25)} == {"reference/duplex.glb"}
    env.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": "nowhere"}, "no split 'val' at nowhere"),
        ({"widht": 3}, "no setting widht; did you mean width?"),
        ({"width": 0}, "task.width"),
        ({"width": "a"}, "task.width"),
        ({"scenes": ["castle"]}, "no episodes in scene castle"),
    ],
)
def test_mistakes_are_one_line(settings, message):
    with pytest.raises(UserError) as error:
        gymnasium.make(ID, **SETTINGS | settings)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_gym_has_habitats_four_values():
    gym = pytest.importorskip("gym")
    env = gym.make(ID, sensors=("depth", "rgb"), **SETTINGS)
    env.seed(5)
    observations = env.reset()
    assert env.observation_space.contains(observations) and set(observations) == {"depth", "rgb", GOAL}
    observations, reward, done, info = env.step(FORWARD)
    assert isinstance(reward, float) and done is False and info["steps"] == 1
    for _ in range(8):
        observations, reward, done, info = env.step(LEFT)
    assert done and info["TimeLimit.truncated"] and env.observation_space.contains(observations)
    assert env.render(mode="rgb_array").shape == (12, 32, 3)
    env.reset()
    assert not env.step(STOP)[3]["TimeLimit.truncated"]
    env.close()

    def starts(env):
        env.seed(5)
        return [env.reset()[GOAL].tolist() for _ in range(3)]

    one, two = (gym.make(ID, **SETTINGS) for _ in range(2))
    assert starts(one) == starts(two)
    envs = gym.vector.make(ID, num_envs=2, asynchronous=False, **SETTINGS)
    assert envs.reset()["depth"].shape == (2, 12, 16, 1)
    envs.close()

"""Every number of the task is settled by replaying what habitat-lab recorded."""

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from navprune.errors import UserError
from navprune.scenes.files.episodes import read_episodes
from navprune.scenes.recast.bodies import Body, navmesh_for
from navprune.simulator.pathfinder import PathFinder
from navprune.simulator.scene import SceneLibrary
from navprune.tasks import FORWARD, LEFT, STOP
from navprune.tasks.pointnav import GOAL, Once, PointNavEnv, Shuffled, TaskConfig

REFERENCE = Path(__file__).parents[1] / "data" / "reference"
LIBRARY = SceneLibrary()
SMALL = TaskConfig(width=8, height=8)


def reference_episodes(scene=None):
    episodes = read_episodes(REFERENCE, "reference", "val")
    return [e for e in episodes if scene is None or scene in e.scene_id]


def make_env(episodes=None, order=None, num_envs=3, config=SMALL, threads=1):
    episodes = reference_episodes() if episodes is None else episodes
    order = order or Once(len(episodes))
    return PointNavEnv(episodes, REFERENCE, order, num_envs, config, library=LIBRARY, threads=threads)


def recorded(scene):
    with gzip.open(REFERENCE / "expected" / f"{scene}_rollouts.json.gz", "rt") as file:
        return {rollout["episode_id"]: rollout for rollout in json.load(file)}


def replay(episode, rollout):
    """Yields (recorded step, goal vector, depth image, reward, measures) from our task along the recorded actions."""
    env = make_env([episode], num_envs=1, config=TaskConfig())
    observations = env.reset()
    yield rollout["steps"][0], env, observations, None, env.running_measures(0)
    for step in rollout["steps"][1:]:
        answer = env.step(torch.tensor([step["action"]]))
        ended = answer.finished
        measures = ended[0].measures if ended else env.running_measures(0)
        yield step, env, answer.observations, float(answer.reward[0]), measures
        if ended:
            return


@pytest.mark.parametrize("scene", ["apartment", "duplex"])
def test_replays_habitat_rollouts(scene):
    rollouts, agree, spl = recorded(scene), [], []
    for episode in reference_episodes(scene):
        rollout = rollouts[episode.episode_id]
        for step, env, observations, reward, measures in replay(episode, rollout):
            same = [
                np.allclose(env.positions[0], step["position"], atol=1e-3),
                abs(measures["distance_to_goal"] - step["distance_to_goal"]) < 1e-3,
                reward is None or abs(reward - step["reward"]) < 1e-3,
                abs(measures["soft_spl"] - step["soft_spl"]) < 1e-3,
                measures["collisions"] == step["collisions"],
            ]
            if env.active[0]:
                same.append(np.allclose(observations[GOAL][0], step["pointgoal_with_gps_compass"], atol=1e-3))
                depth = observations["depth"][0, :, :, 0].numpy()
                probes = np.abs(depth[32::64, 32::64].ravel() - step["depth_probe"]) < 2e-4
                same += [probes.mean() > 0.9, abs(depth.mean() - step["depth_mean"]) < 1e-3]
            agree.append(same + [True] * (8 - len(same)))
        spl.append(abs(measures["spl"] - rollout["steps"][-1]["spl"]) < 0.01)
    shares = np.mean(agree, axis=0)
    assert np.mean(spl) >= 0.95, f"free rollouts with the recorded SPL: {np.mean(spl):.3f}"
    assert (shares >= 0.95).all(), f"shares of steps that agree: {shares}"


def test_every_episode_runs_once_whatever_the_number_of_environments():
    def results(num_envs):
        env = make_env(num_envs=num_envs)
        env.reset()
        found = {}
        while env.active.any():
            for end in env.step(env.expert_actions()).finished:
                found[end.episode.scene_id, end.episode.episode_id] = end.measures
        return found

    alone = results(1)
    assert len(alone) == 40
    assert results(7) == alone


def test_measures_do_not_need_the_distances_of_the_file():
    def results(episodes):
        env = make_env(episodes, num_envs=2)
        env.reset()
        return [end.measures for _ in range(20) for end in env.step(torch.tensor([STOP, STOP])).finished]

    episodes = reference_episodes()[:8]
    assert results([replace(e, geodesic_distance=None) for e in episodes]) == results(episodes) != []


@pytest.mark.parametrize("body", [(0.18, 0.88), (0.25, 1.5), (0.1, 0.5)])
def test_the_navmesh_is_for_the_agents_body(tmp_path, body):
    for path in (REFERENCE / "scene_datasets" / "reference").iterdir():
        (tmp_path / "scene_datasets" / "reference").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "scene_datasets" / "reference")
    task = TaskConfig(width=8, height=8, agent_radius=body[0], agent_height=body[1])
    episodes = reference_episodes("duplex")[:1]
    env = PointNavEnv(episodes, tmp_path, Once(1), 1, task, threads=1)
    env.reset()
    expected = navmesh_for(tmp_path / "scene_datasets" / "reference" / "duplex.glb", Body(*body))
    assert env.scene(0).pathfinder.navigable_area == PathFinder(expected).navigable_area
    env.close()
    published = PointNavEnv(episodes, REFERENCE, Once(1), 1, SMALL, library=LIBRARY, threads=1)
    published.reset()
    assert env.scene(0).pathfinder.navigable_area != published.scene(0).pathfinder.navigable_area


def test_the_expert_walks_shortest_paths():
    env = make_env(num_envs=8)
    env.reset()
    spl = []
    while env.active.any():
        spl += [end.measures["spl"] for end in env.step(env.expert_actions()).finished]
    assert np.mean(spl) >= 0.95
    assert min(spl) > 0


def test_goes_on_from_a_state_bit_for_bit():
    def env():
        return make_env(order=Shuffled(40, 4, seed=3), num_envs=4)

    rng = np.random.default_rng(0)
    actions = torch.from_numpy(rng.choice(4, size=(120, 4), p=[0.02, 0.5, 0.24, 0.24]))
    first = env()
    first.reset()
    for row in actions[:60]:
        last = first.step(row)
    second = env()
    seen = second.load_state_dict(first.state_dict())
    assert all(torch.equal(seen[key], last.observations[key]) for key in seen)
    for row in actions[60:]:
        a, b = first.step(row), second.step(row)
        assert torch.equal(a.reward, b.reward)
        assert all(torch.equal(a.observations[key], b.observations[key]) for key in seen)
        assert a.finished == b.finished


def test_time_limit_truncates_and_gives_the_last_observation():
    env = make_env(order=Shuffled(40, 2, seed=0), num_envs=2, config=TaskConfig(width=8, height=8, max_steps=5))
    env.reset()
    for _ in range(4):
        assert env.step(torch.tensor([LEFT, LEFT])).final_observations is None
    step = env.step(torch.tensor([LEFT, STOP]))
    assert step.truncated.tolist() == [True, False]
    assert step.terminated.tolist() == [False, True]
    assert step.final_observations is not None
    assert step.final_observations["depth"].shape == (1, 8, 8, 1)
    assert not torch.equal(step.final_observations[GOAL][0], step.observations[GOAL][0])


def test_observations_lie_in_the_declared_spaces():
    env = make_env(config=TaskConfig(width=16, height=12, sensors=("depth", "rgb")), order=Shuffled(40, 3, seed=1))
    observations = env.reset()
    for _ in range(5):
        for row in range(3):
            single = {key: value[row].numpy() for key, value in observations.items()}
            assert env.observation_space.contains(single)
        observations = env.step(torch.tensor([FORWARD] * 3)).observations


def test_shuffled_orders_are_permutations_of_their_own():
    order = Shuffled(10, 2, seed=5)
    runs = [[order.next(env) for _ in range(20)] for env in range(2)]
    for run in runs:
        assert sorted(run[:10]) == sorted(run[10:]) == list(range(10))
    assert runs[0] != runs[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"goal_position": (1e3, 0.0, 1e3)}, "cannot be reached"),
        ({"start_position": (1e3, 0.0, 1e3)}, "off the navmesh"),
        ({"start_position": "lifted"}, "off the navmesh"),
    ],
)
def test_a_fault_of_the_last_episode_is_named_before_the_first_step(change, message):
    episodes = reference_episodes()
    if "lifted" in change.values():
        x, y, z = episodes[-1].start_position
        change = {"start_position": (x, y + 1.0, z)}
    episodes[-1] = replace(episodes[-1], episode_id="the last", **change)
    with pytest.raises(UserError, match=f"the last of .*duplex.*{message}"):
        make_env(episodes, num_envs=1).reset()


def test_training_checks_a_scene_when_it_first_runs_there():
    episodes = [*reference_episodes("apartment"), *reference_episodes("duplex")]
    episodes[-1] = replace(episodes[-1], goal_position=(1e3, 0.0, 1e3))
    seed = next(s for s in range(99) if "apartment" in episodes[Shuffled(40, 1, s).next(0)].scene_id)
    env = make_env(episodes, Shuffled(40, 1, seed), num_envs=1)
    env.reset()
    with pytest.raises(UserError, match="cannot be reached"):
        for _ in range(40):
            env.step(torch.tensor([STOP]))


@pytest.mark.parametrize("suffix", [".glb", ".navmesh"])
@pytest.mark.parametrize(("kept", "message"), [(None, "does not exist"), (0, ""), (60, ""), (0.9, "")])
def test_a_scene_file_that_is_missing_or_cut_off_is_named_at_once(tmp_path, suffix, kept, message):
    folder = tmp_path / "scene_datasets" / "reference"
    shutil.copytree(REFERENCE / "scene_datasets" / "reference", folder)
    file = folder / f"duplex{suffix}"
    whole = file.read_bytes()
    file.unlink()
    if kept is not None:
        file.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    with pytest.raises(UserError, match=rf"duplex\{suffix}.*{message}") as raised:
        PointNavEnv(reference_episodes(), tmp_path, Shuffled(40, 1, 0), 1, SMALL)
    assert "\n" not in str(raised.value)


def test_a_state_over_other_episodes_is_refused():
    env = make_env(order=Shuffled(40, 2, seed=0), num_envs=2)
    env.reset()
    state = env.state_dict()
    episodes = reference_episodes()
    moved = [*episodes[:-1], replace(episodes[-1], goal_position=episodes[0].start_position)]
    for others in (episodes[::-1], moved):
        with pytest.raises(UserError, match="data set has changed"):
            make_env(others, Shuffled(40, 2, seed=0), num_envs=2).load_state_dict(state)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("width", 0), ("width", "a"), ("height", 2.5), ("hfov", 180), ("hfov", np.nan), ("camera_height", np.inf),
        ("agent_radius", -0.1), ("agent_height", 0), ("agent_height", "tall"),
        ("max_depth", 0), ("forward_step", -1), ("turn_angle", np.nan), ("turn_angle", 0), ("max_steps", 0),
        ("success_distance", np.nan), ("success_reward", np.inf), ("slack_reward", None),
    ],
)  # fmt: skip
def test_numbers_that_make_no_sense_are_refused(name, value):
    with pytest.raises(UserError, match=rf"^task\.{name} is {value}; it must be a (whole )?number from .* to .*$"):
        TaskConfig(**{name: value})


def test_one_sensor_may_stand_alone():
    assert TaskConfig(sensors="rgb", width=np.int64(8), hfov=90) == TaskConfig(sensors=("rgb",), width=8)

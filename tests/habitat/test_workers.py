"""Through habitat-lab's workers a run goes as in the embedded environments, and what befalls a worker is told."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from navprune.commands.evaluate import run_evaluation
from navprune.commands.train import run_training
from navprune.config import DataConfig, load_config
from navprune.errors import UserError
from navprune.scenes.files.episodes import read_episodes, scene_path
from navprune.tasks import FORWARD, LEFT, STOP, orders
from navprune.tasks.pointnav import Once, PointNavEnv, Shuffled, TaskConfig

pytest.importorskip("quaternion", reason="habitat-lab, which brings numpy-quaternion, is not installed")

from navprune.habitat import workers
from navprune.habitat.vector import HabitatEnv

REFERENCE = Path(__file__).parents[1] / "data" / "reference"
EPISODES = list(read_episodes(REFERENCE, "reference", "val"))[::4]
DATA = DataConfig(folder=str(REFERENCE), name="reference")
SMALL = TaskConfig(width=16, height=12, sensors=("depth", "rgb"))
TINY = [
    f"data.folder={REFERENCE}", "data.name=reference", "data.train=val", "task.width=32", "task.height=32",
    "task.max_steps=20", "agent.encoder=resnet18", "agent.base_planes=4", "agent.visual_features=16",
    "agent.hidden_size=16", "environments=2", "ppo.steps=16", "trainer.total_frames=128",
    "trainer.device=cpu", "warm_start.frames=64", "warm_start.steps=32", "warm_start.sequence=16",
    "warm_start.batch=2", "warm_start.capacity=1000",
]  # fmt: skip


@pytest.fixture
def make_env():
    made = []

    def make(num_envs=2, order=None, config=SMALL, episodes=EPISODES):
        order = order or Once(len(episodes))
        made.append(HabitatEnv(episodes, DATA, "val", order, num_envs, config))
        return made[-1]

    yield make
    for env in made:
        env.close()


def processes(env):
    return list(env._workers._workers)


def same(a, b):
    return all(np.allclose(a[key].numpy(), b[key].numpy(), atol=1e-5) for key in b)


def test_answers_as_the_embedded_environments_do(make_env):
    ours, theirs = PointNavEnv(EPISODES, REFERENCE, Once(len(EPISODES)), 3, SMALL, threads=1), make_env(3)
    assert same(theirs.reset(), ours.reset())
    assert theirs.observation_space == ours.observation_space
    rng = np.random.default_rng(0)
    ended = 0
    while ours.active.any():
        assert theirs.active.tolist() == ours.active.tolist()
        assert theirs.episodes == ours.episodes
        assert np.allclose(theirs.positions[ours.active], ours.positions[ours.active], atol=1e-6)
        turn = (theirs.headings - ours.headings)[ours.active]
        assert np.allclose(np.cos(turn), 1)
        expert = ours.expert_actions()
        assert theirs.expert_actions()[ours.active].equal(expert[ours.active])
        strays = torch.from_numpy(rng.random(3) < 0.2)
        actions = torch.where(strays, torch.from_numpy(rng.integers(1, 4, 3)), expert)
        a, b = theirs.step(actions), ours.step(actions)
        assert same(a.observations, b.observations)
        assert {key: value.dtype for key, value in a.observations.items()} == {
            key: value.dtype for key, value in b.observations.items()
        }
        assert torch.allclose(a.reward, b.reward, atol=1e-5)
        assert a.terminated.equal(b.terminated) and a.truncated.equal(b.truncated)
        assert [(end.env, end.episode) for end in a.finished] == [(end.env, end.episode) for end in b.finished]
        for mine, other in zip(a.finished, b.finished):
            assert mine.measures == pytest.approx(other.measures, abs=1e-4)
            ended += 1
    assert ended == len(EPISODES)
    assert not theirs.active.any()


def test_time_limit_truncates_and_gives_the_last_observation(make_env):
    task = TaskConfig(width=8, height=8, max_steps=3)
    order = Shuffled(len(EPISODES), 2, seed=0), Shuffled(len(EPISODES), 2, seed=0)
    ours, theirs = PointNavEnv(EPISODES, REFERENCE, order[0], 2, task, threads=1), make_env(2, order[1], task)
    ours.reset(), theirs.reset()
    for row in ([LEFT, LEFT], [LEFT, FORWARD], [FORWARD, STOP]):
        a, b = theirs.step(torch.tensor(row)), ours.step(torch.tensor(row))
    assert a.truncated.tolist() == [True, False]
    assert a.terminated.tolist() == [False, True]
    assert same(a.final_observations, b.final_observations)
    assert same(a.observations, b.observations)


def test_an_environment_reads_a_navmesh_once_and_the_next_one_reads_it_anew(tmp_path):
    shutil.copytree(REFERENCE / "scene_datasets", tmp_path / "scene_datasets")
    scene = scene_path(tmp_path, EPISODES[0].scene_id)
    first, second = (
        HabitatEnv(EPISODES, DataConfig(folder=str(tmp_path), name="reference"), "val", Once(len(EPISODES)), 1, SMALL)
        for _ in range(2)
    )
    floor = first._load(scene)
    scene.with_suffix(".navmesh").unlink()
    assert first._load(scene) is floor
    with pytest.raises(UserError, match="navmesh"):
        second._load(scene)


def test_goes_on_from_a_state(make_env):
    actions = torch.from_numpy(np.random.default_rng(0).choice(4, size=(40, 2), p=[0.05, 0.5, 0.25, 0.2]))
    first = make_env(order=Shuffled(len(EPISODES), 2, seed=3))
    first.reset()
    for row in actions[:25]:
        last = first.step(row)
    second = make_env(order=Shuffled(len(EPISODES), 2, seed=3))
    seen = second.load_state_dict(first.state_dict())
    assert all(torch.equal(seen[key], last.observations[key]) for key in seen)
    for row in actions[25:]:
        a, b = first.step(row), second.step(row)
        assert torch.equal(a.reward, b.reward)
        assert all(torch.equal(a.observations[key], b.observations[key]) for key in seen)
        assert a.finished == b.finished


def test_states_of_the_other_kind_are_refused(make_env):
    order = Shuffled(len(EPISODES), 2, seed=0)
    ours, theirs = PointNavEnv(EPISODES, REFERENCE, order, 2, SMALL, threads=1), make_env(order=order)
    with pytest.raises(UserError, match="go on with env=embedded"):
        theirs.load_state_dict(ours.state_dict())
    with pytest.raises(UserError, match="go on with env=habitat"):
        ours.load_state_dict(theirs.state_dict())


def test_trains_and_evaluates_as_in_the_embedded_environments(tmp_path, monkeypatch):
    monkeypatch.setattr(orders, "STAY", 1)  # else the workers' order keeps to a scene

    def config(env):
        return load_config("pointnav", [*TINY, f"env={env}", f"run={tmp_path / env}"])

    results = {env: run_training(config(env)) for env in ("habitat", "embedded")}
    assert results["habitat"].frames == 128
    assert results["habitat"].metrics == pytest.approx(results["embedded"].metrics, abs=1e-4)
    run = str(tmp_path / "habitat")
    chosen = "apartment:0,apartment:3"
    found = {
        env: run_evaluation(run, config(env), limit=12, out=tmp_path / f"{env}_val", pictures=chosen) for env in results
    }
    assert len(found["habitat"][0].episodes) == 12
    for mine, other in zip(found["habitat"][0].episodes, found["embedded"][0].episodes):
        assert (mine.pop("scene"), mine.pop("episode_id")) == (other.pop("scene"), other.pop("episode_id"))
        assert mine == pytest.approx(other, abs=1e-4)
    assert [shown.name for shown in found["habitat"][1]] == [shown.name for shown in found["embedded"][1]]
    assert all(shown.map.is_file() and shown.video.is_file() for shown in found["habitat"][1])
    assert not multiprocessing.active_children()


def test_what_is_raised_in_a_worker_is_told_with_its_traceback(make_env, capsys):
    env = make_env()
    env.reset()
    there = processes(env)
    with pytest.raises(RuntimeError, match=r"worker 1 \(scene apartment, episode 4\) failed: KeyError: 7"):
        env._workers.act({0: LEFT, 1: 7})
    error = capsys.readouterr().err
    assert error.count("Traceback") == 1 and "workers.py" in error
    assert not any(process.is_alive() for process in there)


def test_a_mistake_found_in_a_worker_is_one_line(tmp_path, capsys):
    shutil.copytree(REFERENCE / "scene_datasets", tmp_path / "scene_datasets")
    data = DataConfig(folder=str(tmp_path), name="reference")
    env = HabitatEnv(EPISODES, data, "val", Once(len(EPISODES)), 1, SMALL)
    (tmp_path / "scene_datasets" / "reference" / "apartment.glb").write_bytes(b"glTF")
    with pytest.raises(UserError, match=r"^worker 0 \(scene apartment, episode 0\): .*apartment\.glb") as error:
        env.reset()
    assert "\n" not in str(error.value)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "text"), [(signal.SIGKILL, r"was killed \(SIGKILL\).*memory"), (signal.SIGSEGV, r"crashed \(SIGSEGV\)")]
)
def test_a_worker_that_dies_in_a_step_is_named_at_once(make_env, number, text):
    env = make_env()
    env.reset()
    there = processes(env)
    os.kill(there[1].pid, signal.SIGSTOP)

    def strike():
        os.kill(there[1].pid, number)
        os.kill(there[1].pid, signal.SIGCONT)

    threading.Timer(0.3, strike).start()
    began = time.monotonic()
    with pytest.raises(UserError, match=r"worker 1 \(scene apartment, episode 4\) " + text):
        env.step(torch.tensor([LEFT, LEFT]))
    assert time.monotonic() - began < 3 * workers.CLOSING_SECONDS
    assert not any(process.is_alive() for process in there)
    env.close()


def test_workers_have_one_thread_and_the_main_process_keeps_its_surroundings(make_env):
    before = dict(os.environ), signal.getsignal(signal.SIGINT)
    env = make_env()
    env.reset()
    assert (dict(os.environ), signal.getsignal(signal.SIGINT)) == before
    for process in processes(env):
        there = Path("/proc") / str(process.pid)
        assert b"NUMBA_NUM_THREADS=1" in (there / "environ").read_bytes()
        assert len(list((there / "task").iterdir())) == 1


def test_a_second_reset_begins_anew(make_env):
    ours, theirs = PointNavEnv(EPISODES, REFERENCE, Once(len(EPISODES)), 2, SMALL, threads=1), make_env()
    ours.reset(), theirs.reset()
    theirs.step(torch.tensor([LEFT, LEFT]))
    assert same(theirs.reset(), ours.reset())


def test_closing_waits_for_nobody_for_long(make_env, monkeypatch):
    monkeypatch.setattr(workers, "CLOSING_SECONDS", 0.2)
    env = make_env()
    env.reset()
    there = processes(env)
    os.kill(there[0].pid, signal.SIGSTOP)
    env.close()
    assert not any(process.is_alive() for process in there)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_a_signal_to_all_saves_and_ends_without_a_word_from_the_workers(tmp_path, number, status):
    command = [sys.executable, "-m", "navprune.cli", "train", "--config", "pointnav", *TINY, "env=habitat"]
    command += ["trainer.total_frames=1000000", "warm_start=null", f"run={tmp_path / 'run'}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        while not list((tmp_path / "run").glob("tensorboard/*")):
            assert process.poll() is None and time.sleep(0.1) is None
        os.killpg(process.pid, number)
        error = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == status, error
    assert "stopped and saved" in error and "Traceback" not in error and "Worker" not in error
    assert (tmp_path / "run" / "latest").exists()

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from navprune import files
from navprune.errors import UserError
from navprune.models.policy import PointNavPolicy
from navprune.rl import checkpoints
from navprune.rl.checkpoints import load_policy
from navprune.rl.phases import phases_of
from navprune.rl.ppo import PPOConfig
from navprune.rl.trainer import Trainer, TrainerConfig, train
from navprune.rl.warm_start import WarmStartConfig

PPO = PPOConfig(steps=6, epochs=2, linear_lr=True, linear_clip=True)
# 12 steps x 4 environments an update: seven updates of warm start, the buffer keeps the last three.
WARM = WarmStartConfig(frames=336, steps=12, sequence=6, batch=3, capacity=150, epochs=1, beta_final=0.0)
RUN = TrainerConfig(total_frames=480, checkpoint_seconds=0, window=5)


class Lost(Exception):
    """The power fails."""


def lose_power():
    raise Lost


def run(toys, folder, env=None, config=RUN, warm_start=WARM, **options):
    return train(toys.spec(), env or toys.Corridor(), config, phases_of(PPO, warm_start), folder, **options)


def weights(folder):
    return load_policy(folder / "latest").policy.state_dict()


def same(a, b):
    return all(value.equal(b[name]) for name, value in a.items())


def assert_same(a, b):
    if isinstance(a, torch.Tensor):
        assert a.equal(b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_same(x, y)
    else:
        assert a == b


@pytest.fixture(scope="module")
def whole(tmp_path_factory, toys):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(toys, folder)


def test_the_same_seed_gives_the_same_run(toys, whole, tmp_path):
    run(toys, tmp_path)
    assert same(weights(tmp_path), weights(whole[0]))


def test_another_seed_gives_another_run(toys, whole, tmp_path):
    config = TrainerConfig(total_frames=480, checkpoint_seconds=0, seed=1)
    run(toys, tmp_path, config=config)
    assert not same(weights(tmp_path), weights(whole[0]))


# 12 steps an update up to step 84, then 6: the first update, the buffer full, the switch to PPO, PPO.
@pytest.mark.parametrize("steps", [[15], [40], [83], [86], [101], [20, 45, 30]])
def test_a_run_goes_on_bit_for_bit(toys, whole, tmp_path, steps):
    for step in steps:
        env = toys.Corridor()
        env.fail_at = (step, lose_power)
        with pytest.raises(Lost):
            run(toys, tmp_path, env)
    result = run(toys, tmp_path, toys.Corridor(seed=99))
    assert same(weights(tmp_path), weights(whole[0]))
    assert result.metrics == whole[1].metrics and result.frames == whole[1].frames == 480
    state, other = (torch.load(f / "latest" / "trainer.pt", weights_only=True) for f in (tmp_path, whole[0]))
    assert_same(state, other)


def test_weights_given_are_where_training_begins(toys, tmp_path):
    policy = toys.policy(seed=8)
    before = policy.critic["fc"].weight.clone()
    config = TrainerConfig(total_frames=24)
    train(policy, toys.Corridor(), config, phases_of(PPOConfig(steps=6, lr=1e-9)), tmp_path)
    torch.testing.assert_close(policy.critic["fc"].weight, before)


def test_what_a_run_folder_holds(toys, whole):
    folder, result = whole
    assert {path.name for path in folder.iterdir()} == {"checkpoints", "latest", "best", "tensorboard"}
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names[-2:] == ["000000000456", "000000000480"] and len(names) <= 3
    assert result.latest == (folder / "checkpoints" / "000000000480").resolve()
    assert result.best.is_dir()
    assert set(result.seconds) == {"environment", "policy", "learn", "checkpoint", "other"}
    assert result.frames_per_second > 0
    metrics = load_policy(result.latest).metrics
    assert metrics["frames"] == 480 and metrics["phase"] == "ppo" and 0 <= metrics["spl"] <= 1


def test_the_best_checkpoint_has_the_highest_spl_of_a_full_window(toys, tmp_path):
    env, config = toys.Corridor(), TrainerConfig(total_frames=240, checkpoint_seconds=0, window=5)
    step, n = env.step, [0]

    def rise_and_fall(actions):
        n[0] += 1
        result = step(actions)
        for finished in result.finished:
            finished.measures["spl"] = 0.9 if 18 <= n[0] <= 24 else 0.1
        return result

    env.step = rise_and_fall
    result = run(toys, tmp_path, env, config=config, warm_start=None)
    assert result.best.name == "000000000096"
    assert load_policy(result.best).metrics["spl"] == pytest.approx(0.9)


def events(folder):
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def test_tensorboard_has_habitats_names_and_forgets_what_was_lost(toys, whole, tmp_path):
    env = toys.Corridor()
    env.fail_at = (80, lose_power)
    never = TrainerConfig(total_frames=480, checkpoint_seconds=1e9, window=5)
    with pytest.raises(Lost):
        run(toys, tmp_path, env, config=never)
    run(toys, tmp_path)
    ours, expected = events(tmp_path), events(whole[0])
    names = {"reward", "metrics/success", "metrics/spl", "learner/value_loss", "learner/action_loss"}
    assert names | {"learner/dist_entropy", "learning_rate", "perf/fps", "perf/environment"} <= set(ours)
    for tag in names:
        assert ours[tag] == expected[tag]


def test_scalars_that_cannot_be_written_do_not_stop_a_run(toys, whole, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for method in ("write", "flush", "close"):
        monkeypatch.setattr(RecordWriter, method, full)
    run(toys, tmp_path)
    assert same(weights(tmp_path), weights(whole[0]))
    assert capsys.readouterr().err.count("No space left on device; going on without it") == 1


# In the warm start, after it, and where the newest whole checkpoint is the warm start's last but one.
@pytest.mark.parametrize(("step", "damaged"), [(60, 1), (101, 1), (86, 1), (60, 2)])
def test_a_damaged_checkpoint_is_skipped(toys, whole, tmp_path, capsys, step, damaged):
    env = toys.Corridor()
    env.fail_at = (step, lose_power)
    config = replace(RUN, keep_checkpoints=3)
    with pytest.raises(Lost):
        run(toys, tmp_path, env, config=config)
    for frames in checkpoints.numbered(tmp_path)[:damaged]:
        file = tmp_path / "checkpoints" / f"{frames:012}" / "trainer.pt"
        file.write_bytes(file.read_bytes()[:100])
    capsys.readouterr()
    run(toys, tmp_path, toys.Corridor(seed=99), config=config)
    assert same(weights(tmp_path), weights(whole[0]))
    assert capsys.readouterr().err.count("trainer.pt is damaged") == damaged


def test_where_no_checkpoint_is_whole_nothing_is_lost(toys, tmp_path):
    run(toys, tmp_path, config=replace(RUN, total_frames=96))
    for file in tmp_path.glob("checkpoints/*/weights.safetensors"):
        file.unlink()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole"):
        run(toys, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_without_its_link_a_run_goes_on_from_the_newest_checkpoint(toys, whole, tmp_path):
    run(toys, tmp_path, config=replace(RUN, total_frames=96))
    (tmp_path / "latest").unlink()
    env = toys.Corridor()
    run(toys, tmp_path, env, config=replace(RUN, total_frames=144))
    assert env.steps_taken == 12


def test_folders_that_are_no_runs_are_left_alone(toys, tmp_path):
    checkpoints.save_checkpoint(tmp_path / "checkpoints" / "mine", toys.policy())
    with pytest.raises(UserError, match="checkpoints holds other files"):
        run(toys, tmp_path)
    with pytest.raises(UserError, match="mine is a checkpoint"):
        run(toys, tmp_path / "checkpoints" / "mine")
    load_policy(tmp_path / "checkpoints" / "mine")


def test_ppo_is_judged_by_its_own_episodes(toys, whole, tmp_path):
    trainer = Trainer(toys.spec(), toys.Corridor(), replace(RUN, total_frames=360), phases_of(PPO, WARM), tmp_path)
    trainer.window.add({"success": 2.0, "spl": 2.0, "reward": 2.0})  # more than any episode is worth
    trainer.best_score, trainer.frames = 2.0, trainer.phase_end
    trainer._exchange(trainer._update())
    trainer.save()
    assert trainer.window.mean().get("spl", 0.0) <= 1 and trainer.best_score <= 1
    assert (tmp_path / "best").resolve().name == "000000000360"


@pytest.mark.parametrize(("warm_start", "learnt_from"), [(None, 2 * 48), (WARM, 3 * 3 * 6)])
def test_running_statistics_are_learnt_from_what_is_trained_on(toys, tmp_path, warm_start, learnt_from):
    spec = toys.spec()
    policy = PointNavPolicy(replace(spec, encoder=replace(spec.encoder, normalise=True)))
    config, ppo = replace(RUN, total_frames=48), replace(PPO, steps=12)
    train(policy, toys.Corridor(limit=3), config, phases_of(ppo, warm_start), tmp_path)
    assert [value.item() for name, value in policy.state_dict().items() if name.endswith("_count")] == [learnt_from]


@pytest.mark.parametrize("device", ["tpu9", "cuda:99"])
def test_a_device_that_is_not_there(toys, tmp_path, device):
    with pytest.raises(UserError, match=f"trainer.device is {device}") as error:
        run(toys, tmp_path, config=replace(RUN, device=device))
    assert "\n" not in str(error.value)


def test_a_run_leaves_the_threads_of_its_process_alone(toys, tmp_path):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        run(toys, tmp_path)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_run_of_another_make_is_refused(toys, whole, tmp_path):
    with pytest.raises(UserError, match="4 environments and this run has 5"):
        run(toys, whole[0], toys.Corridor(num_envs=5))
    with pytest.raises(UserError, match="another spec"):
        train(toys.blind_spec(), toys.Corridor(), RUN, phases_of(PPO, WARM), whole[0])
    config = TrainerConfig(total_frames=48)
    run(toys, tmp_path, config=config)
    with pytest.raises(UserError, match="stopped in its warm start"):
        run(toys, tmp_path, warm_start=None)


def test_a_full_disk_leaves_the_earlier_checkpoint(toys, whole, tmp_path, monkeypatch):
    save, count = files.write_bytes, iter(range(1000))

    def full(path, data):
        save(path if next(count) < 41 else Path("/dev/full"), data)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_bytes", full)
        with pytest.raises(UserError, match="No space left"):
            run(toys, tmp_path)
    assert not list(tmp_path.rglob(".*"))
    assert 0 < load_policy(tmp_path / "latest").metrics["frames"] < 480
    run(toys, tmp_path)
    assert same(weights(tmp_path), weights(whole[0]))


def test_ctrl_c_finishes_the_update_saves_and_says_how_to_go_on(toys, whole, tmp_path, capsys):
    env = toys.Corridor()
    env.fail_at, before = (30, lambda: os.kill(os.getpid(), signal.SIGINT)), signal.getsignal(signal.SIGINT)
    never = TrainerConfig(total_frames=480, checkpoint_seconds=1e9, window=5)
    with pytest.raises(SystemExit) as stopped:
        run(toys, tmp_path, env, config=never)
    assert stopped.value.code == 130
    assert f"the same command goes on from {tmp_path}" in capsys.readouterr().err
    assert load_policy(tmp_path / "latest").metrics["frames"] == 3 * 48
    assert signal.getsignal(signal.SIGINT) is before
    run(toys, tmp_path)
    assert same(weights(tmp_path), weights(whole[0]))


KILLED = """
import os, signal, sys
from types import SimpleNamespace
sys.path.insert(0, sys.argv[1])
from rl import conftest as toys, test_trainer as trainer
env = toys.Corridor()
env.fail_at = (64, lambda: os.kill(os.getpid(), signal.SIGKILL))
trainer.run(SimpleNamespace(spec=toys.tiny_spec), sys.argv[2], env)
"""


def test_kill_9_loses_no_more_than_the_interval(toys, whole, tmp_path):
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parents[1]), str(tmp_path)]
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == -signal.SIGKILL
    assert load_policy(tmp_path / "latest").metrics["frames"] == 5 * 48  # 60 of the 63 steps that were done
    run(toys, tmp_path)
    assert same(weights(tmp_path), weights(whole[0]))


def test_rounds_of_a_run_that_never_came_to_a_checkpoint_are_forgotten(toys, tmp_path):
    (tmp_path / "warm_start").mkdir()
    (tmp_path / "warm_start" / "000001.000002.safetensors").write_bytes(b"of another worker")
    run(toys, tmp_path, config=replace(RUN, total_frames=48))
    assert [path.name for path in (tmp_path / "warm_start").iterdir()] == ["000001.000000.safetensors"]
    assert run(toys, tmp_path, config=replace(RUN, total_frames=96)).frames == 96

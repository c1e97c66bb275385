"""A run through the command line: what resuming says, spoilt weights, a folder that was copied, and workers."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from rl.run_folders import same, weights

from navprune.cli import main
from navprune.commands import train as commands
from navprune.config import Config
from navprune.errors import UserError
from navprune.rl.checkpoints import checkpoint_folder, numbered, read_trainer
from navprune.rl.ppo import PPOConfig
from navprune.rl.trainer import TrainerConfig
from navprune.rl.warm_start import WarmStartConfig

REFERENCE = Path(__file__).parents[1] / "data" / "reference"
TINY = [
    f"data.folder={REFERENCE}", "data.name=reference", "data.train=val", "data.scenes=[apartment]", "task.width=32",
    "task.height=32", "task.max_steps=20", "agent.encoder=resnet18", "agent.base_planes=4", "agent.visual_features=16",
    "agent.hidden_size=16", "environments=2", "ppo.steps=16", "ppo.epochs=1", "warm_start=null",
    "trainer.total_frames=64", "trainer.checkpoint_seconds=0",
]  # fmt: skip


def train(folder, *settings):
    return main(["train", "--config", "pointnav", f"run={folder}", *TINY, *settings])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train") / "run"
    assert train(folder) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run", symlinks=True)


def evaluate(path, *more):
    return main(["evaluate", str(path), "--episodes", "2", *more])


def mistake(capsys, *arguments):
    assert main([*map(str, arguments)]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("navprune: ")]
    return error


def test_another_seed_or_init_is_refused_and_the_same_command_says_that_all_is_done(run, tmp_path, capsys):
    for setting, told in (("trainer.seed=1", "trainer.seed=0, not 1"), (f"init={run}", f"init=null, not {run}")):
        error = mistake(capsys, "train", "--config", "pointnav", f"run={run}", *TINY, setting)
        assert told in error and "trainer.start=restart" in error
    assert train(run) == 0
    said = capsys.readouterr()
    assert "is complete at 64 frames, nothing to train" in said.err
    assert said.out.startswith("64 frames  ") and "frames/s" not in said.out
    assert train(run, "trainer.seed=1", "trainer.start=restart") == 0
    assert (tmp_path / "run.1" / "latest").exists() and "start: resume" in (run / "latest" / "config.yaml").read_text()


@pytest.mark.parametrize("inside", [".", "checkpoints", f"checkpoints/{64:012}"])
def test_an_evaluation_goes_to_its_run_from_wherever_it_is_asked_for(run, monkeypatch, inside):
    monkeypatch.chdir(run / inside)
    assert evaluate(".." if inside == "checkpoints" else ".") == 0
    assert [path.parent for path in run.rglob("summary.json")] == [run / "evaluation" / "val"]


@pytest.mark.parametrize("key", ["run", "data.folder"])
def test_an_empty_folder_is_none(tmp_path, monkeypatch, capsys, key):
    monkeypatch.chdir(tmp_path)
    assert f"{key} is empty; name a folder" in mistake(capsys, "train", "--config", "pointnav", *TINY, f"{key}=")
    assert not list(tmp_path.iterdir())


def test_a_loss_that_overflows_is_one_line(run, capsys):
    before = sorted(path.name for path in (run / "checkpoints").iterdir())
    settings = ["trainer.total_frames=128", "ppo.value_coefficient=1e39"]
    error = mistake(capsys, "train", "--config", "pointnav", f"run={run}", *TINY, *settings)
    assert "update 3 (ppo, at 64 frames): the loss is inf" in error and "lower lr" in error
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == before
    assert train(run, "trainer.total_frames=96") == 0


def test_spoilt_weights_are_refused_by_name_and_passed_over_in_a_run(run, tmp_path, capsys):
    spoilt = run / "checkpoints" / f"{64:012}"
    tensors = safetensors.torch.load((spoilt / "weights.safetensors").read_bytes())
    for name, tensor in tensors.items():
        tensors[name] = tensor / 0 * 0 if tensor.is_floating_point() else tensor
    (spoilt / "weights.safetensors").write_bytes(safetensors.torch.save(tensors))
    budget = ["--method", "l1", "--budget", "macs=0.6", "--out", tmp_path / "slim"]
    train_from = ["train", "--config", "pointnav", f"run={tmp_path / 'next'}", *TINY]
    for command in (["evaluate", spoilt], ["prune", spoilt, *budget], [*train_from, f"init={spoilt}"]):
        assert "is not finite" in mistake(capsys, *command)
    assert evaluate(run) == 0
    assert f"skipped: {spoilt}" in capsys.readouterr().err
    summary = json.loads((run / "evaluation" / "val" / "summary.json").read_text())
    assert (Path(summary["checkpoint"]).name, summary["frames"]) == (f"{32:012}", 32)
    assert main(["prune", str(run), *map(str, budget)]) == 0
    assert main([*train_from, f"init={run}"]) == 0


def test_after_scp_a_run_is_evaluated_where_it_stands_and_goes_on(run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "copied", symlinks=False)
    assert evaluate(copied) == 0
    summary = json.loads((copied / "evaluation" / "val" / "summary.json").read_text())
    assert summary["agent"] == str(copied) and summary["frames"] == 64
    assert summary["checkpoint"] == str(copied / "checkpoints" / f"{64:012}")
    assert train(copied, "trainer.total_frames=96") == 0
    shutil.rmtree(copied / "evaluation")
    assert evaluate(copied / "best") == 0 and evaluate(copied / "latest") == 0
    assert json.loads((copied / "evaluation" / "val" / "summary.json").read_text())["frames"] == 96


def test_links_as_text_files_do_not_matter(run, tmp_path):
    for name in ("latest", "best"):
        target = os.readlink(run / name)
        (run / name).unlink()
        (run / name).write_text(target)
    for source in (run, run / "latest", run / "best"):
        assert main(["cost", str(source)]) == 0
    assert (
        main(["prune", str(run / "best"), "--method", "l1", "--budget", "macs=0.6", "--out", str(tmp_path / "s")]) == 0
    )
    compare = ["compare", str(run), str(run / "best"), "--out", str(tmp_path / "page"), "--batch-sizes", "1"]
    assert main([*compare, "--pictures", "0"]) == 0


def test_a_control_has_no_checkpoint(tmp_path):
    assert evaluate("random", *TINY, "--out", str(tmp_path)) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["agent"] == "random" and summary["checkpoint"] is None and summary["frames"] is None


# Workers ------------------------------------------------------------------------------------------------

SHARED = [
    *(setting for setting in TINY if setting != "warm_start=null"), "environments=8", "ppo.steps=8",
    "ppo.minibatches=2", "task.max_steps=6", "trainer.window=10", "warm_start.frames=128", "warm_start.steps=8",
    "warm_start.sequence=4", "warm_start.batch=4", "warm_start.capacity=256", "trainer.total_frames=256",
    "trainer.keep_checkpoints=4", "trainer.device=cpu",
    "warm_start.lr=2e-6",  # Muon makes large steps of what rounding leaves in directions that have no gradient
]  # fmt: skip


def share(folder, workers, *settings):
    """Train a warm start of two updates and two of PPO."""
    command = ["train", "--config", "pointnav", f"run={folder}", *SHARED, f"trainer.workers={workers}", *settings]
    assert main(command) == 0
    return read_trainer(folder / "latest")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train") / "two"
    share(folder, 2)
    return folder


def gradients(state):
    """What the optimiser of a trainer.pt remembers of them, {(weight, name): tensor}."""
    optimiser = state["learner"]["optimiser"]["state"]
    return {(number, name): value for number, own in optimiser.items() for name, value in own.items()}


def assert_close(run, other):
    """After each update two runs are the same but for rounding, in their gradients too.

    At its learning rate here a warm start hardly moves the weights, and as far whatever the size of the gradients.
    """
    updates = [64, 128, 192, 256]
    assert sorted(numbered(run)) == sorted(numbered(other)) == updates
    for frames in updates:
        ours, theirs = (read_trainer(checkpoint_folder(each, frames)) for each in (run, other))
        assert ours["window"] == theirs["window"] and ours["starts"] == theirs["starts"]
        assert ours["generator"].equal(theirs["generator"])
        expected = gradients(theirs)
        for name, value in gradients(ours).items():
            assert (value - expected[name]).norm() <= 1e-4 * expected[name].norm(), (frames, name)
        expected = weights(checkpoint_folder(other, frames))
        for name, value in weights(checkpoint_folder(run, frames)).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert len(read_trainer(run / "latest")["window"]) == 10


def test_two_workers_are_one_run(two, tmp_path):
    share(tmp_path / "one", 1)
    assert_close(two, tmp_path / "one")
    assert (two / "latest" / "metrics.json").read_text() == (tmp_path / "one" / "latest" / "metrics.json").read_text()
    assert {path.name for path in two.iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


@pytest.mark.parametrize("stopped", [64, 192])
def test_any_number_of_workers_goes_on(two, tmp_path, stopped):
    """In the middle of the warm start, whose rounds are files of several workers then, and of PPO."""
    half = tmp_path / "half"
    assert share(half, 2, f"trainer.total_frames={stopped}")["frames"] == stopped
    assert len(list(half.glob("warm_start/*"))) == 2 * min(stopped, 128) // 64
    for workers in (2, 1, 4) if stopped == 64 else (2, 1):
        folder = shutil.copytree(half, tmp_path / str(workers), symlinks=True)
        assert share(folder, workers)["frames"] == 256
        assert_close(folder, two)
        assert workers != 2 or same(weights(folder), weights(two))


def test_torchrun_is_another_way_to_begin_them(two, tmp_path):
    folder, package = tmp_path / "run", str(Path(commands.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "1"}
    begin = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "navprune", "train"]
    rest = ["--config", "pointnav", f"run={folder}", *SHARED, "--json", str(tmp_path / "answer.json")]
    done = subprocess.run([sys.executable, *begin, *rest], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("256 frames") == 1 and json.loads((tmp_path / "answer.json").read_text())["frames"] == 256
    assert same(weights(folder), weights(two))


def configured(workers=0, environments=12, minibatches=2, batch=None, **changes):
    warm = None if batch is None else WarmStartConfig(batch=batch)
    ppo, trainer = PPOConfig(minibatches=minibatches), TrainerConfig(workers=workers)
    return Config(environments=environments, ppo=ppo, warm_start=warm, trainer=trainer, **changes)


@pytest.mark.parametrize(
    ("config", "cores", "expected"),
    [
        (configured(), 1, 1),
        (configured(), 2, 2),
        (configured(), 5, 3),
        (configured(), 64, 6),
        (configured(batch=8), 64, 2),
        (configured(environments=5), 64, 1),
        (configured(env="habitat"), 64, 1),
        (configured(workers=6), 1, 6),
        (configured(workers=1, environments=3), 64, 1),
    ],
)
def test_as_many_workers_as_cores_that_can_share_the_work(monkeypatch, config, cores, expected):
    monkeypatch.setattr(commands, "cores", lambda: cores)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert commands.worker_count(config) == expected


@pytest.mark.parametrize(("device", "expected"), [("auto", 2), ("cuda", 2), ("cuda:1", 1), ("cpu", 6)])
def test_a_worker_for_each_gpu_that_the_run_may_use(monkeypatch, device, expected):
    monkeypatch.setattr(commands, "cores", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = replace(configured(), trainer=TrainerConfig(device=device))
    assert commands.worker_count(config) == expected
    three = replace(config, trainer=TrainerConfig(device=device, workers=3))
    if device == "cpu":
        assert commands.worker_count(three) == 3
    else:
        with pytest.raises(UserError, match=f"is 3, and 3 on this machine have {expected} of its GPUs"):
            commands.worker_count(three)


@pytest.mark.parametrize(
    ("config", "begun", "told"),
    [
        (configured(workers=4), None, "trainer.workers is 4, .* 12 environments in 2 mini-batches; use 1, 2, 3 or "
         "6, or a multiple of 8 environments"),
        (configured(workers=3, batch=8), None, r"and 8 sequences \(warm_start.batch\); use 1 or 2"),
        (configured(environments=5), "2", "torchrun began 2 workers, which cannot share out 5 environments"),
    ],
)  # fmt: skip
def test_workers_that_cannot_share_the_work_are_refused(monkeypatch, config, begun, told):
    if begun:
        monkeypatch.setenv("WORLD_SIZE", begun)
    with pytest.raises(UserError, match=told) as error:
        commands.worker_count(config)
    assert "\n" not in str(error.value)
    assert commands.worker_count(replace(config, environments=24, warm_start=None)) in (2, 3, 4)

"""A run through the command line: what resuming says, spoilt weights, and a folder that was copied."""

import json
import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch

from navprune.cli import main

REFERENCE = Path(__file__).parents[1] / "data" / "reference"
TINY = [
    f"data.folder={REFERENCE}", "data.name=reference", "data.train=val", "data.scenes=[apartment]", "task.width=32",
    "task.height=32", "task.max_steps=20", "agent.encoder=resnet18", "agent.base_planes=4", "agent.visual_features=16",
    "agent.hidden_size=16", "environments=2", "ppo.steps=16", "ppo.epochs=1", "warm_start=null", "trainer.threads=1",
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

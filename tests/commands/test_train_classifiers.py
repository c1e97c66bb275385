"""Classifiers are trained, pruned and trained on by the command line."""

import json

import pytest
import torch
from rl.run_folders import same

from navprune.cli import main
from navprune.commands import train as commands
from navprune.config import load_config
from navprune.models.build import build
from navprune.models.classifiers import classifier_spec
from navprune.pruning.recover import rewound_checkpoint
from navprune.rl.checkpoints import load_network, numbered, read_metrics, read_trainer, save_checkpoint

TINY = ["classifier.width=0.25", "supervised.epochs=0.5", "supervised.batch=64", "supervised.steps=2"]


def train(folder, *settings):
    return main(["train", "--config", "digits_resnet20", f"run={folder}", *TINY, *map(str, settings)])


def weights(folder):
    return load_network(folder / "latest").state_dict()


def mistake(capsys, folder, *settings):
    capsys.readouterr()
    assert train(folder, *settings) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("navprune: ")]
    return error


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """Half a pass over the digits, with every checkpoint kept."""
    folder = tmp_path_factory.mktemp("train") / "dense"
    assert train(folder, "trainer.checkpoint_seconds=0", "trainer.keep_checkpoints=9") == 0
    return folder


@pytest.fixture(scope="module")
def slim(dense, tmp_path_factory):
    """The same pruned by half."""
    folder = tmp_path_factory.mktemp("prune") / "slim"
    assert main(["prune", str(dense), "--method", "l1", "--budget", "macs=0.5", "--out", str(folder)]) == 0
    return folder


def test_a_run_is_an_ordinary_one(dense, tmp_path, capsys):
    assert read_trainer(dense / "latest")["frames"] == max(numbered(dense)) and "top1" in read_metrics(dense / "latest")
    assert train(dense) == 0
    assert "images, nothing to train; a larger supervised.epochs trains longer" in capsys.readouterr().err
    assert train(tmp_path / "again") == 0
    assert same(weights(tmp_path / "again"), weights(dense))


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("images.pad=2", "images.pad=1, not 2"),
        ("classifier.width=0.5", "classifier.width=0.25, not 0.5"),
        ("trainer.seed=1", "trainer.seed=0, not 1"),
        ("supervised.optimiser=adam", "supervised.optimiser=sgd, not adam"),
        ("pruning.penalty=norm-scale", "pruning=null, not "),
    ],
)
def test_what_would_make_it_another_run_is_refused(dense, capsys, setting, told):
    error = mistake(capsys, dense, setting)
    assert told in error and "trainer.start=restart" in error


def test_restart_moves_the_run_aside(tmp_path):
    for _ in range(2):
        assert train(tmp_path / "run", "trainer.start=restart", "supervised.epochs=0.1") == 0
    assert numbered(tmp_path / "run") == numbered(tmp_path / "run.1") != []


def test_frames_are_for_agents(tmp_path, capsys):
    assert "a classifier trains for supervised.epochs" in mistake(capsys, tmp_path / "run", "trainer.total_frames=100")


def test_a_network_of_other_classes_or_none_is_refused(tmp_path, capsys):
    other = save_checkpoint(tmp_path / "other", build(classifier_spec("cifar_resnet20", 4, (1, 8, 8), width=0.25)))
    error = mistake(capsys, tmp_path / "run", f"init={other}")
    assert "takes images [1, 8, 8] in 4 classes, and the data has [1, 8, 8] in 10" in error
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_two_workers_are_one_run(tmp_path):
    for workers in (1, 2):
        settings = f"trainer.workers={workers}", "trainer.device=cpu", "supervised.lr=1e-3"
        assert train(tmp_path / str(workers), *settings) == 0
    expected = weights(tmp_path / "1")
    for name, value in weights(tmp_path / "2").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_workers_that_cannot_share_a_batch_are_refused(tmp_path, capsys):
    for batch, fits in ((64, "1, 2, 4, ... or 64"), (6, "1, 2, 3 or 6"), (7, "1 or 7")):
        said = mistake(
            capsys,
            tmp_path / "run",
            "trainer.workers=4" if batch < 64 else "trainer.workers=3",
            f"supervised.batch={batch}",
        )
        assert f"(supervised.batch); use {fits} workers" in said


def test_what_is_cut_in_training_is_written_beside_the_result(dense, tmp_path):
    settings = "pruning=gradual", "pruning.budget=macs=0.5", "pruning.cuts=2", f"pruning.teacher={dense}"
    assert train(tmp_path / "cut", f"init={dense}", *settings) == 0
    spec = load_network(tmp_path / "cut" / "latest").spec
    written = json.loads((tmp_path / "cut" / "latest" / "pruning.json").read_text())
    assert written["reached"]["macs"] <= 0.5 and len(written["cuts"]) == 2
    assert {name: after for name, (_, after) in written["widths"].items()} == dict(spec.widths)


def test_a_pruned_network_trains_from_its_weights_with_a_teacher_or_from_early_ones(dense, slim, tmp_path):
    still = ["supervised.lr=1e-12", "supervised.weight_decay=0"]
    early = dense / "checkpoints" / f"{min(numbered(dense)):012}"
    distil = ["pruning=distil", f"pruning.teacher={dense}"]
    for name, more in (("tuned", []), ("taught", distil), ("rewound", [f"pruning.rewind={early}"])):
        assert train(tmp_path / name, f"init={slim}", *more, *still) == 0
        expected = rewound_checkpoint(slim, early) if name == "rewound" else load_network(slim)
        found = load_network(tmp_path / name / "latest")
        assert found.spec == expected.spec
        for key, value in expected.named_parameters():
            torch.testing.assert_close(found.get_parameter(key), value)


def test_a_penalty_prepares_a_network_that_is_pruned_afterwards(tmp_path):
    run, out = tmp_path / "run", tmp_path / "slim"
    assert train(run, "pruning.penalty=norm-scale", "pruning.strength=0.1") == 0
    assert load_network(run / "latest").spec == classifier_spec("cifar_resnet20", 10, (1, 8, 8), 0.25)
    assert not (run / "latest" / "pruning.json").exists()
    assert main(["prune", str(run), "--method", "norm-scale", "--budget", "macs=0.5", "--out", str(out)]) == 0
    assert load_network(out).spec != load_network(run / "latest").spec


@pytest.mark.parametrize(("batch", "cores", "expected"), [(64, 3, 2), (64, 100, 64), (10, 7, 5), (7, 3, 1)])
def test_as_many_workers_as_cores_that_can_share_a_batch(monkeypatch, batch, cores, expected):
    monkeypatch.setattr(commands, "cores", lambda: cores)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    config = load_config("digits_resnet20", [f"supervised.batch={batch}", "trainer.workers=0"])
    assert commands.worker_count(config) == expected


def test_a_rewind_of_nothing_that_was_pruned_is_refused(tmp_path, capsys):
    error = mistake(capsys, tmp_path / "run", "pruning.rewind=nowhere")
    assert "pruning.rewind goes with cuts or a pruned init" in error

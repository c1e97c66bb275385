"""Every command with classifiers, one after the other, on the digits and on CIFAR-10's true layout."""

import json
import shutil

import labelled_images
import pytest
import torch

from navprune.cli import main
from navprune.commands.classification import images_to_look_at
from navprune.config import load_config
from navprune.images.splits import open_images
from navprune.rl.checkpoints import load_classifier, load_network, numbered, read_masks

TINY = ["classifier.family=cifar_resnet20", "classifier.width=0.25", "supervised.batch=64", "trainer.workers=1",
        "supervised.steps=3", "trainer.checkpoint_seconds=0"]  # fmt: skip


@pytest.fixture(scope="module", params=["digits", "cifar"])
def settings(request, tmp_path_factory):
    """A recipe with settings that make it quick."""
    if request.param == "digits":
        return ["--config", "digits_resnet20", *TINY, "supervised.epochs=2"]
    source = labelled_images.cifar10_python(tmp_path_factory.mktemp("cifar"), per_batch=60)
    return ["--config", "cifar10_resnet56", f"images.source={source}", *TINY, "supervised.epochs=4"]


@pytest.fixture(scope="module")
def runs(settings, tmp_path_factory):
    """Trainings of three seeds."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        assert main(["train", *settings, f"run={folder}/s{seed}", f"trainer.seed={seed}"]) == 0
    return folder


def ask(tmp_path, *arguments):
    """The answer of a command for programs."""
    assert main([*map(str, arguments), "--json", str(tmp_path / "answer.json")]) == 0
    return json.loads((tmp_path / "answer.json").read_text())


def weights(run):
    return load_network(run).state_dict()


def test_a_longer_run_goes_on_and_ends_as_one_that_was_not_interrupted(runs, settings, tmp_path):
    longer = ["trainer.seed=0", "supervised.epochs=5", "supervised.schedule=constant"]
    parts = ["trainer.seed=0", "supervised.epochs=3", "supervised.schedule=constant"]
    for name, steps in (("whole", (longer,)), ("parts", (parts, longer))):
        for step in steps:
            answer = ask(tmp_path, "train", *settings, *step, f"run={tmp_path}/{name}")
    whole, other = (weights(tmp_path / name) for name in ("whole", "parts"))
    assert all(value.equal(other[name]) for name, value in whole.items())
    assert answer["frames"] == numbered(tmp_path / "parts")[0]


def test_a_classifier_is_evaluated_on_every_image(runs, tmp_path):
    answer = ask(tmp_path, "evaluate", runs / "s0")
    assert answer["split"] == "test" and answer["images"] in (60, 358, 359, 360)
    assert 0 <= answer["measures"]["top1"]["low"] <= answer["measures"]["top1"]["mean"] <= 1
    val = ask(tmp_path, "evaluate", runs / "s0", "--split", "val")
    assert val["images"] != answer["images"]
    metrics = json.loads((runs / "s0" / "latest" / "metrics.json").read_text())
    assert val["measures"]["top1"]["mean"] == pytest.approx(metrics["top1"], abs=1e-6)


def test_classifiers_are_costed_timed_and_compared(runs, tmp_path):
    cost = ask(tmp_path, "cost", runs / "s0")
    small = ask(tmp_path, "prune", runs / "s0", "--method", "l1", "--budget", "macs=0.5", "--out", tmp_path / "small")
    assert small["before"]["deployed"] == cost["deployed"]
    assert small["after"]["deployed"]["macs"] <= 0.5 * cost["deployed"]["macs"]
    rows = ask(tmp_path, "latency", runs / "s0", tmp_path / "small", "--batch-sizes", "1", "--runs", "3")["rows"]
    assert [row["model"] for row in rows] == ["s0", "small"]
    told = ask(
        tmp_path, "compare", f"dense={runs}/s*", tmp_path / "small", "--batch-sizes", "1", "--out", tmp_path / "c"
    )
    assert [row["name"] for row in told["rows"]] == ["dense", "small"]
    assert {*told["comparisons"]["measures"]} >= {"top1"} and (tmp_path / "c" / "report.html").is_file()


def test_what_is_cut_trains_on(runs, settings, tmp_path, capsys):
    for method in ("gates", "taylor"):
        out = tmp_path / method
        arguments = ["--method", method, "--budget", "macs=0.5", "--epochs", "1"][: None if method == "gates" else 4]
        ask(tmp_path, "prune", runs / "s0", *arguments, "--batch-size", "32", "--out", out)
        command = capsys.readouterr().out.strip().splitlines()[-1].split()
        assert command[:2] == ["navprune", "train"] and main([*command[1:], "supervised.epochs=1"]) == 0
        assert load_classifier(f"{out}_run").spec == load_classifier(out).spec


def test_what_is_masked_trains_on_under_its_masks(runs, tmp_path, capsys):
    found = ask(
        tmp_path, "prune", runs / "s0", "--masks", "global-magnitude-gradient", "--compression", "2,4",
        "--out", tmp_path / "masked",
    )  # fmt: skip
    assert [round(each["compression"]["reached"], 1) for each in found["checkpoints"]] == [2, 4]
    command = capsys.readouterr().out.strip().splitlines()[-1].split()
    assert main([*command[1:], "supervised.epochs=1"]) == 0
    run = tmp_path / "masked" / "4_run"
    masks, after, before = read_masks(run / "latest"), weights(run), weights(tmp_path / "masked" / "4")
    assert masks and all((after[name][~mask] == 0).all() for name, mask in masks.items())
    assert any(not after[name].equal(before[name]) for name in masks)


def test_a_classifier_is_cut_while_it_trains_and_taught(runs, settings, tmp_path):
    cuts = [
        "pruning.budget=macs=0.5",
        "pruning.cuts=2",
        "pruning.method=taylor",
        "pruning.begin=0.1",
        "pruning.end=0.7",
    ]
    lessons = [f"pruning.teacher={runs}/s0"]
    ask(tmp_path, "train", *settings, *cuts, *lessons, "supervised.steps=1", f"run={tmp_path}/cut")
    told = json.loads((tmp_path / "cut" / "latest" / "pruning.json").read_text())
    assert len(told["cuts"]) == 2 and told["reached"]["macs"] <= 0.5
    assert load_classifier(tmp_path / "cut").spec != load_classifier(runs / "s0").spec


def test_a_classifier_is_exported(runs, tmp_path):
    ask(tmp_path, "export", runs / "s0", "--format", "torch", "--out", tmp_path / "net.pt2")
    contract = json.loads((tmp_path / "net.pt2.classifier_contract.json").read_text())
    assert len(contract["names"]) == contract["classes"] == 10 and len(contract["mean"]) in (1, 3)


def test_what_makes_no_sense_is_one_line(runs, settings, tmp_path, capsys):
    copied = shutil.copytree(runs / "s0", tmp_path / "run", symlinks=True)
    for arguments in (
        ["train", *settings, "trainer.total_frames=99", f"run={tmp_path}/new"],
        ["train", *settings, "supervised.batch=65", "trainer.workers=2", f"run={tmp_path}/new"],
        ["train", *settings, "trainer.seed=7", f"run={copied}"],
        ["train", *settings, "agent=resnet50", f"run={tmp_path}/new"],
        ["train", *settings, "supervised.batch=5000", f"run={tmp_path}/new"],
        ["train", "--config", "pointnav", "supervised.lr=0.1", f"run={tmp_path}/new"],
        ["evaluate", str(copied), "--greedy"],
        ["evaluate", str(copied), "--split", "elsewhere"],
        ["latency", str(copied), "--step"],
        ["export", str(copied), "--out", str(tmp_path / "a.pth")],
    ):
        assert main(arguments) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("navprune: ")]
        assert len(errors) == 1, arguments


def test_what_prepared_a_cut_is_not_paid_behind_it(runs, settings, tmp_path):
    penalised, cut = tmp_path / "penalised", tmp_path / "cut"
    penalty = ["pruning.penalty=norm-scale", "pruning.strength=0.01"]
    ask(tmp_path, "train", *settings, *penalty, "supervised.epochs=1", f"run={penalised}")
    for asked in (
        ["--method", "norm-scale", "--budget", "macs=0.5"],
        ["--masks", "global-magnitude", "--compression", "2"],
    ):
        ask(tmp_path, "prune", penalised, *asked, "--out", cut)
        assert load_config(str(cut / "config.yaml")).pruning is None
    assert load_config(str(penalised / "latest" / "config.yaml")).pruning.penalty == "norm-scale"


@pytest.mark.parametrize("recipe", ["digits_resnet20", "pointnav"])
def test_what_pruning_looks_at_is_neither_tested_on_nor_held_out(recipe):
    config = load_config(recipe)
    named = images_to_look_at("digits", config)
    looked, *others = (open_images(named, split) for split in ("train", "val", "test"))
    assert all(not {*looked.rows.tolist()} & {*other.rows.tolist()} for other in others)
    if config.images:
        assert looked.rows.equal(open_images(config.images, "train").rows)


def test_two_workers_learn_what_one_does(settings, tmp_path):
    # Some steps at a small rate: rounding, which a sum in another order changes, grows with every step.
    few = ["supervised.epochs=0.2", "supervised.lr=1e-3"]
    for count in (1, 2):
        assert main(["train", *settings, *few, f"trainer.workers={count}", f"run={tmp_path}/{count}"]) == 0
    alone, together = (weights(tmp_path / name) for name in ("1", "2"))
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-5)

"""`navprune prune` as a function: what it looks at, what it writes, and that the result needs no pruning code."""

import json
import shlex
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clocks import machine, seconds
from PIL import Image

from navprune.cli import main
from navprune.commands.evidence import material
from navprune.commands.prune import next_step, run_pruning, timer_of, unpruned
from navprune.config import load_config
from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.widths import widths
from navprune.pruning.config import ClockConfig, EvidenceConfig, GateConfig, PruningConfig
from navprune.pruning.methods import method_of
from navprune.rl.checkpoints import load_classifier, load_policy
from navprune.source import Source

REFERENCE = Path(__file__).parents[1] / "data" / "reference"
TINY = [
    "data.name=reference", "data.train=val", "task.width=32", "task.height=32", "agent.base_planes=8",
    "agent.compression=8", "agent.visual_features=16", "agent.hidden_size=16", "environments=2", "ppo.steps=8",
    "ppo.epochs=1", "ppo.minibatches=2", "trainer.total_frames=1000", "trainer.device=cpu",
]  # fmt: skip
LOOSE = {"tolerance": 0.1}


def run(source, method, budget, out, config, seed=0, frames_per_second=None, **options):
    """`run_pruning` to shares by name; options of the evidence may stand beside the others."""
    evidence = EvidenceConfig(**{name: options.pop(name) for name in EvidenceConfig().__dict__ if name in options})
    text = ",".join(f"{name}={share}" for name, share in budget.items())
    asked = PruningConfig(method=method, budget=text, evidence=evidence, **options)
    return run_pruning(source, asked, out, config, seed=seed, frames_per_second=frames_per_second)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruning_jobs") / "data"
    shutil.copytree(REFERENCE, folder)
    return load_config("pointnav", [*TINY, f"data.folder={folder}"])


@pytest.mark.parametrize(
    ("method", "loss"), [("gates", None), ("gates", "ppo"), ("taylor", None), ("activation", None)]
)
def test_scores_and_gates_look_at_the_task(config, tmp_path, method, loss):
    result = run(
        "resnet18", method, {"macs": 0.6}, tmp_path / "slim", config, steps=16, epochs=1, batch_size=8, loss=loss,
        **LOOSE, gates=GateConfig(expansion=1),
    )  # fmt: skip
    assert 0.54 <= result.reached["macs"] <= 0.6
    assert len(result.losses) == {("gates", None): 4, ("gates", "ppo"): 4}.get((method, loss), 0)
    assert load_policy(tmp_path / "slim").policy.spec == result.spec


@pytest.mark.parametrize(("method", "batches"), [("gates", 4), ("activation", 4), ("taylor", 4)])
def test_progress_is_shown_while_batches_are_looked_at(config, tmp_path, capsys, method, batches):
    """Of 2 x 16 observations by 8, and of two rollouts with two mini-batches each."""
    options = dict(steps=16, epochs=1, batch_size=8, **LOOSE, gates=GateConfig(expansion=1))
    run("resnet18", method, {"macs": 0.6}, tmp_path / "slim", config, **options)
    assert f"{method}  {batches} of {batches} batches" in capsys.readouterr().err


def test_a_slim_checkpoint_comes_with_what_was_done(config, tmp_path):
    out = tmp_path / "slim"
    for _ in range(2):  # the second time in place of the first
        result = run("resnet18", "l1", {"macs": 0.6}, out, config, **LOOSE, seed=3, frames_per_second=10.0, blocks=True)
    assert {path.name for path in out.iterdir()} == {
        "weights.safetensors", "spec.json", "config.yaml", "metrics.json", "pruning.json", "widths.png"
    }  # fmt: skip
    data = json.loads((out / "pruning.json").read_text())
    assert data["method"] == "l1" and data["seed"] == 3 and data["budget"] == {"macs": 0.6}
    assert data["initial_weights"] == result.initial_weights and len(data["initial_weights"]) == 64
    assert data["reached"]["macs"] == pytest.approx(
        data["after"]["table1"]["macs_gi"] / data["before"]["table1"]["macs_gi"], abs=2e-2
    )
    after = {name: pair[1] for name, pair in data["widths"].items() if pair[1]}
    assert sorted(after.values()) == sorted(widths(result.spec.encoder).values())
    assert data["blocks_removed"] == list(result.blocks)
    training = data["training"]
    assert training["equal_compute_frames"] == round(1000 / data["reached"]["macs"])
    assert training["search_share"] == pytest.approx(data["search_seconds"] / 100)
    frames = f"trainer.total_frames={training['equal_compute_frames']}"
    assert next_step(out, data, config, scratch=True).endswith("init_weights=false")
    odd = Path("my slim (1)")
    words = shlex.split(next_step(odd, data, config).splitlines()[-1])
    assert words[-3:] == [f"{odd}/config.yaml", f"init={odd}", f"run={odd}_run"]
    for scratch in (True, False):  # equal compute is of training from scratch
        command = next_step(out, data, config, scratch=scratch, equal_compute=True)
        assert command.endswith(f"init_weights=false {frames}")
    with Image.open(out / "widths.png") as picture:
        assert picture.width > 600 and len(picture.convert("RGB").getcolors(1 << 20)) > 5


@pytest.mark.parametrize("kind", ["source", "teacher", "training", "trained", "folder", "file"])
def test_pruning_takes_nothing_but_a_slim_checkpoints_place(config, tmp_path, kind):
    source, other = tmp_path / "dense", tmp_path / "other"
    run("resnet18", "l1", {"macs": 1.0}, source, config)
    options = {"loss": "distillation", "teacher": str(other)} if kind == "teacher" else {}
    if kind == "file":
        other.write_text("notes")
    elif kind != "source":
        shutil.copytree(source, other)
        wrong = {"training": "trainer.pt", "trained": "metrics.json", "folder": "notes.txt"}
        if kind in wrong:
            (other / wrong[kind]).write_text('{"spl": 1.0}')
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    out = source if kind == "source" else other
    with pytest.raises(UserError, match="choose another folder"):
        run(str(source), "taylor", {"macs": 0.6}, out, config, **LOOSE, **options)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_folder_by_the_name_of_a_network_is_no_hindrance(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet18").mkdir()
    assert run("resnet18", "l1", {"macs": 0.6}, Path("out"), config, **LOOSE).dense


def test_a_slim_checkpoint_loads_without_pruning_code(config, tmp_path):
    run("resnet50", "random", {"macs": 0.6}, tmp_path / "slim", config, **LOOSE, blocks=True)
    code = f"""
import sys
from navprune.rl.checkpoints import load_policy
policy = load_policy({str(tmp_path / "slim")!r}).policy
assert policy.spec.encoder.layers
assert not any(name.startswith("navprune.pruning") for name in sys.modules), sorted(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def images(tmp_path):
    generator = np.random.default_rng(0)
    file = tmp_path / "set.npz"
    np.savez(file, images=generator.integers(0, 256, (32, 3, 32, 32), np.uint8), labels=np.arange(32) % 4)
    return str(file)


def test_classifiers_learn_gates_from_labelled_images(config, tmp_path, images):
    out = tmp_path / "slim"
    options = dict(images=images, batch_size=8, epochs=1)
    result = run("cifar_resnet56", "gates", {"macs": 0.5}, out, config, loss="classification", **options)
    assert result.dense.classes == 4 and len(result.losses) == 2
    classifier = load_classifier(out)
    assert classifier.spec == result.spec
    data = json.loads((out / "pruning.json").read_text())
    counts = [data[when]["deployed"]["macs"] for when in ("before", "after")]
    assert 0.495 <= counts[1] / counts[0] <= 0.5
    again = run(str(out), "taylor", {"parameters": 0.9}, tmp_path / "slimmer", config, **options)
    assert again.dense == classifier.spec and 0.89 <= again.reached["parameters"] <= 0.9


def test_taylor_follows_the_difference_from_a_teacher(config, tmp_path, images):
    """Of a network cut once already, for agents and classifiers; the teacher itself has no slope there."""
    looked = {"resnet18": {"steps": 8, "batch_size": 8}, "cifar_resnet56": {"images": images, "batch_size": 8}}
    for source, options in looked.items():
        dense, cut, out = (tmp_path / f"{source}-{name}" for name in ("dense", "cut", "out"))
        run(source, "l1", {"macs": 1.0}, dense, config)
        run(str(dense), "l1", {"macs": 0.8}, cut, config, **LOOSE)
        taught = {**options, "loss": "distillation", "teacher": str(dense)}
        with pytest.raises(UserError, match="copy of its own teacher"):
            run(str(dense), "taylor", {"macs": 0.7}, out, config, **LOOSE, **taught)
        result = run(str(cut), "taylor", {"macs": 0.7}, out, config, **LOOSE, **taught)
        assert 0.63 <= result.reached["macs"] <= 0.7
        assert any(score.unique().numel() > 1 for score in result.scores.values())


@pytest.mark.parametrize(
    ("source", "method", "options", "complaint"),
    [
        ("cifar_resnet56", "gates", {}, "labelled images: give --images SOURCE"),
        ("cifar_resnet56", "gates", {"loss": "ppo"}, "its loss is classification or distillation, not ppo"),
        ("resnet18", "gates", {"loss": "classification"}, "classification needs a classifier"),
        ("resnet18", "taylor", {"loss": "imitation"}, "follow ppo's loss"),
        ("resnet18", "activation", {"loss": "ppo"}, "activation follows no loss"),
        ("resnet18", "l1", {"images": "set.npz"}, "set.npz: labelled images are for classifiers"),
        ("resnet18", "gates", {"loss": "guess"}, "known are null, imitation, ppo, classification, distillation"),
        ("resnet18", "taylor", {"loss": "distillation"}, "distillation and a teacher go together"),
        ("resnet18", "taylor", {"teacher": "runs/dense"}, "distillation and a teacher go together"),
        ("resnet18", "gates", {"loss": "distillation", "teacher": "resnet18"}, "a loss of taylor scores"),
        (
            "resnet18",
            "taylor",
            {"loss": "distillation", "teacher": "runs/none"},
            "there is no file or folder runs/none",
        ),
        ("resnet18", "l1", {"frames_per_second": -1.0}, "more than 0 frames per second"),
        ("resnet99", "l1", {}, "did you mean resnet"),
    ],
)
def test_what_does_not_go_together_is_refused(config, tmp_path, source, method, options, complaint):
    with pytest.raises(UserError, match=complaint):
        run(source, method, {"macs": 0.5}, tmp_path / "slim", config, **options)
    assert not (tmp_path / "slim").exists()


@pytest.mark.parametrize(("method", "passes"), [("gates", 3), ("taylor", 1), ("activation", 1)])
def test_only_gates_pass_through_the_images_more_than_once(config, monkeypatch, images, method, passes):
    asked = EvidenceConfig(images=images, batch_size=4, epochs=3)
    spec = unpruned(Source.parse("cifar_resnet56"), config, images)
    monkeypatch.setattr("navprune.commands.evidence.training_env", lambda _: pytest.fail("no environment"))
    batches: Any = material(method_of(method), spec, asked, config, 0, ExitStack())[0]
    assert sum(len(labels) for _, labels in batches(None)) == 20 * passes  # the rest is held out


def test_a_teacher_that_does_not_fit_is_told_before_anything_is_looked_at(config, tmp_path, capsys, images):
    options = {"images": images, "loss": "distillation", "batch_size": 4}
    for teacher, told in (
        ("resnet18", "resnet18 is no classifier"),
        ("cifar_resnet56", "the teacher knows 10 classes"),
    ):
        with pytest.raises(UserError, match=told):
            run("cifar_resnet20", "taylor", {"macs": 0.5}, tmp_path / "slim", config, teacher=teacher, **options)
    assert "batches" not in capsys.readouterr().err


def test_labelled_images_of_another_kind_are_refused(config, tmp_path, images):
    run("cifar_resnet56", "l1", {"macs": 0.5}, tmp_path / "slim", config)
    np.savez(images, images=np.zeros((32, 3, 40, 40), np.uint8), labels=np.arange(32) % 8)
    with pytest.raises(UserError, match=r"holds images of \[3, 40, 40\] with 8 classes"):
        run(str(tmp_path / "slim"), "taylor", {"macs": 0.5}, tmp_path / "x", config, images=images)


def test_a_clock_is_that_of_its_configuration():
    timer = timer_of(ClockConfig(batch=4, threads=2), torch.device("cpu"))
    assert (timer.runtime.name, timer.batch, timer.threads) == ("eager", 4, 2)
    with pytest.raises(UserError, match="unknown runtime 'sundial'"):
        timer_of(ClockConfig(runtime="sundial"), torch.device("cpu"))
    with pytest.raises(UserError, match=r"latency cannot be measured in cuda-graphs: .* need a GPU"):
        timer_of(ClockConfig(runtime="cuda-graphs"), torch.device("cpu"))


@pytest.mark.parametrize("unit", ["share", "milliseconds"])
def test_latency_may_be_the_budget(config, tmp_path, monkeypatch, unit):
    monkeypatch.setattr("navprune.commands.prune.timer_of", lambda *_: machine(constant=0.0))
    encoder = unpruned(Source.parse("resnet18"), config, None).encoder
    dense = 1e3 * seconds(build(encoder, 0), torch.rand(1, *encoder.input), constant=0.0)
    name, limit = ("latency", 0.7) if unit == "share" else ("latency_ms", 0.7 * dense)
    asked = PruningConfig(method="random", budget=f"latency={limit}{'ms' * (unit == 'milliseconds')}")
    result = run_pruning("resnet18", asked, tmp_path / "slim", config)
    assert 0.95 * limit <= result.reached[name] <= limit
    assert json.loads((tmp_path / "slim" / "pruning.json").read_text())["budget"] == {name: limit}
    assert run("cifar_resnet56", "random", {"latency": 0.7}, tmp_path / "x", config).reached["latency"] <= 0.7


def test_gates_on_ppo_repeat_with_their_seed(config, tmp_path):
    options = dict(steps=16, **LOOSE, loss="ppo", seed=1)
    first, second = (run("resnet18", "gates", {"macs": 0.7}, tmp_path / n, config, **options) for n in "ab")
    assert first.losses == second.losses
    assert all(torch.equal(first.scores[name], second.scores[name]) for name in first.scores)


# The command -------------------------------------------------------------------------------------


SMALL = ["agent.base_planes=8", "task.width=64", "task.height=64"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--method l1 --loss ppo", "--loss is for methods that need batches"),
        ("--method l1 --steps 9", "--steps is for"),
        ("--method random --batch-size 9", "--batch-size is for"),
        ("--method taylor --batch-size 9", "PPO draws its own mini-batches"),
        ("--method gates --loss ppo --epochs 2", "--epochs is for gates, unless PPO"),
        ("--method activation --epochs 2", "--epochs is for gates"),
        ("--method taylor --expansion 1.5", "--expansion is for gates"),
        ("--method l1 --stable 0.9", "--stable is for gates"),
        ("--method l1 --paper cifar --images X", "--paper is for gates"),
        ("--method gates --paper cifar", "--paper is for gates that learn from labelled --images"),
        ("--method gates --images X --steps 9", "--steps is for"),
        ("--method probe --importance l1 --expansion 1.5", "--expansion is for gates"),
        ("--method l1 --latency-batch 4", "--latency-batch is for a budget of latency"),
        ("--method l1 --images X", "labelled images are for classifiers"),
    ],
)
def test_options_that_make_no_difference_are_refused(capsys, tmp_path, options, complaint):
    out = tmp_path / "slim"
    assert main(["prune", "resnet18", *SMALL, "--budget", "macs=0.5", "--out", str(out), *options.split()]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert complaint in said[-1] and said[-1].endswith("out")
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--latency-threads 0", "--latency-threads is 0; it must be"),
        ("--minimum few", "--minimum is 'few'; it must be a whole number"),
        ("--minimum 2 --minimum-share 2", "--minimum-share is 2"),
        ("--penalty -1", "--penalty is -1"),
        ("--limits stem", "--limits 'stem': cannot read"),
        ("--limits stem=2", "--limits: stem=2"),
        ("--budget latency=0.5,latency=0.7", "--budget 'latency=0.5,latency=0.7': cannot read"),
        ("--budget latency=0.5,latency=4ms", "--budget 'latency=0.5,latency=4ms' has two limits"),
        ("--minimum 2 pruning.multiple=0", "pointnav: pruning.multiple is 0"),
    ],
)
def test_a_mistake_in_a_flag_is_told_of_the_flag(capsys, tmp_path, options, complaint):
    assert main(["prune", "resnet18", "--budget", "macs=0.5", "--out", str(tmp_path / "x"), *options.split()]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert said.startswith(f"navprune: {complaint}")


def test_flags_say_what_a_command_line_knows(capsys):
    with pytest.raises(SystemExit):
        main(["prune", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "null:" not in said and "Whether" not in said
    assert "--latency-threads N" in said and "--fresh Measure anew" in said


@pytest.mark.parametrize(
    ("options", "epochs", "batch_size", "expansion", "penalty"),
    [
        ("", 3, 100, 1.25, 20),
        ("--epochs 2 --expansion 1", 2, 100, 1, 20),
        ("--paper cifar --images X", 10, 128, 1.25, 0.5),
        ("--paper cifar --images X --epochs 2 --expansion 1", 2, 128, 1, 0.5),
        ("--paper imagenet --images X --batch-size 7", 1, 7, 1.25, 0.05),
    ],
)
def test_what_is_asked_for_goes_before_the_papers_settings(
    monkeypatch, tmp_path, options, epochs, batch_size, expansion, penalty
):
    given = []

    def stop(_source, asked, *_, **__):
        given.append(asked)
        raise UserError("enough")

    monkeypatch.setattr("navprune.commands.prune.run_pruning", stop)
    assert main(["prune", "resnet18", "--budget", "macs=0.5", "--out", str(tmp_path / "x"), *options.split()]) == 2
    (asked,) = given
    assert (asked.evidence.epochs, asked.evidence.batch_size) == (epochs, batch_size)
    assert (asked.gates.expansion, asked.gates.penalty) == (expansion, penalty)


def test_a_budget_that_does_not_bind_is_told(capsys, tmp_path):
    arguments = ["prune", "resnet18", *SMALL, "--method", "l1", "--out", str(tmp_path / "slim"), "--budget"]
    assert main([*arguments, "macs=0.9,parameters=0.1"]) == 0
    said = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in said if line.startswith("macs ended at") and "parameters binds first" in line]) == 1
    assert main([*arguments, "macs=0.5"]) == 0
    assert "ended at" not in capsys.readouterr().err


def test_what_is_printed_of_a_classifier_loads_it(capsys, tmp_path):
    out = tmp_path / "slim"
    assert main(["prune", "cifar_resnet56", "--method", "l1", "--budget", "macs=0.5", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "navprune train" not in said
    code = said.strip().splitlines()[-1].strip()
    assert code == f"navprune.rl.checkpoints.load_classifier({str(out)!r})"
    assert load_classifier(out).spec.widths


@pytest.mark.parametrize("way", ["flags", "settings", "recipe"])
def test_flags_settings_and_recipes_ask_for_the_same(tmp_path, way):
    out, recipe = tmp_path / "slim", tmp_path / "mine.yaml"
    recipe.write_text("defaults: [pointnav]\npruning: {method: l2, budget: macs=0.5, minimum: 2, limits: stem=0.5}\n")
    asked = {
        "flags": ["--method", "l2", "--budget", "macs=0.5", "--minimum", "2", "--limits", "stem=0.5"],
        "settings": [
            "pruning.method=l2", "pruning.budget=macs=0.5", "pruning.minimum=2", "pruning.limits=stem=0.5"
        ],
        "recipe": ["--config", str(recipe)],
    }  # fmt: skip
    assert main(["prune", "resnet18", *SMALL, "agent.base_planes=16", "--out", str(out), *asked[way]]) == 0
    data = json.loads((out / "pruning.json").read_text())
    assert data["method"] == "l2" and data["budget"] == {"macs": 0.5}
    assert (data["settings"]["search"]["minimum"], data["settings"]["search"]["limits"]) == (2, {"stem": 0.5})
    assert load_config(str(out / "config.yaml")).pruning is None  # else the training that follows would cut again


def test_a_budget_must_be_given(capsys, tmp_path):
    assert main(["prune", "resnet18", *SMALL, "--method", "l1", "--out", str(tmp_path / "slim")]) == 2
    assert "set pruning.budget" in capsys.readouterr().err

"""`navprune prune` as a function: what it looks at, what it writes, and that the result needs no pruning code."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from navprune.config import load_config
from navprune.errors import UserError
from navprune.jobs import run_pruning
from navprune.models.spec import encoder_spec, widths
from navprune.pruning.gates import GateConfig
from navprune.pruning.prune import resized
from navprune.pruning.search import SearchConfig
from navprune.pruning_jobs import count_cost, latency_share, training_command
from navprune.rl.checkpoints import load_classifier, load_policy

REFERENCE = Path(__file__).parent / "data" / "reference"
TINY = [
    "data.name=reference", "data.train=val", "task.width=32", "task.height=32", "agent.base_planes=8",
    "agent.compression=8", "agent.visual_features=16", "agent.hidden_size=16", "environments=2", "ppo.steps=8",
    "ppo.epochs=1", "ppo.minibatches=2", "trainer.total_frames=1000", "trainer.device=cpu",
]  # fmt: skip
LOOSE = SearchConfig(tolerance=0.1)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruning_jobs") / "data"
    shutil.copytree(REFERENCE, folder)
    return load_config("pointnav", [*TINY, f"data.folder={folder}"])


@pytest.mark.parametrize(
    ("method", "loss"), [("gates", None), ("gates", "ppo"), ("taylor", None), ("activation", None)]
)
def test_scores_and_gates_look_at_the_task(config, tmp_path, method, loss):
    result = run_pruning(
        "resnet18", method, {"macs": 0.6}, tmp_path / "slim", config, steps=16, epochs=1, batch_size=8, loss=loss,
        search=LOOSE, gates=GateConfig(expansion=1),
    )  # fmt: skip
    assert 0.54 <= result.reached["macs"] <= 0.6
    assert len(result.losses) == {("gates", None): 4, ("gates", "ppo"): 4}.get((method, loss), 0)
    assert load_policy(tmp_path / "slim").policy.spec == result.spec


def test_a_slim_checkpoint_comes_with_what_was_done(config, tmp_path):
    out = tmp_path / "slim"
    for _ in range(2):  # the second time in place of the first
        result = run_pruning(
            "resnet18", "l1", {"macs": 0.6}, out, config, search=LOOSE, seed=3, frames_per_second=10.0, blocks=True
        )
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
    assert training_command(out, data, scratch=True, equal_compute=True).endswith(f"init_weights=false {frames}")
    with Image.open(out / "widths.png") as picture:
        assert picture.width > 600 and len(picture.convert("RGB").getcolors(1 << 20)) > 5


def test_a_slim_checkpoint_loads_without_pruning_code(config, tmp_path):
    run_pruning("resnet50", "random", {"macs": 0.6}, tmp_path / "slim", config, search=LOOSE, blocks=True)
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
    np.savez(file, images=generator.integers(0, 256, (16, 3, 32, 32), np.uint8), labels=np.arange(16) % 4)
    return file


def test_classifiers_learn_gates_from_labelled_images(config, tmp_path, images):
    out = tmp_path / "slim"
    options = dict(images=images, batch_size=8, epochs=1)
    result = run_pruning("cifar_resnet56", "gates", {"macs": 0.5}, out, config, loss="classification", **options)
    assert result.dense.classes == 4 and len(result.losses) == 2
    classifier = load_classifier(out)
    assert classifier.spec == result.spec
    data = json.loads((out / "pruning.json").read_text())
    counts = [data[when]["deployed"]["macs"] for when in ("before", "after")]
    assert 0.495 <= counts[1] / counts[0] <= 0.5
    again = run_pruning(str(out), "taylor", {"parameters": 0.9}, tmp_path / "slimmer", config, **options)
    assert again.dense == classifier.spec and 0.89 <= again.reached["parameters"] <= 0.9


@pytest.mark.parametrize(
    ("source", "method", "options", "complaint"),
    [
        ("cifar_resnet56", "gates", {}, "labelled images: give an .npz"),
        ("cifar_resnet56", "gates", {"loss": "ppo"}, "its loss is classification, not ppo"),
        ("resnet18", "gates", {"loss": "classification"}, "classification needs a classifier"),
        ("resnet18", "taylor", {"loss": "imitation"}, "follow ppo's loss"),
        ("resnet18", "gates", {"loss": "guess"}, "use imitation, ppo, classification"),
        ("resnet18", "l1", {"latency_runtime": "tape"}, "unknown runtime 'tape'"),
        ("resnet18", "l1", {"frames_per_second": -1.0}, "more than 0 frames per second"),
        ("resnet99", "l1", {}, "no checkpoint at resnet99"),
    ],
)
def test_what_does_not_go_together_is_refused(config, tmp_path, source, method, options, complaint):
    with pytest.raises(UserError, match=complaint):
        run_pruning(source, method, {"macs": 0.5}, tmp_path / "slim", config, **options)
    assert not (tmp_path / "slim").exists()


def test_labelled_images_of_another_kind_are_refused(config, tmp_path, images):
    run_pruning("cifar_resnet56", "l1", {"macs": 0.5}, tmp_path / "slim", config)
    np.savez(images, images=np.zeros((8, 3, 40, 40), np.uint8), labels=np.arange(8))
    with pytest.raises(UserError, match=r"holds images of \[3, 40, 40\] with 8 classes"):
        run_pruning(str(tmp_path / "slim"), "taylor", {"macs": 0.5}, tmp_path / "x", config, images=images)


def test_latency_is_a_share_of_the_dense_encoder():
    spec = encoder_spec("resnet18", (1, 64, 64), 32)
    share = latency_share(spec, batch_size=4, repeats=5)
    thin = share({name: spec.units[name] for name in widths(spec)})
    assert 0 < thin < share(widths(spec)) < 3


def test_latency_may_be_the_budget(config, tmp_path, monkeypatch):
    """By a clock that is made up: each multiply-accumulate takes as long as any other."""
    asked = []

    def share(dense, *_):
        whole = count_cost(dense)["macs"]
        return lambda channels: asked.append(channels) or count_cost(resized(dense, channels))["macs"] / whole

    monkeypatch.setattr("navprune.pruning_jobs.latency_share", share)
    result = run_pruning("resnet18", "random", {"latency": 0.7}, tmp_path / "slim", config)
    assert 0.665 <= result.reached["latency"] <= 0.7 and len(asked) < 12
    with pytest.raises(UserError, match="latency is measured of visual encoders"):
        run_pruning("cifar_resnet56", "random", {"latency": 0.7}, tmp_path / "x", config)


def test_gates_on_ppo_repeat_with_their_seed(config, tmp_path):
    options = dict(steps=16, search=LOOSE, loss="ppo", seed=1)
    first, second = (run_pruning("resnet18", "gates", {"macs": 0.7}, tmp_path / n, config, **options) for n in "ab")
    assert first.losses == second.losses
    assert all(torch.equal(first.scores[name], second.scores[name]) for name in first.scores)

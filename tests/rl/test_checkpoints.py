import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from navprune import files
from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.classifiers import classifier_spec
from navprune.pruning.recover import Distillation
from navprune.rl.checkpoints import (
    DamagedCheckpoint,
    load_classifier,
    load_policy,
    pack,
    read_masks,
    read_trainer,
    save_checkpoint,
    unpack,
)
from navprune.rl.phases import phases_of
from navprune.rl.ppo import PPOConfig
from navprune.rl.trainer import Trainer, TrainerConfig, train
from navprune.rl.warm_start import WarmStartConfig


@pytest.fixture
def policy(toys):
    return toys.policy(seed=5)


@pytest.fixture
def saved(policy, tmp_path):
    return save_checkpoint(tmp_path / "one", policy, config="seed: 5\n", metrics={"spl": 0.5}, trainer={"frames": 7})


def same_weights(a, b):
    return all(value.equal(b.state_dict()[name]) for name, value in a.state_dict().items())


def test_a_policy_comes_back_as_it_was(policy, saved):
    loaded = load_policy(saved)
    assert same_weights(loaded.policy, policy) and loaded.policy.spec == policy.spec
    assert (loaded.metrics, loaded.config, loaded.folder) == ({"spl": 0.5}, "seed: 5\n", saved)
    assert not loaded.policy.training


def test_a_folder_holds_the_named_files_and_nothing_else_is_left(saved):
    names = {"weights.safetensors", "spec.json", "config.yaml", "metrics.json", "trainer.pt"}
    assert {path.name for path in saved.iterdir()} == names
    assert [path.name for path in saved.parent.iterdir()] == ["one"]


def test_replacing_keeps_one_whole_folder(toys, saved):
    other = toys.policy(seed=6)
    save_checkpoint(saved, other)
    assert same_weights(load_policy(saved).policy, other)
    assert not (saved / "trainer.pt").exists()
    assert [path.name for path in saved.parent.iterdir()] == ["one"]


def test_masks_come_back_and_go_with_the_checkpoint_that_had_them(policy, saved):
    masks = {name: torch.rand(value.shape) < 0.5 for name, value in policy.named_parameters()}
    save_checkpoint(saved, policy, masks=masks)
    found = read_masks(saved)
    assert found.keys() == masks.keys() and all(mask.equal(masks[name]) for name, mask in found.items())
    safetensors.torch.save_file({"fc.weight": torch.ones(2)}, saved / "masks.safetensors")
    with pytest.raises(DamagedCheckpoint, match=r"that of fc\.weight is torch\.float32; write bool"):
        read_masks(saved)
    (saved / "masks.safetensors").write_bytes((saved / "masks.safetensors").read_bytes()[:-1])
    with pytest.raises(DamagedCheckpoint, match=r"masks\.safetensors is damaged or cut off"):
        read_masks(saved)
    save_checkpoint(saved, policy)
    assert read_masks(saved) == {}


def test_a_folder_that_holds_anything_else_is_not_replaced(toys, saved, monkeypatch):
    (saved / "pruning.json").write_text("{}")
    save_checkpoint(saved, toys.policy(seed=6))
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="one holds other files; choose another folder"):
        save_checkpoint(saved, toys.policy(seed=7))
    assert (saved / "notes.txt").read_text() == "mine" and same_weights(load_policy(saved).policy, toys.policy(seed=6))
    monkeypatch.chdir(saved)
    for here in (".", ".."):
        with pytest.raises(UserError, match="choose another folder"):
            save_checkpoint(here, toys.policy(seed=7))


def test_a_run_folder_leads_to_its_latest_checkpoint(toys, tmp_path):
    run = tmp_path / "run"
    for frames in (96, 480):
        save_checkpoint(run / "checkpoints" / f"{frames:012}", toys.policy(), metrics={"best_frames": 96})
    for name, frames in ((".", 480), ("latest", 480), ("best", 96)):
        assert load_policy(run / name).folder == run / "checkpoints" / f"{frames:012}"
    moved = run.rename(tmp_path / "moved")
    assert load_policy(moved).folder == moved / "checkpoints" / f"{480:012}"


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**130), 2**130) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=8,
)


@given(plain)
def test_plain_data_survives_packing(data):
    assert unpack(pack(data)) == data


def test_everything_a_trainer_needs_loads_without_unpickling_code(policy, tmp_path):
    rng = np.random.default_rng(3)
    state: dict[str, Any] = {
        "rng": rng.bit_generator.state,
        "arrays": [np.arange(6).reshape(2, 3), np.array(2.5), np.zeros((0, 4), np.float32), np.array([True])],
        "number": np.float64(0.1),
        "optimiser": torch.optim.Adam(policy.parameters()).state_dict(),
        "starts": {"ppo": 0},
    }
    folder = save_checkpoint(tmp_path / "c", policy, trainer=state)
    back = read_trainer(folder)
    assert back["rng"] == state["rng"] and back["number"] == 0.1
    for a, b in zip(state["arrays"], back["arrays"]):
        assert a.dtype == b.dtype and a.shape == b.shape and (a == b).all()


def test_what_cannot_be_kept_plainly_is_named(policy, tmp_path):
    with pytest.raises(TypeError, match=r"trainer\['env'\]\[1\] is a PosixPath"):
        save_checkpoint(tmp_path / "c", policy, trainer={"env": [0, Path("x")]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["weights.safetensors", "spec.json", "trainer.pt", "metrics.json"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_cut_off_files_are_named(saved, name, share):
    data = (saved / name).read_bytes()
    (saved / name).write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=f"{name} is damaged") as error:
        read_trainer(saved) if name == "trainer.pt" else load_policy(saved)
    assert "\n" not in str(error.value)


def test_missing_files_are_named(saved, tmp_path):
    (saved / "weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"weights\.safetensors is missing"):
        load_policy(saved)
    with pytest.raises(UserError, match="no such folder"):
        load_policy(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no checkpoint in"):
        load_policy(tmp_path / "empty")


def test_a_checkpoint_of_another_spec(saved):
    spec = json.loads((saved / "spec.json").read_text())
    (saved / "spec.json").write_text(json.dumps({**spec, "hidden_size": 24}))
    with pytest.raises(UserError, match=r"another architecture: action_distribution\.linear\.weight is \(4, 16\)"):
        load_policy(saved)


@pytest.mark.parametrize("full_at", range(6))
def test_a_full_disk_loses_nothing(toys, saved, monkeypatch, full_at):
    """The disk turns out to be full at the n-th sync: of one of the five files, or of their folder."""
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    calls = iter(range(100))

    def full(descriptor):
        if next(calls) == full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        save_checkpoint(saved, toys.policy(seed=6), trainer={})
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert not [path for path in saved.parent.iterdir() if path.name.startswith(".")]


def test_a_real_full_device(toys, saved, monkeypatch):
    write = files.write_bytes
    monkeypatch.setattr(files, "write_bytes", lambda path, data: write(Path("/dev/full"), data))
    with pytest.raises(UserError, match="No space left on device"):
        save_checkpoint(saved, toys.policy(seed=6))
    assert load_policy(saved).metrics == {"spl": 0.5}


def test_a_slim_classifier_comes_back_as_it_was(tmp_path, saved):
    small = build(classifier_spec("cifar_resnet56", 10, width=0.1).without_blocks({"layer2.1"}), 0)
    folder = save_checkpoint(tmp_path / "classifier", small, metrics={"top1": 0.1})
    again = load_classifier(folder)
    assert again.spec == small.spec and again.spec.blocks == (9, 8, 9) and not again.training
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in small.state_dict().items())
    with pytest.raises(UserError, match="holds no policy but a cifar_resnet56"):
        load_policy(folder)
    with pytest.raises(UserError, match="holds no classifier"):
        load_classifier(saved)


# Format 1 -----------------------------------------------------------------------------------------------

RECORDED = Path(__file__).parents[1] / "data" / "format_1"  # written before there were workers; a Distillation at work


@pytest.mark.parametrize(("name", "frames", "updates"), [("warm_start", 48, 1), ("ppo", 144, 4)])
def test_runs_of_format_1_go_on(toys, tmp_path, name, frames, updates):
    spec, folder = toys.spec(hidden_size=4), shutil.copytree(RECORDED / name, tmp_path / "run")
    warm = WarmStartConfig(frames=96, steps=12, sequence=6, batch=4, capacity=96)
    lessons = Distillation(build(toys.spec(rnn="lstm", hidden_size=4), 3), spec, policy=1.0, features=1.0)
    phases = phases_of(PPOConfig(steps=6, epochs=1, minibatches=2), warm, [lessons])
    config = TrainerConfig(total_frames=frames, threads=1, window=2)
    trainer = Trainer(spec, toys.Corridor(), config, phases, folder)
    assert (trainer.frames, trainer.updates, trainer.phase.name) == (frames, updates, name)
    kept = trainer.learner.state_dict()
    if name == "ppo":
        assert kept["optimiser"]["state"]
        assert trainer.schedule_start == 96 and lessons.seen.all() and lessons.state.abs().sum() > 0
    else:
        assert kept["collected"] == 1 and kept["environments"]["drivers"]["expert"].any()
    result = train(spec, toys.Corridor(), replace(config, total_frames=192), phases, folder)
    assert result.frames == 192 and read_trainer(result.latest)["starts"] == {"warm_start": 0, "ppo": 96}

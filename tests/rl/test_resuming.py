"""What a run is gone on with: other settings, other versions, and its curves."""

import json
import shutil
import time
from dataclasses import replace

import pytest
import torch
from rl.run_folders import CONFIG, PPO, RUN, run, same, weights, write_as_format_1
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from navprune.config import DataConfig, to_yaml
from navprune.errors import UserError
from navprune.pruning.config import PruningScheduleConfig
from navprune.reports.plots import read_curve
from navprune.rl import monitor, runs
from navprune.rl.checkpoints import find_checkpoint, numbered, read_any_spec, read_config
from navprune.rl.trainer import TrainerConfig
from navprune.rl.warm_start import WarmStartConfig
from navprune.tasks.pointnav import TaskConfig

# What a run was trained with ------------------------------------------------------------------------------

OTHERS = [
    ("trainer.seed=0, not 1", {"trainer": replace(RUN, seed=1)}),
    ("init=null, not runs/slim", {"init": "runs/slim"}),
    ("init_weights=True, not False", {"init_weights": False}),
    ("task.turn_angle=10.0, not 30.0", {"task": TaskConfig(turn_angle=30.0)}),
    ("task.success_distance=0.2, not 3.0", {"task": TaskConfig(success_distance=3.0)}),
    ("task.success_reward=2.5, not 5.0", {"task": TaskConfig(success_reward=5.0)}),
    ("data.name=homes, not gibson", {"data": DataConfig(name="gibson")}),
    ("data.scenes=null, not \\['a'\\]", {"data": DataConfig(scenes=("a",))}),
    ("env=embedded, not habitat", {"env": "habitat"}),
    ("pruning=null, not ", {"pruning": PruningScheduleConfig(budget="macs=0.5")}),
]


@pytest.mark.parametrize("frames", [48, 96])
@pytest.mark.parametrize(("told", "change"), OTHERS, ids=[told.partition(",")[0] for told, _ in OTHERS])
def test_what_makes_it_another_run_is_refused(toys, begun, told, change, frames):
    before = {path: path.stat().st_mtime_ns for path in begun.glob("*/**/*")}
    with pytest.raises(UserError, match=f"{begun} is a run with {told}.*trainer.start=restart") as error:
        run(toys, begun, replace(CONFIG, **change), frames=frames)
    assert "\n" not in str(error.value)
    assert {path: path.stat().st_mtime_ns for path in begun.glob("*/**/*")} == before


def test_schedules_and_lengths_may_change_are_told_and_kept(toys, begun, capsys):
    capsys.readouterr()
    data = DataConfig(folder="/mnt/data", val="val_mini", scene_memory=2)
    other = replace(CONFIG, ppo=replace(PPO, lr=1e-3), data=data)
    run(toys, begun, other, frames=72)
    said = capsys.readouterr().err
    assert f"{begun} goes on at 48 frames of 72" in said and "  ppo.lr: 0.00025 -> 0.001" in said
    assert "  trainer.total_frames: 48 -> 72" in said and "data.folder: data -> /mnt/data" in said
    assert "trainer.start" not in said and "  run: " not in said
    run(toys, begun, other, frames=72)
    assert (
        f"{begun} is complete at 72 frames, nothing to train; a larger trainer.total_frames" in capsys.readouterr().err
    )
    kept = {path.name: path.read_text() for path in (begun / "configs").iterdir()}
    assert sorted(kept) == [f"{0:012}.yaml", f"{48:012}.yaml"]
    assert "lr: 0.00025" in kept[f"{0:012}.yaml"] and kept[f"{48:012}.yaml"] == read_config(find_checkpoint(begun))


@pytest.mark.parametrize(("left", "kept"), [(48, [0, 48]), (24, [0, 24]), (0, [0])])
def test_what_a_lost_part_was_trained_with_is_forgotten(toys, begun, left, kept):
    for frames, lr in ((72, 1e-3), (96, 2e-3)):
        run(
            toys,
            begun,
            replace(CONFIG, ppo=replace(PPO, lr=lr), trainer=replace(RUN, keep_checkpoints=9)),
            frames=frames,
        )
    (begun / "configs" / "mine.yaml").touch()
    for frames in numbered(begun):
        if frames > left:
            shutil.rmtree(begun / "checkpoints" / f"{frames:012}")
    run(toys, begun, replace(CONFIG, ppo=replace(PPO, lr=3e-3 if left == 48 else PPO.lr)), frames=96)
    names = [path.stem for path in sorted((begun / "configs").iterdir())]
    configs = {name: (begun / "configs" / f"{name}.yaml").read_text() for name in names}
    assert names[-1] == "mine" and [int(name) for name in names[:-1]] == kept
    assert configs[names[-2]] == read_config(find_checkpoint(begun))
    assert not any("lr: 0.001\n" in text or "lr: 0.002\n" in text for text in configs.values())


def test_a_run_of_an_earlier_version_keeps_its_configuration_and_goes_on(toys, whole, begun):
    before = read_config(find_checkpoint(begun))
    shutil.rmtree(begun / "configs")
    for folder in begun.glob("checkpoints/*"):
        write_as_format_1(folder / "trainer.pt")
        spec = json.loads((folder / "spec.json").read_text())
        assert spec.pop("format") == 1
        (folder / "spec.json").write_text(json.dumps(spec))
    run(toys, begun, frames=96)
    assert same(weights(begun), weights(whole))
    assert (begun / "configs" / f"{0:012}.yaml").read_text() == before


def test_a_key_that_one_version_does_not_know_is_no_difference(toys, begun):
    for file in begun.glob("checkpoints/*/config.yaml"):
        file.write_text(file.read_text().replace("  turn_angle:", "  gone_since:"))
    assert run(toys, begun, frames=72).frames == 72


def test_the_same_place_under_another_name_is_the_same_init(toys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(toys, tmp_path / "run", replace(CONFIG, init="slim"))
    assert run(toys, tmp_path / "run", replace(CONFIG, init=str(tmp_path / "slim")), frames=72).frames == 72


def test_restart_moves_the_run_aside_and_new_refuses(toys, begun, half, capsys):
    (begun / "evaluation").mkdir()
    for number in (1, 2):
        result = run(toys, begun, replace(CONFIG, trainer=replace(RUN, seed=number)), start="restart", frames=24)
        aside = begun.with_name(f"run.{number}")
        assert f"the earlier run is now {aside}" in capsys.readouterr().err
        assert result.frames == 24 and numbered(begun) == [24]
    assert (
        same(weights(begun.with_name("run.1")), weights(half))
        and begun.with_name(
            "run.1",
        )
        .joinpath("evaluation")
        .is_dir()
    )
    assert not list(begun.parent.glob("*/lock"))
    with pytest.raises(UserError, match="holds a run of 24 frames; choose another run folder"):
        run(toys, begun, start="new")
    for start in ("new", "restart"):
        assert run(toys, begun.with_name(start), start=start, frames=24).frames == 24
    assert not begun.with_name("restart.1").exists()


def test_an_unknown_start_is_refused():
    with pytest.raises(UserError, match=r"trainer\.start is overwrite; known are resume, restart, new"):
        TrainerConfig(start="overwrite")


@pytest.mark.parametrize("name", ["spec.json", "trainer.pt"])
def test_files_of_a_newer_version_are_refused_and_nothing_is_passed_over(toys, begun, name):
    file = begun / "checkpoints" / f"{48:012}" / name
    if name == "spec.json":
        file.write_text(json.dumps({**json.loads(file.read_text()), "format": 2}))
    else:
        torch.save({**torch.load(file, weights_only=True), "format": 3}, file)
    with pytest.raises(UserError, match=f"{name} was written by a newer navprune") as error:
        run(toys, begun, frames=72)
    assert "\n" not in str(error.value) and file.exists()
    if name == "spec.json":
        with pytest.raises(UserError, match="newer navprune"):
            read_any_spec(file.parent)


def test_a_warm_start_that_fills_other_rounds_is_refused(toys, tmp_path):
    warm = WarmStartConfig(frames=48, steps=6, sequence=6, batch=2, capacity=48)
    config = replace(CONFIG, warm_start=warm)
    checkpoint = run(toys, tmp_path / "run", config, frames=24).latest
    longer = replace(warm, frames=96, lr=1e-4)
    changes = runs.changed_settings(checkpoint, to_yaml(replace(config, warm_start=longer)))
    assert [change.partition(":")[0] for change in changes[:2]] == ["warm_start.frames", "warm_start.lr"]
    with pytest.raises(UserError, match=r"warm_start\.sequence=6, not 3"):
        runs.changed_settings(checkpoint, to_yaml(replace(config, warm_start=replace(warm, sequence=3))))


def test_a_smaller_buffer_goes_on_with_what_it_keeps(toys, tmp_path, capsys):
    warm = WarmStartConfig(frames=96, steps=6, sequence=6, batch=2, capacity=72)
    smaller = replace(CONFIG, warm_start=replace(warm, capacity=24))
    run(toys, tmp_path / "run", replace(CONFIG, warm_start=warm), frames=72)
    for _ in range(2):  # the first one deletes what it does not keep
        run(toys, tmp_path / "run", smaller, frames=72)
    assert [file.name[:6] for file in sorted((tmp_path / "run/warm_start").iterdir())] == ["000002", "000003"]
    run(toys, tmp_path / "run", smaller, frames=96)
    said = capsys.readouterr().err
    assert "goes on at 72 frames" in said and "skipped" not in said


def test_a_run_that_had_no_warm_start_goes_on_without(toys, begun, capsys):
    config = replace(CONFIG, warm_start=WarmStartConfig(frames=48, steps=6, sequence=6, batch=2, capacity=48))
    assert run(toys, begun, config, frames=72).frames == 72
    assert "goes on at 48 frames" in capsys.readouterr().err


def test_a_task_saved_without_a_setting_had_its_default(toys, begun):
    checkpoint = begun / "checkpoints" / f"{48:012}"
    saved = (checkpoint / "config.yaml").read_text()
    assert "min_depth: 0.0" in saved
    (checkpoint / "config.yaml").write_text(saved.replace("  min_depth: 0.0\n", ""))
    assert not runs.changed_settings(checkpoint, saved)
    with pytest.raises(UserError, match=r"task\.min_depth=0\.0, not 0\.5"):
        runs.changed_settings(checkpoint, saved.replace("min_depth: 0.0", "min_depth: 0.5"))


# Curves -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behind", [3600, 0, 10**9])
def test_curves_go_by_frames_whatever_the_clock_says(toys, begun, monkeypatch, behind):
    now = time.time
    monkeypatch.setattr(monitor.time, "time", lambda: now() - behind)
    run(toys, begun, frames=96)
    accumulator = EventAccumulator(str(begun / "tensorboard"))
    accumulator.Reload()
    assert [event.step for event in accumulator.Scalars("learning_rate")] == [24, 48, 72, 96]
    curve = read_curve(begun / "tensorboard", "learning_rate")
    assert curve.frames.tolist() == [24, 48, 72, 96]
    assert curve.seconds[0] == 0 and (curve.seconds[1:] >= curve.seconds[:-1]).all() and curve.seconds[-1] < 600


def test_what_was_lost_is_forgotten_though_the_clock_was_set_back(toys, begun, monkeypatch):
    shutil.rmtree(begun / "checkpoints" / f"{48:012}")
    now = time.time
    monkeypatch.setattr(monitor.time, "time", lambda: now() - 3600)
    run(toys, begun, replace(CONFIG, ppo=replace(PPO, lr=1e-3)), frames=72)
    accumulator = EventAccumulator(str(begun / "tensorboard"))
    accumulator.Reload()
    rates = [(event.step, round(event.value, 6)) for event in accumulator.Scalars("learning_rate")]
    assert rates == [(24, 0.00025), (48, 0.001), (72, 0.001)]

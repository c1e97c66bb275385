"""A run folder is files: it may be copied, lose its links, be wanted by two, and says what it was trained with."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from navprune import files
from navprune.config import Config, DataConfig, to_yaml
from navprune.errors import UserError
from navprune.pruning.gradual import PruningScheduleConfig
from navprune.reports.plots import read_curve
from navprune.rl import monitor, runs
from navprune.rl.checkpoints import find_checkpoint, load_policy, numbered, read_any_spec, read_config
from navprune.rl.imitation import WarmStartConfig
from navprune.rl.ppo import PPOConfig
from navprune.rl.trainer import TrainerConfig, train
from navprune.source import Source
from navprune.tasks.pointnav import TaskConfig

PPO = PPOConfig(steps=6, epochs=1)
RUN = TrainerConfig(total_frames=48, threads=1, checkpoint_seconds=0, window=2)
CONFIG = Config(ppo=PPO, trainer=RUN)


def run(toys, folder, config=CONFIG, *, frames=None, start="resume", env=None):
    trainer = replace(config.trainer, total_frames=frames or config.trainer.total_frames, start=start)
    config = replace(config, trainer=trainer, run=str(folder))
    return train(toys.spec(), env or toys.Corridor(), trainer, config.ppo, None, folder, to_yaml(config))


def best(folder):
    return int(find_checkpoint(folder / "best").name)


def weights(path):
    return load_policy(path).policy.state_dict()


def same(a, b):
    return all(value.equal(b[name]) for name, value in a.items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory, toys):
    """A run of 96 frames that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(toys, folder, frames=96)
    return folder


@pytest.fixture(scope="module")
def half(tmp_path_factory, toys):
    """The same at 48 frames; to be copied."""
    folder = tmp_path_factory.mktemp("runs") / "half"
    run(toys, folder)
    return folder


@pytest.fixture
def begun(half, tmp_path):
    return shutil.copytree(half, tmp_path / "run", symlinks=True)


# Links are a courtesy -----------------------------------------------------------------------------------


def links_are_copies(folder):
    """As after `scp -r`."""
    copied = shutil.copytree(folder, folder.with_name("copied"), symlinks=False)
    shutil.rmtree(folder)
    copied.rename(folder)


def links_are_lost(folder):
    for name in ("latest", "best"):
        (folder / name).unlink()


def links_are_texts(folder):
    """As git makes them on Windows."""
    for name in ("latest", "best"):
        target = os.readlink(folder / name)
        (folder / name).unlink()
        (folder / name).write_text(target)


def links_lead_nowhere(folder):
    for name in ("latest", "best"):
        (folder / name).unlink()
        (folder / name).symlink_to("/absent/checkpoints/000000000048")


@pytest.mark.parametrize("change", [links_are_copies, links_are_lost, links_are_texts, links_lead_nowhere])
def test_whatever_becomes_of_links_a_run_is_found_and_goes_on(toys, whole, begun, change):
    best = os.path.basename(os.readlink(begun / "best"))
    change(begun)
    for name, number in ((".", f"{48:012}"), ("latest", f"{48:012}"), ("best", best)):
        path = begun / name
        assert find_checkpoint(path) == (begun / "checkpoints" / number).resolve()
        source = Source.parse(str(path))
        assert source.spec() == toys.spec() and source.config().trainer == RUN
        assert source.run == begun
    run(toys, begun, frames=96)
    assert same(weights(begun), weights(whole)) and same(weights(begun / "best"), weights(whole / "best"))
    assert (begun / "latest").resolve() == find_checkpoint(begun / "latest") == begun / "checkpoints" / f"{96:012}"


def test_a_drive_without_links_is_trained_on(toys, whole, tmp_path, monkeypatch):
    def no_links(*_, **__):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "symlink", no_links)
    monkeypatch.setattr(Path, "symlink_to", no_links)
    result = run(toys, tmp_path / "run", frames=96)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoints", "configs", "tensorboard"}
    assert result.latest == find_checkpoint(tmp_path / "run" / "latest")
    assert result.best == find_checkpoint(tmp_path / "run" / "best")
    assert same(weights(tmp_path / "run"), weights(whole))


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EACCES])
def test_a_drive_that_does_not_sync_folders_is_trained_on(toys, tmp_path, monkeypatch, error):
    def refuse(path, *_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(files.os, "open", refuse)
    assert run(toys, tmp_path / "run").frames == 48


def test_what_stands_in_the_place_of_a_link_and_is_no_copy_is_left_alone(toys, begun):
    for name, frames in (("latest", 48), ("best", 7)):
        (begun / name).unlink()
        (begun / name).mkdir()
        (begun / name / "metrics.json").write_text(json.dumps({"frames": frames}))
    (begun / "latest" / "notes.txt").write_text("mine")
    run(toys, begun, frames=72)
    assert (begun / "latest" / "notes.txt").read_text() == "mine" and not (begun / "best").is_symlink()
    assert find_checkpoint(begun / "latest").name == f"{72:012}" and not list(begun.glob(".*"))


def test_copies_of_links_alone_are_checkpoints_but_no_run(toys, half, tmp_path):
    for name in ("latest", "best"):
        shutil.copytree(half / name, tmp_path / "run" / name)
    assert (
        same(weights(tmp_path / "run"), weights(half)) and Source.parse(str(tmp_path / "run")).run == tmp_path / "run"
    )
    with pytest.raises(UserError, match="has latest but no checkpoints/"):
        run(toys, tmp_path / "run")


def test_the_best_of_a_run_of_an_earlier_version_is_found(begun):
    for file in begun.glob("checkpoints/*/metrics.json"):
        file.write_text(
            json.dumps({name: x for name, x in json.loads(file.read_text()).items() if name != "best_frames"})
        )
    best = os.path.basename(os.readlink(begun / "best"))
    links_are_lost(begun)
    assert find_checkpoint(begun / "best").name == best


def test_a_checkpoint_that_cannot_be_read_is_not_passed_over(toys, begun, monkeypatch):
    read, newest = Path.read_bytes, begun / "checkpoints" / f"{48:012}"

    def fail(path):
        if path.parent == newest:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    for ask in (lambda: find_checkpoint(begun), lambda: run(toys, begun, frames=96)):
        with pytest.raises(UserError, match="cannot be read: Input/output error"):
            ask()
    assert newest.is_dir()


# One at a time ------------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from navprune.rl import runs
with runs.taken(Path(sys.argv[1]), "resume"):
    print("taken", flush=True)
    time.sleep(60)
"""


def test_a_second_trainer_is_refused_and_a_lock_whose_process_is_gone_is_taken_over(toys, begun, capsys):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(begun)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "taken\n"
        before = sorted(begun.rglob("*"))
        for start in runs.STARTS[:2]:
            with pytest.raises(UserError, match=f"process {holder.pid} on {socket.gethostname()} trains in") as error:
                run(toys, begun, frames=96, start=start)
        assert "\n" not in str(error.value) and sorted(begun.rglob("*")) == before
    finally:
        holder.kill()
        holder.wait()
    assert (begun / "lock").exists()
    run(toys, begun, frames=96)
    assert f"process {holder.pid} on {socket.gethostname()} trained in {begun} and is gone" in capsys.readouterr().err
    assert not (begun / "lock").exists()


@pytest.mark.parametrize("pid", [1, os.getpid(), 2**22 + 1])
def test_the_number_of_a_process_that_is_gone_may_be_another_ones_now(toys, begun, pid):
    (begun / "lock").write_text(f"process {pid} on {socket.gethostname()}")
    assert run(toys, begun, frames=72).frames == 72


def test_a_lock_of_another_host_is_told_how_to_remove(toys, begun):
    (begun / "lock").write_text("process 12 on elsewhere")
    with pytest.raises(UserError, match=f"process 12 on elsewhere trains in .*; delete {begun / 'lock'}"):
        run(toys, begun, frames=72)
    (begun / "lock").unlink()
    assert run(toys, begun, frames=72).frames == 72


def test_where_a_drive_has_no_locks_the_name_is_believed(toys, begun, monkeypatch):
    monkeypatch.setattr(runs, "_is_free", lambda stream: None)
    (begun / "lock").write_text(f"process 12 on {socket.gethostname()}")
    with pytest.raises(UserError, match=f"process 12 .* delete {begun / 'lock'}"):
        run(toys, begun, frames=72)
    (begun / "lock").unlink()
    assert run(toys, begun, frames=72).frames == 72 and not (begun / "lock").exists()


def test_the_same_process_does_not_train_twice_in_a_folder(begun):
    with (
        runs.taken(begun, "resume"),
        pytest.raises(UserError, match=f"process {os.getpid()} "),
        runs.taken(begun, "resume"),
    ):
        pass
    with runs.taken(begun, "resume"):
        pass


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_writing_is_tried_at_the_start(toys, tmp_path, monkeypatch, error):
    def refuse(path, data):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(files, "write_bytes", refuse)
    env = toys.Corridor()
    advice = "make room" if error == errno.ENOSPC else "choose another place"
    with pytest.raises(UserError, match=f"cannot write {tmp_path}.*{advice}"):
        run(toys, tmp_path / "run", env=env)
    assert env.steps_taken == 0 and not (tmp_path / "run" / "lock").exists()


@pytest.mark.parametrize("place", ["run", "run/deeper"])
def test_a_file_is_no_run_folder(toys, tmp_path, place):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match=f"cannot write in .*: {tmp_path / 'run'} is a file; choose") as error:
        run(toys, tmp_path / place)
    assert (tmp_path / "run").read_text() == "mine" and ".trial" not in str(error.value)


@pytest.mark.parametrize("other", ["thesis.tex", "code/main.py", "checkpoints.yaml"])
def test_a_folder_of_other_things_is_no_run_folder(toys, tmp_path, other):
    (tmp_path / other).parent.mkdir(exist_ok=True)
    (tmp_path / other).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=rf"holds other files \({Path(other).parts[0]}\) and no run; choose another"):
        run(toys, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_systems_root_is_no_run_folder(monkeypatch):
    monkeypatch.setattr(runs, "check_writable", lambda folder: pytest.fail(f"{folder} is written to"))
    with pytest.raises(UserError, match=r"/ holds other files \(.*\) and no run"), runs.taken(Path("/"), "resume"):
        pass


def test_logs_evaluations_and_what_is_left_of_a_run_are_no_other_things(toys, begun):
    shutil.rmtree(begun / "checkpoints")
    (begun / "slurm-7.out").touch()
    (begun / "evaluation").mkdir()
    assert run(toys, begun, frames=24).frames == 24


def test_a_folder_in_the_place_of_the_lock_is_told(toys, begun):
    (begun / "lock").mkdir()
    with pytest.raises(UserError, match=f"{begun / 'lock'} is a folder.*move it away"):
        run(toys, begun, frames=72)


@pytest.mark.parametrize("part", ["checkpoints", "configs", "tensorboard"])
def test_a_part_of_a_run_is_not_untrained(begun, monkeypatch, part):
    with pytest.raises(UserError, match=f"is a part of a run; give {begun}"):
        find_checkpoint(begun / part)
    monkeypatch.chdir(begun / part)
    with pytest.raises(UserError, match=f"is a part of a run; give {begun}"):
        find_checkpoint(".")


@pytest.mark.parametrize("mine", ["notes.txt", "evaluation/val/summary.json"])
def test_a_checkpoint_with_other_files_in_it_is_not_deleted(toys, begun, capsys, mine):
    oldest = begun / "checkpoints" / f"{24:012}"
    (oldest / mine).parent.mkdir(parents=True, exist_ok=True)
    (oldest / mine).write_text("mine")
    run(toys, begun, replace(CONFIG, trainer=replace(RUN, keep_checkpoints=1)), frames=96)
    assert (oldest / mine).read_text() == "mine" and set(numbered(begun)) <= {24, 96, best(begun)}
    assert capsys.readouterr().err.count(f"not deleted: {oldest} holds other files") == 1


# Signals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, 130)])
def test_signals_save_and_stop(toys, whole, tmp_path, capsys, number, status):
    env, before = toys.Corridor(), signal.getsignal(number)
    env.fail_at = (9, lambda: os.kill(os.getpid(), number))
    never = replace(CONFIG, trainer=replace(RUN, checkpoint_seconds=1e9))
    with pytest.raises(SystemExit) as stopped:
        run(toys, tmp_path / "run", never, frames=96, env=env)
    assert stopped.value.code == status and signal.getsignal(number) is before
    assert "the same command goes on from" in capsys.readouterr().err
    assert numbered(tmp_path / "run") == [48] and not (tmp_path / "run" / "lock").exists()
    run(toys, tmp_path / "run", frames=96)
    assert same(weights(tmp_path / "run"), weights(whole))


def test_signals_that_follow_do_not_cut_off_the_saving(toys, tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)

    env = toys.Corridor()
    env.fail_at = (9, twice)
    with pytest.raises(SystemExit) as stopped:
        run(toys, tmp_path, frames=96, env=env)
    assert stopped.value.code == 138 and numbered(tmp_path)[0] == 48


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
    assert f"{begun} is complete at 72 frames, nothing to train; trainer.total_frames=144" in capsys.readouterr().err
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
        state = torch.load(folder / "trainer.pt", weights_only=True)
        spec = json.loads((folder / "spec.json").read_text())
        assert state.pop("format") == spec.pop("format") == 1
        torch.save(state, folder / "trainer.pt")
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
        torch.save({**torch.load(file, weights_only=True), "format": 2}, file)
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

"""A run folder is files: it may be copied, lose its links, be wanted by two, and says what it was trained with."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from rl.run_folders import CONFIG, RUN, best, run, same, weights

from navprune import files
from navprune.errors import UserError
from navprune.rl import runs, stopping
from navprune.rl.checkpoints import find_checkpoint, numbered
from navprune.source import Source

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
from navprune.rl import runs, stopping
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
    monkeypatch.setattr(runs, "lock", lambda stream: None)
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
    folders = {frames: begun / "checkpoints" / f"{frames:012}" for frames in (24, 48)}
    for folder in folders.values():
        (folder / mine).parent.mkdir(parents=True, exist_ok=True)
        (folder / mine).write_text("mine")
    run(toys, begun, replace(CONFIG, trainer=replace(RUN, keep_checkpoints=1)), frames=96)
    said = capsys.readouterr().err
    assert set(numbered(begun)) == {24, 48, 96, best(begun)}
    for frames, folder in folders.items():
        assert (folder / mine).read_text() == "mine"
        assert said.count(f"not deleted: {folder} holds other files") == 1 or frames == best(begun)


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


def test_a_ctrl_c_that_a_library_swallowed_stops_the_run_once_it_begins(toys, tmp_path, capsys):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
    stopping.heed_ctrl_c()
    try:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)  # at once, whatever threads there are
        with pytest.raises(SystemExit) as stopped:
            run(toys, tmp_path / "run")
    finally:
        stopping.heed_ctrl_c()
        signal.signal(signal.SIGINT, before)
    assert stopped.value.code == 130 and numbered(tmp_path / "run") == [24]
    assert "stopping after this update" in capsys.readouterr().err


def test_signals_that_follow_do_not_cut_off_the_saving(toys, tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)

    env = toys.Corridor()
    env.fail_at = (9, twice)
    with pytest.raises(SystemExit) as stopped:
        run(toys, tmp_path, frames=96, env=env)
    assert stopped.value.code == 138 and numbered(tmp_path)[0] == 48

"""Workers that are processes: what ends them, what is told, and what is left; see `program.py`."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from rl.run_folders import same, weights

from navprune.rl import runs
from navprune.rl.checkpoints import numbered, read_trainer

TESTS = Path(__file__).parents[1]
GO_ON = "the same command goes on from the last checkpoint"


def begin(*command, **environment):
    path = os.pathsep.join(map(str, (TESTS.parent, TESTS)))
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        [sys.executable, *map(str, command)], stderr=subprocess.PIPE, text=True, env=env, start_new_session=True
    )


def begin_run(folder, *before, _environment=None, **task):
    return begin(*(before or ("-m",)), "rl.program", json.dumps({"run": str(folder), **task}), **(_environment or {}))


def end(process):
    """Status and the lines told, without the progress; whoever is left of the process's group is an orphan."""
    said = process.communicate(timeout=120)[1]
    end = time.monotonic() + 10
    while alive(process.pid):
        assert time.monotonic() < end, f"orphans of {process.args}: {said}"
        time.sleep(0.1)
    lines = [line for line in said.replace("\r", "\n").splitlines() if line and not line.startswith("training ")]
    return process.returncode, lines


def alive(group):
    """Whether a process of a group is there and no zombie that nobody waits for."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, own = status.read_text().rpartition(")")[2].split()[:3]
            if int(own) == group and state != "Z":
                return True
    return False


def run(folder, **task):
    return end(begin_run(folder, **task))


def notes(folder, rank):
    return json.loads(Path(f"{folder}.{rank}").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two workers that nothing disturbed."""
    folder = tmp_path_factory.mktemp("workers") / "run"
    assert run(folder) == (0, [])
    return folder


def is_whole(folder, whole):
    """Whether a run ended as one that nothing disturbed, bit for bit."""
    ours, theirs = (read_trainer(path / "latest") for path in (folder, whole))
    assert not list(folder.glob("warm_start/*")) and ours["frames"] == 384
    return same(weights(folder), weights(whole)) and ours["generator"].equal(theirs["generator"])


# Workers that end ---------------------------------------------------------------------------------------


def test_a_killed_worker_is_named_and_the_run_goes_on_bit_for_bit(whole, tmp_path):
    folder = tmp_path / "run"
    status, said = run(folder, rank=1, what="SIGKILL", at=18)  # in the second round of the warm start
    killed = f"navprune: worker 1 (process {notes(folder, 1)['pid']}) has ended with SIGKILL; {GO_ON}"
    assert (status, said) == (2, [killed]) and numbered(folder) == [96]
    # The first worker, in PPO; nobody is left to say so, and nobody stays.
    status, _ = run(folder, rank=0, what="SIGKILL", at=30)
    assert status == -signal.SIGKILL and numbered(folder)[0] == 288
    status, said = run(folder)
    assert status == 0 and any("is gone; taking its place" in line for line in said)
    assert is_whole(folder, whole)


@pytest.mark.parametrize(("rank", "synced"), [(0, 0), (0, 3), (0, 8), (0, 15), (0, 29), (1, 0), (1, 3)])
def test_a_kill_in_the_middle_of_a_write_loses_nothing_before_it(whole, tmp_path, rank, synced):
    """Of a checkpoint's files, its folder, the links and the rounds of each worker, before the next one is synced."""
    folder = tmp_path / "run"
    status, _ = run(folder, rank=rank, what="write", at=synced)
    assert status == (2 if rank else -signal.SIGKILL)
    found = numbered(folder)
    assert found != [384] and all(read_trainer(folder / "checkpoints" / f"{frames:012}") for frames in found)
    assert run(folder)[0] == 0 and is_whole(folder, whole)


@pytest.mark.parametrize(
    ("number", "rank", "status"), [("SIGTERM", 0, 143), ("group SIGINT", 1, 130), ("group SIGTERM", 0, 143)]
)
def test_signals_save_and_stop_all_workers(whole, tmp_path, number, rank, status):
    folder = tmp_path / "run"
    found, said = run(folder, trainer={"checkpoint_seconds": 1e9}, rank=rank, what=number, at=30)
    assert found == status and numbered(folder) == [288]
    assert len(said) == 2 and said[0].startswith("stopping after this update")
    assert said[1] == f"stopped and saved; the same command goes on from {folder}/checkpoints/{288:012}"
    if number == "SIGTERM":
        assert run(folder)[0] == 0 and is_whole(folder, whole)


def test_a_second_interrupt_stops_at_once(tmp_path):
    status, said = run(tmp_path / "run", rank=0, what="twice group SIGINT")
    assert status == 130 and said[-1] == "navprune: interrupted" and len(said) == 2
    assert numbered(tmp_path / "run")[0] == 192


def test_a_signal_while_workers_are_begun_leaves_none(tmp_path):
    process = begin_run(tmp_path / "run")
    end_of_wait = time.monotonic() + 60
    while not (children := children_of(process.pid)):
        assert time.monotonic() < end_of_wait and process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    assert len(children) == 1 and end(process)[0] == -signal.SIGTERM and not numbered(tmp_path / "run")


def children_of(process):
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


def test_a_worker_that_hangs_is_named_after_the_time_limit(tmp_path):
    status, said = run(tmp_path / "run", workers=4, trainer={"timeout": 8}, rank=2, what="SIGSTOP")
    assert status == 2 and said == [f"navprune: worker 2 did not answer for 8 seconds (trainer.timeout); {GO_ON}"]
    assert numbered(tmp_path / "run")[0] == 192


@pytest.mark.parametrize("what", ["SIGSTOP", "sleep"])
def test_the_first_worker_is_named_too_by_another(tmp_path, what):
    """Stopped, it answers nobody who asks its store for the others; asleep, its store answers."""
    process = begin_run(tmp_path / "run", trainer={"timeout": 8}, rank=0, what=what)
    lines = iter(process.stderr.readline, "")
    said = next(line for line in lines if line.startswith("navprune: "))
    assert said == f"navprune: worker 0 did not answer for 8 seconds (trainer.timeout); {GO_ON}\n"
    process.kill()
    end(process)
    assert numbered(tmp_path / "run")[0] == 192


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("scene", "navprune: worker 1: data/scene.glb is cut off; fetch it again"),
        ("reward", r"navprune: worker 1: update 3 \(ppo, at 192 frames\): the reward .* is not finite; mend the task"),
    ],
)
def test_a_mistake_that_one_worker_meets_is_told_once(tmp_path, what, told):
    status, said = run(tmp_path / "run", rank=1, what=what)
    assert status == 2 and len(said) == 1 and re.match(told, said[0]), said


def test_a_fault_in_the_code_of_a_worker_shows_where(tmp_path):
    status, said = run(tmp_path / "run", rank=1, what="error")
    assert status == 2 and any(line.endswith("ZeroDivisionError") for line in said)
    assert re.fullmatch(r"navprune: worker 1 \(process \d+\) has ended with status 1; .*", said[-1])


@pytest.mark.parametrize(("rank", "size", "who"), [(0, 20_000, ""), (1, 100, "worker 1: ")])
def test_a_full_disk_is_told_and_what_was_saved_stays(tmp_path, rank, size, who):
    """That of the first worker, which writes checkpoints, or of another one, which keeps rounds of its own."""
    assert run(tmp_path / "run", trainer={"total_frames": 96})[0] == 0
    status, said = run(tmp_path / "run", rank=rank, what="disk", bytes=size)
    assert status == 2 and said[-1].startswith(f"navprune: {who}cannot write ") and "File too large" in said[-1]
    assert sum(line.startswith("navprune: ") for line in said) == 1 and numbered(tmp_path / "run") == [96]


def test_two_runs_in_one_folder_are_refused(tmp_path):
    with runs.taken(tmp_path / "run", "resume"):
        status, (said,) = run(tmp_path / "run")
    assert status == 2 and f"process {os.getpid()}" in said and "trains in" in said
    assert not numbered(tmp_path / "run")


def test_stragglers_are_preempted(tmp_path):
    task = {"trainer": {"total_frames": 600}, "ppo": {"preempt": 0.5}, "rank": 1, "what": "slow"}
    assert run(tmp_path / "run", **task) == (0, [])
    first, second = (notes(tmp_path / "run", rank) for rank in range(2))
    assert first["frames"] == second["frames"] >= 600 and first["own"] + second["own"] == first["frames"]
    assert second["own"] < first["own"]


def test_slurm_is_asked_for_another_turn(tmp_path):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path / "asked"}\n')
    scontrol.chmod(0o755)
    slurm = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "42"}
    task = {"trainer": {"requeue": True}, "rank": 1, "what": "group SIGUSR1"}
    status, said = end(begin_run(tmp_path / "run", **task, _environment=slurm))
    assert status == 138 and said[-1] == "asked SLURM for another turn of job 42"
    assert (tmp_path / "asked").read_text() == "requeue 42\n"


# torchrun -----------------------------------------------------------------------------------------------


def torchrun(*options):
    return ("-m", "torch.distributed.run", *options, "-m")


def test_torchrun_begins_workers_anew_where_one_is_killed(whole, tmp_path):
    """What comes of it is what comes of workers that we begin."""
    folder = tmp_path / "run"
    options = torchrun("--standalone", "--nproc-per-node", 2, "--max-restarts", 2)
    process = begin_run(folder, *options, rank=1, what="SIGKILL", at=30, once=str(tmp_path / "once"))
    status, said = end(process)
    assert status == 0 and (tmp_path / "once").exists(), said
    assert any("goes on at 192 frames of 384" in line for line in said)
    assert is_whole(folder, whole)


def two_machines(folder, **task):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    place = ("--nnodes", 2, "--nproc-per-node", 1, "--master-addr", "127.0.0.1", "--master-port", port)
    return [begin_run(folder, *torchrun(*place, "--node-rank", rank), **task) for rank in range(2)]


def test_two_machines_are_one_run(whole, tmp_path):
    nodes = two_machines(tmp_path / "run")
    assert [end(node)[0] for node in nodes] == [0, 0] and is_whole(tmp_path / "run", whole)


def test_a_machine_that_is_gone_ends_the_run_which_goes_on_when_both_are_back(whole, tmp_path):
    folder, gone = tmp_path / "run", tmp_path / "gone"
    nodes = two_machines(folder, rank=1, what="machine SIGKILL", at=30, once=str(gone))
    (status, said), (killed, _) = map(end, nodes)
    assert status > 0 and any("worker 1 is gone" in line and line.endswith(GO_ON) for line in said), said
    assert killed == -signal.SIGKILL and gone.exists() and numbered(folder)[0] == 192
    assert [end(node)[0] for node in two_machines(folder)] == [0, 0] and is_whole(folder, whole)

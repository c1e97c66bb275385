"""A run folder in the hands of its trainer: one process at a time, begun, gone on with or moved aside; its settings.

Beside `checkpoints/` it holds `configs/FRAMES.yaml`, each configuration from the frames on from which it was trained
with, and while a trainer is at work `lock`, which names it.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from navprune.errors import UserError
from navprune.files import check_writable, is_at, lock, sync, write_file
from navprune.rl import checkpoints
from navprune.rl.checkpoints import CHECKPOINTS, SPEC, numbered, read_config, read_metrics
from navprune.tasks.config import TaskConfig

RESUME, RESTART, NEW = STARTS = ("resume", "restart", "new")
LOCK, CONFIGS = "lock", "configs"
OWN = {CHECKPOINTS, checkpoints.LATEST, checkpoints.BEST, CONFIGS, LOCK, "tensorboard", "warm_start", "evaluation"}
"""What is in a run folder; what is hidden may be in any."""
LOGS = (".log", ".out", ".err", ".txt")
"""Ends of files that shells and batch systems write there before a run begins."""
FIXED = ("init", "init_weights", "env", "simulator", "task", "data", "images", "classifier", "supervised.optimiser",
         "pruning", "trainer.seed", "warm_start.steps", "warm_start.sequence")  # fmt: skip
"""Settings, or sections of them, that stay what they were in a run."""
FREE = ("data.folder", "data.val", "data.scene_memory", "images.source", "pruning.begin", "pruning.end",
        "pruning.strength", "pruning.teach_policy", "pruning.teach_features")  # fmt: skip
"""What may change all the same: places, what is evaluated, schedules."""
UNTOLD = ("run", "trainer.start")
PATHS = ("init", "data.folder", "images.source")


@contextmanager
def taken(folder: Path, start: str) -> Iterator[None]:
    """Have a run folder for this process alone, ready for what `start` says, one of `STARTS`.

    Raises UserError where the folder is something else, another process trains in it, it cannot be written, or it
    holds a run and `start` is `new`.
    """
    _check_is_run(folder)
    if start == NEW and numbered(folder):
        raise UserError(f"{folder} holds a run of {numbered(folder)[0]:,} frames; choose another run folder")
    with _locked(folder):
        if start == RESTART and numbered(folder):
            _move_aside(folder.resolve())
        yield


def _check_is_run(folder: Path) -> None:
    if (folder / SPEC).exists():
        raise UserError(f"{folder} is a checkpoint; choose another run folder (`init` trains a checkpoint)")
    if numbered(folder):
        return
    # What a crash left half written has a name with a dot.
    if any(not path.name.startswith(".") for path in folder.glob(f"{CHECKPOINTS}/*")):
        raise UserError(f"{folder / CHECKPOINTS} holds other files; choose another run folder")
    for name in (checkpoints.LATEST, checkpoints.BEST):
        if (folder / name / SPEC).exists():
            raise UserError(f"{folder} has {name} but no {CHECKPOINTS}/; choose another run folder and init={folder}")
    names = (path.name for path in folder.glob("*") if path.suffix not in LOGS)
    if others := sorted(name for name in names if name not in OWN and not name.startswith(".")):
        raise UserError(f"{folder} holds other files ({others[0]}) and no run; choose another run folder")


def _move_aside(folder: Path) -> None:
    """Move what a run folder holds, but the lock, to the first free name `FOLDER.N`."""
    aside = next(path for n in count(1) if not (path := folder.with_name(f"{folder.name}.{n}")).exists())
    aside.mkdir()
    # The checkpoints come last: until then the run is where it was.
    for path in sorted(folder.iterdir(), key=lambda path: path.name == CHECKPOINTS):
        if path.name != LOCK:
            path.rename(aside / path.name)
    print(f"the earlier run is now {aside}", file=sys.stderr)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder, which says who does; raises UserError where another process has it.

    The system frees the lock of a process that is gone, which the name that is left in it does not show.
    """
    file, here = folder / LOCK, f" on {socket.gethostname()}"
    check_writable(folder / CHECKPOINTS)
    if file.is_dir():
        raise UserError(f"{file} is a folder, where a run has a file of that name; move it away")
    while True:
        with file.open("a+") as stream:
            free = lock(stream)
            stream.seek(0)
            holder = stream.read()
            if free is False:
                raise UserError(f"{holder or 'a process'} trains in {folder}; stop it, or choose another run folder")
            if not is_at(stream, file):
                continue  # its holder has just gone, and the file with it
            if holder and (free is None or not holder.endswith(here)):
                raise UserError(f"{holder} trains in {folder} or was cut off; delete {file} if it trains no more")
            if holder:
                print(f"{holder} trained in {folder} and is gone; taking its place", file=sys.stderr)
            stream.truncate(0)
            stream.write(f"process {os.getpid()}{here}")
            stream.flush()
            try:
                yield
            finally:
                with suppress(OSError):
                    stream.truncate(0)
                    file.unlink()
            return


def changed_settings(checkpoint: Path, config: str) -> list[str]:
    """Return lines that say what differs between the configuration of a run's checkpoint and `config`, YAML text.

    Keys that only one of them knows are left out; of a task that was saved without a setting, the default was meant.
    Raises UserError where something differs that must not.
    """
    before, now = (yaml.safe_load(text) or {} for text in (read_config(checkpoint), config))
    before["task"] = asdict(TaskConfig()) | before.get("task", {})
    changes = {key: pair for key, pair in _differences(before, now).items() if key not in UNTOLD}
    if fixed := [key for key in changes if _belongs(key, FIXED) and not _belongs(key, FREE)]:
        told = ", ".join(f"{key}={changes[key][0]}, not {changes[key][1]}" for key in fixed)
        raise UserError(
            f"{checkpoint.parents[1]} is a run with {told}; choose another run folder, or trainer.start={RESTART} "
            "to move that run aside"
        )
    return [f"{key}: {old} -> {new}" for key, (old, new) in changes.items()]


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, ...]]:
    found: dict[str, tuple[Any, ...]] = {}
    for name in [name for name in before if name in now]:
        key, old, new = prefix + name, before[name], now[name]
        if isinstance(old, dict) and isinstance(new, dict):
            found |= _differences(old, new, f"{key}.")
        elif old != new and not (key in PATHS and old and new and Path(old).resolve() == Path(new).resolve()):
            found[key] = tuple("null" if value is None else value for value in (old, new))
    return found


def _belongs(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def keep_config(run: Path, frames: int, config: str) -> None:
    """Write what a run is trained with from `frames` on, unless it is that of before; delete what is of a lost part."""
    written = sorted((run / CONFIGS).glob(f"{'[0-9]' * 12}.yaml"))
    kept = [path.stem for path in written if int(path.stem) <= frames]
    for path in written[len(kept) :]:
        path.unlink()
    if frames and not kept:  # of an earlier version of navprune
        kept = [f"{0:012}"]
        write_file(run / CONFIGS / f"{kept[0]}.yaml", read_config(checkpoints.checkpoint_folder(run, frames)).encode())
    if config and (not kept or (run / CONFIGS / f"{kept[-1]}.yaml").read_text() != config):
        write_file(run / CONFIGS / f"{frames:012}.yaml", config.encode())


def point(link: Path, folder: Path) -> None:
    """Make `link` lead to `folder`, relative so that a run folder can be moved; where that is not possible, do nothing.

    A copy of one of the run's checkpoints, which is what some programs make of a link, gives way to it.
    """
    temporary = link.with_name(f".{link.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(folder, link.parent))
        if link.is_dir() and not link.is_symlink() and read_metrics(link).get("frames") in numbered(link.parent):
            checkpoints.check_replaceable(link)
            shutil.rmtree(link)
        temporary.replace(link)
        sync(link.parent)
    except (OSError, UserError):
        with suppress(OSError):
            temporary.unlink(missing_ok=True)

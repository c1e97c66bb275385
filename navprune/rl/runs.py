"""A run folder in the hands of its trainer: one process at a time, begun, gone on with or moved aside; its settings.

Beside `checkpoints/` it holds `configs/FRAMES.yaml`, each configuration from the frames on from which it was trained
with, and while a trainer is at work `lock.json`, which names it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from navprune.errors import UserError
from navprune.files import cannot_write, check_writable, sync, write_file
from navprune.rl.checkpoints import (
    BEST,
    CHECKPOINTS,
    CONFIG,
    LATEST,
    OWN_FILES,
    SPEC,
    DamagedCheckpoint,
    numbered,
    read_config,
    read_metrics,
)

RESUME, RESTART, NEW = STARTS = ("resume", "restart", "new")
LOCK, CONFIGS = "lock.json", "configs"
FIXED = ("init", "init_weights", "env", "simulator", "task", "data", "pruning", "trainer.seed",
         "warm_start.steps", "warm_start.sequence")  # fmt: skip
"""Settings, or sections of them, that stay what they were in a run."""
FREE = ("data.folder", "data.val", "pruning.begin", "pruning.end", "pruning.strength", "pruning.teach_policy",
        "pruning.teach_features")  # fmt: skip
"""What may change all the same: places, what is evaluated, schedules."""
UNTOLD = ("run", "trainer.start")
PATHS = ("init", "data.folder")


@contextmanager
def taken(folder: Path, start: str) -> Iterator[None]:
    """Have a run folder for this process alone, ready for what `start` says, one of `STARTS`.

    Raises UserError where the folder is something else, another process trains in it, it cannot be written, or it
    holds a run and `start` is `new`.
    """
    _check_is_run(folder)
    if start == NEW and numbered(folder):
        raise UserError(
            f"{folder} holds a run of {numbered(folder)[0]:,} frames; choose another run folder, or "
            f"trainer.start={RESUME} to go on with it"
        )
    lock = _lock(folder)
    try:
        if start == RESTART and numbered(folder):
            _move_aside(folder.resolve())
        yield
    finally:
        with suppress(OSError):
            if (folder / LOCK).read_text() == lock:
                (folder / LOCK).unlink()


def _check_is_run(folder: Path) -> None:
    if (folder / SPEC).exists():
        raise UserError(f"{folder} is a checkpoint; choose another run folder (`init` trains a checkpoint)")
    if numbered(folder):
        return
    # What a crash left half written has a name with a dot.
    if any(not path.name.startswith(".") for path in folder.glob(f"{CHECKPOINTS}/*")):
        raise UserError(f"{folder / CHECKPOINTS} holds other files; choose another run folder")
    for name in (LATEST, BEST):
        if (folder / name / SPEC).exists():
            raise UserError(f"{folder} has {name} but no {CHECKPOINTS}/; choose another run folder and init={folder}")


def _move_aside(folder: Path) -> None:
    """Give a run folder that is locked the first free name `FOLDER.N`, and lock a new one in its place."""
    number = next(n for n in range(1, sys.maxsize) if not folder.with_name(f"{folder.name}.{n}").exists())
    aside = folder.with_name(f"{folder.name}.{number}")
    try:
        folder.rename(aside)
    except OSError as error:
        raise UserError(f"{folder} cannot be moved to {aside}: {error.strerror or error}; move it by hand") from error
    (aside / LOCK).unlink(missing_ok=True)
    print(f"the earlier run is now {aside}", file=sys.stderr)
    _lock(folder)


# One process at a time ----------------------------------------------------------------------------------


def _lock(folder: Path) -> str:
    """Write the lock file, in place of that of a process that is gone; raises UserError where one is at work.

    Returns what stands in it.
    """
    check_writable(folder / CHECKPOINTS)
    file, pid = folder / LOCK, os.getpid()
    text = json.dumps({"host": socket.gethostname(), "pid": pid, "started": process_start(pid)})
    while True:
        try:
            with file.open("x") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            return text
        except FileExistsError:
            _remove_stale(file)
        except OSError as error:
            raise cannot_write(file, error) from error


def _remove_stale(file: Path) -> None:
    """Remove the lock of a process that is gone; raises UserError where it may be at work."""
    try:
        text = file.read_text()
        lock = json.loads(text)
        host, pid, started = lock["host"], int(lock["pid"]), lock["started"]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} cannot be read; delete it if no other process trains in {file.parent}") from None
    who = f"process {pid} on {host}"
    if host != socket.gethostname():
        raise UserError(f"{who} trains in {file.parent}; wait for it or, if it is gone, delete {file}")
    if _is_alive(pid, started):
        raise UserError(f"{who} trains in {file.parent}; stop it, or choose another run folder")
    ours = file.with_name(f".{LOCK}.{os.getpid()}")
    with suppress(FileNotFoundError):  # another process was faster
        file.rename(ours)
        if ours.read_text() != text:
            ours.rename(file)
            return
        ours.unlink()
        print(f"{who}, which trained in {file.parent}, is gone: took its place", file=sys.stderr)


def _is_alive(pid: int, started: str | None) -> bool:
    """Whether a process of this host runs, where that can be told; `started` shows whether it is the same one."""
    if os.name == "posix":
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:
            pass
    now = process_start(pid)
    return None in (now, started) or now == started


def process_start(pid: int) -> str | None:
    """What a process has in common with no other of its number: the boot and the tick of its start (Linux).

    Empty for one that has ended but is still listed; None where the system does not tell.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if fields[0] in "ZX" else f"{boot} {fields[19]}"


# Settings ---------------------------------------------------------------------------------------------


def changed_settings(checkpoint: Path, config: str) -> dict[str, tuple[Any, Any]]:
    """Return what differs between the configuration of a run's checkpoint and `config`, YAML text: {key: (old, new)}.

    Keys that only one of them knows are left out. Raises UserError where something differs that must not.
    """
    try:
        before, now = (yaml.safe_load(text) or {} for text in (read_config(checkpoint), config))
    except yaml.YAMLError as error:
        raise DamagedCheckpoint(f"{checkpoint / CONFIG} is no YAML; use another checkpoint") from error
    changes = {key: pair for key, pair in _differences(before, now, "").items() if key not in UNTOLD}
    fixed = [key for key in changes if _belongs(key, FIXED) and not _belongs(key, FREE)]
    if fixed:
        told = ", ".join(f"{key}={_text(changes[key][0])}, not {_text(changes[key][1])}" for key in fixed)
        raise UserError(
            f"{checkpoint.parents[1]} is a run with {told}; choose another run folder, or trainer.start={RESTART} "
            "to move that run aside"
        )
    return changes


def describe(changes: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Return a line for each change."""
    return [f"  {key}: {_text(old)} -> {_text(new)}" for key, (old, new) in changes.items()]


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str) -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    for name in [name for name in before if name in now]:
        key, old, new = prefix + name, before[name], now[name]
        if isinstance(old, dict) and isinstance(new, dict):
            found |= _differences(old, new, f"{key}.")
        elif old != new and not (key in PATHS and old and new and Path(old).resolve() == Path(new).resolve()):
            found[key] = (old, new)
    return found


def _belongs(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _text(value: Any) -> str:
    """A setting in one line: sections that only one configuration has are not spelt out."""
    return "null" if value is None else "set" if isinstance(value, dict) else str(value)


def keep_config(run: Path, frames: int, config: str, before: str | None) -> None:
    """Write the configuration that a run is trained with from `frames` on, unless it is that of before.

    `before` is the configuration of the checkpoint from which it goes on, kept too where nothing else is.
    """
    kept = sorted(path for path in (run / CONFIGS).glob("*.yaml") if path.stem <= f"{frames:012}")
    latest = kept[-1].read_text() if kept else before
    if before and not kept:
        write_file(run / CONFIGS / f"{0:012}.yaml", before.encode())
    if config and config != latest:
        write_file(run / CONFIGS / f"{frames:012}.yaml", config.encode())


# Links ------------------------------------------------------------------------------------------------


def point(link: Path, folder: Path) -> None:
    """Make `link` lead to `folder` (relative, so that a run folder can be moved), in one step where that is possible.

    A courtesy: where a drive has no links, or something else stands there, nothing happens. A copy of one of the run's
    checkpoints, which is what some programs make of a link, gives way.
    """
    temporary = link.with_name(f".{link.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(folder, link.parent))
        if _is_copy(link):
            shutil.rmtree(link)
        temporary.replace(link)
        sync(link.parent)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _is_copy(link: Path) -> bool:
    """Whether a folder is a copy of a checkpoint that the run around it still has."""
    if link.is_symlink() or not link.is_dir() or {path.name for path in link.iterdir()} - OWN_FILES:
        return False
    with suppress(UserError):
        return read_metrics(link).get("frames") in numbered(link.parent)
    return False

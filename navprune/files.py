"""Writing files and folders that are either whole or not there: beside, synced, renamed."""

import errno
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from navprune.errors import UserError


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write `files` as a folder that appears in one piece, synced to disk; raises UserError when it cannot.

    Then nothing is left behind, and what was there before is intact."""
    folder = folder.resolve()
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, data in files.items():
            write_bytes(temporary / name, data)
        sync(temporary)
        if folder.exists():
            # Between these two renames a crash leaves the old folder under its other name: nothing is lost.
            old = folder.with_name(f".{folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
            try:
                temporary.rename(folder)
            except OSError:
                old.rename(folder)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(folder)
        sync(folder.parent)
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_file(path: Path, data: bytes) -> None:
    """Write a file that appears in one piece, synced to disk; raises UserError when it cannot."""
    if os.path.isdir(path):  # Path's own raises where the folder cannot be entered
        raise UserError(f"cannot write {path}: it is a folder; name a file in it")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(temporary, data)
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):  # where a file stands in the place of a folder, there is nothing to take away
            temporary.unlink()


def check_writable(folder: Path) -> None:
    """Make a folder and write to it on trial, so that work does not end in vain; raises UserError where it cannot."""
    trial = folder / ".trial"
    try:
        if file := next((path for path in (folder, *folder.parents) if path.is_file()), None):
            raise UserError(f"cannot write in {folder}: {file} is a file; choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(trial, b"")
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        with suppress(OSError):
            trial.unlink()


def json_bytes(data: Any) -> bytes:
    """Return data as indented JSON, the content of a file."""
    return (json.dumps(data, indent=2) + "\n").encode()


def write_bytes(path: Path, data: bytes) -> None:
    """Write and sync one file."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Bring the names in a folder to disk, where that is possible."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):  # not every system syncs folders
            raise


def lock(stream: IO) -> bool | None:
    """Lock an open file until it is closed; whether that could be done, None where there are no such locks.

    The system frees the lock of a process that is gone, however it went."""
    try:
        import fcntl  # not on Windows

        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # nor on every drive
        return None
    return True


def is_at(stream: IO, path: Path) -> bool:
    """Whether an open file is the one of this name, which may have been moved, replaced or taken away."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def user_cache() -> Path | None:
    """Where this user's caches of the package are; None for a user without a home."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return folder / "navprune" if folder.is_absolute() else None


def cannot_write(path: Path, error: OSError) -> UserError:
    """Return the error to raise for a failed write."""
    advice = "make room and run again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another place"
    return UserError(f"cannot write {path}: {error.strerror or error}; what was written before is intact; {advice}")

"""What is derived from scenes, kept on disk once for all processes of a machine, which map it and share its pages.

An entry is a file of arrays. Its name and its header say from what it was derived: the contents of the scene's files
and the code. So it is never changed, only written anew beside and renamed; what does not agree is as good as absent.
"""

import ctypes
import errno
import hashlib
import importlib.metadata
import json
import mmap
import os
import re
import shutil
import struct
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import navprune
from navprune.errors import UserError
from navprune.files import is_at, lock, user_cache, write_file
from navprune.progress import say_once
from navprune.scenes.files.resources import scene_files

FOLDER, LIMIT = "NAVPRUNE_SCENE_CACHE", "NAVPRUNE_SCENE_CACHE_GIB"
"""Variables of the environment: where the cache is, and how large it may grow."""
DEFAULT_LIMIT = "20"
"""GiB."""
SPARE = 2 << 30
"""Bytes of the disk that the cache leaves to others."""
PATIENCE = 120.0
"""Seconds to wait for another process that builds the same; one that was stopped in the middle never ends."""
SETTLED = 2 * 10**9
"""Nanoseconds after which another change of a file is certain to show in its times."""
LIBRARIES = ("numpy", "pillow", "DracoPy", "meshopt", "opengl-basisu")
"""Whose versions have a say in what is derived."""
IMPORT = re.compile(r"^\s*(?:from|import)\s+(navprune[\w.]*)(?:\s+import\s+(?:\(([^)]*)\)|(.*)))?", re.MULTILINE)
"""Every process reads these when it loads a scene; Python's own parser takes seven times as long."""
ENTRY, PART, NOTE = ".navscene", ".navscene.part", ".navscene.json"
"""Endings of what is the cache's own in its folder; other files there are left alone."""
MAGIC = b"navscene"
ALIGNMENT = 64
FAILED = ctypes.c_void_p(-1).value

Arrays = Mapping[str, NDArray]


class Entry(NamedTuple):
    """A file of the cache: which part of which scene it holds (empty where damaged), its bytes, when it was used."""

    path: Path
    scene: str
    part: str
    bytes: int
    used: float


@dataclass(frozen=True)
class SceneCache:
    """A folder of entries of `limit` bytes in all; those used longest ago make room. With 0 nothing is kept."""

    folder: Path
    limit: int

    def digest(self, scene: Path) -> str:
        """SHA-256 of all files that a scene is read from.

        A note keeps it with size, times and inode of each, by which unchanged files are known without reading them:
        every write changes ctime, which nobody can set. Files of the last seconds get no note, for times are coarse.
        """
        note = self.folder / (hashlib.sha256(str(scene.absolute()).encode()).hexdigest()[:24] + NOTE)
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # absent, or damaged anyhow
            noted = json.loads(note.read_bytes())
            if str(scene.absolute()) in noted["files"] and noted["files"] == _stamps(noted["files"]):
                return str(noted["digest"])
        files = [str(path.absolute()) for path in scene_files(scene)]
        before = _stamps(files)
        digest = hashlib.sha256("".join(map(_digest, files)).encode()).hexdigest()
        newest = max(max(stamp[1:3]) for stamp in before.values() if stamp)
        if self.limit and before == _stamps(files) and newest < time.time_ns() - SETTLED:
            with suppress(UserError):
                write_file(note, json.dumps({"digest": digest, "files": before}).encode())
        return digest

    def get(self, scene: Path, digest: str, part: str, build: Callable[[], Arrays]) -> Arrays:
        """Arrays of one part of a scene of this digest, read-only: mapped where kept, else built, by one process.

        Where they cannot be kept they stand in memory, and one line on standard error says why.
        """
        origin = {"digest": digest, "builder": builder(), "part": part}
        path = self.folder / f"{digest[:24]}-{builder()[:8]}-{part}{ENTRY}"
        if not self.limit:
            return read_only(build())
        if (found := _mapped(path, origin)) is not None:
            return found
        built = None
        try:
            with _alone(path.with_suffix(PART)) as file:
                if (found := _mapped(path, origin)) is not None:
                    return found
                built = read_only(build())
                header = _header(origin | {"scene": str(scene.absolute())}, built)
                self._make_room(len(header) + sum(_padded(array.nbytes) for array in built.values()))
                _write(file, header, built.values())
                os.replace(file.name, path)
            found = _mapped(path, origin)
            return built if found is None else found
        except OSError as error:
            reason = error.strerror or error
            say_once(f"scenes cannot be kept in {self.folder} ({reason}), each process has its own; {FOLDER} chooses")
            return read_only(build()) if built is None else built

    def entries(self) -> list[Entry]:
        """What is kept, the one used longest ago first."""
        found = []
        for path in self.folder.glob(f"*{ENTRY}"):
            with suppress(OSError):  # another process has taken it away, or it is not to be read
                seen, header = path.stat(), _opened(path)[1]
                found.append(Entry(path, header.get("scene", ""), header.get("part", ""), seen.st_size, seen.st_mtime))
        return sorted(found, key=lambda entry: entry.used)

    def empty(self) -> None:
        """Take away all that is kept, but not what is being written; processes that have it mapped keep it."""
        for path in (*self.folder.glob(f"*{ENTRY}"), *self.folder.glob(f"*{NOTE}")):
            path.unlink(missing_ok=True)
        self._drop_unfinished()

    def _make_room(self, size: int) -> None:
        """Take entries away, the one used longest ago first, until `size` bytes fit; OSError where they never do."""
        self._drop_unfinished()
        entries = self.entries()
        used = sum(entry.bytes for entry in entries)
        allowed = min(self.limit, used + shutil.disk_usage(self.folder).free - SPARE)
        if size > allowed:
            raise OSError(errno.ENOSPC, f"no room within {LIMIT} or on the disk")
        for entry in entries:
            if used + size <= allowed:
                break
            entry.path.unlink(missing_ok=True)
            used -= entry.bytes

    def _drop_unfinished(self) -> None:
        """Take away what a process began to write that is gone."""
        for path in self.folder.glob(f"*{PART}"):
            with suppress(OSError), path.open("ab") as file:
                if lock(file) and is_at(file, path):
                    path.unlink()


def scene_cache() -> SceneCache:
    """The user's cache: where and how large the environment says, else `~/.cache/navprune/scenes` and 20 GiB.

    Raises UserError for a size that is no number.
    """
    own, base = os.environ.get(FOLDER), user_cache()
    said = os.environ.get(LIMIT) or (DEFAULT_LIMIT if own or base else "0")
    try:
        limit = int(float(said) * 2**30)
        if limit < 0:
            raise ValueError
    except (ValueError, OverflowError):
        raise UserError(f"{LIMIT} is {said}; it must be a number of GiB from 0 on, 0 for no cache") from None
    return SceneCache(Path(os.path.expanduser(own)).absolute() if own else (base or Path()) / "scenes", limit)


@cache
def builder() -> str:
    """A digest of the code by which scenes are read and derived, and of the versions of its libraries."""
    digest = hashlib.sha256()
    for path in sorted(_sources("navprune.simulator.asset")):
        digest.update(path.read_bytes())
    for library in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            digest.update(f"{library} {importlib.metadata.version(library)}".encode())
    return digest.hexdigest()


def _sources(module: str) -> set[Path]:
    """The files of this package that a module of it imports, by way of others too, its own among them."""
    sources, todo = set[Path](), [module]
    while todo:
        place = Path(navprune.__file__).parents[1].joinpath(*todo.pop().split("."))
        for path in {place.with_suffix(".py"), place / "__init__.py"} - sources:
            if path.is_file():
                sources.add(path)
                for found, *names in IMPORT.findall(path.read_text(encoding="utf-8")):
                    todo += [found, *(f"{found}.{name}" for name in re.findall(r"\w+", " ".join(names)))]
    return sources


def read_only(arrays: Arrays) -> Arrays:
    """The same arrays, contiguous and not to be written: so kernels see one type, whether mapped or not."""
    views = {name: np.ascontiguousarray(array).view() for name, array in arrays.items()}
    for view in views.values():
        view.flags.writeable = False
    return views


@contextmanager
def _alone(path: Path) -> Iterator[IO[bytes]]:
    """Have the file that is to become an entry for this process alone, empty; raises OSError where that cannot be.

    It is locked, so one of several builders works and the others wait, and one that was killed is in nobody's way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    give_up = time.monotonic() + PATIENCE
    while True:
        with path.open("ab") as file:
            free = lock(file)
            if free is None:
                raise OSError(errno.ENOLCK, "its drive has no locks")
            if free and is_at(file, path):  # else its holder has just finished
                try:
                    file.truncate(0)
                    yield file
                finally:
                    if is_at(file, path):
                        path.unlink()
                return
        if time.monotonic() > give_up:
            raise OSError(errno.ETIMEDOUT, f"another process has built for {PATIENCE:.0f} s")
        time.sleep(0.02)


def _header(origin: dict[str, str], arrays: Arrays) -> bytes:
    """The head of an entry: a mark, length and SHA-256 of what follows, where it is from, what it holds and where."""
    table, end = [], 0
    for name, array in arrays.items():
        table.append([name, array.dtype.str, array.shape, end])
        end += _padded(array.nbytes)
    text = json.dumps(origin | {"arrays": table, "bytes": end}).encode()
    head = MAGIC + struct.pack("<I", len(text)) + hashlib.sha256(text).digest() + text
    return head.ljust(_padded(len(head)), b"\0")


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _write(file: IO[bytes], header: bytes, arrays: Iterable[NDArray]) -> None:
    """Write an entry and bring it to disk, so that after a crash it is whole or not there."""
    file.write(header)
    for array in arrays:
        file.write(array.reshape(-1).view(np.uint8).data)
        file.write(bytes(_padded(array.nbytes) - array.nbytes))
    file.flush()
    os.fsync(file.fileno())


def _opened(path: Path) -> tuple[NDArray[np.uint8] | None, dict[str, Any]]:
    """The arrays' part of an entry, mapped, and its header; nothing where it is absent or damaged."""
    try:
        data = _map(path)
        head = data[: len(MAGIC) + 36].tobytes()
        (size,) = struct.unpack("<I", head[len(MAGIC) : -32])
        text, start = data[len(head) : len(head) + size].tobytes(), _padded(len(head) + size)
        if head.startswith(MAGIC) and head.endswith(hashlib.sha256(text).digest()):
            header = json.loads(text)
            if start + header["bytes"] == len(data):
                return data[start:], header
    except (OSError, ValueError, struct.error):
        pass
    return None, {}


def _map(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file, mapped until the last array of them goes; OSError where it cannot be mapped.

    Python's own mmap keeps a file open for each, of which a process may have 1,024: too few for a data set.
    """
    with path.open("rb") as file:
        library = ctypes.CDLL(None, use_errno=True)
        number, pointer, size_t = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
        library.mmap.restype = pointer
        library.mmap.argtypes = [pointer, size_t, number, number, number, ctypes.c_long]
        library.munmap.argtypes = [pointer, size_t]
        size = os.fstat(file.fileno()).st_size
        address = library.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    if address in (None, FAILED):
        raise OSError(ctypes.get_errno(), "cannot be mapped")
    memory = (ctypes.c_uint8 * size).from_address(address)
    weakref.finalize(memory, library.munmap, address, size).atexit = False
    data = np.frombuffer(memoryview(memory), np.uint8)
    data.flags.writeable = False
    return data


def _mapped(path: Path, origin: dict[str, str]) -> Arrays | None:
    """The arrays of an entry that is from there; None where it is absent, damaged or from elsewhere."""
    data, header = _opened(path)
    if data is None or any(header[key] != value for key, value in origin.items()):
        return None
    with suppress(OSError):
        os.utime(path)  # when it was used last
    return {name: np.ndarray(shape, dtype, data, offset) for name, dtype, shape, offset in header["arrays"]}


def _stamps(files: Any) -> dict[str, list[int] | None]:
    """Size, times of change and inode of each file; None where they cannot be had."""
    stamps = dict[str, list[int] | None]()
    for file in files:
        try:
            seen = os.stat(file)
            stamps[file] = [seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino]
        except OSError:
            stamps[file] = None
    return stamps


def _digest(file: str) -> str:
    """SHA-256 of a file's contents; a word where they cannot be had."""
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return "missing"

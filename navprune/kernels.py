"""numba's compiler, with a place that can be written for what it compiles."""

import os
import re
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba import njit as njit
from numba.core import event
from numba.core.caching import CacheImpl, IndexDataCacheFile
from numba.extending import intrinsic as _intrinsic

entry = njit(cache=True, nogil=True)  # what Python calls
inner = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)  # what only entries call; cached within them
intrinsic: Any = _intrinsic  # callers leave out its first argument
IMPORT = b"from navprune.kernels import"
FROM = re.compile(r"^from navprune\.([\w.]+) import", re.MULTILINE)


def settle_cache() -> Path | None:
    """Where neither the package nor the home can be written: a temporary folder, named on stderr; else None."""
    try:
        njit(cache=True)(settle_cache)  # numba looks for a place, and compiles nothing yet
        return None
    except RuntimeError:
        folder = _temporary()
        numba.config.CACHE_DIR = os.environ["NUMBA_CACHE_DIR"] = str(folder / "numba")  # of processes to come, too
        os.environ.setdefault("MPLCONFIGDIR", str(folder / "matplotlib"))
    text = "the package and the home cannot be written; compiled kernels go to {} (NUMBA_CACHE_DIR chooses)"
    print(f"navprune: {text.format(folder)}", file=sys.stderr, flush=True)
    return folder


def _temporary() -> Path:
    """A folder among the temporary files that nobody else can write, for what is found in it gets executed."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"navprune-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    seen = folder.lstat()
    return folder if seen.st_uid == user and not seen.st_mode & 0o022 else Path(tempfile.mkdtemp(prefix="navprune-"))


@cache
def _stamp(folder: str) -> tuple[tuple[str, int, int], ...]:
    """Name, time of change and size of each file with kernels in a folder, and of our files that they import from."""
    files = [path for path in sorted(Path(folder).glob("*.py")) if IMPORT in path.read_bytes()]
    modules = sorted({module for path in files for module in FROM.findall(path.read_text(encoding="utf-8"))})
    files += [Path(__file__).parent.joinpath(*module.split(".")).with_suffix(".py") for module in modules]
    return tuple((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files if path.is_file())


def _watch_folders() -> None:
    """Compile anew where any file of kernels in a kernel's own folder has changed, for they call one another."""
    for locator in CacheImpl._locator_classes:

        def watched(self, own=locator.get_source_stamp):  # type: ignore[no-untyped-def]
            folder = os.path.dirname(getattr(self, "_py_file", ""))
            return (own(self), _stamp(folder)) if os.path.isdir(folder) else own(self)

        locator.get_source_stamp = watched


def _forgive_damage() -> None:
    """Let what cannot be read of numba's cache count as absent: names of an earlier version, a file cut off."""
    own = IndexDataCacheFile._load_index

    def forgiving(self):  # type: ignore[no-untyped-def]
        try:
            return own(self)
        except Exception:  # unpickling raises whatever it trips over
            return {}

    IndexDataCacheFile._load_index = forgiving


class SayCompiling(event.Listener):
    """Tells whoever sits before a terminal why nothing happens yet, once."""

    said = False

    def on_start(self, event: Any) -> None:
        """A kernel was not in the cache."""
        if not self.said:
            print("navprune: compiling kernels, once on this machine, half a minute or so", file=sys.stderr, flush=True)
        self.said = True

    def on_end(self, event: Any) -> None:
        """It is compiled."""


_watch_folders()
_forgive_damage()
FALLBACK = settle_cache()
if sys.stderr is not None and sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":  # of several workers, one
    event.register("numba:compile", SayCompiling())

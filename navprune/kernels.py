"""numba's compiler, with a place that can be written for what it compiles."""

import os
import sys
import tempfile
from pathlib import Path

import numba
from numba import njit as njit


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


FALLBACK = settle_cache()

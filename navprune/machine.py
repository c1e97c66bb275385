"""What this machine, or the container around this process, lets it use."""

import contextlib
import ctypes
import importlib.util
import math
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

PROCESS = Path("/proc/self")
GROUPS = Path("/sys/fs/cgroup")


def cores() -> int:
    """Cores that this process may keep busy: those that it is bound to, within its container's quota."""
    count = _bound()
    first_version = zip(_said("cpu", "cpu.cfs_quota_us"), _said("cpu", "cpu.cfs_period_us"))
    for share in (*_said("cpu", "cpu.max"), *map(" ".join, first_version)):
        quota, _, period = share.partition(" ")
        if quota.isdecimal() and period.isdecimal():  # where there is none they say max or -1
            count = min(count, math.ceil(int(quota) / int(period)))
    return max(1, count)


def workers_here() -> int:
    """Processes of a training that share this machine, this one among them."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def place() -> tuple[str, tuple[int, ...]]:
    """This machine's name and the cores that this process is bound to: what processes that share cores have alike."""
    return socket.gethostname(), tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def heed_quota() -> None:
    """Numerical libraries would begin a thread for each core of the machine, whatever a container's quota."""
    if (count := cores()) < _bound():
        os.environ.setdefault("OMP_NUM_THREADS", str(count))


def memory() -> int:
    """Bytes of memory that this process may fill: the machine's, within its container's limit."""
    said = (*_said("memory", "memory.max"), *_said("memory", "memory.limit_in_bytes"))
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *(int(limit) for limit in said if limit.isdecimal())])


def resident() -> int:
    """Bytes of this process that are in memory; where there is no /proc, the most there were."""
    if said := _text(PROCESS / "statm"):
        return int(said.split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Within the block this process keeps what it frees, where its C library is glibc: it would come back page by page.

    A gradient step frees and takes again what is as large as its activations (experiments/learner_speed).
    """
    # M_MMAP_MAX: blocks that are mappings of their own; M_TRIM_THRESHOLD: what is given back; M_MMAP_THRESHOLD: the
    # least size of such a block, which grows with what is freed until one of these is set: its most stands for that.
    blocks, trim, least = -4, -1, -3
    try:
        _allocate({blocks: 0, trim: 2**31 - 1})
        yield
    finally:
        _allocate({blocks: 65_536, trim: 2**26, least: 2**25})


def _allocate(settings: dict[int, int]) -> None:
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        for name, value in settings.items():
            library.mallopt(name, value)


def compile_fault() -> str | None:
    """Why `torch.compile` cannot be used here on the CPU, and what to do; None where it can."""
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "c++", "g++", "clang++"))):
        return "it needs a C++ compiler; install one (Debian: apt-get install g++)"
    torch = importlib.util.find_spec("torch")
    if torch and torch.origin and len(torch.origin.split()) > 1:  # its linker's command line does not quote it
        folder = Path(torch.origin).parent
        return f"torch lies in {folder}, and its compiler takes no spaces; use an environment in another folder"
    return None


def _bound() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _said(controller: str, file: str) -> Iterator[str]:
    """What a file says in this process's control groups and in those around them, of version 2 or 1."""
    for line in _text(PROCESS / "cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            root = GROUPS / controller if controllers else GROUPS
            # A container may see its group under another name than the machine: there the outermost one is its own.
            innermost = root / group.strip("/")
            places = [place for place in (innermost, *innermost.parents) if place.is_relative_to(root)]
            yield from filter(None, (_text(place / file) for place in places))


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""

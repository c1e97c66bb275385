"""What is installed, which simulator and data sets are found, and what to do about what is not."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGES = (
    "torch",
    "numpy",
    "numba",
    "trimesh",
    "shapely",
    "gymnasium",
    "hydra-core",
    "tensorboard",
    "safetensors",
)


class Finding(NamedTuple):
    """One thing looked at: its name, whether it is in order, what was found, and what to do if it is not."""

    name: str
    ok: bool
    found: str
    advice: str


def examine(data: Path) -> list[Finding]:
    """Looks at Python, packages, simulators, compiler, accelerator and the data sets below `data`."""
    return [*_packages(), *_simulators(), *_machine(), *_data_sets(data)]


def _packages() -> Iterator[Finding]:
    yield Finding("python", True, platform.python_version(), "")
    for package in PACKAGES:
        version = _version(package)
        yield Finding(package, version is not None, version or "missing", f"pip install {package}, or run `make setup`")


def _simulators() -> Iterator[Finding]:
    yield Finding("simulator: embedded", True, "built in", "")
    for module in ("habitat_sim", "habitat"):
        present = importlib.util.find_spec(module) is not None
        yield Finding(f"simulator: {module}", True, "installed" if present else "not installed; not needed", "")


def _machine() -> Iterator[Finding]:
    yield Finding("cores", True, str(len(os.sched_getaffinity(0))), "")
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    advice = "install a C++ compiler for torch.compile (Debian: apt-get install g++); all else works without"
    yield Finding("C++ compiler", compiler is not None, compiler or "missing", advice)
    yield Finding("accelerator", True, _accelerator(), "")
    free = shutil.disk_usage(".").free / 2**30
    yield Finding("free disk", free > 2, f"{free:.1f} GiB", "free some space: a run keeps a few checkpoints")


def _accelerator() -> str:
    if importlib.util.find_spec("torch") is None:
        return "unknown without torch"
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none; the CPU is used"


def _data_sets(data: Path) -> Iterator[Finding]:
    """A finding for each split of each data set, with the scenes that its episodes need."""
    root = data / "datasets" / "pointnav"
    names = sorted(path for path in root.glob("*") if path.is_dir()) if root.is_dir() else []
    if not names:
        advice = f"`navprune scenes generate --out {data}` makes one; docs/gibson.md says where Gibson comes from"
        yield Finding(f"data sets in {data}", False, "none", advice)
    for name in names:
        for split in sorted(path for path in name.glob("*/*") if path.is_dir()):
            yield _split(data, name.name, split)


def _split(data: Path, name: str, split: Path) -> Finding:
    contents = sorted(path.name.removesuffix(".json.gz") for path in (split / "content").glob("*.json.gz"))
    folder = data / "scene_datasets" / name
    missing = [
        scene + suffix
        for scene in contents
        for suffix in (".glb", ".navmesh")
        if not (folder / (scene + suffix)).is_file()
    ]
    found = f"{len(contents)} scenes" + (
        f", {len(missing)} files missing in {folder}: {missing[0]} ..." if missing else ""
    )
    advice = f"put the missing files into {folder}"
    return Finding(f"{name} {split.parent.name} {split.name}", bool(contents) and not missing, found, advice)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

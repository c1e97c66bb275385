"""What is installed, which simulator and data sets are found, and what to do about what is not."""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from navprune import machine
from navprune.errors import UserError
from navprune.installing import HABITAT_LAB, HABITAT_SIM, IMAGES, OPENCV
from navprune.progress import ProgressLine
from navprune.scenes.files.episodes import (
    EpisodeTable,
    check_ids,
    episode_faults,
    scene_path,
    skim_episodes,
    split_files,
)
from navprune.scenes.files.navmesh import read_navmesh
from navprune.scenes.files.places import check_files, navmesh_path

PACKAGES = ("torch", "numpy", "numba", "trimesh", "shapely", "gymnasium", "pyyaml", "tensorboard", "safetensors")
MODULES = {"habitat-lab": "habitat", "pyyaml": "yaml"}  # that are not called as their packages

COUNTED = 4 << 20  # bytes; of larger splits the episodes are not counted,
TRIED = 200  # and so many of each scene are tried
NOTABLE = 5e-3  # relative difference of distances that another body explains, and rounding does not
WRONG = 0.2  # such a difference that no body explains
SHORTEST = 0.01  # metres to which distances are related at least


class Source(NamedTuple):
    """What is known of a data set: its archive of episodes, its licence, how many scenes and episodes a split has."""

    episodes: str
    licence: str = ""
    scenes: Mapping[str, int] = MappingProxyType({})
    counts: Mapping[str, int] = MappingProxyType({})


# docs/datasets.md says where the numbers come from.
KNOWN = {
    "gibson": Source(
        "pointnav_gibson_v1.zip of habitat-lab's DATASETS.md",
        "Gibson's terms of use are accepted in the form of the Gibson Database (GibsonEnv on GitHub); "
        "take its files for Habitat",
        {"train": 72, "train_extra_large": 411, "val": 14},
        {"val": 994},
    ),
    "mp3d": Source(
        "pointnav_mp3d_v1.zip of habitat-lab's DATASETS.md",
        "Matterport3D's Terms of Use are signed and sent in as its project page says; "
        "then `download_mp.py --task habitat`",
        {"train": 61, "val": 11, "test": 18},
    ),
    "hm3d": Source(
        "pointnav_hm3d_v1.zip of habitat-lab's DATASETS.md",
        "HM3D is under the Matterport End User License Agreement for Academic Use, asked for on Matterport's HM3D page",
        {"train": 800, "val": 100},
    ),
    "habitat-test-scenes": Source(
        "the habitat_test_pointnav_dataset of habitat-sim's DATASETS.md",
        "the habitat_test_scenes of habitat-sim's DATASETS.md need no asking",
    ),
}


class Finding(NamedTuple):
    """One thing looked at: its name, whether it is there and in order, what was found, and what to do if it is not."""

    name: str
    ok: bool
    found: str
    advice: str


def examine(data: Path) -> list[Finding]:
    """Look at Python, packages, simulators, compiler, accelerator, runtimes and the data sets below `data`."""
    return [*_packages(), *_images(), *_simulators(), *_machine(), *_runtimes(), *_data_sets(data)]


def _packages() -> Iterator[Finding]:
    yield Finding("python", True, platform.python_version(), "")
    for package in PACKAGES:
        version = _version(package)
        yield Finding(package, version is not None, version or "missing", f"pip install {package}, or run `make setup`")


def _images() -> Iterator[Finding]:
    version = _version("scikit-learn")
    yield Finding(
        "scikit-learn", version is not None, version or "not installed", f"for images.source=digits: {IMAGES}"
    )


def _simulators() -> Iterator[Finding]:
    yield Finding("simulator: embedded", True, "built in", "")
    for package in ("habitat-lab", "habitat-sim", "gym"):
        version = _version(package)
        yield Finding(package, version is not None, version or "not installed", "only env=habitat needs it")
    if importlib.util.find_spec("cv2"):
        yield _attempted("opencv", partial(importlib.import_module, "cv2"), OPENCV, "works without system libraries")
    if _version("habitat-lab") is None:
        yield Finding("env=habitat", False, "not available", HABITAT_LAB)
        return
    habitat = _attempted("env=habitat", partial(importlib.import_module, "navprune.habitat"), HABITAT_LAB)
    yield habitat
    if habitat.ok and importlib.util.find_spec("habitat_sim"):
        from navprune.habitat.devices import check_habitat_sim

        yield _attempted("simulator=habitat_sim", check_habitat_sim, HABITAT_SIM)
    else:
        yield Finding("simulator=habitat_sim", False, "not available", HABITAT_SIM)


def _attempted(name: str, attempt: Callable[[], object], advice: str, works: str = "works") -> Finding:
    try:
        attempt()
    except (ImportError, UserError, AttributeError) as error:
        return Finding(name, False, " ".join(str(error).split()), advice)
    return Finding(name, True, works, advice)


def _machine() -> Iterator[Finding]:
    yield Finding("cores", True, str(machine.cores()), "")
    yield Finding("memory", True, f"{machine.memory() / 2**30:.1f} GiB", "")
    fault, _, advice = (machine.compile_fault() or "").partition("; ")
    yield Finding("torch.compile", not fault, fault or "works", f"{advice}; all else works without")
    accelerator = "unknown without torch"
    if importlib.util.find_spec("torch"):
        import torch

        accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none; the CPU is used"
    yield Finding("accelerator", True, accelerator, "")
    if importlib.util.find_spec("numba"):
        from navprune.kernels import FALLBACK

        advice = "set NUMBA_CACHE_DIR to a folder that lasts, or they are compiled anew after a restart"
        yield Finding("compiled kernels", FALLBACK is None, f"kept in {FALLBACK or 'a cache that lasts'}", advice)
    yield _scene_cache()
    free = shutil.disk_usage(".").free / 2**30
    yield Finding("free disk", free > 2, f"{free:.1f} GiB", "free some space: a run keeps a few checkpoints")


def _runtimes() -> Iterator[Finding]:
    """What `latency` and the others can run a network in on this machine; none has to be there."""
    if not importlib.util.find_spec("torch"):
        return
    import torch

    from navprune.costs.runtimes import RUNTIMES

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name, runtime in RUNTIMES.items():
        missing = runtime.missing(device)
        found = "not available" if missing else runtime.version()
        yield Finding(f"runtime: {name}", not missing, found, missing or "")


def _scene_cache() -> Finding:
    """Where what is derived from scenes is kept, how much it is and may be, and whether more can be."""
    from navprune.simulator.cache import FOLDER, scene_cache

    try:
        cache = scene_cache()
    except UserError as error:
        return Finding("scene cache", False, *_parts(error))
    size = sum(entry.bytes for entry in cache.entries()) / 2**30
    existing = next(path for path in (cache.folder, *cache.folder.parents) if os.path.lexists(path))
    writable = not cache.limit or (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK))
    found = f"{size:.1f} of {cache.limit / 2**30:g} GiB in {cache.folder}"
    advice = f"set {FOLDER} to a folder that can, or each process derives scenes anew and holds its own"
    return Finding("scene cache", writable, found + ("" if writable else ", which cannot be written"), advice)


def _data_sets(data: Path) -> Iterator[Finding]:
    """A finding for each split of each data set, and one for scenes that no episodes are there for."""
    root = data / "datasets" / "pointnav"
    splits = sorted(path for path in root.glob("*/*/*") if path.is_dir())
    for split in splits:
        yield from _split(data, split.parts[-3], split.parts[-2], split.name)
    names = {split.parts[-3] for split in splits}
    for name in KNOWN:
        scenes = data / "scene_datasets" / name
        if name not in names and scenes.is_dir():
            advice = f"unpack {KNOWN[name].episodes} into {root / name / 'v1'} (docs/datasets.md)"
            yield Finding(name, False, f"scenes in {scenes}, but no episodes", advice)
            names.add(name)
    if not names:
        command = f"navprune scenes generate --out {shlex.quote(str(data))}"
        advice = f"`{command}` makes one; docs/datasets.md says where others come from"
        yield Finding(f"data sets in {data}", False, "none", advice)


def _split(data: Path, name: str, version: str, split: str) -> Iterator[Finding]:
    """How many scenes and episodes a split has, what is missing and where it comes from; then each broken scene."""
    label = f"{name} {version} {split}"
    known = KNOWN.get(name, Source("the data set"))
    try:
        index, contents = split_files(data, name, split, version)
        small = sum(path.stat().st_size for path in (index, *contents)) < COUNTED
        episodes = skim_episodes(data, name, split, version, each=None if small else TRIED)
        check_ids(episodes, split)
    except UserError as error:
        fault, remedy = _parts(error)
        yield Finding(label, False, fault, f"unpack {known.episodes}" if name in KNOWN else remedy)
        return
    paths = {scene: scene_path(data, scene) for scene in sorted(episodes.scenes)}
    if not paths:
        remedy = f"unpack the folder content that belongs beside it ({known.episodes})"
        yield Finding(label, False, f"{index} lists no episodes and has no content/", remedy)
        return
    missing = dict(_missing(list(paths.values()), known))
    found = [_share(len(paths), known.scenes.get(split), "scene")]
    if small:
        where = "" if contents else f", all in {index.name}"
        found.append(_share(len(episodes), known.counts.get(split), "episode") + where)
    found += missing
    advice = list(missing.values())
    if len(paths) < known.scenes.get(split, 0):
        advice.append(f"unpack {known.episodes} anew")
    first = paths[next(iter(paths))]
    if first.is_file() and _is_basis_compressed(first):
        found.append("textures Basis-compressed: depth works, for colour see docs/datasets.md")
    broken, note = _try(label, episodes, paths)
    yield Finding(label, not advice and not broken, "; ".join([*found, note]), "; ".join(advice) or "see below")
    yield from broken


def _try(label: str, episodes: EpisodeTable, paths: dict[str, Path]) -> tuple[list[Finding], str]:
    """What is wrong with the scenes that are there and with their episodes, and how many were tried."""
    try:
        from navprune.simulator.pathfinder import PathFinder
    except ImportError:
        return [], "episodes not tried without numba"
    broken, tried, differences = list[Finding](), 0, np.zeros(0)
    line = ProgressLine(f"trying {label}", len(paths), "scenes")
    for done, (scene, part) in enumerate(sorted(episodes.by_scene().items()), 1):
        line.show(done)
        if not (paths[scene].is_file() and navmesh_path(paths[scene]).is_file()):
            continue
        try:
            check_files(paths[scene])
            finder = PathFinder(read_navmesh(navmesh_path(paths[scene])))
        except UserError as error:
            broken.append(Finding(f"{label}: {scene}", False, *_parts(error)))
            continue
        tried += len(part)
        if faults := episode_faults(part, finder):
            row, fault = next(iter(faults.items()))
            what = f"{len(faults)} of {_number(len(part), 'episode')} cannot be run: in {part[row].episode_id} {fault}"
            advice = "use the navmesh that they were made with, or drop them"
            broken.append(Finding(f"{label}: {scene}", False, what, advice))
        measured = finder.geodesic_distance(*np.split(part.starts_and_goals(), 2, axis=1))
        differences = np.append(differences, np.abs(measured - part.distances) / np.maximum(part.distances, SHORTEST))
    note, known = f"{tried} tried on their navmeshes", differences[np.isfinite(differences)]
    typical = np.median(known) if known.size else 0.0
    if typical > WRONG:
        advice = "copy the scenes, navmeshes and episodes that belong together, or generate the episodes anew"
        broken.append(Finding(f"{label}: distances", False, f"those in the episodes differ by {typical:,.0%}", advice))
    elif typical > NOTABLE:
        note += f", whose distances differ by {typical:.1%}: made for another body (docs/datasets.md)?"
    return broken, note


def _parts(error: UserError) -> tuple[str, str]:
    """What is wrong, and what to do."""
    fault, _, remedy = str(error).rpartition("; ")
    return fault, remedy


def _missing(paths: list[Path], known: Source) -> Iterator[tuple[str, str]]:
    """What is missing of these scenes, and what to do."""
    meshes = [path for path in paths if not path.is_file()]
    if meshes:
        where = "put them there" + (f"; {known.licence}" if known.licence else "")
        yield f"{_number(len(meshes), 'scene')} missing: {meshes[0]}{' ...' if len(meshes) > 1 else ''}", where
    walks = [path for path in paths if path.is_file() and not navmesh_path(path).is_file()]
    if walks:
        example = walks[0].with_suffix(".navmesh")
        advice = f"copy them there, or build them: `navprune scenes navmesh {shlex.quote(str(walks[0]))}`"
        yield f"{_number(len(walks), 'navmesh file')} missing: {example}{' ...' if len(walks) > 1 else ''}", advice


def _share(found: int, expected: int | None, what: str) -> str:
    return _number(found, what) if expected is None else f"{found} of {_number(expected, what)}"


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _is_basis_compressed(path: Path) -> bool:
    """Whether the JSON part of a .glb file speaks of Basis textures, under any of their names."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(20)[12:16], "little")
        text = file.read(min(size, COUNTED)).lower()
    return b"basis" in text or b"image/ktx2" in text


def _version(package: str) -> str | None:
    """Its version; by its own word where metadata is missing, as with a habitat-sim that was built in place."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        spec = importlib.util.find_spec(MODULES.get(package, package.replace("-", "_")))
    if spec is None or spec.origin is None:
        return None
    said = re.search(r"^__version__ = ['\"](.+)['\"]", Path(spec.origin).read_text(errors="replace"), re.MULTILINE)
    return f"{said[1] if said else 'installed'}, without the metadata of a package"

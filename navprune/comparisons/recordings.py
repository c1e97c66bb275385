"""Answers recorded from habitat-sim and habitat-lab: which there are, and what stands in them.

A recording is a folder in Habitat's layout with answers beside it: `expected/NAME_navigation.json` (path finder),
`expected/NAME_images.npz` (camera) and `expected/NAME_rollouts.json.gz` (episodes), one set for each scene NAME,
any of the three; `extra/NAME_CAMERA.npz` are further cameras. `settings.json` says in what the recorded task differs
from Habitat's Gibson task, see `read_settings`. `null` stands for NaN and infinity, and becomes NaN.
"""

from __future__ import annotations

import gzip
import json
import os
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from navprune.errors import UserError, plain
from navprune.scenes.files.episodes import Episode, read_episodes, scene_name, scene_path, skim_episodes
from navprune.scenes.files.navmesh import MAX_COORDINATE
from navprune.scenes.files.places import SCENES
from navprune.tasks.config import TaskConfig

Floats = NDArray[np.float64]
Recorded = dict[str, Floats]
"""Recorded values by name, [N] or [N, W] each."""

SUFFIXES = {"images": "_images.npz", "navigation": "_navigation.json", "rollouts": "_rollouts.json.gz"}
QUESTIONS = {
    "geodesic": {"start": 3, "end": 3, "found": 1, "distance": 1},
    "snap": {"point": 3, "snapped": 3, "navigable": 1},
    "island": {"point": 3, "radius": 1, "obstacle_distance": 1},
    "step": {"start": 3, "target": 3, "sliding": 3, "no_sliding": 3},
}
"""What the path finder was asked and what it answered, with the width of each value."""
STATE = {
    "action": 1, "position": 3, "rotation_xyzw": 4, "reward": 1, "pointgoal_with_gps_compass": 2,
    "distance_to_goal": 1, "spl": 1,
}  # fmt: skip
"""What a step of an episode tells, with the width of each value."""
BROKEN = (
    OSError, EOFError, KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError,
    MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What reading a damaged file raises."""


class Settings(NamedTuple):
    """How the answers were recorded.

    camera: [3], metres from the agent's feet, along its own axes. depth: the least and the greatest that were
    recorded, to which others were clipped.
    """

    task: TaskConfig
    camera: tuple[float, float, float]
    depth: tuple[float, float]


class Images(NamedTuple):
    """N views of a scene; colours of the first M."""

    position: Floats  # of the agent's feet [N, 3], metres
    rotation: Floats  # [N, 4], x y z w
    depth: Floats  # [N, H, W], metres
    rgb: NDArray[np.uint8]  # [M, H, W, 3]
    camera: tuple[float, float, float]  # from the feet, along the agent's axes, metres
    hfov: float


class RecordedEpisode(NamedTuple):
    """One episode and its T + 1 states; the first is the reset."""

    episode: Episode
    states: Recorded


def find_answers(folder: Path, scenes: Sequence[str] | None = None) -> dict[str, dict[str, Path]]:
    """The files of answers as {scene: {"images" | "navigation" | "rollouts" | "cameras.CAMERA": path}}.

    `scenes` takes those alone. Raises UserError where there are none.
    """
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for kind, suffix in SUFFIXES.items():
        for path in (Path(folder) / "expected").glob(f"*{suffix}"):
            found[path.name.removesuffix(suffix)][kind] = path
    for path in sorted((Path(folder) / "extra").glob("*_*.npz")):
        # Names may have underscores: the longest scene that there are answers of, else what stands before the first.
        known = [name for name in found if path.name.startswith(f"{name}_")]
        name = max(known, key=len, default=path.stem.split("_")[0])
        found[name][f"cameras.{path.stem.removeprefix(f'{name}_')}"] = path
    if not found:
        raise UserError(f"{folder} holds no recorded answers (expected/NAME_navigation.json ...); check the folder")
    for name in scenes or ():
        if name not in found:
            raise UserError(f"{folder} has no answers for scene {name}; it has them for {', '.join(sorted(found))}")
    return {name: found[name] for name in sorted(found) if scenes is None or name in scenes}


def read_settings(folder: Path) -> Settings:
    """What `settings.json` says: `TaskConfig`'s fields, and `camera_position` [3] in place of its camera height.

    Without the file, or where it is silent, they are Habitat's for Gibson, and depth is as far as it goes. Raises
    UserError where the file is broken or says what cannot be.
    """
    path, told = Path(folder) / "settings.json", dict[str, Any]()
    try:
        if path.exists():
            told = json.loads(path.read_text())
            if not isinstance(told, dict):
                raise ValueError("no object")
        position = told.pop("camera_position", None)
        camera = None if position is None else _camera_position(position)
    except BROKEN as error:
        raise UserError(
            f"{path} holds no settings ({plain(error)}); write an object as docs/habitat.md has it"
        ) from None
    known = [field.name for field in fields(TaskConfig)]
    if unknown := sorted(told.keys() - set(known)):
        raise UserError(f"{path}: no setting is called {unknown[0]}; there are camera_position, {', '.join(known)}")
    for name, value in told.items():
        if isinstance(getattr(TaskConfig, name), bool) and not isinstance(value, bool):
            raise UserError(f"{path}: {name} is {value}; give true or false")
    try:
        task = TaskConfig(**told)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    depth = float(told.get("min_depth", 0)), float(told.get("max_depth", np.inf))
    return Settings(task, camera or (0.0, task.camera_height, 0.0), depth)


def _camera_position(values: Any) -> tuple[float, float, float]:
    if len(values) != 3:
        raise ValueError("camera_position is not three numbers")
    x, y, z = map(float, values)
    if not max(abs(x), abs(y), abs(z)) <= MAX_COORDINATE:
        raise ValueError("camera_position is no sensible one in metres")
    return x, y, z


def find_scene(folder: Path, name: str) -> Path:
    """The scene NAME somewhere below scene_datasets: what its episodes name, else NAME.glb or .gltf, else .basis.glb.

    Raises UserError where there is none, or several that this does not tell apart.
    """
    scenes = Path(folder) / "scene_datasets"
    files = [path for path in _files_below(scenes, SCENES) if scene_name(path.name) == scene_name(name)]
    paths = list({path.resolve(): path for path in reversed(files)}.values())[::-1]  # of links to one file, the first
    if not paths:
        raise UserError(f"there is no {name}.glb or .gltf below {scenes}; put the scene there")
    if len(paths) > 1:
        named = {scene_path(folder, episode.scene_id).resolve() for episode in _scene_episodes(folder, name)}
        paths = [path for path in paths if path.resolve() in named] or paths
        paths = [path for path in paths if path.stem == name] or paths
    if len(paths) > 1:
        raise UserError(f"{paths[0]} and {paths[1]} are both called {name}; leave the one that the answers are of")
    return paths[0]


def _files_below(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of some kinds in a folder and in all below it, also where links lead, each folder once; sorted."""
    files: list[Path] = []
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        files += [Path(place, name) for name in names if name.endswith(suffixes)]
    return sorted(files)


def read_images(path: Path, settings: Settings) -> Images:
    """The views of a scene, by cameras as the file says, else as settings do; UserError where it is broken."""
    with _reading(path):
        with np.load(path, allow_pickle=False) as arrays:
            images = {key: np.asarray(arrays[key]) for key in arrays.files}
        depth = images["depth_m"].astype(np.float64)
        count, height, width = depth.shape
        if depth.size == 0:
            raise ValueError("depth_m holds no pixel")
        rgb = images.get("rgb", np.zeros((0, height, width, 3), np.uint8)).astype(np.uint8)
        if rgb.shape[1:] != (height, width, 3) or len(rgb) > count:
            raise ValueError(f"rgb is {list(rgb.shape)} and depth_m {list(depth.shape)}")
        position = images["position"].astype(np.float64).reshape(count, 3)
        rotation = images["rotation_xyzw"].astype(np.float64).reshape(count, 4)
        _check_poses(position, rotation)
        x, y, z = settings.camera
        y, hfov = float(images.get("sensor_height", y)), float(images.get("hfov_deg", settings.task.hfov))
        if not abs(y) <= MAX_COORDINATE or not 0 < hfov < 180:
            raise ValueError(f"sensor_height is {y:g} and hfov_deg {hfov:g}")
        return Images(position, rotation, depth, rgb, (x, y, z), hfov)


def read_navigation(path: Path) -> dict[str, Recorded]:
    """What the path finder was asked and answered, by question (`QUESTIONS`); those not recorded are left out.

    Raises UserError where the file is broken.
    """
    with _reading(path):
        recorded = json.loads(path.read_text())
        if not isinstance(recorded, dict) or not recorded.keys() & QUESTIONS.keys():
            raise ValueError(f"none of {', '.join(QUESTIONS)}")
        return {name: _columns(recorded[name], fields) for name, fields in QUESTIONS.items() if name in recorded}


def read_rollouts(path: Path, folder: Path, scene: str) -> list[RecordedEpisode]:
    """The episodes that were run in a scene, with their states (`STATE`).

    Raises UserError where the file is broken or tells of an episode that the folder's episode files do not have.
    """
    with _reading(path):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            recorded = json.load(file)
        states = [(str(entry["episode_id"]), _columns(entry["steps"], STATE)) for entry in recorded]
        if not all(len(columns["action"]) for _, columns in states):
            raise ValueError("an episode without steps")
        for _, columns in states:
            _check_poses(columns["position"], columns["rotation_xyzw"])
            if not np.isin(columns["action"][1:], range(4)).all():
                raise ValueError("an action that is not 0 to 3")
    episodes = _scene_episodes(folder, scene)
    return [RecordedEpisode(_matching(episodes, name, columns, path), columns) for name, columns in states]


def _check_poses(position: Floats, rotation: Floats) -> None:
    if not (np.isfinite(position).all() and np.isfinite(rotation).all()):
        raise ValueError("a pose is not finite")
    if not np.all(np.abs(position) <= MAX_COORDINATE):
        raise ValueError("a position is not a sensible one in metres")
    if not np.all(np.abs(np.linalg.norm(rotation, axis=-1) - 1) <= 1e-2):
        raise ValueError("a rotation is no unit quaternion")


def _scene_episodes(folder: Path, scene: str) -> list[Episode]:
    """The episodes of a scene in every split of every data set."""
    episodes: list[Episode] = []
    for place in sorted((Path(folder) / "datasets" / "pointnav").glob("*/v*/*/")):
        name, version, split = place.parts[-3:]
        there = (place / f"{split}.json.gz").is_file()
        if there and scene_name(scene) in map(scene_name, skim_episodes(folder, name, split, version, each=1).scenes):
            episodes += read_episodes(folder, name, split, version, [scene])
    return episodes


def _matching(episodes: Iterable[Episode], name: str, states: Recorded, path: Path) -> Episode:
    """Of the episodes of this id, which several splits may have, the one that starts where the record does."""
    same = [episode for episode in episodes if episode.episode_id == name]
    if not same:
        raise UserError(f"{path} tells of episode {name}, which no episode file has; put its data set there")
    start = states["position"][0]
    return min(same, key=lambda episode: float(np.linalg.norm(np.array(episode.start_position) - start)))


def _columns(entries: Any, fields: Mapping[str, int]) -> Recorded:
    """The fields of recorded entries as arrays, [N] or [N, width]."""
    if not isinstance(entries, list):
        raise ValueError("no list of entries")
    return {key: _column([entry[key] for entry in entries], key, width) for key, width in fields.items()}


def _column(values: list, key: str, width: int) -> Floats:
    missing = np.nan if width == 1 else [np.nan] * width
    column = np.array([missing if value is None else value for value in values], dtype=np.float64)
    shape = (len(values),) if width == 1 else (len(values), width)
    if len(values) and column.shape != shape:
        raise ValueError(f"{key} is not {width} numbers")
    column[np.isinf(column)] = np.nan
    if np.any(np.abs(column) > MAX_COORDINATE):
        raise ValueError(f"{key} is no sensible number of metres")
    return column.reshape(shape)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise UserError for whatever reading a damaged file raises."""
    try:
        yield
    except BROKEN as error:
        raise UserError(f"{path} is damaged or no recording ({plain(error)}); copy or record it again") from None

"""PointNav episode files in Habitat's layout: read, check, sample and write them."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from navprune.errors import UserError

# Habitat's generator (habitat-lab, datasets/pointnav/pointnav_generator.py).
NEAREST, FARTHEST = 1.0, 30.0  # metres of geodesic distance
MAX_RISE = 0.5  # metres between the heights of start and goal
MIN_ISLAND_RADIUS = 1.5  # metres
STRAIGHT = 1.1  # geodesic/Euclidean ratio below which a pair is kept only sometimes
RETRIES = 10  # starts that are tried for a goal
PREFIX = "data/scene_datasets/"


class Navigator(Protocol):
    """What sampling and checking need of a path finder; every method takes batches."""

    def sample(self, count: int, rng: Generator) -> NDArray[np.float64]:
        """Points `[count, 3]` uniform over the walkable area."""

    def geodesic_distance(self, starts: NDArray, ends: NDArray) -> NDArray[np.float64]:
        """Metres `[N]`, infinite where there is no way."""

    def island_radius(self, points: NDArray) -> NDArray[np.float64]:
        """Metres `[N]`."""

    def is_navigable(self, points: NDArray) -> NDArray[np.bool_]:
        """Whether each point lies on the navmesh, `[N]`."""


@dataclass(frozen=True, slots=True)
class Episode:
    """One task: go from a start to a goal. Metres in Habitat's frame, rotations `[x, y, z, w]`.

    `episode_id` may restart in every scene: `(scene_id, episode_id)` is the key.
    """

    episode_id: str
    scene_id: str
    start_position: tuple[float, ...]
    start_rotation: tuple[float, ...]
    goal_position: tuple[float, ...]
    goal_radius: float | None
    geodesic_distance: float


# ---- reading


def scene_path(data: str | os.PathLike, scene_id: str) -> Path:
    """The GLB file of a scene: `scene_id` less a leading `data/scene_datasets/`, under `scene_datasets`."""
    return Path(data) / "scene_datasets" / scene_id.removeprefix(PREFIX)


def split_folder(data: str | os.PathLike, name: str, split: str, version: str = "v1") -> Path:
    """Where the episodes of a split lie."""
    return Path(data) / "datasets" / "pointnav" / name / version / split


def read_episodes(data: str | os.PathLike, name: str, split: str, version: str = "v1") -> list[Episode]:
    """All episodes of a split: those of `SPLIT.json.gz`, then of each file in `content`, by name.

    Raises `UserError` where the split or one of its scenes is missing or a file is damaged.
    """
    folder = split_folder(data, name, split, version)
    index = folder / f"{split}.json.gz"
    if not index.is_file():
        raise UserError(f"no split '{split}' at {index}; generate the data set or check its folder and name")
    files = [index, *sorted((folder / "content").glob("*.json.gz"))]
    episodes = [episode for file in files for episode in _read_file(file)]
    if not episodes:
        raise UserError(f"{folder} holds no episodes; generate the data set anew")
    for scene in sorted({episode.scene_id for episode in episodes}):
        path = scene_path(data, scene)
        if not path.is_file():
            raise UserError(f"scene {path} of split '{split}' is missing; put it there or check the data folder")
    return episodes


def _read_file(path: Path) -> list[Episode]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            document = json.load(file)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} is cut off or damaged ({error}); copy or generate it again") from None
    entries = document.get("episodes") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise UserError(f"{path} has no list of episodes; it is no PointNav episode file")
    return [_parse(entry, i, path) for i, entry in enumerate(entries)]


def _parse(entry: Any, index: int, path: Path) -> Episode:
    """One episode of a file, or a `UserError` that names the entry and the field."""
    field = "episode"
    try:
        field = "scene_id"
        scene = entry[field]
        if not isinstance(scene, str) or not scene:
            raise ValueError("not a name")
        field = "start_position"
        start = _numbers(entry[field], 3)
        field = "start_rotation"
        rotation = _numbers(entry[field], 4)
        if abs(float(np.linalg.norm(rotation)) - 1.0) > 1e-2:
            raise ValueError("not a unit quaternion")
        field = "goals"
        goal = _numbers(entry[field][0]["position"], 3)
        radius = entry[field][0].get("radius")
        field = "info.geodesic_distance"
        (distance,) = _numbers([entry["info"]["geodesic_distance"]], 1)
        field = "episode_id"
        return Episode(
            str(entry[field]),
            scene,
            start,
            rotation,
            goal,
            None if radius is None else float(radius),
            distance,
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: episode {index} has a bad {field} ({error!r}); mend or generate it again") from None


def _numbers(values: Any, count: int) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ValueError(f"not {count} finite numbers")
    return numbers


def check_episodes(episodes: Sequence[Episode], pathfinder: Navigator, source: str = "") -> None:
    """Raises `UserError` for the first episode of one scene that cannot be run there.

    Its start must lie on the navmesh and its goal must be reachable. `source` names the file in the message.
    """
    if not episodes:
        return
    starts = np.array([episode.start_position for episode in episodes])
    goals = np.array([episode.goal_position for episode in episodes])
    on_floor = pathfinder.is_navigable(starts)
    reachable = np.isfinite(pathfinder.geodesic_distance(starts, goals))
    for episode, floor, way in zip(episodes, on_floor, reachable):
        if not (floor and way):
            fault = "its goal cannot be reached" if floor else "its start is off the navmesh"
            where = f"{source}: " if source else ""
            raise UserError(
                f"{where}episode {episode.episode_id} of {episode.scene_id}: {fault}; "
                "use the navmesh that the episodes were made with, or drop it"
            )


# ---- sampling


def sample_episodes(
    pathfinder: Navigator, scene_id: str, count: int, rng: Generator, batch: int = 256
) -> list[Episode]:
    """`count` episodes by Habitat's rules: uniform goals, with up to 10 uniform starts tried for each.

    All goals of a batch have their tries before any is taken, so that goals that are hard to serve are not rarer
    in small samples. Raises `UserError` where the scene has next to no pairs that qualify.
    """
    episodes: list[Episode] = []
    for _ in range(200 + 20 * count // batch):
        goals = pathfinder.sample(batch, rng)
        goals = goals[pathfinder.island_radius(goals) >= MIN_ISLAND_RADIUS]
        starts, distances = _starts_for(goals, pathfinder, rng)
        for row in np.flatnonzero(np.isfinite(distances))[: count - len(episodes)]:
            distance = float(distances[row])
            episodes.append(_episode(len(episodes), scene_id, starts[row], goals[row], distance, rng))
        if len(episodes) == count:
            return episodes
    raise UserError(f"{scene_id}: only {len(episodes)} of {count} episodes found; the scene is too small or too open")


def _starts_for(goals: NDArray, pathfinder: Navigator, rng: Generator) -> tuple[NDArray, NDArray[np.float64]]:
    """The first start `[N, 3]` that qualifies for each goal, and its distance `[N]`, infinite where none did."""
    starts, distances = np.zeros_like(goals), np.full(len(goals), np.inf)
    waiting = np.arange(len(goals))
    for _ in range(RETRIES):
        if len(waiting) == 0:
            break
        tried = pathfinder.sample(len(waiting), rng)
        ways = pathfinder.geodesic_distance(tried, goals[waiting])
        kept = _qualify(tried, goals[waiting], ways, pathfinder.island_radius(tried), rng)
        starts[waiting[kept]], distances[waiting[kept]] = tried[kept], ways[kept]
        waiting = waiting[~kept]
    return starts, distances


def _qualify(
    starts: NDArray, goals: NDArray, distances: NDArray, island_radius: NDArray, rng: Generator
) -> NDArray[np.bool_]:
    """Which pairs Habitat's generator keeps, `[N]`; nearly straight ones by chance."""
    direct = np.linalg.norm(starts - goals, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = distances / direct
    lucky = rng.random(len(starts)) <= 20.0 * (ratio - 0.98) ** 2
    return (
        (np.abs(starts[:, 1] - goals[:, 1]) <= MAX_RISE)
        & (distances >= NEAREST)
        & (distances <= FARTHEST)
        & (island_radius >= MIN_ISLAND_RADIUS)
        & ((ratio >= STRAIGHT) | lucky)
    )


def _episode(index: int, scene_id: str, start: NDArray, goal: NDArray, distance: float, rng: Generator) -> Episode:
    half = rng.uniform(0.0, 2 * np.pi) / 2
    rotation = (0.0, float(np.sin(half)), 0.0, float(np.cos(half)))
    return Episode(str(index), scene_id, tuple(start.tolist()), rotation, tuple(goal.tolist()), None, distance)


# ---- writing


def write_episodes(
    data: str | os.PathLike, name: str, split: str, episodes: Iterable[Episode], version: str = "v1"
) -> None:
    """Writes a split anew: `SPLIT.json.gz` with an empty list and one file for each scene, as Gibson's are.

    The same episodes give the same bytes. Raises `UserError` where the disk refuses.
    """
    folder = split_folder(data, name, split, version)
    scenes: dict[str, list[dict]] = {}
    for episode in episodes:
        scenes.setdefault(episode.scene_id, []).append(_entry(episode))
    try:
        (folder / "content").mkdir(parents=True, exist_ok=True)
        for old in (folder / "content").glob("*.json.gz"):
            old.unlink()
        _write_file(folder / f"{split}.json.gz", [])
        for scene_id, entries in scenes.items():
            _write_file(folder / "content" / f"{Path(scene_id).stem}.json.gz", entries)
    except OSError as error:
        raise UserError(
            f"cannot write episodes to {folder}: {error.strerror}; free space or take another place"
        ) from None


def _entry(episode: Episode) -> dict:
    return {
        "episode_id": episode.episode_id,
        "scene_id": episode.scene_id,
        "start_position": list(episode.start_position),
        "start_rotation": list(episode.start_rotation),
        "goals": [{"position": list(episode.goal_position), "radius": episode.goal_radius}],
        "info": {"geodesic_distance": episode.geodesic_distance},
        "shortest_paths": None,
    }


def _write_file(path: Path, entries: list[dict]) -> None:
    text = json.dumps({"episodes": entries}, separators=(",", ":")).encode()
    path.write_bytes(gzip.compress(text, compresslevel=6, mtime=0))

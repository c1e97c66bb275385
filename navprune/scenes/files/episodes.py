"""PointNav episode files in Habitat's layout: read, check, sample and write them."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from navprune.errors import UserError, plain
from navprune.scenes.files.packed_json import listed

# Habitat's generator (habitat-lab, datasets/pointnav/pointnav_generator.py).
NEAREST, FARTHEST = 1.0, 30.0  # metres of geodesic distance
MAX_RISE = 0.5  # metres between the heights of start and goal
MIN_ISLAND_RADIUS = 1.5  # metres
STRAIGHT = 1.1  # geodesic/Euclidean ratio below which a pair is kept only sometimes
RETRIES = 10  # starts that are tried for a goal

PREFIX = "data/scene_datasets/"
SUFFIX = ".json.gz"
NAME_ENDINGS = (SUFFIX, ".glb", ".basis")  # in this order; HM3D has X.basis.glb

LONGEST_NAME = 200  # characters of an id


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


Row = tuple[str, str, tuple[float, ...]]
"""Scene id, episode id and an `EpisodeTable`'s twelve numbers."""


class EpisodeTable(Sequence[Episode]):
    """Many episodes in little memory, about 120 bytes each; `Episode`s are made when they are asked for.

    Gibson's training split has five million, which would take gigabytes as objects.
    """

    def __init__(self, scenes: Sequence[str], scene: NDArray[np.int32], ids: NDArray, numbers: NDArray) -> None:
        """Ids of the scenes, and for each episode the index of its scene [N], its id [N] and its numbers [N, 12].

        The numbers are start (3), rotation (4), goal (3), goal radius (NaN for none) and geodesic distance.
        """
        self._scenes, self._scene, self._ids, self._numbers = scenes, scene, ids, numbers

    def __len__(self) -> int:
        return len(self._scene)

    @overload
    def __getitem__(self, index: int) -> Episode: ...

    @overload
    def __getitem__(self, index: slice) -> EpisodeTable: ...

    def __getitem__(self, index: int | slice) -> Episode | EpisodeTable:
        if isinstance(index, slice):
            return self._part(index)
        row = self._numbers[index].tolist()
        radius = None if math.isnan(row[10]) else row[10]
        scene, name = self._scenes[self._scene[index]], str(self._ids[index])
        return Episode(name, scene, tuple(row[:3]), tuple(row[3:7]), tuple(row[7:10]), radius, row[11])

    @classmethod
    def of(cls, episodes: Sequence[Episode]) -> EpisodeTable:
        """The table of any episodes; a table is returned as it is."""
        if isinstance(episodes, cls):
            return episodes
        columns = _Columns()
        columns.add((episode.scene_id, episode.episode_id, _numbers_of(episode)) for episode in episodes)
        return columns.table()

    def by_scene(self) -> dict[str, EpisodeTable]:
        """The episodes of each scene that has any, in their order; without a copy where they stand together."""
        order = np.argsort(self._scene, kind="stable")
        cuts = np.searchsorted(self._scene[order], np.arange(1, len(self._scenes)))
        tables = {}
        for scene, rows in zip(self._scenes, np.split(order, cuts)):
            if len(rows):
                together = rows[-1] - rows[0] + 1 == len(rows)
                tables[scene] = self._part(slice(rows[0], rows[-1] + 1) if together else rows)
        return tables

    @property
    def scene_numbers(self) -> NDArray[np.int32]:
        """The number of each episode's scene [N]."""
        return self._scene

    def starts_and_goals(self) -> NDArray[np.float64]:
        """Where the episodes begin and end: positions [N, 6] in metres."""
        return self._numbers[:, [0, 1, 2, 7, 8, 9]]

    def digest(self) -> str:
        """What tells these episodes, in this order, from others."""
        names = "\n".join(f"{self._scenes[scene]}\t{name}" for scene, name in zip(self._scene, self._ids.tolist()))
        return hashlib.sha256(names.encode() + self.starts_and_goals().tobytes()).hexdigest()

    def _part(self, rows: slice | NDArray[np.int64]) -> EpisodeTable:
        return EpisodeTable(self._scenes, self._scene[rows], self._ids[rows], self._numbers[rows])


class _Columns:
    """Gathers episodes into a table."""

    def __init__(self) -> None:
        self.scenes: dict[str, int] = {}
        self._scene, self._numbers = array("i"), array("d")
        self._ids: list[NDArray] = []

    def add(self, rows: Iterable[Row]) -> None:
        """Adds the episodes of a file."""
        ids: list[str] = []
        for scene, episode_id, numbers in rows:
            self._scene.append(self.scenes.setdefault(scene, len(self.scenes)))
            self._numbers.extend(numbers)
            ids.append(episode_id)
        if ids:
            self._ids.append(np.array(ids))

    def table(self) -> EpisodeTable:
        """What was gathered."""
        numbers = np.frombuffer(self._numbers).reshape(-1, 12)
        ids = np.concatenate(self._ids) if self._ids else np.array([], "U1")
        return EpisodeTable(list(self.scenes), np.frombuffer(self._scene, np.int32), ids, numbers)


def _numbers_of(episode: Episode) -> tuple[float, ...]:
    radius = math.nan if episode.goal_radius is None else episode.goal_radius
    places = (*episode.start_position, *episode.start_rotation, *episode.goal_position)
    return (*places, radius, episode.geodesic_distance)


# ---- where things lie


def scene_path(data: str | os.PathLike, scene_id: str) -> Path:
    """The GLB file of a scene: `scene_id` less a leading `data/scene_datasets/`, under `scene_datasets`."""
    return Path(data) / "scene_datasets" / scene_id.removeprefix(PREFIX)


def scene_name(scene_id: str) -> str:
    """What a scene is called: the name of its file or of its episodes' less `.glb`, `.basis.glb` or `.json.gz`."""
    name = Path(scene_id).name
    for ending in NAME_ENDINGS:
        name = name.removesuffix(ending)
    return name


def split_folder(data: str | os.PathLike, name: str, split: str, version: str = "v1") -> Path:
    """Where the episodes of a split lie."""
    return Path(data) / "datasets" / "pointnav" / name / version / split


def split_files(data: str | os.PathLike, name: str, split: str, version: str = "v1") -> tuple[Path, list[Path]]:
    """A split's own file and those of its scenes in `content`, by name; `UserError` where there is no such split."""
    folder = split_folder(data, name, split, version)
    index = folder / f"{split}{SUFFIX}"
    if not index.is_file():
        raise UserError(f"no split '{split}' at {index}; generate the data set or check its folder and name")
    return index, sorted((folder / "content").glob("*" + SUFFIX))


# ---- reading


def read_episodes(
    data: str | os.PathLike, name: str, split: str, version: str = "v1", scenes: Sequence[str] | None = None
) -> EpisodeTable:
    """All episodes of a split: those of `SPLIT.json.gz`, then of each file in `content`, by name.

    `scenes` keeps those scenes alone, by name ("Adrian"; a text is one name), and leaves the files of others unread.
    Raises `UserError` where the split or one of its scenes is missing or a file is damaged.
    """
    index, contents = split_files(data, name, split, version)
    wanted = None if scenes is None else set(map(scene_name, [scenes] if isinstance(scenes, str) else scenes))
    if wanted is not None:
        contents = [path for path in contents if scene_name(path.name) in wanted]
    columns = _Columns()
    for path in (index, *contents):
        rows = _read_file(path)
        columns.add(rows if wanted is None else (row for row in rows if scene_name(row[0]) in wanted))
    absent = sorted((wanted or set()) - set(map(scene_name, columns.scenes)))
    if absent:
        raise UserError(
            f"{index.parent} has no episodes in scene {absent[0]}; choose others (data.scenes, null for all)"
        )
    if not columns.scenes:
        raise UserError(f"{index.parent} holds no episodes; generate the data set anew")
    _check_scenes_exist(data, split, sorted(columns.scenes))
    return columns.table()


def _check_scenes_exist(data: str | os.PathLike, split: str, scenes: Sequence[str]) -> None:
    missing = [path for path in (scene_path(data, scene) for scene in scenes) if not path.is_file()]
    if missing:
        which = f"scene {missing[0]} of split '{split}' is missing"
        more = f", as are {len(missing) - 1} more of its {len(scenes)}" if len(missing) > 1 else ""
        raise UserError(f"{which}{more}; put it there or check the data folder (`navprune doctor`)")


def split_scenes(data: str | os.PathLike, name: str, split: str, version: str = "v1") -> list[str]:
    """The scene ids of a split, sorted: all of `SPLIT.json.gz` and the first of each file in `content`.

    Raises `UserError` for a missing split or damaged file; whether the scenes exist is not looked at.
    """
    index, contents = split_files(data, name, split, version)
    scenes = {scene for scene, _, _ in _read_file(index)}
    for path in contents:
        scenes.update(scene for scene, _, _ in islice(_read_file(path), 1))
    return sorted(scenes)


def count_episodes(data: str | os.PathLike, name: str, split: str, version: str = "v1") -> int:
    """How many episodes a split has; raises `UserError` for a missing split or damaged file."""
    index, contents = split_files(data, name, split, version)
    return sum(1 for path in (index, *contents) for _ in _read_file(path))


def _read_file(path: Path) -> Iterator[Row]:
    """The episodes of a file, one at a time; raises `UserError` where it is damaged."""
    count = 0
    try:
        for entry in listed(path, "episodes"):
            yield _row(entry)
            count += 1
    except _BadFieldError as error:
        raise UserError(f"{path}: episode {count} has a bad {error}; mend or generate it again") from None
    except LookupError:
        raise UserError(f"{path} has no list of episodes; it is no PointNav episode file") from None
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise UserError(f"{path} is cut off or damaged ({error}); copy or generate it again") from None


class _BadFieldError(Exception):
    """A field of an entry, and what is wrong with it."""


def _row(entry: Any) -> Row:
    """One entry of a file; raises `_BadFieldError`."""
    field = "scene_id"
    try:
        scene = _name(entry[field])
        field = "start_position"
        start = _numbers(entry[field], 3)
        field = "start_rotation"
        rotation = _numbers(entry[field], 4)
        if abs(math.hypot(*rotation) - 1.0) > 1e-2:
            raise ValueError("not a unit quaternion")
        field = "goals"
        target = entry[field][0]
        goal = _numbers(target["position"], 3)
        radius = target.get("radius")
        (radius,) = (math.nan,) if radius is None else _numbers([radius], 1)
        field = "info.geodesic_distance"
        (distance,) = _numbers([entry["info"]["geodesic_distance"]], 1)
        field = "episode_id"
        number = entry[field]
        return (
            scene,
            _name(str(number) if type(number) is int else number),
            (*start, *rotation, *goal, radius, distance),
        )
    except KeyError as error:
        raise _BadFieldError(f"{field}: {error} is missing") from None
    except IndexError:
        raise _BadFieldError(f"{field}: it is empty") from None
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _BadFieldError(f"{field}: {plain(error)}") from None


def _name(value: Any) -> str:
    if type(value) is not str or not 0 < len(value) <= LONGEST_NAME or not value.isprintable():
        raise ValueError(f"not a name of at most {LONGEST_NAME} printable characters")
    return value


def _numbers(values: Any, count: int) -> tuple[float, ...]:
    if type(values) is not list or len(values) != count or not set(map(type, values)) <= {int, float}:
        raise ValueError("not a number" if count == 1 else f"not {count} numbers")
    numbers = tuple(map(float, values))
    if not all(map(math.isfinite, numbers)):
        raise ValueError("not finite")
    return numbers


def check_episodes(episodes: Sequence[Episode], pathfinder: Navigator, source: str = "") -> None:
    """Raises `UserError` for the first episode of one scene that cannot be run there.

    Its start must lie on the navmesh and its goal must be reachable. `source` names the file in the message.
    """
    if not episodes:
        return
    starts, goals = np.split(EpisodeTable.of(episodes).starts_and_goals(), 2, axis=1)
    on_floor = pathfinder.is_navigable(starts)
    reachable = np.isfinite(pathfinder.geodesic_distance(starts, goals))
    for row in np.flatnonzero(~(on_floor & reachable))[:1]:
        episode = episodes[int(row)]
        fault = "its goal cannot be reached" if on_floor[row] else "its start is off the navmesh"
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
        for old in (folder / "content").glob("*" + SUFFIX):
            old.unlink()
        _write_file(folder / (split + SUFFIX), [])
        for scene_id, entries in scenes.items():
            _write_file(folder / "content" / (scene_name(scene_id) + SUFFIX), entries)
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

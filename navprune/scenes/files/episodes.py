"""PointNav episode files in Habitat's layout: read, check and write them."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from navprune.errors import UserError, plain
from navprune.scenes.files.packed_json import listed
from navprune.scenes.files.places import SCENES, existing

if TYPE_CHECKING:
    from navprune.simulator.pathfinder import PathFinder

PREFIX = "data/scene_datasets/"
SUFFIX = ".json.gz"
NAME_ENDINGS = (SUFFIX, *SCENES, ".basis")  # in this order; HM3D has X.basis.glb

LONGEST_NAME = 200  # characters of an id


@dataclass(frozen=True, slots=True)
class Episode:
    """One task: go from a start to a goal. Metres in Habitat's frame, rotations `[x, y, z, w]`.

    `episode_id` may restart in every scene: `(scene_id, episode_id)` is the key. `geodesic_distance` is None where
    the file does not say it; measures go by the distance at reset.
    """

    episode_id: str
    scene_id: str
    start_position: tuple[float, ...]
    start_rotation: tuple[float, ...]
    goal_position: tuple[float, ...]
    goal_radius: float | None
    geodesic_distance: float | None


Row = tuple[str, str, tuple[float, ...]]
"""Scene id, episode id and an `EpisodeTable`'s twelve numbers."""


class EpisodeTable(Sequence[Episode]):
    """Many episodes in little memory, about 120 bytes each; `Episode`s are made when they are asked for.

    Gibson's training split has five million, which would take gigabytes as objects.
    """

    def __init__(self, scenes: Sequence[str], scene: NDArray[np.int32], ids: NDArray, numbers: NDArray) -> None:
        """Ids of the scenes, and for each episode the index of its scene [N], its id [N] and its numbers [N, 12].

        The numbers are start (3), rotation (4), goal (3), goal radius and geodesic distance (NaN for none).
        """
        self.scenes, self._scene, self._ids, self._numbers = scenes, scene, ids, numbers

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
        radius, distance = (None if math.isnan(number) else number for number in row[10:])
        scene, name = self.scenes[self._scene[index]], str(self._ids[index])
        return Episode(name, scene, tuple(row[:3]), tuple(row[3:7]), tuple(row[7:10]), radius, distance)

    @classmethod
    def of(cls, episodes: Sequence[Episode]) -> EpisodeTable:
        """The table of any episodes; a table is returned as it is."""
        if isinstance(episodes, cls):
            return episodes
        return _gathered([[(episode.scene_id, episode.episode_id, _numbers_of(episode)) for episode in episodes]])

    def by_scene(self) -> dict[str, EpisodeTable]:
        """The episodes of each scene that has any, in their order; without a copy where they stand together."""
        order = np.argsort(self._scene, kind="stable")
        cuts = np.searchsorted(self._scene[order], np.arange(1, len(self.scenes)))
        tables = {}
        for scene, rows in zip(self.scenes, np.split(order, cuts)):
            if len(rows):
                together = rows[-1] - rows[0] + 1 == len(rows)
                tables[scene] = self._part(slice(rows[0], rows[-1] + 1) if together else rows)
        return tables

    @property
    def ids(self) -> list[str]:
        """The id of each episode [N]."""
        return self._ids.tolist()

    @property
    def scene_numbers(self) -> NDArray[np.int32]:
        """The number of each episode's scene [N]."""
        return self._scene

    @property
    def distances(self) -> NDArray[np.float64]:
        """The geodesic distances that the files say, metres [N], NaN where they do not."""
        return self._numbers[:, 11]

    def starts_and_goals(self) -> NDArray[np.float64]:
        """Where the episodes begin and end: positions [N, 6] in metres."""
        return self._numbers[:, [0, 1, 2, 7, 8, 9]]

    def digest(self) -> str:
        """What tells these episodes, in this order, from others."""
        names = "\n".join(f"{self.scenes[scene]}\t{name}" for scene, name in zip(self._scene, self.ids))
        return hashlib.sha256(names.encode() + self.starts_and_goals().tobytes()).hexdigest()

    def _part(self, rows: slice | NDArray[np.int64]) -> EpisodeTable:
        return EpisodeTable(self.scenes, self._scene[rows], self._ids[rows], self._numbers[rows])


def _gathered(files: Iterable[Iterable[Row]]) -> EpisodeTable:
    """A table of the episodes of some files."""
    scenes: dict[str, int] = {}
    scene, numbers = array("i"), array("d")
    ids = [np.array([], "U1")]
    for rows in files:
        names = []
        for scene_id, episode_id, values in rows:
            scene.append(scenes.setdefault(scene_id, len(scenes)))
            numbers.extend(values)
            names.append(episode_id)
        ids.append(np.array(names, str))
    table = np.frombuffer(numbers).reshape(-1, 12)
    return EpisodeTable(list(scenes), np.frombuffer(scene, np.int32), np.concatenate(ids), table)


def _numbers_of(episode: Episode) -> tuple[float, ...]:
    places = (*episode.start_position, *episode.start_rotation, *episode.goal_position)
    options = episode.goal_radius, episode.geodesic_distance
    return (*places, *(math.nan if number is None else number for number in options))


# ---- where things lie


def scene_path(data: str | os.PathLike, scene_id: str) -> Path:
    """The file of a scene: `scene_id` less a leading `data/scene_datasets/`, under `scene_datasets`.

    Where only its twin is there, X.glb for X.basis.glb or X.gltf or the other way round, it is that one.
    """
    return existing(Path(data) / "scene_datasets" / scene_id.removeprefix(PREFIX))


def scene_name(scene_id: str) -> str:
    """What a scene is called: the name of its file or of its episodes' less the endings of such files."""
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
    if scenes is not None and not scenes:
        raise UserError("data.scenes names no scene, which leaves no episodes; name some, or give null for all")
    table = skim_episodes(data, name, split, version, scenes)
    folder = split_folder(data, name, split, version)
    absent = sorted(_names(scenes) - _names(table.scenes))
    if absent:
        raise UserError(f"{folder} has no episodes in scene {absent[0]}; choose others (data.scenes, null for all)")
    if not table.scenes:
        raise UserError(f"{folder} holds no episodes; generate the data set anew")
    missing = [path for scene in sorted(table.scenes) if not (path := scene_path(data, scene)).is_file()]
    if missing:
        more = f", as are {len(missing) - 1} more of its {len(table.scenes)}" if len(missing) > 1 else ""
        remedy = "put it there or check the data folder (`navprune doctor`)"
        raise UserError(f"scene {missing[0]} of split '{split}' is missing{more}; {remedy}")
    return table


def _names(scenes: Sequence[str] | None) -> set[str]:
    """The scenes' names; a text is one scene."""
    return set(map(scene_name, [scenes] if isinstance(scenes, str) else scenes or ()))


def skim_episodes(
    data: str | os.PathLike,
    name: str,
    split: str,
    version: str = "v1",
    scenes: Sequence[str] | None = None,
    each: int | None = None,
) -> EpisodeTable:
    """The episodes of `SPLIT.json.gz` and the first `each` (None: all) of each in `content`, of some scenes or all.

    Raises `UserError` for a missing split or a damaged file; whether the scenes exist is not looked at.
    """
    index, contents = split_files(data, name, split, version)
    wanted = _names(scenes)
    if scenes is not None:
        contents = [path for path in contents if scene_name(path.name) in wanted]
    files = [_read_file(index), *(islice(_read_file(path), each) for path in contents)]
    return _gathered((row for row in file if scenes is None or scene_name(row[0]) in wanted) for file in files)


def check_ids(episodes: EpisodeTable, split: str) -> None:
    """Raise `UserError` where two episodes of a scene have one id: what is measured is told apart by it."""
    for scene, part in episodes.by_scene().items():
        ids = part.ids
        if len(set(ids)) < len(ids):
            (twice, count), *_ = Counter(ids).most_common(1)
            fault = f"split '{split}' has {count} episodes {twice} in scene {scene}"
            raise UserError(f"{fault}; give each an id of its own, or drop files that are there twice")


def _read_file(path: Path) -> Iterator[Row]:
    """The episodes of a file, one at a time; raises `UserError` where it is damaged."""
    count = 0
    try:
        for entry in listed(path, "episodes"):
            yield _row(entry)
            count += 1
    except _BadFieldError as error:
        raise UserError(f"{path}: episode {count} has a fault in {error}; mend or generate it again") from None
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
        if len(entry[field]) > 1:
            raise ValueError(f"there are {len(entry[field])}, and PointNav takes one an episode here")
        target = entry[field][0]
        goal = _numbers(target["position"], 3)
        radius = _optional(target.get("radius"))
        field = "info.geodesic_distance"
        distance = _optional((entry.get("info") or {}).get("geodesic_distance"))
        field = "episode_id"
        number = entry[field]
        name = _name(str(number) if type(number) is int else number)
        return scene, name, (*start, *rotation, *goal, radius, distance)
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


def _optional(value: Any) -> float:
    """A length, NaN where there is none."""
    number = math.nan if value is None else _numbers([value], 1)[0]
    if number < 0:
        raise ValueError(f"{number:g} is negative")
    return number


def episode_faults(episodes: EpisodeTable, pathfinder: PathFinder) -> dict[int, str]:
    """What keeps episodes of one scene from being run, by row: a start off the navmesh, a goal out of reach."""
    starts, goals = np.split(episodes.starts_and_goals(), 2, axis=1)
    on_floor = pathfinder.is_navigable(starts)
    reachable = np.isfinite(pathfinder.geodesic_distance(starts, goals))
    return {
        int(row): "its goal cannot be reached" if on_floor[row] else "its start is off the navmesh"
        for row in np.flatnonzero(~(on_floor & reachable))
    }


def check_episodes(episodes: Sequence[Episode], pathfinder: PathFinder) -> None:
    """Raise `UserError` for the first episode of one scene that cannot be run there.

    Its start must lie on the navmesh and its goal must be reachable.
    """
    for row, fault in episode_faults(EpisodeTable.of(episodes), pathfinder).items():
        episode = episodes[row]
        remedy = "use the navmesh that the episodes were made with, or drop it"
        raise UserError(f"episode {episode.episode_id} of {episode.scene_id}: {fault}; {remedy}")


# ---- writing


def write_episodes(
    data: str | os.PathLike, name: str, split: str, episodes: Iterable[Episode], version: str = "v1"
) -> None:
    """Write a split anew: `SPLIT.json.gz` with an empty list and one file for each scene, as Gibson's are.

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
        reason = f"{error.strerror}; free space or take another place"
        raise UserError(f"cannot write episodes to {folder}: {reason}") from None


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

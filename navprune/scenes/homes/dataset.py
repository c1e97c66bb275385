"""Writes a procedural PointNav data set of homes in Habitat's layout, with its statistics and drawn plans."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from navprune.errors import UserError
from navprune.machine import cores
from navprune.scenes.files.episodes import Episode, scene_path, split_folder, write_episodes
from navprune.scenes.files.navmesh import read_navmesh
from navprune.scenes.homes.build import write_home
from navprune.scenes.homes.floorplan import LARGEST, SMALLEST, FloorPlan, draw_plan
from navprune.scenes.homes.plans import Drawing, draw_plans
from navprune.scenes.homes.sampling import sample_episodes
from navprune.scenes.homes.scan import DENSEST, SPARSEST, write_scan
from navprune.simulator.pathfinder import PathFinder

HARD_RATIO = 1.5  # geodesic/Euclidean ratio from which an episode counts as hard
SPLITS = ("train", "val")
STYLES = {"plain": "homes", "scan": "scans"}  # and what their data sets are called
DENSITY = 10_000  # triangles of a scan for each square metre of floor
DRAWN = 12  # plans on a split's picture
Range = tuple[float, float]


@dataclass(frozen=True)
class Spread:
    """Least, mean and largest value."""

    low: float
    mean: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of some values."""
        numbers = np.array(list(values), float)
        return cls(float(numbers.min()), float(numbers.mean()), float(numbers.max()))


@dataclass(frozen=True)
class SplitStatistics:
    """What a split holds; areas in square metres, distances in metres.

    `ratio` is geodesic/Euclidean distance; `hard_share` is the share of episodes with at least `HARD_RATIO`.
    """

    scenes: int
    episodes: int
    area: Spread
    navigable_area: Spread
    rooms: Spread
    triangles: Spread
    geodesic: Spread
    euclidean: Spread
    ratio: Spread
    hard_share: float


@dataclass(frozen=True)
class DatasetStatistics:
    """What a generated data set holds, by split, and the recipe that gives it again; density is that of scans."""

    name: str
    seed: int
    asked_area: Range
    splits: dict[str, SplitStatistics]
    density: int | None = None


class _Job(NamedTuple):
    """One home to make: all that its bytes hang on, and where they go."""

    data: Path
    name: str
    split: str
    number: int
    seed: int
    area: Range
    episodes: int
    density: int | None

    @property
    def scene(self) -> str:
        return f"{self.split}_{self.number:04d}"

    @property
    def scene_id(self) -> str:
        return f"{self.name}/{self.scene}.glb"

    def rng(self, use: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, SPLITS.index(self.split), self.number, use])

    def plan(self) -> FloorPlan:
        return draw_plan(self.rng(0), self.area)

    def pathfinder(self) -> PathFinder:
        return PathFinder(read_navmesh(scene_path(self.data, self.scene_id).with_suffix(".navmesh")))


class _Home(NamedTuple):
    """What a worker reports of the home that it made."""

    digest: str
    area: float
    navigable_area: float
    rooms: int
    triangles: int
    episodes: list[Episode]


def generate_dataset(
    out: str | os.PathLike,
    name: str | None = None,
    train: int = 20,
    val: int = 5,
    seed: int = 0,
    area: Range = (SMALLEST, LARGEST),
    episodes_per_scene: int = 1000,
    val_episodes_per_scene: int = 50,
    style: str = "plain",
    density: int | None = None,
    workers: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> DatasetStatistics:
    """Write `train` and `val` homes with episodes, statistics and drawn plans under `out`.

    The same arguments give the same bytes, for any number of `workers` (processes; None: one for each core).
    `area` bounds the floor area in square metres; `style` is "plain" or "scan", and `density` how many triangles a scan
    has for each of them; `name` is "homes" or "scans" where none is given; `progress(done)` is called after each home.
    A data set that this function wrote before is replaced; `statistics.json` comes last and marks completion.
    Raises `UserError` for impossible arguments, for a foreign data set of that name, for a disk that refuses.
    """
    _check(area, train, val, episodes_per_scene, val_episodes_per_scene, seed)
    of_scans = _density(style, density)
    data, name = Path(out), name or STYLES[style]
    folder = split_folder(data, name, "train").parent
    # From the first step to the last one of the two stands there and tells that the set is ours.
    complete, unfinished = folder / "statistics.json", folder / "unfinished"
    if folder.exists() and not (complete.exists() or unfinished.exists()):
        raise UserError(f"{folder} holds a data set from elsewhere; choose another name or folder")
    asked = (("train", train, episodes_per_scene), ("val", val, val_episodes_per_scene))
    jobs = [
        _Job(data, name, split, i, seed, area, each, of_scans) for split, count, each in asked for i in range(count)
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
        complete.unlink(missing_ok=True)
        (data / "scene_datasets" / name).mkdir(parents=True, exist_ok=True)
        homes: list[_Home] = []
        for home in _run(jobs, workers or cores()):
            homes.append(home)
            progress(len(homes))
        if len({home.digest for home in homes}) < len(homes):
            raise UserError(f"two homes of seed {seed} share a plan; take another seed")
        statistics = {}
        for split in SPLITS:
            members = [pair for pair in zip(jobs, homes) if pair[0].split == split]
            statistics[split] = _statistics([home for _, home in members])
            write_episodes(data, name, split, [episode for _, home in members for episode in home.episodes])
            draw_plans([_drawing(*pair) for pair in members[:DRAWN]], folder / f"{split}.png")
        summary = DatasetStatistics(name, seed, area, statistics, of_scans)
        known = {key: value for key, value in asdict(summary).items() if value is not None}
        complete.write_text(json.dumps(known, indent=1) + "\n")
        unfinished.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {data}: {error.strerror}; free space or take another place") from None
    return summary


def _check(area: Range, train: int, val: int, train_episodes: int, val_episodes: int, seed: int) -> None:
    if not SMALLEST <= area[0] < area[1] <= LARGEST:
        raise UserError(f"area {area[0]:g} to {area[1]:g} m2 is no range within {SMALLEST:g} to {LARGEST:g}; change it")
    if min(train, val, train_episodes, val_episodes) < 1:
        raise UserError("a data set needs at least one train and one val scene, with one episode in each")
    if seed < 0:
        raise UserError(f"seed {seed} is negative; take 0 or more")


def _density(style: str, density: int | None) -> int | None:
    """The density of a style's homes, `DENSITY` for scans where None is asked; None for plain ones."""
    if style not in STYLES:
        raise UserError(f"there is no style {style} of homes; take {' or '.join(STYLES)}")
    if style == "plain":
        if density is not None:
            raise UserError("plain homes have no density of triangles; leave it out, or ask for style scan")
        return None
    density = DENSITY if density is None else density
    if not SPARSEST <= density <= DENSEST:
        raise UserError(f"density {density} is not within {SPARSEST} to {DENSEST} triangles for each m2; change it")
    return density


def _run(jobs: list[_Job], workers: int) -> Iterable[_Home]:
    """The homes of all jobs, in their order."""
    if workers == 1:
        yield from map(_make_home, jobs)
        return
    # Forked workers could inherit locks that numerical libraries' threads hold.
    others = active_children()
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(_make_home, jobs)
        except BaseException:  # Ctrl-C, too: a scan takes half a minute, for which nobody wants to wait
            for worker in set(active_children()) - set(others):
                worker.terminate()
            raise


def _make_home(job: _Job) -> _Home:
    """Draw, write and populate one home."""
    plan = job.plan()
    path = scene_path(job.data, job.scene_id)
    triangles = write_home(path, plan) if job.density is None else write_scan(path, plan, job.density)
    pathfinder = job.pathfinder()
    episodes = sample_episodes(pathfinder, job.scene_id, job.episodes, job.rng(1))
    return _Home(plan.digest(), plan.area, pathfinder.navigable_area, len(plan.rooms), triangles, episodes)


def _drawing(job: _Job, home: _Home) -> Drawing:
    """The plan of a home with the longest of its first episodes."""
    episode = max(home.episodes[:10], key=lambda episode: episode.geodesic_distance or 0.0)
    way = job.pathfinder().find_path(np.array(episode.start_position), np.array(episode.goal_position))
    title = f"{job.scene}: {home.area:.0f} m², {home.triangles // 1000}k triangles, path {way.distance:.1f} m"
    return Drawing(title, job.plan(), np.asarray(way.points))


def _statistics(homes: list[_Home]) -> SplitStatistics:
    episodes = [episode for home in homes for episode in home.episodes]
    geodesic = np.array([episode.geodesic_distance for episode in episodes])
    shifts = np.array([np.subtract(episode.goal_position, episode.start_position) for episode in episodes])
    euclidean = np.linalg.norm(shifts, axis=1)
    ratio = geodesic / euclidean
    columns = {"geodesic": geodesic, "euclidean": euclidean, "ratio": ratio}
    for key in ("area", "navigable_area", "rooms", "triangles"):
        columns[key] = np.array([getattr(home, key) for home in homes])
    spreads = {key: Spread.of(values) for key, values in columns.items()}
    return SplitStatistics(len(homes), len(episodes), **spreads, hard_share=float((ratio >= HARD_RATIO).mean()))

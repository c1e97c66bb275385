"""Writes a procedural PointNav data set of homes in Habitat's layout, with its statistics and drawn plans."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from navprune.errors import UserError
from navprune.scenes.episodes import Episode, sample_episodes, split_folder, write_episodes
from navprune.scenes.floorplan import FloorPlan, draw_plan
from navprune.scenes.homes import write_home
from navprune.scenes.navmesh import read_navmesh
from navprune.simulator.pathfinder import PathFinder

HARD_RATIO = 1.5  # geodesic/Euclidean ratio from which an episode counts as hard
SPLITS = ("train", "val")


@dataclass(frozen=True)
class SplitStatistics:
    """Means over a split; areas in square metres, distances in metres.

    `hard_share` is the share of episodes whose geodesic/Euclidean ratio is at least `HARD_RATIO`.
    """

    scenes: int
    episodes: int
    area: tuple[float, float, float]
    navigable_area: float
    rooms: tuple[int, int]
    triangles: tuple[int, int]
    geodesic: float
    geodesic_percentiles: tuple[float, float, float]
    euclidean: float
    ratio: float
    hard_share: float


@dataclass(frozen=True)
class DatasetStatistics:
    """What a generated data set holds, by split."""

    name: str
    seed: int
    splits: dict[str, SplitStatistics]


@dataclass(frozen=True)
class _Home:
    """What a worker reports of one home."""

    digest: str
    area: float
    navigable_area: float
    rooms: int
    triangles: int
    episodes: list[Episode]


def generate_dataset(
    out: str | os.PathLike,
    name: str = "homes",
    train: int = 20,
    val: int = 5,
    seed: int = 0,
    area: tuple[float, float] = (40.0, 200.0),
    episodes_per_scene: int = 1000,
    val_episodes_per_scene: int = 50,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DatasetStatistics:
    """Writes `train` and `val` homes with episodes under `out`; the same arguments give the same bytes.

    `area` bounds the floor area in square metres; `workers` is the number of processes (None: one for each core);
    `progress(done, total)` is called after each home. Raises `UserError` for impossible arguments.
    """
    if not 25.0 <= area[0] < area[1] <= 400.0:
        raise UserError(f"area {area[0]:g} to {area[1]:g} m2 is impossible; ask for a range within 25 to 400")
    if train < 1 or val < 1 or episodes_per_scene < 1 or val_episodes_per_scene < 1:
        raise UserError("a data set needs at least one train and one val scene with one episode each")
    data = Path(out)
    (data / "scene_datasets" / name).mkdir(parents=True, exist_ok=True)
    jobs = [(data, name, "train", i, seed, area, episodes_per_scene) for i in range(train)]
    jobs += [(data, name, "val", i, seed, area, val_episodes_per_scene) for i in range(val)]
    homes = []
    for home in _run(jobs, min(workers or os.cpu_count() or 1, len(jobs))):
        homes.append(home)
        progress(len(homes), len(jobs))
    if len({home.digest for home in homes}) < len(homes):
        raise UserError(f"two homes of seed {seed} share a plan; take another seed")
    splits = {"train": homes[:train], "val": homes[train:]}
    for split, members in splits.items():
        write_episodes(data, name, split, [episode for home in members for episode in home.episodes])
    statistics = DatasetStatistics(name, seed, {split: _statistics(m) for split, m in splits.items()})
    folder = split_folder(data, name, "train").parent
    (folder / "statistics.json").write_text(json.dumps(asdict(statistics), indent=1) + "\n")
    return statistics


def _run(jobs: list[tuple], workers: int) -> Iterable[_Home]:
    if workers == 1:
        yield from (_make_home(job) for job in jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_make_home, jobs)


def _plan(split: str, index: int, seed: int, area: tuple[float, float]) -> FloorPlan:
    return draw_plan(np.random.default_rng([seed, SPLITS.index(split), index, 0]), area)


def _make_home(job: tuple) -> _Home:
    """Draws, writes and populates one home; everything random hangs on the seed, the split and the index."""
    data, name, split, index, seed, area, count = job
    plan = _plan(split, index, seed, area)
    scene = f"{split}_{index:04d}"
    folder = data / "scene_datasets" / name
    triangles = write_home(folder, scene, plan)
    pathfinder = PathFinder(read_navmesh(folder / f"{scene}.navmesh"))
    rng = np.random.default_rng([seed, SPLITS.index(split), index, 1])
    episodes = sample_episodes(pathfinder, f"{name}/{scene}.glb", count, rng)
    return _Home(plan.digest(), plan.area, pathfinder.navigable_area, len(plan.rooms), triangles, episodes)


def _statistics(homes: list[_Home]) -> SplitStatistics:
    episodes = [episode for home in homes for episode in home.episodes]
    starts, goals, geodesic = _columns(episodes)
    euclidean = np.linalg.norm(starts - goals, axis=1)
    areas = [home.area for home in homes]
    rooms, triangles = [home.rooms for home in homes], [home.triangles for home in homes]
    low, middle, high = np.percentile(geodesic, [5, 50, 95]).tolist()
    return SplitStatistics(
        scenes=len(homes),
        episodes=len(episodes),
        area=(min(areas), float(np.mean(areas)), max(areas)),
        navigable_area=float(np.mean([home.navigable_area for home in homes])),
        rooms=(min(rooms), max(rooms)),
        triangles=(min(triangles), max(triangles)),
        geodesic=float(geodesic.mean()),
        geodesic_percentiles=(low, middle, high),
        euclidean=float(euclidean.mean()),
        ratio=float((geodesic / euclidean).mean()),
        hard_share=float((geodesic / euclidean >= HARD_RATIO).mean()),
    )


def _columns(episodes: list[Episode]) -> tuple[NDArray, NDArray, NDArray]:
    return (
        np.array([episode.start_position for episode in episodes]),
        np.array([episode.goal_position for episode in episodes]),
        np.array([episode.geodesic_distance for episode in episodes]),
    )

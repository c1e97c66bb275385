"""Draws PointNav episodes by the rules of Habitat's generator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from navprune.errors import UserError
from navprune.scenes.files.episodes import Episode

if TYPE_CHECKING:
    from navprune.simulator.pathfinder import PathFinder

# Habitat's generator (habitat-lab, datasets/pointnav/pointnav_generator.py).
NEAREST, FARTHEST = 1.0, 30.0  # metres of geodesic distance
MAX_RISE = 0.5  # metres between the heights of start and goal
MIN_ISLAND_RADIUS = 1.5  # metres
STRAIGHT = 1.1  # geodesic/Euclidean ratio below which a pair is kept only sometimes
RETRIES = 10  # starts that are tried for a goal


def sample_episodes(
    pathfinder: PathFinder, scene_id: str, count: int, rng: Generator, batch: int = 256
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
            half = rng.uniform(0.0, 2 * np.pi) / 2
            rotation = (0.0, float(np.sin(half)), 0.0, float(np.cos(half)))
            start, goal = tuple(starts[row].tolist()), tuple(goals[row].tolist())
            name, distance = str(len(episodes)), float(distances[row])
            episodes.append(Episode(name, scene_id, start, rotation, goal, None, distance))
        if len(episodes) == count:
            return episodes
    raise UserError(f"{scene_id}: only {len(episodes)} of {count} episodes found; the scene is too small or too open")


def _starts_for(goals: NDArray, pathfinder: PathFinder, rng: Generator) -> tuple[NDArray, NDArray[np.float64]]:
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

"""Success, SPL and their confidence over every episode of a split."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from navprune.errors import UserError
from navprune.evaluation.agents import Agent
from navprune.evaluation.statistics import Floats, spreads
from navprune.files import write_file
from navprune.progress import ProgressLine
from navprune.scenes.files.episodes import Episode
from navprune.sensors import SENSORS
from navprune.simulator.pathfinder import PathFinder
from navprune.tasks.engine import Finished, VectorEnv

Key = tuple[str, str]
"""Scene and episode id: ids alone restart with each scene in version 2 of the data sets."""


@dataclass(frozen=True)
class Evaluation:
    """What an agent did on a split.

    `episodes` has one record for each episode in the order of the data set: scene, episode_id and measures.
    `measures` is {name: {"mean", "low", "high"}} with the 95 % interval of the mean over scenes and episodes.
    `against` is what `agents.Compared` found, where another agent went along.
    """

    episodes: list[dict]
    measures: dict[str, dict[str, float]]
    frames_per_second: float
    against: dict[str, Any] | None = None

    def to_json(self, split: str) -> dict:
        """Return the summary that `navprune evaluate --json` writes."""
        count, rate = len(self.episodes), self.frames_per_second
        told = {"split": split, "episodes": count, "measures": self.measures, "frames_per_second": rate}
        return told | ({"against": self.against} if self.against else {})

    @property
    def groups(self) -> list[str]:
        """The scene of each episode, in the order of `in_order`."""
        return [record["scene"] for record in in_order(self.episodes)]

    strata = groups
    """What is drawn anew before the episodes in it: scenes."""

    def values(self, measure: str) -> Floats:
        """A measure [episodes] in the order of `in_order`, which is the same for all runs."""
        return np.array([record[measure] for record in in_order(self.episodes)], dtype=np.float64)

    def over(self, runs: Sequence[Any]) -> Evaluation:
        """This one with the means of several `runs` in the same episodes, and their mean rate."""
        rate = sum(run.frames_per_second for run in runs) / len(runs)
        return replace(self, measures=summarise([run.episodes for run in runs]), frames_per_second=rate)

    def write_episodes(self, path: str | Path) -> None:
        """Write one JSON line for each episode."""
        write_file(Path(path), "".join(json.dumps(record) + "\n" for record in self.episodes).encode())


@dataclass
class Recording:
    """The course of one episode: poses and views, a list for each sensor, before each of its T actions."""

    episode: Episode
    pathfinder: PathFinder
    positions: list[np.ndarray] = field(default_factory=list)
    headings: list[float] = field(default_factory=list)
    views: dict[str, list[np.ndarray]] = field(default_factory=dict)
    measures: dict[str, float] = field(default_factory=dict)


class Recorder:
    """Keeps poses (metres, radians) and images [H, W, channels] of chosen episodes.

    Works over the embedded simulator, whose environments tell `positions`, `headings` and `scene(env)`.
    """

    def __init__(self, keys: Collection[Key]):
        self.keys = frozenset(keys)
        self.recordings: dict[Key, Recording] = {}

    def before_step(self, env: Any, observations: dict[str, Tensor], rows: Iterable[int]) -> None:
        """Note the state of those environments in `rows` that run a chosen episode."""
        for row in rows:
            episode = env.episodes[row]
            if (key := key_of(episode)) not in self.keys:
                continue
            recording = self.recordings.setdefault(key, Recording(episode, env.scene(row).pathfinder))
            recording.positions.append(np.array(env.positions[row]))
            recording.headings.append(float(env.headings[row]))
            for name in SENSORS.keys() & observations.keys():
                recording.views.setdefault(name, []).append(observations[name][row].cpu().numpy().copy())

    def finish(self, finished: Iterable[Finished]) -> None:
        """Attach the measures of the episodes that ended."""
        for end in finished:
            if key_of(end.episode) in self.recordings:
                self.recordings[key_of(end.episode)].measures = end.measures


def evaluate(
    env: VectorEnv,
    agent: Agent,
    episodes: Sequence[Episode],
    seed: int = 0,
    recorder: Recorder | None = None,
    progress: ProgressLine | None = None,
) -> Evaluation:
    """Run `agent` once through all `episodes`, which `env` hands out once each.

    An episode draws its chances from a generator of its own, seeded by `seed`, scene and episode id, so that
    the result is the same for any number of environments. Raises UserError when there is no episode, or when
    two share their scene and id.
    """
    if not episodes:
        raise UserError("nothing to evaluate: the split holds no episode; choose another split")
    if len({key_of(episode) for episode in episodes}) < len(episodes):
        raise UserError("two episodes of the split share scene and episode id; give each an id of its own")
    results: dict[Key, dict[str, float]] = {}
    frames, began = 0, time.perf_counter()
    for active, finished in _steps(env, agent, seed, recorder):
        frames += active
        results |= {key_of(end.episode): end.measures for end in finished}
        if progress is not None and results:
            progress.show(len(results), f"{frames / (time.perf_counter() - began):,.0f} frames/s")
    rate = frames / (time.perf_counter() - began)
    records = []
    for episode in episodes:
        measures = {name: float(value) for name, value in results[key_of(episode)].items()}
        records.append({"scene": episode.scene_id, "episode_id": episode.episode_id} | measures)
    return Evaluation(records, summarise([records]), rate)


def _steps(env: VectorEnv, agent: Agent, seed: int, recorder: Recorder | None) -> Iterator[tuple[int, list[Finished]]]:
    """Step `env` until no episode is left; yield how many environments moved and what ended."""
    generators: dict[int, np.random.Generator] = {}
    agent.start(env.num_envs)
    observations = env.reset()
    masks = torch.zeros(env.num_envs, dtype=torch.bool)
    while env.active.any():
        rows = np.flatnonzero(env.active).tolist()
        for row, episode in enumerate(env.episodes):
            if episode is not None and not masks[row]:
                generators[row] = episode_generator(seed, episode)
        draws = torch.tensor([generators[row].random() for row in rows], dtype=torch.float64)
        if recorder is not None:
            recorder.before_step(env, observations, rows)
        waiting = torch.tensor(rows)
        actions = torch.zeros(env.num_envs, dtype=torch.int64)
        actions[waiting] = agent.act(observations, masks, waiting, draws)
        step = env.step(actions)
        observations, masks = step.observations, ~(step.terminated | step.truncated).cpu()
        if recorder is not None:
            recorder.finish(step.finished)
        yield len(rows), step.finished


def key_of(episode: Episode) -> Key:
    """Return what tells an episode from all others of a split."""
    return episode.scene_id, episode.episode_id


def episode_generator(seed: int, episode: Episode) -> np.random.Generator:
    """Return the generator of one episode, which depends on nothing but the seed and the episode's key."""
    name = json.dumps([seed, *key_of(episode)]).encode()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name).digest()[:16], "little"))


def in_order(records: Iterable[dict]) -> list[dict]:
    """Episode `records` in an order that depends on their scenes and ids alone, the same for all runs."""
    return sorted(records, key=lambda record: (record["scene"], record["episode_id"]))


def summarise(runs: Sequence[Sequence[dict]]) -> dict[str, dict[str, float]]:
    """Return {measure: {"mean", "low", "high"}} over the episode records of `runs` in the same episodes.

    The interval is `statistics.sample`'s, over runs, scenes and episodes.
    """
    runs = [in_order(run) for run in runs]
    first = [run[0] for run in runs]
    names = [name for name in first[0] if name not in ("scene", "episode_id") and all(name in run for run in first)]
    values = {name: np.array([[record[name] for record in run] for run in runs], dtype=np.float64) for name in names}
    return spreads(values, [record["scene"] for record in runs[0]])

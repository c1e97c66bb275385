"""Frames per second of the simulator and of training, on this machine."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from navprune.commands.train import fitting, run_training, worker_count
from navprune.config import AgentConfig, Config, DataConfig
from navprune.machine import cores, resident
from navprune.rl.ppo import PPOConfig
from navprune.rl.trainer import TrainerConfig
from navprune.scenes.files.episodes import read_episodes
from navprune.scenes.homes.dataset import generate_dataset
from navprune.simulator.scene import SceneLibrary
from navprune.tasks.pointnav import PointNavEnv, Shuffled, TaskConfig

# Stops now and then, so that resets count, and mostly walks, so that moving and measuring count.
ACTION_SHARES = (0.005, 0.595, 0.2, 0.2)
DENSITIES = {"plain": None, "scan": 7_200}  # triangles of a style for each m2, about a million in the home of seed 0


def benchmark_simulator(
    data: Path | None = None,
    name: str = "homes",
    widths: Sequence[int] = (64, 128, 256),
    environments: int = 32,
    threads: int | None = None,
    frames: int = 100_000,
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run the full environment step (move, measure, render) with random actions; the result is in the form of --json.

    data holds scenes called name; without it one home is generated, plain and as a scan. Each width is measured over
    `frames` agent steps in ten parts whose median counts; memory (MiB, resident) is that before and after the last of
    them.
    """
    with tempfile.TemporaryDirectory() as folder:
        sets = {"given": (data, name)} if data else _generated(Path(folder), seed, report)
        library = SceneLibrary()
        rows, memory = [], [0.0, 0.0]
        for (style, (place, called)), width in product(sets.items(), widths):
            report(f"measuring {environments} environments at {width} x {width} ({style})")
            env = make_benchmark_env(place, called, width, environments, threads, seed, library)
            env.reset()
            parts = [_frames_per_second(env, frames // 100, seed)]  # compiles and warms up
            memory[0] = resident() / 2**20
            parts = [_frames_per_second(env, frames // 10, seed + part) for part in range(10)]
            memory[1] = resident() / 2**20
            scene, rate = env.scene(0), float(np.median(parts))
            row = {
                "style": style,
                "scene": scene.name,
                "triangles": scene.asset.triangles,
                "width": width,
                "environments": environments,
            }
            rows.append(row | {"threads": threads or cores(), "frames_per_second": rate})
            env.close()
    return {"rows": rows, "memory_mib": memory}


def _generated(data: Path, seed: int, report: Callable[[str], None]) -> dict[str, tuple[Path, str]]:
    """Folder and name of a data set with one training scene in each style, all of the same plan."""
    sets = {}
    for style, density in DENSITIES.items():
        report(f"generating one furnished home ({style})")
        statistics = generate_dataset(data, train=1, val=1, seed=seed, style=style, density=density)
        sets[style] = data, statistics.name
    return sets


def make_benchmark_env(
    data: Path, name: str, width: int, environments: int, threads: int | None, seed: int, library: SceneLibrary
) -> PointNavEnv:
    """A training environment over the split `train` of a data set, with square depth images."""
    episodes = read_episodes(data, name, "train")
    order = Shuffled(len(episodes), environments, seed)
    config = TaskConfig(width=width, height=width)
    return PointNavEnv(episodes, data, order, environments, config, library=library, threads=threads)


def _frames_per_second(env: PointNavEnv, frames: int, seed: int) -> float:
    rng = np.random.default_rng(seed)
    steps = max(1, frames // env.num_envs)
    actions = torch.from_numpy(rng.choice(4, size=(steps, env.num_envs), p=ACTION_SHARES))
    begin = time.perf_counter()
    for row in actions:
        env.step(row)
    return steps * env.num_envs / (time.perf_counter() - begin)


def benchmark_training(
    data: Path | None = None,
    name: str = "homes",
    encoder: str = "resnet18",
    base_planes: int = 32,
    width: int = 128,
    environments: int = 8,
    epochs: int = 4,
    updates: int = 3,
    seed: int = 0,
    workers: Sequence[int] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train with PPO (GRU 512, rollouts of 128 steps) for a few updates after one in which all is compiled and read.

    By each of these numbers of workers, by default 1, 2, 4 and so on to as many as there are cores, of those that can
    share the environments. The JSON form has the frames/s and the seconds of each phase; `network_share` is what acting
    and learning take of the wall time.
    """
    with tempfile.TemporaryDirectory() as folder:
        if data is None:
            data = Path(folder)
            report("generating one furnished home")
            generate_dataset(data, name=name, train=1, val=1, seed=seed)
        agent = AgentConfig(encoder=encoder, base_planes=base_planes)
        ppo, task = PPOConfig(epochs=epochs), TaskConfig(width=width, height=width)
        base = Config(
            environments=environments, data=DataConfig(folder=str(data), name=name), task=task, agent=agent, ppo=ppo
        )
        rows: list[dict[str, Any]] = []
        frames = ppo.steps * environments
        for count in workers or _some(fitting(base), worker_count(base)):
            report(f"training {encoder} on {environments} environments at {width} x {width} with workers={count}")
            # Workers begin anew with each run: what the first update takes of it is taken off again.
            trainers = [TrainerConfig(total_frames=n * frames, seed=seed, workers=count) for n in (1, 1, 1 + updates)]
            runs = [replace(base, run=f"{folder}/{count}-{i}", trainer=own) for i, own in enumerate(trainers)]
            _, short, whole = (run_training(run).seconds for run in runs)
            seconds = {phase: max(0.0, whole[phase] - short[phase]) for phase in whole}
            row = {"encoder": encoder, "base_planes": base_planes, "width": width, "environments": environments}
            row |= {"workers": count, "frames_per_second": updates * frames / sum(seconds.values())}
            rows.append(row | {"network_share": (seconds["policy"] + seconds["learn"]) / sum(seconds.values()),
                               "seconds": seconds})  # fmt: skip
    return {"rows": rows}


def _some(fits: list[int], most: int) -> list[int]:
    """1, 2, 4, ... and the most, of those that fit."""
    return [count for count in fits if count <= most and (count == most or count.bit_count() == 1)]

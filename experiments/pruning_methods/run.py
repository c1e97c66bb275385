"""Measures the cells that results.jsonl lacks; stop it and go on whenever you like.

    .venv/bin/python -m experiments.pruning_methods.run --workers 2

from the repository's root. Ctrl-C lets the cells at work finish.
"""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from experiments.cells import work
from experiments.pruning_methods.grid import CUT, DENSE, PROTOCOLS, RESULTS, SCRATCH, TUNED, Cell, grid, read_results
from navprune.commands.demo import GATE_STEPS, GATES, draw_homes
from navprune.config import load_config
from navprune.costs.counting import cost
from navprune.errors import UserError
from navprune.evaluation.agents import PolicyAgent
from navprune.evaluation.evaluate import evaluate
from navprune.models.build import build
from navprune.models.policy import PointNavPolicy
from navprune.models.spec import EncoderSpec
from navprune.pruning.config import PruningConfig
from navprune.pruning.losses import PPOTask, collect_observations, shuffled_batches
from navprune.pruning.methods import GATES as LEARNED
from navprune.pruning.prune import prune, weights_hash
from navprune.pruning.recover import Distillation
from navprune.rl.callbacks import Callback
from navprune.rl.checkpoints import load_policy
from navprune.rl.monitor import Timers
from navprune.rl.ppo import PPO
from navprune.rl.rollouts import Actor
from navprune.rl.warm_start import WarmStart, WarmStartConfig
from navprune.scenes.files.episodes import EpisodeTable, read_episodes
from navprune.simulator.scene import SceneLibrary
from navprune.tasks.pointnav import EpisodeOrder, Once, PointNavEnv, Shuffled

DATA = Path("runs/pruning_methods/data")
AGENT = Path(__file__).parent / "agent"
DEMO = load_config("demo")
FRAMES = {TUNED: 8192, SCRATCH: 49152}
"""Frames of each network's training."""
TUNING = replace(DEMO.ppo, lr=1e-3, critic_updates=0)
LESSON = 1.0
"""Weight of what the trained agent teaches, of actions and of features alike."""
IMITATION = replace(DEMO.warm_start or WarmStartConfig(), epochs=3.0)
TOLERANCE = 0.03
"""How far below their budget networks may end: one unit of this small network is worth up to so much."""
EVALUATED = 40
"""Episodes that run at once in an evaluation."""
PPO_ROLLOUTS = 4
"""Rollouts on which Taylor scores are measured."""


def main() -> None:
    """Runs what is missing, `workers` cells at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="cells at a time, a core each")
    parser.add_argument("--cells", type=int, help="stop after so many")
    parser.add_argument("--protocol", choices=PROTOCOLS, help="only these cells")
    options = parser.parse_args()
    draw_homes(DATA, DEMO.data.name)
    done = read_results()
    left = [cell for cell in grid() if cell not in done and options.protocol in (None, cell.protocol)][: options.cells]
    work("pruning methods", left, options.workers, measure, RESULTS, told)


def told(record: dict[str, Any]) -> str:
    """What the line of progress says of a cell."""
    outcome = record.get("refused") or f"SPL {np.mean(record['spl']):.3f}"
    where = " ".join(str(record[name]) for name in Cell._fields)
    return f"{where}: {outcome} in {record['seconds']:.0f} s"


def measure(cell: Cell) -> dict[str, Any]:
    """Makes, trains and evaluates the network of a cell."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    record = cell._asdict()
    try:
        policy, found = network(cell)
    except UserError as error:
        return record | {"refused": str(error), "seconds": time.perf_counter() - began}
    record |= found | {"weights": weights_hash(policy)}
    same = twin(record)
    if same is None:
        if cell.protocol in FRAMES:
            train(policy, cell)
        record["spl"] = [round(spl, 4) for spl in evaluated(policy)]
    else:
        record["spl"] = same["spl"]
        record["same_as"] = {name: same[name] for name in Cell._fields}
    return record | {"seconds": round(time.perf_counter() - began, 1)}


def twin(record: dict[str, Any]) -> dict[str, Any] | None:
    """A measured cell that begins with the very same weights and goes on by the same chances: it would end alike."""
    fields = ("protocol", "weights") if record["protocol"] == CUT else ("protocol", "weights", "seed")
    wanted = [record[name] for name in fields]
    return next((r for r in read_results().values() if "spl" in r and [r[name] for name in fields] == wanted), None)


def network(cell: Cell) -> tuple[PointNavPolicy, dict[str, Any]]:
    """The network with which a cell's training begins, and what is to be said of it."""
    torch.manual_seed(cell.seed)  # nothing should draw from it; if anything does, let it be the same again
    trained = load_policy(AGENT).policy
    whole = macs_and_parameters(trained.spec.encoder)
    if cell.method == DENSE:
        policy = cast(PointNavPolicy, build(trained.spec, cell.seed) if cell.protocol == SCRATCH else trained)
    else:
        # Gates and controls of random weights; the widths of any other method come from the trained agent.
        random = cell.protocol == SCRATCH and cell.method != "l1"
        with evidence(cell) as given:
            network = build(trained.spec, cell.seed) if random else trained
            asked = PruningConfig(method=cell.method, budget=f"macs={cell.share}", tolerance=TOLERANCE, gates=GATES)
            result = prune(network, asked, seed=cell.seed, **given)
        policy = cast(PointNavPolicy, result.fresh(cell.seed) if cell.protocol == SCRATCH else result.model)
    reached = macs_and_parameters(policy.spec.encoder)
    return policy, {name: round(reached[name] / whole[name], 4) for name in whole}


def macs_and_parameters(spec: EncoderSpec) -> dict[str, float]:
    """What the budgets refer to: the convention of table 1."""
    counted = cost(spec)
    return {"macs": counted.table1_macs, "parameters": counted.table1_parameters}


@contextmanager
def evidence(cell: Cell) -> Iterator[dict[str, Any]]:
    """What some scores look at: observations with the expert's actions, or rollouts with PPO's loss."""
    if cell.method not in (LEARNED, "activation", "taylor"):
        yield {}
        return
    env = training_env(cell.seed)
    try:
        if cell.method == "taylor":
            task = PPOTask(env, DEMO.ppo, PPO_ROLLOUTS, cell.seed)
            yield {"batches": task.batches, "loss": task.loss}
            return
        data = collect_observations(env, GATE_STEPS, np.random.default_rng(cell.seed))
        epochs = 3 if cell.method == LEARNED else 1
        batches = shuffled_batches(data, 100, epochs, torch.Generator().manual_seed(cell.seed))
        yield {"batches": batches}
    finally:
        env.close()


def train(policy: PointNavPolicy, cell: Cell, callbacks: Sequence[Callback] = ()) -> None:
    """From scratch: the library's warm start. Else: PPO, the trained agent teaching on its pupil's path."""
    env, frames = training_env(cell.seed), FRAMES[cell.protocol]
    generator = torch.Generator().manual_seed(cell.seed)
    actor = Actor(env, policy, device=torch.device("cpu"), generator=generator, timers=Timers())
    actor.reset()
    if cell.protocol == SCRATCH:
        learner: WarmStart | PPO = WarmStart(actor, DATA, IMITATION)
    else:
        teacher = Distillation(load_policy(AGENT).policy, policy.spec, policy=LESSON, features=LESSON)
        learner = PPO(actor, TUNING, [teacher, *callbacks])
    for done in range(0, frames, learner.frames_per_update):
        learner.update(done / frames, done)
    env.close()


def evaluated(policy: PointNavPolicy) -> list[float]:
    """SPL of each validation episode, with sampled actions, by the same chances for every network."""
    episodes = split("val")
    env = environment(episodes, Once(len(episodes)), EVALUATED)
    records = evaluate(env, PolicyAgent(policy, greedy=False, chunk=EVALUATED), episodes).episodes
    env.close()
    return [record["spl"] for record in records]


def training_env(seed: int) -> PointNavEnv:
    """Environments over the training episodes, in an order that depends on the seed alone."""
    episodes = split("train")
    return environment(episodes, Shuffled(len(episodes), DEMO.environments, seed), DEMO.environments)


def environment(episodes: EpisodeTable, order: EpisodeOrder, count: int) -> PointNavEnv:
    """So many environments over episodes of either split."""
    return PointNavEnv(episodes, DATA, order, count, DEMO.task, library=library())


@cache
def split(name: str) -> EpisodeTable:
    """The episodes of a split."""
    return read_episodes(DATA, DEMO.data.name, name)


@cache
def library() -> SceneLibrary:
    """The scenes, loaded once a process."""
    return SceneLibrary()


if __name__ == "__main__":
    main()

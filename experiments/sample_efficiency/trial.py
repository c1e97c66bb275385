"""One training at a fixed budget of CPU time of one thread, then its evaluation in homes that it has not seen.

    python experiments/sample_efficiency/trial.py NAME --seconds 600 --share 0.7 --seed 1 [section.key=value ...]

`--share` is the warm start's part of the budget, PPO has the rest; `--keep FILE` writes the weights in the end, and
`--begin FILE` begins with such ones, so that ways to finish are compared from the same warm start. Schedules follow the
CPU time that is gone, so that candidates are compared at equal cost whatever they spend it on: acting, drawing, the
expert, gradient steps. Appends a line to results.jsonl. Homes are of other seeds than the demo's, on which nothing is
chosen.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from navprune.commands.environments import environment, split_episodes, training_env
from navprune.commands.train import initial_network
from navprune.config import Config, load_config
from navprune.evaluation.agents import PolicyAgent
from navprune.evaluation.evaluate import evaluate
from navprune.models.policy import PointNavPolicy
from navprune.rl.monitor import EpisodeWindow, Timers
from navprune.rl.phases import phases_of
from navprune.rl.rollouts import Actor
from navprune.scenes.homes.dataset import generate_dataset
from navprune.tasks.orders import Once

HERE = Path(__file__).parent
DATA = Path("runs/tuning/data")
SMALL = {"train": 60, "val": 24, "seed": 101, "area": (40.0, 50.0), "val_episodes_per_scene": 10}
LARGE = {"train": 60, "val": 24, "seed": 102, "val_episodes_per_scene": 10}
"""Homes to choose on: as small as the demo's, and of all sizes."""


def main() -> None:
    """Train, evaluate, append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the candidate")
    parser.add_argument("--config", default="demo")
    parser.add_argument("--homes", choices=("small", "large"), default="small")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--begin", type=Path)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("settings", nargs="*")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    draw(options.homes)
    settings = [f"data.folder={DATA}", f"data.name={options.homes}", f"trainer.seed={options.seed}", *options.settings]
    config = load_config(options.config, settings)
    timers, curve = Timers(), []
    policy = initial_network(config)
    if options.begin:
        policy.load_state_dict(torch.load(options.begin))
    for row in train(config, policy, options.share, options.seconds, timers):
        curve.append(row)
        if len(curve) % 10 == 0:
            print(options.name, options.seed, *row, flush=True)
    if options.keep:
        torch.save(policy.state_dict(), options.keep)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    record = given | {"commit": commit, "frames": curve[-1][1], "cpu_seconds": curve[-1][0]}
    record |= {"by_phase": {name: round(seconds, 1) for name, seconds in timers.phases().items()}}
    record |= {way: judged(config, policy, greedy=way == "greedy") for way in ("sampled", "greedy")}
    record["curve"] = curve[:: max(1, len(curve) // 20)]
    with (HERE / "results.jsonl").open("a") as stream:
        stream.write(json.dumps(record) + "\n")
    print({key: value for key, value in record.items() if key != "curve"})


def draw(homes: str) -> None:
    """Write the homes to choose on, unless they are there."""
    if not (DATA / f"datasets/pointnav/{homes}/v1/statistics.json").is_file():
        generate_dataset(DATA, name=homes, **{"small": SMALL, "large": LARGE}[homes])


def train(
    config: Config, policy: PointNavPolicy, share: float, seconds: float, timers: Timers
) -> Iterator[tuple[float, int, str, float]]:
    """Train until the budget is spent; yields CPU seconds, frames, phase and SPL of recent episodes."""
    env, generator = training_env(config), torch.Generator().manual_seed(config.trainer.seed)
    actor = Actor(env, policy, device=torch.device("cpu"), generator=generator, timers=timers)
    actor.reset()
    for _ in range(3):  # whatever is compiled at its first call
        env.expert_actions()
        actor.step(torch.ones(env.num_envs, dtype=torch.int64), actor.state)
    actor.reset()
    began, frames, ends = time.process_time(), 0, {"warm_start": share * seconds, "ppo": seconds}
    with tempfile.TemporaryDirectory() as folder:
        for phase in phases_of(config.ppo, config.warm_start):
            start, end = time.process_time() - began, ends[phase.name]
            if start >= end:
                continue
            learner, window = phase.begin(actor, Path(folder)), EpisodeWindow(100)
            while (spent := time.process_time() - began) < end:
                frames += learner.update((spent - start) / (end - start), frames).frames
                for _, _, measures in actor.ended:
                    window.add(measures)
                actor.ended = []
                now = round(time.process_time() - began, 1)
                yield now, frames, phase.name, round(window.mean().get("spl", 0.0), 3)
    env.close()


def judged(config: Config, policy: PointNavPolicy, *, greedy: bool) -> dict[str, Any]:
    """Means of the measures over the episodes in unseen homes."""
    episodes = split_episodes(config, "val")
    env = environment(config, "val", episodes, Once(len(episodes)), 48)
    result = evaluate(env, PolicyAgent(policy, greedy, chunk=48), episodes)
    env.close()
    return {name: round(value["mean"], 4) for name, value in result.measures.items()}


if __name__ == "__main__":
    main()

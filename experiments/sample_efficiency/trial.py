"""One training at a fixed budget of CPU time of one thread, then its evaluation in homes that it has not seen.

    python experiments/sample_efficiency/trial.py NAME --seconds 240 --share 1.0 --seed 1 [section.key=value ...]

`--share` is the warm start's part of the budget, PPO has the rest. Schedules follow the share of CPU time that is gone,
so that all candidates are compared at equal cost whatever they spend it on. Appends a line to results.jsonl.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["NUMBA_NUM_THREADS"] = "1"

import numpy as np
import torch

from navprune.commands.environments import environment, split_episodes, training_env
from navprune.config import load_config
from navprune.evaluation.agents import PolicyAgent
from navprune.evaluation.evaluate import evaluate
from navprune.models.build import build
from navprune.rl.imitation import WarmStart
from navprune.rl.monitor import EpisodeWindow, Timers
from navprune.rl.ppo import PPO
from navprune.rl.rollouts import Actor
from navprune.scenes.homes.dataset import generate_dataset
from navprune.simulator.scene import SceneLibrary
from navprune.source import agent_spec
from navprune.tasks.orders import Once

HERE = Path(__file__).parent
DATA = Path("runs/tuning/data")
HOMES = {"train": 60, "val": 24, "seed": 101, "area": (40.0, 50.0), "episodes_per_scene": 100, "val_episodes_per_scene": 10}
"""Of other seeds than the demo's, on which nothing is chosen."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("settings", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not (DATA / "datasets/pointnav/small_homes/v1/statistics.json").is_file():
        generate_dataset(DATA, name="small_homes", **HOMES)
    settings = [f"data.folder={DATA}", f"trainer.seed={options.seed}", *options.settings]
    config = load_config("demo", settings)
    library = SceneLibrary()
    env = training_env(config)
    policy = build(agent_spec(config), config.trainer.seed)
    generator = torch.Generator().manual_seed(config.trainer.seed)
    window, timers = EpisodeWindow(100), Timers()
    actor = Actor(env, policy, device=torch.device("cpu"), generator=generator, window=window, timers=timers)
    actor.reset()
    for _ in range(3):  # whatever is compiled at its first call
        env.expert_actions()
        actor.step(torch.ones(env.num_envs, dtype=torch.int64), actor.state)
    actor.reset()
    began = time.process_time()
    clock = lambda: time.process_time() - began
    frames, curve = 0, []
    phases = [(options.share, lambda: WarmStart(policy, actor, config.warm_start, Path("runs/tuning/unused")))]
    phases.append((1 - options.share, lambda: PPO(policy, actor, config.ppo)))
    start, by_phase = 0.0, {}
    for share, make in phases:
        if share <= 0:
            continue
        learner, end, first = make(), start + share * options.seconds, frames
        window.clear()
        while clock() < end:
            losses = learner.update(min((clock() - start) / (end - start), 1.0))
            frames += learner.frames_per_update
            curve.append([round(clock(), 1), frames, round(window.mean().get("spl", 0.0), 3), {k: round(v, 4) for k, v in losses.items()}])
            if len(curve) % 10 == 0:
                print(options.name, options.seed, *curve[-1], flush=True)
        by_phase[learner.name] = frames - first
        start = clock()
    spent = clock()
    episodes = split_episodes(config, "val")
    record = {"name": options.name, "seed": options.seed, "settings": options.settings, "share": options.share}
    record |= {"cpu_seconds": round(spent, 1), "frames": by_phase, "seconds": {k: round(v, 1) for k, v in timers.phases().items()}}
    for greedy in (False, True):
        judge = environment(config, "val", episodes, Once(len(episodes)), 48, library)
        result = evaluate(judge, PolicyAgent(policy, greedy, chunk=48), episodes, seed=0)
        way = "greedy" if greedy else "sampled"
        record[way] = {k: round(v["mean"], 4) for k, v in result.measures.items()}
        record[way] |= {"spl_low": round(result.measures["spl"]["low"], 3), "spl_high": round(result.measures["spl"]["high"], 3)}
    record["curve"] = [row[:3] for row in curve[:: max(1, len(curve) // 20)]]
    with (HERE / "results.jsonl").open("a") as stream:
        stream.write(json.dumps(record) + "\n")
    print({k: v for k, v in record.items() if k != "curve"})


if __name__ == "__main__":
    main()

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

import torch

from navprune.commands.environments import environment, split_episodes, training_env
from navprune.config import Config, load_config
from navprune.evaluation.agents import PolicyAgent
from navprune.evaluation.evaluate import evaluate
from navprune.models.build import build
from navprune.models.policy import PointNavPolicy
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
HOMES = {
    "train": 60,
    "val": 24,
    "seed": 101,
    "area": (40.0, 50.0),
    "episodes_per_scene": 100,
    "val_episodes_per_scene": 10,
}
"""Of other seeds than the demo's, on which nothing is chosen."""


def tuning_data() -> Path:
    """The folder of the homes, which are made where they are not there."""
    if not (DATA / "datasets/pointnav/small_homes/v1/statistics.json").is_file():
        generate_dataset(DATA, name="small_homes", **HOMES)
    return DATA


def main() -> None:
    """Train, evaluate, write the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("settings", nargs="*")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    config = load_config("demo", [f"data.folder={tuning_data()}", f"trainer.seed={options.seed}", *options.settings])
    policy = build(agent_spec(config), config.trainer.seed)
    record = {"name": options.name, "seed": options.seed, "settings": options.settings, "share": options.share}
    record |= train(policy, config, options.seconds, options.share)
    record |= judge(policy, config)
    with (HERE / "results.jsonl").open("a") as stream:
        stream.write(json.dumps(record) + "\n")
    print({k: v for k, v in record.items() if k != "curve"})


def train(policy: PointNavPolicy, config: Config, seconds: float, share: float) -> dict:
    """Spend `seconds` of CPU, the warm start's `share` first; what it went into (by the wall clock) and the curve."""
    env, window, timers = training_env(config), EpisodeWindow(100), Timers()
    generator = torch.Generator().manual_seed(config.trainer.seed)
    actor = Actor(env, policy, device=torch.device("cpu"), generator=generator, window=window, timers=timers)
    actor.reset()
    for _ in range(3):  # whatever is compiled at its first call
        env.expert_actions()
        actor.step(torch.ones(env.num_envs, dtype=torch.int64), actor.state)
    actor.reset()
    phases = [(share, lambda: WarmStart(policy, actor, config.warm_start, Path("runs/tuning/unused")))]
    phases.append((1 - share, lambda: PPO(policy, actor, config.ppo)))
    began = time.process_time()
    frames, curve, by_phase, start, end = 0, [], {}, 0.0, 0.0
    for part, make in phases:
        if part <= 0:
            continue
        learner, end, first = make(), end + part * seconds, frames
        window.clear()
        while (now := time.process_time() - began) < end:
            losses = learner.update((now - start) / (end - start))
            frames += learner.frames_per_update
            spl = round(window.mean().get("spl", 0.0), 3)
            curve.append([round(time.process_time() - began, 1), frames, spl])
            if len(curve) % 10 == 0:
                print(*curve[-1], {name: round(value, 4) for name, value in losses.items()}, flush=True)
        by_phase[learner.name], start = frames - first, now
    spent = {k: round(v, 1) for k, v in timers.phases().items()}
    cpu = round(time.process_time() - began, 1)
    return {"cpu_seconds": cpu, "frames": by_phase, "seconds": spent, "curve": curve[:: max(1, len(curve) // 20)]}


def judge(policy: PointNavPolicy, config: Config) -> dict:
    """Measures of all unseen episodes, and how many failed in which way: sampled, greedy, sampled of squares."""
    episodes, library, found = split_episodes(config, "val"), SceneLibrary(), {}
    for way in ("sampled", "greedy", "cool"):
        if way == "cool":  # from the squares of the probabilities
            for parameter in policy.action_distribution.parameters():
                parameter.data.mul_(2)
        env = environment(config, "val", episodes, Once(len(episodes)), 48, library)
        result = evaluate(env, PolicyAgent(policy, way == "greedy", chunk=48), episodes, seed=0)
        failed = [each for each in result.episodes if not each["success"]]
        late = [each for each in failed if each["steps"] >= config.task.max_steps]
        pushing = [each for each in late if each["collisions"] > 50]
        found[way] = {k: round(v["mean"], 4) for k, v in result.measures.items()}
        found[way] |= {"spl_" + k: round(result.measures["spl"][k], 3) for k in ("low", "high")}
        found[way] |= {"failed": len(failed), "time_limit": len(late), "pushing": len(pushing)}
    return found


if __name__ == "__main__":
    main()

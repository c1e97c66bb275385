"""What the expert is worth itself, in homes of the tuning seed, with and without noise.

    python experiments/sample_efficiency/quality.py [CLOSE_COST ...]

Prints a line of Markdown for each cost and noise (share of the expert's steps that are replaced by random ones): SPL,
success, collisions and steps of an episode, share of places nearer to an obstacle than 0.1 m, CPU time of a label.
"""

import os
import sys
import time

os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = "1"

import numpy as np
import torch
from trial import tuning_data

from navprune.commands.environments import environment, split_episodes
from navprune.config import load_config
from navprune.simulator.scene import SceneLibrary
from navprune.tasks import STOP, expert
from navprune.tasks.orders import Once

COUNT, NEAR = 48, 0.1


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    config = load_config("demo", [f"data.folder={tuning_data()}", "task.width=8", "task.height=8"])
    print(
        "| cost | noise | SPL | success | collisions | steps | near | us a label |\n|---|---|---|---|---|---|---|---|"
    )
    for cost in map(float, sys.argv[1:] or [expert.CLOSE_COST]):
        expert.CLOSE_COST = cost
        for noise in (0.0, 0.2):
            means, near, spent = walk(config, noise)
            print(
                f"| {cost} | {noise} | "
                + " | ".join(f"{x:.3f}" for x in means)
                + f" | {near:.2f} | {1e6 * spent:.0f} |"
            )


def walk(config, noise):
    """All episodes once: mean SPL, success, collisions, steps; share of places near obstacles; seconds a label."""
    episodes, rng = split_episodes(config, "val"), np.random.default_rng(0)
    env = environment(config, "val", episodes, Once(len(episodes)), COUNT, SceneLibrary())
    env.reset()
    ends, clear, spent = [], [], 0.0
    while len(ends) < len(episodes):
        began = time.process_time()
        actions = env.expert_actions().numpy()
        spent += time.process_time() - began
        active = np.flatnonzero(env.active)
        for finder, rows in env.poses.by_scene(active):
            clear.extend(finder.obstacle_distance(env.poses.positions[active[rows]], 2 * NEAR))
        random = (rng.random(COUNT) < noise) & (actions != STOP)
        step = env.step(torch.from_numpy(np.where(random, rng.integers(1, 4, COUNT), actions)))
        ends += [end.measures for end in step.finished]
    env.close()
    means = [np.mean([end[key] for end in ends]) for key in ("spl", "success", "collisions", "steps")]
    return means, np.mean(np.array(clear) < NEAR), spent / len(clear)


if __name__ == "__main__":
    main()

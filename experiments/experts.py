"""From which expert the warm start learns more: ours, or habitat-sim's greedy follower.

Prints the table in docs/decisions.md:

    .venv/bin/python experiments/experts.py

from the repository's root. The demo's ResNet18 learns in the demo's homes from 49,152 frames of the warm start
alone, and is evaluated on the demo's 120 episodes in homes that it has not seen.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from navprune.cli import main as command
from navprune.commands.demo import draw_homes
from navprune.simulator.pathfinder import PathFinder
from navprune.tasks import STOP, pointnav
from navprune.tasks.follower import Abilities, plan
from navprune.tasks.measures import rotations_of
from navprune.tasks.motion import first_actions

OUT = Path("runs/experts")
FRAMES, SEEDS = 49152, (1, 2)


def follow(
    pathfinder: PathFinder,
    positions: NDArray,
    headings: NDArray,
    goals: NDArray,
    distances: NDArray,
    *,
    success_distance: float,
    **task: Any,
) -> NDArray[np.int64]:
    """`shortest_path_actions` by habitat-sim's rules, without its memory."""
    able = Abilities(success_distance, **task)
    rotations = rotations_of(headings).astype(np.float32)
    turns, found = plan(pathfinder, able, positions.astype(np.float32), rotations, goals)
    return np.where(found, first_actions(turns), STOP)


def main() -> None:
    """Train and evaluate with each expert and seed, one after the other, on one thread."""
    torch.set_num_threads(1)
    draw_homes(OUT / "data", "small_homes")
    print("| expert | seed | SPL (95 % interval) | success | CPU seconds |", "|---|---|---|---|---|", sep="\n")
    for seed in SEEDS:
        for name, expert in {"ours": pointnav.shortest_path_actions, "follower": follow}.items():
            run, own = OUT / f"{name}-{seed}", pointnav.shortest_path_actions
            settings = [f"run={run}", f"data.folder={OUT / 'data'}", "agent=resnet18", "agent.base_planes=8"]
            settings += [f"trainer.seed={seed}", f"warm_start.frames={FRAMES}", f"trainer.total_frames={FRAMES}"]
            pointnav.shortest_path_actions, began = expert, time.process_time()
            command(["train", "--config", "demo", *settings])
            pointnav.shortest_path_actions, seconds = own, time.process_time() - began
            command(["evaluate", str(run), "--json", f"{run}.json"])
            spl, success = (json.loads(Path(f"{run}.json").read_text())["measures"][key] for key in ("spl", "success"))
            interval = f"{spl['mean']:.3f} ({spl['low']:.3f} to {spl['high']:.3f})"
            print(f"| {name} | {seed} | {interval} | {success['mean']:.3f} | {seconds:.0f} |")


if __name__ == "__main__":
    main()

"""Generate a few homes, train an agent in them for a moment, and measure how it does in a home that it never saw.

    python examples/train_and_evaluate.py [FOLDER]

It takes about ten seconds on two cores. The agent is far too small and too little trained to find its goals;
`navprune train --config pointnav_homes` is the real thing. Everything is written under FOLDER (runs/example).
"""

import sys
from pathlib import Path

from navprune.commands.evaluate import run_evaluation
from navprune.commands.train import run_training
from navprune.config import load_config
from navprune.scenes.homes.dataset import generate_dataset

SETTINGS = [
    "task.max_steps=60", "agent.base_planes=4", "agent.compression=16", "agent.visual_features=32",
    "agent.hidden_size=32", "environments=4", "ppo.steps=16", "ppo.minibatches=2", "warm_start.frames=128",
    "warm_start.batch=4", "trainer.total_frames=256",
]  # fmt: skip


def main(folder: Path) -> dict[str, dict[str, float]]:
    """Return the measures of the trained agent and of one that walks straight at its goal."""
    data = folder / "data"
    if not data.exists():
        generate_dataset(
            data, train=2, val=1, area=(40, 50), episodes_per_scene=20, val_episodes_per_scene=4, workers=1
        )

    # A recipe from habitat_configs/, and what differs from it; the same settings as on the command line.
    config = load_config("pointnav_homes", [f"run={folder / 'run'}", f"data.folder={data}", *SETTINGS])
    result = run_training(config)
    print(f"{result.frames} frames, {result.frames_per_second:.0f} a second; checkpoint: {result.latest}")

    measures = {}
    for agent in (str(folder / "run"), "goal-follower"):
        evaluation, _ = run_evaluation(agent, config, split="val")
        measures[agent] = {name: value["mean"] for name, value in evaluation.measures.items()}
        print(f"{agent}: " + ", ".join(f"{name} {value:.2f}" for name, value in measures[agent].items()))
    return measures


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example"))

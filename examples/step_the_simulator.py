"""Walk four agents through generated homes along shortest paths, and draw what they see on the way.

    python examples/step_the_simulator.py [FOLDER]

No network is involved: actions come from the expert. Under FOLDER (runs/example) lie the homes and `depth.png`,
a row for each agent. With a data set of your own, give its folder, name and split to `make_env`.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from navprune.scenes.homes.dataset import generate_dataset
from navprune.tasks.gyms import make_env

MOMENTS = 6  # pictures of each agent


def main(folder: Path) -> list[dict[str, float]]:
    """Return the measures of the episodes that ended."""
    data = folder / "data"
    if not data.exists():
        generate_dataset(
            data, train=2, val=1, area=(40, 50), episodes_per_scene=20, val_episodes_per_scene=4, workers=1
        )

    env, _ = make_env(4, data=str(data), split="train", width=96, height=96)
    observations = env.reset()
    print({name: tuple(seen.shape) for name, seen in observations.items()})  # N agents in lockstep

    columns, ended = [], []
    for moment in range(10 * MOMENTS):
        if moment % 10 == 0:
            columns.append(np.concatenate(list(observations["depth"][..., 0].numpy())))
        step = env.step(env.expert_actions())  # 0 stop, 1 forward, 2 left, 3 right
        observations = step.observations  # where an episode ended, the first of the next
        ended += [end.measures for end in step.finished]
    env.close()

    Image.fromarray((255 * np.concatenate(columns, axis=1)).astype(np.uint8)).save(folder / "depth.png")
    found = sum(measures["success"] for measures in ended)
    print(f"{len(ended)} episodes ended, {found:.0f} of them at the goal; see {folder / 'depth.png'}")
    return ended


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example"))

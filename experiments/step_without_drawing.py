"""What a step costs beside the drawing: milliseconds of CPU of 32 agents, with the CPU's renderer and with none.

Prints the figures in docs/decisions.md:

    .venv/bin/python experiments/step_without_drawing.py [DATA [NAME]]

from the repository's root; without DATA, a folder with scenes, four homes are generated. One thread.
"""

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from navprune.commands.benchmark import ACTION_SHARES
from navprune.scenes.files.episodes import read_episodes
from navprune.scenes.homes.dataset import generate_dataset
from navprune.simulator.rasterizer import Rasterizer
from navprune.simulator.renderer import Camera, MakeRenderer
from navprune.simulator.scene import SceneLibrary
from navprune.tasks.pointnav import PointNavEnv, Shuffled, TaskConfig

AGENTS, STEPS = 32, 1500


class Nothing:
    """A renderer that draws nothing, of the same scenes."""

    device, prepare = torch.device("cpu"), staticmethod(Rasterizer.prepare)

    def __init__(self, camera: Camera) -> None:
        pass

    def draw(self, handles: Sequence[Any], eyes: Tensor, rotations: Tensor, out: Mapping[str, Tensor]) -> None:
        """Leave the images as they are."""

    def close(self) -> None:
        """Nothing is held."""


def milliseconds(data: Path, name: str, width: int, renderer: MakeRenderer, library: SceneLibrary) -> float:
    """The median over STEPS steps with random actions."""
    episodes, task = read_episodes(data, name, "train"), TaskConfig(width=width, height=width)
    order = Shuffled(len(episodes), AGENTS, 0)
    env = PointNavEnv(episodes, data, order, AGENTS, task, library=library, renderer=renderer)
    env.reset()
    actions = np.random.default_rng(0).choice(4, size=(STEPS, AGENTS), p=ACTION_SHARES)
    spent = []
    for row in torch.from_numpy(actions):
        begin = time.thread_time()
        env.step(row)
        spent.append(time.thread_time() - begin)
    env.close()
    return 1e3 * float(np.median(spent))


def main() -> None:
    """One row a size."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data, name = Path(sys.argv[1] if sys.argv[1:] else folder), sys.argv[2] if sys.argv[2:] else "homes"
        if not sys.argv[1:]:
            generate_dataset(data, train=4, val=1, seed=0)
        library = SceneLibrary()
        for width in (64, 128, 256):
            made = [
                milliseconds(data, name, width, make, library) for make in (partial(Rasterizer, threads=1), Nothing)
            ]
            share = f"{100 * made[1] / made[0]:.1f} %"
            print(f"{width:4} pixels: {made[0]:.2f} ms a step, {made[1]:.3f} beside the drawing ({share})")


if __name__ == "__main__":
    main()

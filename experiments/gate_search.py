"""How well searches by gates agree that differ in the order of their observations alone.

Prints the table in docs/pruning.md:

    .venv/bin/python experiments/gate_search.py

from the repository's root.
"""

from itertools import combinations, islice
from pathlib import Path

import numpy as np
import torch

from navprune.commands.demo import GATE_STEPS, draw_homes
from navprune.config import load_config
from navprune.models.build import build
from navprune.models.encoders import Encoder
from navprune.models.spec import encoder_spec
from navprune.progress import ProgressLine
from navprune.pruning.config import GateConfig
from navprune.pruning.losses import Imitation, collect_observations, shuffled_batches
from navprune.pruning.methods.gates import learn_gates, rank_correlation
from navprune.pruning.structure import structure_of
from navprune.scenes.files.episodes import read_episodes
from navprune.tasks.pointnav import PointNavEnv, Shuffled

DATA = Path("runs/pruning_methods/data")
DEMO = load_config("demo")
STEPS = (20, 40, 80, 120, 200, 400)
BATCH = 64
SEARCHES = 4
CONFIG = GateConfig(stable=1.0)
"""The defaults, but for the early stop."""


def main() -> None:
    """Rank correlations of gates between searches after so many steps, mean and range over all pairs."""
    torch.set_num_threads(1)
    draw_homes(DATA, DEMO.data.name)
    episodes = read_episodes(DATA, DEMO.data.name, "train")
    order = Shuffled(len(episodes), DEMO.environments, 0)
    env = PointNavEnv(episodes, DATA, order, DEMO.environments, DEMO.task)
    data = collect_observations(env, GATE_STEPS, np.random.default_rng(0))
    env.close()
    line, rows, done = ProgressLine("searching", SEARCHES * sum(STEPS), "steps"), [], 0
    for steps in STEPS:
        found = []
        for seed in range(SEARCHES):
            found.append(search(data, steps, seed))
            done += steps
            line.show(done)
        agreements = [rank_correlation(first, second) for first, second in combinations(found, 2)]
        rows.append((steps, np.mean(agreements), min(agreements), max(agreements)))
    print(
        f"| steps of {BATCH} | rank correlation, mean of {len(agreements)} pairs | least | most |",
        "|---|---|---|---|",
        sep="\n",
    )
    for steps, *values in rows:
        print(f"| {steps} | {' | '.join(f'{value:.2f}' for value in values)} |")


def search(data: dict[str, torch.Tensor], steps: int, seed: int) -> torch.Tensor:
    """All gates after so many steps over the observations in an order of `seed`; the weights are the same in all."""
    spec = encoder_spec("resnet50", (1, DEMO.task.height, DEMO.task.width), DEMO.agent.base_planes)
    model = build(spec, 0)
    assert isinstance(model, Encoder)
    loss = Imitation(model, torch.Generator().manual_seed(0))
    epochs = -(-steps * BATCH // len(data["depth"])) + 1
    batches = islice(shuffled_batches(data, BATCH, epochs, torch.Generator().manual_seed(seed)), steps)
    gates = learn_gates(structure_of(model), batches, loss, CONFIG).gates
    return torch.cat(list(gates.values()))


if __name__ == "__main__":
    main()

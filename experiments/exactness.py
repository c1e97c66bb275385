"""How far Torch-Pruning's cut of a GroupNorm network is from leaving channels out, and ours.

Prints the table in docs/pruning.md:

    .venv/bin/python experiments/exactness.py

from the repository's root, with the extra `torch-pruning` installed.
"""

from typing import cast

import torch

from navprune.models.build import build
from navprune.models.encoders import Encoder
from navprune.models.spec import encoder_spec
from navprune.progress import ProgressLine
from navprune.pruning.config import PruningConfig
from navprune.pruning.methods import torch_pruning
from navprune.pruning.prune import prune
from navprune.pruning.structure import structure_of
from navprune.rl.checkpoints import load_policy

SHARES = (0.75, 0.5, 0.25)
RANDOM = ("resnet18", "resnet50", "se_resnet50")
TRAINED = "experiments/pruning_methods/agent"
SIDE, IMAGES = 64, 8


def main() -> None:
    """One row an encoder: max |small(x) - masked(x)| / max |masked(x)| over features, by share of the MACs."""
    encoders = {
        f"{name}, base 32, random weights": cast(Encoder, build(encoder_spec(name, (1, SIDE, SIDE)), 0))
        for name in RANDOM
    }
    encoders[f"{TRAINED}, base 8, trained"] = load_policy(TRAINED).policy.encoder
    images = torch.rand(IMAGES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    line, rows = ProgressLine("cutting", len(encoders) * len(SHARES), "networks"), []
    for name, encoder in encoders.items():
        entries = []
        for share in SHARES:
            ours = prune(encoder, PruningConfig(method="l1", budget=f"macs={share}"))
            theirs = torch_pruning.cut(structure_of(encoder), {"macs": share})
            for small, keep in ((ours.model, ours.keep), (theirs.model, theirs.keep)):
                entries.append(f"{torch_pruning.departure(encoder, small, keep, images):.2g}")
            line.show(len(rows) * len(SHARES) + len(entries) // 2)
        rows.append(f"| {name} | {' | '.join(entries)} |")
    print("| encoder |", " | ".join(f"{100 * share:.0f} %: ours | theirs" for share in SHARES), "|")
    print("|---|" + "---|" * 2 * len(SHARES), *rows, sep="\n")


if __name__ == "__main__":
    main()

"""What the experiment consists of, cell by cell, and what has been measured of it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from experiments.cells import read
from navprune.pruning.masks import STRATEGIES

HERE = Path(__file__).parent
RESULTS = "results.jsonl"
RATIOS = (2, 4, 8, 16, 32)
SEEDS = (0, 1, 2)
DENSE = "dense"
"""The whole network, fine-tuned like the others: in place of a strategy."""
ALIASES = ("structured-magnitude",)
TRIED = tuple(name for name in STRATEGIES if name not in ALIASES)
FIRST, OTHER = INITIAL = (0, 1)
"""Seeds of the trained networks that are pruned."""
FROM_OTHER = ("global-magnitude", "layer-magnitude", "global-random")
"""Strategies that prune the other trained network, too."""


@dataclass(frozen=True)
class Pair:
    """Data and a network.

    `recipe` and `settings` say how classifiers are trained, `tuning` what differs where they are fine-tuned; without a
    recipe it is the agent of `experiments/pruning_methods` in its homes.
    """

    name: str
    recipe: str = ""
    settings: tuple[str, ...] = ()
    tuning: tuple[str, ...] = ()


SHORT = "supervised.epochs=5", "supervised.lr=0.02", "supervised.schedule=cosine"
PAIRS = {
    pair.name: pair
    for pair in (
        Pair("digits x ResNet20", "digits_resnet20", tuning=SHORT),
        Pair("digits x ResNet56", "digits_resnet20", ("classifier.family=cifar_resnet56",), SHORT),
        Pair("homes x ResNet50"),
    )
}
AS_PUBLISHED = (
    "supervised.optimiser=adam", "supervised.lr=3e-4", "supervised.schedule=constant", "supervised.weight_decay=0",
    "supervised.batch=64", "supervised.epochs=30",
)  # fmt: skip
"""How ShrinkBench fine-tunes on CIFAR-10 (its paper's appendix)."""


class Cell(NamedTuple):
    """One network to prune, fine-tune and evaluate; `initial` is the seed of the trained network that it begins as."""

    pair: str
    initial: int
    strategy: str
    ratio: int
    seed: int


def grid(pairs: Iterable[Pair] = PAIRS.values()) -> list[Cell]:
    """All cells: the first seed first, so that a part of them is already a comparison."""
    cells = []
    for seed in SEEDS:
        for pair in pairs:
            for initial in INITIAL if pair.recipe else (FIRST,):
                strategies = TRIED if initial == FIRST else FROM_OTHER
                cells.append(Cell(pair.name, initial, DENSE, 1, seed))
                cells += [Cell(pair.name, initial, name, ratio, seed) for ratio in RATIOS for name in strategies]
    return cells


def read_results(folder: Path = HERE) -> dict[Cell, dict[str, Any]]:
    """The records written so far; a line that a crash cut off is left out."""
    return {Cell(*(record[name] for name in Cell._fields)): record for record in read(folder / RESULTS)}

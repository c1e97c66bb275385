"""What the experiment consists of, cell by cell, and what has been measured of it."""

from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from experiments.cells import read
from navprune.pruning.methods import GATES, METHODS, PROBE

HERE = Path(__file__).parent
RESULTS = HERE / "results.jsonl"
SHARES = (0.25, 0.5, 0.75)
SEEDS = (0, 1, 2)
RANDOM = "random"
RANDOM_CUTS = tuple(range(20))
"""Seeds of the random control where the trained agent is cut: what one cut is worth by luck alone takes many to say."""
DENSE = "dense"
CONTROLS = (RANDOM, "uniform")
ALIASES = ("magnitude",)
OF_TRAINED = tuple(name for name in METHODS if name not in (GATES, PROBE, *ALIASES))
CUT, TUNED, SCRATCH = "cut", "fine-tuned", "scratch"
PROTOCOLS = {CUT: OF_TRAINED, TUNED: OF_TRAINED, SCRATCH: (GATES, "l1", "uniform", RANDOM)}
"""How the networks come about, and the methods that are tried so. All begin with the same trained agent, but for
`scratch`: there the widths alone are taken over, and the weights are new."""


class Cell(NamedTuple):
    """One network to make, train and evaluate."""

    protocol: str
    method: str
    share: float
    seed: int


def grid() -> list[Cell]:
    """All cells: the costly ones last, and the first seed first, so that a part of them is already a comparison."""
    cells = []
    for protocols, seeds in (((CUT, TUNED), RANDOM_CUTS), ((SCRATCH,), SEEDS)):
        for seed, protocol in product(seeds, protocols):
            methods = PROTOCOLS[protocol] if seed in SEEDS else (RANDOM,)
            cells += [Cell(protocol, DENSE, 1.0, seed)] * (seed in SEEDS)
            cells += [Cell(protocol, method, share, seed) for share in SHARES for method in methods]
    return cells


def read_results(path: Path = RESULTS) -> dict[Cell, dict[str, Any]]:
    """The records written so far; a line that a crash cut off is left out."""
    return {Cell(*(record[name] for name in Cell._fields)): record for record in read(path)}

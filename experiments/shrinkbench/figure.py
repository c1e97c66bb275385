"""Draws accuracy over both axes and renews README.md's tables, from whatever cells results.jsonl holds.

    .venv/bin/python -m experiments.shrinkbench.figure [FOLDER]

FOLDER holds the results of other images; its README.md is written beside them.

Intervals resample seeds and images (or episodes) independently of each other, both with replacement (the pigeonhole
bootstrap: Owen, Annals of Applied Statistics 2007); differences are paired by seed and image. Where random masks are
held against others, luck has to be excluded as well: p is the larger one of the bootstrap's and of Student's t-test
over seeds. The p-values of a table are corrected together (Holm 1979).
"""

import sys
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from matplotlib.ticker import FixedLocator, NullLocator

from experiments.pruning_methods.figure import renewed
from experiments.shrinkbench.grid import (
    DENSE,
    FIRST,
    FROM_OTHER,
    HERE,
    OTHER,
    PAIRS,
    RATIOS,
    SEEDS,
    TRIED,
    Cell,
    read_results,
)
from navprune.evaluation.statistics import LEVEL, Estimate, by_luck, holm, sample
from navprune.images.measures import TOP1, TOP5
from navprune.reports import style

WEIGHTS = tuple(name for name in TRIED if not name.startswith("structured-"))
STRUCTURED = tuple(name for name in TRIED if name not in WEIGHTS)
SPEEDUPS = (2, 4, 8, 16)
COMPRESSION, SPEEDUP = AXES = ("compression", "speed-up")
RANDOM = "-random"
PERMUTATIONS = 10_000
Key = TypeVar("Key", bound=Hashable)
Seeds = dict[int, np.ndarray]
"""What is right of each image, or SPL of each episode, by seed."""
Records = Mapping[Cell, dict]


class Side(NamedTuple):
    """One side of a comparison."""

    strategy: str
    initial: int = FIRST

    @property
    def title(self) -> str:
        """As it stands in a table."""
        return self.strategy if self.initial == FIRST else f"{self.strategy} from the other"


class Against(NamedTuple):
    """Two sides, of which the first is held against the second."""

    first: Side
    second: Side

    @property
    def title(self) -> str:
        """As it stands in a table."""
        return f"{self.first.title} - {self.second.title}"

    @property
    def by_chance(self) -> bool:
        """Whether a side is random masks."""
        return any(side.strategy.endswith(RANDOM) for side in self)


def against(first: str, second: str, initial: int = FIRST, other: int = FIRST) -> Against:
    """Two strategies and the networks that they begin with."""
    return Against(Side(first, initial), Side(second, other))


GLOBAL, LAYER = "global-magnitude", "layer-magnitude"
FINDINGS = {
    "better than random?": [
        against(name, f"{name.partition('-')[0]}{RANDOM}") for name in TRIED if not name.endswith(RANDOM)
    ],
    "is global better than layer-wise?": [
        against(name, name.replace("global-", "layer-")) for name in WEIGHTS if name.startswith("global-")
    ],
    "do gradients help?": [
        against(f"{GLOBAL}-gradient", GLOBAL),
        against(f"{LAYER}-gradient", LAYER),
        against("structured-taylor", "structured-l1"),
    ],
    "do the initial weights matter?": [
        *(against(name, name, OTHER) for name in (DENSE, *FROM_OTHER)),
        against(GLOBAL, LAYER),
        against(GLOBAL, LAYER, OTHER, OTHER),
        against(GLOBAL, LAYER, OTHER, FIRST),
        against(GLOBAL, LAYER, FIRST, OTHER),
    ],
}
"""ShrinkBench's findings as comparisons; each is a table."""


@dataclass
class Curve:
    """What a strategy reached: {ratio: {seed: [images]}}, the whole network's at 1, and how much faster it made it."""

    seeds: dict[int, Seeds] = field(default_factory=dict)
    speedups: dict[int, dict[int, float]] = field(default_factory=dict)

    def at(self, place: int, axis: str = COMPRESSION) -> Seeds:
        """At a compression; or at a speed-up, linearly between the networks beside it (over its logarithm)."""
        if axis == COMPRESSION:
            return self.seeds.get(place, {})
        every = set().union(*self.seeds.values())
        return {seed: values for seed in sorted(every) if (values := self._between(place, seed)) is not None}

    def _between(self, speedup: float, seed: int) -> np.ndarray | None:
        """What a seed reached at a speed-up; None beyond its fastest network."""
        there = sorted((self.speedups[ratio][seed], ratio) for ratio in self.seeds if seed in self.seeds[ratio])
        place = int(np.searchsorted([reached for reached, _ in there], speedup))
        if not 0 < place < len(there):
            return None
        (low, below), (high, above) = there[place - 1], there[place]
        share = np.log(speedup / low) / np.log(high / low)
        return (1 - share) * self.seeds[below][seed] + share * self.seeds[above][seed]


Curves = Mapping[tuple[str, Side], Curve]
"""Of each pair and strategy of which there is something."""
NOTHING = Curve()


def curves_of(records: Records, measure: str = TOP1) -> Curves:
    """What the records say, by pair and strategy."""
    found = defaultdict[tuple[str, Side], Curve](Curve)
    # The whole networks come first, since every curve begins with one.
    for cell, record in sorted(records.items(), key=lambda item: item[0].strategy != DENSE):
        if (values := scores(record, measure)) is not None:
            name = cell.pair, Side(cell.strategy, cell.initial)
            if name not in found and cell.strategy != DENSE:
                whole = found[cell.pair, Side(DENSE, cell.initial)]
                found[name] = Curve({**whole.seeds}, {**whole.speedups})
            found[name].seeds.setdefault(cell.ratio, {})[cell.seed] = values
            found[name].speedups.setdefault(cell.ratio, {})[cell.seed] = record["speedup"]
    return dict(found)


def scores(record: dict, measure: str) -> np.ndarray | None:
    """What a record says of each image or episode, [images]; None where it says nothing."""
    if packed := record.get(f"{measure}_hits"):
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(packed), np.uint8), count=record["images"])
        return bits.astype(np.float64)
    return np.array(record["spl"]) if "spl" in record and measure == TOP1 else None


def both(curves: Curves, pair: str, sides: Against, axis: str) -> np.ndarray | None:
    """Both sides, [2, seeds, images]: means over the ratios (or speed-ups), and of the seeds, that both have."""
    first, second = (curves.get((pair, side), NOTHING) for side in sides)
    places: tuple[int, ...] = RATIOS if axis == COMPRESSION else SPEEDUPS
    if sides.first.strategy == DENSE:
        places = (1,) if axis == COMPRESSION else ()
    there = [at for at in ((first.at(place, axis), second.at(place, axis)) for place in places) if all(at)]
    seeds = sorted(set.intersection(*(ours.keys() & theirs.keys() for ours, theirs in there))) if there else []
    if not seeds:
        return None
    return np.array([[np.mean([at[side][seed] for at in there], axis=0) for seed in seeds] for side in (0, 1)])


def estimates(values: Mapping[Key, np.ndarray]) -> dict[Key, Estimate]:
    """The mean of each [seeds, images] with its resamples; those of as many seeds are drawn together."""
    found: dict[Key, Estimate] = {}
    for shape in {each.shape for each in values.values()}:
        keys = [key for key, each in values.items() if each.shape == shape]
        means = sample(np.stack([values[key] for key in keys])).means()
        found |= {key: Estimate(means[:, place]) for place, key in enumerate(keys)}
    return found


def finding(curves: Curves, pairs: Iterable[str], title: str) -> str:
    """A table of comparisons: differences, their intervals, bold where they are shown, and how many are."""
    columns = [(pair, axis) for pair in pairs for axis in AXES]
    asked = [(sides, *column) for sides in FINDINGS[title] for column in columns]
    there = {key: values for key in asked if (values := both(curves, key[1], key[0], key[2])) is not None}
    found = estimates({key: first - second for key, (first, second) in there.items()})
    luck = {key: by_luck(*there[key].mean(2)) if key[0].by_chance else 0.0 for key in found}
    p = holm({key: max(estimate.p(), luck[key]) for key, estimate in found.items()})
    lines = [headed(title, [f"{pair}, {axis}" for pair, axis in columns])]
    for sides in FINDINGS[title]:
        entries = [said(found[key], p[key]) if (key := (sides, *column)) in found else "-" for column in columns]
        lines.append(f"| {sides.title} | {' | '.join(entries)} |")
    counts = []
    for column in columns:
        keys = [key for key in found if key[1:] == column]
        shown = [found[key].value for key in keys if p[key] < LEVEL]
        counts.append(f"{sum(value > 0 for value in shown)}, {sum(value < 0 for value in shown)} of {len(keys)}")
    return "\n".join([*lines, f"| shown above 0, below 0 | {' | '.join(counts)} |"]) + "\n"


def said(estimate: Estimate, p: float) -> str:
    """A difference and its interval, bold where it is shown."""
    spread = estimate.spread()
    text = f"{spread.mean:+.3f}"
    return f"{f'**{text}**' if p < LEVEL else text} ({spread.low:+.3f} to {spread.high:+.3f})"


def headed(title: str, columns: Iterable[object]) -> str:
    """The first two lines of a table."""
    heads = [title, *map(str, columns)]
    return f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}"


# Ranks ----------------------------------------------------------------------------------------------


def means(curves: Curves, pair: str, place: int, axis: str, seed: int | None = None) -> dict[str, float]:
    """The mean of each strategy at a ratio or speed-up: of one seed, or of all that are there."""
    found = {}
    for name in TRIED:
        seeds = curves.get((pair, Side(name)), NOTHING).at(place, axis)
        if each := [values.mean() for own, values in seeds.items() if seed in (None, own)]:
            found[name] = float(np.mean(each))
    return found


class Correlation(NamedTuple):
    """Of ranks, over so many strategies; p of ranks that have nothing to do with each other."""

    rho: float
    strategies: int
    p: float


def correlated(first: Mapping[str, float], second: Mapping[str, float]) -> Correlation | None:
    """Spearman's rank correlation over the strategies that both have, with a permutation test; None of fewer than 4."""
    names = [name for name in first if name in second]
    if len(names) < 4:
        return None
    ours, theirs = (ranks(np.array([side[name] for name in names])) for side in (first, second))
    if not (ours.any() and theirs.any()):
        return None
    scale = np.linalg.norm(ours) * np.linalg.norm(theirs)
    shuffled = np.random.default_rng(0).permuted(np.tile(ours, (PERMUTATIONS, 1)), axis=1)
    by_chance = np.abs(shuffled @ theirs) >= abs(ours @ theirs) - 1e-9
    return Correlation(float(ours @ theirs / scale), len(names), (1 + by_chance.sum()) / (1 + PERMUTATIONS))


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks [n] of values [n], ties at their middle, about their mean."""
    places = (values[:, None] > values).sum(1) + 0.5 * (values[:, None] == values).sum(1)
    return places - places.mean()


def between_pairs(curves: Curves, pairs: list[str]) -> str:
    """A table of the rank correlations between pairs at each ratio and, for what luck allows, between seeds of each."""
    couples = list(combinations(pairs, 2))
    table: dict[tuple[object, object], Correlation | None] = {}
    for ratio in RATIOS:
        by_pair = {pair: means(curves, pair, ratio, COMPRESSION) for pair in pairs}
        table |= {(ratio, couple): correlated(*(by_pair[pair] for pair in couple)) for couple in couples}
    lines = [headed("ranks of strategies", [*(f"{a} and {b}" for a, b in couples), *(f"seeds of {p}" for p in pairs)])]
    entries = ranked(table)
    for ratio in RATIOS:
        own = [entries[ratio, couple] for couple in couples] + [between_seeds(curves, pair, ratio) for pair in pairs]
        lines.append(f"| compression {ratio} | {' | '.join(own)} |")
    return "\n".join(lines) + "\n"


def between_seeds(curves: Curves, pair: str, ratio: int) -> str:
    """The mean rank correlation between two seeds of a pair: how far the same experiment repeats its ranks."""
    each = [means(curves, pair, ratio, COMPRESSION, seed) for seed in SEEDS]
    found = [result.rho for couple in combinations(each, 2) if (result := correlated(*couple))]
    return f"{np.mean(found):.2f}" if found else "-"


def between_axes(curves: Curves, pairs: list[str]) -> str:
    """A table of the rank correlations between equal compression and equal speed-up."""
    table: dict[tuple[object, object], Correlation | None] = {}
    for pair in pairs:
        for place in SPEEDUPS:
            table[pair, place] = correlated(*(means(curves, pair, place, axis) for axis in AXES))
    lines = [headed("ranks at a compression and at that speed-up", SPEEDUPS)]
    entries = ranked(table)
    lines += [f"| {pair} | {' | '.join(entries[pair, place] for place in SPEEDUPS)} |" for pair in pairs]
    return "\n".join(lines) + "\n"


def ranked(table: Mapping[Key, Correlation | None]) -> dict[Key, str]:
    """Entries of a table of correlations, bold where they are shown; p-values are corrected together."""
    p = holm({key: found.p for key, found in table.items() if found})
    entries = {}
    for key, found in table.items():
        text = f"{found.rho:.2f}" if found else "-"
        entries[key] = f"{f'**{text}**' if p[key] < LEVEL else text} (of {found.strategies})" if found else text
    return entries


# Everything -----------------------------------------------------------------------------------------


def networks(records: Records, curves: Curves, pair: str) -> str:
    """A table of all networks of a pair: the mean with its interval, and the speed-up reached."""
    values, faster = {}, {}
    for name in (DENSE, *TRIED):
        curve = curves.get((pair, Side(name)), NOTHING)
        for ratio, seeds in curve.seeds.items():
            values[name, ratio] = np.stack([seeds[seed] for seed in sorted(seeds)])
            faster[name, ratio] = float(np.mean([*curve.speedups[ratio].values()]))
    refused = {(cell.strategy, cell.ratio) for cell, r in records.items() if cell.pair == pair and "refused" in r}
    found = estimates(values)
    lines = [headed(f"{pair}: strategy", [f"compression {ratio}" for ratio in RATIOS])]
    for name in TRIED:
        entries = []
        for ratio in RATIOS:
            if (name, ratio) in found:
                mean, low, high = found[name, ratio].spread()
                entries.append(f"{mean:.3f} ({low:.3f} to {high:.3f}), {faster[name, ratio]:.1f} x")
            else:
                entries.append("cannot" if (name, ratio) in refused else "-")
        lines.append(f"| {name} | {' | '.join(entries)} |")
    if (DENSE, 1) in found:
        mean, low, high = found[DENSE, 1].spread()
        whole = [f"{mean:.3f} ({low:.3f} to {high:.3f})", *[""] * (len(RATIOS) - 1)]
        lines.append(f"| the whole network, likewise | {' | '.join(whole)} |")
    return "\n".join(lines) + "\n"


def fifth(records: Records, pairs: list[str]) -> str:
    """A table of top-5 accuracies, means over seeds and images."""
    curves = curves_of(records, TOP5)
    lines = [headed("top-5", [f"{pair}, {ratio}" for pair in pairs for ratio in RATIOS])]
    columns = [means(curves, pair, ratio, COMPRESSION) for pair in pairs for ratio in RATIOS]
    for name in TRIED:
        entries = [f"{column[name]:.3f}" if name in column else "-" for column in columns]
        lines.append(f"| {name} | {' | '.join(entries)} |")
    return "\n".join(lines) + "\n"


def draw(curves: Curves, pair: str, measure: str, path: Path) -> None:
    """Accuracy over compression and over speed-up, side by side; strategies of weights above structured ones."""
    looks = [(colour, dashes) for dashes in ("-", "--", ":") for colour in style.SERIES]
    with style.figure(path, 11, 8.4) as figure:
        panels = figure.subplots(2, 2, sharey=True)
        for row, names in zip(panels, (WEIGHTS, STRUCTURED)):
            for panel, axis in zip(row, AXES):
                for name, (colour, dashes) in zip(names, looks):
                    x, y, bars = course(curves.get((pair, Side(name)), NOTHING), axis)
                    look = {"color": colour, "linestyle": dashes, "label": name}
                    panel.errorbar(x, y, bars, linewidth=1.2, elinewidth=0.6, **look)
                panel.set_xscale("log", base=2)
                panel.xaxis.set_major_locator(FixedLocator([1, *RATIOS]))
                panel.xaxis.set_minor_locator(NullLocator())
                panel.xaxis.set_major_formatter("{x:g} x")
                panel.set_xlabel(axis if axis == COMPRESSION else f"theoretical {axis}")
            row[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
        figure.supylabel(measure, fontsize=10)
        title = f"{pair}: means over the seeds, bars from the least to the greatest"
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")


def course(curve: Curve, axis: str) -> tuple[list[float], np.ndarray, np.ndarray]:
    """Places along an axis [n], means over seeds [n], and how far from these the least and the greatest are [2, n]."""
    ratios = sorted(curve.seeds)
    x = [float(np.mean([*curve.speedups[ratio].values()])) if axis == SPEEDUP else ratio for ratio in ratios]
    each = [[values.mean() for values in curve.seeds[ratio].values()] for ratio in ratios]
    low, mean, high = (np.array([of(seeds) for seeds in each]) for of in (np.min, np.mean, np.max))
    return x, mean, np.stack([mean - low, high - mean]).clip(0)  # rounding aside


def tables(records: Records, pairs: list[str]) -> list[str]:
    """All tables of README.md."""
    curves = curves_of(records)
    found = [finding(curves, pairs, title) for title in FINDINGS]
    found += [between_pairs(curves, pairs), between_axes(curves, pairs)]
    found += [networks(records, curves, pair) for pair in pairs]
    return [*found, fifth(records, [pair for pair in pairs if pair not in PAIRS or PAIRS[pair].recipe])]


def main() -> None:
    """Figures, the tables in README.md, and how many cells are there."""
    folder = Path(sys.argv[1]) if sys.argv[1:] else HERE
    records = read_results(folder)
    measured = {cell.pair: "SPL" if "spl" in record else "top-1" for cell, record in records.items()}
    pairs = list(PAIRS) if folder == HERE else [*measured]
    readme = folder / "README.md"
    text = readme.read_text() if readme.is_file() else ""
    for table in tables(records, pairs):
        text = renewed(text, table)
    readme.write_text(text)
    for pair, measure in measured.items():
        draw(curves_of(records), pair, measure, folder / f"{pair.replace(' ', '_')}.png")
    print(f"{len(records)} cells are there")


if __name__ == "__main__":
    main()

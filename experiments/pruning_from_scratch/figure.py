"""The figure and README.md's tables of what run.py has measured, complete or not.

python -m experiments.pruning_from_scratch.figure
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from experiments.cells import Record, read, renewed
from experiments.classifiers import unpacked
from experiments.pruning_from_scratch.run import ARMS, DENSE, LONGER, RESULTS, SCRATCH, SLIMMED, STAGES, TRAINED
from navprune.evaluation.statistics import against, sample
from navprune.reports import style

HERE = Path(__file__).parent
EPOCHS, COMPUTE = "equal epochs", "equal compute"
WHOLE = "dense"
Values = dict[tuple[str, str], np.ndarray]
"""{(arm, training): whether each image was told apart [seeds, images]}."""


def values_of(records: Sequence[Record]) -> Values:
    """What every kind of training reached, of the seeds that are there."""
    found = defaultdict(list)
    for record in sorted(records, key=lambda record: record["seed"]):
        for training, told in record["trainings"].items():
            found[record["arm"], training].append(unpacked(told["right"], told["images"]))
    return {key: np.stack(each) for key, each in found.items()}


def accuracy_table(records: Sequence[Record]) -> str:
    """Top-1 on the test images by arm and training, and the difference from the dense network."""
    values = values_of(records)
    others = {key: each for key, each in values.items() if key[0] != DENSE}
    held = against(values[DENSE, WHOLE], {f"{arm}|{training}": each for (arm, training), each in others.items()})
    lines = [
        "| search | trained | seeds | top-1 (95 %) | cross-entropy | against dense (95 %) | p |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        for (name, training), each in values.items():
            if name != arm:
                continue
            loss = np.mean([r["trainings"][training]["loss"] for r in records if r["arm"] == arm])
            row = [arm, training, str(len(each)), percent(sample(each).mean().spread()), f"{loss:.3f}"]
            if told := held.get(f"{arm}|{training}"):
                row += [percent(told.difference, sign="+"), f"{told.p:.3f}"]
            else:
                row += ["", ""]
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def time_table(records: Sequence[Record]) -> str:
    """CPU seconds of each search, with what it needs before it, and of the training that follows."""
    lines = [
        "| search | CPU s, training before it included | share of the dense training | multiply-accumulates |",
        "|---|---|---|---|",
    ]
    dense = np.median([r["trainings"][WHOLE]["seconds"] for r in records if r["arm"] == DENSE])
    for arm in ARMS:
        each = [record for record in records if record["arm"] == arm]
        if each and arm != DENSE:
            search = np.median([record["search_seconds"] for record in each])
            macs = np.mean([record["reached"]["macs"] for record in each])
            lines.append(f"| {arm} | {search:.1f} | {search / dense:.0%} | {macs:.1%} |")
    return "\n".join([*lines, f"| the dense training itself | {dense:.1f} | 100% | 100% |"]) + "\n"


def inner(widths: Mapping[str, int]) -> np.ndarray:
    """The widths that gates decide: those inside residual blocks, in the order of the layers."""
    return np.array([width for name, width in widths.items() if name.endswith("conv1") and "." in name], float)


def alike(structures: Sequence[np.ndarray]) -> list[float]:
    """Correlations of the widths of every two searches, over the layers, as shares of the dense width."""
    return [float(np.corrcoef(one, other)[0, 1]) for one, other in combinations(structures, 2)]


def structures_of(records: Sequence[Record]) -> dict[str, list[np.ndarray]]:
    """What share of its dense width each layer has, by arm; of five searches with other seeds five."""
    dense = next(inner(record["widths"]) for record in records if record["arm"] == DENSE)
    found = defaultdict(list)
    for record in records:
        if record["arm"] in (SCRATCH, LONGER, SLIMMED, *TRAINED.values()):
            found[record["arm"]].append(inner(record["widths"]) / dense)
    return found


def diversity_table(records: Sequence[Record]) -> str:
    """How alike the structures of different seeds are, and how good."""
    values = values_of(records)
    lines = [
        "| searched on | correlation of two seeds' widths | deviation of a layer over seeds | top-1, equal epochs |",
        "|---|---|---|---|",
    ]
    for arm, found in structures_of(records).items():
        if len(found) > 1:
            pairs = alike(found)
            told = f"{np.mean(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f})"
            spread = np.stack(found).std(0, ddof=1).mean()
            lines.append(f"| {arm} | {told} | {spread:.3f} | {percent(sample(values[arm, EPOCHS]).mean().spread())} |")
    return "\n".join(lines) + "\n"


def percent(spread: Any, sign: str = "") -> str:
    """A mean with its interval, in per cent."""
    return f"{100 * spread.mean:{sign}.2f} ({100 * spread.low:{sign}.2f} to {100 * spread.high:{sign}.2f})"


TABLES = (accuracy_table, time_table, diversity_table)


def draw(records: Sequence[Record], path: Path) -> None:
    """Top-1 of every arm, and the structures that searches found on random and on trained weights."""
    values = values_of(records)
    with style.figure(path, 10.5, 4.6) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))
        arms = [arm for arm in ARMS if any(name == arm for name, _ in values)]
        for row, arm in enumerate(arms):
            for shift, (training, colour) in zip(
                (-0.12, 0.12), ((EPOCHS, style.SERIES[0]), (COMPUTE, style.SERIES[1]))
            ):
                key = (arm, training) if arm != DENSE else (DENSE, WHOLE)
                if key in values and not (arm == DENSE and training == COMPUTE):
                    spread = sample(values[key]).mean().spread()
                    bars = [[100 * (spread.mean - spread.low)], [100 * (spread.high - spread.mean)]]
                    left.errorbar(
                        100 * spread.mean, row + shift, xerr=bars, color=colour, marker="o", capsize=2,
                        label=training if row == 1 else None,
                    )  # fmt: skip
        left.set(yticks=range(len(arms)), yticklabels=arms, xlabel="top-1 on the test images, %")
        left.invert_yaxis()
        left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, fontsize=8)
        left.set_title("New weights in the widths found")
        structures = structures_of(records)
        shown = [arm for arm in (SCRATCH, TRAINED[STAGES[-1]], SLIMMED) if arm in structures]
        for arm, colour in zip(shown, style.SERIES):
            found = np.stack(structures[arm])
            layers = np.arange(1, found.shape[1] + 1)
            right.plot(layers, found.mean(0), color=colour, label=arm)
            right.fill_between(layers, found.min(0), found.max(0), color=colour, alpha=0.15, linewidth=0)
        right.set(xlabel="residual block", ylabel="share of the dense width", ylim=(0, None))
        right.set_title("Widths: mean and range of the seeds")
        right.legend(fontsize=8)


def main() -> None:
    """The figure, the tables in README.md or in a file of its own, and how much is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="what run.py wrote")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of README.md and figure.png")
    options = parser.parse_args()
    records, readme = read(options.results), options.out / "README.md"
    options.out.mkdir(parents=True, exist_ok=True)
    text = readme.read_text() if readme.is_file() else ""
    for table in TABLES:
        text = renewed(text, table(records))
        print(table(records))
    readme.write_text(text)
    draw(records, options.out / "figure.png")
    print(f"{len(records)} cells are there")


if __name__ == "__main__":
    main()

"""Draws top-1 against operations and renews README.md's tables, from whatever cells results.jsonl holds.

Intervals resample seeds and images independently of each other, both with replacement (the pigeonhole bootstrap: Owen,
Annals of Applied Statistics 2007). Networks are compared on the same seeds and images; the p-values of one question are
corrected together (Holm 1979), those right behind the cut apart from those behind the fine-tuning.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import PercentFormatter

from experiments.cells import Record
from experiments.classifiers import unpacked
from experiments.pruning_methods.figure import renewed
from experiments.structured_sparsity.counts import SHARE, WAYS
from experiments.structured_sparsity.run import (
    AGAIN,
    CUT,
    DEEPER,
    HERE,
    LASSO_OF,
    NONE,
    NOTHING,
    PENALTIES,
    RANDOM,
    RESULTS,
    SCRATCH,
    TRAINED,
    TUNED,
    Cell,
    Cut,
    cuts,
    read_results,
)
from navprune.comparisons.published import MEAN_ABS, SUM_SQUARES
from navprune.evaluation.statistics import LEVEL, holm, sample
from navprune.files import write_file
from navprune.pruning.config import LASSOS
from navprune.pruning.groups import BOTH, CHANNELS, FILTERS
from navprune.reports import style

PNG = HERE / "accuracy.png"
COLOURS = dict(zip((FILTERS, CHANNELS, BOTH), style.SERIES))
MARKERS = {SUM_SQUARES: "o", MEAN_ABS: "s", "group-lasso": "^"}
Records = Mapping[Cell, Record]


class Network(NamedTuple):
    """A network of every seed: a training, a cut of it (NOTHING: none), and where in its course it is measured."""

    penalty: str
    cut: Cut
    phase: str


class Pair(NamedTuple):
    """Two networks whose difference answers a question, by its label, before or at their `phase`."""

    label: str
    first: Network
    second: Network


def right(records: Records, network: Network) -> dict[int, np.ndarray]:
    """Whether each test image is told right, {seed: [images]}."""
    found = {}
    for cell, record in records.items():
        if cell.penalty == network.penalty:
            row = record if network.phase == TRAINED else row_of(record, network.cut)
            if network.phase in row:
                found[cell.seed] = unpacked(row[network.phase]["right"], row[network.phase]["images"])
    return dict(sorted(found.items()))


def row_of(record: Record, cut: Cut) -> Record:
    """What a record says of a cut; empty where it was not made."""
    return next((row for row in record["cuts"] if Cut(*(row[name] for name in Cut._fields)) == cut), {})


def spread(records: Records, network: Network) -> str:
    """Top-1 in percent with its interval."""
    found = right(records, network)
    if not found:
        return "-"
    whole = sample(np.stack(list(found.values()))).mean().spread()
    return f"{100 * whole.mean:.2f} ({100 * whole.low:.2f} to {100 * whole.high:.2f})"


def mean(records: Records, penalty: str, cut: Cut, name: str, whole: bool = False) -> str:
    """The mean of `costs` in percent."""
    values = costs(records, penalty, cut, name, whole)
    return f"{100 * np.mean(values):.1f} %" if values else "-"


def costs(records: Records, penalty: str, cut: Cut, name: str, whole: bool) -> list[float]:
    """A cost of a cut by seed; as a share of the uncut network's."""
    own = [record for cell, record in sorted(records.items()) if cell.penalty == penalty and row_of(record, cut)]
    return [row_of(record, cut)[name] / (row_of(record, NOTHING)[name] if whole else 1) for record in own]


def table(records: Records, share: float) -> str:
    """Every training and its cuts at a share, in Markdown; at that of the public table with the uncut networks."""
    head = "training | cut over | by | operations | parameters | actual ratio | before | after the cut | fine-tuned"
    lines = [f"| {100 * share:.0f} %: {head} |", "|---" * 9 + "|"]
    for penalty in PENALTIES:
        for cut in cuts(penalty):
            if cut.share != share and (cut != NOTHING or share != SHARE):
                continue
            left = [mean(records, penalty, cut, name, whole=True) for name in ("operations", "parameters")]
            phases = [spread(records, Network(penalty, cut, phase)) for phase in (TRAINED, CUT, TUNED)]
            named = ("-", "nothing cut") if cut == NOTHING else (cut.over, cut.score)
            entries = (penalty, *named, *left, mean(records, penalty, cut, "ratio"), *phases)
            lines.append(f"| {' | '.join(entries)} |")
    return "\n".join(lines) + "\n"


def questions() -> dict[str, list[Pair]]:
    """The pairs of networks that answer each question; differences behind the cut are those of the same cuts."""
    ways = [Cut(over, score, SHARE) for over, score in WAYS]
    filters = [
        Pair(f"trained with {penalty}, {100 * share:.0f} % cut by {score}: filters - {over}",
             Network(penalty, Cut(FILTERS, score, share), TUNED), Network(penalty, Cut(over, score, share), TUNED))
        for penalty, score, share in (
            (SUM_SQUARES, SUM_SQUARES, SHARE), (SUM_SQUARES, MEAN_ABS, SHARE), (NONE, SUM_SQUARES, SHARE),
            (NONE, MEAN_ABS, SHARE), (SUM_SQUARES, MEAN_ABS, DEEPER),
        )
        for over in (CHANNELS, BOTH)
    ]  # fmt: skip
    lasso = {
        (over, share): Network(LASSO_OF[over], Cut(over, "group-lasso", share), TUNED)
        for over in LASSO_OF
        for share in (SHARE, DEEPER)
    }
    filters += [
        Pair(f"group lasso, {100 * share:.0f} %: filters - {over}", lasso[FILTERS, share], lasso[over, share])
        for share in (SHARE, DEEPER)
        for over in (CHANNELS, BOTH)
    ]
    return {
        "Is filter-wise the better way?": filters,
        "Is the public penalty worth anything?": [
            Pair(f"{cut.over}, cut by {cut.score}: trained with sum-squares - none",
                 Network(SUM_SQUARES, cut, TUNED), Network(NONE, cut, TUNED))
            for cut in ways
        ],
        "Is the group lasso worth more?": [
            Pair(f"{over}: group lasso - no penalty, mean-abs",
                 lasso[over, SHARE], Network(NONE, Cut(over, MEAN_ABS, SHARE), TUNED))
            for over in LASSO_OF
        ],
        "Are the scores better than chance?": [
            Pair(f"{cut.over}, {cut.score} - random",
                 Network(SUM_SQUARES, cut, TUNED), Network(SUM_SQUARES, Cut(FILTERS, RANDOM, SHARE), TUNED))
            for cut in ways
        ],
        "Does a cut cost accuracy?": [
            Pair(f"{cut.over}, {cut.score} - nothing cut",
                 Network(SUM_SQUARES, cut, TUNED), Network(SUM_SQUARES, NOTHING, TUNED))
            for cut in ways
        ],
        "Is fine-tuning better than training the same widths from scratch?": [
            Pair(f"{cut.over}, {cut.score}: fine-tuned - from scratch",
                 Network(SUM_SQUARES, cut, TUNED), Network(SUM_SQUARES, cut, SCRATCH))
            for cut in AGAIN
        ],
    }  # fmt: skip


def difference(records: Records, pairs: Sequence[Pair]) -> dict[str, str]:
    """Differences in points of top-1 with intervals and corrected p-values, by label."""
    found = {}
    for pair in pairs:
        first, second = right(records, pair.first), right(records, pair.second)
        if seeds := first.keys() & second.keys():
            found[pair.label] = sample(np.stack([first[seed] - second[seed] for seed in sorted(seeds)])).mean()
    p = holm({label: each.p() for label, each in found.items()})
    told = {}
    for label, each in found.items():
        value, low, high = (100 * figure for figure in each.spread())
        mark = "**" if p[label] < LEVEL else ""
        told[label] = f"{mark}{value:+.2f}{mark} ({low:+.2f} to {high:+.2f}), p {p[label]:.3f}"
    return told


def answers(records: Records) -> str:
    """The differences behind every question, in Markdown."""
    lines = ["| difference in points of top-1 | right after the cut | fine-tuned |", "|---|---|---|"]
    for question, pairs in questions().items():
        early = [
            Pair(label, first._replace(phase=CUT), second._replace(phase=CUT))
            for label, first, second in pairs
            if SCRATCH not in (first.phase, second.phase)
        ]
        cut, tuned = difference(records, early), difference(records, pairs)
        lines.append(f"| **{question}** | | |")
        lines += [f"| {pair.label} | {cut.get(pair.label, '-')} | {tuned.get(pair.label, '-')} |" for pair in pairs]
    return "\n".join(lines) + "\n"


def trainings(records: Records) -> str:
    """The trained networks before any cut, and those from scratch, in Markdown."""
    lines = ["| training | top-1 (95 % interval) | units of zeros | seeds |", "|---|---|---|---|"]
    for penalty in PENALTIES:
        own = [record for cell, record in records.items() if cell.penalty == penalty]
        zeros = f"{np.mean([record['zeros'] for record in own]):.1f}" if own else "-"
        lines.append(f"| {penalty} | {spread(records, Network(penalty, NOTHING, TRAINED))} | {zeros} | {len(own)} |")
    for cut in AGAIN:
        network = Network(SUM_SQUARES, cut, SCRATCH)
        top1, seeds = spread(records, network), len(right(records, network))
        lines.append(f"| from scratch, widths of {cut.over}, {cut.score} | {top1} | - | {seeds} |")
    return "\n".join(lines) + "\n"


def page(text: str, records: Records) -> str:
    """README.md with all tables renewed."""
    for written in (trainings(records), table(records, SHARE), table(records, DEEPER), answers(records)):
        text = renewed(text, written)
    return text


def draw(records: Records, path: Path) -> None:
    """Top-1 over the operations that are left: right after the cut and fine-tuned, a panel each."""
    with style.figure(path, 9.0, 4.2) as figure:
        panels = figure.subplots(1, 2)
        for panel, phase, title in zip(panels, (CUT, TUNED), ("Right after the cut", "Fine-tuned")):
            panel.set_title(title)
            for penalty in (SUM_SQUARES, *LASSOS):
                for cut in cuts(penalty):
                    if cut.score in MARKERS:
                        point(panel, records, Network(penalty, cut, phase))
            whole = right(records, Network(SUM_SQUARES, NOTHING, phase))
            if whole:
                level = np.mean(list(whole.values()))
                panel.axhline(level, color=style.INK, linestyle=":", linewidth=1, label="nothing cut")
            panel.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
            panel.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
            panel.set_xlabel("operations left (thop's counting)")
        panels[0].set_ylabel("top-1 on test images")
        handles = dict(reversed(pair) for panel in panels for pair in zip(*panel.get_legend_handles_labels()))
        if handles:
            figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)


def point(panel, records: Records, network: Network) -> None:
    """One network with its interval; hollow at the deeper share."""
    found = right(records, network)
    if not found:
        return
    top1 = sample(np.stack(list(found.values()))).mean().spread()
    left = np.mean(costs(records, network.penalty, network.cut, "operations", whole=True))
    over, score, share = network.cut
    panel.errorbar(
        left, top1.mean, [[top1.mean - top1.low], [top1.high - top1.mean]], color=COLOURS[over], marker=MARKERS[score],
        markerfacecolor=COLOURS[over] if share == SHARE else style.PAPER, linestyle="", linewidth=1, capsize=2,
        label=f"{over}, {score}" if share == SHARE else None,
    )  # fmt: skip


def main() -> None:
    """Figure and tables; of other results, the tables are printed alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="those of other images: tables are printed alone")
    options = parser.parse_args()
    records, readme = read_results(options.results), HERE / "README.md"
    if options.results != RESULTS:
        print(page("", records))
        return
    if records:
        draw(records, PNG)
    write_file(readme, page(readme.read_text(), records).encode())
    print(f"{len(records)} cells are there")


if __name__ == "__main__":
    main()

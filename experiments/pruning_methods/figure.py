"""Draws SPL against multiply-accumulates and renews README.md's tables, from whatever cells results.jsonl holds.

Intervals resample seeds and episodes independently of each other, both with replacement (the pigeonhole bootstrap:
Owen, Annals of Applied Statistics 2007). Networks are compared with uniform's and the whole one on the same seeds and
episodes likewise; methods with random by what random cuts differ by among themselves (Student's t-test, of which a cut
is one observation). The p-values of all methods at one share are corrected together (Holm 1979).
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import PercentFormatter

from experiments.cells import renewed
from experiments.pruning_methods.grid import CONTROLS, DENSE, HERE, PROTOCOLS, RANDOM, SHARES, Cell, grid, read_results
from navprune.evaluation.statistics import LEVEL, Spread, by_luck, holm, sample
from navprune.reports import style

COLUMNS = 5
AGAINST = (*CONTROLS, DENSE)
COLOURS = dict(zip(CONTROLS, ("#8a9299", "#e08e45")))
TOGETHER = 0.0
"""In place of a share: the mean of the three."""
Measured = dict[tuple[str, float], dict[int, np.ndarray]]
"""SPL of every episode, {(method, share): {seed: [episodes]}}, in one protocol."""
Records = Mapping[Cell, dict]


class Compared(NamedTuple):
    """A difference, and how likely so large a one is by chance."""

    mean: float
    p: float


Spreads = dict[tuple[str, float], Spread]
"""SPL of every network of a protocol."""


def measured(records: Records, protocol: str) -> Measured:
    """What is there of a protocol."""
    found: Measured = {}
    for cell, record in records.items():
        if cell.protocol == protocol and "spl" in record:
            found.setdefault((cell.method, cell.share), {})[cell.seed] = np.array(record["spl"])
    for method in PROTOCOLS[protocol]:
        each = [found.get((method, share), {}) for share in SHARES]
        if seeds := set.intersection(*(set(by_seed) for by_seed in each)):
            found[method, TOGETHER] = {seed: np.mean([by_seed[seed] for by_seed in each], axis=0) for seed in seeds}
    return found


def paired(first: dict[int, np.ndarray], second: dict[int, np.ndarray]) -> np.ndarray | None:
    """Differences [seeds, episodes] over the seeds that both have."""
    seeds = sorted(first.keys() & second.keys())
    return np.stack([first[seed] - second[seed] for seed in seeds]) if seeds else None


def choices(records: Records, protocol: str, method: str, share: float) -> np.ndarray:
    """Mean SPL of each independent choice of channels: of random each cut, of any other method all its networks.

    Cuts by a method that follows data differ a little from seed to seed; they are one choice all the same.
    """
    shares = SHARES if share == TOGETHER else (share,)
    found = []
    for seed in sorted({cell.seed for cell in records if cell[:2] == (protocol, method)}):
        each = [records.get(Cell(protocol, method, own, seed), {}) for own in shares]
        if all("spl" in record for record in each):
            found.append(np.mean([record["spl"] for record in each]))
    return np.array(found if method == RANDOM else [np.mean(found)])


def comparisons(found: Measured, records: Records, protocol: str, share: float, control: str) -> dict[str, Compared]:
    """The difference of each method to a control or the whole network, with Holm's p-values."""
    compared = {}
    other = 1.0 if control == DENSE else share
    for method in PROTOCOLS[protocol]:
        differences = paired(found.get((method, share), {}), found.get((control, other), {}))
        if method == control or differences is None:
            continue
        if RANDOM in (method, control):
            first = choices(records, protocol, method, share)
            second = choices(records, protocol, control, other)
            compared[method] = Compared(first.mean() - second.mean(), by_luck(first, second))
        else:
            difference = sample(differences).mean()
            compared[method] = Compared(difference.value, difference.p())
    corrected = holm({method: each.p for method, each in compared.items()})
    return {method: each._replace(p=corrected[method]) for method, each in compared.items()}


def table(found: Measured, spreads: Spreads, records: Records, protocol: str) -> str:
    """A protocol in Markdown: SPL and its interval, marked where it differs from a control beyond chance."""
    methods = PROTOCOLS[protocol]
    columns = (*SHARES, TOGETHER)
    against = {(c, share): comparisons(found, records, protocol, share, c) for c in AGAINST for share in columns}
    heads = [*(f"{100 * share:.0f} % of the MACs" for share in SHARES), "mean of the three"]
    lines = [f"| {protocol} | {' | '.join(heads)} |", "|---|" + "---|" * len(columns)]
    for method in methods:
        entries = []
        for share in columns:
            cells = [cell for cell in grid() if cell[:3] == (protocol, method, share)]
            refused = [records.get(cell, {}).get("refused") for cell in cells]
            if (method, share) not in spreads:
                entries.append("cannot" if any(refused) else "-")
                continue
            marks = [mark(against[control, share].get(method), control) for control in AGAINST]
            missing = len(cells) - len(found[method, share]) if cells else 0
            text = [said(spreads[method, share]), *marks, f"[{missing} missing]" if missing else ""]
            entries.append(" ".join(filter(None, text)))
        lines.append(f"| {method} | {' | '.join(entries)} |")
    if (DENSE, 1.0) in spreads:
        lines.append(f"| the whole network, likewise | {said(spreads[DENSE, 1.0])} |" + " |" * (len(columns) - 1))
    return "\n".join(lines) + "\n"


def said(spread: Spread) -> str:
    """A mean and its interval."""
    return f"{spread.mean:.3f} ({spread.low:.3f} to {spread.high:.3f})"


def mark(difference: Compared | None, control: str) -> str:
    """`>u` or `<r`: significantly above uniform, below random."""
    if difference is None or difference.p >= LEVEL:
        return ""
    return f"**{'>' if difference.mean > 0 else '<'}{control[0]}**"


def spread_of(seeds: dict[int, np.ndarray]) -> Spread:
    """The spread of one network's SPL."""
    return sample(np.stack([seeds[seed] for seed in sorted(seeds)])).mean().spread()


def draw(spreads: Spreads, records: Records, protocol: str) -> None:
    """One small panel a method, the controls in each."""
    methods = [m for m in PROTOCOLS[protocol] if m not in CONTROLS]
    columns = min(COLUMNS, len(methods))
    rows = -(-len(methods) // columns)
    with style.figure(HERE / f"{protocol}.png", 2.4 * max(columns, 3), 2.1 * rows + 0.9) as figure:
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
        for panel in panels[len(methods) :]:
            panel.set_axis_off()
        for panel, method in zip(panels, methods):
            panel.set_title(method, fontsize=9, pad=4)
            if (DENSE, 1.0) in spreads:
                whole = spreads[DENSE, 1.0].mean
                panel.axhline(whole, color=style.INK, linestyle=":", linewidth=1, label="whole network")
            for name, colour in COLOURS.items():
                curve(panel, spreads, records, protocol, name, colour).set(label=name)
            line = curve(panel, spreads, records, protocol, method, style.SERIES[0], bars=True)
            line.set(label="the method, 95 % interval")
            panel.set(xticks=SHARES, xlim=(0.15, 0.85))
            panel.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
            panel.tick_params(labelbottom=True)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        figure.supylabel("SPL", fontsize=10)
        figure.suptitle(
            f"{protocol}: SPL against the share of the multiply-accumulates", fontsize=11, x=0.01, ha="left"
        )


def curve(panel, spreads: Spreads, records: Records, protocol: str, method: str, colour: str, *, bars: bool = False):
    """A method's means over the shares that are there, with intervals as bars or as a band; returns the line."""
    shares = [share for share in SHARES if (method, share) in spreads]
    found = [spreads[method, share] for share in shares]
    reached = [[r["macs"] for cell, r in records.items() if cell[:3] == (protocol, method, share)] for share in shares]
    x = [np.mean(each) for each in reached]
    means, low, high = (np.array([getattr(spread, name) for spread in found]) for name in ("mean", "low", "high"))
    if bars:
        panel.errorbar(x, means, [means - low, high - means], color=colour, linewidth=1, capsize=2, linestyle="")
    else:
        panel.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    (line,) = panel.plot(x, means, color=colour, marker="o", markersize=3, linewidth=1.6 if bars else 1.1)
    return line


def main() -> None:
    """Figures, the tables in README.md, and what is missing."""
    records = read_results()
    readme = HERE / "README.md"
    for protocol in PROTOCOLS:
        if found := measured(records, protocol):
            spreads = {network: spread_of(seeds) for network, seeds in found.items()}
            draw(spreads, records, protocol)
            written = table(found, spreads, records, protocol)
            readme.write_text(renewed(readme.read_text(), written))
            print(written)
    missing = [cell for cell in grid() if cell not in records]
    print(f"{len(records)} cells are there, {len(missing)} are missing", *missing[:5], sep="\n", end="")
    print("\n..." if len(missing) > 5 else "")


if __name__ == "__main__":
    main()

"""Draws SPL against multiply-accumulates and renews README.md's tables, from whatever cells results.jsonl holds.

Intervals and tests resample seeds and episodes independently of each other, both with replacement (the pigeonhole
bootstrap: Owen, Annals of Applied Statistics 2007, which errs on the side of too wide). Methods are compared with a
control on the same seeds and episodes; the p-values of all methods at one share are corrected together (Holm 1979).
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from grid import CONTROLS, DENSE, HERE, PROTOCOLS, SEEDS, SHARES, Cell, grid, read_results
from matplotlib.ticker import PercentFormatter

from navprune.reports import style

RESAMPLES = 10_000
CONFIDENCE = 0.95
LEVEL = 0.05
COLUMNS = 5
AGAINST = (*CONTROLS, DENSE)
COLOURS = dict(zip(CONTROLS, ("#8a9299", "#e08e45")))
TOGETHER = 0.0
"""In place of a share: the mean of the three."""
Measured = dict[tuple[str, float], dict[int, np.ndarray]]
"""SPL of every episode, {(method, share): {seed: [episodes]}}, in one protocol."""
Records = Mapping[Cell, dict]


class Spread(NamedTuple):
    """A mean, its interval, and how likely so large a mean were if the true one were 0."""

    mean: float
    low: float
    high: float
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


def bootstrap(values: np.ndarray, rng: np.random.Generator) -> Spread:
    """The spread of the mean of `values` [seeds, episodes] over both."""
    seeds, episodes = values.shape
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds
    columns = rng.multinomial(episodes, np.full(episodes, 1 / episodes), RESAMPLES) / episodes
    means = np.einsum("bs,se,be->b", rows, values, columns, optimize=True)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    mean = float(values.mean())
    beyond = np.count_nonzero(np.abs(means - mean) >= abs(mean))
    return Spread(mean, float(low), float(high), (1 + beyond) / (1 + RESAMPLES))


def paired(first: dict[int, np.ndarray], second: dict[int, np.ndarray]) -> np.ndarray | None:
    """Differences [seeds, episodes] over the seeds that both have."""
    seeds = sorted(first.keys() & second.keys())
    return np.stack([first[seed] - second[seed] for seed in seeds]) if seeds else None


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for their number (Holm 1979)."""
    corrected, floor = {}, 0.0
    for rank, name in enumerate(sorted(p, key=p.__getitem__)):
        floor = max(floor, min(1.0, (len(p) - rank) * p[name]))
        corrected[name] = floor
    return corrected


def comparisons(found: Measured, methods: tuple[str, ...], share: float, control: str) -> dict[str, Spread]:
    """The paired difference of each method to a control or the whole network, with Holm's p-values."""
    spreads = {}
    for method in methods:
        theirs = found.get((control, 1.0 if control == DENSE else share), {})
        differences = paired(found.get((method, share), {}), theirs)
        if method != control and differences is not None:
            spreads[method] = bootstrap(differences, np.random.default_rng(0))
    corrected = holm({method: spread.p for method, spread in spreads.items()})
    return {method: spread._replace(p=corrected[method]) for method, spread in spreads.items()}


def table(found: Measured, spreads: Spreads, records: Records, protocol: str) -> str:
    """A protocol in Markdown: SPL and its interval, marked where it differs from a control beyond chance."""
    methods = PROTOCOLS[protocol]
    columns = (*SHARES, TOGETHER)
    against = {(c, share): comparisons(found, methods, share, c) for c in AGAINST for share in columns}
    heads = [*(f"{100 * share:.0f} % of the MACs" for share in SHARES), "mean of the three"]
    lines = [f"| {protocol} | {' | '.join(heads)} |", "|---|" + "---|" * len(columns)]
    for method in methods:
        entries = []
        for share in columns:
            refused = [records.get(Cell(protocol, method, share, seed), {}).get("refused") for seed in SEEDS]
            if (method, share) not in spreads:
                entries.append("cannot" if any(refused) else "-")
                continue
            marks = [mark(against[control, share].get(method), control) for control in AGAINST]
            missing = len(SEEDS) - len(found[method, share])
            text = [said(spreads[method, share]), *marks, f"[{missing} missing]" if missing else ""]
            entries.append(" ".join(filter(None, text)))
        lines.append(f"| {method} | {' | '.join(entries)} |")
    if (DENSE, 1.0) in spreads:
        lines.append(f"| the whole network, likewise | {said(spreads[DENSE, 1.0])} |" + " |" * (len(columns) - 1))
    return "\n".join(lines) + "\n"


def said(spread: Spread) -> str:
    """A mean and its interval."""
    return f"{spread.mean:.3f} ({spread.low:.3f} to {spread.high:.3f})"


def mark(difference: Spread | None, control: str) -> str:
    """`>u` or `<r`: significantly above uniform, below random."""
    if difference is None or difference.p >= LEVEL:
        return ""
    return f"**{'>' if difference.mean > 0 else '<'}{control[0]}**"


def spread_of(seeds: dict[int, np.ndarray]) -> Spread:
    """The spread of one network's SPL."""
    return bootstrap(np.stack([seeds[seed] for seed in sorted(seeds)]), np.random.default_rng(0))


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
    cells = [[Cell(protocol, method, share, seed) for seed in SEEDS] for share in shares]
    x = [np.mean([records[cell]["macs"] for cell in each if "macs" in records.get(cell, {})]) for each in cells]
    means, low, high = (np.array([getattr(spread, name) for spread in found]) for name in ("mean", "low", "high"))
    if bars:
        panel.errorbar(x, means, [means - low, high - means], color=colour, linewidth=1, capsize=2, linestyle="")
    else:
        panel.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    (line,) = panel.plot(x, means, color=colour, marker="o", markersize=3, linewidth=1.6 if bars else 1.1)
    return line


def renewed(text: str, table: str) -> str:
    """A text with a table in place of the one with the same head; behind the text where there is none."""
    found = re.search(rf"^{re.escape(table.splitlines()[0])}\n(\|.*\n)*", text, re.MULTILINE)
    return f"{text[: found.start()]}{table}{text[found.end() :]}" if found else f"{text}\n{table}"


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

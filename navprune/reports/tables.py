"""Tables of encoders and of latency, as text, Markdown or cells for the page.

Rows come as the plain data that the commands write with --json: `cost`, `evaluate`, `prune` and `latency`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from navprune.images.measures import PLACES, TOP5
from navprune.reports.kinds import AGENT, Figure, Kind

MISSING = "–"
FEW = 5
"""Runs from which on intervals and tests err about as often as they say (docs/statistics.md)."""


@dataclass(frozen=True)
class Row:
    """All that was measured of one network; what does not apply, as the cost of a control, is left out."""

    name: str
    cost: dict | None = None
    """What `navprune cost --json` says of the network, of an agent of its encoder."""
    evaluation: dict | None = None
    """What `navprune evaluate --json` says of it."""
    latency: Sequence[dict] = ()
    """Those rows of `navprune latency --json` that are this network's."""
    runs: Sequence[str] = ()
    """The trainings that it was evaluated in; of a control none."""
    statistics: dict | None = None
    """{"scenes": count, measure: {"iqm": {"mean", "low", "high"}, "worst_scene": {"scene", "mean"}}}; of a classifier
    with classes in place of scenes."""
    kind: Kind = AGENT

    def to_json(self) -> dict:
        """Return all of it but the kind."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "kind"}

    def macs(self) -> float | None:
        """Return multiply-accumulates in Gi by the convention of table 1, of a classifier all of them in millions."""
        return self._counted(self.kind.macs)

    def parameters(self) -> float | None:
        """Return parameters in Mi by the convention of table 1, of a classifier all of them in millions."""
        return self._counted(self.kind.parameters)

    def _counted(self, figure: Figure) -> float | None:
        return self.cost[figure.section][figure.key] / figure.unit if self.cost else None

    def measure(self, name: str) -> dict[str, float] | None:
        """Return {"mean", "low", "high"} of a measure."""
        return self.evaluation["measures"].get(name) if self.evaluation else None

    def milliseconds(self, batch_size: int, runtime: str = "eager") -> float | None:
        """Return the median forward time at a batch size."""
        times = (r["median_ms"] for r in self.latency if (r["batch_size"], r["runtime"]) == (batch_size, runtime))
        return next(times, None)


@dataclass(frozen=True)
class Table:
    """A header and rows of finished cells; the first column is text, the others are numbers."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, ...]]

    def text(self) -> str:
        """Return it in columns of equal width for a terminal."""
        lines = (self.columns, *self.rows)
        first, *others = (max(map(len, column)) for column in zip(*lines))
        cells = ([line[0].ljust(first), *map(str.rjust, line[1:], others)] for line in lines)
        head, *rest = ("  ".join(line).rstrip() for line in cells)
        return "\n".join([head, "  ".join("-" * width for width in (first, *others)), *rest])

    def markdown(self) -> str:
        """Return it as a Markdown table."""
        rule = ("---", *("---:" for _ in self.columns[1:]))
        return "\n".join("| " + " | ".join(line) + " |" for line in (self.columns, rule, *self.rows))


def encoder_table(rows: Sequence[Row], runtime: str = "eager") -> Table:
    """Return the table of encoders or classifiers; savings are of MACs, against the first row that has a cost."""
    kind = kind_of(rows)
    baseline = next((row for row in rows if row.macs()), None)
    sizes = sorted({time["batch_size"] for row in rows for time in row.latency}) or [1, 8]
    few = any(few_classes(row.evaluation) for row in rows)
    columns = [column for column in kind.columns if not (few and column.measure == TOP5)]
    head = [kind.network, kind.macs.title, "saving", kind.parameters.title]
    for column in columns:
        head += [column.title, "95 % interval"] if column.interval else [column.title]
    cells = []
    for row in rows:
        saving = percent(saving_of(row, baseline))
        line = [row.name, significant(row.macs()), saving, significant(row.parameters())]
        for column in columns:
            found = row.measure(column.measure)
            line.append(column.form(found["mean"]) if found else MISSING)
            line += [reach(found)] if column.interval else []
        cells.append((*line, *(significant(row.milliseconds(size, runtime)) for size in sizes)))
    return Table((*head, *(f"ms, batch {size}" for size in sizes)), cells)


def kind_of(rows: Sequence[Row]) -> Kind:
    """Return what rows of one table are about."""
    return rows[0].kind if rows else AGENT


def comparison_tables(rows: Sequence[Row], comparisons: Mapping, runtime: str = "eager") -> list[Table]:
    """Return all tables of `navprune compare`: of encoders, of their runs and scenes, and against the first one."""
    spread = [spread_table(rows)] if any(row.statistics for row in rows) else []
    against = [against_table(comparisons, kind_of(rows))] if comparisons else []
    return [encoder_table(rows, runtime), *spread, *against]


def spread_table(rows: Sequence[Row]) -> Table:
    """Return how the first measure of each network spreads over its runs and scenes, or classes."""
    kind = kind_of(rows)
    group, cells = kind.groups[0], []
    for row in rows:
        if row.statistics:
            middle, worst = row.statistics[kind.score]["iqm"], row.statistics[kind.score][f"worst_{group}"]
            name = Path(worst[group]).stem.partition(".")[0] if kind is AGENT else worst[group]
            runs = str(len(row.runs)) if row.runs else MISSING
            cells.append((row.name, runs, f"{middle['mean']:.3f}", reach(middle), name, f"{worst['mean']:.3f}"))
    head = kind.title, "runs", "interquartile mean", "95 % interval", f"worst {group}", f"{kind.title} there"
    return Table(head, cells)


def against_table(comparisons: Mapping, kind: Kind = AGENT) -> Table:
    """Return every network against the reference, from what `navprune compare --json` calls comparisons."""
    cells = []
    for each in comparisons["measures"][kind.score]:
        difference, wins, inferior = each["difference"], each["improvement"], each["non_inferiority"]
        verdict = f"{'' if inferior['shown'] else 'not '}shown, p {chance(inferior['p'])}"
        change = f"{difference['mean']:+.3f}", reach(difference, "+.3f"), chance(difference["p"])
        better = f"{100 * wins['mean']:.0f} %", f"{100 * wins['low']:.0f} to {100 * wins['high']:.0f} %"
        cells.append((each["name"], *change, *better, f"{inferior['at_least']:+.3f}", verdict))
    head = f"{kind.title} against {comparisons['reference']}"
    wins_head, test = (f"better in, of {kind.unit}", "95 % interval"), f"worse by less than {comparisons['margin']:g}"
    return Table((head, "difference", "95 % interval", "p", *wins_head, "at least, 95 % sure", test), cells)


def few_runs(rows: Sequence[Row]) -> list[str]:
    """Return what a reader must know of intervals over few runs or a single scene."""
    kind = kind_of(rows)
    counts = sorted({len(row.runs) for row in rows if row.runs and row.statistics})
    lines = []
    if 1 in counts:
        lines.append(f"Of one run, intervals and tests speak of {kind.drawn} alone, not of other trainings.")
    if few := [str(count) for count in counts if 1 < count < FEW]:
        lines.append(
            f"Of {' or '.join(few)} runs, intervals are too narrow where trainings differ by more than {kind.unit} do "
            "(docs/statistics.md)."
        )
    if any(row.statistics and row.statistics.get("scenes") == 1 for row in rows):
        lines.append("Of one scene, intervals and tests speak of its episodes alone, not of other scenes.")
    return lines


def few_classes(evaluation: Mapping | None) -> list[str]:
    """Return why tables leave top-5 out, where an evaluation is of so few classes that it says nothing."""
    few = evaluation is not None and evaluation.get("classes", math.inf) <= PLACES[TOP5]
    return ["top-5 is left out: of five classes or fewer it is always 1."] if few else []


def reach(spread: Mapping | None, form: str = ".3f") -> str:
    """Write an interval, from {"low", "high"}."""
    return f"{spread['low']:{form}} to {spread['high']:{form}}" if spread else MISSING


def chance(p: float) -> str:
    """Write a p-value."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def saving_of(row: Row, baseline: Row | None) -> float | None:
    """Return the share of the baseline's multiply-accumulates that `row` does without; None for itself."""
    before, after = baseline.macs() if baseline else None, row.macs()
    return None if row is baseline or not before or after is None else 1 - after / before


def describe(rows: Sequence[Row]) -> str:
    """Return a sentence for each network behind the first: what it saves on paper and on the clock, what it reaches."""
    kind, seeing = kind_of(rows), [row for row in rows if row.cost]
    sentences = []
    for row in seeing[1:]:
        found, before, after = row.measure(kind.score), seeing[0].milliseconds(1), row.milliseconds(1)
        if found and before and after:
            sentences.append(
                f"Against {seeing[0].name}, {row.name} needs {percent(saving_of(row, seeing[0]))} fewer "
                f"multiply-accumulates, takes {percent(1 - after / before)} less time at batch 1, and its "
                f"{kind.title} is {found['mean']:.3f} ({reach(found)})."
            )
    return " ".join(sentences)


FIGURES = {
    "table 1 MACs (Gi)": ("table1", "macs_gi", 1.0),
    "table 1 parameters (Mi)": ("table1", "parameters_mi", 1.0),
    "deployed MACs (M)": ("deployed", "macs", 1e6),
    "deployed parameters (M)": ("deployed", "parameters", 1e6),
    "thop's operations (M)": ("thop", "operations", 1e6),
}
"""What is said of costs by each convention: section, key and unit; table 1 is of encoders, thop of classifiers."""


def cost_table(costs: Mapping[str, dict]) -> Table:
    """Return the ways to count networks side by side, from {name: what `navprune cost --json` says}."""
    cells = []
    for name, cost in costs.items():
        figures = {words: significant(cost[kind][key] / unit) for words, (kind, key, unit) in _said(cost)}
        cells.append({"network": name, "input": " x ".join(map(str, cost["input"])), **figures})
    return rows_table(cells)


def _said(cost: Mapping) -> list[tuple[str, tuple[str, str, float]]]:
    """Those of `FIGURES` that a network's cost has."""
    return [(words, place) for words, place in FIGURES.items() if place[0] in cost]


def latency_table(rows: Sequence[dict]) -> Table:
    """Return rows of `navprune latency --json`: what is saved of the time, and of the deployed multiply-accumulates."""
    cells = []
    for row in rows:
        times = row["median_ms"], row["p95_ms"], row.get("p99_ms")
        savings = row["saving_realised"], row["saving_theoretical"]
        kind = row["model"], row["runtime"], str(row["batch_size"])
        cells.append((*kind, *map(significant, times), *map(percent, savings)))
    savings = "saved, realised", "in theory (deployed MACs)"
    return Table(("network", "runtime", "batch", "median ms", "p95 ms", "p99 ms", *savings), cells)


def measure_table(evaluation: dict) -> Table:
    """Return the means of what `navprune evaluate --json` says, with their intervals."""
    few, measures = few_classes(evaluation), evaluation["measures"].items()
    shown = [(name, measure) for name, measure in measures if not (few and name == TOP5)]
    cells = [(name.replace("_", " "), f"{measure['mean']:.3f}", reach(measure)) for name, measure in shown]
    return Table(("measure", "mean", "95 % interval"), cells)


def pruning_table(pruning: dict) -> Table:
    """Return what `navprune prune --json` says: cost by each convention, then every width, before and after."""
    before, after = pruning["before"], pruning["after"]
    cells = []
    for name, (kind, key, unit) in _said(before):
        pair = before[kind][key] / unit, after[kind][key] / unit
        cells.append((name, *map(significant, pair), percent(1 - pair[1] / pair[0])))
    cells += [(name, str(a), str(b), percent(1 - b / a)) for name, (a, b) in pruning["widths"].items()]
    return Table(("", "before", "after", "cut"), cells)


def masks_table(checkpoints: Sequence[dict]) -> Table:
    """Return what `navprune prune --masks --json` says of its checkpoints: a row for each ratio."""
    cells = []
    for found in checkpoints:
        ratios, (every, left) = found["compression"], found["parameters"]
        figures = significant(ratios["reached"]), significant(found["theoretical_speedup"]), percent(left / every)
        cells.append((f"{ratios['asked']:g}", *figures))
    return Table(("compression", "reached", "speed-up in theory", "parameters left"), cells)


def probe_table(probe: dict) -> Table:
    """Return what `pruning.json` says under "probe": milliseconds of every block by the fit, and of the whole."""
    cells = []
    for place, found in probe["places"].items():
        dense, left = found["ms"][-1][1], found["left"][1]
        cells.append((place, significant(dense), significant(left), percent(1 - left / dense) if dense else MISSING))
    dense = probe["dense_ms"]
    for name in ("fitted", "predicted", "measured"):
        whole = probe[f"{name}_ms"]
        cells.append((f"all, {name}", significant(dense), significant(whole), percent(1 - whole / dense)))
    return Table(("milliseconds", "before", "after", "cut"), cells)


MOST_COLUMNS = 6
ERRORS = ("geodesic.median", "geodesic.p99", "geodesic.max")
"""Figures of parity that are no shares."""


def parity_table(parity: dict) -> Table:
    """Return what `navprune parity --json` says: a column for each scene, and what each is to reach.

    Of more than `MOST_COLUMNS` scenes, the one that is worst in a figure, and the mean of all.
    """
    scenes = {name: dict(_dotted(figures)) for name, figures in parity["scenes"].items()}
    many = len(scenes) > MOST_COLUMNS
    cells = []
    for way in dict.fromkeys(way for figures in scenes.values() for way in figures):
        figure = ".".join(way.split(".")[2:]) if way.startswith("cameras.") else way  # as of the scene's first camera
        ((words, limit),) = parity["required"].get(figure, {"": None}).items()
        bound = f"{words.replace('_', ' ')} {_agreement(way, limit)}" if words else MISSING
        found = {name: figures.get(way) for name, figures in scenes.items()}
        columns = _worst_and_mean(way, found) if many else [_agreement(way, figure) for figure in found.values()]
        cells.append((way.replace(".", ", ").replace("_", " "), *columns, bound))
    return Table(("agreement", *(("worst", "scene", "mean") if many else scenes), "required"), cells)


def _worst_and_mean(way: str, found: Mapping[str, float | None]) -> list[str]:
    """The worst figure, the scene that has it, and the mean."""
    figures = {name: figure for name, figure in found.items() if figure is not None}
    if not figures:
        return [MISSING] * 3
    worst = (max if way in ERRORS else min)(figures, key=lambda name: figures[name])
    return [_agreement(way, figures[worst]), worst, _agreement(way, sum(figures.values()) / len(figures))]


def _dotted(figures: Mapping, prefix: str = "") -> Iterator[tuple[str, float | None]]:
    """Yield the leaves of nested figures with the keys that lead to them, joined by dots."""
    for key, value in figures.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _agreement(way: str, figure: float | None) -> str:
    """Write a share in per cent, cut off so that 100 means all, and a relative error as it is."""
    if way in ERRORS:
        return MISSING if figure is None else f"{figure:.1e}"
    return MISSING if figure is None else f"{round(1e6 * figure) // 100 / 100:.2f} %"


def rows_table(rows: Sequence[dict]) -> Table:
    """Return plain rows as they are, under their own keys."""
    columns = dict.fromkeys(key for row in rows for key in row)
    cells = [tuple(_plain(row.get(key)) for key in columns) for row in rows]
    return Table([key.replace("_", " ") for key in columns], cells)


def _plain(value: object) -> str:
    if isinstance(value, float):
        return significant(value)
    return MISSING if value is None else str(value)


def significant(value: float | None) -> str:
    """Write a number with three significant digits, but no more than four decimals."""
    if value is None:
        return MISSING
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 0.1 else f"{value:#.3g}"


def percent(share: float | None) -> str:
    """Write a share, 0 to 1, in per cent."""
    return MISSING if share is None else f"{100 * share:.1f} %" if share > -1 else f"{1 - share:.3g} times as much"

"""Figures: SPL or accuracy against cost, learning curves, widths before and after, savings on paper and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, PercentFormatter

from navprune.errors import UserError
from navprune.reports import style
from navprune.reports.tables import Row, kind_of

TITLES = {"macs": "MACs", "latency": "milliseconds"}
"""What measures are called in titles, where not as in budgets."""


@dataclass(frozen=True)
class Curve:
    """A quantity over a training: `frames` [K], `seconds` [K] since its beginning, `values` [K]."""

    frames: np.ndarray
    seconds: np.ndarray
    values: np.ndarray


def read_curve(folder: str | Path, tag: str) -> Curve:
    """Read the scalar `tag` from the TensorBoard files in `folder`; raises UserError where there is none.

    In the order of frames; where the clock was set back, no time has passed.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # slow to import

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    if tag not in tags:
        known = ", ".join(sorted(tags)) or "nothing"
        raise UserError(f"no curve {tag} in the TensorBoard files of {folder}; it holds {known}")
    scalars = sorted(events.Scalars(tag), key=lambda scalar: scalar.step)
    passed = np.diff([scalar.wall_time for scalar in scalars], prepend=scalars[0].wall_time)
    steps, values = ([getattr(scalar, name) for scalar in scalars] for name in ("step", "value"))
    return Curve(np.array(steps), passed.clip(0).cumsum(), np.array(values))


def plot_learning_curves(
    path: str | Path,
    curves: Mapping[str, Curve],
    label: str = "SPL",
    by: str = "frames",
    smoothing: int = 1,
    frames: str = "frames",
) -> None:
    """Draw `curves` over what a run counts, called `frames`, or over wall time where `by` is "seconds".

    Strong lines are means of `smoothing` points.
    """
    with style.figure(path) as figure:
        axes = figure.add_subplot()
        for (name, curve), colour in zip(curves.items(), style.SERIES):
            x = curve.frames if by == "frames" else curve.seconds / 60
            if smoothing > 1:
                axes.plot(x, curve.values, color=colour, alpha=0.2, linewidth=1)
            axes.plot(x, running_mean(curve.values, smoothing), color=colour, label=name)
        axes.set(ylabel=label, xlabel=frames if by == "frames" else "minutes")
        if by == "frames":
            axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        axes.margins(x=0.02)
        axes.legend(loc="best")


def running_mean(values: np.ndarray, count: int) -> np.ndarray:
    """Return the means [K] of each of `values` [K] and up to `count` - 1 before it."""
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - count, 0)
    return (total[ends] - total[starts]) / (ends - starts)


def plot_scores(path: str | Path, rows: Sequence[Row], by: str = "macs", runtime: str = "eager") -> None:
    """Draw SPL (of classifiers top-1) with its interval against multiply-accumulates, or milliseconds at batch 1.

    `by` is "macs" or "latency".
    Agents without a cost are drawn as level lines: the controls that the others are to be held against.
    """
    controls, kind = {}, kind_of(rows)
    with style.figure(path, height=4.4) as figure:
        axes = figure.add_subplot()
        for i, row in enumerate(rows):
            x = row.macs() if by == "macs" else row.milliseconds(1, runtime)
            found, colour = row.measure(kind.score), style.SERIES[i % len(style.SERIES)]
            if found and not row.macs():
                controls[row.name] = found["mean"]
            if found and x:
                reach = [[found["mean"] - found["low"]], [found["high"] - found["mean"]]]
                looks: dict[str, Any] = {"fmt": "o", "markersize": 8, "elinewidth": 1.6, "capsize": 4}
                axes.errorbar(x, found["mean"], reach, color=colour, label=row.name, **looks)
        for i, (name, mean) in enumerate(sorted(controls.items(), key=lambda item: item[1])):
            axes.axhline(mean, color=style.MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            # Sides alternate, so that the names of neighbours do not run into each other.
            side, place = (("left", 0.01), ("right", 0.99))[i % 2]
            at: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "ha": side}
            axes.annotate(name, (place, mean), (0, 3), color=style.MUTED, fontsize=8.5, **at)
        label = f"{kind.macs.title}, of {kind.counted}" if by == "macs" else f"milliseconds, batch 1, {runtime}"
        axes.set(ylabel=f"{kind.title}, with its 95 % interval", xlabel=label, ylim=kind.axis)
        axes.set_xlim(0, 1.12 * axes.dataLim.x1)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3)


def plot_widths(path: str | Path, widths: Mapping[str, Sequence[int]], title: str = "") -> None:
    """Draw channels before and after pruning for each group of `widths` {name: [before, after]}."""
    with style.figure(path, max(6.4, 0.24 * len(widths)), 4.2) as figure:
        axes = figure.add_subplot()
        _channels(axes, widths, title)
        axes.set_xticks(range(len(widths)), list(widths), rotation=90, fontsize=8)


def widths_figure(path: str | Path, pruning: Mapping) -> None:
    """Draw what `pruning.json` says, in the order of depth: every width before and after, and the share that is left.

    A line marks the width before where it grew, as with gates in a wider network.
    """
    widths = pruning["widths"]
    shares = [f"{100 * share:.1f} % of the {TITLES.get(name, name)}" for name, share in pruning["reached"].items()]
    with style.figure(path, max(6.4, 0.24 * len(widths)), 5.4) as figure:
        channels, kept = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.4))
        _channels(channels, widths, f"{pruning['method']}: {', '.join(shares)}")
        kept.bar(range(len(widths)), [after / before for before, after in widths.values()], 0.78, color=style.SERIES[0])
        kept.axhline(1, color=style.LINE, linewidth=1)
        kept.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        kept.set(ylabel="left", ylim=(0, None))
        kept.grid(visible=False, axis="x")
        kept.set_xticks(range(len(widths)), list(widths), rotation=90, fontsize=8)


def milliseconds_figure(path: str | Path, probe: Mapping) -> None:
    """Draw what `pruning.json` says under "probe": milliseconds of each block over its widths, and what is left of it.

    One panel for each stage and one for what lies outside of stages; a ring is what stays of a block, a cross one that
    is gone.
    """
    stages: dict[str, dict[str, Mapping]] = {}
    for place, found in probe["places"].items():
        stage = place.rpartition(".")[0] if "layer" in place else "outside of stages"
        stages.setdefault(stage.removeprefix("backbone."), {})[place] = found
    with style.figure(path, 3.2 * len(stages), 3.8) as figure:
        panels = figure.subplots(1, len(stages), squeeze=False)[0]
        for axes, (stage, places) in zip(panels, stages.items()):
            for i, (place, found) in enumerate(places.items()):
                colour, (share, left) = style.SERIES[i % len(style.SERIES)], found["left"]
                axes.plot(*np.array(found["ms"]).T, color=colour, label=place.rpartition("layer")[2] or place)
                look = "o" if left else "x"
                axes.plot(share or 1.0, left or found["ms"][-1][1], look, color=colour, fillstyle="none", markersize=8)
            axes.set(title=stage, xlabel="share of channels", ylim=(0, None))
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.legend(fontsize=8)
        panels[0].set_ylabel(f"ms, {probe['runtime']}, batch {probe['batch']}")


def _channels(axes: Axes, widths: Mapping[str, Sequence[int]], title: str) -> None:
    before, after = np.array(list(widths.values())).T
    places = np.arange(len(widths))
    axes.bar(places, before, 0.78, color="#dfe6ea", label="before")
    axes.bar(places, after, 0.78, color=style.SERIES[0], label="after")
    grown = after > before
    axes.hlines(before[grown], places[grown] - 0.39, places[grown] + 0.39, color="#dfe6ea", linewidth=1.6)
    axes.set(ylabel="channels", xlim=(-0.6, len(widths) - 0.4), title=title)
    axes.grid(visible=False, axis="x")
    axes.legend(loc="upper left")


def plot_savings(path: str | Path, rows: Sequence[dict]) -> None:
    """Draw the realised saving of each latency row beside the theoretical one, model by model."""
    shown = [row for row in rows if row.get("saving_realised") is not None and row["saving_theoretical"]]
    models = list(dict.fromkeys(row["model"] for row in shown))
    kinds = list(dict.fromkeys((row["runtime"], row["batch_size"]) for row in shown))
    width = 0.8 / max(len(kinds), 1)
    with style.figure(path) as figure:
        axes = figure.add_subplot()
        for i, (runtime, batch) in enumerate(kinds):
            mine = [r for r in shown if (r["runtime"], r["batch_size"]) == (runtime, batch)]
            places = [models.index(r["model"]) + (i - (len(kinds) - 1) / 2) * width for r in mine]
            heights, colour = [r["saving_realised"] for r in mine], style.SERIES[i % len(style.SERIES)]
            axes.bar(places, heights, 0.9 * width, color=colour, label=f"{runtime}, batch {batch}")
        for i, model in enumerate(models):
            theory = next(r["saving_theoretical"] for r in shown if r["model"] == model)
            label = "in theory (deployed MACs)" if i == 0 else ""
            axes.hlines(theory, i - 0.45, i + 0.45, color=style.INK, linewidth=1.6, label=label)
        axes.set_xticks(range(len(models)), models)
        axes.tick_params(axis="x", labelcolor=style.INK)
        axes.axhline(0, color=style.LINE, linewidth=1)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set(ylabel="time saved", xlim=(-0.6, len(models) - 0.4))
        axes.grid(visible=False, axis="x")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3)

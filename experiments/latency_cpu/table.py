"""Renews the page of a latency study from its results: everything behind the heading "Results", and the figures.

python -m experiments.latency_cpu.table
"""

from collections.abc import Sequence
from pathlib import Path

from experiments.latency_cpu.networks import DENSE, Row, read_rows
from navprune.files import write_file
from navprune.reports import style
from navprune.reports.tables import MISSING, Table, percent, reach, significant

HERE = Path(__file__).parent
HEADING = "## Results\n"
EMPTY = "Not measured yet.\n"
COLOURS = dict(zip(("probe", "uniform", "gates", "ResNet18", DENSE), style.SERIES))


def of(rows: Sequence[Row], step: str) -> list[Row]:
    """The rows of one step."""
    return [row for row in rows if row["step"] == step]


def page(rows: Sequence[Row]) -> str:
    """What is behind the heading: where it was measured, and a section for each step that is there."""
    places = of(rows, "place")
    if not places:
        return EMPTY
    place = places[0]
    versions = ", ".join(dict.fromkeys(place["versions"].values()))
    told = [f"{place['device']}; Python {place['python']}, {versions}; {place['date']}."]
    told += [f"Left out: {name} ({fault})." for name, fault in place.get("missing", {}).items()]
    sections = [
        f"### {title}\n\n{made(rows)}\n" for title, step, made in SECTIONS if any(row["step"] == step for row in rows)
    ]
    return "\n".join([" ".join(told) + "\n", *sections])


def searches(rows: Sequence[Row]) -> str:
    """Seconds of the searches, and what they predicted and measured."""
    cells = []
    for row in of(rows, "search"):
        seconds = [f"{row['seconds']:.0f}", MISSING] if row["fresh"] else [MISSING, f"{row['seconds']:.0f}"]
        milliseconds = [significant(row[name]) for name in ("dense_ms", "predicted_ms", "measured_ms")]
        left = [percent(row["reached"][name]) for name in ("macs", "latency")]
        kept = percent(row["importance_kept"]), percent(row["error"])
        cells.append((row["runtime"], row["budget"], *seconds, *milliseconds, *left, *kept))
    columns = (
        "runtime", "budget", "search, s", "with the cache, s", "dense ms", "predicted ms", "measured ms",
        "MACs left", "time left", "importance kept", "error of predictions",
    )  # fmt: skip
    return Table(columns, cells).markdown()


def encoders(rows: Sequence[Row]) -> str:
    """A table for each number of threads, of a GPU one: all networks in each runtime, batch sizes side by side."""
    timed = of(rows, "table")
    parts = []
    for threads in dict.fromkeys(row["threads"] for row in timed):
        mine = [row for row in timed if row["threads"] == threads]
        words = {None: "", 1: "One thread, its seconds of work:\n\n"}.get(
            threads, f"{threads} threads, by the clock:\n\n"
        )
        parts.append(words + times_table(mine))
    return "\n\n".join(parts)


def times_table(rows: Sequence[Row]) -> str:
    """Median and 95th percentile, what is saved of the time, and how much of the theoretical saving that is."""
    sizes = list(dict.fromkeys(row["batch_size"] for row in rows))
    found = {(row["runtime"], row["model"], row["batch_size"]): row for row in rows}
    cells = []
    for runtime, model in dict.fromkeys(key[:2] for key in found):
        own = [found.get((runtime, model, size)) for size in sizes]
        theory = next(row["saving_theoretical"] for row in own if row)
        cells.append(
            (runtime, model, percent(theory) if theory else MISSING, *(text for row in own for text in _times(row)))
        )
    columns = (text for size in sizes for text in (f"batch {size}, ms (p95)", "saved (of theory)"))
    return Table(("runtime", "network", "saved in theory", *columns), cells).markdown()


def _times(row: Row | None) -> tuple[str, str]:
    if row is None or row["median_ms"] is None:
        return MISSING, MISSING
    times = f"{significant(row['median_ms'])} ({significant(row['p95_ms'])})"
    realised, theory = row["saving_realised"], row["saving_theoretical"]
    return times, f"{percent(realised)} ({realised / theory:.2f})" if theory and realised is not None else MISSING


def predictions(rows: Sequence[Row]) -> str:
    """Of probed networks, the shares of the dense time: predicted, and as measured later beside all others."""
    timed = {(row["runtime"], f"probe {row['budget']}"): row for row in of(rows, "search")}
    cells = []
    for row in of(rows, "table"):
        search = timed.get((row["runtime"], row["model"]))
        if search is None or (row["threads"] or 1, row["batch_size"]) != (1, 1) or row["saving_realised"] is None:
            continue
        predicted, measured = search["predicted_ms"] / search["dense_ms"], 1 - row["saving_realised"]
        name, _, limit = search["budget"].partition("=")
        off = _off(measured / float(limit)) if name == "latency" else MISSING
        shares = percent(predicted), percent(search["reached"]["latency"]), percent(measured)
        cells.append((row["runtime"], search["budget"], *shares, _off(measured / predicted), off))
    columns = "runtime", "budget", "predicted", "in the search", "in the table", "off the prediction", "off the budget"
    return Table(columns, cells).markdown()


def _off(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def steps(rows: Sequence[Row]) -> str:
    """The whole policy step."""
    return times_table(of(rows, "step"))


def speedups(rows: Sequence[Row]) -> str:
    """How many times as fast as the dense encoder in eager, with the 95 % interval."""
    cells = [
        (row["runtime"], row["model"], str(row["threads"]), f"{row['times']:.2f}", f"± {row['half']:.2f}")
        for row in sorted(of(rows, "speedup"), key=lambda row: (row["threads"], -row["times"]))
    ]
    return Table(("runtime", "network", "threads", "times as fast", "95 %"), cells).markdown()


def frontier(rows: Sequence[Row]) -> str:
    """The networks of the frontier, and its picture."""
    cells = [
        (row["model"], row["budget"], significant(row["macs"] / 1e6), percent(row["importance_kept"]),
         significant(row["median_ms"]), significant(row["p95_ms"]))
        for row in of(rows, "frontier")
    ]  # fmt: skip
    columns = "network", "budget", "MACs (M)", "importance kept", "median ms", "p95 ms"
    runtime = of(rows, "frontier")[0]["runtime"]
    return f"In {runtime}, batch 1, one thread.\n\n{Table(columns, cells).markdown()}\n\n![Frontier](frontier.png)"


def agents(rows: Sequence[Row]) -> str:
    """Trained agents: each with SPL and its interval, and the time of its encoder."""
    cells = [
        (row["name"], row["run"], f"{row['spl']['mean']:.3f}", reach(row["spl"]), significant(row["macs"] / 1e6),
         significant(row["median_ms"]), significant(row["p95_ms"]))
        for row in of(rows, "spl")
    ]  # fmt: skip
    columns = "agent", "run", "SPL", "95 % interval", "MACs (M)", "median ms", "p95 ms"
    first = of(rows, "spl")[0]
    text = f"{first['episodes']} episodes each; encoders in {first['runtime']}, batch 1, one thread."
    return f"{text}\n\n{Table(columns, cells).markdown()}\n\n![SPL](spl.png)"


SECTIONS = (
    ("Searches", "search", searches),
    ("Encoders", "table", encoders),
    ("Predicted against measured", "search", predictions),
    ("Whole policy steps", "step", steps),
    ("From the dense encoder in eager to the pruned one deployed", "speedup", speedups),
    ("Frontier", "frontier", frontier),
    ("SPL against milliseconds", "spl", agents),
)


def draw_frontier(rows: Sequence[Row], path: Path) -> None:
    """Milliseconds against multiply-accumulates, and kept importance against milliseconds."""
    with style.figure(path, 9.6, 4.4) as figure:
        axes, kept = figure.subplots(1, 2)
        for model in dict.fromkeys(row["model"] for row in rows):
            mine = sorted((row for row in rows if row["model"] == model and row["median_ms"]), key=lambda r: r["macs"])
            macs, milliseconds = ([row[name] for row in mine] for name in ("macs", "median_ms"))
            look = {"color": COLOURS[model], "marker": "o", "linestyle": "", "label": model}
            axes.plot([each / 1e6 for each in macs], milliseconds, **look)
            shares = [row["importance_kept"] for row in mine]
            if None not in shares:
                kept.plot(milliseconds, shares, **look)
        axes.set(xlabel="multiply-accumulates (M, deployed)", ylabel="ms an image", xlim=(0, None), ylim=(0, None))
        kept.set(xlabel="ms an image", ylabel="importance kept (l1)", xlim=(0, None))
        axes.legend(loc="best")


def draw_spl(rows: Sequence[Row], path: Path) -> None:
    """SPL of every run with its interval, against the milliseconds of its encoder."""
    with style.figure(path, height=4.4) as figure:
        axes = figure.add_subplot()
        for i, name in enumerate(dict.fromkeys(row["name"] for row in rows)):
            mine = [row for row in rows if row["name"] == name]
            spl = [row["spl"] for row in mine]
            gaps = [[each["mean"] - each["low"] for each in spl], [each["high"] - each["mean"] for each in spl]]
            colour = style.SERIES[i % len(style.SERIES)]
            milliseconds, means = [row["median_ms"] for row in mine], [each["mean"] for each in spl]
            axes.errorbar(milliseconds, means, gaps, fmt="o", color=colour, capsize=3, elinewidth=1.2, label=name)
        axes.set(xlabel="ms an image", ylabel="SPL, with its 95 % interval", xlim=(0, None), ylim=(0, 1))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3)


def renewed(text: str, results: str) -> str:
    """A page with these results behind its heading, which comes at its end where it has none."""
    before = text.partition(HEADING)[0].rstrip()
    return f"{before}\n\n{HEADING}\n{results}".lstrip()


def write(folder: Path) -> None:
    """Write README.md and the figures of a folder with results."""
    rows, readme = read_rows(folder / "results.jsonl"), folder / "README.md"
    if found := of(rows, "frontier"):
        draw_frontier(found, folder / "frontier.png")
    if found := of(rows, "spl"):
        draw_spl(found, folder / "spl.png")
    before = readme.read_text() if readme.is_file() else ""
    write_file(readme, renewed(before, page(rows)).encode())


if __name__ == "__main__":
    write(HERE)

"""One HTML page that holds a whole comparison and needs no network to be read."""

from __future__ import annotations

import base64
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment
from markupsafe import Markup

from navprune.costs.latency import device_name
from navprune.files import write_file
from navprune.reports import plots
from navprune.reports.kinds import Kind, listed, sentence
from navprune.reports.plots import Curve
from navprune.reports.tables import Row, comparison_tables, cost_table, kind_of, latency_table

TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Picture:
    """A PNG, GIF or MP4 file and what it shows; a wide one takes the whole width of the page."""

    path: Path
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class Report:
    """All that a page says; empty parts are left out."""

    title: str
    rows: Sequence[Row]
    lead: str = ""
    """One paragraph: what was asked, and the answer."""
    limits: Sequence[str] = ()
    """What limits the result, one sentence each."""
    commands: Sequence[str] = ()
    """The commands that gave it."""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    """SPL (of classifiers top-1) in training."""
    prunings: Mapping[str, dict] = field(default_factory=dict)
    """What `navprune prune --json` said, by the name of the pruned network."""
    episodes: Sequence[Picture] = ()
    """Maps and videos."""
    comparisons: Mapping[str, Any] = field(default_factory=dict)
    """Every agent against the first, as `navprune compare --json` says it."""
    runtime: str = "eager"
    """The runtime whose milliseconds stand in the table of encoders."""

    @property
    def kind(self) -> Kind:
        """What it is about."""
        return kind_of(self.rows)

    def measures(self) -> str:
        """Return the measures in its table, in words that begin a sentence."""
        return sentence(listed([column.title for column in self.kind.columns]))

    def sample(self) -> str:
        """Return what the networks were evaluated on."""
        done, unit = [row.evaluation for row in self.rows if row.evaluation], self.kind.unit
        counts = sorted({(evaluation["split"], evaluation[unit]) for evaluation in done})
        return " and ".join(f"{count} {unit} of {split}" for split, count in counts) or f"no {unit}"

    def latency(self) -> list[dict]:
        """Return the rows of latency of all agents."""
        return [line for row in self.rows for line in row.latency]


def write_report(out: Path, report: Report) -> Path:
    """Write `out`/report.html, the figures beside it and the tables as table.md; return the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    tables = comparison_tables(report.rows, report.comparisons, report.runtime)
    write_file(out / "table.md", ("\n\n".join(table.markdown() for table in tables) + "\n").encode())
    jinja = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = jinja.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        tables=tables,
        costs=cost_table({row.name: row.cost for row in report.rows if row.cost}),
        latency=latency_table(report.latency()),
        figures=draw_figures(out / "figures", report),
        embed=embed,
        listed=listed,
        hardware=hardware(),
        date=datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
    )
    path = out / "report.html"
    write_file(path, page.encode())
    return path


def draw_figures(folder: Path, report: Report) -> list[Picture]:
    """Draw into `folder` whatever the report has numbers for."""
    rows, kind, pictures = report.rows, report.kind, []

    def draw(name: str, caption: str, plot: Callable, *arguments: Any, wide: bool = False, **options: Any) -> None:
        plot(folder / name, *arguments, **options)
        pictures.append(Picture(folder / name, caption, wide))

    if any(row.cost and row.evaluation for row in rows):
        dashed = " Dashed: agents without an encoder." if any(not row.cost for row in rows) else ""
        draw(f"{kind.score}_macs.png", sentence(f"{kind.title} against multiply-accumulates.{dashed}"),
             plots.plot_scores, rows)  # fmt: skip
    if any(row.milliseconds(1, report.runtime) and row.evaluation for row in rows):
        draw(f"{kind.score}_latency.png", sentence(f"{kind.title} against measured time."),
             plots.plot_scores, rows, by="latency", runtime=report.runtime)  # fmt: skip
    if any(line.get("saving_theoretical") for line in report.latency()):
        draw("savings.png", "Time saved on the clock, against deployed multiply-accumulates saved on paper.",
             plots.plot_savings, report.latency())  # fmt: skip
    if report.curves:
        draw("curves.png", kind.curve, plots.plot_learning_curves, report.curves,
             label=kind.title, smoothing=kind.smoothing, frames=kind.frames)  # fmt: skip
    for name, pruning in report.prunings.items():
        file = "widths_" + "".join(c if c.isalnum() else "_" for c in name) + ".png"
        draw(file, f"Channels of {name} before and after pruning by {pruning['method']}.",
             plots.plot_widths, pruning["widths"], wide=True)  # fmt: skip
    return pictures


def embed(picture: Picture) -> Markup:
    """Return an <img> or <video> element that holds the file itself."""
    kind = {".png": "image/png", ".gif": "image/gif", ".mp4": "video/mp4"}[picture.path.suffix]
    source = f"data:{kind};base64,{base64.b64encode(picture.path.read_bytes()).decode()}"
    if kind == "video/mp4":
        return Markup(f'<video src="{source}" controls loop muted playsinline></video>')
    return Markup('<img src="{}" alt="{}">').format(source, picture.caption)


def hardware() -> dict[str, str]:
    """Return what this was measured on."""
    facts = {"processor": device_name("cpu"), "system": f"{platform.system()} {platform.machine()}"}
    facts |= {"python": platform.python_version(), "torch": torch.__version__}
    return facts | ({"accelerator": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})

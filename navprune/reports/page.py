"""One HTML page that holds a whole comparison and needs no network to be read."""

from __future__ import annotations

import base64
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import torch
from jinja2 import Environment
from markupsafe import Markup

from navprune.evaluation.latency import device_name
from navprune.reports import plots
from navprune.reports.plots import Curve
from navprune.reports.tables import EncoderRow, cost_table, encoder_table, latency_table


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
    rows: Sequence[EncoderRow]
    lead: str = ""
    """One paragraph: what was asked, and the answer."""
    limits: Sequence[str] = ()
    """What limits the result, one sentence each."""
    commands: Sequence[str] = ()
    """The commands that gave it."""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    """SPL in training."""
    prunings: Mapping[str, dict] = field(default_factory=dict)
    """What `navprune prune --json` said, by the name of the pruned encoder."""
    episodes: Sequence[Picture] = ()
    """Maps and videos."""
    runtime: str = "eager"
    """The runtime whose milliseconds stand in the table of encoders."""

    def sample(self) -> str:
        """Return what the agents were evaluated on."""
        done = [row.evaluation for row in self.rows if row.evaluation]
        counts = sorted({(evaluation["split"], evaluation["episodes"]) for evaluation in done})
        return " and ".join(f"{count} episodes of {split}" for split, count in counts) or "no episodes"

    def latency(self) -> list[dict]:
        """Return the rows of latency of all agents."""
        return [line for row in self.rows for line in row.latency]


def write_report(out: Path, report: Report) -> Path:
    """Write `out`/report.html, the figures beside it and the table as table.md; return the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    table = encoder_table(report.rows, report.runtime)
    (out / "table.md").write_text(table.markdown() + "\n")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE).render(
        report=report,
        table=table,
        costs=cost_table({row.name: row.cost for row in report.rows if row.cost}),
        latency=latency_table(report.latency()),
        figures=draw_figures(out / "figures", report),
        embed=embed,
        hardware=hardware(),
        date=datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
        style=Markup(STYLE),
    )  # fmt: skip
    path = out / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def draw_figures(folder: Path, report: Report) -> list[Picture]:
    """Draw into `folder` whatever the report has numbers for."""
    rows, pictures = report.rows, []

    def draw(name: str, caption: str, plot, *arguments, wide: bool = False, **options) -> None:
        plot(folder / name, *arguments, **options)
        pictures.append(Picture(folder / name, caption, wide))

    if any(row.cost and row.evaluation for row in rows):
        draw("spl_macs.png", "SPL against multiply-accumulates. Dashed: agents without an encoder.",
             plots.plot_spl, rows)  # fmt: skip
    if any(row.milliseconds(1, report.runtime) and row.evaluation for row in rows):
        draw("spl_latency.png", "SPL against measured time.",
             plots.plot_spl, rows, by="latency", runtime=report.runtime)  # fmt: skip
    if any(line.get("saving_theoretical") for line in report.latency()):
        draw("savings.png", "Time saved on the clock, against multiply-accumulates saved on paper.",
             plots.plot_savings, report.latency())  # fmt: skip
    if report.curves:
        draw("curves.png", "SPL of the training episodes; the strong lines are means of ten points.",
             plots.plot_learning_curves, report.curves, smoothing=10)  # fmt: skip
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


STYLE = """
:root { --ink: #1d2b36; --muted: #6b7a86; --line: #dfe5e9; --soft: #f4f7f8; --accent: #1f6f8b; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; line-height: 1.55; font-size: 16px;
  font-family: system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
main { max-width: 74rem; margin: 0 auto; padding: 4rem 2rem 5rem; }
h1 { font-size: 2.1rem; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 0.4rem; }
h2 { font-size: 1.15rem; margin: 3.2rem 0 0.9rem; letter-spacing: -0.005em; }
p { max-width: 46rem; margin: 0 0 1rem; }
.meta { color: var(--muted); font-size: 0.86rem; margin-bottom: 1.8rem; max-width: none; }
.scroll + p { margin-top: 0.9rem; }
.lead { font-size: 1.12rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.89rem; font-variant-numeric: tabular-nums; }
th { font-weight: 600; color: var(--muted); text-align: right; border-bottom: 1.5px solid var(--ink);
  padding: 0.45rem 0.6rem; white-space: nowrap; }
td { text-align: right; border-bottom: 1px solid var(--line); padding: 0.5rem 0.6rem; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td:first-child { font-weight: 600; }
th:last-child, td:last-child { padding-right: 0; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(27rem, 1fr)); gap: 2.4rem 2rem; }
.wide { grid-column: 1 / -1; }
figure { margin: 0; }
img, video { display: block; max-width: 100%; max-height: 34rem; margin: 0 auto; }
figcaption { color: var(--muted); font-size: 0.86rem; margin-top: 0.5rem; }
ul { padding-left: 1.1rem; max-width: 46rem; } li { margin-bottom: 0.35rem; }
pre { background: var(--soft); border-left: 3px solid var(--accent); padding: 0.9rem 1.1rem; overflow-x: auto;
  font: 0.84rem/1.6 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
@media (max-width: 40rem) { main { padding: 2rem 1.1rem; } .grid { grid-template-columns: 1fr; } }
"""

TEMPLATE = """\
{% macro draw(table) %}
<div class="scroll"><table>
<thead><tr>{% for cell in table.columns %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table></div>
{% endmacro %}
{% macro gallery(pictures) %}
<div class="grid">
{% for picture in pictures %}
<figure{% if picture.wide %} class="wide"{% endif %}>
{{ embed(picture) }}
<figcaption>{{ picture.caption }}</figcaption>
</figure>
{% endfor %}
</div>
{% endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ report.title }}</title>
<style>{{ style }}</style>
</head>
<body><main>
<h1>{{ report.title }}</h1>
<p class="meta">{{ date }}{% for name, value in hardware.items() %} · {{ name }} {{ value }}{% endfor %}</p>
{% if report.lead %}<p class="lead">{{ report.lead }}</p>{% endif %}
<h2>Encoders</h2>
{{ draw(table) }}
<p class="meta">SPL, success and reward are means over {{ report.sample() }}, the interval is a percentile
bootstrap. MACs and parameters count the backbone's convolutions alone. Milliseconds are medians of the
forward time ({{ report.runtime }}).</p>
{% if report.limits %}
<h2>What limits this</h2>
<ul>{% for line in report.limits %}<li>{{ line }}</li>{% endfor %}</ul>
{% endif %}
{% if figures %}
<h2>Figures</h2>
{{ gallery(figures) }}
{% endif %}
{% if report.episodes %}
<h2>Episodes</h2>
{{ gallery(report.episodes) }}
{% endif %}
{% if latency.rows %}
<h2>Latency</h2>
{{ draw(latency) }}
{% endif %}
{% if costs.rows %}
<h2>Cost, counted two ways</h2>
{{ draw(costs) }}
{% endif %}
{% if report.commands %}
<h2>How to repeat it</h2>
<pre>{{ report.commands | join("\n") }}</pre>
{% endif %}
</main></body>
</html>
"""

"""Draws milliseconds.png and prints the table of README.md, from results.json.

python experiments/simulator_speed/figure.py
"""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FOLDER = Path(__file__).parent
KINDS = {"navprune": "navprune", "embree": "Embree 4.4, ray by ray", "former": "navprune before"}
COLOURS = {"64": "tab:blue", "128": "tab:orange", "256": "tab:red"}
STYLES = {"navprune": "-", "embree": "--", "former": ":"}

Rows = list[dict[str, Any]]


def table(rows: Rows) -> str:
    """A line of Markdown for each scene and size."""
    lines = ["| triangles | pixels | navprune | Embree | before | of Embree's | of before |", "|" + "---|" * 7]
    for row in rows:
        for size, taken in row["milliseconds"].items():
            ours, embree, former = taken["navprune"], taken["embree"], taken["former"]
            cells = (
                f"{row['triangles']:,}",
                f"{size} x {size}",
                f"{ours:.2f} ms",
                f"{embree:.2f} ms",
                f"{former:.2f} ms",
            )
            lines.append(f"| {' | '.join(cells)} | {ours / embree:.2f} | {ours / former:.2f} |")
    return "\n".join(lines) + "\n"


def draw(rows: Rows) -> None:
    """Write milliseconds.png: one line a size and renderer."""
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    triangles = [row["triangles"] for row in rows]
    for size, colour in COLOURS.items():
        for kind, style in STYLES.items():
            taken = [row["milliseconds"][size][kind] for row in rows]
            label = f"{KINDS[kind]}, {size} pixels"
            axes.plot(triangles, taken, style, color=colour, marker=".", label=label)
    axes.set(xscale="log", yscale="log", xlabel="triangles", ylabel="milliseconds an image of depth, one thread")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", fontsize=7, ncols=3)
    figure.savefig(FOLDER / "milliseconds.png", dpi=120)


if __name__ == "__main__":
    results = json.loads((FOLDER / "results.json").read_text())
    draw(results)
    print(table(results), end="")

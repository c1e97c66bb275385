"""The look that all pictures and the page share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import ImageFont

INK = "#1d2b36"
MUTED = "#6b7a86"
LINE = "#c9d2d9"
FLOOR = "#eaf0f3"
PAPER = "#ffffff"
ACCENT = "#d1495b"
SERIES = ("#1f6f8b", "#e08e45", "#4f8f6b", "#8c6bb1", "#d1495b", "#8a9299")
TIME = LinearSegmentedColormap.from_list("time", ["#8fd0c8", "#1f6f8b", "#3b2f6b"])
DEPTH = LinearSegmentedColormap.from_list("depth", ["#f7f4ec", "#9fc3cc", "#2f6b86", "#13293d"])

_SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6ebee",
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


@contextmanager
def figure(path: str | Path, width: float = 6.4, height: float = 4.0) -> Iterator[Figure]:
    """Yield an empty matplotlib figure of this size in inches, and save it as a PNG to `path`."""
    with matplotlib.rc_context(_SETTINGS):
        canvas = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(canvas)
        yield canvas
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        canvas.savefig(path, dpi=160, facecolor=PAPER)


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return matplotlib's own DejaVu Sans at `size` pixels, so that pictures look the same everywhere."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def rgb_of(colours: np.ndarray) -> list[tuple[int, int, int]]:
    """Turn colour map output [N, 4] in [0, 1] into 8-bit triples."""
    return [tuple(c) for c in (255 * np.asarray(colours)[:, :3]).round().astype(int).tolist()]

"""What reports call the kinds of networks, and what was measured of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Column(NamedTuple):
    """A measure in the table of networks."""

    measure: str
    title: str
    form: Callable[[float], str]
    interval: bool = False


class Figure(NamedTuple):
    """Where what a table shows of the cost stands in `navprune cost --json`, and how many of it are one there."""

    title: str
    section: str
    key: str
    unit: float = 1.0


@dataclass(frozen=True)
class Kind:
    """A kind of network in words: the measures that networks are compared by, their costs, what is drawn anew."""

    network: str
    title: str
    """Of the measure that differences and figures are about, the first of `compared`."""
    compared: tuple[str, ...]
    columns: tuple[Column, ...]
    macs: Figure
    parameters: Figure
    counted: str
    """What multiply-accumulates and parameters are counted of."""
    levels: tuple[str, ...]
    """What intervals are over, from runs down to what a measure is of."""
    groups: tuple[str, str]
    """What the least mean is looked for in: one of it, and several."""
    scores: str
    """What the interquartile mean is over."""
    curve: str
    """What learning curves show: a sentence."""
    smoothing: int
    """Points of it that the strong line is a mean of."""
    frames: str
    """What a run counts."""
    axis: tuple[float, float] | None
    """Of the measure in figures; None reaches as far as the values."""

    @property
    def score(self) -> str:
        """The measure that `title` names."""
        return self.compared[0]

    @property
    def unit(self) -> str:
        """What a measure is of, in the plural."""
        return self.levels[-1]

    @property
    def drawn(self) -> str:
        """What is drawn anew beside runs."""
        return listed(self.levels[1:])


def listed(words: Sequence[str]) -> str:
    """Words as in a sentence: a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def sentence(words: str) -> str:
    """Words with a capital in front, and the others as they are."""
    return words[0].upper() + words[1:]


def share(value: float) -> str:
    """A share, 0 to 1, with three decimals."""
    return f"{value:.3f}"


AGENT = Kind(
    network="encoder",
    title="SPL",
    compared=("spl", "success"),
    columns=(
        Column("spl", "SPL", share, interval=True),
        Column("success", "success", lambda value: f"{100 * value:.1f} %"),
        Column("reward", "reward", lambda value: f"{value:.2f}"),
    ),
    macs=Figure("MACs (Gi)", "table1", "macs_gi"),
    parameters=Figure("parameters (Mi)", "table1", "parameters_mi"),
    counted="the backbone's convolutions alone",
    levels=("runs", "scenes", "episodes"),
    groups=("scene", "scenes"),
    scores="the SPL of each run in each scene",
    curve="SPL of the training episodes; the strong lines are means of ten points.",
    smoothing=10,
    frames="frames",
    axis=(0, 1.06),
)
CLASSIFIER = Kind(
    network="classifier",
    title="top-1",
    compared=("top1", "top5"),
    columns=(
        Column("top1", "top-1", share, interval=True),
        Column("top5", "top-5", share, interval=True),
        Column("cross_entropy", "cross-entropy", share),
    ),
    macs=Figure("MACs (M)", "deployed", "macs", 1e6),
    parameters=Figure("parameters (M)", "deployed", "parameters", 1e6),
    counted="the whole network",
    levels=("runs", "images"),
    groups=("class", "classes"),
    scores="the top-1 of each run",
    curve="Top-1 on the images that were held out in training.",
    smoothing=1,
    frames="images",
    axis=None,
)

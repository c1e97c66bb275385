"""Which labelled images."""

from dataclasses import dataclass

from navprune.checks import TINY, bounded


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """Which labelled images."""

    source: str = "digits"
    validation: float = bounded(0.1, 0, 1)
    test: float = bounded(0.2, 0, 1)
    split_seed: int = bounded(0, 0)
    size: int | None = None
    flip: bool = False
    pad: int = bounded(0, 0)
    zoom: float = bounded(1.0, TINY, 1)

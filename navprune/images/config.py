"""Which labelled images are read, how they are parted, and how training varies them."""

from dataclasses import dataclass

from navprune.checks import TINY, bounded, check_fields
from navprune.errors import UserError

DIGITS = "digits"


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """Labelled images for classifiers."""

    source: str = DIGITS
    """`digits`, or a path: CIFAR's folder or .tar.gz, an .npz file, a folder of images."""
    validation: float = bounded(0.1, 0, 0.99)
    """Share of each class's training images that is held out as split val, to 0.99; 0: there is no such split."""
    test: float = bounded(0.2, 0, 0.99)
    """Share of each class, to 0.99, that is held out as split test where the data has none of its own; 0: no such
    split."""
    split_seed: int = bounded(0, 0)
    """Seed of both draws."""
    size: int | None = bounded(None, 1, 16384)
    """Side of the square that images are brought to, of files the shorter side to size * 256 / 224, whose middle is
    cut out; null: as they are, files all of one size."""
    flip: bool = False
    """Whether a training view is mirrored left to right half of the time."""
    pad: int = bounded(0, 0, 16384)
    """Pixels of the mean that are put around a training view before a piece of its own size is cut out at random (He
    et al., CVPR 2016: 4)."""
    zoom: float = bounded(1.0, TINY, 1)
    """Least share of the area that a training view shows, cut out at random with sides of 3:4 to 4:3 and brought to
    the usual size (ImageNet: 0.08); 1: all of it."""

    def __post_init__(self) -> None:
        check_fields("images", self)
        if not self.source:
            raise UserError(f"images.source is empty; give {DIGITS} or a path")
        if self.pad and self.zoom < 1:
            raise UserError("images.pad and images.zoom both cut out a piece; give one of them")

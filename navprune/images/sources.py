"""What a source of labelled images holds, however it is stored."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from navprune.images.views import cut, enlarged

CHUNK = 256
"""Images that are looked at together where all are gone through."""


class Pixels(Protocol):
    """Images that are had by their rows, int64 [B]."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what `whole` and `zoomed` return."""

    def whole(self, rows: Tensor) -> Tensor:
        """Return images [B, C, H, W] as evaluated, uint8 or float32, not normalised."""

    def zoomed(self, rows: Tensor, least: float, draws: Tensor) -> Tensor:
        """Return random pieces of images, of at least the share `least`, brought to [B, C, H, W]; draws [B, 4]."""

    def normalisation(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation [C, 1, 1] to normalise by when these rows are trained on."""

    def fingerprint(self, rows: Tensor) -> Iterator[bytes]:
        """Bytes that differ where these images do."""


@dataclass(frozen=True, eq=False)
class Source:
    """All images of a data set: those to train on first, behind them its own test images, if there are any."""

    pixels: Pixels
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    training: int
    """How many are not of the data's own test set."""


class Resized:
    """Images of another source, brought to `size` x `size` pixels whatever their sides: bilinear, smoothed."""

    def __init__(self, pixels: Pixels, size: int):
        self._pixels, self._size = pixels, size

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self._pixels.shape[0], self._size, self._size

    def whole(self, rows: Tensor) -> Tensor:
        """Images, float32 [B, C, H, W]."""
        return self._brought(self._pixels.whole(rows))

    def zoomed(self, rows: Tensor, least: float, draws: Tensor) -> Tensor:
        """Pieces of images, float32 [B, C, H, W]."""
        return self._brought(self._pixels.zoomed(rows, least, draws))

    def normalisation(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """That of the images as they are stored."""
        return self._pixels.normalisation(rows)

    def fingerprint(self, rows: Tensor) -> Iterator[bytes]:
        """The pixels as they are stored; `shape` tells the size."""
        return self._pixels.fingerprint(rows)

    def _brought(self, images: Tensor) -> Tensor:
        return F.interpolate(images.float(), (self._size, self._size), mode="bilinear", antialias=True)


class Arrays:
    """Images in memory, [M, C, H, W], uint8 or float32."""

    def __init__(self, values: NDArray):
        self._values = torch.from_numpy(np.ascontiguousarray(values))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        _, channels, height, width = self._values.shape
        return channels, height, width

    def whole(self, rows: Tensor) -> Tensor:
        """Images [B, C, H, W] as they are stored."""
        return self._values[rows]

    def zoomed(self, rows: Tensor, least: float, draws: Tensor) -> Tensor:
        """Pieces of images, enlarged, float32 [B, C, H, W]."""
        _, height, width = self.shape
        cuts = [cut(height, width, least, each) for each in draws.tolist()]
        return enlarged(self._values[rows].float(), torch.tensor(cuts, dtype=torch.int64).reshape(-1, 4))

    def normalisation(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel over these rows; a channel that is constant has the deviation 1."""
        pixels = len(rows) * self.shape[1] * self.shape[2]

        def average(power: int, centre: Tensor | float) -> Tensor:
            sums = [((self._values[each].double() - centre) ** power).sum((0, 2, 3)) for each in rows.split(CHUNK)]
            return torch.stack(sums).sum(0)[:, None, None] / pixels

        mean = average(1, 0.0)
        deviation = average(2, mean).sqrt()
        return mean.float(), torch.where(deviation > 0, deviation, 1.0).float()

    def fingerprint(self, rows: Tensor) -> Iterator[bytes]:
        """The pixels themselves."""
        return (self._values[chunk].numpy().tobytes() for chunk in rows.split(CHUNK))

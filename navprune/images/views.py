"""Training views: pure functions of images and of uniform numbers, whatever else is in the batch."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

DRAWS = 5
"""Uniform numbers that a training view takes at most: one for `mirrored`, four for `cut`; `shifted` takes two."""
RATIOS = 3 / 4, 4 / 3
"""Least and greatest width of a cut, in heights (Szegedy et al., CVPR 2015)."""


def mirrored(images: Tensor, draws: Tensor) -> Tensor:
    """Mirror those of images [B, C, H, W] left to right whose draw [B] is below one half."""
    return torch.where((draws < 0.5)[:, None, None, None], images.flip(-1), images)


def shifted(images: Tensor, pad: int, draws: Tensor) -> Tensor:
    """Put `pad` zeros around images [B, C, H, W] and cut out H x W again, at places that draws [B, 2] say."""
    count, channels, height, width = images.shape
    top, left = (draws.double() * (2 * pad + 1)).long().T  # double, for float32 would round up to 2 * pad + 1
    rows = top[:, None] + torch.arange(height)
    columns = left[:, None] + torch.arange(width)
    within = torch.arange(count)[:, None, None, None], torch.arange(channels)[:, None, None]
    return F.pad(images, (pad, pad, pad, pad))[(*within, rows[:, None, :, None], columns[:, None, None, :])]


def cut(height: int, width: int, least: float, draws: Sequence[float]) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random piece of an image, in pixels, from four numbers in [0, 1).

    They say the area, at least the share `least` of the image's, uniformly; the ratio, log-uniform within `RATIOS` as
    far as the image leaves room; the place. Of an image too elongated the area is what fits.
    """
    share, aspect, down, right = draws
    low, high = RATIOS
    area = min(height * width * (least + (1 - least) * share), high * height**2, width**2 / low)
    low, high = max(low, area / height**2), min(high, width**2 / area)
    ratio = low * (high / low) ** aspect
    tall = min(max(round(math.sqrt(area / ratio)), 1), height)
    wide = min(max(round(math.sqrt(area * ratio)), 1), width)
    return int(down * (height - tall + 1)), int(right * (width - wide + 1)), tall, wide


def enlarged(images: Tensor, cuts: Tensor) -> Tensor:
    """Pieces of float images [B, C, H, W], int64 [B, 4] as of `cut`, brought to H x W by bilinear interpolation."""
    height, width = images.shape[2:]
    top, left, tall, wide = cuts.T.unsqueeze(-1)
    down, right = _places(top, tall, height), _places(left, wide, width)
    grid = torch.stack(torch.broadcast_tensors(right[:, None, :], down[:, :, None]), dim=-1)
    return F.grid_sample(images, grid.to(images.dtype), mode="bilinear", padding_mode="border", align_corners=False)


def _places(start: Tensor, length: Tensor, count: int) -> Tensor:
    """Where `count` pixels of an axis look within pieces [B, 1] of it, in `grid_sample`'s -1 to 1, float64 [B, count].

    Not beyond the centres of a piece's outer pixels, as if it were the whole image.
    """
    centres = (torch.arange(count, dtype=torch.float64) + 0.5) * length / count - 0.5
    return (2 * (start + centres.clamp(min=0).minimum(length - 1.0)) + 1) / count - 1

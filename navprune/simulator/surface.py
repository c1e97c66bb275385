"""What colours a scene's triangles: corner colours, textures with their mip levels, holes."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from navprune.scenes.files.materials import NO_LEVELS, Sampler

BAND = 32  # rows of a texture that are worked on at once, which bounds the memory


class Surface(NamedTuple):
    """What the colour of a frame needs besides; triangles in the order of the leaves.

    colours: uint8 or float32 [T, 3, 3] as in SceneMesh; uv: float32 [T, 3, 2]; texture: int32 [T], -1 for none.
    texels: uint8 [P, 4], all textures, each with its halved copies after it.
    levels: int32 [textures, L, 3], (first texel, height, width); height 0 beyond a texture's last level.
    samplers: int32 [textures, 5], the fields of each texture's Sampler.
    """

    colours: NDArray[np.uint8] | NDArray[np.float32]
    uv: NDArray[np.float32]
    texture: NDArray[np.int32]
    texels: NDArray[np.uint8]
    levels: NDArray[np.int32]
    samplers: NDArray[np.int32]


class Cutout(NamedTuple):
    """What a scene with holes needs to be drawn: AlphaMasks in the order of the leaves, and its surface."""

    alpha: NDArray[np.uint8]
    cutoff: NDArray[np.float32]
    surface: Surface


def texture_levels(
    textures: Iterable[NDArray[np.uint8]], samplers: Iterable[Sampler]
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Every texture with its halved copies down to one texel, if its sampler uses them: as in `Surface`."""
    pieces, table, used = [np.zeros((1, 4), np.uint8)], [], 1
    for image, sampler in zip(textures, samplers, strict=True):
        rows, level = [], image
        while True:
            height, width = level.shape[:2]
            rows.append((used, height, width))
            pieces.append(level.reshape(-1, 4))
            used += height * width
            if (height == 1 and width == 1) or sampler.between_levels == NO_LEVELS:
                break
            level = _halved(level)
        table.append(rows)
    levels = np.zeros((len(table), max(map(len, table), default=1), 3), np.int32)
    for index, rows in enumerate(table):
        levels[index, : len(rows)] = rows
    return np.concatenate(pieces), levels


def _halved(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The next mip level: half the size, rounded down, read bilinearly at the centres of its texels, in 8 bits."""
    (upper, lower, down), (left, right, across) = map(_neighbours, image.shape[:2])
    halved = np.empty((len(upper), len(left), image.shape[2]), np.uint8)
    for first in range(0, len(halved), BAND):
        band = slice(first, first + BAND)
        rows = _between(image[upper[band]], image[lower[band]], down[band, None, None])
        halved[band] = np.rint(_between(rows[:, left], rows[:, right], across[:, None]))
    return halved


def _neighbours(size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Of each of half as many texels: those before and behind its centre, and how far it lies between these."""
    half = max(1, size // 2)
    place = (np.arange(half) + 0.5) * (size / half) - 0.5
    before = place.astype(np.int64)
    return before, np.minimum(before + 1, size - 1), (place - before).astype(np.float32)


def _between(before: NDArray, behind: NDArray, share: NDArray[np.float32]) -> NDArray:
    return before * (1 - share) + behind * share

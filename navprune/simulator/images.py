"""The images that the sensors make of what a camera's pixels show, on the CPU: one function each, by their names."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from navprune.kernels import njit
from navprune.simulator.asset import RenderAsset
from navprune.simulator.renderer import Camera
from navprune.simulator.shading import shade
from navprune.simulator.strokes import colour_strokes
from navprune.simulator.view import KERNEL, view_of

LARGEST = float(np.finfo(np.float32).max)


class Shown(NamedTuple):
    """What the pixels of a camera show, which is `number` among many.

    closeness: float32 [H, W], 1 / depth in metres, 0 where nothing is.
    triangles: int32 [H, W], the triangle in the order of the asset, -1 where nothing is, -2 - i where stroke i is;
    None where no sensor of the camera shows surfaces.
    eyes, rotations: poses [N, 3], [N, 4] of all cameras; focal: their length in pixels.
    """

    camera: Camera
    asset: RenderAsset
    number: int
    eyes: NDArray[np.float64]
    rotations: NDArray[np.float64]
    focal: float
    closeness: NDArray[np.float32]
    triangles: NDArray[np.int32] | None


def depth(shown: Shown, image: NDArray[np.float32]) -> None:
    """Depth [H, W, 1], as `Camera` says."""
    camera = shown.camera
    if camera.max_depth is None:
        _to_depth(shown.closeness, 0.0, LARGEST, 1.0, image)
    else:
        least, most = camera.min_depth, camera.max_depth
        _to_depth(shown.closeness, least, most, 1.0 / (most - least), image)


def rgb(shown: Shown, image: NDArray[np.uint8]) -> None:
    """Colours [H, W, 3] without light, black where nothing is."""
    pose = shown.number, shown.eyes, shown.rotations, shown.focal
    _shade(shown.asset.tree, shown.asset.surface, shown.asset.strokes, *pose, shown.triangles, image)


IMAGES: dict[str, Callable[[Shown, NDArray], None]] = {"depth": depth, "rgb": rgb}
"""What draws each sensor: writes the whole of a contiguous image [H, W, channels]."""


@njit(**KERNEL)
def _to_depth(closeness, least, most, scale, image):
    """Depth of closeness, clipped to [least, most], less the least, times scale."""
    least, most, scale = np.float32(least), np.float32(most), np.float32(scale)
    for row in range(closeness.shape[0]):
        for column in range(closeness.shape[1]):
            value = closeness[row, column]
            metres = np.float32(1) / value if value > 0 else np.float32(0)
            image[row, column, 0] = (max(min(metres, most), least) - least) * scale


@njit(**KERNEL)
def _shade(tree, surface, strokes, camera, eyes, rotations, focal, triangles, image):
    height, width = triangles.shape
    view = view_of(eyes[camera], rotations[camera], focal, height, width)
    shade(tree, surface, view, triangles, image)
    if strokes is not None:
        colour_strokes(strokes, view, triangles, image)

"""A camera and what it makes of a triangle's corners: the part that geometry and colours share.

View coordinates: x to the right and y down, both times the focal length in pixels; z forward in metres. So
(x / z, y / z) is a place in the image, in pixels from its middle.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from navprune.kernels import njit

# Multiplications and additions must not be fused: the edge that two triangles share has to come out as exact
# opposites in both.
KERNEL = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"nnan", "ninf", "nsz", "arcp"}}
# What runs for each node, triangle or pixel allocates nothing, so it can do without reference counts, which
# would take half of the time.
INNER = {**KERNEL, "_nrt": False}
# A call hands over every field of every array; what runs for each node is therefore made part of its caller. It is not
# kept by itself: what numba keeps of a function names the types of its arguments, such as lanes, which another version
# of this package may not have.
INLINE = {**INNER, "cache": False, "forceinline": True}


class View(NamedTuple):
    """A camera: eye [3] and axes [3, 3] (world direction to view coordinates), in float32 for nodes.

    spans: float32 [3, 3], absolute axes: the reach of a box of half extents h is spans . h.
    steps: float32 [2, 3], what a pixel to the right and one down add to a ray of depth 1.
    middle: float64 [2], the image's in pixels.
    """

    eye: NDArray[np.float64]
    axes: NDArray[np.float64]
    eye32: NDArray[np.float32]
    axes32: NDArray[np.float32]
    spans: NDArray[np.float32]
    steps: NDArray[np.float32]
    middle: NDArray[np.float64]


@njit(**KERNEL)
def view_of(eye, rotation, focal, height, width):
    """The View from an eye [3] of a rotation [4], x y z w; focal length in pixels."""
    x, y, z, w = rotation / np.sqrt((rotation**2).sum())
    right = np.array([1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)])
    up = np.array([2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w)])
    back = np.array([2 * (x * z + y * w), 2 * (y * z - x * w), 1 - 2 * (x * x + y * y)])
    axes = np.empty((3, 3))
    axes[0], axes[1], axes[2] = right * focal, -up * focal, -back
    axes32, steps = axes.astype(np.float32), (axes[:2] / focal**2).astype(np.float32)
    return View(eye, axes, eye.astype(np.float32), axes32, np.abs(axes32), steps, np.array([width * 0.5, height * 0.5]))


@njit(**INNER)
def corner(tree, triangle, k, view):
    """View coordinates of a triangle's corner."""
    place = np.int64(tree.places[triangle])
    count, place = place // 8 + 1, place % 8
    at = 9 * (np.int64(triangle) - place) + 3 * k * count + place
    corners, eye = tree.corners, view.eye
    return seen_from(view, corners[at] - eye[0], corners[at + count] - eye[1], corners[at + 2 * count] - eye[2])


@njit(**INLINE)
def seen_from(view, x, y, z):
    """View coordinates of what is x, y, z away from the eye: numbers or lanes."""
    axes = view.axes
    return (
        axes[0, 0] * x + axes[0, 1] * y + axes[0, 2] * z,
        axes[1, 0] * x + axes[1, 1] * y + axes[1, 2] * z,
        axes[2, 0] * x + axes[2, 1] * y + axes[2, 2] * z,
    )


@njit(**INLINE)
def cross(a, b):
    """The cross product of two triples, of numbers or lanes."""
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@njit(**INNER)
def edges_of(tree, triangle, view):
    """A triangle's three edge functions.

    Function k is (x, y, 1) . ek: 0 along the side opposite corner k, positive inside when seen from the front.
    """
    a, b, c = corner(tree, triangle, 0, view), corner(tree, triangle, 1, view), corner(tree, triangle, 2, view)
    return cross(c, b), cross(a, c), cross(b, a)

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


class View(NamedTuple):
    """A camera: eye [3] and axes [3, 3] (world direction to view coordinates), in float32 for nodes.

    sides: float32 [4, 3], absolute normals of the view's left, right, upper and lower side.
    """

    eye: NDArray[np.float64]
    axes: NDArray[np.float64]
    eye32: NDArray[np.float32]
    axes32: NDArray[np.float32]
    sides: NDArray[np.float32]


@njit(**KERNEL)
def view_of(eye, rotation, focal, height, width):
    """The View from an eye [3] of a rotation [4], x y z w; focal length in pixels."""
    x, y, z, w = rotation / np.sqrt((rotation**2).sum())
    right = np.array([1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)])
    up = np.array([2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w)])
    back = np.array([2 * (x * z + y * w), 2 * (y * z - x * w), 1 - 2 * (x * x + y * y)])
    axes = np.empty((3, 3))
    axes[0], axes[1], axes[2] = right * focal, -up * focal, -back
    # The view is |x| <= z width / 2 and |y| <= z height / 2.
    sides = np.empty((4, 3), np.float32)
    sides[0] = np.abs(axes[0] - axes[2] * (width * 0.5))
    sides[1] = np.abs(axes[0] + axes[2] * (width * 0.5))
    sides[2] = np.abs(axes[1] - axes[2] * (height * 0.5))
    sides[3] = np.abs(axes[1] + axes[2] * (height * 0.5))
    return View(eye, axes, eye.astype(np.float32), axes.astype(np.float32), sides)


@njit(**INNER)
def corner(corners, k, view):
    """View coordinates of a triangle's corner."""
    eye, axes = view.eye, view.axes
    x, y, z = corners[3 * k] - eye[0], corners[3 * k + 1] - eye[1], corners[3 * k + 2] - eye[2]
    return (
        axes[0, 0] * x + axes[0, 1] * y + axes[0, 2] * z,
        axes[1, 0] * x + axes[1, 1] * y + axes[1, 2] * z,
        axes[2, 0] * x + axes[2, 1] * y + axes[2, 2] * z,
    )


@njit(**INNER)
def cross(a, b):
    """The cross product of two triples."""
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@njit(**INNER)
def edges_of(corners, view):
    """A triangle's three edge functions, as in _draw_triangle."""
    a, b, c = corner(corners, 0, view), corner(corners, 1, view), corner(corners, 2, view)
    return cross(c, b), cross(a, c), cross(b, a)

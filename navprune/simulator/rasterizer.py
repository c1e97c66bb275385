"""Depth and colour of many cameras at once, on the CPU.

A z-buffer rasteriser that walks the bounding volume hierarchy of a scene front to back and leaves out every node that is
outside the view or hidden by what is already drawn. Triangles are not clipped but drawn by their edge functions in homogeneous
coordinates (Olano and Greer, "Triangle scan conversion using 2D homogeneous coordinates", 1997). The z-buffer holds
closeness = 1 / depth, which is linear over the image of a triangle, and 0 where nothing is.

View coordinates: x to the right and y down, both times the focal length in pixels; z forward in metres. So (x / z, y / z) is a
place in the image in pixels from its middle.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from navprune.simulator.bvh import STACK_SIZE, Bvh

NEAR = 0.01  # metres; nothing nearer is drawn, as in habitat-sim
TILE = 8  # pixels; side of the squares in which hidden nodes are detected
# Multiplications and additions must not be fused: the edge that two triangles share has to come out as exact opposites.
KERNEL = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"nnan", "ninf", "nsz", "arcp"}}


class Scratch(NamedTuple):
    """The working memory of one thread.

    farthest: float32 [tile rows, tile columns], at most the least closeness of the tile's pixels.
    stale: bool, same shape: drawn into since farthest was taken.
    triangles: int32 [H, W], which triangle each pixel shows, -1 for none; None without colour.
    stack: int32 [STACK_SIZE], nodes to visit.
    """

    farthest: NDArray[np.float32]
    stale: NDArray[np.bool_]
    stack: NDArray[np.int32]


class Renderer:
    """Draws batches of pinhole cameras; back faces are culled, colours are unlit.

    One batch at a time; the result does not depend on the number of threads.
    """

    def __init__(
        self,
        width: int,
        height: int,
        hfov: float = 90.0,
        colour: bool = False,
        threads: int | None = None,
        far: float | None = None,
    ):
        """Size in pixels, horizontal field of view in degrees; threads: None for every core of this process.

        far: when given, depth comes clipped to [0, far] metres and divided by far.
        """
        self.width = width
        self.height = height
        self.colour = colour
        self.threads = threads or len(os.sched_getaffinity(0))
        self._focal = 0.5 * width / np.tan(np.radians(hfov) / 2)
        self._far = far
        # The calling thread draws too, so that one thread needs no pool.
        self._pool = ThreadPoolExecutor(self.threads - 1) if self.threads > 1 else None
        tiles = (-(-height // TILE), -(-width // TILE))
        self._scratch = [
            Scratch(np.empty(tiles, np.float32), np.empty(tiles, np.bool_), np.empty(STACK_SIZE, np.int32))
            for _ in range(self.threads)
        ]
        self._triangles = [np.empty((height, width), np.int32) if colour else None for _ in range(self.threads)]

    def render(
        self,
        bvhs: Sequence[Bvh],
        eyes: NDArray,
        rotations: NDArray,
        depth: NDArray[np.float32],
        rgb: NDArray[np.uint8] | None = None,
    ) -> None:
        """Draws camera i, at eyes[i] in scene bvhs[i], into depth[i], and into rgb[i] if made with colour.

        eyes: [N, 3], metres. rotations: [N, 4], x y z w; a camera looks along its -z, y up.
        depth: float32 [N, H, W], z-depth in metres (or clipped and scaled, see far), 0 where nothing is.
        rgb: uint8 [N, H, W, 3], black where nothing is.
        """
        shape = (len(bvhs), self.height, self.width)
        if depth.shape != shape or depth.dtype != np.float32 or not depth.flags.c_contiguous:
            raise ValueError(f"depth must be contiguous float32 {shape}, not {depth.dtype} {depth.shape}")
        if (rgb is not None) != self.colour:
            raise ValueError("rgb goes with a renderer made with colour=True, and only with that")
        if rgb is not None and (rgb.shape != (*shape, 3) or rgb.dtype != np.uint8 or not rgb.flags.c_contiguous):
            raise ValueError(f"rgb must be contiguous uint8 {(*shape, 3)}, not {rgb.dtype} {rgb.shape}")
        eyes = np.ascontiguousarray(eyes, dtype=np.float64)
        rotations = np.ascontiguousarray(rotations, dtype=np.float64)
        # One iterator for all threads: whoever is free takes the next camera, since views differ in cost.
        work = (iter(range(len(bvhs))), bvhs, eyes, rotations, depth, rgb)
        helpers = []
        if self._pool is not None:
            helpers = [self._pool.submit(self._draw, 1 + i, *work) for i in range(min(self.threads, len(bvhs)) - 1)]
        self._draw(0, *work)
        for helper in helpers:
            helper.result()

    def _draw(
        self,
        thread: int,
        cameras: Iterator[int],
        bvhs: Sequence[Bvh],
        eyes: NDArray,
        rotations: NDArray,
        depth: NDArray[np.float32],
        rgb: NDArray[np.uint8] | None,
    ) -> None:
        scratch, triangles = self._scratch[thread], self._triangles[thread]
        for i in cameras:
            bvh = bvhs[i]
            draw_camera(bvh.tree, i, eyes, rotations, self._focal, self._far, depth, triangles, scratch)

    def close(self) -> None:
        """Ends the threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


@njit(**KERNEL)
def draw_camera(tree, camera, eyes, rotations, focal, far, depth, triangles, scratch):
    """Draws one camera's depth [camera] and, unless triangles is None, which triangle each pixel shows."""
    eye = eyes[camera]
    axes = view_axes(rotations[camera], focal)
    closeness = depth[camera]
    _draw_tree(tree, eye, axes, closeness, triangles, scratch)
    _closeness_to_depth(closeness, far)


@njit(**KERNEL)
def view_axes(rotation, focal):
    """The matrix [3, 3] from world directions to view coordinates, for a camera rotation x y z w."""
    x, y, z, w = rotation / np.sqrt((rotation**2).sum())
    axes = np.empty((3, 3))
    axes[0] = np.array([1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)]) * focal
    axes[1] = np.array([2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w)]) * -focal
    axes[2] = -np.array([2 * (x * z + y * w), 2 * (y * z - x * w), 1 - 2 * (x * x + y * y)])
    return axes


@njit(**KERNEL)
def _draw_tree(tree, eye, axes, closeness, triangles, scratch):
    closeness[:] = 0
    scratch.farthest[:] = 0
    scratch.stale[:] = False
    if triangles is not None:
        triangles[:] = -1
    height, width = closeness.shape
    axes32 = axes.astype(np.float32)
    # The sides of the view: |x| <= z width / 2 and |y| <= z height / 2, as normals in the world.
    sides = np.empty((4, 3), np.float32)
    for k in range(3):
        sides[0, k] = abs(axes[0, k] - axes[2, k] * (width * 0.5))
        sides[1, k] = abs(axes[0, k] + axes[2, k] * (width * 0.5))
        sides[2, k] = abs(axes[1, k] - axes[2, k] * (height * 0.5))
        sides[3, k] = abs(axes[1, k] + axes[2, k] * (height * 0.5))
    eye32 = eye.astype(np.float32)
    stack = scratch.stack
    stack[0] = 0
    waiting = 1
    while waiting > 0:
        waiting -= 1
        node = stack[waiting]
        if not _may_be_seen(tree.boxes[node], eye32, axes32, sides, closeness, scratch):
            continue
        first = tree.nodes[node, 0]
        count = tree.nodes[node, 1]
        if count == 0:
            # The nearer child is drawn first, so that it can hide the other.
            swap = _nearer(tree.boxes[first + 1], tree.boxes[first], eye32)
            stack[waiting] = first if swap else first + 1
            stack[waiting + 1] = first + 1 if swap else first
            waiting += 2
        for triangle in range(first, first + count):
            _draw_triangle(triangle, tree.corners[triangle], eye, axes, closeness, triangles, scratch)


@njit(**KERNEL)
def _nearer(box, other, eye):
    """Whether a box is nearer to the eye than another; where the eye is in both, by their centres."""
    distance = np.float32(0)
    centre = np.float32(0)
    for k in range(3):
        offset = abs(box[k] - eye[k])
        gap = max(offset - box[3 + k], np.float32(0))
        other_offset = abs(other[k] - eye[k])
        other_gap = max(other_offset - other[3 + k], np.float32(0))
        distance += gap * gap - other_gap * other_gap
        centre += offset * offset - other_offset * other_offset
    return distance < 0 or (distance == 0 and centre < 0)


@njit(**KERNEL)
def _may_be_seen(box, eye, axes, sides, closeness, scratch):
    """Whether a box reaches into the view and some pixel under it shows something farther than its nearest point."""
    height, width = closeness.shape
    half_width = np.float32(width * 0.5)
    half_height = np.float32(height * 0.5)
    cx = box[0] - eye[0]
    cy = box[1] - eye[1]
    cz = box[2] - eye[2]
    ex = box[3]
    ey = box[4]
    ez = box[5]
    z = axes[2, 0] * cx + axes[2, 1] * cy + axes[2, 2] * cz
    reach_z = abs(axes[2, 0]) * ex + abs(axes[2, 1]) * ey + abs(axes[2, 2]) * ez
    if z + reach_z <= np.float32(NEAR):
        return False
    x = axes[0, 0] * cx + axes[0, 1] * cy + axes[0, 2] * cz
    y = axes[1, 0] * cx + axes[1, 1] * cy + axes[1, 2] * cz
    if (
        x - half_width * z > sides[0, 0] * ex + sides[0, 1] * ey + sides[0, 2] * ez
        or -x - half_width * z > sides[1, 0] * ex + sides[1, 1] * ey + sides[1, 2] * ez
        or y - half_height * z > sides[2, 0] * ex + sides[2, 1] * ey + sides[2, 2] * ez
        or -y - half_height * z > sides[3, 0] * ex + sides[3, 1] * ey + sides[3, 2] * ez
    ):
        return False
    if z - reach_z <= np.float32(NEAR):
        return True
    nearest = np.float32(1) / (z - reach_z)
    least = np.float32(1) / (z + reach_z)
    reach_x = abs(axes[0, 0]) * ex + abs(axes[0, 1]) * ey + abs(axes[0, 2]) * ez
    reach_y = abs(axes[1, 0]) * ex + abs(axes[1, 1]) * ey + abs(axes[1, 2]) * ez
    left = x - reach_x
    right = x + reach_x
    top = y - reach_y
    bottom = y + reach_y
    # A side of the box left of the axis is farthest left when nearest, one right of it when farthest away.
    column_0 = max(0, int(np.floor(left * (nearest if left < 0 else least) + half_width)))
    column_1 = min(width - 1, int(np.floor(right * (nearest if right > 0 else least) + half_width)))
    row_0 = max(0, int(np.floor(top * (nearest if top < 0 else least) + half_height)))
    row_1 = min(height - 1, int(np.floor(bottom * (nearest if bottom > 0 else least) + half_height)))
    if column_0 > column_1 or row_0 > row_1:
        return False
    for tile_row in range(row_0 // TILE, row_1 // TILE + 1):
        for tile_column in range(column_0 // TILE, column_1 // TILE + 1):
            if scratch.stale[tile_row, tile_column]:
                scratch.stale[tile_row, tile_column] = False
                scratch.farthest[tile_row, tile_column] = _least(closeness, tile_row * TILE, tile_column * TILE)
            if scratch.farthest[tile_row, tile_column] < nearest:
                return True
    return False


@njit(**KERNEL)
def _least(closeness, row_0, column_0):
    """The least closeness in a tile."""
    height, width = closeness.shape
    least = closeness[row_0, column_0]
    for row in range(row_0, min(height, row_0 + TILE)):
        for column in range(column_0, min(width, column_0 + TILE)):
            least = min(least, closeness[row, column])
    return least


@njit(**KERNEL)
def _corner(corners, k, eye, axes):
    """View coordinates of a triangle's corner."""
    x = corners[3 * k] - eye[0]
    y = corners[3 * k + 1] - eye[1]
    z = corners[3 * k + 2] - eye[2]
    return (
        axes[0, 0] * x + axes[0, 1] * y + axes[0, 2] * z,
        axes[1, 0] * x + axes[1, 1] * y + axes[1, 2] * z,
        axes[2, 0] * x + axes[2, 1] * y + axes[2, 2] * z,
    )


@njit(**KERNEL)
def _draw_triangle(triangle, corners, eye, axes, closeness, triangles, scratch):
    height, width = closeness.shape
    ax, ay, az = _corner(corners, 0, eye, axes)
    bx, by, bz = _corner(corners, 1, eye, axes)
    cx, cy, cz = _corner(corners, 2, eye, axes)
    if az <= NEAR and bz <= NEAR and cz <= NEAR:
        return
    # Edge function k is (x, y, 1) . edge_k: zero along the side opposite corner k, positive inside a triangle that faces us.
    e0x, e0y, e0z = cy * bz - cz * by, cz * bx - cx * bz, cx * by - cy * bx
    determinant = ax * e0x + ay * e0y + az * e0z
    if determinant <= 0:
        return
    column_0, column_1, row_0, row_1 = 0, width - 1, 0, height - 1
    crosses_near = az <= NEAR or bz <= NEAR or cz <= NEAR
    if not crosses_near:
        # The pixels whose centres lie in the bounds of the corners, with room for rounding.
        u0, u1, u2 = ax / az, bx / bz, cx / cz
        v0, v1, v2 = ay / az, by / bz, cy / cz
        column_0 = max(column_0, int(np.ceil(min(u0, u1, u2) + (width * 0.5 - 0.5001))))
        column_1 = min(column_1, int(np.floor(max(u0, u1, u2) + (width * 0.5 - 0.4999))))
        row_0 = max(row_0, int(np.ceil(min(v0, v1, v2) + (height * 0.5 - 0.5001))))
        row_1 = min(row_1, int(np.floor(max(v0, v1, v2) + (height * 0.5 - 0.4999))))
        if column_0 > column_1 or row_0 > row_1:
            return
    e1x, e1y, e1z = ay * cz - az * cy, az * cx - ax * cz, ax * cy - ay * cx
    e2x, e2y, e2z = by * az - bz * ay, bz * ax - bx * az, bx * ay - by * ax
    # The edge functions add up to closeness times the determinant.
    scale = 1.0 / determinant
    nx, ny, nz = (e0x + e1x + e2x) * scale, (e0y + e1y + e2y) * scale, (e0z + e1z + e2z) * scale
    i0 = 1.0 / e0x if e0x != 0 else 0.0
    i1 = 1.0 / e1x if e1x != 0 else 0.0
    i2 = 1.0 / e2x if e2x != 0 else 0.0
    near_slope = 1.0 / nx if nx != 0 else 0.0
    x = 0.5 - width * 0.5  # of the first column's centre
    step = np.float32(nx)
    for row in range(row_0, row_1 + 1):
        y = row + (0.5 - height * 0.5)
        low, high = float(column_0), float(column_1)
        low, high = _narrow(low, high, e0x * x + e0y * y + e0z, e0x, i0)
        low, high = _narrow(low, high, e1x * x + e1y * y + e1z, e1x, i1)
        low, high = _narrow(low, high, e2x * x + e2y * y + e2z, e2x, i2)
        start = nx * x + ny * y + nz
        if crosses_near:
            low, high = _narrow(low, high, 1.0 / NEAR - start, -nx, -near_slope)
        if low > high:
            continue
        first = int(np.ceil(low))
        count = int(np.floor(high)) - first + 1
        base = np.float32(start + nx * first)
        for i in range(count):
            value = base + step * np.float32(i)
            shown = closeness[row, first + i]
            nearer = value > shown
            closeness[row, first + i] = value if nearer else shown
            if triangles is not None:
                triangles[row, first + i] = triangle if nearer else triangles[row, first + i]
    for tile_row in range(row_0 // TILE, row_1 // TILE + 1):
        for tile_column in range(column_0 // TILE, column_1 // TILE + 1):
            scratch.stale[tile_row, tile_column] = True


@njit(**KERNEL)
def _narrow(low, high, value, slope, inverse):
    """The part of [low, high] where value + slope i >= 0; inverse is 1 / slope."""
    if slope > 0:
        return max(low, -value * inverse), high
    if slope < 0:
        return low, min(high, -value * inverse)
    return (low, high) if value >= 0 else (1.0, 0.0)


@njit(**KERNEL)
def _closeness_to_depth(closeness, far):
    """Turns closeness into depth in place, clipped to far and divided by it unless far is None."""
    for row in range(closeness.shape[0]):
        for column in range(closeness.shape[1]):
            value = closeness[row, column]
            depth = np.float32(1) / value if value > 0 else np.float32(0)
            if far is not None:
                depth = min(depth * np.float32(1.0 / far), np.float32(1))
            closeness[row, column] = depth

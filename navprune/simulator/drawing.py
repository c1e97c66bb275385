"""Compiled functions that draw one camera: which triangle each pixel shows, and how near, by a z-buffer rasteriser.

The bounding volume hierarchy of a scene is walked front to back, leaving out every node that is outside the
view or hidden by what is already drawn. Triangles are not clipped but drawn by their edge functions in
homogeneous coordinates (Olano and Greer, "Triangle scan conversion using 2D homogeneous coordinates", 1997).
The z-buffer holds closeness = 1 / depth, linear over the image of a triangle, and 0 where nothing is.

A scene with holes is drawn by the same code, compiled once more for a cutout that is not None.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from navprune.kernels import njit
from navprune.simulator.shading import is_kept
from navprune.simulator.view import INNER, KERNEL, corner, cross, view_of

NEAR = 0.01  # metres; nothing nearer is drawn, as in habitat-sim
TILE = 8  # pixels; side of the squares in which hidden nodes are detected


class Scratch(NamedTuple):
    """The working memory of one thread.

    farthest: float32 [tile rows, tile columns], at most the least closeness of the tile's pixels.
    stale: bool, same shape: drawn into since farthest was taken.
    stack: int32 [STACK_SIZE], nodes to visit.
    """

    farthest: NDArray[np.float32]
    stale: NDArray[np.bool_]
    stack: NDArray[np.int32]


@njit(**KERNEL)
def show(tree, cutout, camera, eyes, rotations, focal, closeness, triangles, scratch):
    """Say what each pixel of a camera shows: closeness [H, W], and which of `triangles` [H, W] where these are asked.

    Without need of triangles they are None; cutout is None where the scene has no holes.
    """
    height, width = closeness.shape
    view = view_of(eyes[camera], rotations[camera], focal, height, width)
    _draw_tree(tree, cutout, view, closeness, triangles, scratch)


@njit(**INNER)
def _draw_tree(tree, cutout, view, closeness, triangles, scratch):
    """Draw all triangles; triangles: which one each pixel shows, -1 for none; may itself be None, as may cutout."""
    closeness[:] = 0
    scratch.farthest[:] = 0
    scratch.stale[:] = False
    if triangles is not None:
        triangles[:] = -1
    stack, waiting = scratch.stack, 1
    stack[0] = 0
    while waiting > 0:
        waiting -= 1
        node = stack[waiting]
        if not _may_be_seen(tree.boxes[node], view, closeness, scratch):
            continue
        first, count = tree.nodes[node]
        if count == 0:
            # The nearer child is drawn first, so that it can hide the other.
            second_is_nearer = _nearer(tree.boxes[first + 1], tree.boxes[first], view.eye32)
            stack[waiting] = first if second_is_nearer else first + 1
            stack[waiting + 1] = first + 1 if second_is_nearer else first
            waiting += 2
        for triangle in range(first, first + count):
            if not _is_behind(tree.planes[triangle], view.eye32):
                _draw_triangle(triangle, tree.corners[triangle], cutout, view, closeness, triangles, scratch)


@njit(**INNER)
def _is_behind(plane, eye):
    """Whether the eye surely sees a triangle's back: half of all triangles, found without projecting them."""
    return plane[0] * eye[0] + plane[1] * eye[1] + plane[2] * eye[2] < plane[3]


@njit(**INNER)
def _nearer(box, other, eye):
    """Whether a box is nearer to the eye than another; where the eye is in both, by their centres."""
    distance, centre = np.float32(0), np.float32(0)
    for k in range(3):
        offset, other_offset = abs(box[k] - eye[k]), abs(other[k] - eye[k])
        gap, other_gap = max(offset - box[3 + k], np.float32(0)), max(other_offset - other[3 + k], np.float32(0))
        distance += gap * gap - other_gap * other_gap
        centre += offset * offset - other_offset * other_offset
    return distance < 0 or (distance == 0 and centre < 0)


@njit(**INNER)
def _may_be_seen(box, view, closeness, scratch):
    """Whether a box reaches into the view, before something that a pixel shows."""
    eye, axes, sides = view.eye32, view.axes32, view.sides
    height, width = closeness.shape
    half_width, half_height = np.float32(width * 0.5), np.float32(height * 0.5)
    cx, cy, cz = box[0] - eye[0], box[1] - eye[1], box[2] - eye[2]
    ex, ey, ez = box[3], box[4], box[5]
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
    nearest, least = np.float32(1) / (z - reach_z), np.float32(1) / (z + reach_z)
    reach_x = abs(axes[0, 0]) * ex + abs(axes[0, 1]) * ey + abs(axes[0, 2]) * ez
    reach_y = abs(axes[1, 0]) * ex + abs(axes[1, 1]) * ey + abs(axes[1, 2]) * ez
    left, right, top, bottom = x - reach_x, x + reach_x, y - reach_y, y + reach_y
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


@njit(**INNER)
def _least(closeness, row_0, column_0):
    """The least closeness in a tile."""
    height, width = closeness.shape
    least = closeness[row_0, column_0]
    for row in range(row_0, min(height, row_0 + TILE)):
        for column in range(column_0, min(width, column_0 + TILE)):
            least = min(least, closeness[row, column])
    return least


@njit(**INNER)
def _draw_triangle(triangle, corners, cutout, view, closeness, triangles, scratch):
    """Draw one triangle row by row, where it is nearer than what is there; marks the tiles that it may change."""
    height, width = closeness.shape
    a, b, c = corner(corners, 0, view), corner(corners, 1, view), corner(corners, 2, view)
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = a, b, c
    if az <= NEAR and bz <= NEAR and cz <= NEAR:
        return
    # Edge function k is (x, y, 1) . ek: 0 along the side opposite corner k, positive inside when
    # seen from the front.
    e0x, e0y, e0z = cross(c, b)
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
    e1x, e1y, e1z = cross(a, c)
    e2x, e2y, e2z = cross(b, a)
    # The edge functions add up to closeness times the determinant.
    scale = 1.0 / determinant
    nx, ny, nz = (e0x + e1x + e2x) * scale, (e0y + e1y + e2y) * scale, (e0z + e1z + e2z) * scale
    i0 = 1.0 / e0x if e0x != 0 else 0.0
    i1 = 1.0 / e1x if e1x != 0 else 0.0
    i2 = 1.0 / e2x if e2x != 0 else 0.0
    near_slope = 1.0 / nx if nx != 0 else 0.0
    x, step = 0.5 - width * 0.5, np.float32(nx)  # of the first column's centre, and of closeness
    for row in range(row_0, row_1 + 1):
        y = row + (0.5 - height * 0.5)
        low, high = _narrow(float(column_0), float(column_1), e0x * x + e0y * y + e0z, e0x, i0)
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
            if cutout is not None:
                nearer = nearer and is_kept(cutout, triangle, corners, view, first + i + x, y)
            closeness[row, first + i] = value if nearer else shown
            if triangles is not None:
                triangles[row, first + i] = triangle if nearer else triangles[row, first + i]
    for tile_row in range(row_0 // TILE, row_1 // TILE + 1):
        for tile_column in range(column_0 // TILE, column_1 // TILE + 1):
            scratch.stale[tile_row, tile_column] = True


@njit(**INNER)
def _narrow(low, high, value, slope, inverse):
    """The part of [low, high] where value + slope i >= 0; inverse is 1 / slope."""
    if slope > 0:
        return max(low, -value * inverse), high
    if slope < 0:
        return low, min(high, -value * inverse)
    return (low, high) if value >= 0 else (1.0, 0.0)

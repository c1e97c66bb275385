"""Compiled functions that draw one camera: depth by a z-buffer rasteriser, then colour once per pixel.

The bounding volume hierarchy of a scene is walked front to back, leaving out every node that is outside the
view or hidden by what is already drawn. Triangles are not clipped but drawn by their edge functions in
homogeneous coordinates (Olano and Greer, "Triangle scan conversion using 2D homogeneous coordinates", 1997).
The z-buffer holds closeness = 1 / depth, linear over the image of a triangle, and 0 where nothing is.

View coordinates: x to the right and y down, both times the focal length in pixels; z forward in metres. So
(x / z, y / z) is a place in the image, in pixels from its middle.

A scene with holes is drawn by the same code, compiled once more for a cutout that is not None.

All of it is in one file because Numba's cache does not see changes in other files.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from navprune.kernels import njit
from navprune.scenes.files.mesh import CLAMP, LINEAR, MIRROR, NEAREST

NEAR = 0.01  # metres; nothing nearer is drawn, as in habitat-sim
TILE = 8  # pixels; side of the squares in which hidden nodes are detected
# Multiplications and additions must not be fused: the edge that two triangles share has to come out as exact
# opposites in both.
KERNEL = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"nnan", "ninf", "nsz", "arcp"}}
# What runs for each node, triangle or pixel allocates nothing, so it can do without reference counts, which
# would take half of the time.
INNER = {**KERNEL, "_nrt": False}


class Scratch(NamedTuple):
    """The working memory of one thread.

    farthest: float32 [tile rows, tile columns], at most the least closeness of the tile's pixels.
    stale: bool, same shape: drawn into since farthest was taken.
    stack: int32 [STACK_SIZE], nodes to visit.
    """

    farthest: NDArray[np.float32]
    stale: NDArray[np.bool_]
    stack: NDArray[np.int32]


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
def draw(tree, cutout, surface, camera, eyes, rotations, focal, far, scale, depth, rgb, triangles, scratch):
    """Draw depth[camera] and rgb[camera]; triangles: int32 [H, W], working memory.

    Without colours surface, rgb and triangles are None.
    """
    closeness = depth[camera]
    height, width = closeness.shape
    view = _view(eyes[camera], rotations[camera], focal, height, width)
    _draw_tree(tree, cutout, view, closeness, triangles, scratch)
    _closeness_to_depth(closeness, far, scale)
    if rgb is not None:
        _shade(tree.corners, surface, view, triangles, rgb[camera])


@njit(**KERNEL)
def _view(eye, rotation, focal, height, width):
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
def _corner(corners, k, view):
    """View coordinates of a triangle's corner."""
    eye, axes = view.eye, view.axes
    x, y, z = corners[3 * k] - eye[0], corners[3 * k + 1] - eye[1], corners[3 * k + 2] - eye[2]
    return (
        axes[0, 0] * x + axes[0, 1] * y + axes[0, 2] * z,
        axes[1, 0] * x + axes[1, 1] * y + axes[1, 2] * z,
        axes[2, 0] * x + axes[2, 1] * y + axes[2, 2] * z,
    )


@njit(**INNER)
def _cross(a, b):
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@njit(**INNER)
def _edges(corners, view):
    """A triangle's three edge functions, as in _draw_triangle."""
    a, b, c = _corner(corners, 0, view), _corner(corners, 1, view), _corner(corners, 2, view)
    return _cross(c, b), _cross(a, c), _cross(b, a)


@njit(**INNER)
def _draw_triangle(triangle, corners, cutout, view, closeness, triangles, scratch):
    """Draw one triangle row by row, where it is nearer than what is there; marks the tiles that it may change."""
    height, width = closeness.shape
    a, b, c = _corner(corners, 0, view), _corner(corners, 1, view), _corner(corners, 2, view)
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = a, b, c
    if az <= NEAR and bz <= NEAR and cz <= NEAR:
        return
    # Edge function k is (x, y, 1) . ek: 0 along the side opposite corner k, positive inside when
    # seen from the front.
    e0x, e0y, e0z = _cross(c, b)
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
    e1x, e1y, e1z = _cross(a, c)
    e2x, e2y, e2z = _cross(b, a)
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
                nearer = nearer and _is_kept(cutout, triangle, corners, view, first + i + x, y)
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


@njit(**INNER)
def _closeness_to_depth(closeness, far, scale):
    """Turn closeness into depth in place, clipped to far and multiplied by scale."""
    far, scale = np.float32(far), np.float32(scale)
    for row in range(closeness.shape[0]):
        for column in range(closeness.shape[1]):
            value = closeness[row, column]
            depth = np.float32(1) / value if value > 0 else np.float32(0)
            closeness[row, column] = min(depth, far) * scale


@njit(**INNER)
def _shade(corners, surface, view, triangles, rgb):
    """Colour each pixel once, by the triangle it shows: corner colours times texture, without light."""
    height, width = triangles.shape
    known, plain, textured = -1, False, False  # the triangle that these and the edges belong to
    edges = ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    for row in range(height):
        y = row + (0.5 - height * 0.5)
        for column in range(width):
            triangle = triangles[row, column]
            if triangle < 0:
                rgb[row, column, :] = 0
                continue
            colours = surface.colours[triangle]
            if triangle != known:
                known = triangle
                textured = surface.texture[triangle] >= 0
                plain = not textured and _is_plain(colours)
                edges = _edges(corners[triangle], view)
            if plain:
                for k in range(3):
                    rgb[row, column, k] = colours[0, k]
                continue
            shares = _shares(edges, column + (0.5 - width * 0.5), y)
            texel = _texel(surface, triangle, edges, shares) if textured else (1.0, 1.0, 1.0, 1.0)
            a, b, c, _ = shares
            for k, share in enumerate(texel[:3]):
                colour = a * colours[0, k] + b * colours[1, k] + c * colours[2, k]
                rgb[row, column, k] = np.uint8(min(max(colour * share, 0.0), 255.0) + 0.5)


@njit(**INNER)
def _is_plain(colours):
    """Whether the three corners have one colour."""
    for k in range(3):
        if colours[0, k] != colours[1, k] or colours[0, k] != colours[2, k]:
            return False
    return True


@njit(**INNER)
def _is_kept(cutout, triangle, corners, view, x, y):
    """Whether a triangle covers a pixel: its alpha there is not below its cutoff."""
    cutoff = cutout.cutoff[triangle]
    if cutoff == 0:
        return True
    edges = _edges(corners, view)
    shares = _shares(edges, x, y)
    alpha = 0.0
    for k in range(3):
        alpha += shares[k] * cutout.alpha[triangle, k] / 255
    if cutout.surface.texture[triangle] >= 0:
        alpha *= _texel(cutout.surface, triangle, edges, shares)[3]
    return alpha >= cutoff - 1e-6  # room for rounding, so that a cutoff of 1 keeps what is opaque


@njit(**INNER)
def _shares(edges, x, y):
    """What a pixel shows of the three corners, in the world, and the inverse of what the edge functions add up to."""
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = edges
    a, b, c = ax * x + ay * y + az, bx * x + by * y + bz, cx * x + cy * y + cz
    scale = 1.0 / (a + b + c)
    return a * scale, b * scale, c * scale, scale


@njit(**INNER)
def _texel(surface, triangle, edges, shares):
    """Red, green, blue and alpha in [0, 1] of a triangle's texture at a pixel."""
    (ax, ay, _), (bx, by, _), (cx, cy, _) = edges
    a, b, c, scale = shares
    uv = surface.uv[triangle]
    u = a * uv[0, 0] + b * uv[1, 0] + c * uv[2, 0]
    v = a * uv[0, 1] + b * uv[1, 1] + c * uv[2, 1]
    du_dx = scale * (ax * (uv[0, 0] - u) + bx * (uv[1, 0] - u) + cx * (uv[2, 0] - u))
    dv_dx = scale * (ax * (uv[0, 1] - v) + bx * (uv[1, 1] - v) + cx * (uv[2, 1] - v))
    du_dy = scale * (ay * (uv[0, 0] - u) + by * (uv[1, 0] - u) + cy * (uv[2, 0] - u))
    dv_dy = scale * (ay * (uv[0, 1] - v) + by * (uv[1, 1] - v) + cy * (uv[2, 1] - v))
    return _filter(surface, surface.texture[triangle], u, v, du_dx, dv_dx, du_dy, dv_dy)


@njit(**INNER)
def _filter(surface, texture, u, v, du_dx, dv_dx, du_dy, dv_dy):
    """A texture's colour where a pixel's sides span these differences; OpenGL 4.6, section 8.14."""
    levels, sampler = surface.levels[texture], surface.samplers[texture]
    _, _, magnify, minify, between_levels = sampler
    _, height, width = levels[0]
    last = len(levels) - 1
    while levels[last, 1] == 0:
        last -= 1
    # Squared, in texels; its logarithm is twice the level that fits.
    footprint = max((du_dx * width) ** 2 + (dv_dx * height) ** 2, (du_dy * width) ** 2 + (dv_dy * height) ** 2)
    if footprint <= (2.0 if magnify == LINEAR and minify == NEAREST and last > 0 else 1.0):
        return _read(surface.texels, levels[0], sampler, magnify, u, v)
    detail = 0.5 * np.log2(footprint)
    if between_levels != LINEAR:
        detail = np.ceil(detail + 0.5) - 1
    level = int(min(detail, float(last)))
    fine = _read(surface.texels, levels[level], sampler, minify, u, v)
    share = detail - level
    if share == 0 or level == last:
        return fine
    coarse = _read(surface.texels, levels[level + 1], sampler, minify, u, v)
    return (
        fine[0] + (coarse[0] - fine[0]) * share,
        fine[1] + (coarse[1] - fine[1]) * share,
        fine[2] + (coarse[2] - fine[2]) * share,
        fine[3] + (coarse[3] - fine[3]) * share,
    )


@njit(**INNER)
def _read(texels, level, sampler, smooth, u, v):
    """Red, green, blue and alpha in [0, 1] of one level: of the nearest texel or between the four nearest."""
    first, height, width = level
    wrap_u, wrap_v = sampler[0], sampler[1]
    x, y = _folded(u, wrap_u) * width, _folded(v, wrap_v) * height
    if smooth == NEAREST:
        texel = texels[first + _wrapped(int(y), height, wrap_v) * width + _wrapped(int(x), width, wrap_u)]
        return texel[0] / 255, texel[1] / 255, texel[2] / 255, texel[3] / 255
    column, row = int(np.floor(x - 0.5)), int(np.floor(y - 0.5))
    right, down = x - 0.5 - column, y - 0.5 - row
    upper = first + _wrapped(row, height, wrap_v) * width
    lower = first + _wrapped(row + 1, height, wrap_v) * width
    left_column, right_column = _wrapped(column, width, wrap_u), _wrapped(column + 1, width, wrap_u)
    a, b = texels[upper + left_column], texels[upper + right_column]
    c, d = texels[lower + left_column], texels[lower + right_column]
    wa, wb = (1 - right) * (1 - down) / 255, right * (1 - down) / 255
    wc, wd = (1 - right) * down / 255, right * down / 255
    return (
        a[0] * wa + b[0] * wb + c[0] * wc + d[0] * wd,
        a[1] * wa + b[1] * wb + c[1] * wc + d[1] * wd,
        a[2] * wa + b[2] * wb + c[2] * wc + d[2] * wd,
        a[3] * wa + b[3] * wb + c[3] * wc + d[3] * wd,
    )


@njit(**INNER)
def _folded(t, wrap):
    """A coordinate brought near the image, before rounding could matter: into [0, 1], or [0, 2] where it mirrors."""
    if wrap == CLAMP:
        return min(max(t, 0.0), 1.0)
    if wrap == MIRROR:
        return t - 2 * np.floor(t / 2)
    return t - np.floor(t)


@njit(**INNER)
def _wrapped(index, size, wrap):
    """The texel, from 0 to size - 1, that an index at or beyond the image's border means."""
    if wrap == CLAMP:
        return min(max(index, 0), size - 1)
    if wrap == MIRROR:
        index %= 2 * size
        return min(index, 2 * size - 1 - index)
    return index % size

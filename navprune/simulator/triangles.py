"""Compiled functions that draw the triangles of a leaf, all at once.

A triangle covers a pixel where its three edge functions, in homogeneous coordinates (Olano and Greer, "Triangle scan
conversion using 2D homogeneous coordinates", 1997), are not negative at the pixel's centre, or at one EDGE nearer. Each
way of finding such pixels ends in that same arithmetic, so that they may be mixed: neighbours leave no gap.
"""

import numpy as np

from navprune.kernels import njit
from navprune.simulator import lanes
from navprune.simulator.lanes import WIDTH
from navprune.simulator.shading import is_kept
from navprune.simulator.view import INLINE, INNER, cross, seen_from

NEAR = 0.01  # metres; nothing nearer is drawn, as in habitat-sim
FAR = 990.0  # metres; nothing farther is drawn, as in habitat-sim, whose depth buffer takes it for empty
TILE = 8  # pixels; side of the squares in which hidden nodes are detected
SETUP = 20  # numbers that describe a triangle in the image
EDGE = 1e-6  # pixels; a centre so near beyond an edge counts as on it, whatever rounding did to the corners
PIXELS = 24  # up to so many, all triangles of a leaf are tried at each


@njit(**INLINE)
def draw_leaf(tree, start, count, place, cutout, view, closeness, triangles, scratch):
    """Draw the triangles from start on into the pixels of place, where they are nearer than what is there."""
    a, b, c = (
        _corners(tree, start, count, 0, view),
        _corners(tree, start, count, 1, view),
        _corners(tree, start, count, 2, view),
    )
    near = lanes.f64(NEAR)
    e0, e1, e2 = cross(c, b), cross(a, c), cross(b, a)
    determinant = a[0] * e0[0] + a[1] * e0[1] + a[2] * e0[2]
    seen = lanes.first(count) & (determinant > lanes.f64(0)) & ((a[2] > near) | (b[2] > near) | (c[2] > near))
    if lanes.bits(seen) == 0:
        return
    scale = 1.0 / determinant
    normal = (
        (e0[0] + e1[0] + e2[0]) * scale,
        (e0[1] + e1[1] + e2[1]) * scale,
        (e0[2] + e1[2] + e2[2]) * scale,
    )
    crosses = (a[2] <= near) | (b[2] <= near) | (c[2] <= near)
    e0, e1, e2 = _widened(e0), _widened(e1), _widened(e2)
    limit = lanes.choose(crosses, lanes.f64(1 / NEAR), lanes.f64(np.inf))
    column_0, column_1, row_0, row_1 = place
    if (column_1 - column_0 + 1) * (row_1 - row_0 + 1) <= PIXELS:
        _draw_pixels(tree, start, seen, e0, e1, e2, normal, limit, place, cutout, view, closeness, triangles, scratch)
        return
    height, width = closeness.shape
    seen = _bound(a, b, c, crosses, seen, place, height, width, scratch.setup)
    if lanes.bits(seen) == 0:
        return
    _write(e0, e1, e2, normal, limit, scratch.setup)
    rest = lanes.bits(seen)
    while rest != 0:
        lane = lanes.lowest(rest)
        rest &= rest - 1
        _draw_triangle(tree, start + lane, scratch.setup[:, lane], cutout, view, closeness, triangles, scratch)


@njit(**INLINE)
def _widened(edge):
    """An edge function whose zero is moved outwards by EDGE."""
    return edge[0], edge[1], edge[2] + (lanes.absolute(edge[0]) + lanes.absolute(edge[1])) * EDGE


@njit(**INLINE)
def _corners(tree, start, count, k, view):
    """View coordinates of one corner of a leaf's triangles."""
    at, corners, eye = 9 * np.int64(start) + 3 * k * count, tree.corners, view.eye
    return seen_from(
        view,
        lanes.to_f64(lanes.load(corners, at)) - eye[0],
        lanes.to_f64(lanes.load(corners, at + count)) - eye[1],
        lanes.to_f64(lanes.load(corners, at + 2 * count)) - eye[2],
    )


@njit(**INLINE)
def _draw_pixels(tree, start, seen, e0, e1, e2, normal, limit, place, cutout, view, closeness, triangles, scratch):
    """Draw a leaf pixel by pixel."""
    height, width = closeness.shape
    column_0, column_1, row_0, row_1 = place
    zero = lanes.f64(0)
    for row in range(row_0, row_1 + 1):
        y = row + (0.5 - height * 0.5)
        c0, c1, c2 = e0[1] * y + e0[2], e1[1] * y + e1[2], e2[1] * y + e2[2]
        base = normal[1] * y + normal[2]
        for column in range(column_0, column_1 + 1):
            x = column + (0.5 - width * 0.5)
            value = normal[0] * x + base
            inside = seen & (e0[0] * x + c0 >= zero) & (e1[0] * x + c1 >= zero) & (e2[0] * x + c2 >= zero)
            inside = inside & (value <= limit)
            values = lanes.choose(inside, lanes.to_f32(value), lanes.f32(0))
            shown, best = closeness[row, column], lanes.greatest(values)
            while best >= shown:
                lane = lanes.lowest(lanes.bits(values == best))
                triangle = start + lane
                if _wins(tree, triangle, best, shown, row, column, triangles) and (
                    cutout is None or is_kept(cutout, tree, triangle, view, x, y)
                ):
                    closeness[row, column] = best
                    if triangles is not None:
                        triangles[row, column] = triangle
                    scratch.stale[row // TILE, column // TILE] = True
                    break
                values = lanes.put(values, lane, np.float32(0))
                best = lanes.greatest(values)


@njit(**INLINE)
def _wins(tree, triangle, value, shown, row, column, triangles):
    """Whether a triangle takes a pixel: it is nearer, or as near and earlier in the file."""
    if value != shown or triangles is None:
        return value > shown
    other = triangles[row, column]
    return other >= 0 and tree.order[triangle] < tree.order[other]


@njit(**INLINE)
def _bound(a, b, c, crosses, seen, place, height, width, setup):
    """Write the pixels whose centres lie in the bounds of the corners, with room for rounding; return where any are."""
    for axis, size in ((0, width), (1, height)):
        u0, u1, u2 = a[axis] / a[2], b[axis] / b[2], c[axis] / c[2]
        low = lanes.ceil(lanes.minimum(lanes.minimum(u0, u1), u2) + (size * 0.5 - 0.5001))
        high = lanes.floor(lanes.maximum(lanes.maximum(u0, u1), u2) + (size * 0.5 - 0.4999))
        begin, end = lanes.f64(place[2 * axis]), lanes.f64(place[2 * axis + 1])
        low = lanes.choose(crosses, begin, lanes.maximum(begin, low))
        high = lanes.choose(crosses, end, lanes.minimum(end, high))
        seen = seen & (low <= high)
        lanes.store(setup, 2 * axis * WIDTH, low)
        lanes.store(setup, (2 * axis + 1) * WIDTH, high)
    return seen


@njit(**INLINE)
def _write(e0, e1, e2, normal, limit, setup):
    """Write what _draw_triangle reads, behind the bounds."""
    lanes.store(setup, 4 * WIDTH, e0[0])
    lanes.store(setup, 5 * WIDTH, e0[1])
    lanes.store(setup, 6 * WIDTH, e0[2])
    lanes.store(setup, 7 * WIDTH, e1[0])
    lanes.store(setup, 8 * WIDTH, e1[1])
    lanes.store(setup, 9 * WIDTH, e1[2])
    lanes.store(setup, 10 * WIDTH, e2[0])
    lanes.store(setup, 11 * WIDTH, e2[1])
    lanes.store(setup, 12 * WIDTH, e2[2])
    lanes.store(setup, 13 * WIDTH, normal[0])
    lanes.store(setup, 14 * WIDTH, normal[1])
    lanes.store(setup, 15 * WIDTH, normal[2])
    lanes.store(setup, 16 * WIDTH, limit)


@njit(**INNER)
def _draw_triangle(tree, triangle, setup, cutout, view, closeness, triangles, scratch):
    """Draw one triangle row by row, eight pixels at once; marks the tiles that it may change."""
    height, width = closeness.shape
    column_0, column_1, row_0, row_1 = int(setup[0]), int(setup[1]), int(setup[2]), int(setup[3])
    e0x, e0y, e0z, e1x, e1y, e1z, e2x, e2y, e2z = (
        setup[4],
        setup[5],
        setup[6],
        setup[7],
        setup[8],
        setup[9],
        setup[10],
        setup[11],
        setup[12],
    )
    nx, ny, nz, limit = setup[13], setup[14], setup[15], setup[16]
    x0 = 0.5 - width * 0.5
    narrow = column_1 - column_0 < WIDTH
    i0 = 1.0 / e0x if e0x != 0 else 0.0
    i1 = 1.0 / e1x if e1x != 0 else 0.0
    i2 = 1.0 / e2x if e2x != 0 else 0.0
    t0, t1, t2 = (
        _room(e0x, e0y, e0z, width, height),
        _room(e1x, e1y, e1z, width, height),
        _room(e2x, e2y, e2z, width, height),
    )
    zero = lanes.f64(0)
    for row in range(row_0, row_1 + 1):
        y = row + (0.5 - height * 0.5)
        c0, c1, c2 = e0y * y + e0z, e1y * y + e1z, e2y * y + e2z
        base = ny * y + nz
        first, last = column_0, column_1
        if not narrow:
            low, high = _narrow(float(column_0), float(column_1), e0x * x0 + c0 + t0, e0x, i0)
            low, high = _narrow(low, high, e1x * x0 + c1 + t1, e1x, i1)
            low, high = _narrow(low, high, e2x * x0 + c2 + t2, e2x, i2)
            if low > high:
                continue
            first, last = int(np.ceil(low)), int(np.floor(high))
        for column in range(first, last + 1, WIDTH):
            x = lanes.count_f64() + (column + x0)
            value = nx * x + base
            inside = (e0x * x + c0 >= zero) & (e1x * x + c1 >= zero) & (e2x * x + c2 >= zero) & (value <= limit)
            inside = inside & lanes.first(last + 1 - column)
            _show_where(inside, lanes.to_f32(value), tree, triangle, column, row, cutout, view, closeness, triangles)
    for tile_row in range(row_0 // TILE, row_1 // TILE + 1):
        for tile_column in range(column_0 // TILE, column_1 // TILE + 1):
            scratch.stale[tile_row, tile_column] = True


@njit(**INLINE)
def _show_where(inside, values, tree, triangle, column, row, cutout, view, closeness, triangles):
    """Let those of eight pixels from a column on that lie inside a triangle show it where it wins."""
    height, width = closeness.shape
    at = row * width + column
    shown = lanes.load_where(closeness, at, inside)
    nearer = inside & (values > shown)
    if triangles is not None:
        equal = lanes.bits(inside & (values == shown))
        while equal != 0:
            lane = lanes.lowest(equal)
            equal &= equal - 1
            value = lanes.get(values, lane)
            nearer = lanes.put(nearer, lane, _wins(tree, triangle, value, value, row, column + lane, triangles))
    if cutout is not None:
        rest = lanes.bits(nearer)
        while rest != 0:
            lane = lanes.lowest(rest)
            rest &= rest - 1
            x, y = column + lane + (0.5 - width * 0.5), row + (0.5 - height * 0.5)
            nearer = lanes.put(nearer, lane, is_kept(cutout, tree, triangle, view, x, y))
    lanes.store_where(closeness, at, nearer, values)
    if triangles is not None:
        lanes.store_where(triangles, at, nearer, lanes.i32(triangle))


@njit(**INLINE)
def _room(x, y, z, width, height):
    """More than rounding takes from an edge function in the image."""
    return 1e-14 * (abs(x) * width + abs(y) * height + abs(z))


@njit(**INLINE)
def _narrow(low, high, value, slope, inverse):
    """The part of [low, high] where value + slope i >= 0; inverse is 1 / slope."""
    if slope > 0:
        return max(low, -value * inverse), high
    if slope < 0:
        return low, min(high, -value * inverse)
    return (low, high) if value >= 0 else (1.0, 0.0)

"""Compiled functions that draw one camera: what each pixel shows, by walking a scene's tree front to back.

The pixels whose centres a node's box may cover are found for all children of a node at once; what covers none, or
lies behind what those pixels show, is left out with all that it holds. So the cost follows the pixels, however finely
a surface is cut. The z-buffer holds closeness = 1 / depth, linear over the image of a triangle.

A scene with holes is drawn by the same code, compiled once more for a cutout that is not None.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from navprune.kernels import njit
from navprune.simulator import lanes
from navprune.simulator.lanes import WIDTH
from navprune.simulator.strokes import draw_strokes
from navprune.simulator.tree import NODE, WAITING
from navprune.simulator.triangles import FAR, NEAR, SETUP, TILE, draw_leaf
from navprune.simulator.view import INLINE, INNER, KERNEL, view_of

FEW = np.float32(1e-3)  # pixels; more than rounding moves a box in the image, beside a millionth of the image
EMPTY = np.float32(1 / FAR)  # closeness of what shows nothing, while the tree is walked
RAYS = 2  # up to so many pixels, what a node holds is looked for along the ray of each
# The image is drawn in so many parts, each by a walk of its own, a node at a time in turn: so what a node will need
# comes from memory while the others are drawn.
ROWS, COLUMNS = 4, 4
WALKS = ROWS * COLUMNS
ROOM = np.float32(1e-6)  # metres a metre; more than rounding moves a box in the world


class Scratch(NamedTuple):
    """The working memory of one thread.

    farthest: float32 [tile rows, tile columns], at most the least closeness of the tile's pixels.
    stale: bool, same shape: drawn into since farthest was taken.
    nodes: int32 [WALKS WAITING], children of nodes, to visit, each walk's behind the one's before.
    nearest: float32 [WALKS WAITING], at least their closeness.
    places: int32 [WALKS WAITING, 4], the pixels that they may cover: first and last column, first and last row.
    waiting, empty: int64 [WALKS], where each walk's nodes end now, and when none is left.
    children: int32 [WIDTH] and pixels: float32 [5, WIDTH], those of one node with places and closeness.
    setup: float64 [SETUP, WIDTH], the triangles of a leaf in the image.
    """

    farthest: NDArray[np.float32]
    stale: NDArray[np.bool_]
    nodes: NDArray[np.int32]
    nearest: NDArray[np.float32]
    places: NDArray[np.int32]
    waiting: NDArray[np.int64]
    empty: NDArray[np.int64]
    children: NDArray[np.int32]
    pixels: NDArray[np.float32]
    setup: NDArray[np.float64]


def make_scratch(height: int, width: int) -> Scratch:
    """Working memory for images of this size."""
    tiles = (-(-height // TILE), -(-width // TILE))
    return Scratch(
        np.empty(tiles, np.float32),
        np.empty(tiles, np.bool_),
        np.empty(WALKS * WAITING, np.int32),
        np.empty(WALKS * WAITING, np.float32),
        np.empty((WALKS * WAITING, 4), np.int32),
        np.empty(WALKS, np.int64),
        np.empty(WALKS, np.int64),
        np.empty(WIDTH, np.int32),
        np.empty((5, WIDTH), np.float32),
        np.empty((SETUP, WIDTH)),
    )


@njit(**KERNEL)
def show(tree, cutout, strokes, camera, eyes, rotations, focal, closeness, triangles, scratch):
    """Say what each pixel of a camera shows: closeness [H, W], and which of `triangles` [H, W] where these are asked.

    Of equally near triangles that is the first in the file; -1 is none, -2 - i is stroke i. Without need of triangles
    they are None; cutout is None where the scene has no holes, strokes where it has neither lines nor points.
    """
    height, width = closeness.shape
    view = view_of(eyes[camera], rotations[camera], focal, height, width)
    _draw_tree(tree, cutout, view, closeness, triangles, scratch)
    if strokes is not None:
        draw_strokes(strokes, view, closeness, triangles)
    for row in range(height):
        for column in range(width):
            closeness[row, column] = closeness[row, column] if closeness[row, column] > EMPTY else np.float32(0)


@njit(**INNER)
def _draw_tree(tree, cutout, view, closeness, triangles, scratch):
    """Draw all triangles; triangles: which one each pixel shows, -1 for none; may itself be None, as may cutout."""
    closeness[:] = EMPTY
    scratch.farthest[:] = EMPTY
    scratch.stale[:] = False
    if triangles is not None:
        triangles[:] = -1
    walks = _begin(closeness.shape[0], closeness.shape[1], scratch)
    turn = 0
    while walks > 0:
        turn = turn + 1 if turn + 1 < walks else 0
        waiting = scratch.waiting[turn] - 1
        node, place = scratch.nodes[waiting], scratch.places[waiting]
        place = np.int64(place[0]), np.int64(place[1]), np.int64(place[2]), np.int64(place[3])
        place = _visible(*place, scratch.nearest[waiting], closeness, scratch)
        if place[0] > place[1]:
            pass
        elif node < 0:
            draw_leaf(tree, (-1 - node) // 8, (-1 - node) % 8 + 1, place, cutout, view, closeness, triangles, scratch)
        elif (place[1] - place[0] + 1) * (place[3] - place[2] + 1) > RAYS:
            seen = _project_children(tree, node, place, view, closeness, scratch)
            waiting = _add_children(tree, seen, scratch, waiting)
        else:
            for row in range(place[2], place[3] + 1):
                for column in range(place[0], place[1] + 1):
                    seen = _pierce_children(tree, node, column, row, view, closeness, scratch)
                    waiting = _add_children(tree, seen, scratch, waiting)
        scratch.waiting[turn] = waiting
        if waiting == scratch.empty[turn]:
            walks -= 1
            scratch.waiting[turn], scratch.empty[turn] = scratch.waiting[walks], scratch.empty[walks]


@njit(**INLINE)
def _begin(height, width, scratch):
    """Let one walk begin in each part of the image; return how many."""
    walks = 0
    rows, columns = -(-height // ROWS), -(-width // COLUMNS)
    for row in range(0, height, rows):
        for column in range(0, width, columns):
            at = walks * WAITING
            scratch.empty[walks], scratch.waiting[walks] = at, at + 1
            scratch.nodes[at], scratch.nearest[at] = 0, np.inf
            scratch.places[at, 0], scratch.places[at, 1] = column, min(width, column + columns) - 1
            scratch.places[at, 2], scratch.places[at, 3] = row, min(height, row + rows) - 1
            walks += 1
    return walks


@njit(**INLINE)
def _boxes(tree, node, view):
    """Centres, from the eye, and half extents of the boxes of a node's children, with room for rounding."""
    nodes, eye, at = tree.nodes, view.eye32, np.int64(node) * NODE
    x = lanes.load(nodes, at) - eye[0]
    y = lanes.load(nodes, at + WIDTH) - eye[1]
    z = lanes.load(nodes, at + 2 * WIDTH) - eye[2]
    a, b, c = lanes.load(nodes, at + 3 * WIDTH), lanes.load(nodes, at + 4 * WIDTH), lanes.load(nodes, at + 5 * WIDTH)
    room = (lanes.absolute(x) + lanes.absolute(y) + lanes.absolute(z) + (a + b + c)) * ROOM
    room = room + ROOM * (abs(eye[0]) + abs(eye[1]) + abs(eye[2]))
    return (x, y, z), (a + room, b + room, c + room)


@njit(**INLINE)
def _project_children(tree, node, place, view, closeness, scratch):
    """Find which of a node's children may cover pixels, and write which pixels, and the closeness."""
    height, width = closeness.shape
    axes, spans = view.axes32, view.spans
    (x, y, z), (reach_x, reach_y, reach_z) = _boxes(tree, node, view)
    ahead = axes[2, 0] * x + axes[2, 1] * y + axes[2, 2] * z
    reach = spans[2, 0] * reach_x + spans[2, 1] * reach_y + spans[2, 2] * reach_z
    near, far = lanes.maximum(ahead - reach, lanes.f32(NEAR)), ahead + reach
    nearest, least = np.float32(1) / near, np.float32(1) / far
    seen = far > np.float32(NEAR)
    for axis, size in ((0, width), (1, height)):
        middle = axes[axis, 0] * x + axes[axis, 1] * y + axes[axis, 2] * z
        reach = spans[axis, 0] * reach_x + spans[axis, 1] * reach_y + spans[axis, 2] * reach_z
        low, high = middle - reach, middle + reach
        room = FEW + np.float32(1e-6) * np.float32(size)
        shift = np.float32(size * 0.5 - 0.5)
        # A side of the box left of the axis is farthest left when nearest, one right of it when farthest away.
        begin = lanes.ceil(low * lanes.choose(low < np.float32(0), nearest, least) + (shift - room))
        end = lanes.floor(high * lanes.choose(high > np.float32(0), nearest, least) + (shift + room))
        begin, end = (
            lanes.maximum(begin, lanes.f32(place[2 * axis])),
            lanes.minimum(end, lanes.f32(place[2 * axis + 1])),
        )
        seen = seen & (begin <= end)
        lanes.store(scratch.pixels, 2 * axis * WIDTH, begin)
        lanes.store(scratch.pixels, (2 * axis + 1) * WIDTH, end)
    lanes.store(scratch.children, 0, lanes.load_i32(tree.nodes, np.int64(node) * NODE + 6 * WIDTH))
    lanes.store(scratch.pixels, 4 * WIDTH, nearest * np.float32(1 + 4e-6))
    return lanes.bits(seen)


@njit(**INLINE)
def _pierce_children(tree, node, column, row, view, closeness, scratch):
    """As _project_children, along the ray of one pixel."""
    height, width = closeness.shape
    x, y = np.float32(column + (0.5 - width * 0.5)), np.float32(row + (0.5 - height * 0.5))
    axes, steps = view.axes32, view.steps
    near, far = lanes.f32(NEAR), lanes.f32(FAR)
    centres, reaches = _boxes(tree, node, view)
    for axis in range(3):
        direction = axes[2, axis] + x * steps[0, axis] + y * steps[1, axis]
        inverse = np.float32(1) / (direction if abs(direction) > np.float32(1e-12) else np.float32(1e-12))
        middle, reach = centres[axis] * inverse, reaches[axis] * abs(inverse)
        near, far = lanes.maximum(near, middle - reach), lanes.minimum(far, middle + reach)
    nearest = np.float32(1 + 4e-6) / near
    lanes.store(scratch.pixels, 0, lanes.f32(column))
    lanes.store(scratch.pixels, WIDTH, lanes.f32(column))
    lanes.store(scratch.pixels, 2 * WIDTH, lanes.f32(row))
    lanes.store(scratch.pixels, 3 * WIDTH, lanes.f32(row))
    lanes.store(scratch.pixels, 4 * WIDTH, nearest)
    lanes.store(scratch.children, 0, lanes.load_i32(tree.nodes, np.int64(node) * NODE + 6 * WIDTH))
    return lanes.bits((near <= far) & (nearest > lanes.f32(closeness[row, column])))


@njit(**INLINE)
def _add_children(tree, rest, scratch, waiting):
    """Add children to those waiting, the nearest last; return how many wait then."""
    base = waiting
    while rest != 0:
        lane = lanes.lowest(rest)
        rest &= rest - 1
        child = scratch.children[lane]
        _fetch(tree, child)
        _insert(child, lane, scratch, base, waiting)
        waiting += 1
    return waiting


@njit(**INLINE)
def _fetch(tree, child):
    """Ask for what a child will need from memory, which takes longer than all the arithmetic."""
    for line in range(5):
        if child < 0:
            lanes.fetch(tree.corners, (-1 - np.int64(child)) // 8 * 9 + 16 * line)
        else:
            lanes.fetch(tree.nodes, np.int64(child) * NODE + 16 * line)


@njit(**INLINE)
def _insert(node, lane, scratch, base, waiting):
    """Put a child among those that wait from base on, in the order of closeness."""
    pixels, nodes, nearest, places = scratch.pixels, scratch.nodes, scratch.nearest, scratch.places
    closeness, place = pixels[4, lane], waiting
    while place > base and nearest[place - 1] > closeness:
        nearest[place], nodes[place] = nearest[place - 1], nodes[place - 1]
        for k in range(4):
            places[place, k] = places[place - 1, k]
        place -= 1
    nearest[place], nodes[place] = closeness, node
    for k in range(4):
        places[place, k] = np.int32(pixels[k, lane])


@njit(**INLINE)
def _visible(column_0, column_1, row_0, row_1, nearest, closeness, scratch):
    """The bounds of those of these pixels that show nothing in front of this closeness; none if the first is last."""
    width = closeness.shape[1]
    if column_1 - column_0 < WIDTH and row_1 - row_0 < TILE:
        mask = lanes.first(column_1 - column_0 + 1)
        columns, top, bottom = 0, row_1, row_0
        for row in range(row_0, row_1 + 1):
            shown = lanes.load_where(closeness, row * width + column_0, mask)
            open_ = lanes.bits(mask & (shown < nearest))
            columns |= open_
            top = min(top, row if open_ != 0 else row_1)
            bottom = row if open_ != 0 else bottom
        if columns == 0:
            return column_1 + 1, column_1, row_0, row_1
        return column_0 + lanes.lowest(columns), column_0 + lanes.highest(columns), top, bottom
    for tile_row in range(row_0 // TILE, row_1 // TILE + 1):
        for tile_column in range(column_0 // TILE, column_1 // TILE + 1):
            if scratch.stale[tile_row, tile_column]:
                scratch.stale[tile_row, tile_column] = False
                scratch.farthest[tile_row, tile_column] = _least(closeness, tile_row * TILE, tile_column * TILE)
            if scratch.farthest[tile_row, tile_column] < nearest:
                return column_0, column_1, row_0, row_1
    return column_1 + 1, column_1, row_0, row_1


@njit(**INLINE)
def _least(closeness, row_0, column_0):
    """The least closeness in a tile."""
    height, width = closeness.shape
    mask = lanes.first(width - column_0)
    least = lanes.f32(np.inf)
    for row in range(row_0, min(height, row_0 + TILE)):
        shown = lanes.load_where(closeness, row * width + column_0, mask)
        least = lanes.choose(mask & (shown < least), shown, least)
    return -lanes.greatest(-least)

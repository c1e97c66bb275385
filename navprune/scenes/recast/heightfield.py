"""From triangles to the places on which an agent can stand: the voxel stages of Recast.

Heights are counted in cells of the grid from the lower corner of the scene, `x` and `z` likewise. Arithmetic on
positions is float32 in the order of Recast, since a floor that lies on a cell's border falls to one side or the other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from navprune.kernels import njit

OPEN_SKY = 0xFFFF  # ceiling of a span with nothing above it
MAX_HEIGHT = 0x1FFF  # cells; a span's height has 13 bits in Recast
MAX_HEADROOM = 0xFF  # cells; more is not told apart
STEP_X = (-1, 0, 1, 0)  # the four sides of a cell, as Recast counts them
STEP_Z = (0, 1, 0, -1)
FAR = 0xFFFF  # a distance before anything nearer is known


class Grid(NamedTuple):
    """The box that the cells fill, and an agent's size in cells, rounded as habitat-sim rounds it."""

    lower: np.ndarray  # float32 [3]
    upper: np.ndarray  # float32 [3]
    cell_size: np.float32  # metres
    cell_height: np.float32
    width: int  # cells along x
    depth: int  # cells along z
    agent_height: int
    climb: int
    radius: int


class Columns(NamedTuple):
    """Solid spans, cell by cell (rows of z, x within them) and from below upwards in each."""

    width: int
    depth: int
    first: np.ndarray  # int32 [width * depth + 1], where each cell's spans begin
    low: np.ndarray  # int32 [S]
    high: np.ndarray  # int32 [S]
    ceiling: np.ndarray  # int32 [S], where the next span above begins
    walkable: np.ndarray  # bool [S]: one can stand on its top


class Field(NamedTuple):
    """Places to stand: the tops of walkable spans, in the order of the columns."""

    width: int
    depth: int
    first: np.ndarray  # int32 [width * depth + 1], where each cell's places begin
    x: np.ndarray  # int32 [N]
    z: np.ndarray  # int32 [N]
    floor: np.ndarray  # int32 [N], height
    neighbours: np.ndarray  # int32 [N, 4], the place one step to each side, or -1


def walkable_slopes(triangles: np.ndarray, degrees: float) -> np.ndarray:
    """Which triangles [T, 3, 3] face upwards and are no steeper than `degrees`: bool [T]."""
    a, b = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    normal = np.stack([a[:, k - 2] * b[:, k - 1] - a[:, k - 1] * b[:, k - 2] for k in range(3)], axis=1)
    length = np.sqrt(normal[:, 0] ** 2 + normal[:, 1] ** 2 + normal[:, 2] ** 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        up = normal[:, 1] * (np.float32(1) / length)
    return up > np.cos(np.float32(degrees) / np.float32(180) * np.float32(np.pi))


# ---------------------------------------------------------------------------------------------- rasterising


@njit(cache=True, error_model="numpy")
def _split(polygon, count, near, far, at, axis):
    """Cut a convex polygon at a plane across an axis; returns the corners on each side."""
    near_count, far_count = 0, 0
    j = count - 1
    for i in range(count):
        before, after = at - polygon[j, axis], at - polygon[i, axis]
        if (before >= 0) != (after >= 0):
            s = before / (before - after)
            for k in range(3):
                near[near_count, k] = far[far_count, k] = polygon[j, k] + (polygon[i, k] - polygon[j, k]) * s
            near_count += 1
            far_count += 1
            on_near, on_far = after > 0, after < 0  # a corner on the plane is the one just added
        else:
            on_near, on_far = after >= 0, after <= 0
        for k in range(3):
            near[near_count, k] = far[far_count, k] = polygon[i, k]
        near_count += on_near
        far_count += on_far
        j = i
    return near_count, far_count


@njit(cache=True)
def _insert(heads, spans, used, cell, low, high, walkable, climb):
    """Add a span to a cell's chain and merge those it touches into it; returns how many rows of `spans` are used.

    Rows are low, high, walkable, next. A merged span's walkable top counts when it is within `climb` of the new.
    """
    before, here, row = -1, heads[cell], -1
    while here >= 0 and spans[here, 0] <= high:
        after = spans[here, 3]
        if spans[here, 1] < low:
            before = here
        else:
            low, high = min(low, spans[here, 0]), max(high, spans[here, 1])
            if abs(high - spans[here, 1]) <= climb:
                walkable = max(walkable, spans[here, 2])
            if before >= 0:
                spans[before, 3] = after
            else:
                heads[cell] = after
            row = here  # to be used again
        here = after
    if row < 0:
        row = used
        used += 1
    spans[row, 0], spans[row, 1], spans[row, 2] = low, high, walkable
    if before >= 0:
        spans[row, 3] = spans[before, 3]
        spans[before, 3] = row
    else:
        spans[row, 3] = heads[cell]
        heads[cell] = row
    return used


@njit(cache=True, error_model="numpy")
def rasterise(triangles, walkable, grid, limit):
    """Spans of every cell that the triangles touch: chain heads int32 [width * depth] and rows int32 [S, 4].

    triangles float32 [T, 3, 3] within the grid; walkable bool [T]. Stops with no rows when more than `limit` spans
    would be needed.
    """
    lower, cell_size, width, depth = grid.lower, grid.cell_size, grid.width, grid.depth
    heads = np.full(width * depth, -1, np.int32)
    spans = np.empty((4096, 4), np.int32)
    used, across_x, across_z = np.int64(0), np.int64(0), np.int64(2)  # literals would compile the callees once each
    buffers = np.empty((4, 12, 3), np.float32)
    whole, row, column, rest = buffers[0], buffers[1], buffers[2], buffers[3]
    per_size, per_height = np.float32(1) / cell_size, np.float32(1) / grid.cell_height
    tall = grid.upper[1] - lower[1]
    for t in range(len(triangles)):
        count = np.int64(3)
        for i in range(3):
            for k in range(3):
                whole[i, k] = triangles[t, i, k]
        z_low, z_high = min(whole[0, 2], whole[1, 2], whole[2, 2]), max(whole[0, 2], whole[1, 2], whole[2, 2])
        z_end = min(int((z_high - lower[2]) * per_size), depth - 1)
        for z in range(min(int((z_low - lower[2]) * per_size), depth - 1), z_end + 1):
            edge = lower[2] + np.float32(z) * cell_size + cell_size
            row_count, count = _split(whole, count, row, rest, edge, across_z)
            whole, rest = rest, whole
            if row_count < 3:
                continue
            x_low, x_high = row[0, 0], row[0, 0]
            for i in range(1, row_count):
                x_low, x_high = min(x_low, row[i, 0]), max(x_high, row[i, 0])
            x_end = min(int((x_high - lower[0]) * per_size), width - 1)
            for x in range(min(int((x_low - lower[0]) * per_size), width - 1), x_end + 1):
                edge = lower[0] + np.float32(x) * cell_size + cell_size
                n, row_count = _split(row, row_count, column, rest, edge, across_x)
                row, rest = rest, row
                if n < 3:
                    continue
                low, high = column[0, 1], column[0, 1]
                for i in range(1, n):
                    low, high = min(low, column[i, 1]), max(high, column[i, 1])
                low, high = max(low - lower[1], np.float32(0)), min(high - lower[1], tall)
                bottom = min(int(np.floor(low * per_height)), MAX_HEIGHT)
                top = min(max(int(np.ceil(high * per_height)), bottom + 1), MAX_HEIGHT)
                if used == len(spans):
                    if used >= limit:
                        return heads, spans[:0]
                    more = np.empty((min(2 * used, limit), 4), np.int32)
                    more[:used] = spans
                    spans = more
                used = _insert(heads, spans, used, x + z * width, bottom, top, int(walkable[t]), grid.climb)
    return heads, spans[:used]


@njit(cache=True)
def columns(grid, heads, spans):
    """Sort the chained spans of `rasterise`."""
    first, walkable = np.zeros(len(heads) + 1, np.int32), np.empty(len(spans), np.bool_)
    low, high, ceiling = np.full((3, len(spans)), OPEN_SKY, np.int32)
    s = 0
    for cell in range(len(heads)):
        row = heads[cell]
        while row >= 0:
            low[s], high[s], walkable[s] = spans[row, 0], spans[row, 1], spans[row, 2] != 0
            if s > first[cell]:
                ceiling[s - 1] = low[s]
            s += 1
            row = spans[row, 3]
        first[cell + 1] = s
    return Columns(grid.width, grid.depth, first, low[:s], high[:s], ceiling[:s], walkable[:s])


# ---------------------------------------------------------------------------------------------- filtering


def keep_low_obstacles(spans: Columns, climb: int) -> None:
    """Make an unwalkable span walkable that lies within `climb` over a walkable one: kerbs, thresholds, cables."""
    below = np.append(False, spans.walkable[:-1])
    below[spans.first[:-1][np.diff(spans.first) > 0]] = False
    spans.walkable[below & (np.abs(np.diff(spans.high, prepend=0)) <= climb)] = True


@njit(cache=True)
def drop_ledges(spans, height, climb):
    """Make spans unwalkable beside which it goes down, or up and down together, by more than `climb`."""
    for z in range(spans.depth):
        for x in range(spans.width):
            cell = x + z * spans.width
            for s in range(spans.first[cell], spans.first[cell + 1]):
                if spans.walkable[s]:
                    drop, steepest = _surroundings(spans, s, x, z, height, climb)
                    if drop < -climb or steepest > climb:
                        spans.walkable[s] = False


@njit(cache=True)
def _surroundings(spans, s, x, z, height, climb):
    """The deepest fall to a side of a span (negative), and how far apart the floors within reach lie."""
    floor, ceiling = spans.high[s], spans.ceiling[s]
    drop, lowest, highest = OPEN_SKY, floor, floor
    for side in range(4):
        nx, nz = x + STEP_X[side], z + STEP_Z[side]
        if nx < 0 or nz < 0 or nx >= spans.width or nz >= spans.depth:
            drop = min(drop, -climb - floor)
            continue
        begin, stop = spans.first[nx + nz * spans.width], spans.first[nx + nz * spans.width + 1]
        below = spans.low[begin] if begin < stop else OPEN_SKY
        if min(ceiling, below) - max(floor, -climb) > height:
            drop = min(drop, -climb - floor)
        for n in range(begin, stop):
            other = spans.high[n]
            if min(ceiling, spans.ceiling[n]) - max(floor, other) > height:
                drop = min(drop, other - floor)
                if abs(other - floor) <= climb:
                    lowest, highest = min(lowest, other), max(highest, other)
    return drop, highest - lowest


def drop_low_ceilings(spans: Columns, height: int) -> None:
    """Make spans unwalkable over which there is less room than `height`."""
    spans.walkable[spans.ceiling - spans.high < height] = False


# ---------------------------------------------------------------------------------------------- places to stand


@njit(cache=True)
def standing_field(spans, height, climb):
    """The walkable spans as a `Field`; neighbours are within `climb`, with `height` of common room over them."""
    width, depth, total = spans.width, spans.depth, np.sum(spans.walkable)
    first, neighbours = np.zeros(width * depth + 1, np.int32), np.full((total, 4), -1, np.int32)
    xs, zs, floor, top = np.empty((4, total), np.int32)
    n = 0
    for cell in range(width * depth):
        for s in range(spans.first[cell], spans.first[cell + 1]):
            if spans.walkable[s]:
                xs[n], zs[n], floor[n] = cell % width, cell // width, spans.high[s]
                top[n] = floor[n] + min(max(spans.ceiling[s] - floor[n], 0), MAX_HEADROOM)
                n += 1
        first[cell + 1] = n
    for i in range(total):
        for side in range(4):
            x, z = xs[i] + STEP_X[side], zs[i] + STEP_Z[side]
            if x < 0 or z < 0 or x >= width or z >= depth:
                continue
            for k in range(first[x + z * width], first[x + z * width + 1]):
                room = min(top[i], top[k]) - max(floor[i], floor[k])
                if room >= height and abs(floor[k] - floor[i]) <= climb:
                    neighbours[i, side] = k
                    break
    return Field(width, depth, first, xs, zs, floor, neighbours)


@njit(cache=True)
def borders(field, values):
    """For each place a bit for every side across which there is another value, or no place: uint8 [N]."""
    bits = np.zeros(len(values), np.uint8)
    for i in range(len(values)):
        for side in range(4):
            near = field.neighbours[i, side]
            if near < 0 or values[near] != values[i]:
                bits[i] |= 1 << side
    return bits


@njit(cache=True)
def _spread(field, distance):
    """Lower each distance to that of a neighbour plus 2, or plus 3 across a corner; two passes suffice."""
    for begin, end, step, a, b in ((0, len(distance), 1, 0, 3), (len(distance) - 1, -1, -1, 2, 1)):
        for i in range(begin, end, step):
            for side in (a, b):
                near = field.neighbours[i, side]
                if near >= 0:
                    distance[i] = min(distance[i], distance[near] + 2)
                    corner = field.neighbours[near, (side + 3) & 3]
                    if corner >= 0:
                        distance[i] = min(distance[i], distance[corner] + 3)


def erode(field: Field, radius: int) -> np.ndarray:
    """Which places are at least `radius` cells from any edge: bool [N]."""
    return edge_distance(field, np.ones(len(field.floor), np.bool_)) >= 2 * radius


def edge_distance(field: Field, is_open: np.ndarray) -> np.ndarray:
    """How far each place is from the border of the open area, in half cells: int32 [N]."""
    distance = np.where(borders(field, is_open), np.int32(0), np.int32(FAR))
    _spread(field, distance)
    return distance


@njit(cache=True)
def blurred(field, distance):
    """Distances from the border, those beyond 2 averaged with their surroundings: int32 [N]."""
    means = distance.copy()
    for i in range(len(distance)):
        total = distance[i]
        for side in range(4):
            near = field.neighbours[i, side]
            corner = field.neighbours[near, (side + 1) & 3] if near >= 0 else -1
            total += distance[near if near >= 0 else i] + distance[corner if corner >= 0 else i]
        if distance[i] > 2:
            means[i] = (total + 5) // 9
    return means

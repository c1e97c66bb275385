"""The polygon and the point of a mesh that are nearest to a point, and heights on it."""

import numpy as np

from navprune.kernels import inner
from navprune.simulator.detour.mesh import (
    COUNT,
    EPSILON,
    F0,
    F1,
    FAR,
    OPEN,
    TILE,
    TRIANGLE,
    TRIANGLE_END,
    between,
    corner_of,
    is_inside,
    to_segment,
)

REACH_SIDE, REACH_UP = np.float32(2), np.float32(4)  # half extents of the box Habitat looks in
GAP_SCALE, GAP_MARGIN = np.float32(1.001), np.float32(1e-4)  # room for rounding, relative and square metres


@inner
def _triangle_height(mesh, k, p):
    """Whether a point lies over a detail triangle, and the height there."""
    a, b, c = corner_of(mesh.triangles, k, 0), corner_of(mesh.triangles, k, 1), corner_of(mesh.triangles, k, 2)
    ux, uy, uz = c[0] - a[0], c[1] - a[1], c[2] - a[2]
    vx, vy, vz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    px, pz = p[0] - a[0], p[2] - a[2]
    scale = ux * vz - uz * vx
    if abs(scale) < EPSILON:
        return False, F0
    u = vz * px - vx * pz
    v = ux * pz - uz * px
    if scale < F0:
        scale, u, v = -scale, -u, -v
    if u >= F0 and v >= F0 and u + v <= scale:
        return True, a[1] + (uy * u + vy * v) / scale
    return False, F0


@inner
def _closest_on_edges(mesh, polygon, p, mask):
    """The nearest point, in the plane, on the detail edges of a polygon that the mask of outlines selects."""
    best, at = FAR, (F0, F0, F0)
    for k in range(mesh.polygons[polygon, TRIANGLE], mesh.polygons[polygon, TRIANGLE_END]):
        j = 2
        for i in range(3):
            if (mesh.outlines[k] & mask) >> j & 9:
                a, b = corner_of(mesh.triangles, k, j), corner_of(mesh.triangles, k, i)
                squared, t = to_segment(p, a, b)
                if squared < best:
                    best, at = squared, between(a, b, t)
            j = i
    return at


@inner
def height(mesh, polygon, p):
    """The height of a polygon's surface under or over a point; the point's own where it is not over it."""
    if not is_inside(mesh, polygon, p):
        return p[1]
    for k in range(mesh.polygons[polygon, TRIANGLE], mesh.polygons[polygon, TRIANGLE_END]):
        over, at = _triangle_height(mesh, k, p)
        if over:
            return at
    return _closest_on_edges(mesh, polygon, p, 63)[1]


@inner
def _cell(value, lower, upper, scale):
    return scale * (min(max(value, lower), upper) - lower)


@inner
def _corners_in_reach(mesh, polygon, p):
    """Whether the box around a polygon's corners meets Habitat's box around a point."""
    outside = False
    for axis in range(3):
        centre, reach = p[axis], (REACH_SIDE, REACH_UP, REACH_SIDE)[axis]
        least, most = FAR, -FAR
        for i in range(mesh.polygons[polygon, COUNT]):
            least = min(least, mesh.corners[polygon, i, axis])
            most = max(most, mesh.corners[polygon, i, axis])
        outside = outside or centre - reach > most or centre + reach < least
    return not outside


@inner
def _add_candidate(mesh, polygon, p, count, found, gaps):
    """Note an open polygon and the squared gap in the plane between its extent and a point."""
    if not mesh.polygons[polygon, OPEN] or count == len(found):
        return count
    extent = mesh.extents[polygon]
    dx = max(extent[0] - p[0], p[0] - extent[2], F0)
    dz = max(extent[1] - p[2], p[2] - extent[3], F0)
    found[count], gaps[count] = polygon, dx * dx + dz * dz
    return count + 1


@inner
def _candidates(mesh, p, found, gaps):
    """List the open polygons in Habitat's box around a point, and the squared gap in the plane to each."""
    x, y, z = p
    count = 0
    column_low = np.floor((x - REACH_SIDE - mesh.grid[0]) / mesh.grid[2])
    column_high = np.floor((x + REACH_SIDE - mesh.grid[0]) / mesh.grid[2])
    row_low = np.floor((z - REACH_SIDE - mesh.grid[1]) / mesh.grid[3])
    row_high = np.floor((z + REACH_SIDE - mesh.grid[1]) / mesh.grid[3])
    for tile in range(mesh.tiles.shape[0]):
        column, row = mesh.tiles[tile, 0], mesh.tiles[tile, 1]
        if column < column_low or column > column_high or row < row_low or row > row_high:
            continue
        n, end = mesh.tiles[tile, 2], mesh.tiles[tile, 3]
        if n == end:  # no tree: every polygon is looked at
            for polygon in range(mesh.tiles[tile, 4], mesh.tiles[tile, 5]):
                if _corners_in_reach(mesh, polygon, p):
                    count = _add_candidate(mesh, polygon, p, count, found, gaps)
        box = mesh.boxes[mesh.tiles[tile, 6]]
        scale = box[6]
        low_x = int(_cell(x - REACH_SIDE, box[0], box[3], scale)) & 0xFFFE
        low_y = int(_cell(y - REACH_UP, box[1], box[4], scale)) & 0xFFFE
        low_z = int(_cell(z - REACH_SIDE, box[2], box[5], scale)) & 0xFFFE
        high_x = int(_cell(x + REACH_SIDE, box[0], box[3], scale) + F1) | 1
        high_y = int(_cell(y + REACH_UP, box[1], box[4], scale) + F1) | 1
        high_z = int(_cell(z + REACH_SIDE, box[2], box[5], scale) + F1) | 1
        while n < end:
            node = mesh.nodes[n]
            polygon = node[6]
            overlap = low_x <= node[3] and high_x >= node[0] and low_z <= node[5] and high_z >= node[2]
            overlap = overlap and low_y <= node[4] and high_y >= node[1]
            if polygon >= 0 and overlap:
                count = _add_candidate(mesh, polygon, p, count, found, gaps)
            n += 1 if overlap or polygon >= 0 else -polygon
    return count


@inner
def _score(mesh, polygon, p):
    """Detour's measure of how near a polygon is, and its nearest point.

    Straight over a polygon and within the climb height is no distance at all.
    """
    if is_inside(mesh, polygon, p):
        y = height(mesh, polygon, p)
        away = max(abs(p[1] - y) - mesh.boxes[mesh.polygons[polygon, TILE], 7], F0)
        return away * away, (p[0], y, p[2])
    c = _closest_on_edges(mesh, polygon, p, 7)
    dx, dy, dz = p[0] - c[0], p[1] - c[1], p[2] - c[2]
    return dx * dx + dy * dy + dz * dz, c


@inner
def nearest(mesh, p):
    """The polygon nearest to a point within Habitat's box, -1 if none, and its nearest point."""
    winner, at = -1, (np.float32(np.nan), np.float32(np.nan), np.float32(np.nan))
    if not (np.isfinite(p[0]) and np.isfinite(p[1]) and np.isfinite(p[2])):
        return winner, at
    found = np.empty(2 * len(mesh.polygons), np.int32)
    gaps = np.empty(2 * len(mesh.polygons), np.float32)
    count = _candidates(mesh, p, found, gaps)
    # The polygons around the point come first: what they score spares a look at those farther off. The winner
    # is still the first of the best in the order of the tree.
    bound = FAR
    for i in range(count):
        if gaps[i] == F0:
            bound = min(bound, _score(mesh, found[i], p)[0])
    best = FAR
    for i in range(count):
        if gaps[i] <= min(bound, best) * GAP_SCALE + GAP_MARGIN:
            away, c = _score(mesh, found[i], p)
            if away < best:
                best, winner, at = away, found[i], c
    return winner, at

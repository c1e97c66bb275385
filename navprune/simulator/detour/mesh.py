"""A navigation mesh as the kernels walk over it, and the plane geometry of its polygons."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from navprune.kernels import inner

# columns of the integer tables of a mesh
COUNT, OPEN, TILE, TRIANGLE, TRIANGLE_END, LINK, LINK_END, ISLAND = range(8)
TO, EDGE, STATE = range(3)

F0, F1, HALF = np.float32(0), np.float32(1), np.float32(0.5)
FAR = np.float32(3.4028235e38)
EPSILON = np.float32(1e-6)


class Mesh(NamedTuple):
    """All tiles flattened: P polygons, K detail triangles, L links, B bounding volumes, M tiles."""

    corners: np.ndarray  # float32 [P, 6, 3]
    polygons: np.ndarray  # int32 [P, 8]: corners, open, tile, ranges of triangles and links, island
    triangles: np.ndarray  # float32 [K, 3, 3]
    outlines: np.ndarray  # uint8 [K]: bits 0 to 2 border edges of the polygon, 3 to 5 inner edges to visit
    links: np.ndarray  # int32 [L, 3]: target polygon, edge, state in a search (by the side of the tile)
    portals: np.ndarray  # float32 [L, 2, 3]: left and right end of the way through
    nodes: np.ndarray  # int32 [B, 7]: lower and upper cell, then a polygon or minus the nodes to skip
    tiles: np.ndarray  # int32 [M, 7]: in the order of visits column, row, ranges of nodes and polygons, row in boxes
    extents: np.ndarray  # float32 [P, 4]: least x and z, largest x and z
    boxes: np.ndarray  # float32 [M, 8]: lower and upper corner, cells per metre, climb
    grid: np.ndarray  # float32 [4]: origin x and z, width and height of a tile


# A point is a tuple of three numbers: a view of an array's row would cost a count of references each time. For the
# same reason what runs most often is given single arrays, not a whole mesh or search.


@inner
def point_of(points, i):
    """A point of an array [I, 3]."""
    return points[i, 0], points[i, 1], points[i, 2]


@inner
def corner_of(points, i, k):
    """A point of an array [I, K, 3]: a corner of a polygon or of a triangle, an end of a portal."""
    return points[i, k, 0], points[i, k, 1], points[i, k, 2]


@inner
def distance_between(a, b):
    """Metres from a point to another."""
    dx, dy, dz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    return np.sqrt(dx * dx + dy * dy + dz * dz)


@inner
def between(a, b, t):
    """The point between two others, from a at t = 0 to b at 1."""
    return a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t


@inner
def to_segment(p, a, b):
    """Squared distance in the plane from a point to a segment, and where on the segment, from 0 to 1."""
    ux, uz = b[0] - a[0], b[2] - a[2]
    length = ux * ux + uz * uz
    t = ux * (p[0] - a[0]) + uz * (p[2] - a[2])
    if length > F0:
        t /= length
    t = min(max(t, F0), F1)
    dx, dz = a[0] + t * ux - p[0], a[2] + t * uz - p[2]
    return dx * dx + dz * dz, t


@inner
def is_inside(mesh, polygon, p):
    """Whether a point lies in a polygon's outline, by crossings."""
    count, inside = mesh.polygons[polygon, COUNT], False
    b = corner_of(mesh.corners, polygon, count - 1)
    for i in range(count):
        a = corner_of(mesh.corners, polygon, i)
        if (a[2] > p[2]) != (b[2] > p[2]) and p[0] < (b[0] - a[0]) * (p[2] - a[2]) / (b[2] - a[2]) + a[0]:
            inside = not inside
        b = a
    return inside


@inner
def is_wall(mesh, polygon, edge):
    """Whether no link over an edge leads to an open polygon."""
    for k in range(mesh.polygons[polygon, LINK], mesh.polygons[polygon, LINK_END]):
        if mesh.links[k, EDGE] == edge and mesh.polygons[mesh.links[k, TO], OPEN]:
            return False
    return True


@inner
def to_edge(mesh, polygon, edge, p):
    """Squared distance in the plane from a point to an edge, and where on the edge, from 0 to 1."""
    after = (edge + 1) % mesh.polygons[polygon, COUNT]
    return to_segment(p, corner_of(mesh.corners, polygon, edge), corner_of(mesh.corners, polygon, after))

"""Gives the polygons of a navigation mesh the heights of the floor under them: Recast's detail mesh.

All positions are float32 metres from the lower corner of the grid, `y` up.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from navprune.kernels import njit
from navprune.scenes.recast.heightfield import Field, Grid
from navprune.scenes.recast.heights import UNSET, patch_around
from navprune.scenes.recast.polygons import NONE, PolygonMesh

MOST_POINTS = 127  # of a polygon's detail
MOST_ON_EDGE = 31  # pieces into which an edge is cut
MOST_TRIANGLES = 255
UNKNOWN, HULL = np.int64(-1), np.int64(-2)  # faces beside an edge of the triangulation
FLAT, SOLID = np.float32(0), np.float32(1)  # whether heights count
INFINITE = np.float32(3.4028235e38)


class Detail(NamedTuple):
    """Points and triangles of one polygon; its corners come first."""

    points: np.ndarray  # float32 [K, 3]
    triangles: np.ndarray  # int32 [T, 4]: corners, and 2 bits for each edge that says if it is one of the polygon


def detail(
    field: Field,
    regions: np.ndarray,
    mesh: PolygonMesh,
    grid: Grid,
    spacing: np.float32,
    max_error: np.float32,
    search: int,
) -> list[Detail]:
    """The detail of each polygon.

    The floor is sampled every `spacing` metres (0: not at all), and followed to `max_error` metres; where a sample
    has no height, one up to `search` cells away serves.
    """
    scale = np.array([grid.cell_size, grid.cell_height, grid.cell_size], np.float32)
    details = []
    for corners, region in zip(mesh.corners, mesh.regions):
        cells = mesh.vertices[corners[corners != NONE]]
        patch = patch_around(field, regions, cells, int(region), grid, search)
        details.append(Detail(*_detail(cells.astype(np.float32) * scale, patch, spacing, max_error)))
    return details


@njit(cache=True)
def _height(x, y, z, patch):
    """The height at a point; where there is none, of the best place in the nearest ring of cells; else the point's."""
    rows, columns = patch.heights.shape
    per_cell = np.float32(1) / patch.cell_size
    ix = min(max(int(np.floor(x * per_cell + np.float32(0.01))) - patch.x, 0), columns - 1)
    iz = min(max(int(np.floor(z * per_cell + np.float32(0.01))) - patch.z, 0), rows - 1)
    height = patch.heights[iz, ix]
    for ring in range(1, patch.search + 1):
        if height != UNSET:
            break
        best = INFINITE
        for k in range(8 * ring):
            dx, dz = _on_ring(ring, k)
            if 0 <= ix + dx < columns and 0 <= iz + dz < rows:
                other = patch.heights[iz + dz, ix + dx]
                apart = abs(np.float32(other) * patch.cell_height - y)
                if other != UNSET and apart < best:
                    height, best = other, apart
    return np.float32(height) * patch.cell_height if height != UNSET else y


@njit(cache=True)
def _on_ring(ring, k):
    """The k-th cell of a square ring, from the one after its corner (x, -z) round by x, z, -x, -z."""
    side, along = k // (2 * ring), k % (2 * ring) + 1
    if side == 0:
        return ring, along - ring
    if side == 1:
        return ring - along, ring
    if side == 2:
        return -ring, ring - along
    return along - ring, -ring


# ---------------------------------------------------------------------------------------------- plane geometry


@njit(cache=True)
def _apart(a, b):
    """Distance of two points in the plane."""
    dx, dz = b[0] - a[0], b[2] - a[2]
    return np.sqrt(dx * dx + dz * dz)


@njit(cache=True)
def _cross(a, b, c):
    """Twice the signed area of three points in the plane."""
    return (b[0] - a[0]) * (c[2] - a[2]) - (b[2] - a[2]) * (c[0] - a[0])


@njit(cache=True)
def _to_segment(p, a, b, up):
    """Squared distance of a point from a segment; heights count `up` times."""
    along_x, along_y, along_z = b[0] - a[0], (b[1] - a[1]) * up, b[2] - a[2]
    dx, dy, dz = p[0] - a[0], (p[1] - a[1]) * up, p[2] - a[2]
    length = along_x * along_x + along_y * along_y + along_z * along_z
    t = along_x * dx + along_y * dy + along_z * dz
    if length > 0:
        t /= length
    t = min(max(t, np.float32(0)), np.float32(1))
    dx, dz = a[0] + t * along_x - p[0], a[2] + t * along_z - p[2]
    dy = (a[1] + t * along_y - p[1]) * up
    return dx * dx + dy * dy + dz * dz


@njit(cache=True)
def _inside_by(outline, x, z):
    """How far a point lies inside a polygon in the plane, squared; negative outside."""
    p = np.array((x, np.float32(0), z))
    nearest, inside = INFINITE, False
    for i in range(len(outline)):
        a, b = outline[i], outline[i - 1]
        if (a[2] > z) != (b[2] > z) and x < (b[0] - a[0]) * (z - a[2]) / (b[2] - a[2]) + a[0]:
            inside = not inside
        nearest = min(nearest, _to_segment(p, b, a, FLAT))
    return nearest if inside else -nearest


@njit(cache=True)
def _narrowness(outline):
    """The least width of a polygon in the plane."""
    n = len(outline)
    least = INFINITE
    for i in range(n):
        most = np.float32(0)
        for j in range(n):
            if j != i and j != (i + 1) % n:
                most = max(most, _to_segment(outline[j], outline[i], outline[(i + 1) % n], FLAT))
        least = min(least, most)
    return np.sqrt(least)


@njit(cache=True, error_model="numpy")
def _above(p, points, triangles):
    """How far a point lies over or under the triangles; -1 beside them."""
    nearest, margin = INFINITE, np.float32(1e-4)
    for t in range(len(triangles)):
        a, b, c = points[triangles[t, 0]], points[triangles[t, 1]], points[triangles[t, 2]]
        ux, uz, vx, vz, px, pz = c[0] - a[0], c[2] - a[2], b[0] - a[0], b[2] - a[2], p[0] - a[0], p[2] - a[2]
        uu, uv, up = ux * ux + uz * uz, ux * vx + uz * vz, ux * px + uz * pz
        vv, vp = vx * vx + vz * vz, vx * px + vz * pz
        scale = np.float32(1) / (uu * vv - uv * uv)
        u, v = (vv * up - uv * vp) * scale, (uu * vp - uv * up) * scale
        if u >= -margin and v >= -margin and u + v <= np.float32(1) + margin:
            nearest = min(nearest, abs(a[1] + (c[1] - a[1]) * u + (b[1] - a[1]) * v - p[1]))
    return nearest if nearest < INFINITE else np.float32(-1)


# ---------------------------------------------------------------------------------------------- triangulation


@njit(cache=True)
def _fan(points, hull, corners):
    """Triangles of a convex ring of points, from the ear with the shortest round, to the nearer side each time."""
    n = len(hull)
    start, left, right, shortest = 0, 1, n - 1, INFINITE
    for i in range(n):
        if hull[i] >= corners:
            continue  # a point on an edge makes no ear
        a, b, c = points[hull[i - 1]], points[hull[i]], points[hull[(i + 1) % n]]
        round_trip = _apart(a, b) + _apart(b, c) + _apart(c, a)
        if round_trip < shortest:
            start, left, right, shortest = i, (i + 1) % n, (i - 1) % n, round_trip
    triangles = np.empty((n - 2, 3), np.int32)
    triangles[0] = hull[start], hull[left], hull[right]
    for t in range(1, n - 2):
        triangles[t, 0], triangles[t, 2] = hull[left], hull[right]
        after, before = (left + 1) % n, (right - 1) % n
        by_left = _apart(points[hull[left]], points[hull[after]]) + _apart(points[hull[after]], points[hull[right]])
        by_right = _apart(points[hull[right]], points[hull[before]]) + _apart(points[hull[left]], points[hull[before]])
        if by_left < by_right:
            triangles[t, 1] = hull[after]
            left = after
        else:
            triangles[t, 1] = hull[before]
            right = before
    return triangles


@njit(cache=True)
def _find(edges, a, b):
    for k in range(len(edges)):
        if (edges[k, 0] == a and edges[k, 1] == b) or (edges[k, 0] == b and edges[k, 1] == a):
            return k
    return -1


@njit(cache=True)
def _set_face(edges, k, a, b, face):
    """Say what lies to the left of an edge seen from a to b, if that is not known."""
    if edges[k, 0] == a and edges[k, 1] == b and edges[k, 2] == UNKNOWN:
        edges[k, 2] = face
    elif edges[k, 1] == a and edges[k, 0] == b and edges[k, 3] == UNKNOWN:
        edges[k, 3] = face


@njit(cache=True)
def _circle(a, b, c):
    """Centre (x, 0, z) and radius of the circle through three points in the plane."""
    area = _cross(a, b, c)
    if abs(area) <= np.float32(1e-6):
        return np.array((a[0], np.float32(0), a[2])), np.float32(0)
    bx, bz, cx, cz = b[0] - a[0], b[2] - a[2], c[0] - a[0], c[2] - a[2]
    bb, cc = bx * bx + bz * bz, cx * cx + cz * cz
    x = (bb * cz - cc * bz) / (np.float32(2) * area)
    z = (cc * bx - bb * cx) / (np.float32(2) * area)
    return np.array((x + a[0], np.float32(0), z + a[2])), np.sqrt(x * x + z * z)


@njit(cache=True)
def _crosses_any(points, edges, a, b):
    """Whether the line between two points crosses an edge that has no end in common with it."""
    for k in range(len(edges)):
        c, d = edges[k, 0], edges[k, 1]
        if c == a or c == b or d == a or d == b:
            continue
        by_b, by_a = _cross(points[c], points[d], points[b]), _cross(points[c], points[d], points[a])
        if by_b * by_a < 0:
            by_c = _cross(points[a], points[b], points[c])
            if by_c * (by_c + by_a - by_b) < 0:
                return True
    return False


@njit(cache=True)
def _third(points, edges, a, b):
    """The point to the left of an edge whose circle holds no other, or -1."""
    best, tolerance = -1, np.float32(0.001)
    centre, radius = np.zeros(3, np.float32), np.float32(0)
    for k in range(len(points)):
        if k == a or k == b or _cross(points[a], points[b], points[k]) <= np.float32(1e-5):
            continue
        if best >= 0:
            distance = _apart(centre, points[k])
            if distance > radius * (np.float32(1) + tolerance):
                continue
            near = distance >= radius * (np.float32(1) - tolerance)
            if near and (_crosses_any(points, edges, a, k) or _crosses_any(points, edges, b, k)):
                continue
        best = k
        centre, radius = _circle(points[a], points[b], points[k])
    return best


@njit(cache=True)
def _delaunay(points, hull):
    """Triangles int32 [T, 3] of points inside a ring."""
    edges = np.empty((10 * len(points), 4), np.int64)
    count, faces, k = len(hull), np.int64(0), np.int64(0)
    for i in range(count):
        edges[i] = hull[i - 1], hull[i], HULL, UNKNOWN
    while k < count:
        for face in (2, 3):
            if edges[k, face] != UNKNOWN:
                continue
            a, b = edges[k, face - 2], edges[k, 3 - face]
            c = _third(points, edges[:count], a, b)
            if c < 0:
                _set_face(edges, k, a, b, HULL)
                continue
            _set_face(edges, k, a, b, faces)
            for start, end in ((c, a), (b, c)):
                known = _find(edges[:count], start, end)
                if known >= 0:
                    _set_face(edges, known, start, end, faces)
                elif count < len(edges):
                    edges[count] = start, end, faces, UNKNOWN
                    count += 1
            faces += 1
        k += 1
    return _triangles_of(edges[:count], faces)


@njit(cache=True)
def _triangles_of(edges, faces):
    """Collect the corners of each face from the edges beside it; a face that stays open is left out."""
    triangles = np.full((faces, 3), -1, np.int32)
    for k in range(len(edges)):
        for column, a, b in ((3, edges[k, 0], edges[k, 1]), (2, edges[k, 1], edges[k, 0])):
            face = edges[k, column]
            if face < 0:
                continue
            if triangles[face, 0] == -1:
                triangles[face, 0], triangles[face, 1] = a, b
            elif triangles[face, 0] == b:
                triangles[face, 2] = a
            elif triangles[face, 1] == a:
                triangles[face, 2] = b
    t = 0
    while t < faces:
        if triangles[t, 0] < 0 or triangles[t, 1] < 0 or triangles[t, 2] < 0:
            faces -= 1
            triangles[t] = triangles[faces]
        else:
            t += 1
    return triangles[:faces]


# ---------------------------------------------------------------------------------------------- sampling


@njit(cache=True)
def _detail(outline, patch, spacing, max_error):
    """Points and triangles of a polygon that follow the heights of a patch."""
    n = len(outline)
    points = np.empty((MOST_POINTS + 1, 3), np.float32)
    points[:n] = outline
    hull, count = np.arange(n), n
    if spacing > 0:
        hull, count = _along_edges(outline, patch, spacing, max_error, points)
    triangles = _fan(points, hull, n)
    if spacing <= 0 or _narrowness(outline) < spacing * 2:
        return points[:count], _with_borders(points, triangles, outline)
    samples = _samples(outline, patch, spacing)
    for _ in range(len(samples)):
        if count >= MOST_POINTS:
            break
        worst, error = -1, np.float32(0)
        for i in range(len(samples)):
            if samples[i, 3] == 0:
                off = _above(samples[i], points, triangles)
                if off > error:
                    worst, error = i, off
        if worst < 0 or error <= max_error:
            break
        samples[worst, 3] = 1
        points[count] = samples[worst, :3]
        count += 1
        triangles = _delaunay(points[:count], hull)
    return points[:count], _with_borders(points, triangles[:MOST_TRIANGLES], outline)


@njit(cache=True)
def _with_borders(points, triangles, outline):
    """Triangles int32 [T, 4] whose last column marks the edges that lie on the polygon's, to a millimetre."""
    rows = np.zeros((len(triangles), 4), np.int32)
    near = np.float32(0.001) * np.float32(0.001)
    for t in range(len(triangles)):
        for k in range(3):
            rows[t, k] = triangles[t, k]
            a, b = points[triangles[t, k]], points[triangles[t, (k + 1) % 3]]
            for i in range(len(outline)):
                c, d = outline[i - 1], outline[i]
                if _to_segment(a, c, d, FLAT) < near and _to_segment(b, c, d, FLAT) < near:
                    rows[t, 3] |= 1 << (2 * k)
                    break
    return rows


@njit(cache=True)
def _along_edges(outline, patch, spacing, max_error, points):
    """Add to `points` those that the edges of a polygon need; returns the ring of all points, and their number."""
    n = count = len(outline)
    hull = [n - 1]
    edge = np.empty((MOST_ON_EDGE + 1, 3), np.float32)
    for i in range(n):
        a, b = outline[i - 1], outline[i]
        # Both polygons at an edge must walk it in the same direction, or their heights come apart.
        turned = a[2] > b[2] if abs(a[0] - b[0]) < np.float32(1e-6) else a[0] > b[0]
        if turned:
            a, b = b, a
        pieces = max(min(1 + int(np.floor(_apart(a, b) / spacing)), MOST_ON_EDGE, MOST_POINTS - 1 - count), 1)
        for k in range(pieces + 1):
            u = np.float32(k) / np.float32(pieces)
            edge[k] = a + (b - a) * u
            edge[k, 1] = _height(edge[k, 0], edge[k, 1], edge[k, 2], patch)
        kept, k = [0, pieces], 0
        while k < len(kept) - 1:
            worst, error = -1, np.float32(0)
            for m in range(kept[k] + 1, kept[k + 1]):
                off = _to_segment(edge[m], edge[kept[k]], edge[kept[k + 1]], SOLID)
                if off > error:
                    worst, error = m, off
            if worst >= 0 and error > max_error * max_error:
                kept.insert(k + 1, worst)
            else:
                k += 1
        for k in kept[-2:0:-1] if turned else kept[1:-1]:
            points[count] = edge[k]
            hull.append(count)
            count += 1
        hull.append(i)
    return np.array(hull[:-1]), count


@njit(cache=True)
def _samples(outline, patch, spacing):
    """Points of a grid well inside a polygon, slightly moved: float32 [K, 4], the last column 0."""
    x0, x1 = np.floor(np.min(outline[:, 0]) / spacing), np.ceil(np.max(outline[:, 0]) / spacing)
    z0, z1 = np.floor(np.min(outline[:, 2]) / spacing), np.ceil(np.max(outline[:, 2]) / spacing)
    middle = (np.max(outline[:, 1]) + np.min(outline[:, 1])) * np.float32(0.5)
    samples = np.empty((max(int(x1 - x0), 0) * max(int(z1 - z0), 0), 4), np.float32)
    count = 0
    for iz in range(int(z0), int(z1)):
        for ix in range(int(x0), int(x1)):
            x, z = np.float32(ix) * spacing, np.float32(iz) * spacing
            if _inside_by(outline, x, z) < spacing / 2:
                continue
            samples[count, 0] = x + _jitter(count * 0x8DA6B343) * patch.cell_size * np.float32(0.1)
            samples[count, 1] = _height(x, middle, z, patch)
            samples[count, 2] = z + _jitter(count * 0xD8163841) * patch.cell_size * np.float32(0.1)
            samples[count, 3] = 0
            count += 1
    return samples[:count]


@njit(cache=True)
def _jitter(seed):
    """A number from -1 to 1 that looks random: samples in rank and file triangulate badly."""
    return np.float32(seed & 0xFFFF) / np.float32(65535) * np.float32(2) - np.float32(1)

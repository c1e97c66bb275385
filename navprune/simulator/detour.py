"""Detour's queries on a navigation mesh, compiled: nearest polygon, corridor, string pulling, sliding, walls.

The rules, the order of visits and the float32 arithmetic are those of `DetourNavMeshQuery.cpp`, because ties
and rounding decide which of two corridors is taken. Points are float32 x, y, z with y up; a polygon is its
index, -1 for none.

All is in one file because numba's cache of a function does not notice changes in another file that it calls.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from navprune.kernels import njit

MAX_PATH = 256  # polygons of a corridor in Habitat; a longer one counts as unreachable, as does a path of 256 points
MAX_NODES = 2048  # of a search in Habitat; one that needs more fails
MAX_TOUCHED = 64  # polygons that a slide may look at, and how many may wait their turn
MAX_WAITING = 48

# columns of the integer tables of a mesh
COUNT, OPEN, TILE, TRIANGLE, TRIANGLE_END, LINK, LINK_END, ISLAND = range(8)
TO, EDGE, STATE = range(3)

F0, F1, HALF = np.float32(0), np.float32(1), np.float32(0.5)
FAR = np.float32(3.4028235e38)
REACH_SIDE, REACH_UP = np.float32(2), np.float32(4)  # half extents of the box Habitat looks in
HEURISTIC = np.float32(0.999)
EPSILON = np.float32(1e-6)
EQUAL_SQUARED = np.float32((1 / 16384) ** 2)
NEAR_PORTAL_SQUARED = np.float32(0.001) * np.float32(0.001)
SEARCH_MARGIN = np.float32(0.001)
NUDGE = np.float32(1e-4)
EQUAL = np.float32(1e-5)  # Magnum's tolerance for equal numbers: relative, and absolute near 0
GAP_SCALE, GAP_MARGIN = np.float32(1.001), np.float32(1e-4)  # room for rounding, relative and square metres
CLOSED, WAITING = 2, 1


entry = njit(cache=True, nogil=True)  # what Python calls
inner = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)  # what only entries call; cached within them


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


class Search(NamedTuple):
    """Scratch of one caller for A* and Dijkstra: nodes, the table that finds them, the heap of open ones."""

    table: np.ndarray  # int32 [4 P]: node of a polygon entered from a side, -1 none
    key: np.ndarray  # int32 [N]
    position: np.ndarray  # float32 [N, 3]
    cost: np.ndarray  # float32 [N]
    total: np.ndarray  # float32 [N]
    parent: np.ndarray  # int32 [N]
    flags: np.ndarray  # uint8 [N]
    heap: np.ndarray  # int32 [N]
    corridor: np.ndarray  # int32 [MAX_PATH]
    points: np.ndarray  # float32 [MAX_PATH + 1, 3]


@inner
def new_search(polygon_count):
    """Make the scratch for searches on a mesh of so many polygons."""
    size = min(4 * polygon_count + 1, MAX_NODES)
    return Search(
        np.full(4 * polygon_count, -1, np.int32),
        np.empty(size, np.int32),
        np.empty((size, 3), np.float32),
        np.empty(size, np.float32),
        np.empty(size, np.float32),
        np.empty(size, np.int32),
        np.empty(size, np.uint8),
        np.empty(size, np.int32),
        np.empty(MAX_PATH, np.int32),
        np.empty((MAX_PATH + 1, 3), np.float32),
    )


# ------------------------------------------------------------------------------------------- plane geometry


# A point is a tuple of three numbers: a view of an array's row would cost a count of references each time. For the
# same reason what runs most often is given single arrays, not a whole mesh or search.


@inner
def _row(points, i):
    """A point of an array [I, 3]."""
    return points[i, 0], points[i, 1], points[i, 2]


@inner
def _at(points, i, k):
    """A point of an array [I, K, 3]."""
    return points[i, k, 0], points[i, k, 1], points[i, k, 2]


@inner
def _distance(a, b):
    dx, dy, dz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    return np.sqrt(dx * dx + dy * dy + dz * dz)


@inner
def _along(a, b, t):
    """The point between two others, from a at t = 0 to b at 1."""
    return a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t


@inner
def _equal(a, b):
    """Whether Magnum, with which Habitat compares positions, takes two coordinates for equal."""
    away, size = abs(a - b), abs(a) + abs(b)
    return away < EQUAL or (a != F0 and b != F0 and away / size < EQUAL)


@inner
def _to_segment(p, a, b):
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
def _area(a, b, c):
    """Twice the signed area of a triangle in the plane."""
    return (c[0] - a[0]) * (b[2] - a[2]) - (b[0] - a[0]) * (c[2] - a[2])


@inner
def _inside(mesh, polygon, p):
    """Whether a point lies in a polygon's outline, by crossings."""
    count, inside = mesh.polygons[polygon, COUNT], False
    b = _at(mesh.corners, polygon, count - 1)
    for i in range(count):
        a = _at(mesh.corners, polygon, i)
        if (a[2] > p[2]) != (b[2] > p[2]) and p[0] < (b[0] - a[0]) * (p[2] - a[2]) / (b[2] - a[2]) + a[0]:
            inside = not inside
        b = a
    return inside


# ------------------------------------------------------------------------------------------- nearest point


@inner
def _triangle_height(mesh, k, p):
    """Whether a point lies over a detail triangle, and the height there."""
    a, b, c = _at(mesh.triangles, k, 0), _at(mesh.triangles, k, 1), _at(mesh.triangles, k, 2)
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
                a, b = _at(mesh.triangles, k, j), _at(mesh.triangles, k, i)
                squared, t = _to_segment(p, a, b)
                if squared < best:
                    best, at = squared, _along(a, b, t)
            j = i
    return at


@inner
def height(mesh, polygon, p):
    """The height of a polygon's surface under or over a point; the point's own where it is not over it."""
    if not _inside(mesh, polygon, p):
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
    if _inside(mesh, polygon, p):
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


# ------------------------------------------------------------------------------------------- search


@inner
def _rise(heap, total, i, node):
    while i > 0 and total[heap[(i - 1) // 2]] > total[node]:
        heap[i] = heap[(i - 1) // 2]
        i = (i - 1) // 2
    heap[i] = node


@inner
def _pop(heap, total, size):
    """Take the best node off a heap of `size`; the heap's new size is one less."""
    best, last = heap[0], heap[size - 1]
    size -= 1
    i, child = 0, 1
    while child < size:
        if child + 1 < size and total[heap[child]] > total[heap[child + 1]]:
            child += 1
        heap[i] = heap[child]
        i, child = child, 2 * child + 1
    _rise(heap, total, i, last)
    return best


@inner
def _push(search, size, node):
    """Open a node, or move it up where it is open already; returns the heap's size."""
    if search.flags[node] & WAITING:
        i = 0
        while search.heap[i] != node:
            i += 1
        _rise(search.heap, search.total, i, node)
        return size
    search.flags[node] = WAITING
    _rise(search.heap, search.total, size, node)
    return size + 1


@inner
def _node(search, count, key):
    """The node of a key, made when it is new; -1 when there is no room. And the count of nodes."""
    node = search.table[key]
    if node >= 0:
        return node, count
    if count >= search.key.shape[0]:
        return -1, count
    search.table[key] = count
    search.key[count] = key
    search.flags[count] = 0
    search.parent[count] = -1
    return count, count + 1


@inner
def _begin(search, polygon, p, total):
    node, count = _node(search, 0, 4 * polygon)
    search.position[node] = p
    search.cost[node], search.total[node] = F0, total
    return count, _push(search, 0, node)


@inner
def _finish(search, count):
    for node in range(count):
        search.table[search.key[node]] = -1


@inner
def _reach(mesh, search, node, link):
    """Put a node at the middle of the edge through which it is entered."""
    for c in range(3):
        search.position[node, c] = (mesh.portals[link, 0, c] + mesh.portals[link, 1, c]) * HALF


@inner
def find_corridor(mesh, search, start, s, goal, g):
    """A* over polygons through the middles of their shared edges; `search.corridor` gets the polygons.

    From a point s in the polygon `start` to a point g in `goal`. Returns the number of polygons, 0 when Habitat
    would find no path.
    """
    if start == goal:
        search.corridor[0] = start
        return 1
    count, waiting = _begin(search, start, s, _distance(s, g) * HEURISTIC)
    last, complete = -1, True
    while waiting:
        best = _pop(search.heap, search.total, waiting)
        waiting -= 1
        search.flags[best] = CLOSED
        polygon = search.key[best] >> 2
        if polygon == goal:
            last = best
            break
        origin = search.key[search.parent[best]] >> 2 if search.parent[best] >= 0 else -1
        for k in range(mesh.polygons[polygon, LINK], mesh.polygons[polygon, LINK_END]):
            target = mesh.links[k, TO]
            if target == origin or not mesh.polygons[target, OPEN]:
                continue
            node, count = _node(search, count, 4 * target + mesh.links[k, STATE])
            if node < 0:
                complete = False
                continue
            if search.flags[node] == 0:
                _reach(mesh, search, node, k)
            place = _row(search.position, node)
            cost, left = search.cost[best] + _distance(_row(search.position, best), place), _distance(place, g)
            if target == goal:
                cost, left = cost + left, F0
            left *= HEURISTIC
            if search.flags[node] != 0 and cost + left >= search.total[node]:
                continue
            search.parent[node], search.cost[node], search.total[node] = best, cost, cost + left
            waiting = _push(search, waiting, node)
    length, node = 0, last
    while node >= 0:
        length += 1
        node = search.parent[node]
    if not complete or length > MAX_PATH:
        length = 0
    node = last
    for i in range(length - 1, -1, -1):
        search.corridor[i] = search.key[node] >> 2
        node = search.parent[node]
    _finish(search, count)
    return length


@inner
def wall_distance(mesh, search, start, p, limit):
    """Distance in the plane from a point to the nearest wall around it, at most `limit`."""
    squared = limit * limit
    count, waiting = _begin(search, start, p, F0)
    while waiting:
        best = _pop(search.heap, search.total, waiting)
        waiting -= 1
        search.flags[best] = CLOSED
        polygon = search.key[best] >> 2
        origin = search.key[search.parent[best]] >> 2 if search.parent[best] >= 0 else -1
        for edge in range(mesh.polygons[polygon, COUNT]):
            k = _first_link(mesh, polygon, edge)
            if k < 0 or not mesh.polygons[mesh.links[k, TO], OPEN]:
                squared = min(squared, _to_edge(mesh, polygon, edge, p)[0])
        for k in range(mesh.polygons[polygon, LINK], mesh.polygons[polygon, LINK_END]):
            target = mesh.links[k, TO]
            if target == origin or not mesh.polygons[target, OPEN]:
                continue
            if _to_edge(mesh, polygon, mesh.links[k, EDGE], p)[0] > squared:
                continue
            node, count = _node(search, count, 4 * target)
            if node < 0 or search.flags[node] == CLOSED:
                continue
            if search.flags[node] == 0:
                _reach(mesh, search, node, k)
            total = search.total[best] + _distance(_row(search.position, best), _row(search.position, node))
            if search.flags[node] != 0 and total >= search.total[node]:
                continue
            search.parent[node], search.total[node] = best, total
            waiting = _push(search, waiting, node)
    _finish(search, count)
    return np.sqrt(squared)


@inner
def _first_link(mesh, polygon, edge):
    """The first link over an edge, which alone decides whether Detour measures to it as a wall; -1 for none."""
    for k in range(mesh.polygons[polygon, LINK], mesh.polygons[polygon, LINK_END]):
        if mesh.links[k, EDGE] == edge:
            return k
    return -1


@inner
def _is_wall(mesh, polygon, edge):
    """Whether no link over an edge leads to an open polygon."""
    for k in range(mesh.polygons[polygon, LINK], mesh.polygons[polygon, LINK_END]):
        if mesh.links[k, EDGE] == edge and mesh.polygons[mesh.links[k, TO], OPEN]:
            return False
    return True


@inner
def _to_edge(mesh, polygon, edge, p):
    after = (edge + 1) % mesh.polygons[polygon, COUNT]
    return _to_segment(p, _at(mesh.corners, polygon, edge), _at(mesh.corners, polygon, after))


# ------------------------------------------------------------------------------------------- string pulling


@inner
def _clamp(mesh, polygon, p):
    """A point itself where it is over a polygon, else the nearest point of the polygon's outline."""
    if _inside(mesh, polygon, p):
        return p
    best, at, edge = FAR, F0, 0
    for i in range(mesh.polygons[polygon, COUNT]):
        squared, t = _to_edge(mesh, polygon, i, p)
        if squared < best:
            best, at, edge = squared, t, i
    after = (edge + 1) % mesh.polygons[polygon, COUNT]
    return _along(_at(mesh.corners, polygon, edge), _at(mesh.corners, polygon, after), at)


@inner
def _same(a, b):
    dx, dy, dz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    return dx * dx + dy * dy + dz * dz < EQUAL_SQUARED


@inner
def _append(points, count, p):
    """Add a point to a path unless it repeats the last; returns the number of points."""
    points[count] = p
    return count if count and _same(points[count - 1], points[count]) else count + 1


@inner
def pull_string(mesh, search, length, start, goal):
    """The shortest line through the corridor in `search`, by the funnel algorithm, into `search.points`.

    Returns the number of points, 0 when there would be too many.
    """
    points, corridor = search.points, search.corridor
    apex, goal = _clamp(mesh, corridor[0], start), _clamp(mesh, corridor[length - 1], goal)
    count = _append(points, 0, apex)
    left, right, left_at, right_at = apex, apex, 0, 0
    i = -1
    while i + 1 < length and length > 1:
        i += 1
        to_left, to_right = goal, goal
        if i + 1 < length:
            k = mesh.polygons[corridor[i], LINK]
            while mesh.links[k, TO] != corridor[i + 1]:
                k += 1
            to_left, to_right = _at(mesh.portals, k, 0), _at(mesh.portals, k, 1)
            if i == 0 and _to_segment(apex, to_left, to_right)[0] < NEAR_PORTAL_SQUARED:
                continue
        turned = False
        if _area(apex, right, to_right) <= F0:
            if _same(apex, right) or _area(apex, left, to_right) > F0:
                right, right_at = to_right, i
            else:
                apex, i, turned = left, left_at, True
        if not turned and _area(apex, left, to_left) >= F0:
            if _same(apex, left) or _area(apex, right, to_left) < F0:
                left, left_at = to_left, i
            else:
                apex, i, turned = right, right_at, True
        if turned:
            left, right, left_at, right_at = apex, apex, i, i
            if i == length - 1:
                break
            count = _append(points, count, apex)
            if count >= MAX_PATH:
                return 0
    count = _append(points, count, goal)
    return count if count < MAX_PATH else 0


# ------------------------------------------------------------------------------------------- sliding


@inner
def _wall_crossing(mesh, polygon, s, e):
    """Whether a straight way crosses a wall of one polygon, and the last such point."""
    crossed, at = False, (F0, F0, F0)
    ux, uz = e[0] - s[0], e[2] - s[2]
    count = mesh.polygons[polygon, COUNT]
    for edge in range(count):
        a, b = _at(mesh.corners, polygon, edge), _at(mesh.corners, polygon, (edge + 1) % count)
        vx, vz = b[0] - a[0], b[2] - a[2]
        px, pz = s[0] - a[0], s[2] - a[2]
        scale = ux * vz - uz * vx
        if abs(scale) < EPSILON or not _is_wall(mesh, polygon, edge):
            continue
        along, t = (vx * pz - vz * px) / scale, (ux * pz - uz * px) / scale
        if F0 <= along <= F1 and F0 <= t <= F1:
            crossed, at = True, _along(a, b, t)
    return crossed, at


@inner
def slide(mesh, start, s, e, sliding):
    """Move along the surface from a point s towards e, breadth first over polygons, as near as walls allow.

    Without sliding, the last wall that the straight way crosses in the polygons gone through stops it. So it
    is in habitat-sim, as its records show, though it lets corners be cut. Returns the last polygon, -1 for
    none, and the point reached, which is not yet at the surface's height.
    """
    touched = np.empty(MAX_TOUCHED, np.int32)  # polygons in the order of first sight; each is a node of the search
    parent = np.full(MAX_TOUCHED, -1, np.int32)
    queued = np.zeros(MAX_TOUCHED, np.bool_)
    queue = np.empty(MAX_TOUCHED, np.int32)
    touched[0], queued[0], queue[0] = start, True, 0
    nodes, first, end = 1, 0, 1
    best, at, reached = FAR, -1, s
    middle = _along(s, e, HALF)
    reach = _distance(s, e) * HALF + SEARCH_MARGIN
    reach *= reach
    while first < end:
        here = queue[first]
        first += 1
        polygon = touched[here]
        if _inside(mesh, polygon, e):
            at, reached = here, e
            break
        count = mesh.polygons[polygon, COUNT]
        for i in range(count):
            edge = (i - 1) % count
            if _is_wall(mesh, polygon, edge):
                squared, t = _to_edge(mesh, polygon, edge, e)
                if squared < best:
                    best, at = squared, here
                    reached = _along(_at(mesh.corners, polygon, edge), _at(mesh.corners, polygon, i), t)
                continue
            squared, _ = _to_edge(mesh, polygon, edge, middle)
            for k in range(mesh.polygons[polygon, LINK], mesh.polygons[polygon, LINK_END]):
                target = mesh.links[k, TO]
                if mesh.links[k, EDGE] != edge or not mesh.polygons[target, OPEN]:
                    continue
                node = 0
                while node < nodes and touched[node] != target:
                    node += 1
                if node == MAX_TOUCHED:
                    continue
                if node == nodes:
                    touched[node] = target
                    nodes += 1
                if not queued[node] and squared <= reach and end - first < MAX_WAITING:
                    queue[end], queued[node], parent[node] = node, True, here
                    end += 1
    here = -1 if sliding else at
    while here >= 0:
        crossed, wall = _wall_crossing(mesh, touched[here], s, e)
        if crossed:
            at, reached = here, wall
            break
        here = parent[here]
    return touched[at] if at >= 0 else -1, reached


@inner
def try_step(mesh, start, end, sliding):
    """Habitat's step from a start towards an end; returns the point reached.

    A step that begins or ends off the mesh, or ends on another island, is not made.
    """
    here, snapped = nearest(mesh, start)
    there, _ = nearest(mesh, end)
    if here < 0 or there < 0 or mesh.polygons[here, ISLAND] != mesh.polygons[there, ISLAND]:
        return start
    polygon, at = slide(mesh, here, snapped, end, sliding)
    if polygon < 0:
        return start
    at = at[0], height(mesh, polygon, at), at[2]
    landed, _ = nearest(mesh, at)
    if landed >= 0 and mesh.polygons[here, ISLAND] == mesh.polygons[landed, ISLAND]:
        return at
    # The point lies on an edge that two islands share in the plane: nudge it into the polygon it belongs to.
    count = mesh.polygons[polygon, COUNT]
    cx, cy, cz = F0, F0, F0
    for i in range(count):
        corner = _at(mesh.corners, polygon, i)
        cx, cy, cz = cx + corner[0], cy + corner[1], cz + corner[2]
    cx, cy, cz = cx / np.float32(count) - at[0], cy / np.float32(count) - at[1], cz / np.float32(count) - at[2]
    scale = NUDGE / max(np.sqrt(cx * cx + cy * cy + cz * cz), EPSILON)
    return at[0] + cx * scale, at[1] + cy * scale, at[2] + cz * scale


# ------------------------------------------------------------------------------------------- whole batches


@entry
def locate(mesh, points):
    """Nearest polygon int32 [N], -1 off the mesh, and its nearest point float64 [N, 3] for float32 points."""
    polygons, snapped = np.empty(len(points), np.int32), np.empty(points.shape, np.float64)
    for i in range(len(points)):
        polygons[i], snapped[i] = nearest(mesh, _row(points, i))
    return polygons, snapped


@entry
def steps(mesh, starts, ends, sliding):
    """`try_step` for each of starts and ends, float32 [N, 3]: float64 [N, 3]."""
    reached = np.empty(starts.shape, np.float64)
    for i in range(len(starts)):
        reached[i] = try_step(mesh, _row(starts, i), _row(ends, i), sliding)
    return reached


@entry
def wall_distances(mesh, points, limit):
    """`wall_distance` for each of points float32 [N, 3]: float64 [N], infinite off the mesh."""
    search = new_search(len(mesh.polygons))
    distance = np.full(len(points), np.inf)
    for i in range(len(points)):
        polygon, snapped = nearest(mesh, _row(points, i))
        if polygon >= 0:
            distance[i] = wall_distance(mesh, search, polygon, snapped, limit)
    return distance


@inner
def _solve(mesh, search, start, end):
    """Length of the path from start to end, and the number of its points in `search.points`."""
    points = search.points
    here, s = nearest(mesh, start)
    there, g = nearest(mesh, end)
    if here < 0 or there < 0:
        return np.inf, 0
    points[0], points[1] = s, g
    if _equal(s[0], g[0]) and _equal(s[1], g[1]) and _equal(s[2], g[2]):
        return 0.0, 2
    if mesh.polygons[here, ISLAND] != mesh.polygons[there, ISLAND]:
        return np.inf, 0
    length = find_corridor(mesh, search, here, s, there, g)
    count = pull_string(mesh, search, length, start, end) if length else 0
    distance = F0
    for i in range(1, count):
        distance += _distance(points[i - 1], points[i])
    return np.float64(distance) if count else np.inf, count


@entry
def path(mesh, start, end):
    """Length of the path between two points float32 [1, 3], infinite if there is none, and its points [P, 3]."""
    search = new_search(len(mesh.polygons))
    distance, count = _solve(mesh, search, _row(start, 0), _row(end, 0))
    return distance, search.points[:count].copy()


@entry
def path_lengths(mesh, starts, ends):
    """Length of the path from each of starts to its one of ends, float32 [N, 3]: float64 [N]."""
    search = new_search(len(mesh.polygons))
    distance = np.empty(len(starts), np.float64)
    for i in range(len(starts)):
        distance[i], _ = _solve(mesh, search, _row(starts, i), _row(ends, i))
    return distance

"""Habitat's step: along the surface, with or without sliding along walls."""

import numpy as np

from navprune.kernels import inner
from navprune.simulator.detour.mesh import (
    COUNT,
    EDGE,
    EPSILON,
    F0,
    F1,
    FAR,
    HALF,
    ISLAND,
    LINK,
    LINK_END,
    OPEN,
    TO,
    between,
    corner_of,
    distance_between,
    is_inside,
    is_wall,
    to_edge,
)
from navprune.simulator.detour.nearest import height, nearest

MAX_TOUCHED = 64  # polygons that a slide may look at, and how many may wait their turn
MAX_WAITING = 48
SEARCH_MARGIN = np.float32(0.001)
NUDGE = np.float32(1e-4)


@inner
def _wall_crossing(mesh, polygon, s, e, last, at):
    """Where the way from s to e crosses the walls of a polygon farther along it than `last`, from 0 to 1, at `at`."""
    ux, uz = e[0] - s[0], e[2] - s[2]
    count = mesh.polygons[polygon, COUNT]
    for edge in range(count):
        a, b = corner_of(mesh.corners, polygon, edge), corner_of(mesh.corners, polygon, (edge + 1) % count)
        vx, vz = b[0] - a[0], b[2] - a[2]
        px, pz = s[0] - a[0], s[2] - a[2]
        scale = ux * vz - uz * vx
        if abs(scale) < EPSILON or not is_wall(mesh, polygon, edge):
            continue
        along, t = (vx * pz - vz * px) / scale, (ux * pz - uz * px) / scale
        if F0 <= along <= F1 and F0 <= t <= F1 and along > last:
            last, at = along, between(a, b, t)
    return last, at


@inner
def slide(mesh, start, s, e, sliding):
    """Move along the surface from a point s towards e, breadth first over polygons, as near as walls allow.

    Without sliding, of the walls of the polygons gone through that the straight way crosses, the one nearest to its
    end stops it. So it is in habitat-sim, as its records show, though it lets corners be cut. Returns the last polygon
    of the move, -1 for none, and the point reached, which is not yet at the surface's height.
    """
    touched = np.empty(MAX_TOUCHED, np.int32)  # polygons in the order of first sight; each is a node of the search
    parent = np.full(MAX_TOUCHED, -1, np.int32)
    queued = np.zeros(MAX_TOUCHED, np.bool_)
    queue = np.empty(MAX_TOUCHED, np.int32)
    touched[0], queued[0], queue[0] = start, True, 0
    nodes, first, end = 1, 0, 1
    best, at, reached = FAR, -1, s
    middle = between(s, e, HALF)
    reach = distance_between(s, e) * HALF + SEARCH_MARGIN
    reach *= reach
    while first < end:
        here = queue[first]
        first += 1
        polygon = touched[here]
        if is_inside(mesh, polygon, e):
            at, reached = here, e
            break
        count = mesh.polygons[polygon, COUNT]
        for i in range(count):
            edge = (i - 1) % count
            if is_wall(mesh, polygon, edge):
                squared, t = to_edge(mesh, polygon, edge, e)
                if squared < best:
                    best, at = squared, here
                    reached = between(corner_of(mesh.corners, polygon, edge), corner_of(mesh.corners, polygon, i), t)
                continue
            squared, _ = to_edge(mesh, polygon, edge, middle)
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
    here, last = -1 if sliding else at, -F1
    while here >= 0:
        last, reached = _wall_crossing(mesh, touched[here], s, e, last, reached)
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
        corner = corner_of(mesh.corners, polygon, i)
        cx, cy, cz = cx + corner[0], cy + corner[1], cz + corner[2]
    cx, cy, cz = cx / np.float32(count) - at[0], cy / np.float32(count) - at[1], cz / np.float32(count) - at[2]
    scale = NUDGE / max(np.sqrt(cx * cx + cy * cy + cz * cz), EPSILON)
    return at[0] + cx * scale, at[1] + cy * scale, at[2] + cz * scale

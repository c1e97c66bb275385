"""The tree over a scene's triangles that the kernels walk."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from navprune.kernels import njit
from navprune.lanes import WIDTH
from navprune.simulator.bvh import STACK_SIZE, build_tree

EMPTY = 2**31 - 1  # the child of a node that has fewer than WIDTH
WAITING = STACK_SIZE * WIDTH  # more nodes never wait while the tree is walked: a level adds at most WIDTH


class Tree(NamedTuple):
    """What the depth of a frame needs: a tree of WIDTH children a node; node 0 is the root.

    boxes: float32 [M, 6, WIDTH], centre (x, y, z) and half extent of each child.
    children: int32 [M, WIDTH], a node; -1 - (8 * first triangle + count - 1) for a leaf, EMPTY for none.
    corners: float32 [9 T + WIDTH], leaf after leaf: first corner's x of all its triangles, its y, ..., third corner's z.
    places: uint8 [T], 8 * (count of the triangle's leaf - 1) + its place there.
    order: int32 [T], index in the file.
    """

    boxes: NDArray[np.float32]
    children: NDArray[np.int32]
    corners: NDArray[np.float32]
    places: NDArray[np.uint8]
    order: NDArray[np.int32]


def make_tree(vertices: NDArray) -> tuple[Tree, NDArray[np.int32]]:
    """Build the tree over triangles [T, 3, 3]; return it and their order [T] in its leaves."""
    boxes, nodes, order = build_tree(vertices)
    wide_boxes, children = _collapse(boxes, nodes)
    corners, places = _leaves(nodes, order, np.ascontiguousarray(vertices, np.float32).reshape(-1, 9))
    return Tree(wide_boxes, children, corners, places, order), order


@njit(cache=True)
def _collapse(boxes, nodes):
    """The wide tree's boxes and children: of each node's descendants, the largest are opened until there are WIDTH."""
    most = max(1, len(nodes) // 2)
    wide, children = np.zeros((most, 6, WIDTH), np.float32), np.full((most, WIDTH), EMPTY, np.int32)
    wide[:, 3:] = -1e30  # so that nothing lies in the box of no child
    roots = np.empty(most, np.int32)
    roots[0] = 0
    used, done = 1, 0
    members = np.empty(WIDTH, np.int32)
    while done < used:
        count = _open(boxes, nodes, roots[done], members)
        for lane in range(count):
            member = members[lane]
            wide[done, :, lane] = boxes[member]
            first, size = nodes[member]
            if size > 0:
                children[done, lane] = -1 - (8 * first + size - 1)
            else:
                children[done, lane] = used
                roots[used] = member
                used += 1
        done += 1
    return wide[:used].copy(), children[:used].copy()


@njit(cache=True)
def _open(boxes, nodes, root, members):
    """Write the descendants of a node that stand for it to members; return how many."""
    members[0], count = root, 1
    while count < WIDTH:
        largest, area = -1, np.float32(-1)
        for lane in range(count):
            if nodes[members[lane], 1] == 0:
                x, y, z = boxes[members[lane], 3:]
                if x * y + y * z + z * x > area:
                    largest, area = lane, x * y + y * z + z * x
        if largest < 0:
            break
        child = nodes[members[largest], 0]
        members[largest], members[count] = child, child + 1
        count += 1
    return count


@njit(cache=True)
def _leaves(nodes, order, triangles):
    """Corners and places of Tree; triangles [T, 9]. Sorts each leaf's part of order, so that the file's first leads."""
    corners, places = np.zeros(9 * len(order) + WIDTH, np.float32), np.empty(len(order), np.uint8)
    for node in range(len(nodes)):
        first, count = nodes[node]
        order[first : first + count].sort()
        for place in range(count):
            places[first + place] = 8 * (count - 1) + place
            for k in range(9):
                corners[9 * first + k * count + place] = triangles[order[first + place], k]
    return corners, places

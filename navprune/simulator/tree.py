"""The tree over a scene's triangles that the kernels walk."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from navprune.kernels import njit
from navprune.simulator.bvh import STACK_SIZE, build_tree
from navprune.simulator.lanes import WIDTH

NODE = 7 * WIDTH  # numbers of a node
WAITING = STACK_SIZE * WIDTH  # more nodes never wait while the tree is walked: a level adds at most WIDTH


class Tree(NamedTuple):
    """What the depth of a frame needs: a tree of WIDTH children a node; node 0 is the root.

    nodes: float32 [M, 7, WIDTH], centre (x, y, z) and half extent of each child's box, and the bits of an int32 that
        says what the child is: a node, or -1 - (8 * first triangle + count - 1) for a leaf.
    corners: float32 [9 T + WIDTH], a leaf's after another's: the first corners' x, their y, ..., the third's z.
    places: uint8 [T], 8 * (count of the triangle's leaf - 1) + its place there.
    order: int32 [T], index in the file.
    """

    nodes: NDArray[np.float32]
    corners: NDArray[np.float32]
    places: NDArray[np.uint8]
    order: NDArray[np.int32]


def make_tree(vertices: NDArray) -> Tree:
    """Build the tree over triangles [T, 3, 3]."""
    boxes, pairs, order = build_tree(vertices)
    nodes = np.zeros((max(1, len(pairs) // 2), 7, WIDTH), np.float32)
    nodes[:, 3:6] = -1e30  # so that nothing lies in the box of no child
    used = _collapse(boxes, pairs, nodes, nodes.view(np.int32)[:, 6]) if len(order) else 1
    corners, places = np.zeros(9 * len(order) + WIDTH, np.float32), np.empty(len(order), np.uint8)
    _write_leaves(pairs, order, np.ascontiguousarray(vertices, np.float32).reshape(-1, 9), corners, places)
    return Tree(nodes[:used].copy(), corners, places, order)


@njit(cache=True)
def _collapse(boxes, pairs, nodes, children):
    """Write the wide tree; return its number of nodes. The largest descendants of a node are opened until it has WIDTH.

    What lies below a node comes right behind its children, so that what is near in the scene is near in memory.
    """
    todo = np.empty((WAITING, 2), np.int32)  # a node, and which of the pairs it stands for
    todo[0] = 0
    waiting, used = 1, 1
    members = np.empty(WIDTH, np.int32)
    while waiting > 0:
        waiting -= 1
        node, root = todo[waiting]
        for lane in range(_open(boxes, pairs, root, members)):
            member = members[lane]
            nodes[node, :6, lane] = boxes[member]
            first, count = pairs[member]
            if count > 0:
                children[node, lane] = -1 - (8 * first + count - 1)
            else:
                children[node, lane] = used
                todo[waiting, 0], todo[waiting, 1] = used, member
                used += 1
                waiting += 1
    return used


@njit(cache=True)
def _open(boxes, pairs, root, members):
    """Write the descendants of a node that stand for it to members; return how many."""
    members[0], count = root, 1
    while count < WIDTH:
        largest, area = -1, np.float32(-1)
        for lane in range(count):
            if pairs[members[lane], 1] == 0:
                x, y, z = boxes[members[lane], 3:]
                if x * y + y * z + z * x > area:
                    largest, area = lane, x * y + y * z + z * x
        if largest < 0:
            break
        child = pairs[members[largest], 0]
        members[largest], members[count] = child, child + 1
        count += 1
    return count


@njit(cache=True)
def _write_leaves(pairs, order, triangles, corners, places):
    """Write corners and places of Tree, from triangles [T, 9].

    Sorts each leaf's part of order, so that of equally near triangles the file's first leads.
    """
    for first, count in pairs:
        order[first : first + count].sort()
        for place in range(count):
            places[first + place] = 8 * (count - 1) + place
            for k in range(9):
                corners[9 * first + k * count + place] = triangles[order[first + place], k]

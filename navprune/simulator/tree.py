"""The tree over a scene's triangles that the kernels walk."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from navprune.simulator.bvh import build_tree

# Metres behind a triangle's plane from which on the plane alone tells; more than rounding costs.
BEHIND = 1e-3


class Tree(NamedTuple):
    """What the depth of a frame needs; node 0 is the root.

    boxes: float32 [M, 6], centre and half extent of each node.
    nodes: int32 [M, 2]: (first triangle, count) of a leaf, (first of the two children, 0) of an inner node.
    corners: float32 [T, 9], the triangles in the order of the leaves.
    planes: float32 [T, 4], unit normal n and offset d: an eye with n . eye < d sees the back.
    """

    boxes: NDArray[np.float32]
    nodes: NDArray[np.int32]
    corners: NDArray[np.float32]
    planes: NDArray[np.float32]


def make_tree(vertices: NDArray) -> tuple[Tree, NDArray[np.int32]]:
    """The tree over triangles [T, 3, 3], and their order [T] in its leaves."""
    boxes, nodes, order = build_tree(vertices)
    corners = np.ascontiguousarray(vertices[order].reshape(-1, 9))
    return Tree(boxes, nodes, corners, front_planes(vertices[order])), order


def front_planes(vertices: NDArray) -> NDArray[np.float32]:
    """Planes as in `Tree` of triangles [T, 3, 3], set back a little so that rounding hides no front."""
    a, b, c = np.moveaxis(vertices.astype(np.float64), 1, 0)
    normals = np.cross(b - a, c - a)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    # A triangle without area keeps a zero normal, so no eye counts as behind it.
    normals /= np.where(lengths > 0, lengths, 1.0)
    return np.column_stack([normals, (normals * a).sum(axis=1) - BEHIND]).astype(np.float32)

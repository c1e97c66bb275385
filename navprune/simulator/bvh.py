"""A bounding volume hierarchy over the triangles of a scene, built by the surface area heuristic."""

from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from navprune.kernels import njit
from navprune.scenes.files.mesh import NO_LEVELS, Sampler, SceneMesh

LEAF_TRIANGLES = 8
BINS = 16
# From this depth on nodes are halved by count, so that no tree is deeper than STACK_SIZE.
HEURISTIC_DEPTH = 64
STACK_SIZE = 128
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


class Surface(NamedTuple):
    """What the colour of a frame needs besides; triangles in the order of the leaves.

    colours: uint8 [T, 3, 3]; uv: float32 [T, 3, 2]; texture: int32 [T], -1 for none.
    texels: uint8 [P, 4], all textures, each with its halved copies after it.
    levels: int32 [textures, L, 3], (first texel, height, width); height 0 beyond a texture's last level.
    samplers: int32 [textures, 5], the fields of each texture's Sampler.
    """

    colours: NDArray[np.uint8]
    uv: NDArray[np.float32]
    texture: NDArray[np.int32]
    texels: NDArray[np.uint8]
    levels: NDArray[np.int32]
    samplers: NDArray[np.int32]


class Cutout(NamedTuple):
    """What a scene with holes needs to be drawn: AlphaMasks in the order of the leaves, and its surface."""

    alpha: NDArray[np.uint8]
    cutoff: NDArray[np.float32]
    surface: Surface


class Bvh:
    """A scene to draw: `tree` is its shape, `surface` its colours. Read-only, so threads share it."""

    def __init__(self, mesh: SceneMesh):
        boxes, nodes, order = build_tree(mesh.vertices)
        corners = np.ascontiguousarray(mesh.vertices[order].reshape(-1, 9))
        self.tree = Tree(boxes, nodes, corners, front_planes(mesh.vertices[order]))
        self._corners = mesh.colours[order], mesh.uv[order], mesh.texture[order]
        self._textures = mesh.textures
        self._samplers = mesh.samplers or (Sampler(),) * len(mesh.textures)
        self._masks = None if mesh.masks is None else (mesh.masks.alpha[order], mesh.masks.cutoff[order])

    @cached_property
    def surface(self) -> Surface:
        """The colours, made when first asked for; UserError where an image of the file cannot be decoded."""
        texels, levels = texture_levels(self._textures, self._samplers)
        return Surface(*self._corners, texels, levels, np.array(self._samplers, np.int32).reshape(-1, len(Sampler())))

    @cached_property
    def cutout(self) -> Cutout | None:
        """What tells where triangles have holes; None where all are whole."""
        return None if self._masks is None else Cutout(*self._masks, self.surface)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that stand in memory now; those of the colours count once they are made."""
        made = self.__dict__.get("surface", self._corners)
        return sum(array.nbytes for array in (*self.tree, *made))

    @property
    def triangles(self) -> int:
        """How many triangles the scene has."""
        return len(self.tree.corners)


def front_planes(vertices: NDArray) -> NDArray[np.float32]:
    """Planes as in `Tree` of triangles [T, 3, 3], set back a little so that rounding hides no front."""
    a, b, c = np.moveaxis(vertices.astype(np.float64), 1, 0)
    normals = np.cross(b - a, c - a)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    # A triangle without area keeps a zero normal, so no eye counts as behind it.
    normals /= np.where(lengths > 0, lengths, 1.0)
    return np.column_stack([normals, (normals * a).sum(axis=1) - BEHIND]).astype(np.float32)


def build_tree(vertices: NDArray) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int32]]:
    """Build the hierarchy over triangles [T, 3, 3].

    Returns boxes and nodes as in `Tree`, and the order of the triangles [T] in the leaves. Works from the
    root down, splitting by the surface area heuristic over 16 bins an axis (Wald, "On fast construction of
    SAH-based bounding volume hierarchies", 2007).
    """
    lower = np.ascontiguousarray(vertices.min(axis=1), dtype=np.float32)
    upper = np.ascontiguousarray(vertices.max(axis=1), dtype=np.float32)
    bounds, nodes, order = _build((lower + upper) * np.float32(0.5), lower, upper)
    centre = (bounds[:, :3] + bounds[:, 3:]) * np.float32(0.5)
    # The half extent is rounded up, so that a box never loses what it holds.
    half = np.maximum(bounds[:, 3:] - centre, centre - bounds[:, :3])
    half += np.spacing(np.maximum(np.abs(centre), half)) * np.float32(2)
    return np.ascontiguousarray(np.hstack([centre, half])), nodes, order


@njit(cache=True)
def _build(centres, lower, upper):
    count = len(centres)
    order = np.arange(count).astype(np.int32)
    bounds = np.empty((2 * count, 6), np.float32)
    nodes = np.empty((2 * count, 2), np.int32)
    todo = np.empty((STACK_SIZE, 4), np.int32)  # node, begin, end, depth
    todo[0] = 0, 0, count, 0
    waiting = used = 1
    while waiting > 0:
        waiting -= 1
        node, begin, end, depth = todo[waiting]
        _bound(bounds[node], order[begin:end], lower, upper)
        if end - begin <= LEAF_TRIANGLES:
            nodes[node, 0], nodes[node, 1] = begin, end - begin
            continue
        middle = begin
        if depth < HEURISTIC_DEPTH:
            middle = begin + _split(order[begin:end], centres, lower, upper)
        if middle == begin or middle == end:
            middle = (begin + end) // 2
        nodes[node, 0], nodes[node, 1] = used, 0
        todo[waiting] = np.array([used, begin, middle, depth + 1], np.int32)
        todo[waiting + 1] = np.array([used + 1, middle, end, depth + 1], np.int32)
        waiting += 2
        used += 2
    return bounds[:used].copy(), nodes[:used].copy(), order


@njit(cache=True)
def _bound(box, members, lower, upper):
    box[:3], box[3:] = np.inf, -np.inf
    for triangle in members:
        _grow(box, lower[triangle], upper[triangle])


@njit(cache=True)
def _grow(box, lower, upper):
    for axis in range(3):
        box[axis] = min(box[axis], lower[axis])
        box[3 + axis] = max(box[3 + axis], upper[axis])


@njit(cache=True)
def _bin(value, low, width):
    return min(BINS - 1, int((value - low) / width * BINS))


@njit(cache=True)
def _half_area(box):
    x, y, z = box[3] - box[0], box[4] - box[1], box[5] - box[2]
    return x * y + y * z + z * x


@njit(cache=True)
def _split(members, centres, lower, upper):
    """Sort members into two sides by the cheapest split and return the size of the first (0: no split)."""
    best_cost, best_axis, best_bin = np.inf, -1, 0
    low, width = np.empty(3, np.float32), np.empty(3, np.float32)
    for axis in range(3):
        low[axis] = np.inf
        high = np.float32(-np.inf)
        for triangle in members:
            low[axis] = min(low[axis], centres[triangle, axis])
            high = max(high, centres[triangle, axis])
        width[axis] = high - low[axis]
        if width[axis] < 1e-7:
            continue
        cost, where = _cheapest_bin(members, centres[:, axis], low[axis], width[axis], lower, upper)
        if cost < best_cost:
            best_cost, best_axis, best_bin = cost, axis, where
    if best_axis < 0:
        return 0
    left, right = 0, len(members) - 1
    while left <= right:
        if _bin(centres[members[left], best_axis], low[best_axis], width[best_axis]) <= best_bin:
            left += 1
        else:
            members[left], members[right] = members[right], members[left]
            right -= 1
    return left


@njit(cache=True)
def _cheapest_bin(members, values, low, width, lower, upper):
    """Cost and last bin of the first side for the best split along one axis."""
    boxes, counts = np.empty((BINS, 6)), np.zeros(BINS, np.int64)
    boxes[:, :3], boxes[:, 3:] = np.inf, -np.inf
    for triangle in members:
        bin_ = _bin(values[triangle], low, width)
        counts[bin_] += 1
        _grow(boxes[bin_], lower[triangle], upper[triangle])
    # What stands right of each cut, then a sweep from the left.
    right_cost, side, count = np.zeros(BINS), boxes[BINS - 1].copy(), 0
    for bin_ in range(BINS - 1, 0, -1):
        _grow(side, boxes[bin_, :3], boxes[bin_, 3:])
        count += counts[bin_]
        right_cost[bin_] = _half_area(side) * count if count > 0 else np.inf
    best_cost, best_bin, side, count = np.inf, 0, boxes[0].copy(), 0
    for bin_ in range(BINS - 1):
        _grow(side, boxes[bin_, :3], boxes[bin_, 3:])
        count += counts[bin_]
        if count > 0:
            cost = _half_area(side) * count + right_cost[bin_ + 1]
            if cost < best_cost:
                best_cost, best_bin = cost, bin_
    return best_cost, best_bin


def texture_levels(
    textures: Iterable[NDArray[np.uint8]], samplers: Iterable[Sampler]
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Every texture with its halved copies down to one texel, if its sampler uses them: as in `Surface`."""
    pieces, table, used = [np.zeros((1, 4), np.uint8)], [], 1
    for image, sampler in zip(textures, samplers, strict=True):
        rows, level = [], image.astype(np.float32)
        while True:
            height, width = level.shape[:2]
            rows.append((used, height, width))
            pieces.append(np.rint(level).astype(np.uint8).reshape(-1, 4))
            used += height * width
            if (height == 1 and width == 1) or sampler.between_levels == NO_LEVELS:
                break
            level = _halved(_halved(level, 0), 1)
        table.append(rows)
    levels = np.zeros((len(table), max(map(len, table), default=1), 3), np.int32)
    for index, rows in enumerate(table):
        levels[index, : len(rows)] = rows
    return np.concatenate(pieces), levels


def _halved(image: NDArray, axis: int) -> NDArray:
    """The mean of neighbouring pairs along an axis; an odd last one is left out, a single one stays."""
    size = image.shape[axis]
    if size == 1:
        return image
    pairs = np.moveaxis(image, axis, 0)[: size // 2 * 2]
    return np.moveaxis((pairs[0::2] + pairs[1::2]) / 2, 0, axis)

"""Texture atlases: a mesh's surface is cut into flat charts, charts are packed into pages, colours baked into these.

A chart is a connected part of the surface whose normals have one dominating coordinate axis; it is laid out as it
is seen along that axis. Pages are square images; positions in them are in texels, from the upper left corner.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from navprune.kernels import njit

SIDES = (1024, 2048)  # texels of a page's sides: the larger ones where charts fill
SEVERAL = 3  # of them
TEXEL = 0.012  # metres
PADDING = 2  # texels around a chart, which filters reach into
WIDEST = 2.0  # metres of a chart; larger ones are cut along a grid, for rings around rooms would waste images
EMPTY, MARGIN, INSIDE = 0, 1, 2  # what a texel holds


class Atlas(NamedTuple):
    """A mesh with a place in an image for each corner; corners that several charts share stand there once for each.

    corners: int64 [W], vertex of the mesh; faces: int32 [F, 3], into corners; texels: float64 [W, 2], x and y in the
    page; page: int64 [F]; side: texels of a page's sides; heights: rows of each page that hold charts.
    """

    corners: NDArray[np.int64]
    faces: NDArray[np.int32]
    texels: NDArray[np.float64]
    page: NDArray[np.int64]
    side: int
    heights: list[int]


class Paint(NamedTuple):
    """What colours a mesh.

    colours: float32 [F, 3]; texture: int32 [F], index into images, -1 for none; images: uint8 [K, H, W, 3], which
    multiply (1 for 255) and repeat each `span` metres in plan, rows from the top; light: float32 [V, 3], factors.
    """

    colours: NDArray[np.float32]
    texture: NDArray[np.int32]
    images: NDArray[np.uint8]
    span: float
    light: NDArray[np.float32]


# ---- charts


def surfaces(vertices: NDArray[np.float64], faces: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which connected part `[F]` of the surface a face is in, and the direction `[F]` that it faces.

    Directions are 0 to 5: x, y, z, -x, -y, -z, whichever is nearest to the normal; parts have one direction each.
    """
    normals = np.cross(vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]])
    axis = np.abs(normals).argmax(axis=1)
    direction = axis + 3 * (normals[np.arange(len(faces)), axis] < 0)
    sides = np.sort(np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1).astype(np.int64), axis=-1).reshape(-1, 2)
    keys = (sides[:, 0] * len(vertices) + sides[:, 1]) * 6 + np.repeat(direction, 3)
    order = np.argsort(keys, kind="stable")
    same = keys[order[1:]] == keys[order[:-1]]
    roots = _roots(np.column_stack([order[1:][same], order[:-1][same]]) // 3, len(faces))
    return np.unique(roots, return_inverse=True)[1].reshape(-1), direction


@njit(cache=True)
def _roots(pairs, count):  # type: ignore[no-untyped-def]
    """The least member of each one's set, where pairs `[N, 2]` are in one set (union-find with path halving)."""
    parent = np.arange(count)
    for one, other in pairs:
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        while parent[other] != other:
            parent[other] = parent[parent[other]]
            other = parent[other]
        parent[max(one, other)] = min(one, other)
    for i in range(count):
        parent[i] = parent[parent[i]]  # parents come first and are done
    return parent


def lay_out(vertices: NDArray[np.float64], faces: NDArray, part: NDArray, direction: NDArray) -> Atlas:
    """Charts of a mesh, packed into pages; part and direction `[F]` as `surfaces` gives them."""
    across = np.array([(1, 2), (0, 2), (0, 1)])[direction % 3]  # the two axes of the chart's plane
    middle = np.take_along_axis(vertices[faces].mean(axis=1), across, axis=1)
    cell = np.floor(middle / WIDEST).astype(np.int64)
    cell -= cell.min(axis=0)
    columns, rows = cell.max(axis=0) + 1
    chart = np.unique((part * columns + cell[:, 0]) * rows + cell[:, 1], return_inverse=True)[1].reshape(-1)
    keys = chart[:, None] * len(vertices) + faces
    corner_keys, indices = np.unique(keys, return_inverse=True)
    chart_of_corner, corners = np.divmod(corner_keys, len(vertices))
    plane = np.zeros((chart_of_corner[-1] + 1, 2), np.int64)
    plane[chart] = across
    flat = np.take_along_axis(vertices[corners], plane[chart_of_corner], axis=1) / TEXEL
    first = np.searchsorted(chart_of_corner, np.arange(len(plane)))
    low, high = np.minimum.reduceat(flat, first), np.maximum.reduceat(flat, first)
    sizes = np.ceil(high - low).astype(np.int64) + 2 * PADDING + 1
    side = SIDES[int(sizes.prod(axis=1).sum() > SEVERAL * SIDES[1] ** 2)]
    page, places, heights = _pack(sizes, side)
    texels = flat - low[chart_of_corner] + places[chart_of_corner] + PADDING + 0.5
    return Atlas(corners, indices.reshape(-1, 3).astype(np.int32), texels, page[chart], side, heights)


def _pack(sizes: NDArray[np.int64], side: int) -> tuple[NDArray[np.int64], NDArray[np.int64], list[int]]:
    """Page `[C]` and upper left corner `[C, 2]` of rectangles `[C, 2]`, and pages' heights; tallest first, in rows."""
    page, places, heights = np.zeros(len(sizes), np.int64), np.zeros((len(sizes), 2), np.int64), [0]
    x = y = row = 0
    for chart in np.lexsort((-sizes[:, 0], -sizes[:, 1])):
        width, height = sizes[chart]
        if x + width > side:
            x, y, row = 0, y + row, 0
        if y + height > side:
            x, y, row = 0, 0, 0
            heights.append(0)
        page[chart], places[chart] = len(heights) - 1, (x, y)
        x, row = x + width, max(row, height)
        heights[-1] = max(heights[-1], int(y + row))
    return page, places, heights


# ---- colours


def bake(atlas: Atlas, vertices: NDArray[np.float64], paint: Paint) -> NDArray[np.uint8]:
    """The pages `[P, side, side, 3]` of an atlas of a mesh with these vertices `[V, 3]`.

    Texels beside a face have the colour of its nearest point, so that filters find no other; what is empty is grey.
    """
    pages = np.full((len(atlas.heights), atlas.side, atlas.side, 3), 128, np.uint8)
    state = np.full(pages.shape[:3], EMPTY, np.uint8)
    plan = vertices[atlas.corners, :2] / paint.span
    light = paint.light[atlas.corners]
    _bake(pages, state, atlas.faces, atlas.page, atlas.texels, plan, light, paint.colours, paint.texture, paint.images)
    return pages


@njit(cache=True)
def _bake(pages, state, faces, page, texels, plan, light, colours, texture, images):  # type: ignore[no-untyped-def]
    side = pages.shape[1]
    for face in range(len(faces)):
        a, b, c = faces[face]
        here, holds = pages[page[face]], state[page[face]]
        ax, ay = texels[a]
        bx, by, cx, cy = texels[b, 0] - ax, texels[b, 1] - ay, texels[c, 0] - ax, texels[c, 1] - ay
        area = bx * cy - by * cx
        if area == 0.0:
            continue
        left, right = int(ax + min(0.0, bx, cx)) - PADDING, int(ax + max(0.0, bx, cx)) + PADDING
        top, bottom = int(ay + min(0.0, by, cy)) - PADDING, int(ay + max(0.0, by, cy)) + PADDING
        for y in range(max(top, 0), min(bottom + 1, side)):
            for x in range(max(left, 0), min(right + 1, side)):
                px, py = x + 0.5 - ax, y + 0.5 - ay
                v, w = (px * cy - py * cx) / area, (bx * py - by * px) / area
                inside = v >= 0.0 and w >= 0.0 and v + w <= 1.0
                if holds[y, x] == INSIDE or (holds[y, x] == MARGIN and not inside):
                    continue
                holds[y, x] = INSIDE if inside else MARGIN
                v, w = min(max(v, 0.0), 1.0), min(max(w, 0.0), 1.0)
                total = max(v + w, 1.0)
                v, w = v / total, w / total
                u = 1.0 - v - w
                row = column = 0
                if texture[face] >= 0:
                    sx = u * plan[a, 0] + v * plan[b, 0] + w * plan[c, 0]
                    sy = u * plan[a, 1] + v * plan[b, 1] + w * plan[c, 1]
                    column = int((sx - np.floor(sx)) * images.shape[2]) % images.shape[2]
                    row = int((1.0 - (sy - np.floor(sy))) * images.shape[1]) % images.shape[1]
                for k in range(3):
                    value = colours[face, k] * (u * light[a, k] + v * light[b, k] + w * light[c, k])
                    if texture[face] >= 0:
                        value *= images[texture[face], row, column, k] / 255.0
                    here[y, x, k] = min(max(value + 0.5, 0.0), 255.0)

"""How corners make shapes, by glTF's seven modes; its specification, 3.7.2.1."""

import numpy as np
from numpy.typing import NDArray

POINTS, LINES, LINE_LOOP, LINE_STRIP, TRIANGLES, STRIP, FAN = range(7)
STROKES = (POINTS, LINES, LINE_LOOP, LINE_STRIP)


def triangle_count(corners: int, mode: int) -> int:
    """How many triangles a number of corners makes; ValueError for what is no mode."""
    if mode in STROKES:
        return 0
    if mode in (STRIP, FAN):
        return max(0, corners - 2)
    if mode != TRIANGLES:
        raise ValueError(f"{mode!r} is not a mode of primitives")
    return corners // 3


def triangles_of(corners: NDArray[np.integer], mode: int) -> NDArray[np.integer]:
    """Triangles [F, 3] of a list, strip or fan of corners [K]."""
    if mode == TRIANGLES:
        return corners[: len(corners) // 3 * 3].reshape(-1, 3)
    if len(corners) < 3:
        return corners[:0].reshape(0, 3)
    if mode == FAN:
        return np.column_stack([corners[1:-1], corners[2:], np.full_like(corners[2:], corners[0])])
    triangles = np.column_stack([corners[:-2], corners[1:-1], corners[2:]])
    triangles[1::2, 1:] = triangles[1::2, :0:-1]  # every other one is turned, so that all fronts agree
    return triangles


def lines_of(corners: NDArray[np.integer], mode: int) -> NDArray[np.integer]:
    """Both ends [L, 2] of points, lines, a loop or a strip of corners [K]; a point has the same end twice."""
    if mode == POINTS:
        return np.column_stack([corners, corners])
    if mode == LINES:
        return corners[: len(corners) // 2 * 2].reshape(-1, 2)
    if mode == LINE_LOOP:
        return np.column_stack([corners, np.roll(corners, -1)]) if len(corners) > 1 else corners[:0].reshape(0, 2)
    return np.column_stack([corners[:-1], corners[1:]])

"""Compiled functions that draw the lines and points of a scene, one pixel wide, after its triangles.

A line takes the pixels whose diamonds it leaves (OpenGL 4.6, section 14.5.1), which is what habitat-sim records: one
in each column, or in each row where the line is steep; the last one only if the line goes on beyond its diamond.
"""

import numpy as np

from navprune.kernels import njit
from navprune.simulator.triangles import NEAR
from navprune.simulator.view import INNER, seen_from


@njit(**INNER)
def draw_strokes(strokes, view, closeness, triangles):
    """Draw all strokes where they are nearer than what is there; -2 - i in triangles, if not None, is stroke i."""
    for stroke in range(len(strokes.ends)):
        start, end, share_0, share_1 = _clipped(strokes.ends[stroke], view)
        if share_0 > share_1:
            continue
        ends = strokes.ends[stroke]
        if ends[0, 0] == ends[1, 0] and ends[0, 1] == ends[1, 1] and ends[0, 2] == ends[1, 2]:
            _put(int(np.floor(start[0])), int(np.floor(start[1])), start[2], stroke, closeness, triangles)
        else:
            _draw_line(start, end, stroke, closeness, triangles)


@njit(**INNER)
def _clipped(ends, view):
    """Column, row and closeness of both ends of what is beyond the near plane, what shares of the line these are."""
    eye = view.eye
    a = seen_from(view, ends[0, 0] - eye[0], ends[0, 1] - eye[1], ends[0, 2] - eye[2])
    b = seen_from(view, ends[1, 0] - eye[0], ends[1, 1] - eye[1], ends[1, 2] - eye[2])
    low, high = 0.0, 1.0
    if a[2] < NEAR:
        low = (NEAR - a[2]) / (b[2] - a[2]) if b[2] > NEAR else 2.0
    elif b[2] < NEAR:
        high = (NEAR - a[2]) / (b[2] - a[2])
    return _place(a, b, low, view), _place(a, b, high, view), low, high


@njit(**INNER)
def _place(a, b, share, view):
    """Column, row (in pixels from the upper left corner of the image) and closeness of a point between a and b."""
    closeness = 1.0 / (a[2] + (b[2] - a[2]) * share)
    x, y = (a[0] + (b[0] - a[0]) * share) * closeness, (a[1] + (b[1] - a[1]) * share) * closeness
    return x + view.middle[0], y + view.middle[1], closeness


@njit(**INNER)
def _draw_line(start, end, stroke, closeness, triangles):
    """Draw a line between two places as `_place` has them."""
    along = 0 if abs(end[0] - start[0]) >= abs(end[1] - start[1]) else 1  # columns, or rows where it is steep
    length = end[along] - start[along]
    if length == 0:
        return
    size = closeness.shape[1 - along]
    first, last = int(np.floor(min(max(start[along], -1.0), size))), int(np.floor(min(max(end[along], -1.0), size)))
    step = 1 if length > 0 else -1
    for i in range(first, last + step, step):
        share = (i + 0.5 - start[along]) / length
        if share < 0 and not _in_diamond(start):
            continue  # it begins beyond the middle, outside the diamond
        if i == last and (share > 1 or _in_diamond(end)):
            continue  # it ends before the middle, or within the diamond
        place = start[1 - along] + (end[1 - along] - start[1 - along]) * share
        # Between two pixels, the left and the lower one count.
        across = int(np.floor(place)) if along == 0 else int(np.ceil(place)) - 1
        nearness = start[2] + (end[2] - start[2]) * min(max(share, 0.0), 1.0)
        column, row = (i, across) if along == 0 else (across, i)
        _put(column, row, nearness, stroke, closeness, triangles)


@njit(**INNER)
def _in_diamond(place):
    """Whether a place lies in the diamond around the middle of its pixel."""
    x, y = place[0] - np.floor(place[0]) - 0.5, place[1] - np.floor(place[1]) - 0.5
    return abs(x) + abs(y) < 0.5


@njit(**INNER)
def _put(column, row, nearness, stroke, closeness, triangles):
    """Let a pixel, if it lies in the image, show a stroke that is nearer than what it shows."""
    height, width = closeness.shape
    if 0 <= column < width and 0 <= row < height and np.float32(nearness) > closeness[row, column]:
        closeness[row, column] = nearness
        if triangles is not None:
            triangles[row, column] = -2 - stroke


@njit(**INNER)
def colour_strokes(strokes, view, triangles, rgb):
    """Colour the pixels that show strokes, between the colours of their ends as these lie in the world."""
    height, width = triangles.shape
    for row in range(height):
        for column in range(width):
            stroke = -2 - triangles[row, column]
            if stroke < 0:
                continue
            share = _share(strokes.ends[stroke], view, column + 0.5, row + 0.5)
            for k in range(3):
                a, b = float(strokes.colours[stroke, 0, k]), float(strokes.colours[stroke, 1, k])
                rgb[row, column, k] = np.uint8(a + (b - a) * share + 0.5)


@njit(**INNER)
def _share(ends, view, column, row):
    """How far from a line's first end to its last, in [0, 1], the point is that a pixel's middle shows."""
    start, end, low, high = _clipped(ends, view)
    along = 0 if abs(end[0] - start[0]) >= abs(end[1] - start[1]) else 1
    length = end[along] - start[along]
    if length == 0:
        return 0.0
    share = ((column if along == 0 else row) - start[along]) / length
    share = min(max(share, 0.0), 1.0)
    world = share * end[2] / (start[2] + (end[2] - start[2]) * share)
    return low + (high - low) * world

"""Closed solids of coloured triangles, the bricks that furniture and mouldings are built from.

Plan frame: metres, x and y on the floor, z up; every face is counter-clockwise seen from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray

Colour = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Solid:
    """Triangles `[T, 3, 3]` in metres and one 8-bit colour for each, `[T, 3]`."""

    triangles: NDArray[np.float64]
    colours: NDArray[np.uint8]

    def moved(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Solid:
        """The solid shifted by metres."""
        return Solid(self.triangles + np.array([x, y, z]), self.colours)

    def turned(self, angle: float, axis: int = 2) -> Solid:
        """The solid turned counter-clockwise by radians about a coordinate axis (0 x, 1 y, 2 z)."""
        first, second = [(1, 2), (2, 0), (0, 1)][axis]
        turn, c, s = np.eye(3), np.cos(angle), np.sin(angle)
        turn[[first, first, second, second], [first, second, first, second]] = c, -s, s, c
        return Solid(self.triangles @ turn.T, self.colours)


def join(solids: Sequence[Solid]) -> Solid:
    """One solid that holds the triangles of all; empty for none."""
    if not solids:
        return Solid(np.zeros((0, 3, 3)), np.zeros((0, 3), np.uint8))
    triangles = np.concatenate([solid.triangles for solid in solids])
    return Solid(triangles, np.concatenate([solid.colours for solid in solids]))


def painted(triangles: NDArray[np.float64], colour: Colour) -> Solid:
    """Triangles `[T, 3, 3]` in one colour, without those that have no area."""
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    real = np.linalg.norm(np.cross(b - a, c - a), axis=1) > 1e-10
    kept = triangles[real]
    return Solid(kept, np.tile(np.array(colour, np.uint8), (len(kept), 1)))


def box(size: ArrayLike, colour: Colour, at: ArrayLike = (0, 0, 0)) -> Solid:
    """A box of `size` (x, y, z) that stands with the middle of its base `at` a point."""
    x, y, z = np.asarray(size, float)
    base = np.array([[-x, -y], [x, -y], [x, y], [-x, y]]) / 2
    rows = np.stack([np.column_stack([base, np.full(4, height)]) for height in (0.0, 0.0, z, z)])
    rows[[0, -1], :, :2] = 0.0
    return painted(_grid_triangles(rows), colour).moved(*np.asarray(at, float))


def extrude(area: shapely.Geometry, low: float, high: float, colour: Colour) -> Solid:
    """Polygons, with holes or without, raised from height `low` to `high` in metres."""
    ring_walls = walls(area, low, high)[:, ::-1]
    caps = plan_triangles(area)
    return painted(np.concatenate([ring_walls, at_height(caps, high), at_height(caps[:, ::-1], low)]), colour)


def walls(area: shapely.Geometry, low: float, high: float) -> NDArray[np.float64]:
    """Upright triangles `[T, 3, 3]` along all outlines of an area, which face into it.

    Two after each other form a quad; the first one's first two corners are its lower edge.
    """
    rings = shapely.get_rings(shapely.get_parts(shapely.orient_polygons(area)))
    points, ring = shapely.get_coordinates(rings, return_index=True)
    joined = ring[1:] == ring[:-1]
    a, b = points[:-1][joined], points[1:][joined]
    a0, b0, a1, b1 = at_height(a, low), at_height(b, low), at_height(a, high), at_height(b, high)
    return np.stack([np.stack([b0, a0, a1], axis=1), np.stack([b0, a1, b1], axis=1)], axis=1).reshape(-1, 3, 3)


def plan_triangles(area: shapely.Geometry) -> NDArray[np.float64]:
    """Counter-clockwise triangles `[T, 3, 2]` of a polygon or several, without new corners."""
    parts = shapely.get_parts(shapely.constrained_delaunay_triangles(area))
    if len(parts) == 0:
        return np.zeros((0, 3, 2))
    corners = shapely.get_coordinates(parts).reshape(-1, 4, 2)[:, :3]
    edges = corners[:, 1:] - corners[:, :1]
    clockwise = edges[:, 0, 0] * edges[:, 1, 1] < edges[:, 0, 1] * edges[:, 1, 0]
    corners[clockwise] = corners[clockwise, ::-1]
    return corners


def at_height(plan: NDArray[np.float64], z: float) -> NDArray[np.float64]:
    """Plan points `[..., 2]` lifted to `[..., 3]` at a height."""
    return np.concatenate([plan, np.full((*plan.shape[:-1], 1), z)], axis=-1)


def lathe(profile: ArrayLike, colour: Colour, sections: int = 16, stretch: tuple[float, float] = (1.0, 1.0)) -> Solid:
    """A profile `[P, 2]` of (radius, height), from bottom to top, turned about z.

    Open ends are closed by flat discs. `stretch` scales x and y, for ovals.
    """
    radius, height = np.asarray(profile, float).T
    radius = np.concatenate([[0.0], radius, [0.0]])
    height = np.concatenate([height[:1], height, height[-1:]])
    around = np.arange(sections) * (2 * np.pi / sections)
    x, y = np.outer(radius, np.cos(around)) * stretch[0], np.outer(radius, np.sin(around)) * stretch[1]
    return painted(_grid_triangles(np.stack([x, y, np.repeat(height[:, None], sections, axis=1)], axis=-1)), colour)


def _grid_triangles(rings: NDArray[np.float64]) -> NDArray[np.float64]:
    """Triangles of rows of points `[R, C, 3]` that close on themselves, rows going up."""
    a, d = rings[:-1], rings[1:]
    b, c = np.roll(a, -1, axis=1), np.roll(d, -1, axis=1)
    quads = np.stack([np.stack([a, b, c], axis=2), np.stack([a, c, d], axis=2)], axis=2)
    return quads.reshape(-1, 3, 3)


def cylinder(radius: float, height: float, colour: Colour, at: ArrayLike = (0, 0, 0)) -> Solid:
    """An upright cylinder, its base's middle `at` a point."""
    return lathe([(radius, 0.0), (radius, height)], colour, 14).moved(*np.asarray(at, float))


def ball(radius: ArrayLike, colour: Colour, at: ArrayLike = (0, 0, 0), sections: int = 12) -> Solid:
    """An ellipsoid with three half-axes, its centre `at` a point."""
    x, y, z = np.broadcast_to(np.asarray(radius, float), 3)
    rise = np.linspace(-np.pi / 2, np.pi / 2, sections // 2 + 1)
    profile = np.column_stack([np.cos(rise), np.sin(rise) * z])
    profile[[0, -1], 0] = 0.0
    return lathe(profile, colour, sections, (x, y)).moved(*np.asarray(at, float))


def cushion(
    size: ArrayLike, colour: Colour, at: ArrayLike = (0, 0, 0), rounding: float = 0.05, steps: int = 3
) -> Solid:
    """A box with round edges (the sum of a box and a ball), its base's middle `at` a point.

    `rounding` is the edges' radius in metres, at most half the shortest side; `steps` its segments.
    """
    half = np.asarray(size, float) / 2
    radius = min(rounding, 0.999 * float(half.min()))
    quarter = np.linspace(0, np.pi / 2, steps + 1)
    around = (np.arange(4)[:, None] * np.pi / 2 + quarter).ravel()
    side_x = np.repeat([1, -1, -1, 1], steps + 1)
    side_y = np.repeat([1, 1, -1, -1], steps + 1)
    rise = np.concatenate([quarter - np.pi / 2, quarter])
    side_z = np.repeat([-1, 1], steps + 1)
    flat, inner = np.cos(rise) * radius, half - radius
    # A fifth row of zero radius in plan closes the flat top and bottom.
    x, y = np.outer(flat, np.cos(around)) + side_x * inner[0], np.outer(flat, np.sin(around)) + side_y * inner[1]
    z = np.repeat((np.sin(rise) * radius + side_z * inner[2])[:, None], len(around), axis=1)
    rows = np.stack([x, y, z], axis=-1)[[0, *range(len(rise)), -1]]
    rows[[0, -1], :, :2] = 0.0
    return painted(_grid_triangles(rows), colour).moved(*np.add(at, (0, 0, half[2])))


def rod(start: ArrayLike, end: ArrayLike, radius: float, colour: Colour, sections: int = 8) -> Solid:
    """A round rod between two points."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    along = end - start
    length = float(np.linalg.norm(along))
    upright = lathe([(radius, 0.0), (radius, length)], colour, sections)
    third = along / length
    first = np.cross([0.0, 1.0, 0.0] if abs(third[1]) < 0.9 else [1.0, 0.0, 0.0], third)
    first /= np.linalg.norm(first)
    frame = np.stack([first, np.cross(third, first), third])
    return Solid(upright.triangles @ frame + start, upright.colours)

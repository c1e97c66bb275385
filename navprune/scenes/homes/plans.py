"""Draws the plans of homes from above: rooms, furniture, walkable floor and a shortest path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import shapely
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from numpy.typing import NDArray

from navprune.scenes.homes.floorplan import FloorPlan
from navprune.scenes.homes.walkable import walkable_floor

COLUMNS = 4
WALLS, FLOOR, WALKABLE, FURNITURE, LOW, WAY = "#303030", "#f2efe9", "#cfe3f2", "#c98f5f", "#8aa87a", "#d62728"


class Drawing(NamedTuple):
    """A plan, its title, and a path `[P, 3]` in Habitat's frame to show in it."""

    title: str
    plan: FloorPlan
    way: NDArray[np.float64]


def draw_plans(drawings: Sequence[Drawing], path: Path) -> None:
    """Save one PNG with all plans, at one scale."""
    rows = -(-len(drawings) // COLUMNS)
    figure = Figure(figsize=(4.0 * COLUMNS, 3.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, COLUMNS, squeeze=False, sharex=True, sharey=True).ravel()
    for axis in axes:
        axis.set_axis_off()
        axis.set_aspect("equal")
    for axis, drawing in zip(axes, drawings):
        _draw(axis, drawing)
    figure.savefig(path, dpi=80, metadata={"Software": None})


def _draw(axis: Axes, drawing: Drawing) -> None:
    plan, way = drawing.plan, drawing.way
    _fill(axis, shapely.box(*plan.floor.bounds).buffer(0.12, join_style="mitre"), WALLS)
    _fill(axis, plan.floor, FLOOR)
    _fill(axis, walkable_floor(plan), WALKABLE)
    for piece in plan.pieces:
        if piece.blocks:
            axis.fill(*piece.footprint.exterior.xy, facecolor=FURNITURE, edgecolor=WALLS, linewidth=0.4)
        elif piece.base < 1.0:
            axis.plot(*piece.footprint.exterior.xy, color=LOW, linewidth=0.8)
    for room in plan.rooms:
        middle = room.polygon.representative_point()
        axis.text(middle.x, middle.y, room.kind, ha="center", fontsize=6)
    axis.plot(way[:, 0], -way[:, 2], color=WAY, linewidth=1.5)
    axis.plot(way[:1, 0], -way[:1, 2], "o", color=WAY, markersize=4)
    axis.plot(way[-1:, 0], -way[-1:, 2], "*", color=WAY, markersize=9)
    axis.text(0.0, plan.floor.bounds[3] + 0.4, drawing.title, fontsize=7)


def _fill(axis: Axes, area: shapely.Polygon, colour: str) -> None:
    """Fill a polygon with holes, which run the other way round."""
    rings = [area.exterior, *area.interiors]
    corners = np.concatenate([shapely.get_coordinates(ring) for ring in rings])
    codes = np.concatenate([[1] + [2] * (len(ring.coords) - 2) + [79] for ring in rings])
    axis.add_patch(PathPatch(Outline(corners, codes), facecolor=colour, edgecolor="none"))

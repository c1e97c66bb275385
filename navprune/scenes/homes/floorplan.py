"""Procedural homes as plan geometry: rooms, doors, corridors and where the furniture stands.

Plan frame: metres, x to the right and y up the page, angles counter-clockwise. A home is a rectangle split
by walls and corridors; a random tree of doors (and some more) joins the rooms, many at the far end of their
wall, which is what makes ways long; furniture is placed so that every door stays in reach.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import shapely
from numpy.random import Generator

from navprune.errors import UserError
from navprune.scenes.homes.furnishing import furnish
from navprune.scenes.homes.furniture import Piece

SMALLEST, LARGEST = 40.0, 200.0  # square metres of floor that a home can have
WALL = 0.12  # thickness of a wall in metres
DOOR_HEIGHT = 2.05
CORRIDOR_WIDTH = (1.1, 1.4)
SMALLEST_SIDE = 2.1  # of a cell between walls' middles
DOOR_WIDTHS = (0.8, 0.95)
OPENING_WIDTHS = (1.1, 1.6)
EXTRA_DOOR_CHANCE = 0.5  # of a second way between rooms, which shortens paths

Cell = tuple[float, float, float, float]  # x0, y0, x1, y1 between walls' middles


@dataclass(frozen=True)
class Room:
    """A room's use and its clear floor between the walls."""

    kind: str
    polygon: shapely.Polygon


@dataclass(frozen=True)
class Door:
    """A way through a wall between two rooms: the floor in the wall, and its height in metres."""

    rooms: tuple[int, int]
    polygon: shapely.Polygon
    height: float


@dataclass(frozen=True)
class FloorPlan:
    """A furnished home; `ceiling` is the height of every room in metres."""

    rooms: tuple[Room, ...]
    doors: tuple[Door, ...]
    pieces: tuple[Piece, ...]
    ceiling: float

    @cached_property
    def floor(self) -> shapely.Polygon:
        """All floor that walls leave free, doorways included."""
        return shapely.union_all(self._parts)

    @property
    def _parts(self) -> list[shapely.Polygon]:
        return [*(room.polygon for room in self.rooms), *(door.polygon for door in self.doors)]

    @property
    def area(self) -> float:
        """Floor area of the rooms in square metres."""
        return float(sum(room.polygon.area for room in self.rooms))

    def digest(self) -> str:
        """A hash of walls and doors: two homes with the same one share a plan, however furnished."""
        text = "\n".join(sorted(shapely.to_wkt(shapely.normalize(self._parts), rounding_precision=3)))
        return hashlib.sha256(text.encode()).hexdigest()


def draw_plan(rng: Generator, area: tuple[float, float] = (SMALLEST, LARGEST)) -> FloorPlan:
    """A random furnished home of 3 to 10 rooms whose floor area lies within `area` square metres.

    Raises `UserError` where the range is too narrow or no home of that size is found.
    """
    target = rng.uniform(*area)
    for _ in range(1000):
        cells = _draw_cells(target, rng)
        if cells is None or not 3 <= len(cells) <= 10:
            continue
        floor = sum(shapely.box(*_inset(cell)).area for cell, _ in cells)
        if not 0.95 * target <= floor <= 1.05 * target:
            continue
        plan = _draw_home(cells, rng)
        if plan is not None and area[0] <= plan.area <= area[1]:
            return plan
    raise UserError(f"found no home of {area[0]:g} to {area[1]:g} m2; widen the range")


def _draw_home(cells: list[tuple[Cell, bool]], rng: Generator) -> FloorPlan | None:
    """Rooms, doors and furniture for cells; None if the cells cannot all be joined by doors."""
    kinds = _room_kinds(cells, rng)
    doors = _draw_doors([cell for cell, _ in cells], kinds, rng)
    if doors is None:
        return None
    beside = [[door.polygon for door in doors if i in door.rooms] for i in range(len(cells))]
    rooms = []
    for (cell, corridor), kind, ways in zip(cells, kinds, beside):
        inner = shapely.box(*_inset(cell))
        rooms.append(Room(kind, inner if corridor else _partitioned(inner, ways, rng)))
    ceiling = round(rng.uniform(2.4, 2.8), 2)
    doors = [replace(door, height=min(door.height, ceiling)) for door in doors]
    pieces: list[Piece] = []
    for room, ways in zip(rooms, beside):
        pieces += furnish(room.kind, room.polygon, ways, ceiling, rng)
    return FloorPlan(tuple(rooms), tuple(doors), tuple(pieces), ceiling)


# ---- walls


def _draw_cells(target: float, rng: Generator) -> list[tuple[Cell, bool]] | None:
    """Cells of a home of about `target` square metres, each with whether it is a corridor."""
    typical = 3 + (target - 40.0) / 160.0 * 6.5
    count = int(np.clip(round(typical + rng.normal(0, 0.8)), 3, 9))
    gross = target * 1.045 + 1.5  # what the walls take
    ratio = rng.uniform(1.0, 1.7)
    width, height = round(float(np.sqrt(gross * ratio)), 2), round(float(np.sqrt(gross / ratio)), 2)
    return _split((0.0, 0.0, width, height), count, rng)


def _split(cell: Cell, count: int, rng: Generator) -> list[tuple[Cell, bool]] | None:
    """Cut a cell into `count` rooms and some corridors; None if one would be too small."""
    x0, y0, x1, y1 = cell
    if min(x1 - x0, y1 - y0) < SMALLEST_SIDE:
        return None
    if count == 1:
        return [(cell, False)]
    upright = (x1 - x0) * rng.uniform(0.75, 1.33) > y1 - y0  # the cut runs along y
    with_corridor = count >= 3 and rng.random() < 0.7
    corridor = round(rng.uniform(*CORRIDOR_WIDTH) + WALL, 2) if with_corridor else 0.0
    if with_corridor:  # a corridor lies along the longer side
        upright = x1 - x0 < y1 - y0
    first = int(rng.integers(1, count)) if count < 4 else int(np.clip(rng.binomial(count, 0.5), 1, count - 1))
    low, high = (x0, x1) if upright else (y0, y1)
    share = first / count + rng.uniform(-0.08, 0.08)
    cut = round(low + (high - low - corridor) * share, 2)
    after = round(cut + corridor, 2)
    if upright:
        parts = (x0, y0, cut, y1), (cut, y0, after, y1), (after, y0, x1, y1)
    else:
        parts = (x0, y0, x1, cut), (x0, cut, x1, after), (x0, after, x1, y1)
    one, other = _split(parts[0], first, rng), _split(parts[2], count - first, rng)
    if one is None or other is None:
        return None
    return [*one, *other, *([(parts[1], True)] if with_corridor else [])]


def _inset(cell: Cell) -> Cell:
    x0, y0, x1, y1 = cell
    return round(x0 + WALL / 2, 3), round(y0 + WALL / 2, 3), round(x1 - WALL / 2, 3), round(y1 - WALL / 2, 3)


def _room_kinds(cells: list[tuple[Cell, bool]], rng: Generator) -> list[str]:
    """A use for each cell, by size: the largest is the living room, the smallest the bathroom."""
    rooms = [i for i, (_, corridor) in enumerate(cells) if not corridor]
    rooms.sort(key=lambda i: (cells[i][0][2] - cells[i][0][0]) * (cells[i][0][3] - cells[i][0][1]))
    kinds = ["corridor"] * len(cells)
    between = ["bedroom", "kitchen", "bedroom", "study", "dining room", "bedroom", "storage", "bathroom"]
    kinds[rooms[0]], kinds[rooms[-1]] = "bathroom", "living room"
    for i, kind in zip(rng.permutation(rooms[1:-1]), between):
        kinds[i] = kind
    return kinds


def _partitioned(room: shapely.Polygon, doors: list[shapely.Polygon], rng: Generator) -> shapely.Polygon:
    """A large room with a wall that reaches part of the way across, clear of the doors."""
    x0, y0, x1, y1 = room.bounds
    if room.area < 13.0 or rng.random() < 0.25:
        return room
    for _ in range(8):
        along_x = x1 - x0 > y1 - y0
        low, high, start, end = (x0, x1, y0, y1) if along_x else (y0, y1, x0, x1)
        at = round(low + (high - low) * rng.uniform(0.35, 0.65), 2)
        reach = round((end - start) * rng.uniform(0.45, 0.65), 2)
        near, far = (start, round(start + reach, 3)) if rng.random() < 0.5 else (round(end - reach, 3), end)
        strip = (at, near, round(at + WALL, 3), far) if along_x else (near, at, far, round(at + WALL, 3))
        wall = shapely.box(*strip)
        if all(wall.distance(door) > 0.9 for door in doors):
            return room.difference(wall)
    return room


# ---- doors


def _shared_walls(cells: list[Cell]) -> list[tuple[int, int, bool, float, float, float]]:
    """Pairs of cells with a wall between: (i, j, wall runs along y, its place, from, to)."""
    walls = []
    for i, j in itertools.combinations(range(len(cells)), 2):
        a, b = cells[i], cells[j]
        for axis in (0, 1):
            other = 1 - axis
            low, high = max(a[other], b[other]), min(a[other + 2], b[other + 2])
            for place, facing in ((a[axis + 2], b[axis]), (a[axis], b[axis + 2])):
                if abs(place - facing) < 1e-6 and high - low > 1.2:
                    walls.append((i, j, axis == 0, place, low + WALL, high - WALL))
    return walls


def _draw_doors(cells: list[Cell], kinds: list[str], rng: Generator) -> list[Door] | None:
    """A random tree of doors over the cells and a few more; None if some cell cannot be reached.

    Each door takes the place along its wall that is farthest from the other doors of its two rooms.
    """
    walls = _shared_walls(cells)
    weights = [rng.random() * (0.4 if "corridor" in (kinds[w[0]], kinds[w[1]]) else 1.0) for w in walls]
    component = list(range(len(cells)))
    doors: list[Door] = []
    for k in np.argsort(weights):
        i, j, upright, place, low, high = walls[k]
        if component[i] == component[j] and rng.random() > EXTRA_DOOR_CHANCE:
            continue
        component = [component[i] if c == component[j] else c for c in component]
        wide = not {"bathroom", "bedroom", "storage"} & {kinds[i], kinds[j]} and rng.random() < 0.35
        width = min(round(rng.uniform(*(OPENING_WIDTHS if wide else DOOR_WIDTHS)), 2), high - low - 0.1)
        near = [d.polygon.centroid for d in doors if {i, j} & set(d.rooms)]
        options = []
        for share in (0.0, 1.0, rng.random())[rng.integers(3) :]:
            start = round(low + 0.05 + (high - low - 0.1 - width) * share, 3)
            along = start, round(start + width, 3)
            across = round(place - WALL / 2, 3), round(place + WALL / 2, 3)
            x, y = (across, along) if upright else (along, across)
            hole = shapely.box(x[0], y[0], x[1], y[1])
            options.append((min((hole.distance(p) for p in near), default=rng.random()), hole))
        hole = max(options, key=lambda option: option[0])[1]
        doors.append(Door((i, j), hole, np.inf if wide else DOOR_HEIGHT))
    return doors if len(set(component)) == 1 else None

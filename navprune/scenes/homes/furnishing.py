"""Where furniture stands in a room: along walls, in the open, around tables, under the ceiling.

A piece is kept only if it meets no other piece, leaves the doors clear and leaves one connected floor wide
enough to walk. So whatever is drawn, every door of a room stays in reach.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import shapely
from numpy.random import Generator

from navprune.scenes.homes.furniture import KINDS, Piece, Size

PASSAGE = 0.56  # metres of clear width between obstacles that must be left
DOOR_CLEARANCE = 0.75  # metres in front of a door
GAP = 0.025  # between a piece and the wall, clear of the skirting board
TRIES = 12

# What a room holds: fewest and most of each kind, in the order in which they are placed.
CONTENTS = {
    "living room": (
        "1-2 sofa, 1-1 media, 0-1 table, 1-1 coffee table, 1-2 armchair, 1-3 shelf, "
        "0-1 screen, 1-2 plant, 1-1 floor lamp, 0-2 pouf"
    ),
    "bedroom": (
        "1-1 bed, 1-1 wardrobe, 1-2 cabinet, 1-1 shelf, 0-1 desk, 0-1 armchair, 0-1 screen, 1-1 plant, 0-1 floor lamp"
    ),
    "kitchen": "1-2 counter, 1-1 fridge, 1-1 round table, 1-1 cabinet, 1-2 wall shelf, 0-1 plant",
    "bathroom": "1-1 bathtub, 1-1 toilet, 1-1 washbasin, 0-1 cabinet, 0-1 plant, 0-1 shelf",
    "study": "1-2 desk, 2-4 shelf, 0-1 armchair, 0-1 screen, 0-1 cabinet, 1-1 plant",
    "dining room": "1-1 table, 1-2 cabinet, 0-2 shelf, 0-1 screen, 1-2 plant, 0-1 floor lamp",
    "storage": "2-4 shelf, 0-1 wardrobe, 2-5 crate, 0-1 screen",
    "corridor": "0-1 cabinet, 0-1 plant",
}
EVERYWHERE = "1-1 pendant, 1-3 picture, 0-1 wall shelf, 0-2 crate, 0-1 ball, 0-2 pile"
SEATED = {"table": 4, "round table": 4, "desk": 1}  # how many chairs stand around


class _Floor:
    """The floor of one room while it fills up."""

    def __init__(self, room: shapely.Polygon, doors: list[shapely.Polygon]):
        self.room = room
        self.clear = shapely.union_all([door.buffer(DOOR_CLEARANCE, cap_style="square") for door in doors])
        self.pieces: list[Piece] = []
        self.free = room
        self.thresholds = shapely.union_all([door.buffer(0.5) for door in doors]).intersection(room)
        shapely.prepare(self.clear)
        shapely.prepare(self.room)

    def add(self, piece: Piece, beside: Piece | None = None) -> bool:
        """Add the piece if it fits, and say whether; a chair may reach under the table `beside` it."""
        print_, top = piece.footprint, piece.base + piece.size[2]
        if not self.room.contains(print_) or (piece.kind != "pendant" and print_.intersects(self.clear)):
            return False
        for other in self.pieces:
            apart = other.base >= top or piece.base >= other.base + other.size[2]
            if not apart and other is not beside and print_.intersects(other.footprint):
                return False
        if piece.blocks:
            free = self.free.difference(print_)
            if not self._walkable(free):
                return False
            self.free = free
        self.pieces.append(piece)
        return True

    def _walkable(self, free: shapely.Geometry) -> bool:
        """Whether one wide enough piece of floor holds nearly all that is left and touches every door."""
        wide = shapely.get_parts(free.buffer(-PASSAGE / 2, join_style="mitre"))
        if len(wide) == 0:
            return False
        largest = wide[np.argmax(shapely.area(wide))]
        reach = shapely.get_parts(self.thresholds)
        return largest.area > 0.98 * shapely.area(wide).sum() and bool(shapely.intersects(reach, largest).all())


def furnish(
    kind: str, room: shapely.Polygon, doors: list[shapely.Polygon], ceiling: float, rng: Generator
) -> list[Piece]:
    """Pieces for a room of a `kind` whose doorways are `doors` (the floor in the walls); metres."""
    floor = _Floor(room, doors)
    rug = _draw_rug(room, rng)
    if rug is not None and kind in ("living room", "bedroom", "study", "dining room"):
        floor.pieces.append(rug)
    for fewest, most, name in re.findall(r"(\d)-(\d) ([a-z ]+)", f"{CONTENTS[kind]}, {EVERYWHERE}"):
        for _ in range(int(rng.integers(int(fewest), int(most) + 1))):
            piece = _place(floor, name, ceiling, rng)
            if piece is not None and name in SEATED:
                for chair in _chairs(piece, rng):
                    floor.add(chair, beside=piece)
    return floor.pieces


def _place(floor: _Floor, name: str, ceiling: float, rng: Generator) -> Piece | None:
    """Try some places for one piece; None if none fits."""
    kind = KINDS[name]
    for _ in range(TRIES):
        size = kind.draw_size(rng)
        base = ceiling - size[2] if kind.place == "ceiling" else kind.base
        pose = {"wall": _wall_pose, "free": _free_pose, "ceiling": _middle_pose}[kind.place](floor.room, size, rng)
        if pose is not None:
            piece = Piece(name, *pose, size, base, int(rng.integers(2**31)))
            if floor.add(piece):
                return piece
    return None


def _wall_pose(room: shapely.Polygon, size: Size, rng: Generator) -> tuple[float, float, float] | None:
    """With the back against a random wall, often in its corner; None where the wall is too short."""
    ring = shapely.get_coordinates(shapely.orient_polygons(room).exterior)
    k = int(rng.integers(len(ring) - 1))
    along = ring[k + 1] - ring[k]
    length = float(np.hypot(*along))
    slack = length - size[0] - 2 * GAP
    if slack < 0:
        return None
    along /= length
    inward = np.array([-along[1], along[0]])
    share = float(rng.choice([0.0, 1.0])) if rng.random() < 0.5 else rng.random()
    at = ring[k] + along * (GAP + size[0] / 2 + slack * share) + inward * (GAP + size[1] / 2)
    return float(at[0]), float(at[1]), float(np.arctan2(inward[0], -inward[1]))


def _free_pose(room: shapely.Polygon, size: Size, rng: Generator) -> tuple[float, float, float]:
    """Anywhere; half of the pieces stand square to the walls, the others turned at will."""
    x0, y0, x1, y1 = room.bounds
    angle = rng.integers(4) * np.pi / 2 if rng.random() < 0.5 else rng.uniform(0, 2 * np.pi)
    return float(rng.uniform(x0, x1)), float(rng.uniform(y0, y1)), float(angle)


def _middle_pose(room: shapely.Polygon, size: Size, rng: Generator) -> tuple[float, float, float]:
    middle = room.representative_point()
    return middle.x, middle.y, 0.0


def _chairs(table: Piece, rng: Generator) -> Iterator[Piece]:
    """Chairs that reach a little under the table and face it, each turned a little."""
    (width, depth, _), count = table.size, SEATED[table.kind]
    for i in range(count):
        size = KINDS["chair"].draw_size(rng)
        if KINDS[table.kind].round:
            turn = i * np.pi / 2 + rng.uniform(-0.3, 0.3)
            local = np.array([np.sin(turn), -np.cos(turn)]) * (width / 2 + 0.1)
        elif count == 1:
            turn, local = 0.0, np.array([-0.15, -depth / 2 - 0.12])
        else:
            turn = np.pi * (i % 2)
            local = np.array([(i // 2 - 0.5) * 0.5 * width, (depth / 2 + 0.1) * (2 * (i % 2) - 1)])
        turn += rng.uniform(-0.15, 0.15)
        c, s = np.cos(table.angle), np.sin(table.angle)
        x, y = table.x + c * local[0] - s * local[1], table.y + s * local[0] + c * local[1]
        # A chair's back is at its +y, so one below the table looks up when turned by half a circle.
        angle = table.angle + turn + np.pi
        if rng.random() < 0.85:
            yield Piece("chair", float(x), float(y), float(angle), size, 0.0, int(rng.integers(2**31)))


def _draw_rug(room: shapely.Polygon, rng: Generator) -> Piece | None:
    size = KINDS["rug"].draw_size(rng)
    middle = room.representative_point()
    rug = Piece("rug", middle.x, middle.y, float(rng.uniform(-0.3, 0.3)), size, 0.001, int(rng.integers(2**31)))
    return rug if room.contains(rug.footprint) else None

"""Where furniture stands in a room: along walls, in the open, around tables, under the ceiling.

A piece is kept only if it meets no other piece, leaves the doors clear and leaves one connected floor wide
enough to walk. So whatever is drawn, every door of a room stays in reach.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import shapely
from numpy.random import Generator

from navprune.scenes.homes.furniture import KINDS, Piece, Size

PASSAGE = 0.56  # metres of clear width between obstacles that must be left
DOOR_CLEARANCE = 0.75  # metres in front of a door
GAP = 0.025  # between a piece and the wall, clear of the skirting board
TRIES = 12

# What a room holds: kind, place ("wall", "free", "ceiling"), fewest, most.
CONTENTS: dict[str, list[tuple[str, str, int, int]]] = {
    "living room": [
        ("sofa", "wall", 1, 2),
        ("media", "wall", 1, 1),
        ("table", "free", 0, 1),
        ("coffee table", "free", 1, 1),
        ("armchair", "free", 1, 2),
        ("shelf", "wall", 1, 3),
        ("screen", "free", 0, 1),
        ("plant", "wall", 1, 2),
        ("floor lamp", "wall", 1, 1),
        ("pouf", "free", 0, 2),
    ],
    "bedroom": [
        ("bed", "wall", 1, 1),
        ("wardrobe", "wall", 1, 1),
        ("cabinet", "wall", 1, 2),
        ("shelf", "wall", 1, 1),
        ("desk", "wall", 0, 1),
        ("armchair", "free", 0, 1),
        ("screen", "free", 0, 1),
        ("plant", "wall", 1, 1),
        ("floor lamp", "wall", 0, 1),
    ],
    "kitchen": [
        ("counter", "wall", 1, 2),
        ("fridge", "wall", 1, 1),
        ("round table", "free", 1, 1),
        ("cabinet", "wall", 1, 1),
        ("wall shelf", "wall", 1, 2),
        ("plant", "wall", 0, 1),
    ],
    "bathroom": [
        ("bathtub", "wall", 1, 1),
        ("toilet", "wall", 1, 1),
        ("washbasin", "wall", 1, 1),
        ("cabinet", "wall", 0, 1),
        ("plant", "wall", 0, 1),
        ("shelf", "wall", 0, 1),
    ],
    "study": [
        ("desk", "wall", 1, 2),
        ("shelf", "wall", 2, 4),
        ("armchair", "free", 0, 1),
        ("screen", "free", 0, 1),
        ("cabinet", "wall", 0, 1),
        ("plant", "wall", 1, 1),
    ],
    "dining room": [
        ("table", "free", 1, 1),
        ("cabinet", "wall", 1, 2),
        ("shelf", "wall", 0, 2),
        ("screen", "free", 0, 1),
        ("plant", "wall", 1, 2),
        ("floor lamp", "wall", 0, 1),
    ],
    "storage": [
        ("shelf", "wall", 2, 4),
        ("wardrobe", "wall", 0, 1),
        ("crate", "free", 2, 5),
        ("screen", "free", 0, 1),
    ],
    "corridor": [("cabinet", "wall", 0, 1), ("plant", "wall", 0, 1)],
}
EVERYWHERE: list[tuple[str, str, int, int]] = [
    ("pendant", "ceiling", 1, 1),
    ("picture", "wall", 1, 3),
    ("wall shelf", "wall", 0, 1),
    ("crate", "free", 0, 2),
    ("ball", "free", 0, 1),
    ("pile", "free", 0, 2),
]
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
        """Adds the piece if it fits, and says whether; a chair may reach under the table `beside` it."""
        print_ = piece.footprint
        if not self.room.contains(print_):
            return False
        if piece.kind != "pendant" and print_.intersects(self.clear):
            return False
        top = piece.base + piece.size[2]
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
    for name, place, fewest, most in [*CONTENTS[kind], *EVERYWHERE]:
        for _ in range(int(rng.integers(fewest, most + 1))):
            piece = _place(floor, name, place, ceiling, rng)
            if piece is not None and name in SEATED:
                for chair in _chairs(piece, rng):
                    floor.add(chair, beside=piece)
    return floor.pieces


def _place(floor: _Floor, name: str, place: str, ceiling: float, rng: Generator) -> Piece | None:
    """Tries some places for one piece; None if none fits."""
    for _ in range(TRIES):
        size = KINDS[name].draw_size(rng)
        base = ceiling - size[2] if place == "ceiling" else KINDS[name].base
        pose = {"wall": _wall_pose, "free": _free_pose, "ceiling": _middle_pose}[place](floor.room, size, rng)
        if pose is not None:
            piece = Piece(name, *pose, size, base, int(rng.integers(2**31)))
            if floor.add(piece):
                return piece
    return None


def _wall_pose(room: shapely.Polygon, size: Size, rng: Generator) -> tuple[float, float, float] | None:
    """With the back against a random wall, often in its corner; None where the wall is too short."""
    ring = np.asarray(shapely.orient_polygons(room).exterior.coords)
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
    width, depth, _ = table.size
    count = SEATED[table.kind]
    for i in range(count):
        size = KINDS["chair"].draw_size(rng)
        if KINDS[table.kind].round:
            turn = i * np.pi / 2 + rng.uniform(-0.3, 0.3)
            out = width / 2 + 0.1
            local = np.array([np.sin(turn), -np.cos(turn)]) * out
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

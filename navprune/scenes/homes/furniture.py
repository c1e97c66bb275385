"""Furniture: what kinds there are, how large they get, and their shapes as closed solids.

A piece's own frame has its origin on the floor in the middle of its footprint, its width along x, its depth
along y, and its back towards +y.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import shapely
from numpy.random import Generator

from navprune.scenes.homes.solids import Colour, Solid, ball, box, cushion, cylinder, join, lathe, rod

AGENT_HEIGHT = 1.5  # Habitat's default: what begins above does not block
MAX_CLIMB = 0.2  # Habitat's default: what ends below is walked over

Size = tuple[float, float, float]
Range = tuple[float, float]


@dataclass(frozen=True)
class Piece:
    """One piece of furniture in a plan: metres, and radians counter-clockwise seen from above."""

    kind: str
    x: float
    y: float
    angle: float
    size: Size
    base: float
    seed: int

    @cached_property
    def footprint(self) -> shapely.Polygon:
        """What the piece covers of the floor, in plan."""
        width, depth, _ = self.size
        if KINDS[self.kind].round:
            around = np.arange(16) * (np.pi / 8)
            corners = np.column_stack([np.cos(around) * width, np.sin(around) * depth]) * (0.5 / np.cos(np.pi / 16))
        else:
            corners = np.array([[-width, -depth], [width, -depth], [width, depth], [-width, depth]]) / 2
        c, s = np.cos(self.angle), np.sin(self.angle)
        return shapely.Polygon(corners @ np.array([[c, s], [-s, c]]) + [self.x, self.y])

    @property
    def blocks(self) -> bool:
        """Whether an agent cannot walk here: neither over the piece nor under it."""
        return self.base < AGENT_HEIGHT and self.base + self.size[2] > MAX_CLIMB

    def solid(self) -> Solid:
        """The shape, placed in the plan frame."""
        parts = KINDS[self.kind].build(*self.size, np.random.default_rng(self.seed))
        return join(parts).turned(self.angle).moved(self.x, self.y, self.base)


@dataclass(frozen=True)
class Kind:
    """How to build a kind of furniture, its ranges of width, depth and height in metres, and where in a room it goes.

    `place` is "wall", "free" or "ceiling".
    """

    build: Callable[[float, float, float, Generator], list[Solid]]
    width: Range
    depth: Range
    height: Range
    place: str
    round: bool = False
    base: float = 0.0

    def draw_size(self, rng: Generator) -> Size:
        """A random size; a round piece is as deep as it is wide."""
        width = rng.uniform(*self.width)
        depth = width if self.round else rng.uniform(*self.depth)
        return float(width), float(depth), float(rng.uniform(*self.height))


WOODS: tuple[Colour, ...] = ((176, 132, 86), (120, 82, 52), (205, 172, 128), (92, 64, 48), (222, 214, 200))
FABRICS: tuple[Colour, ...] = (
    (92, 112, 136), (142, 84, 72), (108, 124, 92), (168, 152, 128), (72, 76, 88), (188, 140, 72), (132, 96, 124),
)  # fmt: skip
METAL: Colour = (150, 152, 156)
DARK: Colour = (44, 44, 48)
WHITE: Colour = (238, 238, 234)
LINEN: Colour = (228, 222, 210)
GREENS: tuple[Colour, ...] = ((62, 104, 58), (84, 128, 66), (48, 88, 62))


def _pick(rng: Generator, colours: tuple[Colour, ...]) -> Colour:
    return colours[int(rng.integers(len(colours)))]


def _any_colour(rng: Generator) -> Colour:
    red, green, blue = rng.integers(60, 200, 3).tolist()
    return red, green, blue


def _legs(w: float, d: float, h: float, radius: float, colour: Colour) -> list[Solid]:
    """Four turned legs inside a rectangle."""
    x, y = w / 2 - radius, d / 2 - radius
    profile = [(0.55 * radius, 0.0), (0.7 * radius, 0.3 * h), (radius, 0.85 * h), (0.75 * radius, 0.9 * h), (radius, h)]
    leg = lathe(profile, colour, 12)
    return [leg.moved(sx * x, sy * y) for sx in (-1, 1) for sy in (-1, 1)]


def _knob(x: float, y: float, z: float) -> Solid:
    """A round knob on a front that faces -y; it reaches 25 mm out."""
    profile = [(0.006, 0.0), (0.006, 0.012), (0.014, 0.018), (0.01, 0.025)]
    return lathe(profile, METAL, 10).turned(np.pi / 2, axis=0).moved(x, y, z)


def _front(w: float, y: float, low: float, high: float, columns: int, rows: int, colour: Colour) -> list[Solid]:
    """Doors or drawers in a grid, with round edges and knobs, that reach 40 mm out from a face at `y`."""
    parts = []
    cell_w, cell_h = w / columns, (high - low) / rows
    for column in range(columns):
        for row in range(rows):
            x, z = (column + 0.5) * cell_w - w / 2, low + row * cell_h
            panel = cushion((cell_w - 0.01, 0.03, cell_h - 0.01), colour, (x, y, z + 0.005), 0.008, 2)
            parts += [panel, _knob(x, y - 0.014, z + 0.5 * cell_h)]
    return parts


def _books(w: float, d: float, z: float, room: float, rng: Generator) -> list[Solid]:
    """A row of books on a board at height `z` with `room` metres above it."""
    parts, x = [], -w / 2
    while x < w / 2 - 0.06:
        thick = rng.uniform(0.018, 0.05)
        tall, deep = room * rng.uniform(0.6, 0.92), d * rng.uniform(0.6, 0.9)
        colour = _any_colour(rng)
        if rng.random() < 0.85:
            parts.append(box((thick, deep, tall), colour, (x + thick / 2, 0, z)))
        x += thick + 0.002
    return parts


def _table(w: float, d: float, h: float, rng: Generator) -> list[Solid]:
    wood = _pick(rng, WOODS)
    rail = box((w - 0.12, d - 0.12, 0.07), wood, (0, 0, h - 0.1))
    top = cushion((w, d, 0.035), wood, (0, 0, h - 0.035), 0.015)
    return [*_legs(w - 0.04, d - 0.04, h - 0.03, 0.035, wood), rail, top]


def _round_table(w: float, d: float, h: float, rng: Generator) -> list[Solid]:
    r = w / 2
    foot = [(0.55 * r, 0.0), (0.55 * r, 0.02), (0.12 * r, 0.06)]
    stem = [(0.08 * r, 0.25 * h), (0.14 * r, 0.5 * h), (0.07 * r, 0.8 * h), (0.3 * r, h - 0.05)]
    top = [(0.97 * r, h - 0.035), (r, h - 0.02), (0.97 * r, h)]
    return [lathe([*foot, *stem, *top], _pick(rng, WOODS), 36)]


def _chair(w: float, d: float, h: float, rng: Generator) -> list[Solid]:
    wood, seat = _pick(rng, WOODS), 0.46
    back = d / 2 - 0.025
    posts = [rod((x, back, seat), (x, back, h - 0.06), 0.016, wood) for x in (0.025 - w / 2, w / 2 - 0.025)]
    slats = [rod((x, back, seat), (x, back, h - 0.05), 0.009, wood) for x in np.linspace(-0.3, 0.3, 4) * w]
    rail = cushion((w, 0.035, 0.07), wood, (0, back, h - 0.07), 0.015, 2)
    pad = cushion((w, d, 0.06), _pick(rng, FABRICS), (0, 0, seat - 0.05), 0.025)
    return [*_legs(w - 0.02, d - 0.02, seat - 0.04, 0.02, wood), *posts, *slats, rail, pad]


def _sofa(w: float, d: float, h: float, rng: Generator) -> list[Solid]:
    cloth, other, arm = _pick(rng, FABRICS), _pick(rng, FABRICS), 0.16
    seats = max(1, round((w - 2 * arm) / 0.65))
    each = (w - 2 * arm) / seats
    parts = [
        *_legs(w - 0.1, d - 0.1, 0.1, 0.025, DARK),
        cushion((w - 0.04, d - 0.04, 0.2), cloth, (0, 0, 0.09), 0.04),
        cushion((w, 0.2, h - 0.12), cloth, (0, d / 2 - 0.1, 0.12), 0.08),
        *[cushion((arm, d, 0.5), cloth, (side * (w - arm) / 2, 0, 0.1), 0.07) for side in (-1, 1)],
    ]
    for i in range(seats):
        x = (i + 0.5) * each - (w - 2 * arm) / 2
        parts.append(cushion((each - 0.01, d - 0.22, 0.17), cloth, (x, -0.1, 0.27), 0.06))
        pillow = cushion((0.8 * each, 0.13, h - 0.44), other, rounding=0.06)
        parts.append(pillow.turned(-0.2, axis=0).moved(x, d / 2 - 0.3, 0.42))
    return parts


def _bed(w: float, d: float, h: float, rng: Generator) -> list[Solid]:
    wood, cover, pillows = _pick(rng, WOODS), _pick(rng, FABRICS), 1 if w < 1.2 else 2
    parts = [
        *_legs(w - 0.04, d - 0.08, 0.14, 0.03, wood),
        cushion((w, d - 0.02, 0.16), wood, (0, 0, 0.13), 0.02),
        cushion((w, 0.05, h - 0.1), wood, (0, d / 2 - 0.025, 0.1), 0.02),
        cushion((w - 0.04, d - 0.1, 0.24), LINEN, (0, -0.01, 0.27), 0.06),
        cushion((w - 0.01, 0.62 * d, 0.12), cover, (0, -0.17 * d, 0.43), 0.05),
    ]
    for i in range(pillows):
        x = (i + 0.5) * w / pillows - w / 2
        parts.append(cushion((0.78 * w / pillows, 0.38, 0.13), WHITE, (x, 0.36 * d - 0.06, 0.49), 0.06))
    return parts


def _shelf(w: float, d: float, h: float, rng: Generator) -> list[Solid]:
    wood, board = _pick(rng, WOODS), 0.022
    levels = max(2, round(h / 0.36))
    parts = [box((board, d, h), wood, (s * (w - board) / 2, 0, 0)) for s in (-1, 1)]
    parts.append(box((w - 2 * board, 0.012, h), wood, (0, d / 2 - 0.006, 0)))
    step = (h - board) / levels
    for level in range(levels + 1):
        parts.append(box((w - 2 * board, d - 0.02, board), wood, (0, -0.005, level * step)))
        if level < levels:
            parts += _books(w - 2 * board - 0.01, d - 0.02, level * step + board, step - board, rng)
    return parts


def _cabinet(w: float, d: float, h: float, rng: Generator) -> list[Solid]:
    wood = _pick(rng, WOODS)
    columns, rows = max(1, round(w / 0.5)), 1 if h > 1.4 else 2
    return [
        box((w - 0.06, d - 0.1, 0.07), DARK, (0, 0.02, 0)),
        box((w, d - 0.04, h - 0.1), wood, (0, 0.02, 0.07)),
        cushion((w, d, 0.03), wood, (0, 0, h - 0.03), 0.012, 2),
        *_front(w - 0.02, -d / 2 + 0.04, 0.09, h - 0.05, columns, rows, wood),
    ]


def _media(w: float, d: float, h: float, rng: Generator) -> list[Solid]:
    """A low cabinet with a screen on it."""
    low, screen = 0.45, 0.85 * w
    return [
        *_cabinet(w, d, low, rng),
        cushion((screen, 0.05, h - low - 0.05), DARK, (0, 0.05, low + 0.05), 0.015, 2),
        cushion((0.3 * w, 0.2, 0.02), DARK, (0, 0.05, low), 0.009, 2),
        cylinder(0.025, 0.06, DARK, (0, 0.05, low + 0.01)),
    ]


def _counter(w: float, d: float, h: float, rng: Generator) -> list[Solid]:
    """A kitchen counter with cupboards, a worktop, a tap and four hob rings."""
    colour = _pick(rng, (WHITE, *WOODS))
    columns, top = max(1, round(w / 0.5)), h - 0.1
    hob = lathe([(0.07, 0.0), (0.08, 0.008), (0.06, 0.012)], DARK, 20)
    sink = lathe([(0.17, 0.0), (0.18, 0.012), (0.14, 0.012), (0.12, 0.004)], METAL, 24)
    return [
        box((w, d - 0.12, 0.09), DARK, (0, 0.06, 0)),
        box((w, d - 0.05, h - 0.22), colour, (0, 0.025, 0.09)),
        *_front(w - 0.01, -d / 2 + 0.045, 0.1, h - 0.2, columns, 1, colour),
        cushion((w, d, 0.04), (96, 92, 90), (0, 0, h - 0.14), 0.01, 2),
        *[hob.moved(w / 4 + x, y, top - 0.002) for y in (-0.1, 0.1) for x in (-0.1, 0.1)],
        sink.moved(-w / 4, -0.02, top),
        rod((-w / 4, 0.22, top), (-w / 4, 0.22, top + 0.09), 0.012, METAL),
        rod((-w / 4, 0.22, top + 0.085), (-w / 4, 0.06, top + 0.07), 0.01, METAL),
    ]


def _fridge(w: float, d: float, h: float, rng: Generator) -> list[Solid]:
    colour = _pick(rng, (WHITE, METAL, (188, 60, 52)))
    split, front, grip = 0.62 * h, -d / 2 + 0.012, -0.4 * w
    grips = [(split - 0.5, split - 0.1), (split + 0.06, split + 0.3)]
    return [
        box((w, d - 0.1, h), colour, (0, 0.05, 0)),
        cushion((w, 0.08, split - 0.06), colour, (0, -d / 2 + 0.065, 0.05), 0.03),
        cushion((w, 0.08, h - split - 0.01), colour, (0, -d / 2 + 0.065, split), 0.03),
        *[rod((grip, front, low), (grip, front, high), 0.012, METAL) for low, high in grips],
    ]


def _desk(w: float, d: float, h: float, rng: Generator) -> list[Solid]:
    """A desk with a drawer block, a screen and a keyboard."""
    wood, top, block = _pick(rng, WOODS), 0.74, 0.4
    drawers = _front(block - 0.02, -d / 2 + 0.08, 0.05, top - 0.05, 1, 3, wood)
    return [
        cushion((w, d, 0.035), wood, (0, 0, top - 0.035), 0.012, 2),
        box((block, d - 0.1, top - 0.06), wood, (w / 2 - block / 2 - 0.01, 0.03, 0.03)),
        *[part.moved(w / 2 - block / 2 - 0.01) for part in drawers],
        *[rod((0.04 - w / 2, y, 0), (0.04 - w / 2, y, top - 0.03), 0.025, METAL) for y in (0.05 - d / 2, d / 2 - 0.05)],
        cushion((0.56, 0.04, h - top - 0.08), DARK, (-0.1, d / 4, top + 0.08), 0.012, 2),
        lathe([(0.1, 0.0), (0.1, 0.012), (0.02, 0.03), (0.02, 0.1)], DARK, 20).moved(-0.1, d / 4, top),
        cushion((0.44, 0.14, 0.02), DARK, (-0.1, -d / 6, top), 0.008, 2),
    ]


def _plant(w: float, d: float, h: float, rng: Generator) -> list[Solid]:
    """A pot with leaves on bent stems, all inside the round footprint."""
    r = w / 2
    pot_h = 0.28 * h
    rim = [(0.75 * r, 0.86 * pot_h), (0.75 * r, pot_h), (0.6 * r, pot_h - 0.02)]
    profile = [(0.5 * r, 0.0), (0.68 * r, 0.85 * pot_h), *rim]
    parts = [lathe(profile, _pick(rng, ((178, 104, 72), WHITE, DARK)), 24)]
    for _ in range(14):
        angle, out = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 0.6) * r
        tip = np.array([out * np.cos(angle), out * np.sin(angle), rng.uniform(0.5, 0.86) * h])
        parts.append(rod((0.2 * tip[0], 0.2 * tip[1], pot_h - 0.03), tip, 0.006, GREENS[2], 5))
        leaf = ball((0.36 * r, 0.16 * r, 0.02), _pick(rng, GREENS), sections=10)
        parts.append(leaf.turned(-rng.uniform(0.0, 0.5), axis=1).turned(angle).moved(*tip))
    return parts


def _floor_lamp(w: float, d: float, h: float, rng: Generator) -> list[Solid]:
    r = w / 2
    stand = [(0.8 * r, 0.0), (0.8 * r, 0.015), (0.1 * r, 0.04), (0.012, 0.1), (0.012, h - 0.3)]
    shade = [(r, 0.0), (0.97 * r, 0.06), (0.6 * r, 0.28), (0.2 * r, 0.3)]
    return [lathe(stand, DARK, 16), lathe(shade, (236, 218, 170), 28).moved(z=h - 0.3)]


def _pouf(w: float, d: float, h: float, rng: Generator) -> list[Solid]:
    r = w / 2
    bulge = np.linspace(-1.2, 1.2, 9)
    profile = np.column_stack([r * np.cos(0.5 * bulge) ** 0.5, h * (0.5 + bulge / 2.4)])
    profile[:, 0] *= r / profile[:, 0].max()
    return [lathe(profile, _pick(rng, FABRICS), 28)]


def _bathtub(w: float, d: float, h: float, rng: Generator) -> list[Solid]:
    edge, bottom = 0.07, 0.14
    outer = [(0.42, 0.0), (0.46, 0.1), (0.49, h - 0.04), (0.5, h - 0.02), (0.495, h)]
    inner = [(0.5 - edge - 0.14 * t**2, h - (h - bottom) * t) for t in np.linspace(0.0, 1.0, 6)]
    return [lathe([*outer, *inner], WHITE, 56, (w, d)), rod((0.32 * w, 0, h - 0.02), (0.32 * w, 0, h), 0.02, METAL)]


def _toilet(w: float, d: float, h: float, rng: Generator) -> list[Solid]:
    bowl = [(0.3, 0.0), (0.28, 0.1), (0.34, 0.24), (0.49, 0.36), (0.5, 0.4), (0.38, 0.4), (0.3, 0.3), (0.12, 0.26)]
    return [
        lathe(bowl, WHITE, 36, (w, 0.72 * d)).moved(0, -0.14 * d),
        cushion((w, 0.17, h - 0.32), WHITE, (0, d / 2 - 0.09, 0.32), 0.03),
        cushion((0.5 * w, 0.3, 0.34), WHITE, (0, d / 2 - 0.17, 0.0), 0.03),
        cylinder(0.02, 0.012, METAL, (0, d / 2 - 0.09, h - 0.012)),
    ]


def _washbasin(w: float, d: float, h: float, rng: Generator) -> list[Solid]:
    basin = [(0.1, 0.0), (0.3, 0.04), (0.46, 0.14), (0.5, 0.17), (0.44, 0.17), (0.3, 0.07), (0.06, 0.05)]
    pillar = [(0.11, 0.0), (0.08, 0.05), (0.07, 0.4), (0.1, h - 0.23)]
    return [
        lathe(pillar, WHITE, 16).moved(0, 0.06),
        lathe(basin, WHITE, 40, (w, d)).moved(z=h - 0.25),
        rod((0, 0.42 * d, h - 0.13), (0, 0.42 * d, h - 0.02), 0.012, METAL),
        rod((0, 0.42 * d, h - 0.02), (0, 0.2 * d, h - 0.03), 0.01, METAL),
    ]


def _screen(w: float, d: float, h: float, rng: Generator) -> list[Solid]:
    """A folding screen: upright panels in a zigzag."""
    wood, panels = _pick(rng, WOODS), max(3, round(w / 0.45))
    each = w / panels
    tilt = np.arcsin(min(0.9, (d - 0.04) / np.hypot(each, d)))
    parts = []
    for i in range(panels):
        panel = [cushion((each, 0.025, h), wood, (0, 0, 0), 0.01, 2)]
        panel += [
            cushion((0.75 * each, 0.034, 0.26 * h), LINEN, (0, 0, (0.08 + 0.3 * k) * h), 0.01, 2) for k in range(3)
        ]
        parts.append(join(panel).turned(tilt * (-1) ** i).moved((i + 0.5) * each - w / 2))
    return parts


def _crate(w: float, d: float, h: float, rng: Generator) -> list[Solid]:
    colour = _pick(rng, ((186, 152, 104), *FABRICS))
    return [
        cushion((0.94 * w, 0.94 * d, 0.92 * h), colour, (0, 0, 0), 0.02, 2),
        cushion((w, d, 0.14 * h), colour, (0, 0, 0.86 * h), 0.01, 2),
        cushion((0.3 * w, 0.98 * d, 0.05), DARK, (0, 0, 0.4 * h), 0.01, 2),
    ]


def _ball(w: float, d: float, h: float, rng: Generator) -> list[Solid]:
    return [ball((w / 2, d / 2, h / 2), _pick(rng, FABRICS), (0, 0, h / 2), 16)]


def _pile(w: float, d: float, h: float, rng: Generator) -> list[Solid]:
    """A pile of books, each turned a little."""
    count = max(2, round(h / 0.035))
    parts = []
    for i in range(count):
        colour = _any_colour(rng)
        shrink = rng.uniform(0.55, 0.8)
        book = cushion((w * shrink, d * shrink, h / count), colour, rounding=0.006, steps=1)
        parts.append(book.turned(rng.uniform(-0.2, 0.2)).moved(z=i * h / count))
    return parts


def _rug(w: float, d: float, h: float, rng: Generator) -> list[Solid]:
    first, second = _pick(rng, FABRICS), _pick(rng, FABRICS)
    stripes = [cushion((0.08 * w, 0.9 * d, h), second, (x, 0, 0), 0.004, 1) for x in np.linspace(-0.4, 0.4, 5) * w]
    return [cushion((w, d, 0.6 * h), first, rounding=0.004, steps=1), *stripes]


def _wall_shelf(w: float, d: float, h: float, rng: Generator) -> list[Solid]:
    wood = _pick(rng, WOODS)
    brackets = [box((0.02, d, 0.05), wood, (x, 0, 0)) for x in (-0.35 * w, 0.35 * w)]
    board = cushion((w, d, 0.03), wood, (0, 0, 0.05), 0.01, 2)
    return [*brackets, board, *_books(0.9 * w, 0.8 * d, 0.08, h - 0.08, rng)]


def _picture(w: float, d: float, h: float, rng: Generator) -> list[Solid]:
    """A frame with a small abstract painting of coloured discs."""
    wood, bar = _pick(rng, WOODS), 0.035
    parts = [cushion((w, d, bar), wood, (0, 0, z), 0.008, 2) for z in (0.0, h - bar)]
    parts += [cushion((bar, d, h), wood, (s * (w - bar) / 2, 0, 0), 0.008, 2) for s in (-1, 1)]
    parts.append(box((w - bar, 0.6 * d, h - bar), LINEN, (0, 0.1 * d, bar / 2)))
    for layer in range(4):
        r = rng.uniform(0.06, 0.16) * min(w, h)
        x, z = rng.uniform(-0.3, 0.3) * w, rng.uniform(0.25, 0.75) * h
        disc = lathe([(r, 0.0), (r, (0.25 + 0.04 * layer) * d)], _pick(rng, FABRICS), 18)
        parts.append(disc.turned(np.pi / 2, axis=0).moved(x, -0.1 * d, z))
    return parts


def _pendant(w: float, d: float, h: float, rng: Generator) -> list[Solid]:
    """A ceiling lamp that hangs down from the height of its top."""
    r = w / 2
    shade = [(r, 0.0), (0.98 * r, 0.05), (0.5 * r, 0.18), (0.08 * r, 0.22)]
    cord = rod((0, 0, 0.2), (0, 0, h), 0.006, DARK)
    return [lathe(shade, _pick(rng, (WHITE, METAL, (206, 150, 70))), 40), cord]


KINDS: dict[str, Kind] = {
    "table": Kind(_table, (1.2, 2.0), (0.75, 1.0), (0.72, 0.76), "free"),
    "coffee table": Kind(_table, (0.8, 1.2), (0.5, 0.7), (0.38, 0.46), "free"),
    "round table": Kind(_round_table, (0.7, 1.3), (0.7, 1.3), (0.7, 0.76), "free", round=True),
    "chair": Kind(_chair, (0.42, 0.48), (0.42, 0.48), (0.85, 1.0), "free"),
    "armchair": Kind(_sofa, (0.8, 0.95), (0.8, 0.9), (0.75, 0.9), "free"),
    "sofa": Kind(_sofa, (1.6, 2.4), (0.85, 1.0), (0.75, 0.9), "wall"),
    "bed": Kind(_bed, (0.95, 1.8), (2.0, 2.15), (0.8, 1.15), "wall"),
    "shelf": Kind(_shelf, (0.7, 1.4), (0.26, 0.36), (1.0, 2.1), "wall"),
    "cabinet": Kind(_cabinet, (0.6, 1.6), (0.4, 0.5), (0.7, 1.0), "wall"),
    "wardrobe": Kind(_cabinet, (1.0, 2.0), (0.55, 0.65), (1.9, 2.15), "wall"),
    "media": Kind(_media, (1.1, 1.7), (0.4, 0.5), (1.0, 1.2), "wall"),
    "counter": Kind(_counter, (1.4, 2.8), (0.6, 0.65), (1.0, 1.04), "wall"),
    "fridge": Kind(_fridge, (0.6, 0.7), (0.62, 0.7), (1.7, 1.95), "wall"),
    "desk": Kind(_desk, (1.2, 1.6), (0.65, 0.8), (1.15, 1.25), "wall"),
    "plant": Kind(_plant, (0.4, 0.6), (0.4, 0.6), (0.7, 1.4), "wall", round=True),
    "floor lamp": Kind(_floor_lamp, (0.35, 0.5), (0.35, 0.5), (1.4, 1.7), "wall", round=True),
    "pouf": Kind(_pouf, (0.45, 0.7), (0.45, 0.7), (0.35, 0.45), "free", round=True),
    "bathtub": Kind(_bathtub, (1.5, 1.75), (0.7, 0.8), (0.5, 0.58), "wall"),
    "toilet": Kind(_toilet, (0.38, 0.42), (0.65, 0.7), (0.75, 0.82), "wall"),
    "washbasin": Kind(_washbasin, (0.5, 0.65), (0.42, 0.5), (0.95, 1.02), "wall"),
    "screen": Kind(_screen, (1.3, 1.9), (0.2, 0.3), (1.6, 1.8), "free"),
    "crate": Kind(_crate, (0.3, 0.55), (0.3, 0.5), (0.25, 0.5), "free"),
    "ball": Kind(_ball, (0.22, 0.26), (0.22, 0.26), (0.22, 0.26), "free", round=True),
    "pile": Kind(_pile, (0.25, 0.35), (0.25, 0.35), (0.08, 0.18), "free"),
    "rug": Kind(_rug, (1.2, 2.4), (0.9, 1.7), (0.015, 0.02), "free"),
    "wall shelf": Kind(_wall_shelf, (0.8, 1.4), (0.2, 0.26), (0.32, 0.36), "wall", base=1.55),
    "picture": Kind(_picture, (0.5, 1.1), (0.03, 0.04), (0.4, 0.7), "wall", base=1.55),
    "pendant": Kind(_pendant, (0.35, 0.6), (0.35, 0.6), (0.4, 0.4), "ceiling", round=True, base=2.0),
}

"""Top-down maps: where one can walk, the path taken, and the shortest one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from navprune.evaluation.evaluate import Recording
from navprune.reports import style

STOREY = 1.5
"""Floors farther than this above or below a path, in metres, belong to another storey."""


class TopDownMap:
    """The walkable floor around some points, seen from above: x to the right, z downwards.

    Coordinates on the page are pixels times `oversampling`; `finish` scales a drawing down to `size`.
    """

    oversampling = 3
    margin = 18

    def __init__(self, triangles: np.ndarray, heights: np.ndarray, width: int = 720, height: int = 720):
        """Fit the storey of `triangles` [K, 3, 3] at `heights` [P], metres, into width x height pixels."""
        middle = triangles[:, :, 1].mean(axis=1)
        storey = triangles[(middle > heights.min() - STOREY) & (middle < heights.max() + STOREY)]
        ground = (storey if len(storey) else triangles)[:, :, [0, 2]]
        self.low, high = ground.min(axis=(0, 1)), ground.max(axis=(0, 1))
        room = np.array([width, height]) - 2 * self.margin
        self.scale = float((room / np.maximum(high - self.low, 1e-3)).min())
        self.size = tuple((np.ceil((high - self.low) * self.scale) + 2 * self.margin).astype(int).tolist())
        self.page = self._draw_floor(ground)

    def to_page(self, points: np.ndarray) -> np.ndarray:
        """Turn `points` [P, 3] in metres (or [P, 2], x and z) into page coordinates [P, 2]."""
        flat = points[:, [0, 2]] if points.shape[1] == 3 else points
        return ((flat - self.low) * self.scale + self.margin) * self.oversampling

    def _draw_floor(self, ground: np.ndarray) -> Image.Image:
        """Fill triangles [K, 3, 2] and outline their union."""
        size = tuple(self.oversampling * side for side in self.size)
        floor = Image.new("L", size, 0)
        draw = ImageDraw.Draw(floor)
        for corners in self.to_page(ground.reshape(-1, 2)).reshape(-1, 6):
            draw.polygon(corners.tolist(), fill=255, outline=255)
        page = Image.new("RGB", size, style.PAPER)
        page.paste(style.MUTED, mask=floor.filter(ImageFilter.MaxFilter(2 * self.oversampling - 1)))
        page.paste(style.FLOOR, mask=floor)
        return page

    def draw_line(self, page: Image.Image, points: np.ndarray, colour: str, width: float) -> None:
        """Draw a line through `points` [P, 3] in one colour, `width` in pixels."""
        flat = [tuple(p) for p in self.to_page(points).tolist()]
        ImageDraw.Draw(page).line(flat, fill=colour, width=round(width * self.oversampling), joint="curve")

    def draw_track(self, page: Image.Image, positions: np.ndarray, first: int, steps: int) -> None:
        """Draw the way through `positions` [P, 3], coloured by time: from step `first` on, of `steps`."""
        draw, flat = ImageDraw.Draw(page), self.to_page(positions)
        colours = style.rgb_of(style.TIME((first + np.arange(len(flat))) / max(steps, 1)))
        radius = 2 * self.oversampling
        for a, b, colour in zip(flat[:-1], flat[1:], colours):
            if (a != b).any():
                draw.line([tuple(a), tuple(b)], fill=colour, width=2 * radius)
                draw.ellipse([*(b - radius), *(b + radius)], fill=colour)

    def draw_disc(
        self, page: Image.Image, point: np.ndarray, radius: float, fill: str, outline: str = style.PAPER
    ) -> None:
        """Mark `point` [3] with a ringed disc, `radius` in pixels."""
        centre, radius = self.to_page(point[None])[0], radius * self.oversampling
        box = [*(centre - radius), *(centre + radius)]
        ImageDraw.Draw(page).ellipse(box, fill=fill, outline=outline, width=2 * self.oversampling)

    def draw_agent(self, page: Image.Image, position: np.ndarray, heading: float) -> None:
        """Draw an arrow head at `position` [3] that looks along `heading` (radians about +y, 0 is -z)."""
        forward = np.array([-np.sin(heading), -np.cos(heading)])
        side = np.array([-forward[1], forward[0]])
        centre, reach = self.to_page(position[None])[0], 9 * self.oversampling
        shape = [1.2 * forward, -0.8 * forward + 0.75 * side, -0.4 * forward, -0.8 * forward - 0.75 * side]
        corners = [tuple(centre + reach * corner) for corner in shape]
        ImageDraw.Draw(page).polygon(corners, fill=style.INK, outline=style.PAPER, width=self.oversampling)

    def finish(self, page: Image.Image) -> Image.Image:
        """Scale a page down to `size`, which smooths its edges."""
        return page.resize(self.size, Image.Resampling.LANCZOS)


def lay_out(recording: Recording, width: int, height: int) -> tuple[TopDownMap, Image.Image]:
    """Return a map of what can be reached in an episode, and a page with the shortest path and the goal."""
    episode, pathfinder = recording.episode, recording.pathfinder
    start, goal = np.asarray(episode.start_position), np.asarray(episode.goal_position)
    triangles = pathfinder.triangles()
    centres = triangles.mean(axis=1).astype(np.float64)
    reached = np.isfinite(pathfinder.geodesic_distance(np.tile(start, (len(centres), 1)), centres))
    heights = np.array([point[1] for point in (start, goal, *recording.positions)])
    view = TopDownMap(triangles[reached] if reached.any() else triangles, heights, width, height)
    page = view.page.copy()
    shortest = pathfinder.find_path(start, goal).points
    if len(shortest) > 1:
        view.draw_line(page, shortest, style.MUTED, 1.6)
    view.draw_disc(page, goal, 8, style.ACCENT)
    return view, page


def episode_map(recording: Recording, size: int = 720) -> Image.Image:
    """Draw the way taken in a `recording` beside the shortest one, at most `size` pixels wide, with a key."""
    view, page = lay_out(recording, size, size)
    positions = np.array(recording.positions)
    view.draw_track(page, positions, 0, len(positions))
    view.draw_disc(page, np.asarray(recording.episode.goal_position), 8, style.ACCENT)
    view.draw_disc(page, positions[0], 7, style.PAPER, outline=style.INK)
    picture = view.finish(page)
    head, foot = 34, 40
    sheet = Image.new("RGB", (max(picture.width, 460), picture.height + head + foot), style.PAPER)
    sheet.paste(picture, ((sheet.width - picture.width) // 2, head))
    ImageDraw.Draw(sheet).text((view.margin, 12), title_of(recording), style.INK, style.font(15, bold=True))
    _draw_key(sheet, view, len(positions))
    return sheet


def title_of(recording: Recording) -> str:
    """Return scene, episode, and how it went where that is known."""
    title = f"{Path(recording.episode.scene_id).stem}, episode {recording.episode.episode_id}"
    if not recording.measures:
        return title
    if not recording.measures["success"]:
        return f"{title}: failure, {recording.measures['distance_to_goal']:.1f} m from the goal"
    return f"{title}: success, SPL {recording.measures['spl']:.2f}"


def _draw_key(sheet: Image.Image, view: TopDownMap, steps: int) -> None:
    """Write the key along the lower edge: marks, the colours of time, and a scale bar of round length."""
    draw, y, face = ImageDraw.Draw(sheet), sheet.height - 22, style.font(12)
    x = view.margin
    for name, fill, ring in (("start", style.PAPER, style.INK), ("goal", style.ACCENT, style.ACCENT)):
        draw.ellipse([x, y - 5, x + 10, y + 5], fill=fill, outline=ring, width=2)
        draw.text((x + 16, y), name, fill=style.INK, font=face, anchor="lm")
        x += 28 + round(face.getlength(name))
    draw.line([x, y, x + 24, y], fill=style.MUTED, width=2)
    draw.text((x + 30, y), "shortest", fill=style.INK, font=face, anchor="lm")
    x += 44 + round(face.getlength("shortest"))
    for i, colour in enumerate(style.rgb_of(style.TIME(np.linspace(0, 1, 60)))):
        draw.line([x + i, y - 3, x + i, y + 2], fill=colour)
    draw.text((x + 66, y), f"taken, {steps} steps", fill=style.INK, font=face, anchor="lm")
    metres = max((m for m in (0.5, 1, 2, 5, 10) if m * view.scale < 110), default=0.5)
    right = sheet.width - view.margin
    left = right - round(metres * view.scale)
    draw.line([left, y + 4, right, y + 4], fill=style.INK, width=2)
    draw.text(((left + right) / 2, y), f"{metres:g} m", fill=style.INK, font=face, anchor="mb")

"""Videos of what an agent saw and where it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw

from navprune.evaluation.evaluate import Recording
from navprune.reports import style
from navprune.reports.maps import lay_out, title_of


def write_video(path: str | Path, recording: Recording, size: int = 360, fps: int = 10) -> Path:
    """Write the views and the map of a `recording` side by side, each `size` pixels high.

    A path that ends in .gif becomes a GIF; any other an H.264 file, or a GIF beside it where ffmpeg is
    missing. Returns the path written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = list(video_frames(recording, size))
    frames += [frames[-1]] * fps
    if path.suffix != ".gif":
        try:
            imageio_ffmpeg.get_ffmpeg_exe()
        except RuntimeError:
            path = path.with_suffix(".gif")
    write = _write_gif if path.suffix == ".gif" else _write_h264
    write(path, frames, fps)
    return path


def video_frames(recording: Recording, size: int = 360) -> Iterator[np.ndarray]:
    """Yield one picture uint8 [H, W, 3] for each step, of even height and width."""
    positions = np.array(recording.positions)
    view, page = lay_out(recording, 2 * size, size)
    bar = 26
    for t, heading in enumerate(recording.headings):
        before = max(t - 1, 0)
        view.draw_track(page, positions[before : t + 1], before, len(positions))
        drawn = page.copy()
        view.draw_disc(drawn, positions[0], 5, style.PAPER, outline=style.INK)
        view.draw_agent(drawn, positions[t], heading)
        views = [picture(views[t]) for _, views in sorted(recording.views.items())]
        panels = [Image.fromarray(seen).resize((size, size), Image.Resampling.BICUBIC) for seen in views]
        panels.append(view.finish(drawn))
        width = sum(panel.width for panel in panels)
        sheet = Image.new("RGB", (width + width % 2, size + bar + (size + bar) % 2), style.PAPER)
        x = 0
        for panel in panels:
            sheet.paste(panel, (x, (size - panel.height) // 2))
            x += panel.width
        steps = len(positions)
        caption = title_of(recording) if t + 1 == steps else f"step {t + 1} of {steps}"
        ImageDraw.Draw(sheet).text((10, size + bar / 2), caption, style.INK, style.font(13), "lm")
        yield np.asarray(sheet)


def picture(image: np.ndarray) -> np.ndarray:
    """Turn what a sensor gave, [H, W, channels], into colours uint8 [H, W, 3]: bytes as they are, others as depth."""
    return image if image.dtype == np.uint8 else colour_depth(image[..., 0])


def colour_depth(depth: np.ndarray) -> np.ndarray:
    """Turn depth [H, W] in [0, 1] into colours uint8 [H, W, 3]; nothing hit (0) is shown as far."""
    return (255 * style.DEPTH(np.where(depth > 0, depth, 1.0))[..., :3]).round().astype(np.uint8)


def _write_h264(path: Path, frames: Sequence[np.ndarray], fps: int) -> None:
    """Encode `frames` with libx264 in the pixel format that browsers play."""
    height, width = frames[0].shape[:2]
    writer = imageio_ffmpeg.write_frames(
        str(path), (width, height), fps=fps, codec="libx264", quality=7, macro_block_size=2, ffmpeg_log_level="error"
    )
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()


def _write_gif(path: Path, frames: Sequence[np.ndarray], fps: int) -> None:
    """Write `frames` as an endless GIF with one palette."""
    palette = Image.fromarray(np.concatenate([frames[0], frames[-1]])).quantize(128)
    images = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    images[0].save(path, save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)

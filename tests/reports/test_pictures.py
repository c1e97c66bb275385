"""Maps and videos."""

import imageio.v3 as imageio
import imageio_ffmpeg
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from navprune.reports import style
from navprune.reports.maps import TopDownMap, episode_map, title_of
from navprune.reports.video import colour_depth, video_frames, write_video


def colour(name):
    return tuple(round(255 * c) for c in to_rgb(name))


def pixel(image, view, x, z):
    place = view.to_page(np.array([[x, 0.0, z]]))[0] / view.oversampling
    return image.getpixel(tuple(int(c) for c in place))


@pytest.fixture
def view(recording):
    floor = recording.pathfinder.triangles()
    return TopDownMap(floor[floor[:, 0, 1] == 0], np.zeros(1), 500, 400)


def test_floor_is_drawn_where_one_can_walk(view):
    image = view.finish(view.page)
    assert image.size == view.size and image.width <= 500 and image.height <= 400
    assert min(500 - image.width, 400 - image.height) <= 1  # one side is used to the full
    for x, z, inside in [(1, 1, True), (4, 1, True), (2.5, 2.5, True), (2.5, 1, False)]:
        assert (pixel(image, view, x, z) == colour(style.FLOOR)) == inside
    assert pixel(image, view, 2.5, 1) == colour(style.PAPER)


def test_north_is_up_and_lengths_are_true(view):
    a, b = view.to_page(np.array([[1.0, 0, 1.0], [2.0, 0, 3.0]]))
    np.testing.assert_allclose(b - a, np.array([1, 2]) * view.scale * view.oversampling)


def test_map_shows_goal_and_nothing_out_of_reach(recording, tmp_path):
    sheet = episode_map(recording, 500)
    sheet.save(tmp_path / "map.png")
    decoded = np.asarray(Image.open(tmp_path / "map.png").convert("RGB"))
    assert decoded.shape == (sheet.height, sheet.width, 3) and sheet.width <= 500
    assert (decoded == colour(style.ACCENT)).all(axis=2).sum() > 100
    floor = (decoded == colour(style.FLOOR)).all(axis=2).mean()
    recording.pathfinder.geodesic_distance = lambda starts, ends: np.where(ends[:, 0] > 2, np.inf, 1.0)
    assert (np.asarray(episode_map(recording, 500)) == colour(style.FLOOR)).all(axis=2).mean() != floor


def test_title_tells_how_it_went(recording):
    assert title_of(recording) == "two_rooms, episode 7: success, SPL 0.91"
    recording.measures |= {"success": 0.0, "distance_to_goal": 3.25}
    assert title_of(recording) == "two_rooms, episode 7: failure, 3.2 m from the goal"


def test_depth_darkens_with_distance_and_nothing_is_far():
    shades = colour_depth(np.array([[0.01, 0.3, 0.6, 1.0, 0.0]], np.float32))[0].sum(axis=1)
    assert (np.diff(shades[:4].astype(int)) < 0).all() and shades[4] == shades[3]


@pytest.mark.parametrize("name", ["view.mp4", "view.gif"])
def test_video_decodes_to_one_frame_a_step(recording, tmp_path, name):
    first = next(iter(video_frames(recording, 120)))
    path = write_video(tmp_path / name, recording, size=120, fps=5)
    frames = imageio.imread(path, plugin="FFMPEG" if name.endswith("mp4") else "pillow")
    assert frames.shape[1:] == first.shape and frames.shape[1] % 2 == frames.shape[2] % 2 == 0
    # A GIF joins equal frames, so the held last one counts once.
    assert len(frames) == len(recording.positions) + (5 if name.endswith("mp4") else 0)
    assert np.abs(frames[0].astype(int) - first).mean() < 6


def test_without_ffmpeg_a_gif_is_written(recording, tmp_path, monkeypatch):
    def missing():
        raise RuntimeError("no ffmpeg")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", missing)
    path = write_video(tmp_path / "view.mp4", recording, size=60)
    assert path == tmp_path / "view.gif" and path.read_bytes()[:3] == b"GIF"

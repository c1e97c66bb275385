import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from navprune.errors import UserError
from navprune.scenes.files.episodes import check_episodes, read_episodes, scene_path
from navprune.scenes.files.navmesh import read_navmesh
from navprune.scenes.homes.dataset import HARD_RATIO, generate_dataset
from navprune.scenes.homes.floorplan import draw_plan
from navprune.scenes.homes.sampling import sample_episodes
from navprune.scenes.homes.walkable import home_navmesh
from navprune.simulator.pathfinder import PathFinder

RECIPE = dict(train=2, val=1, seed=5, area=(40.0, 60.0), episodes_per_scene=30, val_episodes_per_scene=10)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("data")
    calls = []
    statistics = generate_dataset(out, **RECIPE, workers=1, progress=lambda *call: calls.append(call))
    assert calls == [(1,), (2,), (3,)]
    return out, statistics


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_the_same_seed_gives_the_same_bytes_in_parallel_too(made, tmp_path):
    out, statistics = made
    assert generate_dataset(tmp_path, **RECIPE, workers=2) == statistics
    assert digests(tmp_path) == digests(out)


def test_episodes_run_in_their_scenes(made):
    out, _ = made
    for split, scenes, count in (("train", 2, 30), ("val", 1, 10)):
        episodes = read_episodes(out, "homes", split)
        assert len({episode.scene_id for episode in episodes}) == scenes
        assert len({(episode.scene_id, episode.episode_id) for episode in episodes}) == scenes * count
        for scene in {episode.scene_id for episode in episodes}:
            navmesh = read_navmesh(scene_path(out, scene).with_suffix(".navmesh"))
            check_episodes([e for e in episodes if e.scene_id == scene], PathFinder(navmesh))


def test_statistics_are_those_of_the_files(made):
    out, statistics = made
    folder = out / "datasets" / "pointnav" / "homes" / "v1"
    stored = json.loads((folder / "statistics.json").read_text())["splits"]["train"]
    ours = statistics.splits["train"]
    episodes = read_episodes(out, "homes", "train")
    geodesic = np.array([episode.geodesic_distance for episode in episodes])
    direct = np.array([np.hypot(*np.subtract(e.goal_position, e.start_position)[[0, 2]]) for e in episodes])
    assert stored["geodesic"]["mean"] == ours.geodesic.mean == pytest.approx(geodesic.mean())
    assert ours.ratio.mean == pytest.approx((geodesic / direct).mean(), rel=1e-6)
    assert ours.hard_share == pytest.approx((geodesic / direct >= HARD_RATIO).mean(), abs=0.02)
    assert ours.scenes == 2 and ours.episodes == 60
    assert 40 <= ours.area.low <= ours.area.high <= 60
    assert 3 <= ours.rooms.low and ours.triangles.low >= 20_000
    for split in ("train", "val"):
        with Image.open(folder / f"{split}.png") as picture:
            assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 10


def test_homes_of_all_sizes_are_as_hard_as_gibson():
    """Mean geodesic distance of at least 5 m and mean geodesic/Euclidean ratio of at least 1.3."""
    geodesic, ratio = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        pathfinder = PathFinder(home_navmesh(draw_plan(rng)))
        for episode in sample_episodes(pathfinder, "home", 40, rng):
            geodesic.append(episode.geodesic_distance)
            direct = np.linalg.norm(np.subtract(episode.goal_position, episode.start_position))
            ratio.append(episode.geodesic_distance / direct)
    assert np.mean(geodesic) >= 5.0
    assert np.mean(ratio) >= 1.3
    assert np.mean(np.array(ratio) >= HARD_RATIO) >= 0.25


def test_train_and_val_share_no_scene(made):
    out, _ = made
    files = [hashlib.sha256(path.read_bytes()).digest() for path in (out / "scene_datasets").rglob("*.navmesh")]
    assert len(files) == len(set(files)) == 3


def test_a_smaller_set_replaces_a_larger_one(tmp_path):
    generate_dataset(tmp_path, **(RECIPE | {"episodes_per_scene": 3}), workers=1)
    generate_dataset(tmp_path, **(RECIPE | {"episodes_per_scene": 3, "train": 1}), workers=1)
    assert len(read_episodes(tmp_path, "homes", "train")) == 3


def test_an_interrupted_set_is_unfinished_and_can_be_made_again(tmp_path):
    recipe = RECIPE | {"train": 1, "episodes_per_scene": 3, "val_episodes_per_scene": 3, "workers": 1}
    statistics = tmp_path / "datasets" / "pointnav" / "homes" / "v1" / "statistics.json"

    def interrupt(done):
        assert not statistics.exists()
        raise KeyboardInterrupt

    generate_dataset(tmp_path, **recipe)
    before = digests(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        generate_dataset(tmp_path, **recipe, progress=interrupt)
    assert not statistics.exists()
    generate_dataset(tmp_path, **recipe)
    assert digests(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"area": (10.0, 50.0)}, "no range"),
        ({"area": (60.0, 50.0)}, "no range"),
        ({"val": 0}, "at least one"),
        ({"seed": -1}, "negative"),
    ],
)
def test_impossible_arguments_are_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        generate_dataset(tmp_path, **(RECIPE | change))
    assert not list(tmp_path.iterdir())


def test_a_foreign_data_set_is_left_alone(tmp_path):
    content = tmp_path / "datasets" / "pointnav" / "homes" / "v1" / "train" / "content"
    content.mkdir(parents=True)
    (content / "A.json.gz").write_bytes(b"precious")
    with pytest.raises(UserError, match="from elsewhere"):
        generate_dataset(tmp_path, **RECIPE)
    assert (content / "A.json.gz").read_bytes() == b"precious"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        generate_dataset(tmp_path / "file", **RECIPE, workers=1)

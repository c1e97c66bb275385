"""Data sets in Habitat's own layouts are read, filtered and run as they are."""

import layouts
import numpy as np
import pytest

from navprune.commands.doctor import examine
from navprune.errors import UserError
from navprune.scenes.files.episodes import read_episodes, scene_name, scene_path, skim_episodes
from navprune.scenes.files.navmesh import read_navmesh
from navprune.scenes.homes.dataset import generate_dataset
from navprune.simulator.pathfinder import PathFinder
from navprune.tasks.pointnav import Once, PointNavEnv, TaskConfig

TASK = TaskConfig(width=8, height=8)
SPLITS = {  # data set, version, split -> scenes
    ("gibson", "v1", "val"): ["Cantwell", "Eastville"],
    ("gibson", "v2", "val"): ["Cantwell", "Eastville"],
    ("mp3d", "v1", "train"): ["17DRP5sb8fy"],
    ("mp3d", "v1", "val"): ["17DRP5sb8fy", "2azQ1b91cZZ"],
    ("hm3d", "v1", "train"): ["vLpv2VX547B"],
    ("hm3d", "v1", "val"): ["TEEsavR23oF"],
    ("habitat-test-scenes", "v1", "val"): ["apartment_1"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    layouts.gibson(data, "v1")
    layouts.gibson(data, "v2")
    layouts.mp3d(data)
    layouts.hm3d(data)
    layouts.habitat_test_scenes(data)
    return data


def finish(episodes, data):
    """The measures of all episodes, in their order, when the expert runs them."""
    env = PointNavEnv(episodes, data, Once(len(episodes)), 8, TASK)
    env.reset()
    measures = {}
    while env.active.any():
        for end in env.step(env.expert_actions()).finished:
            measures[(end.episode.scene_id, end.episode.episode_id)] = end.measures
    env.close()
    return [measures[(episode.scene_id, episode.episode_id)] for episode in episodes]


@pytest.mark.parametrize("split", SPLITS)
def test_splits_are_read_and_run_to_the_end(data, split):
    name, version, part = split
    episodes = read_episodes(data, name, part, version)
    assert len(episodes) == 20 * len(SPLITS[split])
    assert sorted({scene_name(episode.scene_id) for episode in episodes}) == SPLITS[split]
    assert len({(episode.scene_id, episode.episode_id) for episode in episodes}) == len(episodes)
    for each in (1, None):
        skimmed = skim_episodes(data, name, part, version, each=each)
        assert set(skimmed.scenes) == {episode.scene_id for episode in episodes}
    assert list(skimmed) == list(episodes)
    assert all(scene_path(data, episode.scene_id).with_suffix(".navmesh").is_file() for episode in episodes)
    measures = finish(episodes[::5], data)
    assert all(one["success"] == 1 and one["spl"] > 0.8 for one in measures)


@pytest.mark.parametrize("navmesh", ["same name", "other name"])
@pytest.mark.parametrize(
    ("named", "there"), [("ID.basis.glb", "ID.glb"), ("ID.glb", "ID.basis.glb"), ("A.b.basis.glb", "A.b.glb")]
)
def test_either_name_of_hm3ds_files_stands_for_the_other(tmp_path, named, there, navmesh):
    layouts.put_scene(tmp_path, "duplex", f"hm3d/val/00800-ID/{there}")
    file = tmp_path / "scene_datasets" / "hm3d" / "val" / "00800-ID" / there
    if navmesh == "other name":
        file.with_suffix(".navmesh").rename(file.with_name(named).with_suffix(".navmesh"))
    entries = layouts.entries("duplex", f"hm3d/val/00800-ID/{named}", count=3)
    layouts.put_episodes(tmp_path, "hm3d/v1", "val", [], {"ID": entries})
    episodes = read_episodes(tmp_path, "hm3d", "val")
    assert scene_path(tmp_path, episodes[0].scene_id) == file
    assert all(measures["success"] == 1 for measures in finish(episodes, tmp_path))
    (val,) = (one for one in examine(tmp_path) if one.name.startswith("hm3d v1 val"))
    assert "missing" not in val.found and "3 tried" in val.found


def test_where_both_are_there_the_named_one_is_taken(tmp_path):
    for name in ("ID.glb", "ID.basis.glb"):
        layouts.put_scene(tmp_path, "duplex", f"hm3d/{name}")
        assert scene_path(tmp_path, f"hm3d/{name}").name == name
    assert scene_path(tmp_path, "hm3d/other.glb").name == "other.glb", "told as it was named"


def test_ids_restart_in_the_scenes_of_version_2_only(data):
    first, second = (read_episodes(data, "gibson", "val", version) for version in ("v1", "v2"))
    assert len({episode.episode_id for episode in first}) == 40
    assert len({episode.episode_id for episode in second}) == 20


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_are_chosen_by_name_in_every_layout(data, split):
    name, version, part = split
    chosen = SPLITS[split][-1]
    everything = read_episodes(data, name, part, version)
    kept = read_episodes(data, name, part, version, scenes=[chosen])
    assert list(kept) == [episode for episode in everything if scene_name(episode.scene_id) == chosen]
    with pytest.raises(UserError, match="no episodes in scene Castle"):
        read_episodes(data, name, part, version, scenes=[chosen, "Castle"])


def test_names_may_have_dots(tmp_path):
    contents = {}
    for name, scene in {"a": "apartment", "a.v1": "duplex"}.items():
        layouts.put_scene(tmp_path, scene, f"rooms/{name}.glb")
        contents[name] = layouts.entries(scene, f"rooms/{name}.glb")
    layouts.put_episodes(tmp_path, "rooms/v1", "val", [], contents)
    for chosen in ("a", "a.v1"):
        kept = read_episodes(tmp_path, "rooms", "val", scenes=[chosen])
        assert len(kept) == 20 and {episode.scene_id for episode in kept} == {f"rooms/{chosen}.glb"}
        assert list(read_episodes(tmp_path, "rooms", "val", scenes=chosen)) == list(kept), "one name"


def test_files_of_other_scenes_are_not_opened(data, tmp_path):
    layouts.gibson(tmp_path)
    broken = tmp_path / "datasets" / "pointnav" / "gibson" / "v1" / "val" / "content" / "Eastville.json.gz"
    broken.write_bytes(b"broken")
    assert len(read_episodes(tmp_path, "gibson", "val", scenes=["Cantwell"])) == 20
    with pytest.raises(UserError, match=r"Eastville.*damaged"):
        read_episodes(tmp_path, "gibson", "val")


def test_missing_scenes_are_counted(data, tmp_path):
    layouts.mp3d(tmp_path)
    for path in (tmp_path / "scene_datasets").rglob("*.glb"):
        path.unlink()
    with pytest.raises(UserError, match=r"17DRP5sb8fy\.glb of split 'val' is missing, as are 1 more of its 2"):
        read_episodes(tmp_path, "mp3d", "val")


def test_stairs_of_a_scene_with_several_floors_are_climbed(tmp_path):
    """Habitat samples goals on the floor of the start; here each lies on the other floor."""
    duplex = PathFinder(read_navmesh(layouts.SCENES / "duplex.navmesh"))
    path = "hm3d/val/00800-TEEsavR23oF/TEEsavR23oF.basis.glb"
    layouts.put_scene(tmp_path, "duplex", path)
    points = duplex.sample(400, np.random.default_rng(0))
    low, high = points[points[:, 1] < 0.5], points[points[:, 1] > 2.0]
    count = min(len(low), len(high), 6)
    ways = duplex.geodesic_distance(low[:count], high[:count])
    assert count == 6 and np.isfinite(ways).all()
    episodes = [
        entry
        | {"start_position": a.tolist(), "goals": [{"position": b.tolist()}], "info": {"geodesic_distance": float(way)}}
        for entry, a, b, way in zip(layouts.entries("duplex", path), low, high, ways)
    ]
    layouts.put_episodes(tmp_path, "hm3d/v1", "val", [], {"TEEsavR23oF": episodes})
    for measures in finish(read_episodes(tmp_path, "hm3d", "val"), tmp_path):
        assert measures["success"] == 1 and measures["spl"] > 0.8


def test_a_generated_home_runs_from_mp3ds_place(tmp_path):
    generate_dataset(tmp_path, "homes", train=1, val=1, area=(40, 60), episodes_per_scene=6, workers=1)
    episodes = read_episodes(tmp_path, "homes", "train")
    scene_id = episodes[0].scene_id
    source, name = scene_path(tmp_path, scene_id), scene_name(scene_id)
    folder = tmp_path / "scene_datasets" / "mp3d" / name
    folder.mkdir(parents=True)
    for suffix in (".glb", ".navmesh"):
        source.with_suffix(suffix).rename(folder / f"{name}{suffix}")
    entries = [
        {
            "episode_id": episode.episode_id,
            "scene_id": f"mp3d/{name}/{name}.glb",
            "start_position": list(episode.start_position),
            "start_rotation": list(episode.start_rotation),
            "goals": [{"position": list(episode.goal_position), "radius": None}],
            "info": {"geodesic_distance": episode.geodesic_distance},
        }
        for episode in episodes
    ]
    layouts.put_episodes(tmp_path, "mp3d/v1", "train", entries, {})
    assert all(one["success"] == 1 for one in finish(read_episodes(tmp_path, "mp3d", "train"), tmp_path))

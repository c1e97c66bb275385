import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from navprune.errors import UserError
from navprune.scenes.files.episodes import (
    Episode,
    EpisodeTable,
    check_episodes,
    check_ids,
    read_episodes,
    scene_path,
    split_folder,
    write_episodes,
)
from navprune.scenes.files.navmesh import read_navmesh
from navprune.scenes.homes.sampling import sample_episodes
from navprune.simulator.pathfinder import PathFinder

REFERENCE = Path(__file__).parents[2] / "data" / "reference"


@pytest.fixture(scope="module")
def apartment():
    return PathFinder(read_navmesh(REFERENCE / "scene_datasets" / "reference" / "apartment.navmesh"))


@pytest.fixture(scope="module")
def sampled(apartment):
    return sample_episodes(apartment, "reference/apartment.glb", 400, np.random.default_rng(0))


@pytest.fixture
def data(tmp_path):
    """A data folder with one scene file and nothing else."""
    (tmp_path / "scene_datasets" / "reference").mkdir(parents=True)
    (tmp_path / "scene_datasets" / "reference" / "apartment.glb").touch()
    return tmp_path


def test_habitats_own_files_are_read():
    episodes = read_episodes(REFERENCE, "reference", "val")
    assert len(episodes) == 40
    assert len({(episode.scene_id, episode.episode_id) for episode in episodes}) == 40
    assert all(scene_path(REFERENCE, episode.scene_id).is_file() for episode in episodes)
    first = episodes[0]
    assert first.scene_id == "reference/apartment.glb" and first.goal_radius is None
    assert first.geodesic_distance == 2.3833398818969727


def test_habitats_own_episodes_pass_the_check_and_moved_ones_do_not(apartment):
    episodes = [e for e in read_episodes(REFERENCE, "reference", "val") if "apartment" in e.scene_id]
    check_episodes(episodes, apartment)
    outside = replace(episodes[3], start_position=(100.0, 0.0, 100.0))
    with pytest.raises(UserError, match=rf"^episode {outside.episode_id} of .*start is off") as raised:
        check_episodes([*episodes, outside], apartment)
    assert "\n" not in str(raised.value)
    away = replace(episodes[3], goal_position=(100.0, 0.0, 100.0))
    with pytest.raises(UserError, match="goal cannot be reached"):
        check_episodes([away], apartment)


def test_a_leading_data_folder_is_stripped_from_scene_ids():
    assert scene_path("D", "data/scene_datasets/gibson/A.glb") == Path("D/scene_datasets/gibson/A.glb")
    assert scene_path("D", "gibson/A.glb") == Path("D/scene_datasets/gibson/A.glb")


def test_sampled_episodes_obey_habitats_rules(apartment, sampled):
    assert [episode.episode_id for episode in sampled] == [str(i) for i in range(400)]
    starts = np.array([episode.start_position for episode in sampled])
    goals = np.array([episode.goal_position for episode in sampled])
    distance = np.array([episode.geodesic_distance for episode in sampled])
    np.testing.assert_array_equal(distance, apartment.geodesic_distance(starts, goals))
    assert (distance >= 1.0).all() and (distance <= 30.0).all()
    assert (np.abs(starts[:, 1] - goals[:, 1]) <= 0.5).all()
    assert (apartment.island_radius(starts) >= 1.5).all() and (apartment.island_radius(goals) >= 1.5).all()
    turns = np.array([episode.start_rotation for episode in sampled])
    assert (turns[:, [0, 2]] == 0).all()
    np.testing.assert_allclose(np.linalg.norm(turns, axis=1), 1.0)
    yaw = 2 * np.arctan2(turns[:, 1], turns[:, 3])
    assert np.histogram(yaw % (2 * np.pi), 4, (0, 2 * np.pi))[0].min() > 60
    check_episodes(sampled, apartment)


class Plane:
    """A path finder in which every way is `ratio` times as long as the straight line."""

    def __init__(self, ratio):
        self.ratio = ratio

    def sample(self, count, rng):
        return rng.uniform(0, 1, (count, 3)) * [40.0, 0.0, 2.0]

    def geodesic_distance(self, starts, ends):
        return self.ratio * np.linalg.norm(starts - ends, axis=1)

    def island_radius(self, points):
        return np.full(len(points), 2.0)


@pytest.mark.parametrize("ratio", [1.0, 1.03, 1.09, 1.11])
def test_straight_ways_are_kept_as_often_as_habitat_keeps_them(ratio):
    """Of a goal's starts in reach, the share kept is 20 (ratio - 0.98)^2 below 1.1 and 1 from there on."""
    rng = np.random.default_rng(1)
    drawn = {"pairs": 0}

    class Counting(Plane):
        def geodesic_distance(self, starts, ends):
            distance = super().geodesic_distance(starts, ends)
            drawn["pairs"] += int(((distance >= 1) & (distance <= 30)).sum())
            return distance

    episodes = sample_episodes(Counting(ratio), "plane", 300, rng, batch=8)
    expected = min(1.0, 20 * (ratio - 0.98) ** 2) if ratio < 1.1 else 1.0
    share = len(episodes) / drawn["pairs"]
    assert share == pytest.approx(expected, abs=4 * np.sqrt(expected / drawn["pairs"]) + 0.02)


def test_goals_that_are_hard_to_serve_are_not_rarer_in_small_samples():
    """Half of the goals find each start with chance 0.2: of those, ten tries serve 1 - 0.8^10 and one serves 0.2."""

    class Uneven(Plane):
        drawn = None

        def sample(self, count, rng):
            points = super().sample(count, rng)
            self.drawn = points if self.drawn is None else self.drawn
            return points

        def geodesic_distance(self, starts, ends):
            distance = np.clip(super().geodesic_distance(starts, ends), 2.0, 29.0)
            return np.where((ends[:, 2] < 1.0) & (starts[:, 0] > 8.0), np.inf, distance)

        def island_radius(self, points):
            return np.full(len(points), 2.0)

    pathfinder = Uneven(50.0)
    episodes = sample_episodes(pathfinder, "plane", 120, np.random.default_rng(0))
    goals = [episode.goal_position for episode in episodes]
    served = (1 - 0.8**10) / (2 - 0.8**10)
    assert np.mean([goal[2] < 1.0 for goal in goals]) == pytest.approx(served, abs=0.15)
    rows = {tuple(goal): row for row, goal in enumerate(pathfinder.drawn.tolist())}
    order = [rows[goal] for goal in goals]
    assert order == sorted(order)


def test_hopeless_scenes_are_refused():
    with pytest.raises(UserError, match="only 0 of 5"):
        sample_episodes(Plane(np.inf), "plane", 5, np.random.default_rng(0), batch=4)


def test_what_is_written_is_read_back_and_has_the_same_bytes(data, sampled):
    write_episodes(data, "reference", "val", sampled)
    assert list(read_episodes(data, "reference", "val")) == sampled
    file = split_folder(data, "reference", "val") / "content" / "apartment.json.gz"
    before = file.read_bytes()
    write_episodes(data, "reference", "val", sampled[:5])
    assert list(read_episodes(data, "reference", "val")) == sampled[:5]
    write_episodes(data, "reference", "val", sampled)
    assert file.read_bytes() == before


def write_entry(data, **changes):
    episode = Episode("7", "reference/apartment.glb", (0, 0, 0), (0, 0, 0, 1), (1, 0, 0), None, 1.0)
    write_episodes(data, "reference", "val", [episode])
    file = split_folder(data, "reference", "val") / "content" / "apartment.json.gz"
    entry = json.loads(gzip.decompress(file.read_bytes()))["episodes"][0] | changes
    entry = {key: value for key, value in entry.items() if value != "absent"}
    file.write_bytes(gzip.compress(json.dumps({"episodes": [entry]}).encode()))
    return file


def test_missing_shortest_paths_do_not_matter(data):
    write_entry(data, shortest_paths="absent")
    assert len(read_episodes(data, "reference", "val")) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("start_position", [0, 0]),
        ("start_position", [0, 0, float("nan")]),
        ("start_rotation", [0, 0, 0, 0]),
        ("goals", []),
        ("goals", [{"position": "here"}]),
        ("goals", [{"position": [1, 0, 0]}, {"position": [2, 0, 0]}]),
        ("goals", [{"position": [1, 0, 0], "radius": None}] * 3),
        ("info", {"geodesic_distance": "far"}),
        ("info", {"geodesic_distance": float("inf")}),
        ("info", {"geodesic_distance": -1.0}),
        ("goals", [{"position": [1, 0, 0], "radius": -0.2}]),
        ("info", [2.0]),
        ("scene_id", 3),
        ("episode_id", "absent"),
    ],
)
def test_bad_fields_are_named(data, field, value):
    file = write_entry(data, **{field: value})
    with pytest.raises(UserError) as raised:
        read_episodes(data, "reference", "val")
    assert field in str(raised.value) and str(file) in str(raised.value) and "\n" not in str(raised.value)


def test_a_fault_is_told_in_a_sentence(data):
    write_entry(data, goals=[])
    with pytest.raises(UserError, match=r"episode 0 has a fault in goals: it is empty; mend or generate it again"):
        read_episodes(data, "reference", "val")


ENTRY = {
    "episode_id": "7",
    "scene_id": "reference/apartment.glb",
    "start_position": [0, 0, 0],
    "start_rotation": [0, 0, 0, 1],
    "goals": [{"position": [1, 0, 0]}],
}


@pytest.mark.parametrize("files", [{"a": ["7", "8", "7"]}, {"a": ["7", 7]}, {"a": ["5", "7"], "a (copy)": ["7", "8"]}])
def test_two_episodes_of_one_scene_may_not_have_one_id(data, files):
    write_episodes(data, "reference", "val", [])
    folder = split_folder(data, "reference", "val") / "content"
    for name, ids in files.items():
        entries = [ENTRY | {"episode_id": number} for number in ids]
        (folder / f"{name}.json.gz").write_bytes(gzip.compress(json.dumps({"episodes": entries}).encode()))
    read = read_episodes(data, "reference", "val")  # to train on they may be
    with pytest.raises(UserError, match=r"'val' has 2 episodes 7 in scene reference/apartment\.glb; give each an id"):
        check_ids(read, "val")


def test_ids_may_begin_anew_in_each_scene(data):
    (data / "scene_datasets" / "reference" / "duplex.glb").touch()
    episode = Episode("7", "reference/apartment.glb", (0, 0, 0), (0, 0, 0, 1), (1, 0, 0), None, 1.0)
    write_episodes(data, "reference", "val", [episode, replace(episode, scene_id="reference/duplex.glb")])
    check_ids(read := read_episodes(data, "reference", "val"), "val")
    assert [episode.episode_id for episode in read] == ["7", "7"]


@pytest.mark.parametrize("scenes", [[], (), ""])
def test_of_no_scenes_the_choice_is_empty_and_not_the_data_set(data, scenes):
    write_entry(data)
    with pytest.raises(UserError, match=r"data\.scenes names no scene"):
        read_episodes(data, "reference", "val", scenes=scenes)


def test_several_goals_are_refused_with_their_number(data):
    write_entry(data, goals=[{"position": [1, 0, 0]}, {"position": [2, 0, 0]}])
    with pytest.raises(UserError, match="goals: there are 2, and PointNav takes one"):
        read_episodes(data, "reference", "val")


@pytest.mark.parametrize("info", ["absent", None, {}, {"geodesic_distance": None}, {"difficulty": "easy"}])
def test_episodes_need_not_say_their_distance(data, info):
    write_entry(data, info=info)
    (episode,) = read_episodes(data, "reference", "val")
    assert episode.geodesic_distance is None
    write_episodes(data, "reference", "val", [episode])
    assert list(read_episodes(data, "reference", "val")) == [episode]


@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.95])
def test_cut_off_files_are_named(data, keep):
    file = write_entry(data)
    whole = file.read_bytes()
    file.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    with pytest.raises(UserError, match="cut off or damaged"):
        read_episodes(data, "reference", "val")


@pytest.mark.parametrize("document", [[], {"scenes": []}, {"episodes": 3}])
def test_other_documents_are_refused(data, document):
    write_entry(data).write_bytes(gzip.compress(json.dumps(document).encode()))
    with pytest.raises(UserError, match="no PointNav episode file"):
        read_episodes(data, "reference", "val")


def test_a_missing_split_and_a_missing_scene_are_named(data):
    with pytest.raises(UserError, match="no split 'test'"):
        read_episodes(data, "reference", "test")
    write_entry(data, scene_id="reference/castle.glb")
    with pytest.raises(UserError, match=r"castle\.glb of split 'val' is missing"):
        read_episodes(data, "reference", "val")


def test_a_table_holds_what_a_list_holds(sampled):
    mixed = [*sampled[:20], *(replace(e, scene_id="reference/duplex.glb", goal_radius=0.5) for e in sampled[20:50])]
    mixed += sampled[50:60]
    table = EpisodeTable.of(mixed)
    assert EpisodeTable.of(table) is table
    assert list(table) == mixed and list(table[10:40:3]) == mixed[10:40:3] and table[-1] == mixed[-1]
    parts = table.by_scene()
    assert {scene: list(part) for scene, part in parts.items()} == {
        scene: [e for e in mixed if e.scene_id == scene]
        for scene in ("reference/apartment.glb", "reference/duplex.glb")
    }
    assert parts["reference/duplex.glb"]._numbers.base is not None  # a view
    np.testing.assert_array_equal(
        table.starts_and_goals(), [(*episode.start_position, *episode.goal_position) for episode in mixed]
    )
    with pytest.raises(IndexError):
        table[len(mixed)]
    assert len(table[:0]) == 0 and not EpisodeTable.of([])


def test_a_digest_changes_with_order_name_and_place(sampled):
    def other(**changes):
        return EpisodeTable.of([sampled[0], replace(sampled[1], **changes)]).digest()

    digests = {
        other(),
        other(episode_id="x"),
        other(scene_id="b.glb"),
        other(goal_position=(0.0, 0.0, 0.5)),
        EpisodeTable.of(sampled[1::-1]).digest(),
    }
    assert len(digests) == 5 and EpisodeTable.of(sampled[:2]).digest() in digests

import gzip
import json
import math
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import COUNT, mutants

from navprune.errors import UserError
from navprune.scenes.files.episodes import read_episodes, skim_episodes

ENTRY = {
    "episode_id": "7",
    "scene_id": "reference/apartment.glb",
    "scene_dataset_config": "./data/scene_datasets/hm3d/hm3d_basis.scene_dataset_config.json",
    "start_position": [0.5, 0.0, -1.25],
    "start_rotation": [0, 0.6, 0, 0.8],
    "info": {"geodesic_distance": 5.5, "difficulty": "easy"},
    "goals": [{"position": [3.0, 0.0, -2.5], "radius": 0.2}],
    "shortest_paths": [[{"position": [0.5, 0.0, -1.25], "rotation": [0, 0, 0, 1], "action": 1}]],
    "start_room": None,
}
DOCUMENT = {"episodes": [ENTRY, ENTRY | {"episode_id": 8}, ENTRY | {"episode_id": "9", "shortest_paths": None}]}


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """A data folder, and the one file of its split."""
    data = tmp_path_factory.mktemp("data")
    (data / "scene_datasets" / "reference").mkdir(parents=True)
    (data / "scene_datasets" / "reference" / "apartment.glb").touch()
    folder = data / "datasets" / "pointnav" / "reference" / "v1" / "val"
    folder.mkdir(parents=True)
    return data, folder / "val.json.gz"


def refusal(split, packed: bytes) -> str | None:
    """The one line with which a file is refused, None where it is read."""
    data, file = split
    file.write_bytes(packed)
    try:
        episodes = read_episodes(data, "reference", "val")
    except UserError as error:
        line = str(error)
        assert line.isprintable()
        return line
    for episode in episodes:
        distance = 0.0 if episode.geodesic_distance is None else episode.geodesic_distance
        numbers = (*episode.start_position, *episode.start_rotation, *episode.goal_position, distance)
        assert len(numbers) == 11 and all(type(x) is float and math.isfinite(x) for x in numbers)
        assert episode.goal_radius is None or math.isfinite(episode.goal_radius)
        assert episode.scene_id.isprintable() and episode.episode_id.isprintable()
    return None


def packed(document) -> bytes:
    return gzip.compress(json.dumps(document).encode(), compresslevel=1)


def test_the_whole_file_is_read(split):
    assert refusal(split, packed(DOCUMENT)) is None
    assert len(read_episodes(split[0], "reference", "val")) == 3


def test_mutants_of_the_text_are_read_or_refused(split):
    text = json.dumps(DOCUMENT).encode()
    lines = [refusal(split, gzip.compress(mutant, 1)) for mutant in mutants(text, COUNT, seed=0)]
    assert 0 < lines.count(None) < len(lines) / 2


def test_mutants_of_the_packed_file_are_read_or_refused(split):
    lines = [refusal(split, mutant) for mutant in mutants(packed(DOCUMENT), COUNT, seed=1)]
    assert lines.count(None) < len(lines) / 4


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=COUNT)
@given(
    field=st.sampled_from([*ENTRY, "goals.0", "goals.0.position", "goals.0.radius", "info.geodesic_distance"]),
    value=ANYTHING,
)
def test_any_value_anywhere_is_read_or_refused(split, field, value):
    document = json.loads(json.dumps(DOCUMENT))
    place = document["episodes"][1]
    *way, last = field.split(".")
    for key in way:
        place = place[int(key) if key.isdigit() else key]
    place[int(last) if last.isdigit() else last] = value
    line = refusal(split, packed(document))
    expected = ("castle", "episode 1 has a fault in", "is missing; put it there", "has 2 episodes")
    assert line is None or any(words in line for words in expected)


@settings(deadline=None, max_examples=COUNT // 3)
@given(document=ANYTHING | st.fixed_dictionaries({"episodes": ANYTHING}))
def test_any_document_is_refused(split, document):
    assert refusal(split, packed(document))


@pytest.mark.parametrize("depth", [500, 100_000])
@pytest.mark.parametrize("where", ['{"episodes": %s}', '{"more": %s, "episodes": []}', "%s"])
def test_deep_nesting_is_refused(split, where, depth):
    assert refusal(split, gzip.compress((where % ("[" * depth + "]" * depth)).encode()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"episodes": [' + " " * (64 << 20) + "]}", "unpacks to more than 100 times its size"),
        ('{"more": "' + "x" * (64 << 20) + '", "episodes": []}', "unterminated string|unpacks to more"),
        ('{"episodes": [' + "[]," * (16 << 20) + "[]]}", "episode 0 has a fault in scene_id"),
        ('{"episodes": [[' + "[]," * (8 << 20) + "[]]]}", "damaged"),
        ('{"episodes": [' + "1" * (32 << 20) + "]}", "damaged"),
    ],
)
def test_bombs_are_refused_in_little_memory(split, text, message):
    """Some dozens of kilobytes that unpack to as many megabytes."""
    data, file = split
    file.write_bytes(gzip.compress(text.encode(), compresslevel=6))
    del text
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=f"(?i){message}"):
            read_episodes(data, "reference", "val")
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_what_was_cut_at_the_end_of_a_piece_is_read_whole(split):
    """Numbers, strings and entries lie across the pieces in which the file is read."""
    entries = [ENTRY | {"episode_id": i, "start_position": [i + 0.125, 1e-3 * i, -i]} for i in range(3000)]
    assert refusal(split, packed({"episodes": entries})) is None
    episodes = read_episodes(split[0], "reference", "val")
    assert [episode.start_position for episode in episodes] == [(i + 0.125, 1e-3 * i, -i) for i in range(3000)]


def test_scenes_of_a_split_fault_no_less(split):
    split[1].write_bytes(packed({"episodes": [ENTRY | {"scene_id": "two\nlines"}]}))
    with pytest.raises(UserError, match="scene_id"):
        skim_episodes(split[0], "reference", "val")

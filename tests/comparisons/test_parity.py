"""The embedded simulator against answers recorded from habitat-sim and habitat-lab; recordings that are broken."""

import gzip
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from navprune.comparisons.parity import REQUIRED, parity, shortfalls
from navprune.comparisons.recordings import find_answers, find_scene, read_navigation
from navprune.errors import UserError
from navprune.reports.tables import parity_table

REFERENCE = Path(__file__).parents[1] / "data/reference"
TOWER = Path(__file__).parents[1] / "data/tower"
SCENES = ["apartment", "duplex"]


@pytest.fixture(scope="module")
def answer():
    return parity(REFERENCE)


def test_every_figure_is_reached_in_every_scene(answer):
    assert list(answer["scenes"]) == SCENES
    assert shortfalls(answer) == []
    for figures in answer["scenes"].values():
        for way, bound in REQUIRED.items():
            figure = figures
            for key in way.split("."):
                figure = figure[key]
            assert figure >= bound["at_least"] if "at_least" in bound else figure <= bound["at_most"]
    json.dumps(answer, allow_nan=False)


def test_the_answer_has_the_form_that_others_read(answer):
    def shape(figures):
        return {key: shape(value) if isinstance(value, dict) else type(value) for key, value in figures.items()}

    share = float
    assert shape(answer["scenes"]["apartment"]) == {
        "depth": {"within_2mm": share, "within_1cm": share},
        "rgb": {"within_2": share},
        "geodesic": {"reachable_agree": share, "median": float, "p99": float, "max": float},
        "snap": share,
        "navigable": share,
        "island": share,
        "obstacle_distance": share,
        "step": {"sliding": share, "no_sliding": share},
        "rollouts": {
            "synchronised": {"position": share, "reward": share, "pointgoal": share, "distance_to_goal": share},
            "free": {"spl": share},
        },
    }


def test_the_table_sets_scenes_beside_what_is_required(answer):
    table = parity_table(answer)
    assert table.columns == ("agreement", *SCENES, "required")
    rows = {row[0]: row[1:] for row in table.rows}
    assert len(rows) == 18
    assert rows["depth, within 2mm"][-1] == "at least 99.90 %" and rows["geodesic, p99"][-1] == "at most 1.0e-03"
    assert rows["snap"][0] == "100.00 %" and rows["geodesic, max"][-1] == "–"
    assert rows["depth, within 2mm"][0] == "99.99 %", "nearly all is not all"


def test_of_many_scenes_the_table_tells_the_worst_and_the_mean(answer):
    duplex = answer["scenes"]["duplex"]
    worse = duplex | {"snap": 0.5, "geodesic": duplex["geodesic"] | {"max": 1.0}, "island": None}
    scenes = {f"home {i}": duplex for i in range(9)} | {"ruin": worse}
    table = parity_table(answer | {"scenes": scenes})
    assert table.columns == ("agreement", "worst", "scene", "mean", "required")
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["snap"] == ("50.00 %", "ruin", "95.00 %", "at least 99.00 %")
    assert rows["geodesic, max"][:3] == ("1.0e+00", "ruin", "1.0e-01")
    assert rows["island"][1] == "home 0"


# ------------------------------------------------------------------------------------------- other recordings


@pytest.fixture
def copy(tmp_path):
    """A recording of one scene under other names of scene and data set, two episodes and two views of it."""
    folder, names = tmp_path / "elsewhere", ("apartment", "flat 7")
    scene = folder / "scene_datasets/homes/deep"
    scene.mkdir(parents=True)
    for suffix in (".glb", ".navmesh"):
        shutil.copy(REFERENCE / f"scene_datasets/reference/{names[0]}{suffix}", scene / f"{names[1]}{suffix}")
    content = folder / "datasets/pointnav/homes/v2/test/content"
    content.mkdir(parents=True)
    with gzip.open(REFERENCE / f"datasets/pointnav/reference/v1/val/content/{names[0]}.json.gz", "rt") as file:
        episodes = json.load(file)
    for episode in episodes["episodes"]:
        episode["scene_id"] = f"homes/deep/{names[1]}.glb"
    write_json(content / f"{names[1]}.json.gz", episodes)
    write_json(content.parent / "test.json.gz", {"episodes": []})
    expected = folder / "expected"
    expected.mkdir()
    shutil.copy(REFERENCE / f"expected/{names[0]}_navigation.json", expected / f"{names[1]}_navigation.json")
    with gzip.open(REFERENCE / f"expected/{names[0]}_rollouts.json.gz", "rt") as file:
        write_json(expected / f"{names[1]}_rollouts.json.gz", json.load(file)[:2])
    with np.load(REFERENCE / f"expected/{names[0]}_images.npz") as images:
        np.savez(expected / f"{names[1]}_images.npz", **{key: images[key][:2] for key in images if images[key].ndim})
    return folder


def refusal(folder):
    """Why the one scene of a recording fails."""
    answer = parity(folder)
    ((scene, reason),) = (each.values() for each in answer["failed"])
    assert answer["scenes"] == {} and scene == "flat 7" and "\n" not in reason
    return reason


def write_json(path, document):
    data = json.dumps(document).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def edit(path, change):
    """Rewrites a file of JSON after a change to its document."""
    data = path.read_bytes()
    document = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    write_json(path, change(document) or document)


def test_any_folder_scene_and_data_set_will_do(copy):
    answer = parity(copy)
    assert list(answer["scenes"]) == ["flat 7"] and shortfalls(answer) == []
    assert answer["scenes"]["flat 7"]["rollouts"]["free"]["spl"] == 1


def test_scenes_of_hm3d_go_by_their_short_names(copy):
    scene = copy / "scene_datasets/homes/deep"
    for suffix in ("glb", "navmesh"):
        (scene / f"flat 7.{suffix}").rename(scene / f"flat 7.basis.{suffix}")

    def rename(document):
        for episode in document["episodes"]:
            episode["scene_id"] = "homes/deep/flat 7.basis.glb"

    edit(copy / "datasets/pointnav/homes/v2/test/content/flat 7.json.gz", rename)
    assert shortfalls(parity(copy)) == []


def test_scenes_may_have_dots_and_their_episodes_stand_in_the_splits_own_file(copy):
    scene, split = copy / "scene_datasets/homes/deep", copy / "datasets/pointnav/homes/v2/test"
    for path in (scene / "flat 7.glb", scene / "flat 7.navmesh", *(copy / "expected").iterdir()):
        path.rename(path.with_name(path.name.replace("flat 7", "my.room_01")))

    def rename(document):
        for episode in document["episodes"]:
            episode["scene_id"] = "homes/deep/my.room_01.glb"

    edit(split / "content/flat 7.json.gz", rename)
    (split / "content/flat 7.json.gz").rename(split / "test.json.gz")
    answer = parity(copy)
    assert list(answer["scenes"]) == ["my.room_01"] and shortfalls(answer) == []


def test_scenes_are_found_through_links(copy, tmp_path):
    (copy / "scene_datasets/homes").rename(tmp_path / "homes")
    (copy / "scene_datasets/homes").symlink_to(tmp_path / "homes")
    (tmp_path / "homes/round").symlink_to(copy / "scene_datasets")
    assert find_scene(copy, "flat 7") == copy / "scene_datasets/homes/deep/flat 7.glb"


def test_of_scenes_of_one_name_the_episodes_say_which(copy):
    shutil.copytree(copy / "scene_datasets/homes", copy / "scene_datasets/a copy")
    assert find_scene(copy, "flat 7") == copy / "scene_datasets/homes/deep/flat 7.glb"
    shutil.rmtree(copy / "datasets")
    with pytest.raises(UserError, match=r"a copy/deep/flat 7\.glb and .*homes/deep/flat 7\.glb are both called flat 7"):
        find_scene(copy, "flat 7")


def test_kinds_of_answers_that_were_not_recorded_are_left_out(copy):
    (copy / "expected/flat 7_images.npz").unlink()
    edit(copy / "expected/flat 7_navigation.json", lambda answers: {"snap": answers["snap"], "island": []})
    counts = []
    figures = parity(copy, ["flat 7"], lambda *count: counts.append(count))["scenes"]["flat 7"]
    assert list(figures) == ["snap", "navigable", "island", "obstacle_distance", "rollouts"]
    assert figures["island"] is None and figures["snap"] == 1
    assert counts == [(2, 2)]
    assert "–" in parity_table(parity(copy)).text()


def test_false_answers_are_seen(copy):
    """Each recorded value is bent a little; the share of its kind falls by what was bent."""

    def bend(answers):
        for question, key, by in [("snap", "snapped", 2e-3), ("step", "sliding", 2e-3), ("step", "no_sliding", 2e-3)]:
            for entry in answers[question][::2]:
                entry[key] = None if entry[key] is None else [entry[key][0] + by, *entry[key][1:]]
        for entry in answers["island"][::2]:
            entry["radius"] += 2e-3
            entry["obstacle_distance"] = None
        for entry in answers["geodesic"][::2]:
            entry["found"] = not entry["found"]
        for entry in answers["snap"][::2]:
            entry["navigable"] = not entry["navigable"]

    def bend_steps(rollouts):
        for rollout in rollouts:
            for step in rollout["steps"][1:]:
                step["reward"] += 0.002
                step["pointgoal_with_gps_compass"][1] += 2 * np.pi
            rollout["steps"][-1]["spl"] += 0.02

    edit(copy / "expected/flat 7_navigation.json", bend)
    edit(copy / "expected/flat 7_rollouts.json.gz", bend_steps)
    with np.load(copy / "expected/flat 7_images.npz") as images:
        arrays = dict(images)
    arrays["depth_m"][0] += 0.005
    arrays["rgb"][0, ..., 1] ^= 4
    np.savez(copy / "expected/flat 7_images.npz", **arrays)
    answer = parity(copy)
    figures = answer["scenes"]["flat 7"]
    assert figures["depth"]["within_2mm"] == pytest.approx(0.5, abs=0.01) and figures["depth"]["within_1cm"] > 0.99
    assert figures["rgb"]["within_2"] == pytest.approx(0.5, abs=0.01)
    for figure in (figures["navigable"], figures["island"], figures["geodesic"]["reachable_agree"]):
        assert figure == 0.5
    assert figures["obstacle_distance"] == 0.5 and 0.5 <= figures["snap"] < 0.6
    assert list(figures["step"].values()) == [0.5, 0.5]
    assert figures["rollouts"]["synchronised"] == {"position": 1, "reward": 0, "pointgoal": 1, "distance_to_goal": 1}
    assert figures["rollouts"]["free"]["spl"] == 0
    assert len(shortfalls(answer)) >= 10
    assert "flat 7: step.sliding is 0.5, and is to be at least 0.999" in shortfalls(answer)


def test_an_episode_without_a_way_agrees_in_nothing(copy):
    def astray(document):
        document["episodes"][0]["goals"][0]["position"] = [500.0, 0.0, 500.0]

    edit(copy / "datasets/pointnav/homes/v2/test/content/flat 7.json.gz", astray)
    figures = parity(copy)["scenes"]["flat 7"]["rollouts"]
    assert figures["free"]["spl"] == 0.5 and 0 < figures["synchronised"]["position"] < 1


# ------------------------------------------------------------------------------------------- settings


def test_a_tower_with_further_cameras_agrees_in_all():
    answer = parity(TOWER)
    assert shortfalls(answer) == [] and answer["failed"] == []
    (camera,) = answer["scenes"]["tower"]["cameras"].values()
    assert camera["depth"]["within_2mm"] > 0.999 and camera["rgb"]["within_2"] > 0.998
    assert answer["scenes"]["tower"]["rollouts"]["synchronised"]["position"] == 1
    row = next(row for row in parity_table(answer).rows if row[0] == "cameras, w160h120 79 088, depth, within 2mm")
    assert row[-1] == "at least 99.90 %"


def test_settings_say_that_agents_did_not_slide(tmp_path):
    folder = tmp_path / "tower"
    shutil.copytree(TOWER, folder)
    shutil.rmtree(folder / "extra")
    (folder / "expected/tower_navigation.json").unlink()
    shutil.move(folder / "no_sliding_rollouts.json.gz", folder / "expected/tower_rollouts.json.gz")
    assert parity(folder)["scenes"]["tower"]["rollouts"]["free"]["spl"] < 1
    write_json(folder / "settings.json", {"sliding": False})
    assert parity(folder)["scenes"]["tower"]["rollouts"] == {
        "synchronised": {"position": 1, "reward": 1, "pointgoal": 1, "distance_to_goal": 1},
        "free": {"spl": 1},
    }


def test_settings_say_how_images_were_taken(copy):
    """The recorded images are moved, clipped and cut, and the settings say by how much."""
    path, (side, ahead) = copy / "expected/flat 7_images.npz", (0.3, -0.1)
    with np.load(path) as images:
        arrays = {key: images[key] for key in images.files}
    _, y, _, w = arrays["rotation_xyzw"].T.astype(float)
    cos, sin = w * w - y * y, 2 * y * w
    shift = np.stack([cos * side + sin * ahead, 0 * y, cos * ahead - sin * side], axis=1)
    arrays["position"] = arrays["position"] - shift + np.array([0.0, 1.25 - 0.9, 0.0])
    arrays["depth_m"] = np.clip(arrays["depth_m"], 0.5, 3.0)
    np.savez(path, **arrays)
    assert parity(copy)["scenes"]["flat 7"]["depth"]["within_2mm"] < 0.5
    settings = {"camera_position": [side, 0.9, ahead], "min_depth": 0.5, "max_depth": 3.0, "hfov": 90}
    write_json(copy / "settings.json", settings)
    figures = parity(copy)["scenes"]["flat 7"]
    assert figures["depth"]["within_2mm"] > 0.999 and figures["rgb"]["within_2"] > 0.99
    write_json(copy / "settings.json", settings | {"hfov": 60})
    assert parity(copy)["scenes"]["flat 7"]["rgb"]["within_2"] < 0.9


def test_settings_say_whose_body_it_was(copy):
    write_json(copy / "settings.json", {"agent_radius": 0.3})
    assert parity(copy, ["flat 7"])["scenes"]["flat 7"]["obstacle_distance"] < 0.5


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"slide": True}, r"settings\.json: no setting is called slide; there are .*sliding"),
        ({"turn_angle": "wide"}, r"settings\.json: task\.turn_angle is wide"),
        ({"hfov": 500}, "hfov"),
        ({"min_depth": 3, "max_depth": 2}, "min_depth"),
        ({"sliding": "no"}, "sliding"),
        ({"camera_position": [1, 2]}, "settings.json holds no settings .*camera_position"),
        ({"camera_position": [0, 1e30, 0]}, "camera_position is no sensible one"),
        ([1], "settings.json holds no settings"),
    ],
)
def test_settings_that_cannot_be_are_refused(copy, told, reason):
    write_json(copy / "settings.json", told)
    with pytest.raises(UserError, match=reason) as error:
        parity(copy)
    assert "\n" not in str(error.value)


def test_the_others_are_compared_where_a_scene_fails(copy):
    shutil.copy(copy / f"expected/{NAVIGATION}", copy / "expected/flat 8_navigation.json")
    counts = []
    answer = parity(copy, progress=lambda *count: counts.append(count))
    assert list(answer["scenes"]) == ["flat 7"] and shortfalls(answer) == []
    assert [each["scene"] for each in answer["failed"]] == ["flat 8"]
    assert counts == [(3, 4), (4, 4)]
    json.dumps(answer, allow_nan=False)


# ------------------------------------------------------------------------------------------- broken recordings


def drop(key):
    def change(document):
        del (document[0] if isinstance(document, list) else document["snap"][0])[key]

    return change


def bad_action(rollouts):
    rollouts[0]["steps"][1]["action"] = 7


def short_row(answers):
    answers["geodesic"][3]["start"] = [1.0, 2.0]


NAVIGATION, ROLLOUTS = "flat 7_navigation.json", "flat 7_rollouts.json.gz"


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        (NAVIGATION, drop("point"), "'point' is missing"),
        (NAVIGATION, short_row, "damaged"),
        (NAVIGATION, lambda _: [1, 2], "none of geodesic"),
        (NAVIGATION, lambda _: {"snap": {"point": 1}}, "no list"),
        (ROLLOUTS, drop("steps"), "'steps' is missing"),
        (ROLLOUTS, bad_action, "action that is not 0 to 3"),
        (ROLLOUTS, lambda _: [{"episode_id": "0", "steps": []}], "without steps"),
        (ROLLOUTS, lambda found: [found[0] | {"episode_id": "none such"}], "episode none such"),
    ],
)
def test_what_is_wrong_with_a_recording_is_said_in_one_line(copy, file, change, reason):
    edit(copy / "expected" / file, change)
    assert re.search(reason, refusal(copy))


@pytest.mark.parametrize("file", [NAVIGATION, ROLLOUTS, "flat 7_images.npz"])
@pytest.mark.parametrize("damage", [b"", b"no recording", None])
def test_damaged_files_are_refused(copy, file, damage):
    path = copy / "expected" / file
    path.write_bytes(path.read_bytes()[:1000] if damage is None else damage)
    assert "damaged" in refusal(copy)


def test_images_of_disagreeing_shapes_are_refused(copy):
    path = copy / "expected/flat 7_images.npz"
    with np.load(path) as images:
        arrays = dict(images)
    for key, value in {"rgb": arrays["rgb"][:, :5], "position": arrays["position"][:1], "depth_m": 1.0}.items():
        np.savez(path, **arrays | {key: value})
        assert "damaged" in refusal(copy)
    np.savez(path, **arrays | {"position": np.full_like(arrays["position"], np.nan)})
    assert "not finite" in refusal(copy)


def test_cameras_and_places_that_cannot_be_are_refused(copy):
    path = copy / "expected/flat 7_images.npz"
    with np.load(path) as images:
        arrays = dict(images)
    bad = [{"hfov_deg": hfov} for hfov in (0.0, 180.0, np.nan)]
    bad += [{"rotation_xyzw": 0 * arrays["rotation_xyzw"]}, {"position": arrays["position"] + 1e30}]
    for change in [*bad, {"sensor_height": np.inf}]:
        np.savez(path, **arrays | change)
        assert re.search(r"no recording \((sensor_height|a rotation|a position) is", refusal(copy))
    np.savez(path, **arrays)

    def far(answers):
        answers["snap"][2]["point"][0] = 1e300

    edit(copy / "expected" / NAVIGATION, far)
    assert "point is no sensible number" in refusal(copy)


def test_what_is_missing_is_named(copy, tmp_path):
    with pytest.raises(UserError, match="no answers for scene loft; it has them for flat 7"):
        parity(copy, ["loft"])
    with pytest.raises(UserError, match="holds no recorded answers"):
        parity(tmp_path / "nowhere")
    shutil.rmtree(copy / "datasets")
    assert re.search(r"tells of episode \S+, which no episode file has", refusal(copy))
    (copy / "scene_datasets/homes/deep/flat 7.glb").unlink()
    assert "there is no flat 7.glb" in refusal(copy)


def test_missing_values_are_nan_and_agree_with_nan_and_infinity(copy):
    def forget(answers):
        answers["snap"][0] |= {"point": [900.0, 0.0, 0.0], "snapped": None, "navigable": False}
        answers["snap"][1] |= {"point": [900.0, 0.0, 0.0], "navigable": False}
        answers["island"][0] |= {"point": [900.0, 0.0, 0.0], "radius": 0.0, "obstacle_distance": None}
        answers["geodesic"][0] |= {"end": [900.0, 0.0, 0.0], "found": False, "distance": None}
        answers["island"][1] |= {"point": [900.0, 0.0, 0.0], "radius": 0.0, "obstacle_distance": np.inf}

    edit(copy / "expected/flat 7_navigation.json", forget)
    columns = read_navigation(find_answers(copy)["flat 7"]["navigation"])
    assert np.isnan(columns["snap"]["snapped"][0]).all() and np.isnan(columns["geodesic"]["distance"][0])
    figures = parity(copy)["scenes"]["flat 7"]
    assert figures["snap"] == 1 - 1 / 300
    assert figures["obstacle_distance"] == figures["island"] == figures["geodesic"]["reachable_agree"] == 1

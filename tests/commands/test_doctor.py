import gzip
import importlib.metadata
import json
import shlex
import sys

import layouts
import pytest
import torch

from navprune import installing
from navprune.cli import main
from navprune.commands import doctor
from navprune.commands.doctor import KNOWN, examine
from navprune.costs.runtimes import RUNTIMES


@pytest.fixture
def data(tmp_path):
    layouts.gibson(tmp_path)
    layouts.mp3d(tmp_path)
    layouts.hm3d(tmp_path)
    layouts.habitat_test_scenes(tmp_path)
    return tmp_path


def finding(data, name):
    found = {finding.name: finding for finding in examine(data)}
    assert all("\n" not in text for one in found.values() for text in (one.found, one.advice))
    return found[name]


def test_scenes_and_episodes_are_counted_against_what_there_should_be(data):
    val = finding(data, "gibson v1 val")
    assert not val.ok and "2 of 14 scenes" in val.found and "40 of 994 episodes" in val.found
    assert "pointnav_gibson_v1.zip" in val.advice
    assert "1 of 800 scenes" in finding(data, "hm3d v1 train").found
    assert "1 of 61 scenes" in finding(data, "mp3d v1 train").found


def test_a_split_in_one_file_is_in_order(data):
    val = finding(data, "habitat-test-scenes v1 val")
    assert val.ok and val.found == "1 scene; 20 episodes, all in val.json.gz; 20 tried on their navmeshes"


def test_missing_scenes_are_named_with_the_licence(data):
    path = data / "scene_datasets" / "mp3d" / "2azQ1b91cZZ" / "2azQ1b91cZZ.glb"
    path.unlink()
    val = finding(data, "mp3d v1 val")
    assert not val.ok and f"1 scene missing: {path}" in val.found and "Terms of Use" in val.advice
    assert "Terms of Use" not in finding(data, "mp3d v1 train").advice


def test_missing_navmeshes_are_to_be_built(data):
    scene = data / "scene_datasets" / "habitat-test-scenes" / "apartment_1.glb"
    scene.with_suffix(".navmesh").unlink()
    val = finding(data, "habitat-test-scenes v1 val")
    assert not val.ok and "1 navmesh file missing" in val.found and f"`navprune scenes navmesh {scene}`" in val.advice


def test_an_empty_index_without_content_and_a_broken_file_are_told(data):
    layouts.put_episodes(data, "gibson/v1", "train", [], {})
    train = finding(data, "gibson v1 train")
    assert not train.ok and "no content/" in train.found and "pointnav_gibson_v1.zip" in train.advice
    content = data / "datasets" / "pointnav" / "gibson" / "v1" / "val" / "content" / "Eastville.json.gz"
    content.write_bytes(content.read_bytes()[:300])
    val = finding(data, "gibson v1 val")
    assert "damaged" in val.found and "pointnav_gibson_v1.zip" in val.advice


def test_a_missing_index_is_in_the_archive(data):
    (data / "datasets" / "pointnav" / "mp3d" / "v1" / "val" / "val.json.gz").unlink()
    val = finding(data, "mp3d v1 val")
    assert not val.ok and "no split 'val'" in val.found and val.advice == f"unpack {KNOWN['mp3d'].episodes}"


def test_scenes_without_episodes_are_told(tmp_path):
    layouts.put_scene(tmp_path, "apartment", "gibson/Adrian.glb")
    gibson = finding(tmp_path, "gibson")
    assert not gibson.ok and "no episodes" in gibson.found and KNOWN["gibson"].episodes in gibson.advice


def test_basis_textures_are_named(data):
    scene = data / "scene_datasets" / "hm3d" / "val" / "00800-TEEsavR23oF" / "TEEsavR23oF.basis.glb"
    assert "Basis" not in finding(data, "hm3d v1 val").found
    scene.unlink()
    text = b'{"extensionsUsed":["GOOGLE_texture_basis"]}'
    header = b"glTF" + (2).to_bytes(4, "little") + (20 + len(text)).to_bytes(4, "little")
    scene.write_bytes(header + len(text).to_bytes(4, "little") + b"JSON" + text)
    assert "depth works" in finding(data, "hm3d v1 val").found


HOME = "gibson v1 val: data/scene_datasets/gibson/Eastville.glb"


def damage(path, change):
    """Replaces a link by a changed copy."""
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(change(whole))


@pytest.mark.parametrize("suffix", [".glb", ".navmesh"])
@pytest.mark.parametrize("change", [lambda whole: whole[:-1], lambda whole: whole[:50], lambda whole: b"<html>" * 99])
def test_each_scene_that_is_cut_off_or_something_else_is_a_line(data, suffix, change):
    damage(data / "scene_datasets" / "gibson" / f"Eastville{suffix}", change)
    broken = finding(data, HOME)
    assert not broken.ok and f"Eastville{suffix}" in broken.found and broken.advice
    val = finding(data, "gibson v1 val")
    assert not val.ok and "20 tried" in val.found


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"goals": [{"position": [1e3, 0.0, 1e3]}]}, "its goal cannot be reached"),
        ({"start_position": [1e3, 0.0, 1e3]}, "its start is off the navmesh"),
        ({"goals": [{"position": [0.0, 50.0, 0.0]}]}, "its goal cannot be reached"),
    ],
)
def test_episodes_that_cannot_be_run_are_told_with_their_scene(data, change, fault):
    entries = layouts.entries("duplex", "data/scene_datasets/gibson/Eastville.glb")
    entries[7] |= change
    content = data / "datasets" / "pointnav" / "gibson" / "v1" / "val" / "content" / "Eastville.json.gz"
    content.write_bytes(gzip.compress(json.dumps({"episodes": entries}).encode()))
    broken = finding(data, HOME)
    assert not broken.ok and broken.found == f"1 of 20 episodes cannot be run: in 7 {fault}"
    assert not finding(data, "gibson v1 val").ok and "40 tried" in finding(data, "gibson v1 val").found


def test_each_fault_is_a_line_of_the_command(data, capsys):
    damage(data / "scene_datasets" / "gibson" / "Eastville.glb", lambda whole: whole[:-1])
    damage(data / "scene_datasets" / "gibson" / "Cantwell.navmesh", lambda whole: whole[:-1])
    assert main(["doctor", "--data", str(data)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("--  gibson v1 val")]
    assert len(lines) == 3 and "Cantwell.navmesh" in lines[1] and "Eastville.glb" in lines[2]


def put_entries(data, change):
    """Replaces the episodes of a split by changed ones."""
    entries = layouts.entries("apartment", "habitat-test-scenes/apartment_1.glb")
    for entry in entries:
        change(entry)
    file = data / "datasets" / "pointnav" / "habitat-test-scenes" / "v1" / "val" / "val.json.gz"
    file.write_bytes(gzip.compress(json.dumps({"episodes": entries}).encode()))


def stretched(factor):
    def change(entry):
        entry["info"] = {"geodesic_distance": entry["info"]["geodesic_distance"] * factor}

    return change


@pytest.mark.parametrize(("factor", "share"), [(0.1, "900%"), (0.0, "%"), (2.0, "50%"), (10.0, "90%")])
def test_distances_that_no_body_explains_are_wrong(data, capsys, factor, share):
    put_entries(data, stretched(factor))
    assert main(["doctor", "--data", str(data)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "habitat-test-scenes v1 val" in line]
    assert all(line.startswith("--") for line in lines) and "belong together" in lines[1]
    assert "val: distances" in lines[1] and share in lines[1]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (stretched(-1.0), "episode 0 has a fault in info.geodesic_distance"),
        (lambda entry: entry.update(episode_id="3"), "20 episodes 3 in scene habitat-test-scenes/apartment_1.glb"),
    ],
)
def test_negative_distances_and_doubled_ids_are_told(data, change, fault):
    put_entries(data, change)
    val = finding(data, "habitat-test-scenes v1 val")
    assert not val.ok and fault in val.found and val.advice


def test_commands_in_advice_can_be_pasted(tmp_path):
    data = tmp_path / "my data"
    layouts.habitat_test_scenes(data)
    scene = data / "scene_datasets" / "habitat-test-scenes" / "apartment_1.glb"
    scene.with_suffix(".navmesh").unlink()
    _, command, _ = finding(data, "habitat-test-scenes v1 val").advice.split("`")
    assert shlex.split(command) == ["navprune", "scenes", "navmesh", str(scene)]
    _, command, _ = finding(tmp_path / "no data", f"data sets in {tmp_path / 'no data'}").advice.split("`")
    assert shlex.split(command)[-2:] == ["--out", str(tmp_path / "no data")]


def test_distances_of_another_body_are_noted(data):
    put_entries(data, stretched(1.03))
    val = finding(data, "habitat-test-scenes v1 val")
    assert val.ok and "differ by 2.9%: made for another body" in val.found
    assert "another body" not in finding(data, "gibson v1 val").found


def test_of_large_splits_some_episodes_are_tried(data, monkeypatch):
    monkeypatch.setattr(doctor, "COUNTED", 100)
    monkeypatch.setattr(doctor, "TRIED", 5)
    assert "10 tried" in finding(data, "gibson v1 val").found and "episodes" not in finding(data, "gibson v1 val").found


@pytest.mark.parametrize(("package", "module"), [("habitat-sim", "habitat_sim"), ("habitat-lab", "habitat")])
@pytest.mark.parametrize(("text", "said"), [('__version__ = "9.8.7"\n', "9.8.7"), ("", "installed")])
def test_a_package_without_metadata_is_found_by_its_module(tmp_path, monkeypatch, package, module, text, said):
    def none(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", none)
    assert doctor._version(f"{package}-that-nobody-has") is None
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, module, raising=False)
    assert doctor._version(package).startswith(said)


def test_each_runtime_is_a_line_found_or_missing_with_how_to_get_it(tmp_path, monkeypatch):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    here = {f"runtime: {name}": not runtime.missing(device) for name, runtime in RUNTIMES.items()}
    assert here.items() <= {one.name: one.ok for one in examine(tmp_path)}.items()
    assert finding(tmp_path, "runtime: eager").found.startswith("torch ")
    monkeypatch.setitem(sys.modules, "openvino", None)
    missing = finding(tmp_path, "runtime: openvino")
    assert missing[1:] == (False, "not available", f"openvino is not installed: {installing.DEPLOY}")


def test_nothing_found_says_how_to_make_some(tmp_path):
    nothing = finding(tmp_path, f"data sets in {tmp_path}")
    assert not nothing.ok and "navprune scenes generate" in nothing.advice


def test_what_habitat_needs_is_told_where_it_is_absent(tmp_path):
    found = {one.name: one for one in examine(tmp_path)}
    assert {"env=habitat", "habitat-lab", "habitat-sim", "gym"} <= found.keys()
    advice = {"env=habitat": installing.HABITAT_LAB, "simulator=habitat_sim": installing.HABITAT_SIM}
    advice |= dict.fromkeys(("habitat-lab", "habitat-sim", "gym"), "only env=habitat needs it")
    for one in found.values():
        if one.found in ("not available", "not installed") and not one.name.startswith("runtime: "):
            assert not one.ok and one.advice == advice[one.name]

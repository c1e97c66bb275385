import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from glb import GlbFile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import navprune
from navprune.cli import main
from navprune.commands.doctor import examine
from navprune.errors import UserError
from navprune.files import lock
from navprune.progress import say_once
from navprune.simulator import cache
from navprune.simulator.cache import ALIGNMENT, ENTRY, FOLDER, LIMIT, PART, SceneCache, scene_cache

SCENE = Path("scene.glb")
NUMBERS: dict[str, np.ndarray] = {"numbers": np.arange(1000), "none": np.zeros((0, 3), np.float32)}


@pytest.fixture
def kept(tmp_path):
    say_once.cache_clear()
    return SceneCache(tmp_path / "cache", 1 << 20)


def files(kept):
    return sorted(path.name for path in kept.folder.glob("*"))


def put(kept, name="a", size=1000):
    """An entry of so many bytes and a little more."""
    return kept.get(SCENE, name * 64, "shape", lambda: {"bytes": np.full(size, ord(name), np.uint8)})


def fail():
    raise AssertionError("it is kept already")


def same(found, expected):
    """Whether all arrays are the same to the last bit, and nobody can write to them."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == np.ascontiguousarray(array).tobytes()
        assert not found[name].flags.writeable and found[name].flags.c_contiguous and found[name].flags.aligned
    return True


ARRAYS = hnp.arrays(
    st.sampled_from([np.uint8, np.int32, np.float32, np.float64, np.bool_]), hnp.array_shapes(min_dims=0, min_side=0)
)


@settings(deadline=None, max_examples=30)
@given(arrays=st.dictionaries(st.sampled_from(["tree", "corners", "x" * 100, "é"]), ARRAYS))
def test_what_is_kept_is_what_was_built(tmp_path_factory, arrays):
    kept = SceneCache(tmp_path_factory.mktemp("a"), 1 << 20)
    arrays = {name: np.atleast_1d(array) for name, array in arrays.items()}
    assert same(kept.get(SCENE, "a" * 64, "shape", lambda: arrays), arrays)
    found = kept.get(SCENE, "a" * 64, "shape", fail)
    assert same(found, arrays)
    assert all(array.base is not None and array.ctypes.data % ALIGNMENT == 0 for array in found.values() if array.size)


def test_contents_code_and_part_tell_entries_apart(kept, monkeypatch):
    for number, (digest, builder, part) in enumerate(
        [("a", "1", "shape"), ("b", "1", "shape"), ("a", "2", "shape"), ("a", "1", "surface")]
    ):
        monkeypatch.setattr(cache, "builder", lambda builder=builder: builder * 64)
        expected = {"number": np.array([number])}
        assert same(kept.get(SCENE, digest * 64, part, lambda expected=expected: expected), expected)
        assert same(kept.get(SCENE, digest * 64, part, fail), expected)
    assert len(kept.entries()) == 4


def spoilt(kept, spoil):
    """Spoil the only entry and hold that it is built anew, once."""
    (entry,) = kept.entries()
    spoil(entry.path)
    for build in (lambda: NUMBERS, fail):
        assert same(kept.get(SCENE, "a" * 64, "shape", build), NUMBERS)
    assert files(kept) == [entry.path.name]


@pytest.mark.parametrize("length", [0, 5, 30, 60, 300, -1])
def test_an_entry_that_is_cut_off_is_built_anew(kept, length):
    kept.get(SCENE, "a" * 64, "shape", lambda: NUMBERS)
    spoilt(kept, lambda path: path.write_bytes(path.read_bytes()[:length]))


def test_an_entry_with_any_bit_of_its_header_flipped_is_built_anew(kept):
    kept.get(SCENE, "a" * 64, "shape", lambda: NUMBERS)
    (entry,) = kept.entries()
    whole = entry.path.read_bytes()
    head = whole.index(b"}") + 1
    for place in range(head):
        entry.path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        assert cache._opened(entry.path) == (None, {})
    spoilt(kept, lambda path: None)


def test_an_entry_under_anothers_name_is_built_anew(kept, monkeypatch):
    """Of another scene, of another version of the code, of another part."""
    kept.get(SCENE, "a" * 64, "shape", lambda: NUMBERS)
    (own,) = kept.entries()
    other = SceneCache(kept.folder.with_name("other"), kept.limit)
    other.get(SCENE, "b" * 64, "shape", lambda: {"numbers": np.zeros(3)})
    other.get(SCENE, "a" * 64, "surface", lambda: {"numbers": np.zeros(3)})
    monkeypatch.setattr(cache, "builder", lambda: "0" * 64)
    other.get(SCENE, "a" * 64, "shape", lambda: {"numbers": np.zeros(3)})
    monkeypatch.undo()
    for entry in other.entries():
        spoilt(kept, lambda path, entry=entry: shutil.copy(entry.path, path))
    assert len(other.entries()) == 3 and own.path.exists()


def test_the_code_and_its_libraries_make_the_version(monkeypatch):
    versions = {cache.builder(), cache.builder.__wrapped__()}
    monkeypatch.setattr(cache.importlib.metadata, "version", lambda name: "0.0.0")
    versions.add(cache.builder.__wrapped__())
    monkeypatch.undo()
    read = Path.read_bytes
    for changed in ("mesh.py", "tree.py", "bvh.py", "cache.py", "kernels.py", "pathfinder.py"):
        monkeypatch.setattr(Path, "read_bytes", lambda path, name=changed: read(path) + b"#" * (path.name == name))
        versions.add(cache.builder.__wrapped__())
    assert len(versions) == 7  # paths are none of its business


def imported(module):
    """The files of the package that a fresh process reads to import a module."""
    script = f"import sys, {module}; print(*(m.__file__ for m in sys.modules.values() if 'navprune' in m.__name__))"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {Path(path) for path in answer.stdout.split() if Path(path).name != "__init__.py"}


def test_the_version_covers_all_that_loading_imports():
    loading = imported("navprune.simulator.asset") - imported("navprune")
    assert loading and loading <= cache._sources("navprune.simulator.asset")


def test_imports_are_found_as_python_finds_them(tmp_path, monkeypatch):
    text = """
from navprune.a import (
    one,
    two as other,
)
import navprune.b.c
def f():
    from navprune import d, e as g
# from navprune.h import i
"""
    folder = tmp_path / "navprune"
    names = ["a", "a/one", "a/two", "b/c", "d", "e", "h", "unused"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text("")
    (folder / "__init__.py").write_text("")
    (folder / "start.py").write_text(text)
    monkeypatch.setattr(navprune, "__file__", str(folder / "__init__.py"))
    found = {str(path.relative_to(folder).with_suffix("")) for path in cache._sources("navprune.start")}
    assert found == {"start", "__init__", "a", "a/one", "a/two", "b/c", "d", "e"}


def test_the_version_knows_the_decoders():
    project = tomllib.loads((Path(navprune.__file__).parents[1] / "pyproject.toml").read_text())["project"]
    decoders = project["optional-dependencies"].get("compressed", [])
    names = {re.split(r"[^\w-]", decoder)[0].lower() for decoder in decoders}
    assert names <= {library.lower() for library in cache.LIBRARIES}


def refused(kept, capsys, reason):
    """Hold that nothing can be kept: what is built stands in memory, one line says why, nothing is left behind."""
    before = files(kept)
    for _ in range(2):
        assert same(kept.get(SCENE, "n" * 64, "shape", lambda: NUMBERS), NUMBERS)
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line and FOLDER in line and str(kept.folder) in line
    assert files(kept) == before


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_costs_nothing_but_memory(kept, monkeypatch, capsys, call):
    put(kept)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache.os, call, full)
    refused(kept, capsys, "No space left")


def test_the_disk_is_never_filled_to_the_brim(kept, monkeypatch, capsys):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9, 9, cache.SPARE + 5000))
    put(kept)
    assert len(kept.entries()) == 1
    refused(kept, capsys, "no room")


def test_a_folder_that_cannot_be_written_costs_nothing_but_memory(tmp_path, capsys):
    say_once.cache_clear()
    (tmp_path / "file").touch()
    refused(SceneCache(tmp_path / "file" / "cache", 1 << 20), capsys, "directory")


def test_a_drive_without_locks_costs_nothing_but_memory(kept, monkeypatch, capsys):
    kept.folder.mkdir()
    monkeypatch.setattr(cache, "lock", lambda file: None)
    kept.get(SCENE, "n" * 64, "shape", lambda: NUMBERS)
    assert "no locks" in capsys.readouterr().err and kept.entries() == []


def test_a_builder_that_hangs_is_not_waited_for_for_ever(kept, monkeypatch, capsys):
    put(kept)
    (part,) = (entry.path.with_suffix(PART) for entry in kept.entries())
    part = part.with_name(part.name.replace("a" * 24, "n" * 24))
    monkeypatch.setattr(cache, "PATIENCE", 0.05)
    with part.open("wb") as file:
        assert lock(file)
        refused(kept, capsys, "another process")
        kept.empty()
        assert files(kept) == [part.name]  # which is being written
    put(kept, "b")
    assert PART not in "".join(files(kept))  # its builder is gone


def test_what_fails_to_build_leaves_nothing(kept):
    def broken():
        raise UserError("this image is damaged")

    for _ in range(2):
        with pytest.raises(UserError, match="image is damaged"):
            kept.get(SCENE, "a" * 64, "surface", broken)
    assert files(kept) == []


def held(kept):
    """The names that `put` gave, the one used longest ago first."""
    return "".join(entry.path.name[0] for entry in kept.entries())


def test_what_was_used_longest_ago_makes_room(tmp_path):
    kept = SceneCache(tmp_path, 5000)
    for age, name in enumerate("abc"):
        put(kept, name)
        os.utime(kept.entries()[-1].path, (age, age))
    put(kept, "a")  # used again
    assert held(kept) == "bca"
    mapped = put(kept, "b")
    put(kept, "d")
    assert set(held(kept)) == set("abd")
    put(kept, "e", 4500)
    assert held(kept) == "e"
    assert (mapped["bytes"] == ord("b")).all()  # whoever has it keeps it
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 5000


def test_what_exceeds_the_limit_drives_nothing_out(tmp_path, capsys):
    say_once.cache_clear()
    kept = SceneCache(tmp_path, 4000)
    put(kept, "a")
    put(kept, "b", 9000)
    assert held(kept) == "a" and LIMIT in capsys.readouterr().err


# ---- which contents


def scene(path, size=1.0, **image):
    """A square of this size, with an image where one is said."""
    file = GlbFile()
    if image:
        file.add("images", image)
    file.quad(scale=[size, size, size])
    return file.write(path)


@pytest.fixture
def settled(monkeypatch):
    """Files get a note however new they are."""
    monkeypatch.setattr(cache, "SETTLED", -(10**18))


def test_an_unchanged_file_is_not_read_again(kept, tmp_path, monkeypatch, settled):
    path = scene(tmp_path / "a.glb")
    digest = kept.digest(path)
    monkeypatch.setattr(cache, "_digest", fail)
    assert kept.digest(path) == digest


def test_a_new_file_is_read_again(kept, tmp_path):
    kept.digest(scene(tmp_path / "a.glb"))
    assert files(kept) == []


def test_a_changed_file_of_the_same_size_and_time_is_noticed(kept, tmp_path, settled):
    path = scene(tmp_path / "a.glb", 1.0)
    digest, seen = kept.digest(path), path.stat()
    path.write_bytes(path.read_bytes().replace(b"1.0", b"2.0"))
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (seen.st_size, seen.st_mtime_ns)
    assert kept.digest(path) != digest


def test_contents_count_and_not_name_or_time(kept, tmp_path, settled):
    path = scene(tmp_path / "a.glb")
    digest = kept.digest(path)
    os.utime(path, (1, 1))
    assert kept.digest(path) == digest == kept.digest(shutil.copy(path, tmp_path / "b.glb"))


@pytest.mark.parametrize("settle", [False, True])
def test_files_beside_the_scene_count(kept, tmp_path, monkeypatch, settle):
    monkeypatch.setattr(cache, "SETTLED", -(10**18) if settle else 10**18)
    path, image = scene(tmp_path / "a.glb", uri="wall%201.png"), tmp_path / "wall 1.png"
    digests = [kept.digest(path)]
    for contents in (b"one", b"two"):
        image.write_bytes(contents)
        digests.append(kept.digest(path))
    image.unlink()
    assert kept.digest(path) == digests[0] and len(set(digests)) == 3


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"files": {}, "digest": 1}', '{"files": {"x": 1}}', "\x00"])
def test_a_damaged_note_is_as_good_as_none(kept, tmp_path, settled, text):
    path = scene(tmp_path / "a.glb")
    digest = kept.digest(path)
    (note,) = kept.folder.glob("*.json")
    note.write_text(text)
    assert kept.digest(path) == digest
    assert json.loads(note.read_text())["digest"] == digest


# ---- what users say and see


def test_the_environment_says_where_and_how_large(monkeypatch, tmp_path):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert scene_cache() == SceneCache(tmp_path, 20 << 30)
    monkeypatch.setenv(LIMIT, "0.5")
    assert scene_cache().limit == 1 << 29
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    monkeypatch.delenv(FOLDER)
    assert scene_cache().folder == tmp_path / "x" / "navprune" / "scenes"
    monkeypatch.setenv("XDG_CACHE_HOME", "~")
    monkeypatch.delenv(LIMIT)
    assert scene_cache().limit == 0  # without a home nothing is kept


@pytest.mark.parametrize("size", ["much", "-1", "nan", "inf"])
def test_a_limit_that_is_none_is_told(monkeypatch, size):
    monkeypatch.setenv(LIMIT, size)
    with pytest.raises(UserError, match=f"{LIMIT} is {size}; it must be"):
        scene_cache()
    (found,) = (one for one in examine(Path("nowhere")) if one.name == "scene cache")
    assert not found.ok and LIMIT in found.found and "0 for no cache" in found.advice


def test_a_limit_of_nothing_keeps_nothing(tmp_path, capsys):
    kept = SceneCache(tmp_path / "cache", 0)
    assert same(kept.get(SCENE, "a" * 64, "shape", lambda: NUMBERS), NUMBERS)
    kept.digest(scene(tmp_path / "a.glb"))
    assert not kept.folder.exists() and capsys.readouterr().err == ""


def test_the_command_shows_and_empties_it_and_doctor_knows_it(kept, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(FOLDER, str(kept.folder))
    monkeypatch.setenv(LIMIT, "3")
    put(kept)
    monkeypatch.setattr(cache, "SETTLED", -(10**18))
    kept.digest(scene(tmp_path / "a.glb"))
    (found,) = (one for one in examine(tmp_path) if one.name == "scene cache")
    assert found.ok and found.found == f"0.0 of 3 GiB in {kept.folder}"
    assert main(["scenes", "cache", "--json", str(tmp_path / "answer.json")]) == 0
    shown = capsys.readouterr().out
    assert "scene.glb" in shown and "shape" in shown and f"of 3 GiB in {kept.folder}" in shown
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["limit"] == 3 << 30 and [entry["part"] for entry in answer["entries"]] == ["shape"]
    assert main(["scenes", "cache", "--empty"]) == 0
    assert files(kept) == [] and "taken away" in capsys.readouterr().out
    assert main(["scenes", "cache"]) == 0


def test_other_files_in_its_folder_are_left_alone(kept):
    put(kept)
    others = {"mine.json", "film.mkv.part", "my.scene"}
    for name in others:
        (kept.folder / name).write_bytes(b"mine")
    put(kept, "b")  # which looks for what was left unfinished
    kept.empty()
    assert set(files(kept)) == others


def test_damaged_entries_are_listed_and_emptied_too(kept):
    put(kept)
    (kept.folder / f"x{ENTRY}").write_bytes(b"nonsense")
    assert {(entry.part, entry.bytes > 8) for entry in kept.entries()} == {("shape", True), ("", False)}
    kept.empty()
    assert files(kept) == []

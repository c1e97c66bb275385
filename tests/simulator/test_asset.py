import ctypes
import gc
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from glb import QUAD, QUAD_FACES, QUAD_UV, GlbFile

from navprune.errors import UserError
from navprune.progress import say_once
from navprune.scenes.files import images
from navprune.scenes.files.mesh import load_glb
from navprune.simulator import asset, cache
from navprune.simulator.asset import RenderAsset, load_asset

LINES = "from pathlib import Path\nimport os, sys, time\nfrom navprune.simulator import asset\n"
LOAD = """
load = asset.load_glb
def slow(path, masks):
    Path(sys.argv[2]).write_text("")
    while not all(Path(other).exists() for other in sys.argv[3].split()):
        time.sleep(0.01)
    time.sleep(0.3)
    print("built")
    return load(path, masks)
asset.load_glb = slow
print(asset.load_asset(Path(sys.argv[1])).tree[0].sum())
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A cache for each test."""
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "cache"))
    return tmp_path / "cache"


def scene(path, seed=0):
    """Squares here and there, some with a texture and holes."""
    file, rng = GlbFile(), np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (8, 8, 4))
    material = file.material(file.texture(pixels), alphaMode="MASK")
    colours = rng.uniform(0, 1, (4, 3)).astype(np.float32)
    primitives = [
        file.primitive(QUAD, QUAD_FACES, material, TEXCOORD_0=QUAD_UV),
        file.primitive(QUAD, QUAD_FACES, COLOR_0=colours),
    ]
    mesh = file.mesh(*primitives)
    for place in rng.uniform(-9, 9, (30, 3)):
        file.place(mesh, translation=place.tolist())
    return file.write(path)


def parts(folder):
    return sorted(entry.part for entry in cache.SceneCache(folder, 1).entries())


def arrays_of(loaded):
    """All arrays of a scene, by name."""
    records = {"tree": loaded.tree, "surface": loaded.surface, "cutout": loaded.cutout}
    named = {f"{name}.{field}": value for name, one in records.items() if one for field, value in one._asdict().items()}
    return {name: value for name, value in named.items() if isinstance(value, np.ndarray)}


def fail(*_):
    raise AssertionError("it is kept already")


@pytest.mark.parametrize("alpha_masks", [False, True])
def test_a_kept_scene_is_the_built_one_bit_for_bit(tmp_path, monkeypatch, alpha_masks):
    path = scene(tmp_path / "a.glb")
    built = arrays_of(RenderAsset(load_glb(path, alpha_masks)))
    first = arrays_of(load_asset(path, alpha_masks))
    monkeypatch.setattr(asset, "load_glb", fail)
    again = load_asset(path, alpha_masks)
    for loaded in (first, arrays_of(again)):
        assert loaded.keys() == built.keys() and any("cutout" in name for name in built) == alpha_masks
        for name, array in built.items():
            assert loaded[name].dtype == array.dtype
            np.testing.assert_array_equal(loaded[name], array)
    assert again.triangles == 120


def test_arrays_are_mapped_and_nobody_can_write_to_them(tmp_path):
    path = scene(tmp_path / "a.glb")
    for mapped, loaded in ((False, RenderAsset(load_glb(path, True))), (True, load_asset(path, True))):
        for array in arrays_of(loaded).values():
            root = array
            while getattr(root, "base", None) is not None:
                root = root.base
            root = root.obj if isinstance(root, memoryview) else root
            assert array.flags.c_contiguous and isinstance(root, ctypes.Array) == mapped
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_what_is_mapped_holds_no_open_file_and_goes_with_its_arrays(tmp_path, folder):
    def mapped():
        return Path("/proc/self/maps").read_text().count(str(folder))

    path, files = scene(tmp_path / "a.glb"), len(list(Path("/proc/self/fd").iterdir()))
    loaded = [load_asset(path) for _ in range(20)]
    assert mapped() == 20 and len(list(Path("/proc/self/fd").iterdir())) == files
    order = loaded[0].tree[0]
    del loaded
    gc.collect()
    assert mapped() == 1 and order.size > 0
    del order
    gc.collect()
    assert mapped() == 0


def test_depth_alone_makes_no_colours(tmp_path, folder, monkeypatch):
    def broken(*_):
        raise UserError("nothing decodes them")

    monkeypatch.setattr(asset, "texture_levels", broken)
    loaded = load_asset(scene(tmp_path / "a.glb"))
    assert loaded.cutout is None and parts(folder) == ["shape"]
    for _ in range(2):
        with pytest.raises(UserError, match="nothing decodes them"):
            _ = loaded.surface
    monkeypatch.undo()  # what failed was not kept
    assert len(loaded.surface.texels) > 1


def test_what_is_wrong_with_an_image_is_told_by_every_process(tmp_path, monkeypatch, capsys):
    file = GlbFile()
    file.quad(file.material(file.add("textures", {"source": file.add("images", {"uri": "no.png"})})))
    path = file.write(tmp_path / "a.glb")
    for _ in range(2):  # the second one finds the colours kept
        say_once.cache_clear()
        assert (load_asset(path).surface.texels[1:] == 255).all()
        assert "no.png is missing" in capsys.readouterr().err
        monkeypatch.setattr(asset, "load_glb", fail)


def test_a_disk_that_fails_is_no_white_image(tmp_path, folder, monkeypatch):
    def broken(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(cache, "SETTLED", -(10**18))  # the scene is known without reading it
    loaded = load_asset(scene(tmp_path / "a.glb"))
    mesh = load_glb(tmp_path / "a.glb")
    monkeypatch.setattr(loaded, "_load", lambda: mesh)
    monkeypatch.setattr(images.Place, "read", broken)
    with pytest.raises(UserError, match=r"a\.glb: cannot read texture 0 .*Input/output error.*check the disk"):
        _ = loaded.surface
    assert parts(folder) == ["shape"]


def test_memory_counts_what_was_made(tmp_path):
    loaded = load_asset(scene(tmp_path / "a.glb"), alpha_masks=True)
    before = loaded.nbytes
    assert before >= sum(array.nbytes for array in loaded.tree)
    assert loaded.cutout is not None
    assert loaded.nbytes == before + sum(array.nbytes for array in (*loaded.surface, *loaded.cutout[:2]))


def test_with_and_without_holes_share_shape_and_colours(tmp_path, folder):
    path = scene(tmp_path / "a.glb")
    whole, masked = load_asset(path, False), load_asset(path, True)
    assert whole.cutout is None and masked.cutout is not None
    assert parts(folder) == ["masks", "shape", "surface"]
    np.testing.assert_array_equal(whole.surface.texels, masked.surface.texels)


def test_a_changed_file_is_built_anew(tmp_path, folder):
    path = scene(tmp_path / "a.glb", 0)
    old = load_asset(path)
    expected = RenderAsset(load_glb(scene(path, 1))).tree
    new = load_asset(path)
    np.testing.assert_array_equal(new.tree[0], expected[0])
    assert not np.array_equal(old.tree[0], new.tree[0]) and parts(folder) == ["shape"] * 2


def test_colours_of_a_file_that_changed_are_refused_and_not_mixed(tmp_path, folder):
    path = scene(tmp_path / "a.glb", 0)
    old = load_asset(path)
    scene(path, 1)
    with pytest.raises(UserError, match=r"a\.glb has changed since it was first read; run again"):
        _ = old.surface
    assert parts(folder) == ["shape"]
    scene(path, 0)
    assert len(old.surface.texels)


def start(script, *arguments):
    """A process that runs these lines."""
    command = [sys.executable, "-c", LINES + script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_of_several_processes_one_builds_and_the_others_wait(tmp_path, folder):
    path = scene(tmp_path / "a.glb")
    # The builder goes on only when the others have begun, too.
    begun = [tmp_path / f"begun{index}" for index in range(3)]
    script = "Path(sys.argv[2]).write_text('')\n" + LOAD
    processes = [start(script, path, mine, " ".join(map(str, begun))) for mine in begun]
    answers = [process.communicate(timeout=120)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sum("built" in answer for answer in answers) == 1
    assert len({answer[-1] for answer in answers}) == 1
    assert parts(folder) == ["shape"] and not list(folder.glob("*.navscene.part"))


def test_a_builder_that_was_killed_is_in_nobodys_way(tmp_path, folder):
    path = scene(tmp_path / "a.glb")
    begun = tmp_path / "begun"
    process = start(LOAD, path, begun, tmp_path / "never")
    while not begun.exists() and process.poll() is None:
        time.sleep(0.01)
    assert len(list(folder.glob("*.navscene.part"))) == 1
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert load_asset(path).triangles == 120
    assert parts(folder) == ["shape"] and not list(folder.glob("*.navscene.part"))

"""Where scenes are looked for: by either name of HM3D's files, as .glb and as .gltf."""

import base64
import json

import numpy as np
import pytest
from glb import QUAD_FACES, GlbFile

from navprune.comparisons.recordings import find_scene
from navprune.errors import UserError
from navprune.scenes.files.episodes import scene_name, scene_path
from navprune.scenes.files.mesh import load_glb
from navprune.scenes.files.places import check_files, existing, navmesh_path
from navprune.scenes.recast.build import build_for


def write_gltf(path):
    """A floor of 6 m a side in one .gltf file."""
    file = GlbFile()
    file.place(file.mesh(file.primitive(np.float32([[-3, -3, 0], [3, -3, 0], [3, 3, 0], [-3, 3, 0]]), QUAD_FACES)))
    data = base64.b64encode(file.binary).decode()
    buffer = {"byteLength": len(file.binary), "uri": f"data:application/octet-stream;base64,{data}"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(file.document | {"buffers": [buffer]}))
    return path


def test_a_gltf_scene_serves_wherever_a_glb_does(tmp_path):
    scene = write_gltf(tmp_path / "scene_datasets/mine/house.gltf")
    for name in ("house.glb", "house.gltf"):
        assert scene_path(tmp_path, f"data/scene_datasets/mine/{name}") == scene
        assert scene_name(f"mine/{name}") == "house"
    assert find_scene(tmp_path, "house") == scene
    with pytest.raises(UserError, match="navmesh does not exist"):
        check_files(scene)
    assert build_for(scene)["area"] > 30
    assert navmesh_path(scene) == scene.with_name("house.navmesh")
    check_files(scene)
    assert len(load_glb(scene).vertices) == 2


@pytest.mark.parametrize(
    "asked, there",
    [
        ("a.glb", "a.glb"), ("a.glb", "a.basis.glb"), ("a.basis.glb", "a.glb"), ("a.glb", "a.gltf"),
        ("a.gltf", "a.glb"),
        ("a.navmesh", "a.basis.navmesh"), ("a.basis.navmesh", "a.navmesh"),
    ],
)  # fmt: skip
def test_a_file_has_twins(tmp_path, asked, there):
    assert existing(tmp_path / asked) == tmp_path / asked
    (tmp_path / there).touch()
    (tmp_path / "a.json").touch()
    assert existing(tmp_path / asked) == tmp_path / there
    assert existing(tmp_path / "b.glb") == tmp_path / "b.glb"
    assert existing(tmp_path / "a.txt") == tmp_path / "a.txt"

"""The bytes of a scene: in one file, in several, in addresses; cut off, missing, elsewhere or broken."""

import base64
import json
import struct

import numpy as np
import pytest
from glb import CHECKER, QUAD, GlbFile
from mutations import COUNT, document_mutants, mutants

from navprune.errors import UserError
from navprune.scenes.files.mesh import load_glb, load_triangles
from navprune.scenes.files.resources import check_scene, chunks, scene_files
from navprune.scenes.files.shapes import LINE_LOOP
from navprune.simulator.asset import load_asset


def test_other_versions_are_refused(tmp_path):
    file = GlbFile()
    file.quad()
    path = file.write(tmp_path / "house.glb")
    data = path.read_bytes()
    path.write_bytes(data[:4] + struct.pack("<I", 1) + data[8:])
    with pytest.raises(UserError, match="version 1; export the scene"):
        load_glb(path)


def data_uri(data, kind="application/octet-stream"):
    return f"data:{kind};base64,{base64.b64encode(bytes(data)).decode()}"


def coloured_quad():
    file = GlbFile()
    file.quad(file.material(file.texture(CHECKER)))
    return file


def image_as_uri(file):
    """The image's bytes leave their buffer view for a data URI."""
    view = file.document["bufferViews"][file.document["images"][0].pop("bufferView")]
    data = file.binary[view["byteOffset"] :][: view["byteLength"]]
    file.document["images"][0]["uri"] = data_uri(data, "image/png")


def buffer_as_uri(file):
    """All that the binary part holds, the image included, in the JSON part."""
    file.document["buffers"] = [{"byteLength": len(file.binary), "uri": data_uri(file.binary)}]
    file.binary = b""


def two_buffers(file):
    """The positions in a buffer of their own, beside that of all else."""
    view = file.document["bufferViews"][file.document["accessors"][0]["bufferView"]]
    data = file.binary[view["byteOffset"] :][: view["byteLength"]]
    view |= {"buffer": 1, "byteOffset": 0}
    buffer_as_uri(file)
    file.document["buffers"].append({"byteLength": len(data), "uri": data_uri(data)})


@pytest.mark.parametrize("move", [image_as_uri, buffer_as_uri, two_buffers])
def test_data_uris_are_data(tmp_path, move):
    expected = load_glb(coloured_quad().write(tmp_path / "plain.glb"))
    file = coloured_quad()
    move(file)
    mesh = load_glb(file.write(tmp_path / "uri.glb"))
    np.testing.assert_array_equal(mesh.vertices, expected.vertices)
    np.testing.assert_array_equal(mesh.textures[0], expected.textures[0])


NO_IMAGES = ["data:image/png;base64,%%%", "data:image/png,abc", "wall.png", "", "/etc/hostname", None]


@pytest.mark.parametrize("uri", NO_IMAGES)
def test_an_image_that_cannot_be_had_is_white_and_costs_no_other_its_colours(tmp_path, capsys, uri):
    file = coloured_quad()
    file.quad(file.material(file.texture(CHECKER)))
    del file.document["images"][0]["bufferView"]
    if uri is not None:
        file.document["images"][0]["uri"] = uri
    mesh = load_glb(file.write(tmp_path / "house.glb"))
    for _ in range(2):
        assert (mesh.textures[0] == 255).all()
        np.testing.assert_array_equal(mesh.textures[1][..., :3], CHECKER)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "house.glb: " in said and "shown white" in said


def test_headers_tell_a_file_that_is_cut_off_and_no_more_is_read(tmp_path):
    path = coloured_quad().write(tmp_path / "house.glb")
    whole = path.read_bytes()
    first, end = chunks(path)[0]
    assert whole[first:end].startswith(b"{") and chunks(path)[1][1] == len(whole)
    for length in (0, 3, 11, 19, end - 1, end + 4, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"house\.glb: .*(cut off|export the scene as)"):
            chunks(path)
    path.write_bytes(whole[:first] + bytes(len(whole) - first))  # nonsense inside is for `load_glb` to tell
    with pytest.raises(UserError, match="damaged"):
        load_glb(path)


# ---- files beside the scene


def scattered(tmp_path, name="house.gltf"):
    """A scene of three files: itself, its buffer and an image whose names need percent signs."""
    file = coloured_quad()
    image = file.document["images"][0]
    view = file.document["bufferViews"][image.pop("bufferView")]
    (tmp_path / "textures").mkdir(exist_ok=True)
    (tmp_path / "textures/wall (1)é.png").write_bytes(file.binary[view["byteOffset"] :][: view["byteLength"]])
    image["uri"] = "textures/wall%20(1)%C3%A9.png"
    (tmp_path / "house 1.bin").write_bytes(file.binary)
    file.document["buffers"] = [{"byteLength": len(file.binary), "uri": "house%201.bin"}]
    file.binary = b""
    if name.endswith("glb"):
        return file.write(tmp_path / name)
    (tmp_path / name).write_text(json.dumps(file.document), encoding="utf-8-sig")
    return tmp_path / name


@pytest.mark.parametrize("name", ["house.gltf", "house.glb"])
def test_buffers_and_images_may_lie_beside_the_scene(tmp_path, name):
    expected = load_glb(coloured_quad().write(tmp_path / "plain.glb"))
    path = scattered(tmp_path, name)
    mesh = load_glb(path)
    np.testing.assert_array_equal(mesh.vertices, expected.vertices)
    np.testing.assert_array_equal(mesh.textures[0], expected.textures[0])
    assert scene_files(path) == [path, tmp_path / "house 1.bin", tmp_path / "textures/wall (1)é.png"]
    assert scene_files(tmp_path / "plain.glb") == [tmp_path / "plain.glb"]
    check_scene(path)


ELSEWHERE = ["../x.bin", "a/%2e%2e/../../x.bin", "/etc/passwd", "file:///etc/passwd", "http://a/b", "C:\\x"]


@pytest.mark.parametrize("uri", ELSEWHERE)
def test_only_files_below_the_scenes_own_folder_are_read(tmp_path, uri):
    (tmp_path / "x.bin").write_bytes(b"secret" * 100)
    (tmp_path / "house").mkdir()
    path = scattered(tmp_path / "house")
    document = json.loads(path.read_text("utf-8-sig"))
    document["buffers"][0]["uri"] = uri
    path.write_text(json.dumps(document))
    for read in (load_glb, scene_files, check_scene):
        with pytest.raises(UserError, match=r"house\.gltf: names .* outside of its folder") as caught:
            read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("uri", ELSEWHERE)
def test_an_image_elsewhere_costs_nothing_but_itself(tmp_path, uri):
    path = scattered(tmp_path)
    document = json.loads(path.read_text("utf-8-sig"))
    document["images"][0]["uri"] = uri
    path.write_text(json.dumps(document))
    check_scene(path)
    assert load_asset(path).triangles == len(load_glb(path).vertices)
    assert (load_asset(path).surface.texels == 255).any()
    assert scene_files(path) == [path, tmp_path / "house 1.bin"]


def test_a_buffer_without_an_address_is_no_fault(tmp_path):
    path = scattered(tmp_path)
    document = json.loads(path.read_text("utf-8-sig"))
    document["buffers"].append({"byteLength": 8, "extensions": {"EXT_meshopt_compression": {"fallback": True}}})
    path.write_text(json.dumps(document))
    check_scene(path)
    assert len(load_glb(path).vertices)


def test_missing_and_short_buffers_are_told_before_anything_is_loaded(tmp_path):
    path = scattered(tmp_path)
    (tmp_path / "house 1.bin").write_bytes(b"12")
    with pytest.raises(UserError, match=r"house 1\.bin is cut off"):
        check_scene(path)
    with pytest.raises(UserError, match="damaged or cut off"):
        load_glb(path)
    (tmp_path / "house 1.bin").unlink()
    for read in (load_glb, check_scene):
        with pytest.raises(UserError, match=r"house 1\.bin is missing"):
            read(path)
    path.write_text("{")
    with pytest.raises(UserError, match="damaged or cut off"):
        check_scene(path)


@pytest.mark.parametrize("kind", ["glb", "gltf", "bin"])
def test_broken_copies_are_read_or_refused_with_one_line(tmp_path, kind):
    file = GlbFile()
    texture = file.texture(CHECKER, wrapS=33071)
    file.quad(file.material(texture, factor=[1, 0.5, 0, 1], alphaMode="MASK"), translation=[1, 0, 0])
    sheared = [1, 0.5, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    file.place(file.mesh(file.primitive(QUAD, mode=LINE_LOOP)), matrix=sheared)
    path = file.write(tmp_path / "a.glb") if kind == "glb" else scattered(tmp_path)
    broken = tmp_path / "house 1.bin" if kind == "bin" else path
    read = 0
    for mutant in mutants(broken.read_bytes(), 300, seed=1):
        broken.write_bytes(mutant)
        try:
            mesh = load_glb(path, alpha_masks=True)
            assert all(image.shape[2] == 4 for image in mesh.textures)
            scene_files(path), check_scene(path)
            read += 1
        except UserError as error:
            assert "\n" not in str(error)
    assert 0 < read < 300


@pytest.mark.parametrize("required", [[], ["EXT_mesh_gpu_instancing"]])
def test_odd_values_anywhere_in_a_document_are_read_or_refused_with_one_line(tmp_path, required):
    path = scattered(tmp_path)
    document = json.loads(path.read_text("utf-8-sig"))
    attributes = {"TRANSLATION": 0}
    document["nodes"][0] |= {
        "extensions": {"EXT_mesh_gpu_instancing": {"attributes": attributes}},
        "rotation": [0, 0, 1, 0],
    }
    document["nodes"].append({"mesh": 0, "matrix": np.eye(4).ravel().tolist(), "children": []})
    document["scenes"][0]["nodes"].append(1)
    document["meshes"][0]["primitives"].append(document["meshes"][0]["primitives"][0] | {"mode": LINE_LOOP})
    document["samplers"] = [{"wrapS": 33071, "minFilter": 9984}]
    document["textures"][0]["sampler"] = 0
    document["accessors"][0]["sparse"] = {
        "count": 1, "indices": {"bufferView": 0, "componentType": 5123}, "values": {"bufferView": 0},
    }  # fmt: skip
    document["extensionsRequired"] = required
    read = 0
    for mutant in document_mutants(document, COUNT, seed=3):
        path.write_text(json.dumps(mutant))
        try:
            mesh = load_glb(path, alpha_masks=True)
            assert len(mesh.vertices) == len(mesh.colours) == len(mesh.uv) == len(mesh.texture) > 0
            assert mesh.texture.max() < len(mesh.textures)
            assert all(image.shape[2] == 4 for image in mesh.textures)
            scene_files(path), check_scene(path), load_triangles(path)
            read += 1
        except UserError as error:
            assert "\n" not in str(error)
    assert 0 < read < COUNT

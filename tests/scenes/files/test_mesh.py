import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from navprune.errors import UserError
from navprune.scenes.files.mesh import load_glb

REFERENCE = Path(__file__).parents[2] / "data/reference/scene_datasets/reference"
TRIANGLE = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def write_scene(path, **geometries):
    """Writes {name: (mesh, transform)} as a GLB."""
    scene = trimesh.Scene()
    for name, (mesh, transform) in geometries.items():
        scene.add_geometry(mesh, node_name=name, geom_name=name, transform=transform)
    path.write_bytes(scene.export(file_type="glb"))
    return path


def triangle(visual=None):
    return trimesh.Trimesh(TRIANGLE, [[0, 1, 2]], visual=visual, process=False)


def test_z_up_becomes_y_up_after_node_transforms(tmp_path):
    move = trimesh.transformations.translation_matrix([1, 2, 3])
    mesh = load_glb(write_scene(tmp_path / "a.glb", part=(triangle(), move)))
    expected = [[1, 3, -2], [2, 3, -2], [1, 3, -3]]
    np.testing.assert_allclose(mesh.vertices[0], expected, atol=1e-6)


def test_a_mirroring_node_keeps_fronts_in_front(tmp_path):
    ball = trimesh.creation.icosphere(subdivisions=1)
    path = write_scene(tmp_path / "a.glb", part=(ball, np.diag([-1.0, 1.0, 1.0, 1.0])))
    vertices = load_glb(path).vertices
    normals = np.cross(vertices[:, 1] - vertices[:, 0], vertices[:, 2] - vertices[:, 0])
    assert ((normals * vertices.mean(axis=1)).sum(axis=1) > 0).all()


def test_several_meshes_are_joined_with_their_own_colours_and_shared_textures(tmp_path):
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    uv = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    textured = trimesh.visual.TextureVisuals(
        uv=uv,
        material=trimesh.visual.material.PBRMaterial(baseColorTexture=image, baseColorFactor=[255, 128, 0, 255]),
    )
    corner_colours = np.array([[255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255]], np.uint8)
    coloured = trimesh.visual.ColorVisuals(vertex_colors=corner_colours)
    mesh = load_glb(
        write_scene(
            tmp_path / "a.glb",
            first=(triangle(textured), np.eye(4)),
            second=(triangle(coloured), np.eye(4)),
            third=(triangle(textured), np.eye(4)),
        )
    )
    assert sorted(mesh.texture) == [-1, 0, 0]
    assert len(mesh.textures) == 1
    np.testing.assert_array_equal(mesh.textures[0][..., :3], np.asarray(image))
    with_texture = np.flatnonzero(mesh.texture == 0)
    np.testing.assert_array_equal(mesh.colours[with_texture], np.broadcast_to([255, 128, 0], (2, 3, 3)))
    # Without a material, vertex colours multiply what habitat-sim shows of such a mesh.
    np.testing.assert_array_equal(mesh.colours[mesh.texture == -1][0], np.diag([146, 128, 90]))
    # Lower left in trimesh is the lower row of the image, v = 1 in glTF.
    np.testing.assert_allclose(mesh.uv[with_texture[0]], [[0, 1], [1, 1], [0, 0]], atol=1e-6)


def test_vertex_colours_multiply_the_base_colour(tmp_path):
    visual = trimesh.visual.TextureVisuals(
        material=trimesh.visual.material.PBRMaterial(baseColorFactor=[128, 255, 255, 255])
    )
    visual.vertex_attributes["color"] = np.full((3, 4), 100, np.uint8)
    mesh = load_glb(write_scene(tmp_path / "a.glb", part=(triangle(visual), np.eye(4))))
    np.testing.assert_array_equal(mesh.colours[0, 0], [50, 100, 100])


def test_a_broken_texture_leaves_the_shape(tmp_path):
    source = (REFERENCE / "duplex.glb").read_bytes()
    png = source.index(b"\x89PNG")
    broken = tmp_path / "broken.glb"
    broken.write_bytes(source[:png] + b"\0" * 64 + source[png + 64 :])
    np.testing.assert_array_equal(load_glb(broken).vertices, load_glb(REFERENCE / "duplex.glb").vertices)


@pytest.mark.parametrize("name, triangles", [("apartment", 2136), ("duplex", 580)])
def test_reference_scenes_load_whole(name, triangles):
    mesh = load_glb(REFERENCE / f"{name}.glb")
    assert mesh.vertices.shape == mesh.colours.shape == (triangles, 3, 3)
    assert mesh.uv.shape == (triangles, 3, 2)
    assert len(mesh.textures) == mesh.texture.max() + 1 == 1
    assert mesh.vertices[..., 1].min() == 0  # the floor lies at height 0


def empty_glb():
    document = json.dumps({"asset": {"version": "2.0"}, "scenes": [{"nodes": []}], "scene": 0}).encode()
    document += b" " * (-len(document) % 4)
    buffer = io.BytesIO()
    buffer.write(struct.pack("<4sIIII", b"glTF", 2, 20 + len(document), len(document), 0x4E4F534A))
    buffer.write(document)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "not found"),
        (b"", "not a glTF file"),
        (b"solid not a glb at all", "not a glTF file"),
        ((REFERENCE / "duplex.glb").read_bytes()[:9000], "damaged or cut off"),
        (empty_glb(), "no triangles"),
    ],
    ids=["missing", "empty", "other format", "cut off", "no geometry"],
)
def test_bad_files_are_named_in_one_line(tmp_path, content, message):
    path = tmp_path / "home.glb"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_glb(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)

"""Features of the format: each way to say the same scene gives the same mesh, each broken part one line."""

import numpy as np
import pytest
from glb import CHECKER, QUAD, QUAD_FACES, QUAD_UV, GlbFile
from hypothesis import given, settings
from hypothesis import strategies as st

from navprune.errors import UserError
from navprune.scenes.files import mesh as mesh_module
from navprune.scenes.files.mesh import load_glb, load_triangles
from navprune.scenes.files.shapes import (
    FAN,
    LINE_LOOP,
    LINE_STRIP,
    LINES,
    POINTS,
    STRIP,
    TRIANGLES,
    lines_of,
    triangle_count,
    triangles_of,
)  # fmt: skip


def of_primitive(tmp_path, build, **node):
    """The mesh of a file with one primitive, which `build` makes of the file."""
    file = GlbFile()
    file.place(file.mesh(build(file)), **node)
    return load_glb(file.write(tmp_path / "scene.glb"))


def oriented(vertices):
    """Triangles with their corners turned so that the least comes first, sorted: equal for equal fronts."""
    turned = [min(np.roll(t, k, axis=0).tolist() for k in range(3)) for t in np.asarray(vertices)]
    return sorted(turned)


# ---- vertices


@pytest.mark.parametrize("kind, normalised", [("i1", True), ("i2", True), ("i1", False), ("i2", False), ("u2", True)])
def test_quantised_positions_equal_floats(tmp_path, kind, normalised):
    top = np.iinfo(kind).max if normalised else 100
    shift = [0, 0, 0] if kind.startswith("i") else [1, 1, 0]
    rows = (QUAD + shift) * (top // 2)
    scale = (top if normalised else 1) / (top // 2)
    quantised = of_primitive(
        tmp_path,
        lambda file: file.primitive(file.accessor(rows.astype(kind), normalized=normalised), QUAD_FACES),
        scale=[scale] * 3,
        translation=[-s for s in shift],
    )
    plain = of_primitive(tmp_path, lambda file: file.primitive(QUAD, QUAD_FACES))
    np.testing.assert_allclose(quantised.vertices, plain.vertices, atol=1e-6)


@pytest.mark.parametrize("kind", ["u1", "u2", "i2"])
def test_quantised_texture_coordinates_equal_floats(tmp_path, kind):
    def build(file, uv):
        return file.primitive(QUAD, QUAD_FACES, file.material(file.texture(CHECKER)), TEXCOORD_0=uv(file))

    top = np.iinfo(kind).max
    quantised = of_primitive(
        tmp_path, lambda file: build(file, lambda f: f.accessor((QUAD_UV * top).astype(kind), normalized=True))
    )
    np.testing.assert_array_equal(quantised.uv, QUAD_UV[QUAD_FACES.reshape(-1, 3)])


@pytest.mark.parametrize("width", [3, 4])
@pytest.mark.parametrize("kind", ["f4", "u1", "u2"])
def test_vertex_colours_of_every_type_multiply_the_factor(tmp_path, kind, width):
    shares = np.array([[0.0, 0.2, 1.0, 1.0], [1.0, 0.4, 0.0, 1.0], [0.8, 0.8, 0.8, 1.0], [1.0, 1.0, 1.0, 1.0]])
    rows = shares[:, :width] if kind == "f4" else np.rint(shares[:, :width] * np.iinfo(kind).max)
    colours = of_primitive(
        tmp_path,
        lambda file: file.primitive(
            QUAD,
            QUAD_FACES,
            file.material(factor=[0.5, 1.0, 0.25, 1.0]),
            COLOR_0=file.accessor(rows.astype(kind), normalized=kind != "f4"),
        ),
    ).colours
    expected = np.rint(shares[:, :3] * [0.5, 1.0, 0.25] * 255)[QUAD_FACES.reshape(-1, 3)]
    np.testing.assert_array_equal(colours, expected)


def test_strips_fans_and_unindexed_corners_are_lists(tmp_path):
    plain = oriented(of_primitive(tmp_path, lambda file: file.primitive(QUAD, QUAD_FACES)).vertices)
    zigzag = np.array([0, 1, 3, 2], np.uint8)
    fan = np.array([0, 1, 2, 3], np.uint32)
    other_diagonal = oriented(
        of_primitive(tmp_path, lambda file: file.primitive(QUAD, np.array([0, 1, 3, 1, 2, 3], np.uint16))).vertices
    )
    assert oriented(of_primitive(tmp_path, lambda f: f.primitive(QUAD, zigzag, mode=STRIP)).vertices) == other_diagonal
    assert oriented(of_primitive(tmp_path, lambda f: f.primitive(QUAD, fan, mode=FAN)).vertices) == plain
    assert oriented(of_primitive(tmp_path, lambda f: f.primitive(QUAD, mode=FAN)).vertices) == plain
    assert oriented(of_primitive(tmp_path, lambda f: f.primitive(QUAD[QUAD_FACES])).vertices) == plain


@given(st.integers(0, 9), st.sampled_from([TRIANGLES, STRIP, FAN]))
def test_a_flat_strip_or_fan_shows_one_side(count, mode):
    # Corners in the order in which a strip zigzags, or around a fan's centre.
    step = np.arange(count)
    points = np.column_stack([step // 2, step % 2]) if mode == STRIP else np.column_stack([step, step**2])
    triangles = triangles_of(np.arange(count), mode)
    assert len(triangles) == triangle_count(count, mode) == (count // 3 if mode == TRIANGLES else max(0, count - 2))
    a, b, c = np.moveaxis(points[triangles], 1, 0) if len(triangles) else np.zeros((3, 0, 2))
    areas = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    assert len(set(np.sign(areas))) <= 1


@pytest.mark.parametrize(
    "mode, ends",
    [
        (POINTS, [[0, 0], [1, 1], [2, 2], [3, 3]]),
        (LINES, [[0, 1], [2, 3]]),
        (LINE_LOOP, [[0, 1], [1, 2], [2, 3], [3, 0]]),
        (LINE_STRIP, [[0, 1], [1, 2], [2, 3]]),
    ],
)
def test_points_and_lines_are_strokes(tmp_path, mode, ends):
    file = GlbFile()
    colours = np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 2]])
    strokes = file.primitive(QUAD, material=file.material(), mode=mode, COLOR_0=colours)
    file.place(file.mesh(strokes, file.primitive(QUAD, QUAD_FACES)), translation=[0, 0, 1])
    mesh = load_glb(file.write(tmp_path / "a.glb"))
    assert len(mesh.vertices) == 2 and mesh.strokes is not None
    np.testing.assert_array_equal(mesh.strokes.ends, (QUAD[:, [0, 2, 1]] * [1, 1, -1] + [0, 1, 0])[ends])
    np.testing.assert_array_equal(mesh.strokes.colours, np.minimum(colours, 1)[ends] * 255)
    assert len(load_triangles(tmp_path / "a.glb")) == 2


@given(st.sampled_from([POINTS, LINES, LINE_LOOP, LINE_STRIP]), st.integers(0, 5))
def test_lines_of_few_corners(mode, count):
    lines = lines_of(np.arange(count), mode)
    loop = count if count > 1 else 0
    assert lines.shape == ({POINTS: count, LINES: count // 2, LINE_LOOP: loop, LINE_STRIP: max(0, count - 1)}[mode], 2)


def test_sparse_accessors_equal_dense_ones(tmp_path):
    def sparse(file, base):
        changes = {
            "count": 2,
            "indices": {"bufferView": file.view(np.array([1, 2], "u2").tobytes()), "componentType": 5123},
            "values": {"bufferView": file.view(QUAD[1:3].tobytes())},
        }
        rows = {"componentType": 5126, "type": "VEC3", "count": 4, "sparse": changes}
        if base is not None:
            rows["bufferView"] = file.view(base.astype("f4").tobytes())
        return file.primitive(file.add("accessors", rows), QUAD_FACES)

    wrong = QUAD.copy()
    wrong[1:3] = 77
    plain = of_primitive(tmp_path, lambda file: file.primitive(QUAD, QUAD_FACES))
    np.testing.assert_array_equal(of_primitive(tmp_path, lambda f: sparse(f, wrong)).vertices, plain.vertices)
    zeros = np.zeros_like(QUAD)
    zeros[1:3] = QUAD[1:3]
    expected = of_primitive(tmp_path, lambda file: file.primitive(zeros, QUAD_FACES))
    np.testing.assert_array_equal(of_primitive(tmp_path, lambda f: sparse(f, None)).vertices, expected.vertices)


def test_interleaved_attributes_equal_separate_ones(tmp_path):
    def build(file):
        rows = np.hstack([QUAD, QUAD_UV]).astype("f4")
        view = file.view(rows.tobytes(), byteStride=20)
        position = {"bufferView": view, "componentType": 5126, "type": "VEC3", "count": 4}
        uv = {"bufferView": view, "byteOffset": 12, "componentType": 5126, "type": "VEC2", "count": 4}
        accessors = file.add("accessors", position), file.add("accessors", uv)
        return file.primitive(accessors[0], QUAD_FACES, file.material(file.texture(CHECKER)), TEXCOORD_0=accessors[1])

    mesh = of_primitive(tmp_path, build)
    plain = of_primitive(tmp_path, lambda file: file.primitive(QUAD, QUAD_FACES))
    np.testing.assert_array_equal(mesh.vertices, plain.vertices)
    np.testing.assert_array_equal(mesh.uv, QUAD_UV[QUAD_FACES.reshape(-1, 3)])


# ---- nodes


def test_matrices_equal_translation_rotation_and_scale_in_a_tree(tmp_path):
    half = np.sqrt(0.5)
    moved, turned, shrunk = np.eye(4), np.eye(4), np.diag([2.0, 3.0, 4.0, 1.0])
    moved[:3, 3] = [1, 2, 3]
    turned[:2, :2] = [[0, -1], [1, 0]]  # a quarter about z
    parts, whole = GlbFile(), GlbFile()
    for file, nodes in (
        (parts, [{"translation": [1, 2, 3]}, {"rotation": [0, 0, half, half], "scale": [2, 3, 4]}]),
        (whole, [{"matrix": moved.T.reshape(-1).tolist()}, {"matrix": (turned @ shrunk).T.reshape(-1).tolist()}]),
    ):
        child = file.add("nodes", {"mesh": file.mesh(file.primitive(QUAD, QUAD_FACES)), **nodes[1]})
        file.document["scenes"][0]["nodes"] = [file.add("nodes", {"children": [child], **nodes[0]})]
    first, second = (load_glb(file.write(tmp_path / "a.glb")).vertices for file in (parts, whole))
    corners = np.hstack([QUAD, np.ones((4, 1))]) @ (moved @ turned @ shrunk).T
    np.testing.assert_allclose(first, second, atol=1e-5)
    np.testing.assert_allclose(first, (corners[:, [0, 2, 1]] * [1, 1, -1])[QUAD_FACES].reshape(-1, 3, 3), atol=1e-5)


def test_a_mesh_stands_wherever_a_node_places_it(tmp_path):
    file = GlbFile()
    mesh = file.mesh(file.primitive(QUAD, QUAD_FACES), file.primitive(QUAD * 2, QUAD_FACES))
    file.place(mesh)
    file.place(mesh, translation=[5, 0, 0])
    vertices = load_glb(file.write(tmp_path / "a.glb")).vertices
    assert len(vertices) == 8
    np.testing.assert_allclose(vertices[4:], vertices[:4] + np.array([5, 0, 0]))


def test_only_the_default_scene_is_loaded(tmp_path):
    file = GlbFile()
    file.quad()
    other = file.add("nodes", {"mesh": 0, "translation": [7, 0, 0]})
    file.document["scenes"].append({"nodes": [other]})
    file.document["scene"] = 1
    assert load_glb(file.write(tmp_path / "a.glb")).vertices[..., 0].min() == 6


def test_a_sheared_matrix_is_drawn_without_its_shear_and_walked_on_with_it(tmp_path):
    turn = np.array([[0.6, -0.8, 0], [0.8, 0.6, 0], [0, 0, 1]]) * [2, 3, 1]
    for shear, same in ((0.0, True), (0.4, False)):
        matrix = np.eye(4)
        matrix[:3, :3] = turn @ [[1, shear, 0], [0, 1, 0], [0, 0, 1]]
        file = GlbFile()
        file.quad(matrix=matrix.T.reshape(-1).tolist())
        drawn, walked = load_glb(file.write(tmp_path / "a.glb")).vertices, load_triangles(tmp_path / "a.glb")
        expected = (QUAD @ matrix[:3, :3].T)[:, [0, 2, 1]] * [1, 1, -1]
        np.testing.assert_allclose(walked, expected[QUAD_FACES].reshape(-1, 3, 3), atol=1e-6)
        assert np.array_equal(drawn, walked) == same


def test_navmeshes_are_built_of_lists_alone_and_as_they_are_wound(tmp_path):
    file = GlbFile()
    strip = file.primitive(QUAD, np.array([0, 1, 3, 2], np.uint8), mode=STRIP)
    file.place(file.mesh(strip, file.primitive(QUAD, QUAD_FACES)), scale=[-1, 1, 1])
    triangles = load_triangles(file.write(tmp_path / "a.glb"))
    mirrored = (QUAD * [-1, 1, 1])[:, [0, 2, 1]] * [1, 1, -1]
    np.testing.assert_array_equal(triangles, mirrored[QUAD_FACES].reshape(-1, 3, 3))
    drawn = load_glb(tmp_path / "a.glb").vertices
    assert len(drawn) == 4
    np.testing.assert_array_equal(drawn[2:], triangles[:, ::-1])


@pytest.mark.parametrize("required", [True, False])
def test_copies_of_a_mesh_count_where_they_are_required(tmp_path, required):
    file = GlbFile()
    half = np.sqrt(0.5)
    attributes = {
        "TRANSLATION": file.accessor(np.float32([[0, 0, 1], [5, 0, 0]])),
        "ROTATION": file.accessor(np.float32([[0, 0, half, half], [0, 0, 0, 1]])),
        "SCALE": file.accessor(np.float32([[1, 1, 1], [2, 2, 2]])),
    }
    node = {"translation": [1, 2, 3], "extensions": {"EXT_mesh_gpu_instancing": {"attributes": attributes}}}
    file.quad(**node)
    if required:
        file.document["extensionsRequired"] = ["EXT_mesh_gpu_instancing"]
    vertices = load_glb(file.write(tmp_path / "a.glb")).vertices
    turned = QUAD[:, [1, 0, 2]] * [-1, 1, 1] + [1, 2, 4]
    copies = [turned, QUAD * 2 + [6, 2, 3]] if required else [np.array([1, 2, 3]) + QUAD]
    corners = np.vstack([copy[QUAD_FACES] for copy in copies])
    np.testing.assert_allclose(vertices, (corners[:, [0, 2, 1]] * [1, 1, -1]).reshape(-1, 3, 3), atol=1e-6)


# ---- textures


@settings(max_examples=30, deadline=None)
@given(offset=st.tuples(*[st.floats(-3, 3)] * 2), angle=st.floats(-7, 7), scale=st.tuples(*[st.floats(-3, 3)] * 2))
def test_texture_transforms_scale_then_turn_then_shift(tmp_path_factory, offset, angle, scale):
    file = GlbFile()
    transform = {"offset": offset, "rotation": angle, "scale": scale}
    file.quad(file.material(file.texture(CHECKER), transform=transform))
    uv = load_glb(file.write(tmp_path_factory.mktemp("a") / "a.glb")).uv
    # Counter-clockwise as one sees it, v pointing down: the complex number u - iv is multiplied by exp(i angle).
    scaled = QUAD_UV.astype(float) * scale
    turned = (scaled[:, 0] - 1j * scaled[:, 1]) * np.exp(1j * angle)
    expected = np.column_stack([turned.real, -turned.imag]) + offset
    np.testing.assert_allclose(uv, expected[QUAD_FACES.reshape(-1, 3)], atol=1e-4)


def test_the_first_coordinates_and_colours_of_a_mesh_are_taken_whatever_its_material_names(tmp_path):
    other, red = QUAD_UV * 0.5, np.float32([[1, 0, 0]] * 4)

    def build(file, sets, **which):
        return file.primitive(QUAD, QUAD_FACES, file.material(file.texture(CHECKER), **which), COLOR_1=red, **sets)

    both = {"TEXCOORD_0": QUAD_UV, "TEXCOORD_1": other}
    for which, sets, expected in (
        ({}, both, QUAD_UV),
        ({"tex_coord": 1}, both, QUAD_UV),
        ({"transform": {"texCoord": 1}}, both, QUAD_UV),
        ({}, {"TEXCOORD_1": other}, other),
        ({}, {}, np.array([[0, 1]] * 4)),  # without any: the lower left corner of the image
    ):
        mesh = of_primitive(tmp_path, lambda file, which=which, sets=sets: build(file, sets, **which))
        np.testing.assert_allclose(mesh.uv, expected[QUAD_FACES.reshape(-1, 3)])
        assert (mesh.colours == [255, 0, 0]).all()


@pytest.mark.parametrize("base", [{}, {"baseColorFactor": [0, 0, 1, 1], "baseColorTexture": {"index": 0}}])
def test_specular_glossiness_says_the_colour_where_it_says_one(tmp_path, base):
    file = GlbFile()
    textures = file.texture(CHECKER), file.texture(255 - CHECKER)
    diffuse = {"diffuseFactor": [1, 0.2, 0, 1], "diffuseTexture": {"index": textures[1]}}
    for specular in (diffuse, {}):
        extension = {"KHR_materials_pbrSpecularGlossiness": specular}
        file.quad(file.add("materials", {"pbrMetallicRoughness": base, "extensions": extension}))
    mesh = load_glb(file.write(tmp_path / "a.glb"))
    np.testing.assert_array_equal(mesh.textures[mesh.texture[0]][..., :3], 255 - CHECKER)
    assert (mesh.colours[:2] == [255, 51, 0]).all()
    assert (mesh.colours[2:] == ([0, 0, 255] if base else 255)).all()
    assert (mesh.texture[2:] == (1 if base else -1)).all()


def test_colours_beyond_one_stay_until_they_are_seen(tmp_path):
    rows = np.float32([[2, -1, 0.5], [np.nan, 0, np.inf], [1, 1, 1], [0, 0, 0]])
    factor = [1, 1, 0.5, 1]
    mesh = of_primitive(tmp_path, lambda f: f.primitive(QUAD, QUAD_FACES, f.material(factor=factor), COLOR_0=rows))
    assert mesh.colours.dtype == np.float32
    np.testing.assert_allclose(mesh.colours[0, :2], [[510, -255, 63.75], [0, 0, 1e6]])


@pytest.mark.parametrize("format, tolerance", [("PNG", 0), ("WEBP", 0), ("JPEG", 12)])
def test_images_of_each_format_are_decoded(tmp_path, format, tolerance):
    pixels = np.linspace(0, 255, 16 * 16 * 3).reshape(16, 16, 3).astype(np.uint8)
    file = GlbFile()
    texture = file.texture(pixels, format)
    if format == "WEBP":
        source = file.document["textures"][texture].pop("source")
        file.document["textures"][texture]["extensions"] = {"EXT_texture_webp": {"source": source}}
    file.quad(file.material(texture))
    decoded = load_glb(file.write(tmp_path / "a.glb")).textures[0]
    assert decoded.shape == (16, 16, 4)
    assert np.abs(decoded[..., :3].astype(int) - pixels).max() <= tolerance


# ---- what is not read


def test_required_extensions_are_known_or_refused(tmp_path):
    file = GlbFile()
    file.quad()
    file.document["extensionsRequired"] = ["KHR_materials_unlit", "KHR_mesh_quantization", "KHR_texture_basisu"]
    assert len(load_glb(file.write(tmp_path / "house.glb")).vertices) == 2
    file.document["extensionsRequired"].append("EXT_unheard_of")
    with pytest.raises(UserError, match="needs the glTF extension EXT_unheard_of"):
        load_glb(file.write(tmp_path / "house.glb"))


def test_damage_is_told_in_plain_words(tmp_path):
    for data, reason in {
        b"glTF": "it ends too early",
        b"glTF\2\0\0\0\0\0\0\0\2\0\0\0JSON{}": r"'scenes' is missing",
        b"glTF\2\0\0\0\0\0\0\0\4\0\0\0JSONnull": "a part of it is of the wrong kind",
    }.items():
        (tmp_path / "house.glb").write_bytes(data)
        with pytest.raises(UserError, match=rf"damaged or cut off \({reason}\)"):
            load_glb(tmp_path / "house.glb")


def change(kind, index=0, **values):
    return lambda file: file.document[kind][index].update(values)


@pytest.mark.parametrize(
    "broken, message",
    [
        (change("accessors", count=10**15), "damaged"),
        (change("accessors", count=-1), "damaged"),
        (change("accessors", byteOffset=40), "damaged"),
        (change("accessors", byteOffset=-4), "damaged"),
        (change("accessors", bufferView=-1), "damaged"),
        (change("accessors", type="MAT4"), "damaged"),
        (change("bufferViews", byteLength=10**9), "damaged"),
        (change("bufferViews", byteStride=10**9), "damaged"),
        (change("nodes", children=[0]), "two parents"),
        (change("nodes", mesh=9), "damaged"),
        (change("nodes", matrix=[1, 2, 3]), "damaged"),
        (change("nodes", rotation="left"), "damaged"),
        (change("nodes", scale=[np.nan] * 3), "not finite"),
        (change("meshes", primitives=None), "damaged"),
        (change("scenes", nodes=[]), "no triangles"),
        (lambda file: file.document["meshes"][0]["primitives"][0].update(mode=9), "not a mode"),
        (lambda file: file.document["meshes"][0]["primitives"][0].update(indices=0), "damaged"),
        (lambda file: file.document["accessors"][0].pop("bufferView"), None),
        (lambda file: (file.document["accessors"][0].pop("bufferView"), change("accessors", count=10**15)(file)), "lo"),
        (lambda file: file.document.update(scene=3), "damaged"),
    ],
)
def test_broken_parts_are_told_in_one_line(tmp_path, broken, message):
    file = GlbFile()
    file.quad()
    broken(file)
    path = file.write(tmp_path / "house.glb")
    if message is None:
        assert (load_glb(path).vertices == 0).all()  # glTF: an accessor without a view holds zeros
        return
    with pytest.raises(UserError, match=message) as caught:
        load_glb(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_scenes_without_end_are_refused_before_they_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(mesh_module, "MAX_TRIANGLES", 5)
    file = GlbFile()
    for _ in range(3):
        file.quad()
    with pytest.raises(UserError, match="more than 5 triangles"):
        load_glb(file.write(tmp_path / "a.glb"))

"""Compressed geometry and textures show what plain ones do, where their decoders are installed, and else say so."""

import base64
import sys
import zlib

import numpy as np
import pytest
from glb import CHECKER, QUAD, QUAD_FACES, QUAD_UV, GlbFile

from navprune.errors import UserError
from navprune.scenes.files.mesh import load_glb

# A ramp of 8 x 8 texels, red to the right and green downwards, as KTX2 in Basis' two forms.
UASTC = (
    "c-mX-9TK5nWU!l;ONxsD2pEBw1BzjQ5sE<|1Bi8icnXw82M3_E0~!re%fz6;u#Az3fti_sK>)6+9?tp?1oA){=&bUh%#ze12B*a0%wmPmyv(xH"
    "qT<9H1tUE}0|o{bkS?IM=w)mS{00a9JD&)=ne?jo_w7k+jQ@oZe4xA}{|A2re+iq^|H}wI0IV`OWd"
)
ETC1S = (
    "c-mX-9TK5nWU!l;ONxsD2pEBw1BzjQ5ea7iu?`SV0b&&(-T_t952f815qgk;4wPnM&|p~1$i%?RjBJNJob?|F<bgEMS>;8UC8<RWPKm{t#R{Q$"
    "nPsU(#fdozMtX(@3=Av`%nW)!b-YMsBfA#{1P-`B7>^h@1XRHyEy6k>Obwh6;Uf$Nj0zw|Lx}57PL>5B|JfG=0kPMAc7}sct)Jq38D>D34hl?a"
    "Okmao3#J1s4Pd5{07C%)x@{?r"
)


def of_primitive(tmp_path, build, **node):
    """The mesh of a file with one primitive, which `build` makes of the file."""
    file = GlbFile()
    file.place(file.mesh(build(file)), **node)
    return load_glb(file.write(tmp_path / "scene.glb"))


def oriented(vertices):
    """Triangles with their corners turned so that the least comes first, sorted: equal for equal fronts."""
    return sorted(min(np.roll(t, k, axis=0).tolist() for k in range(3)) for t in np.asarray(vertices))


def test_draco_compressed_equals_plain(tmp_path):
    draco = pytest.importorskip("DracoPy")

    def build(file):
        data = draco.encode(QUAD, QUAD_FACES.reshape(-1, 3), quantization_bits=20, tex_coord=QUAD_UV.astype(float))
        decoded = {a["attribute_type"]: a["unique_id"] for a in draco.decode(data).attributes}
        ids = {"POSITION": decoded[0], "TEXCOORD_0": decoded[3]}
        primitive = file.primitive(QUAD, QUAD_FACES, file.material(file.texture(CHECKER)), TEXCOORD_0=QUAD_UV)
        primitive["extensions"] = {
            "KHR_draco_mesh_compression": {"bufferView": file.view(data), "attributes": ids},
        }
        for accessor in file.document["accessors"]:
            del accessor["bufferView"]
        return primitive

    mesh = of_primitive(tmp_path, build)
    plain = of_primitive(tmp_path, lambda file: file.primitive(QUAD, QUAD_FACES))
    joint = np.concatenate([mesh.vertices, mesh.uv], axis=-1).round(4)
    expected = np.concatenate([plain.vertices, QUAD_UV[QUAD_FACES.reshape(-1, 3)]], axis=-1)
    np.testing.assert_allclose(oriented(joint), oriented(expected), atol=1e-4)


def test_draco_that_holds_fewer_triangles_than_it_says_is_refused(tmp_path):
    draco = pytest.importorskip("DracoPy")

    def build(file):
        data = draco.encode(QUAD, QUAD_FACES.reshape(-1, 3))
        primitive = file.primitive(QUAD, np.tile(QUAD_FACES, 2))
        extension = {"bufferView": file.view(data), "attributes": {"POSITION": 0}}
        primitive["extensions"] = {"KHR_draco_mesh_compression": extension}
        return primitive

    with pytest.raises(UserError, match="more or fewer corners than it says"):
        of_primitive(tmp_path, build)


def compressed(file, data, rows, **more):
    """A buffer view that meshopt compressed, and that nobody who cannot read it would miss."""
    place = file.document["bufferViews"][file.view(data)]
    packed = {**place, "count": len(rows), "byteStride": rows.nbytes // len(rows), **more}
    fallback = {"buffer": 1, "byteOffset": 0, "byteLength": rows.nbytes}
    return file.add("bufferViews", {**fallback, "extensions": {"EXT_meshopt_compression": packed}})


@pytest.mark.parametrize("filter", ["NONE", "EXPONENTIAL"])
def test_meshopt_compressed_equals_plain(tmp_path, filter):
    meshopt = pytest.importorskip("meshopt")

    def build(file):
        primitive = file.primitive(QUAD, QUAD_FACES)
        coded = meshopt.encode_filter_exp(QUAD, 15) if filter == "EXPONENTIAL" else QUAD
        data = meshopt.encode_gltf_buffer(coded, "ATTRIBUTES")
        positions, indices = (file.document["accessors"][k] for k in (0, 1))
        positions["bufferView"] = compressed(file, data, QUAD, mode="ATTRIBUTES", filter=filter)
        faces = meshopt.encode_gltf_buffer(QUAD_FACES, "TRIANGLES")
        indices["bufferView"] = compressed(file, faces, QUAD_FACES, mode="TRIANGLES")
        file.document["extensionsRequired"] = ["EXT_meshopt_compression"]
        return primitive

    mesh = of_primitive(tmp_path, build)
    plain = of_primitive(tmp_path, lambda file: file.primitive(QUAD, QUAD_FACES))
    np.testing.assert_allclose(oriented(mesh.vertices), oriented(plain.vertices), atol=1e-4)


def test_what_meshopt_could_not_have_compressed_is_refused(tmp_path):
    pytest.importorskip("meshopt")

    def build(file):
        primitive = file.primitive(QUAD, QUAD_FACES)
        view = compressed(file, bytes(16), QUAD, mode="ATTRIBUTES")
        file.document["bufferViews"][view]["extensions"]["EXT_meshopt_compression"]["count"] = 10**12
        file.document["accessors"][0]["bufferView"] = view
        return primitive

    with pytest.raises(UserError, match="longer than what was compressed"):
        of_primitive(tmp_path, build)


def test_without_a_decoder_geometry_says_how_to_get_or_convert_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "DracoPy", None)
    monkeypatch.setitem(sys.modules, "meshopt", None)
    draco, meshopt = GlbFile(), GlbFile()
    for file in (draco, meshopt):
        file.quad()
    extension = {"KHR_draco_mesh_compression": {"bufferView": 0, "attributes": {"POSITION": 0}}}
    draco.document["meshes"][0]["primitives"][0]["extensions"] = extension
    meshopt.document["bufferViews"][0]["extensions"] = {"EXT_meshopt_compression": {"buffer": 0}}
    for file, name in ((draco, "Draco"), (meshopt, "meshopt")):
        advice = rf"{name}-compressed; run pip install '.\[compressed\]'.*gltf-transform copy house\.glb OUT\.glb"
        with pytest.raises(UserError, match=advice) as caught:
            load_glb(file.write(tmp_path / "house.glb"))
        assert "\n" not in str(caught.value)


def basis_textured(tmp_path, data):
    file = GlbFile()
    source = file.add("images", {"bufferView": file.view(data), "mimeType": "image/ktx2"})
    file.quad(file.material(file.add("textures", {"extensions": {"KHR_texture_basisu": {"source": source}}})))
    return load_glb(file.write(tmp_path / "house.glb")).textures[0]


@pytest.mark.parametrize("text, tolerance", [(UASTC, 3), (ETC1S, 96)])
def test_basis_textures_are_decoded(tmp_path, text, tolerance):
    pytest.importorskip("opengl_basisu")
    ramp = np.moveaxis(np.mgrid[:8, :8][::-1] * 32.0, 0, -1)
    decoded = basis_textured(tmp_path, zlib.decompress(base64.b85decode(text)))[..., :2].astype(float)
    np.testing.assert_allclose(decoded, ramp, atol=tolerance)
    decoded, ramp = (image.reshape(2, 4, 2, 4, 2).mean(axis=(1, 3)) for image in (decoded, ramp))
    np.testing.assert_allclose(decoded, ramp, atol=4)  # ETC1S keeps little more than these


def test_a_basis_texture_that_is_cut_off_is_white(tmp_path, capsys):
    pytest.importorskip("opengl_basisu")
    data = zlib.decompress(base64.b85decode(UASTC))
    assert (basis_textured(tmp_path, data[:200]) == 255).all()
    assert "shown white" in capsys.readouterr().err

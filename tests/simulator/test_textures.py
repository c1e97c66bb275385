"""What materials look like: squares from files, seen from above, so that one texel is one pixel or many are."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cameras import BOTH, DEPTH, photograph
from glb import QUAD, QUAD_FACES, QUAD_UV, GlbFile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from navprune.errors import UserError
from navprune.scenes.files.materials import Sampler
from navprune.scenes.files.mesh import AlphaMasks, load_glb
from navprune.simulator.asset import RenderAsset
from navprune.simulator.surface import texture_levels

REFERENCE = Path(__file__).parents[1] / "data/reference"
DOWN = np.array([[-np.sqrt(0.5), 0.0, 0.0, np.sqrt(0.5)]])
UP = DOWN * [[-1, 1, 1, 1]]
WRAPS: dict[int, Any] = {10497: "wrap", 33071: "edge", 33648: "symmetric"}  # of glTF, and what NumPy calls them
NEAREST, LINEAR = 9728, 9729
RANDOM = np.random.default_rng(5).integers(0, 256, (4, 4, 3)).astype(np.uint8)


def look(mesh, size=4, height=1.0, rotation=DOWN, colour=True):
    """Depth, and colour unless it is not wanted, of a square view down; from height 1 it just holds glb.QUAD."""
    sensors, eye = BOTH if colour else DEPTH, np.array([[0.0, height, 0.0]])
    seen = photograph(RenderAsset(mesh), eye, rotation, size, size, sensors=sensors)
    depth = seen["depth"][0, ..., 0]
    return (depth, seen["rgb"][0].astype(int)) if colour else depth


def textured(folder, pixels, uv=QUAD_UV, **sampler):
    """A square with a texture, in a file of its own, for images are read when they are needed."""
    file = GlbFile()
    file.quad(file.material(file.texture(pixels, **sampler)), uv.astype(np.float32))
    return load_glb(file.write(folder / f"{len(list(folder.iterdir()))}.glb"))


# ---- samplers


@pytest.mark.parametrize("magnify", [NEAREST, LINEAR])
@pytest.mark.parametrize("wrap_t", WRAPS)
@pytest.mark.parametrize("wrap_s", WRAPS)
def test_beyond_its_border_a_texture_repeats_stays_or_mirrors(tmp_path, wrap_s, wrap_t, magnify):
    mesh = textured(tmp_path, RANDOM, QUAD_UV * 5 - 2, wrapS=wrap_s, wrapT=wrap_t, magFilter=magnify)
    wide = np.pad(RANDOM, ((0, 0), (8, 8), (0, 0)), WRAPS[wrap_s])
    expected = np.pad(wide, ((8, 8), (0, 0), (0, 0)), WRAPS[wrap_t])
    _, rgb = look(mesh, size=20)
    assert np.abs(rgb - expected).max() <= 1


def test_without_a_sampler_a_texture_repeats_and_is_smooth(tmp_path):
    plain = textured(tmp_path, RANDOM, QUAD_UV * 5 - 2)
    said = textured(tmp_path, RANDOM, QUAD_UV * 5 - 2, wrapS=10497, wrapT=10497, magFilter=LINEAR, minFilter=9987)
    for size in (5, 20, 50):
        np.testing.assert_array_equal(look(plain, size)[1], look(said, size)[1])


def test_magnified_textures_are_smooth_or_blocks(tmp_path):
    step = np.array([[0, 240]], np.uint8)[..., None].repeat(3, -1)
    smooth = look(textured(tmp_path, step, wrapS=33071, magFilter=LINEAR), size=16)[1][8, :, 0]
    blocks = look(textured(tmp_path, step, wrapS=33071, magFilter=NEAREST), size=16)[1][8, :, 0]
    np.testing.assert_array_equal(blocks, np.repeat([0, 240], 8))
    share = np.clip((np.arange(16) + 0.5) / 8 - 0.5, 0, 1)
    np.testing.assert_allclose(smooth, 240 * share, atol=1)


@pytest.mark.parametrize(
    "minify, greys", [(9728, {0, 255}), (9984, {128}), (9985, {128}), (9986, {128}), (9987, {128})]
)
def test_distant_textures_use_halved_copies_if_the_filter_does(tmp_path, minify, greys):
    checker = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, -1)
    _, rgb = look(textured(tmp_path, checker, minFilter=minify), size=13)
    assert set(rgb.ravel()) == greys


def test_the_nearest_level_is_that_whose_texels_are_most_like_pixels(tmp_path):
    # The view shows 64 texels in 16 pixels: level 2, whose texels are pixels.
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    expected = noise.reshape(16, 4, 16, 4, 3).mean((1, 3))
    for minify in (9984, 9985, 9986, 9987):
        _, rgb = look(textured(tmp_path, noise, minFilter=minify), size=16)
        assert np.abs(rgb - expected).max() <= 2


# ---- sides


def test_only_fronts_are_seen_of_double_sided_materials_and_in_mirrors(tmp_path):
    for node in ({}, {"scale": [-1, 1, 1]}):
        file = GlbFile()
        file.quad(file.material(doubleSided=True), **node)
        mesh = load_glb(file.write(tmp_path / "a.glb"))
        assert (look(mesh, colour=False) > 0).all()
        assert (look(mesh, height=-1.0, rotation=UP, colour=False) == 0).all()


# ---- alpha


def masked(tmp_path, alpha_masks=True, colours=None, factor_alpha=1.0, mode="MASK", texture=True, **more):
    """A red square, whose left half is clear if its texture is used, over a white one a metre below."""
    file = GlbFile()
    pixels = np.full((4, 4, 4), 255, np.uint8)
    pixels[:, :2, 3] = 0
    image = file.texture(pixels, magFilter=NEAREST) if texture else None
    material = file.material(image, factor=[1, 0, 0, factor_alpha], alphaMode=mode, **more)
    attributes = {} if colours is None else {"COLOR_0": colours}
    file.place(file.mesh(file.primitive(QUAD, QUAD_FACES, material, TEXCOORD_0=QUAD_UV, **attributes)))
    file.quad(file.material(), translation=[0, 0, -1], scale=[3, 3, 3])
    return load_glb(file.write(tmp_path / "a.glb"), alpha_masks)


def test_masked_pixels_are_holes_for_depth_and_colour(tmp_path):
    mesh = masked(tmp_path)
    depth, rgb = look(mesh)
    np.testing.assert_allclose(depth, [[2, 2, 1, 1]] * 4, rtol=1e-5)
    np.testing.assert_array_equal(rgb, [[[255] * 3] * 2 + [[255, 0, 0]] * 2] * 4)
    np.testing.assert_array_equal(look(mesh, colour=False), depth)


def test_masked_materials_are_whole_unless_holes_are_asked_for_as_in_habitat(tmp_path):
    depth, rgb = look(masked(tmp_path, alpha_masks=False))
    np.testing.assert_allclose(depth, 1, rtol=1e-5)
    assert (rgb == [255, 0, 0]).all()


@pytest.mark.parametrize("mode", ["OPAQUE", "BLEND"])
def test_alpha_of_other_modes_changes_nothing(tmp_path, mode):
    mesh = masked(tmp_path, mode=mode)
    assert mesh.masks is None
    np.testing.assert_allclose(look(mesh, colour=False), 1, rtol=1e-5)


def test_alpha_is_that_of_factor_vertices_and_texture_together(tmp_path):
    def whole(**options):
        return look(masked(tmp_path, **options), colour=False)[:, 2:].mean() < 1.01  # of the opaque half

    fading = np.ones((4, 4), np.float32)
    fading[:, 3] = 0.8
    assert whole() and whole(alphaCutoff=1.0)
    assert whole(factor_alpha=0.8) and not whole(factor_alpha=0.4)  # the cutoff is 0.5 if nothing is said
    assert whole(colours=fading) and not whole(colours=fading, factor_alpha=0.6)
    assert not whole(colours=fading, alphaCutoff=0.9)
    assert whole(texture=False) and not whole(texture=False, factor_alpha=0.4)
    assert whole(alphaCutoff=0.0)


@pytest.mark.parametrize("colour", [False, True])
def test_the_code_for_holes_draws_whole_triangles_alike(colour):
    mesh = load_glb(REFERENCE / "scene_datasets/reference/duplex.glb")
    count = len(mesh.vertices)
    holes = replace(mesh, masks=AlphaMasks(np.zeros((count, 3), np.uint8), np.zeros(count, np.float32)))
    with np.load(REFERENCE / "expected/duplex_images.npz") as images:
        eyes, rotations = images["position"][:6] + np.array([0, 1.25, 0]), images["rotation_xyzw"][:6]
    drawn = []
    for scene in (mesh, holes):
        sensors = BOTH if colour else DEPTH
        drawn.append(photograph(RenderAsset(scene), eyes, rotations, 64, 64, sensors=sensors))
    for name in drawn[0]:
        np.testing.assert_array_equal(drawn[0][name], drawn[1][name])


# ---- mip levels


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40))
def test_mip_levels_of_every_size_keep_ramps_and_means(height, width):
    y, x = np.mgrid[:height, :width]
    ramp = np.stack([(x + 0.5) / width * 255, (y + 0.5) / height * 255, x * 0 + 77.0, (x + y) % 2 * 255.0], -1)
    texels, levels = texture_levels([np.rint(ramp).astype(np.uint8)], [Sampler()])
    assert levels[0, -1, 1:].tolist() == [1, 1]
    for first, rows, columns in levels[0]:
        level = texels[first : first + rows * columns].reshape(rows, columns, 4)
        v, u = np.mgrid[:rows, :columns]
        assert np.abs(level[..., 0] - (u + 0.5) / columns * 255).max() <= 4  # half a step of rounding at each level
        assert np.abs(level[..., 1] - (v + 0.5) / rows * 255).max() <= 4
        assert (level[..., 2] == 77).all()


def test_a_level_of_even_size_is_the_mean_of_four(tmp_path):
    image = np.random.default_rng(2).integers(0, 256, (70, 8, 4)).astype(np.uint8)
    texels, levels = texture_levels([image], [Sampler()])
    first, rows, columns = levels[0, 1]
    means = image.reshape(rows, 2, columns, 2, 4).mean(axis=(1, 3))
    np.testing.assert_array_equal(texels[first : first + rows * columns].reshape(rows, columns, 4), np.rint(means))


# ---- images that cannot be had


def spoil(kind):
    """A square with a texture that nothing here decodes, or that is not there."""
    file = GlbFile()
    texture = file.texture(RANDOM)
    if kind == "outside":
        file.document["images"][0] = {"uri": "house.png"}
    else:
        data = {"ktx2": b"\xabKTX 20\xbb\r\n\x1a\n", "basis": b"sB\x13\0", "noise": b"\1\2\3\4"}[kind] + bytes(60)
        source = file.add("images", {"bufferView": file.view(data)})
        extension = "KHR_texture_basisu" if kind == "ktx2" else "GOOGLE_texture_basis"
        file.document["textures"][texture] = {"extensions": {extension: {"source": source}}}
    file.quad(file.material(texture))
    return file


@pytest.mark.parametrize("kind, advice", [("noise", "damaged or of an unknown format"), ("outside", "is missing; put")])
def test_what_cannot_be_decoded_is_white(tmp_path, capsys, kind, advice):
    _, rgb = look(load_glb(spoil(kind).write(tmp_path / "house.glb")))
    assert (rgb == 255).all()
    assert advice in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["ktx2", "basis"])
def test_depth_works_without_a_decoder_and_colour_says_what_to_do(tmp_path, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, "opengl_basisu", None)
    mesh = load_glb(spoil(kind).write(tmp_path / "house.glb"))
    np.testing.assert_allclose(look(mesh, colour=False), 1, rtol=1e-5)
    with pytest.raises(UserError, match=r"gltf-transform ktxdecompress house\.glb OUT\.glb") as caught:
        look(mesh)
    assert "house.glb" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_fallback_image_is_taken_where_there_is_one(tmp_path):
    file = spoil("ktx2")
    file.document["textures"][0]["source"] = 0
    _, rgb = look(load_glb(file.write(tmp_path / "house.glb")))
    assert np.abs(rgb - RANDOM).max() <= 1


def test_depth_decodes_no_image(tmp_path, monkeypatch):
    mesh = textured(tmp_path, RANDOM)
    opened = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda *args: opened.append(args) or original(*args))
    look(mesh, colour=False)
    assert not opened
    look(mesh)
    assert len(opened) == 1

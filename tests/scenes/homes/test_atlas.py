import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from navprune.scenes.homes.atlas import PADDING, SIDES, TEXEL, Paint, _pack, bake, lay_out, surfaces
from navprune.scenes.homes.cutting import Mesh, cut
from navprune.scenes.homes.solids import ball, box, join

SIDE = SIDES[0]


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(1, 700), st.integers(1, 700)), min_size=1, max_size=30))
def test_packed_rectangles_lie_in_their_page_and_do_not_meet(sizes):
    page, places, heights = _pack(np.array(sizes), SIDE)
    taken = np.zeros((len(heights), SIDE, SIDE), int)
    for number, (x, y), (width, height) in zip(page, places, sizes):
        assert x + width <= SIDE and y + height <= heights[number] <= SIDE
        taken[number, y : y + height, x : x + width] += 1
    assert taken.max() == 1 and all(taken[number, heights[number] - 1].any() for number in range(len(heights)))


def test_surfaces_are_connected_and_look_one_way():
    boxes = Mesh.of(join([box((1, 1, 1), (0, 0, 0)), box((1, 1, 1), (0, 0, 0), (3, 0, 0))]).triangles)
    part, direction = surfaces(boxes.vertices, boxes.faces)
    assert len(np.unique(part)) == 12 and np.isin(np.bincount(part), (2, 4)).all()
    corners = boxes.vertices[boxes.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    axes = np.concatenate([np.eye(3), -np.eye(3)])
    assert (np.einsum("fk,fk->f", normals, axes[direction]) > 0.4).all()


def atlas_of(mesh):
    part, direction = surfaces(mesh.vertices, mesh.faces)
    return lay_out(mesh.vertices, mesh.faces, part[mesh.origin], direction[mesh.origin])


def test_baked_texels_show_the_colours_of_the_surface():
    """At random points of curved and flat faces, and around them as far as filters reach."""
    rng = np.random.default_rng(0)
    coarse = Mesh.of(join([box((5, 1, 0.5), (0, 0, 0)), ball(0.4, (0, 0, 0), (0, 0, 2))]).triangles)
    part, direction = surfaces(coarse.vertices, coarse.faces)
    mesh = cut(coarse, np.ones(len(coarse.faces)), 3000, rng)
    atlas = lay_out(mesh.vertices, mesh.faces, part[mesh.origin], direction[mesh.origin])
    np.testing.assert_array_equal(atlas.corners[atlas.faces], mesh.faces)
    colours = rng.integers(0, 256, (part.max() + 1, 3)).astype(np.float32)
    texture = np.full(len(mesh.faces), -1, np.int32)
    light = np.ones((len(mesh.vertices), 3), np.float32)
    paint = Paint(colours[part[mesh.origin]], texture, np.zeros((1, 2, 2, 3), np.uint8), 1.0, light)
    pages = bake(atlas, mesh.vertices, paint)
    faces = rng.integers(len(mesh.faces), size=2000)
    shares = rng.dirichlet(np.ones(3), 2000)
    texels = np.einsum("nk,nkd->nd", shares, atlas.texels[atlas.faces[faces]])
    assert (texels >= PADDING).all() and (texels <= atlas.side - PADDING).all()
    wanted = np.rint(paint.colours[faces])
    for shift in ((0, 0), (1, 0), (0, -1), (-1, 1)):
        x, y = np.floor(texels + shift).astype(int).T
        np.testing.assert_array_equal(pages[atlas.page[faces], y, x], wanted)


def test_texels_have_one_size_and_images_repeat_in_plan():
    floor = Mesh.of(box((1.8, 1.8, 0.1), (0, 0, 0), (1, 1, 0)).triangles)
    _, direction = surfaces(floor.vertices, floor.faces)
    atlas = atlas_of(floor)
    top = np.flatnonzero(direction == 2)[0]
    across = np.diff(floor.vertices[floor.faces[top], :2], axis=0) / TEXEL
    np.testing.assert_allclose(np.diff(atlas.texels[atlas.faces[top]], axis=0), across)
    image = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
    texture = np.where(direction == 2, 0, -1).astype(np.int32)
    light = np.full((len(floor.vertices), 3), 0.5, np.float32)
    paint = Paint(np.full((len(floor.faces), 3), 255, np.float32), texture, image[None], 1.0, light)
    pages = bake(atlas, floor.vertices, paint)
    origin = atlas.texels[atlas.faces[top, 0]] - floor.vertices[floor.faces[top, 0], :2] / TEXEL
    for point, colour in (((1.25, 0.75), (128, 0, 0)), ((1.25, 0.25), (0, 0, 128)), ((0.75, 1.25), (128, 128, 128))):
        x, y = np.floor(origin + np.array(point) / TEXEL).astype(int)
        np.testing.assert_array_equal(pages[atlas.page[top], y, x], colour)

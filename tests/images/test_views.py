import itertools
import math

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from navprune.images.views import RATIOS, cut, enlarged, mirrored, shifted

UNIT = st.floats(0, 1, exclude_max=True)
NEARLY_ONE = 1 - 2**-24  # the largest number that torch.rand draws


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.01, 1), st.tuples(UNIT, UNIT, UNIT, UNIT))
@example(8, 8, 1.0, (0.0, 0.0, NEARLY_ONE, NEARLY_ONE))
def test_a_cut_lies_in_the_image(height, width, least, draws):
    top, left, tall, wide = cut(height, width, least, draws)
    assert 0 <= top <= top + tall <= height and 0 <= left <= left + wide <= width and tall > 0 < wide


@given(st.integers(50, 300), st.integers(50, 300), st.floats(0.1, 1), st.tuples(UNIT, UNIT, UNIT, UNIT))
def test_a_cut_has_the_ratio_and_the_area_that_were_asked_for(height, width, least, draws):
    _, _, tall, wide = cut(height, width, least, draws)
    assert (wide + 0.5) / (tall - 0.5) >= RATIOS[0] and (wide - 0.5) / (tall + 0.5) <= RATIOS[1]
    if RATIOS[0] <= width / height <= RATIOS[1]:
        area = height * width * (least + (1 - least) * draws[0])
        assert (tall - 0.5) * (wide - 0.5) <= area <= (tall + 0.5) * (wide + 0.5)


@given(st.integers(4, 64), st.integers(4, 64), st.tuples(UNIT, UNIT, UNIT, UNIT))
def test_the_least_share_of_one_is_all_of_an_ordinary_image(height, width, draws):
    assume(RATIOS[0] <= width / height <= RATIOS[1])
    assert cut(height, width, 1.0, draws) == (0, 0, height, width)


def test_the_logarithm_of_the_ratio_is_uniform():
    ratios = [
        math.log(wide / tall) for *_, tall, wide in (cut(4000, 4000, 0.1, (0.0, k / 100, 0, 0)) for k in range(100))
    ]
    steps = [later - earlier for earlier, later in itertools.pairwise(ratios)]
    assert max(steps) - min(steps) < 3e-3 and ratios[0] == pytest.approx(math.log(3 / 4), abs=1e-3)


@given(st.integers(1, 12), st.integers(1, 12), st.data())
@settings(max_examples=40, deadline=None)
def test_enlarged_is_a_cut_and_then_a_resize(height, width, data):
    images = torch.rand(3, 2, height, width, generator=torch.Generator().manual_seed(height * 13 + width))
    cuts = torch.tensor([cut(height, width, 0.1, data.draw(st.tuples(UNIT, UNIT, UNIT, UNIT))) for _ in images])
    for image, (top, left, tall, wide), found in zip(images, cuts.tolist(), enlarged(images, cuts)):
        piece = image[None, :, top : top + tall, left : left + wide]
        wanted = torch.nn.functional.interpolate(piece, (height, width), mode="bilinear")[0]
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@settings(deadline=None)
@given(st.integers(0, 5), st.tuples(UNIT, UNIT))
@example(4, (NEARLY_ONE, NEARLY_ONE))
def test_shifted_moves_what_is_seen(pad, draws):
    image = torch.rand(1, 2, 6, 7) + 1
    found = shifted(image, pad, torch.tensor([draws]).clamp(max=NEARLY_ONE))[0]
    down, right = (int(min(draw, NEARLY_ONE) * (2 * pad + 1)) - pad for draw in torch.tensor(draws).tolist())
    rows, columns = torch.meshgrid(torch.arange(6) + down, torch.arange(7) + right, indexing="ij")
    seen = (rows >= 0) & (rows < 6) & (columns >= 0) & (columns < 7)
    assert torch.equal(found, image[0, :, rows.clamp(0, 5), columns.clamp(0, 6)] * seen)


def test_half_of_the_draws_mirror_and_twice_is_none():
    images, draws = torch.rand(100, 1, 3, 4), torch.arange(100) / 100
    found = mirrored(images, draws)
    assert [torch.equal(each, image.flip(-1)) for each, image in zip(found, images)] == [True] * 50 + [False] * 50
    assert torch.equal(mirrored(found, draws), images)

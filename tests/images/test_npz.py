import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from labelled_images import npz

from navprune.errors import UserError
from navprune.images.npz import read_npz
from navprune.pruning.losses import read_labelled

SHAPES = array_shapes(min_dims=4, max_dims=4, max_side=6)
CHANNELS_FIRST = SHAPES.filter(lambda shape: shape[3] not in (1, 3) or min(shape[1:3]) <= 3)
PIXELS = st.sampled_from(["u1", "i1", "u2", "i4", "i8", "?", "f2", "f4", "f8"])


@settings(max_examples=40, deadline=None)
@given(CHANNELS_FIRST, PIXELS, st.sampled_from(["u1", "i4", "i8"]))
def test_what_pruning_reads_is_read_as_the_same(tmp_path_factory, shape, pixel, label):
    rng = np.random.default_rng(0)
    arrays = {"images": rng.integers(0, 100, shape).astype(pixel), "labels": rng.integers(0, 5, shape[0]).astype(label)}
    path = npz(tmp_path_factory.mktemp("npz") / "a.npz", **arrays)
    (images, labels), source = read_labelled(path), read_npz(path)
    assert torch.equal(labels, torch.from_numpy(source.labels))
    seen = source.pixels.whole(torch.arange(len(images)))
    torch.testing.assert_close(seen / 255 if pixel == "u1" else seen, images)


def test_channels_may_come_last(tmp_path):
    first = read_npz(npz(tmp_path / "a.npz", shape=(3, 8, 9)))
    with np.load(tmp_path / "a.npz") as file:
        last = read_npz(npz(tmp_path / "b.npz", images=file["images"].transpose(0, 2, 3, 1), labels=file["labels"]))
    rows = torch.arange(60)
    assert last.pixels.shape == (3, 8, 9) and torch.equal(first.pixels.whole(rows), last.pixels.whole(rows))


def test_tests_and_names_are_taken_where_they_are(tmp_path):
    source = read_npz(npz(tmp_path / "a.npz", tests=6, kinds=2, classes=np.array(["cat", "dog"])))
    assert source.classes == ("cat", "dog") and source.training == 60 and len(source.labels) == 66


class Tempting:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    ("held", "complaint"),
    [
        ({"labels": np.zeros(60)}, "whole labels"),
        ({"labels": np.zeros(59, int)}, "whole labels"),
        ({"labels": np.full(60, -1)}, "hold -1"),
        ({"labels": np.full(60, 10**6)}, "hold 1000000"),
        ({"images": np.zeros((60, 8, 8))}, "give images"),
        ({"images": np.full((60, 1, 8, 8), np.nan)}, "not finite"),
        ({"images": np.zeros((60, 1, 8, 8), complex)}, "real numbers"),
        ({"images": np.array([Tempting()] * 60)}, "cannot be read"),
        ({"test_images": np.zeros((2, 1, 8, 8))}, "give both"),
        ({"test_images": np.zeros((2, 1, 8, 8)), "test_labels": np.zeros(2, int)}, "differ"),
        ({"classes": np.array(["cat"])}, "give 3 names"),
    ],
)
def test_arrays_that_fit_no_classifier_are_refused(tmp_path, capsys, held, complaint):
    with pytest.raises(UserError, match=complaint):
        read_npz(npz(tmp_path / "a.npz", **held))
    assert not capsys.readouterr().out


def test_an_array_that_is_missing_or_damaged_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 1, 4, 4)))
    with pytest.raises(UserError, match="'labels"):
        read_npz(tmp_path / "a.npz")
    data = bytearray(npz(tmp_path / "b.npz").read_bytes())
    data[300] ^= 255
    (tmp_path / "b.npz").write_bytes(data)
    with pytest.raises(UserError, match="CRC"):
        read_npz(tmp_path / "b.npz")

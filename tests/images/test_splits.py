import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from labelled_images import cifar10_binary, image_folder, npz

from navprune.errors import UserError
from navprune.images import splits
from navprune.images.config import ImagesConfig
from navprune.images.splits import DRAWS, SPLITS, hold_out, open_images

LABELS = arrays(np.int64, st.integers(1, 80), elements=st.integers(0, 5))


@settings(deadline=None)
@given(LABELS, st.floats(0.001, 1), st.integers(0, 3))
def test_of_each_class_the_share_is_held_out(labels, share, seed):
    held = hold_out(labels, share, np.random.default_rng(seed))
    for label in np.unique(labels):
        count, chosen = (labels == label).sum(), held[labels == label].sum()
        assert chosen == 0 if count == 1 else 0 < chosen < count
        assert abs(chosen - share * count) <= 1
    assert np.array_equal(held, hold_out(labels, share, np.random.default_rng(seed)))


def test_cifars_share_is_exact():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 5000))
    assert np.bincount(labels[hold_out(labels, 0.1, np.random.default_rng(0))]).tolist() == [500] * 10


def test_which_images_are_held_out_is_drawn_from_the_seed():
    labels = np.zeros(100, int)
    one, other = (hold_out(labels, 0.5, np.random.default_rng(seed)) for seed in (0, 1))
    assert 10 < (one & other).sum() < 40


@pytest.fixture
def numbered(tmp_path):
    """A function of counts that writes images which are their own numbers, and returns their source."""

    def write(count, classes, tests=0):
        values = np.arange(count + tests, dtype=np.float32)[:, None, None, None]
        more = {"test_images": values[count:], "test_labels": np.arange(tests) % classes} if tests else {}
        file = tmp_path / f"{count}-{classes}-{tests}.npz"
        return str(npz(file, count, classes, images=values[:count], **more))

    return write


def numbers(images):
    """The images in a split of `numbered`."""
    seen = images.views(torch.arange(len(images))).double() * images.deviation + images.mean
    return [round(value) for value in seen.flatten().tolist()]


@pytest.mark.parametrize("tests", [0, 12])
@pytest.mark.parametrize("classes", [1, 4])
def test_splits_are_disjoint_and_together_everything(numbered, tests, classes):
    source = numbered(24, classes, tests)
    for seed in range(3):
        config = ImagesConfig(source=source, split_seed=seed, validation=0.3)
        parts = {split: open_images(config, split) for split in SPLITS}
        assert sorted(number for part in parts.values() for number in numbers(part)) == list(range(24 + tests))
        assert all({*part.labels.tolist()} == {*range(classes)} for part in parts.values())
        for part in parts.values():
            assert [
                (number if number < 24 else number - 24) % classes for number in numbers(part)
            ] == part.labels.tolist()
        if tests:
            assert numbers(parts["test"]) == list(range(24, 36))


def test_the_training_split_alone_sets_the_normalisation(numbered):
    config = ImagesConfig(source=numbered(50, 5))
    parts = [open_images(config, split) for split in SPLITS]
    seen = parts[0].views(torch.arange(len(parts[0]))).double()
    assert abs(seen.mean()) < 1e-6 and seen.std(correction=0) == pytest.approx(1, abs=1e-6)
    assert all(torch.equal(part.mean, parts[0].mean) for part in parts)


def test_without_a_share_there_is_no_such_split(numbered):
    source = numbered(24, 4)
    assert len(open_images(ImagesConfig(source=source, validation=0, test=0), "train")) == 24
    for split, setting in (("val", "validation"), ("test", "test")):
        with pytest.raises(UserError, match=f"no split {split}, for images.{setting} is 0; give --split train"):
            open_images(ImagesConfig(source=source, validation=0, test=0), split)
    with pytest.raises(UserError, match=r"no split test, for images\.test is 0; give --split val, or train anew"):
        open_images(ImagesConfig(source=source, validation=0.5, test=0), "test")
    with pytest.raises(UserError, match="known are train, val, test"):
        open_images(ImagesConfig(source=source), "valid")


def test_a_split_that_cannot_be_filled_is_refused(numbered):
    with pytest.raises(UserError, match=r"split val is empty.*images.validation=0"):
        open_images(ImagesConfig(source=numbered(8, 4)), "train")


def test_classes_that_only_the_tests_have_are_refused(tmp_path):
    file = npz(tmp_path / "a.npz", kinds=2, tests=6, test_labels=np.array([0, 1, 2, 0, 1, 3]))
    with pytest.raises(UserError, match="only the test images show 2, 3"):
        open_images(ImagesConfig(source=str(file)), "train")


def test_data_are_read_once_and_again_when_they_change(tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr(splits, "read_npz", lambda path, read=splits.read_npz: reads.append(path) or read(path))
    config = ImagesConfig(source=str(npz(tmp_path / "a.npz")))
    counts = [len(open_images(config, split)) for split in SPLITS]
    open_images(ImagesConfig(source=config.source, flip=True), "train")
    assert sum(counts) == 60 and len(reads) == 1
    npz(tmp_path / "a.npz", count=90)
    os.utime(tmp_path / "a.npz", ns=(1, 1))
    assert len(open_images(config, "train")) > counts[0]


def test_what_is_nothing_known_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no images")
    (tmp_path / "cut.npz").write_bytes(npz(tmp_path / "a.npz").read_bytes()[:-50])
    for name in ("empty", "text", "cut.npz"):
        with pytest.raises(UserError, match=f"{name}: no labelled images.*known are digits, .*CIFAR-100.*npz"):
            open_images(ImagesConfig(source=str(tmp_path / name)), "train")
    with pytest.raises(UserError, match=r"cannot be read \(No such file"):
        open_images(ImagesConfig(source=str(tmp_path / "absent")), "train")


def test_arrays_are_brought_to_a_size(tmp_path):
    for source in (npz(tmp_path / "a.npz"), cifar10_binary(tmp_path, 10)):
        own, large = (open_images(ImagesConfig(source=str(source), size=size), "train") for size in (None, 48))
        assert large.shape == (own.shape[0], 48, 48)
        rows = torch.arange(4)
        small, brought = own.views(rows), large.views(rows)
        assert brought.shape == (4, *large.shape) and large.views(rows, torch.rand(4, 5)).shape == brought.shape
        assert torch.allclose(brought.mean((2, 3)), small.mean((2, 3)), atol=0.02)
        back = torch.nn.functional.interpolate(brought, small.shape[2:], mode="bilinear", antialias=True)
        assert (back - small).abs().mean() < 0.5 * small.abs().mean()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    return {
        "arrays": {"source": str(cifar10_binary(folder, 10))},
        "files": {"source": str(image_folder(folder / "files", height=20, width=25, per_class=5)), "size": 16},
    }


@pytest.mark.parametrize("kind", ["arrays", "files"])
@pytest.mark.parametrize("varied", [{"flip": True, "pad": 3}, {"flip": True, "zoom": 0.2}, {}])
@settings(max_examples=8, deadline=None)
@given(st.integers(1, 5), st.permutations(range(6)), st.integers(0, 9))
def test_a_view_is_a_function_of_image_and_draws(sources, kind, varied, size, order, seed):
    images = open_images(ImagesConfig(**sources[kind], **varied), "train")
    draws = torch.rand(6, DRAWS, generator=torch.Generator().manual_seed(seed))
    rows = torch.arange(6)
    together = images.views(rows, draws)
    parts = torch.cat([images.views(rows[part], draws[part]) for part in torch.tensor(order).split(size)])
    assert torch.equal(parts, together[order])
    assert together.dtype == torch.float32 and together.shape[1:] == images.shape
    assert torch.equal(together, images.views(rows)) == (not varied)


def test_padding_shows_the_mean(tmp_path):
    images = open_images(ImagesConfig(source=str(cifar10_binary(tmp_path)), pad=32), "train")
    assert not images.views(torch.tensor([0]), torch.zeros(1, DRAWS)).any()


def test_a_digest_is_of_labels_and_pixels(tmp_path):
    labels, sums = np.arange(60) % 3, set()
    pixels = np.random.default_rng(0).integers(0, 256, (60, 1, 4, 4), np.uint8)
    turned, other = pixels.copy(), labels.copy()
    turned[-1, 0, 0, 0] ^= 1
    other[0] = 1
    for number, (one, two) in enumerate([(pixels, labels), (turned, labels), (pixels, other), (pixels, labels)]):
        file = npz(tmp_path / f"{number}.npz", images=one, labels=two)
        sums.add(open_images(ImagesConfig(source=str(file), validation=0, test=0), "train").digest)
    assert len(sums) == 3
    config = ImagesConfig(source=str(file))
    assert len({open_images(config, split).digest for split in SPLITS}) == 3

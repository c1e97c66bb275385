from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_images import image_folder
from PIL import Image

from navprune.errors import UserError
from navprune.images import folders
from navprune.images.folders import DEVIATION, MEAN, read_folder


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_training_and_test_images_are_told_apart(tmp_path):
    source = read_folder(image_folder(tmp_path, classes=3, per_class=4, tests=2), None)
    assert source.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [0, 0, 1, 1, 2, 2] and source.training == 12
    assert source.classes == ("class_0", "class_1", "class_2") and source.pixels.shape == (3, 40, 48)


def test_without_test_images_all_are_for_training(tmp_path):
    source = read_folder(image_folder(tmp_path, tests=0), 32)
    assert source.training == len(source.labels) == 18 and source.pixels.shape == (3, 32, 32)


def test_a_class_may_be_called_train_and_other_files_are_passed_over(tmp_path):
    for name in ("train/a.JPEG", "val/b.webp", "val/deep/c.png"):
        save(tmp_path / name, Image.new("RGB", (4, 4)))
    for name in ("val/notes.txt", "val/._b.webp", ".cache/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    source = read_folder(tmp_path, None)
    assert source.classes == ("train", "val") and source.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "1", "I", "LA"])
def test_images_of_all_kinds_become_rgb(tmp_path, mode):
    path = save(tmp_path / "a" / "b.tiff", Image.fromarray(noise(5, 6)).convert("L").convert(mode))
    with Image.open(path) as image:
        wanted = np.array(image.convert("RGB"))
    found = read_folder(tmp_path, None).pixels.whole(torch.tensor([0]))[0]
    assert np.array_equal(found.permute(1, 2, 0), wanted)


def test_the_orientation_that_a_camera_noted_is_not_heeded(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    save(tmp_path / "a" / "b.png", Image.fromarray(noise(4, 8)), exif=exif)
    assert read_folder(tmp_path, None).pixels.shape == (3, 4, 8)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_the_middle_of_any_image_is_brought_to_the_size(tmp_path_factory, height, width, size):
    root = tmp_path_factory.mktemp("folder")
    save(root / "a" / "b.png", Image.new("RGB", (width, height), (10, 20, 30)))
    found = read_folder(root, size).pixels.whole(torch.tensor([0]))[0]
    assert torch.equal(found, torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None].expand(3, size, size))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 40), (45, 32)])
def test_an_image_whose_shorter_side_fits_is_cut_alone(tmp_path, height, width):
    pixels = noise(height, width)
    save(tmp_path / "a" / "b.png", Image.fromarray(pixels))
    top, left = round((height - 28) / 2), round((width - 28) / 2)  # 32 = 28 * 256 / 224
    found = read_folder(tmp_path, 28).pixels.whole(torch.tensor([0]))[0].permute(1, 2, 0)
    assert np.array_equal(found, pixels[top : top + 28, left : left + 28])


def test_a_zoomed_view_of_everything_is_the_image_resized(tmp_path):
    save(tmp_path / "a" / "b.png", Image.fromarray(noise(40, 40)))
    found = read_folder(tmp_path, 28).pixels.zoomed(torch.tensor([0]), 1.0, torch.rand(1, 4))[0].permute(1, 2, 0)
    assert np.array_equal(found, Image.fromarray(noise(40, 40)).resize((28, 28), Image.Resampling.BILINEAR))


def test_the_normalisation_is_that_of_imagenet(tmp_path):
    mean, deviation = read_folder(image_folder(tmp_path), None).pixels.normalisation(torch.arange(3))
    assert (mean.flatten() / 255).tolist() == pytest.approx(MEAN)
    assert (deviation.flatten() / 255).tolist() == pytest.approx(DEVIATION)


def test_a_fingerprint_is_of_names_and_sizes(tmp_path):
    pixels = read_folder(image_folder(tmp_path), 8).pixels
    first, second = (b"".join(pixels.fingerprint(torch.tensor(rows))) for rows in ([0, 1], [0, 2]))
    assert first != second
    with (tmp_path / "train" / "class_0" / "0.png").open("ab") as file:
        file.write(b"more")
    assert b"".join(pixels.fingerprint(torch.tensor([0, 1]))) != first


def test_an_image_that_does_not_decode_is_named(tmp_path):
    path = image_folder(tmp_path, ending=".jpg") / "train" / "class_1" / "6.jpg"
    data = path.read_bytes()
    for broken in (data[: len(data) // 2], b"", b"text", data[:20]):
        path.write_bytes(broken)
        pixels = read_folder(tmp_path, 32).pixels
        with pytest.raises(UserError, match=r"class_1/6.jpg: is no image or a damaged one"):
            pixels.whole(torch.arange(18))
        assert pixels.whole(torch.arange(6)).shape == (6, 3, 32, 32)


def test_threads_are_kept_and_workers_share_the_cores(tmp_path, monkeypatch):
    pixels = read_folder(image_folder(tmp_path), 8).pixels
    begun = []
    monkeypatch.setattr(folders, "cores", lambda: 9)
    monkeypatch.setattr(folders, "ThreadPoolExecutor", lambda count: begun.append(count) or ThreadPoolExecutor(1))
    for count in ("1", "1", "4", "99"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", count)
        pixels.whole(torch.arange(3))
    folders._pool.cache_clear()
    assert begun == [9, 2, 1]


def test_images_of_different_sizes_need_one_to_be_brought_to(tmp_path):
    save(image_folder(tmp_path) / "train" / "class_0" / "odd.png", Image.new("RGB", (7, 9)))
    with pytest.raises(UserError, match=r"0.png is 48 x 40 pixels and .*odd.png 7 x 9; give images.size"):
        read_folder(tmp_path, None)
    assert read_folder(tmp_path, 8).pixels.shape == (3, 8, 8)


def test_a_class_without_images_is_named(tmp_path):
    (image_folder(tmp_path) / "train" / "class_9").mkdir()
    with pytest.raises(UserError, match="class_9: has no images"):
        read_folder(tmp_path, None)

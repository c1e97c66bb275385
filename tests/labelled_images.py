"""Labelled images as downloaded or kept, small and learnable: each class is a pattern of its own, with noise."""

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image


def learnable(labels, shape=(3, 32, 32), seed=0):
    """Images uint8 [M, C, H, W] of labels [M]; a class looks the same whatever the seed, which draws the noise."""
    channels, height, width = shape
    kinds = int(max(labels)) + 1
    patterns = np.random.default_rng(12345).integers(40, 216, (kinds, channels, 4, 4))
    enlarged = patterns[:, :, np.arange(height)[:, None] * 4 // height, np.arange(width) * 4 // width]
    noise = np.random.default_rng(seed).normal(0, 20, (len(labels), *shape))
    return (enlarged[labels] + noise).clip(0, 255).astype(np.uint8)


def cifar10_binary(folder, per_batch=20):
    """FOLDER/cifar-10-batches-bin, which is returned."""
    place = _made(folder, "cifar-10-batches-bin")
    for seed, name in enumerate([*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]):
        labels = np.arange(per_batch) % 10
        rows = np.column_stack([labels, learnable(labels, seed=seed).reshape(per_batch, -1)])
        (place / name).write_bytes(rows.astype(np.uint8).tobytes())
    (place / "batches.meta.txt").write_text("\n".join(_names(10)) + "\n\n")
    return place


def cifar100_binary(folder, train=300, test=100):
    """FOLDER/cifar-100-binary, which is returned; the coarse label is a fifth of the fine one."""
    place = _made(folder, "cifar-100-binary")
    for seed, (name, count) in enumerate([("train.bin", train), ("test.bin", test)]):
        labels = np.arange(count) % 100
        rows = np.column_stack([labels // 5, labels, learnable(labels, seed=seed).reshape(count, -1)])
        (place / name).write_bytes(rows.astype(np.uint8).tobytes())
    (place / "fine_label_names.txt").write_text("\n".join(_names(100)) + "\n")
    (place / "coarse_label_names.txt").write_text("\n".join(_names(20)) + "\n")
    return place


def cifar10_python(folder, per_batch=20):
    """FOLDER/cifar-10-batches-py, which is returned, with the images of `cifar10_binary`."""
    place = _made(folder, "cifar-10-batches-py")
    for seed, name in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]):
        labels = np.arange(per_batch) % 10
        batch = {
            b"batch_label": f"training batch {seed + 1} of 5".encode(),
            b"labels": labels.tolist(),
            b"data": learnable(labels, seed=seed).reshape(per_batch, -1),
            b"filenames": [f"image_{number}.png".encode() for number in range(per_batch)],
        }
        (place / name).write_bytes(python2_pickle(batch))
    meta = {b"num_cases_per_batch": per_batch, b"label_names": [name.encode() for name in _names(10)], b"num_vis": 3072}
    (place / "batches.meta").write_bytes(python2_pickle(meta))
    return place


def cifar100_python(folder, train=300, test=100):
    """FOLDER/cifar-100-python, which is returned, with the images of `cifar100_binary`."""
    place = _made(folder, "cifar-100-python")
    for seed, (name, count) in enumerate([("train", train), ("test", test)]):
        labels = np.arange(count) % 100
        batch = {
            b"filenames": [f"image_{number}.png".encode() for number in range(count)],
            b"batch_label": f"{name}ing batch 1 of 1".encode(),
            b"fine_labels": labels.tolist(),
            b"coarse_labels": (labels // 5).tolist(),
            b"data": learnable(labels, seed=seed).reshape(count, -1),
        }
        (place / name).write_bytes(python2_pickle(batch))
    names = {f"{kind}_label_names".encode(): [name.encode() for name in _names(many)] for kind, many in KINDS}
    (place / "meta").write_bytes(python2_pickle(names))
    return place


KINDS = [("fine", 100), ("coarse", 20)]


def tar_of(folder):
    """FOLDER.tar.gz beside a folder, which is returned."""
    archive = Path(f"{folder}.tar.gz")
    with tarfile.open(archive, "w:gz", compresslevel=1) as file:
        file.add(folder, folder.name)
    return archive


def image_folder(folder, classes=3, per_class=6, tests=2, height=40, width=48, ending=".png"):
    """FOLDER/train/CLASS and FOLDER/val/CLASS of image files; without `tests` FOLDER/CLASS alone."""
    names = sorted(_names(classes))
    for seed, (part, count) in enumerate([("train" if tests else "", per_class), ("val", tests)]):
        labels = np.repeat(np.arange(classes), count)
        for number, label in enumerate(labels):
            image = learnable(labels, (3, height, width), seed)[number]
            path = folder / part / names[label] / f"{number}{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(path)
    return folder


def npz(path, count=60, kinds=3, shape=(1, 8, 8), tests=0, **more):
    """An .npz file of images and labels, with so many test images, and whatever else is given."""
    labels = np.arange(count) % kinds
    arrays = {"images": learnable(labels, shape), "labels": labels}
    if tests:
        theirs = np.arange(tests) % kinds
        arrays |= {"test_images": learnable(theirs, shape, seed=1), "test_labels": theirs}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{**arrays, **more})
    return path


def python2_pickle(value):
    """A pickle as Python 2 with its NumPy wrote them: texts are bytes, and NumPy's inner module has its old name."""
    stream = io.BytesIO()
    _Python2(stream, protocol=2).dump(value)
    return stream.getvalue()


class _Python2(pickle._Pickler):
    write: Callable[[bytes], object]
    memoize: Callable[[object], object]
    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def save_bytes(self, obj):
        short = len(obj) < 256
        self.write(pickle.SHORT_BINSTRING if short else pickle.BINSTRING)
        self.write(len(obj).to_bytes(1 if short else 4, "little") + obj)
        self.memoize(obj)

    def save_str(self, obj):
        self.save_bytes(obj.encode())

    def save_global(self, obj, name=None):
        module = obj.__module__.replace("numpy._core", "numpy.core")
        self.write(pickle.GLOBAL + f"{module}\n{obj.__name__}\n".encode())
        self.memoize(obj)

    dispatch[bytes], dispatch[str], dispatch[type] = save_bytes, save_str, save_global
    dispatch[type(learnable)] = save_global


def _names(count):
    return [f"class_{number}" for number in range(count)]


def _made(folder, name):
    place = Path(folder) / name
    place.mkdir(parents=True)
    return place

"""Labelled images as arrays in an .npz file."""

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from navprune.errors import UserError, plain
from navprune.images.sources import Arrays, Source

MOST_CLASSES = 100_000
COLOURS = 1, 3
"""Channels of what is likely to be an image, where a shape could be read in two ways."""


def read_npz(path: Path) -> Source | None:
    """Images and labels of an .npz file; None where it is no such file.

    "images" are [M, C, H, W], or [M, H, W, C] where the last axis alone can be grey or colours; uint8 or numbers that
    become float32. "labels" are whole numbers [M]. "test_images", "test_labels" and "classes", names [K], may be there.
    Nothing is unpickled. Raises UserError for anything else.
    """
    if not zipfile.is_zipfile(path):
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in ("images", "labels")}
            held |= {name: file[name] for name in ("test_images", "test_labels", "classes") if name in file}
    except Exception as error:  # over a damaged file, NumPy, zipfile and zlib raise nearly anything
        fault = f"cannot be read as labelled images ({plain(error)})"
        raise UserError(f"{path}: {fault}; write images and labels with numpy.savez") from None
    images, labels = _pair(path, held, "images", "labels")
    training, names = len(labels), held.get("classes")
    if ("test_images" in held) != ("test_labels" in held):
        raise UserError(f"{path}: has one of test_images and test_labels; give both or none")
    if "test_images" in held:
        more, their = _pair(path, held, "test_images", "test_labels")
        if more.shape[1:] != images.shape[1:] or more.dtype != images.dtype:
            kinds = " and ".join(f"{each.dtype} {list(each.shape[1:])}" for each in (images, more))
            raise UserError(f"{path}: images and test_images differ, {kinds}; make them alike")
        images, labels = np.concatenate([images, more]), np.concatenate([labels, their])
    count = int(labels.max()) + 1
    if names is not None and (names.ndim != 1 or names.dtype.kind not in "US" or len(names) < count):
        raise UserError(f"{path}: classes are {names.dtype} {list(names.shape)}; give {count} names or more, as text")
    classes = (
        range(count)
        if names is None
        else (each.decode(errors="replace") if isinstance(each, bytes) else each for each in names)
    )
    return Source(Arrays(images), labels, tuple(map(str, classes)), training)


def _pair(path: Path, held: dict[str, NDArray], first: str, second: str) -> tuple[NDArray, NDArray[np.int64]]:
    """Images uint8 or float32 [M, C, H, W] and labels int64 [M] of these names."""
    images, labels = held[first], held[second]
    if images.ndim != 4 or labels.shape != images.shape[:1] or labels.dtype.kind not in "iub" or not images.size:
        shapes = f"{first} {list(images.shape)} and {second} {labels.dtype} {list(labels.shape)}"
        raise UserError(f"{path}: holds {shapes}; give images [M, C, H, W] and whole labels [M]")
    if stray := [each for each in (int(labels.min()), int(labels.max())) if not 0 <= each < MOST_CLASSES]:
        raise UserError(f"{path}: {second} hold {stray[0]}; labels count from 0, up to {MOST_CLASSES - 1}")
    if images.dtype.kind not in "iubf":
        raise UserError(f"{path}: {first} are {images.dtype}; give uint8 or real numbers")
    if images.shape[3] in COLOURS and min(images.shape[1:3]) > max(COLOURS):
        images = images.transpose(0, 3, 1, 2)
    if images.dtype != np.uint8:
        images = images.astype(np.float32)
        if not np.isfinite(images).all():
            raise UserError(f"{path}: {first} have values that are not finite; mend them")
    return images, labels.astype(np.int64)

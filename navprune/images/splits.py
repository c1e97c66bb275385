"""Labelled images as splits train, val and test, normalised, with training views."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from navprune.errors import UserError
from navprune.images.cifar import read_cifar
from navprune.images.config import DIGITS, ImagesConfig
from navprune.images.digits import read_digits
from navprune.images.folders import read_folder
from navprune.images.npz import read_npz
from navprune.images.sources import Pixels, Resized, Source
from navprune.images.views import DRAWS, mirrored, shifted

__all__ = ["DRAWS", "SPLITS", "TEST", "TRAIN", "VAL", "Images", "hold_out", "open_images"]

TRAIN, VAL, TEST = SPLITS = ("train", "val", "test")
SETTINGS = {VAL: "validation", TEST: "test"}
KNOWN = (
    f"{DIGITS}, the folders and archives of CIFAR-10 and CIFAR-100, folders CLASS/IMAGE (or train/CLASS/IMAGE with "
    "val/CLASS/IMAGE), and .npz files"
)


@dataclass(frozen=True, eq=False)
class Images:
    """One split of labelled images."""

    labels: Tensor
    """int64 [M]"""
    classes: tuple[str, ...]
    config: ImagesConfig
    pixels: Pixels
    rows: Tensor
    """int64 [M], which of the pixels' images are in this split"""
    mean: Tensor
    """[C, 1, 1], as the deviation: of the training split, or the usual ones of folders of images"""
    deviation: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a view."""
        return self.pixels.shape

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hexadecimal digits, of labels, classes and pixels; of files their names and sizes."""
        hashed = hashlib.sha256(f"{self.shape} {self.classes}".encode())
        hashed.update(self.labels.numpy().tobytes())
        for data in self.pixels.fingerprint(self.rows):
            hashed.update(data)
        return hashed.hexdigest()

    def views(self, rows: Tensor, draws: Tensor | None = None) -> Tensor:
        """Images float32 [B, C, H, W] of rows int64 [B], normalised: as evaluated, or as trained on with `draws`.

        `draws` are float32 [B, DRAWS], uniform in [0, 1): the same numbers give the same view of an image in any batch.
        Raises UserError for a file that cannot be decoded.
        """
        rows, config = self.rows[rows], self.config
        if draws is None:
            return self._normalised(self.pixels.whole(rows))
        if config.zoom < 1:
            views = self._normalised(self.pixels.zoomed(rows, config.zoom, draws[:, 1:5]))
        else:
            views = self._normalised(self.pixels.whole(rows))
        if config.pad:
            views = shifted(views, config.pad, draws[:, 1:3])
        return mirrored(views, draws[:, 0]) if config.flip else views

    def _normalised(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) / self.deviation


def open_images(config: ImagesConfig, split: str) -> Images:
    """One split of labelled images; the data set opened last is kept, so the other splits cost nothing.

    Raises UserError where there is no such split or data, and for data that is damaged or of an unknown layout.
    """
    if split not in SPLITS:
        raise UserError(f"there is no split {split} of labelled images; known are {', '.join(SPLITS)}")
    parts = _opened(config, _changed(config.source))
    if not len(parts[split]):
        other = next(name for name in (VAL, TEST, TRAIN) if len(parts[name]))
        fault = f"there is no split {split}, for images.{SETTINGS[split]} is 0"
        raise UserError(f"{config.source}: {fault}; give --split {other}, or train anew with a share")
    return parts[split]


def hold_out(labels: NDArray, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw which images are held out, bool [M] as `labels`: of each class the same share, as nearly as can be.

    Of a class of two images and more, at least one is held out and one is not; of a single one none is.
    """
    held = np.zeros(len(labels), bool)
    if share > 0:
        order = rng.permutation(len(labels))
        order = order[np.argsort(labels[order], kind="stable")]
        _, first, count = np.unique(labels[order], return_index=True, return_counts=True)
        chosen = np.minimum(np.maximum(np.rint(share * count), 1), count - 1)
        held[order] = np.arange(len(labels)) - np.repeat(first, count) < np.repeat(chosen, count)
    return held


@lru_cache(maxsize=1)
def _opened(config: ImagesConfig, changed: int | None) -> dict[str, Images]:
    """All splits; `changed` is when the source did."""
    source = _read(config.source, config.size, changed)
    labels, seed = source.labels, config.split_seed
    test = np.arange(len(labels)) >= source.training
    if not test.any():
        test = hold_out(labels, config.test, np.random.default_rng([seed, 0]))
    if strangers := sorted({*labels[test].tolist()} - {*labels[~test].tolist()}):
        names = ", ".join(source.classes[label] for label in strangers[:5])
        raise UserError(f"{config.source}: only the test images show {names}; take such classes out, or add to train")
    val = ~test
    val[~test] = hold_out(labels[~test], config.validation, np.random.default_rng([seed, 1]))
    rows = {TRAIN: ~test & ~val, VAL: val, TEST: test}
    for split, setting in SETTINGS.items():
        if getattr(config, setting) and not rows[split].any():
            fault = f"split {split} is empty: no class has an image to spare; give more images, or images.{setting}=0"
            raise UserError(f"{config.source}: {fault}")
    chosen = {split: torch.from_numpy(np.flatnonzero(mask)) for split, mask in rows.items()}
    mean, deviation = source.pixels.normalisation(chosen[TRAIN])
    known = torch.from_numpy(labels)
    return {
        split: Images(known[each], source.classes, config, source.pixels, each, mean, deviation)
        for split, each in chosen.items()
    }


@lru_cache(maxsize=1)
def _read(name: str, size: int | None, changed: int | None) -> Source:
    """The data set that a source names."""
    path = Path(name)
    source = read_digits() if name == DIGITS else read_npz(path) or read_cifar(path)
    if source and size is not None:
        source = replace(source, pixels=Resized(source.pixels, size))
    source = source or read_folder(path, size)
    if source is None:
        raise UserError(f"{name}: no labelled images are found in it, or it is cut off; known are {KNOWN}")
    return source


def _changed(name: str) -> int | None:
    """When the file or folder of a source last changed; raises UserError where there is none."""
    if name == DIGITS:
        return None
    try:
        return Path(name).stat().st_mtime_ns
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{name}: cannot be read ({reason}); images.source is to name one of {KNOWN}") from None

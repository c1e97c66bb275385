"""Folders of images, one for each class: ImageNet's layout."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from navprune.errors import UserError, plain
from navprune.images.sources import Source
from navprune.images.views import cut
from navprune.machine import cores, workers_here

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""As torchvision's ImageFolder, in any case."""
MEAN = 0.485, 0.456, 0.406
DEVIATION = 0.229, 0.224, 0.225
"""Of ImageNet's training images, values from 0 to 1, as published networks expect."""
MARGIN = 256 / 224
"""The shorter side over that of the square cut out of it, as ImageNet is usually evaluated."""
Answer = TypeVar("Answer")


class Files:
    """Images in files, decoded as RGB when asked for; EXIF orientation is not heeded, as torchvision does not."""

    def __init__(self, root: Path, names: Sequence[str], size: int | None):
        """Names below `root`; `size` as in ImagesConfig. Raises UserError where sizes differ and none is given."""
        self._root, self._names, self._size = root, names, size
        self.shape = (3, size, size) if size else (3, *self._common())

    def whole(self, rows: Tensor) -> Tensor:
        """Images uint8 [B, 3, H, W]: the middle of each, or all of it where no size is given."""
        return self._decoded(rows, [self._middle] * len(rows))

    def zoomed(self, rows: Tensor, least: float, draws: Tensor) -> Tensor:
        """Pieces of the files' own images, brought to uint8 [B, 3, H, W]."""

        def piece(numbers: Sequence[float]) -> Callable[[Image.Image], Image.Image]:
            def taken(image: Image.Image) -> Image.Image:
                top, left, tall, wide = cut(image.height, image.width, least, numbers)
                return self._brought(image.crop((left, top, left + wide, top + tall)), *self.shape[1:])

            return taken

        return self._decoded(rows, [piece(numbers) for numbers in draws.tolist()])

    def normalisation(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """ImageNet's usual mean and deviation, whatever the images."""
        mean, deviation = (255 * torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        return mean, deviation

    def fingerprint(self, rows: Tensor) -> Iterator[bytes]:
        """Names and sizes of the files."""
        for row in rows.tolist():
            try:
                yield f"{self._names[row]}\0{(self._root / self._names[row]).stat().st_size}\0".encode()
            except OSError as error:
                raise UserError(f"{self._root / self._names[row]}: cannot be read ({error.strerror})") from None

    def _common(self) -> tuple[int, int]:
        """Height and width of all images."""
        sizes = _each(lambda name: self._opened(name, lambda image: image.size), self._names)
        for name, size in zip(self._names, sizes):
            if size != sizes[0]:
                one, other = (f"{width} x {height}" for width, height in (sizes[0], size))
                fault = f"{self._names[0]} is {one} pixels and {name} {other}"
                raise UserError(f"{self._root}: {fault}; give images.size to bring all to one size")
        width, height = sizes[0]
        return height, width

    def _decoded(self, rows: Tensor, changes: Iterable[Callable[[Image.Image], Image.Image]]) -> Tensor:
        def decoded(row: int, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
            return self._opened(self._names[row], lambda image: np.array(change(image.convert("RGB"))))

        images = _each(decoded, rows.tolist(), changes)
        stacked = np.stack(images) if images else np.empty((0, *self.shape[1:], 3), np.uint8)
        return torch.from_numpy(stacked).permute(0, 3, 1, 2)

    def _opened(self, name: str, use: Callable[[Image.Image], Answer]) -> Answer:
        try:
            with Image.open(self._root / name) as image:
                return use(image)
        except Exception as error:  # decoders raise whatever the broken part happens to trip over
            fault = f"is no image or a damaged one ({plain(error)})"
            raise UserError(f"{self._root / name}: {fault}; fetch it again or take it away") from None

    def _middle(self, image: Image.Image) -> Image.Image:
        if self._size is None:
            return image
        shorter = round(self._size * MARGIN)
        width, height = (side * shorter // min(image.size) for side in image.size)
        left, top = round((width - self._size) / 2), round((height - self._size) / 2)
        return self._brought(image, height, width).crop((left, top, left + self._size, top + self._size))

    @staticmethod
    def _brought(image: Image.Image, height: int, width: int) -> Image.Image:
        return image.resize((width, height), Image.Resampling.BILINEAR)


def read_folder(root: Path, size: int | None) -> Source | None:
    """Images of ROOT/train/CLASS and, as test images, ROOT/val/CLASS, or of ROOT/CLASS; None where there are none.

    Classes are in the order of their folders' names. Raises UserError for a class without images.
    """
    parted = any(entry.is_dir() for entry in _entries(root / "train")) and (root / "val").is_dir()
    parts = [_classes(root / "train", root), _classes(root / "val", root)] if parted else [_classes(root, root), {}]
    classes = sorted({name for part in parts for name in part})
    names, labels = list[str](), list[int]()
    counts = []
    for part in parts:
        for label, name in enumerate(classes):
            files = part.get(name, [])
            names += files
            labels += [label] * len(files)
        counts.append(len(names))
    if not names:
        return None
    return Source(Files(root, names, size), np.array(labels, np.int64), tuple(classes), counts[0])


def _classes(folder: Path, root: Path) -> dict[str, list[str]]:
    """The images of each folder in a folder, named from the root; hidden ones are passed over."""
    found = {}
    for entry in _entries(folder):
        if entry.is_dir() and not entry.name.startswith("."):
            found[entry.name] = sorted(
                os.path.join(below, name)
                for place, _, names in os.walk(entry.path, followlinks=True)
                for below in [os.path.relpath(place, root)]
                for name in names
                if name.lower().endswith(ENDINGS) and not name.startswith(".")
            )
    if any(found.values()) and (empty := [name for name, files in found.items() if not files]):
        raise UserError(f"{folder / empty[0]}: has no images; put some there, or take the folder away")
    return found


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder; nothing where it is none."""
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None


def _each(function: Callable[..., Answer], *items: Iterable) -> list[Answer]:
    """What a function makes of items, on a few threads."""
    return list(_pool(min(max(1, cores() // workers_here()), 16)).map(function, *items))


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that wait for the next batch: to begin them takes as long as to decode a few small images."""
    return ThreadPoolExecutor(threads)

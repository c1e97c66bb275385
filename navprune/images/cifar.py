"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) as downloaded: binary and Python versions, folders and archives."""

import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from navprune.errors import UserError, plain
from navprune.images.pickles import unpickled
from navprune.images.sources import Arrays, Source

SHAPE = 3, 32, 32
PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Layout:
    """One version of one of the data sets."""

    folder: str
    """Its name as downloaded."""
    train: tuple[str, ...]
    test: str
    names: str
    """The file with the names of classes."""
    labels: int | str
    """Bytes of labels before each image, of which the last one counts; in a pickle the key of the labels."""
    named: str = ""
    """In a pickle the key of the names."""


LAYOUTS = (
    Layout(
        "cifar-10-batches-bin",
        tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        "test_batch.bin",
        "batches.meta.txt",
        labels=1,
    ),
    Layout("cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", labels=2),
    Layout(
        "cifar-10-batches-py",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        "test_batch",
        "batches.meta",
        labels="labels",
        named="label_names",
    ),
    Layout("cifar-100-python", ("train",), "test", "meta", labels="fine_labels", named="fine_label_names"),
)
FILES = {name for layout in LAYOUTS for name in (*layout.train, layout.test, layout.names)}


def read_cifar(path: Path) -> Source | None:
    """Images and fine labels of a version's folder, the folder above it, or its archive; None where there is none.

    Archives are read member by member; nothing is written to disk or executed. Raises UserError where a file is
    missing, cut off or of another kind, and where a folder holds several versions.
    """
    folders = _unpacked(path) if path.is_dir() else _archived(path)
    found = [(layout, held) for layout in LAYOUTS for held in folders if any(name in held for name in layout.train)]
    if len(found) > 1:
        names = ", ".join(layout.folder for layout, _ in found)
        raise UserError(f"{path}: holds {names}; name one of these folders")
    return _read(path, *found[0]) if found else None


def _unpacked(path: Path) -> list[dict[str, Path]]:
    """The files, by name, that may be CIFAR's in a folder and in those folders in it that are called as downloaded."""
    places = [path, *(path / layout.folder for layout in LAYOUTS)]
    return [{name: place / name for name in sorted(FILES) if (place / name).is_file()} for place in places]


def _archived(path: Path) -> list[dict[str, bytes]]:
    """The contents, by name, of those files of an archive's folders that may be CIFAR's; none of another file."""
    folders: dict[PurePosixPath, dict[str, bytes]] = {}
    try:
        if not tarfile.is_tarfile(path):
            return []
        with tarfile.open(path) as archive:
            for member in archive:  # in their order, for what is compressed can only be gone through once
                place = PurePosixPath(member.name)
                if member.isfile() and place.name in FILES and (stream := archive.extractfile(member)):
                    folders.setdefault(place.parent, {})[place.name] = stream.read()
    except Exception as error:  # over a damaged archive, tarfile and what unpacks for it raise nearly anything
        raise UserError(f"{path}: the archive is cut off or damaged ({plain(error)}); fetch it again") from None
    return list(folders.values())


def _read(path: Path, layout: Layout, held: Mapping[str, Path | bytes]) -> Source:
    def content(name: str) -> bytes:
        if name not in held:
            raise UserError(f"{path}: {name} of {layout.folder} is missing; fetch the data set again")
        found = held[name]
        try:
            return found if isinstance(found, bytes) else found.read_bytes()
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None

    def parsed(name: str) -> dict[str, Any]:
        try:
            return unpickled(content(name))
        except UserError:
            raise
        except Exception as error:  # over a damaged pickle, pickle raises nearly anything
            reason = f"is cut off, or no file of {layout.folder} ({plain(error)})"
            raise UserError(f"{path}: {name} {reason}; fetch the data set again") from None

    if isinstance(layout.labels, int):
        classes = tuple(content(layout.names).decode(errors="replace").split())
    else:
        classes = _names(path, layout, parsed(layout.names))
    parts = []
    for name in (*layout.train, layout.test):
        if isinstance(layout.labels, int):
            pixels, labels = _records(f"{path}: {name}", content(name), layout.labels)
        else:
            pixels, labels = _batch(f"{path}: {name}", parsed(name), layout.labels)
        if labels.size and not 0 <= labels.min() <= labels.max() < len(classes):
            stray = next(label for label in labels.tolist() if not 0 <= label < len(classes))
            raise UserError(
                f"{path}: {name} has the label {stray}, and there are {len(classes)} classes; fetch it again"
            )
        parts.append((pixels, labels))
    images, labels = (np.concatenate(each) for each in zip(*parts))
    return Source(Arrays(images.reshape(-1, *SHAPE)), labels, classes, len(images) - len(parts[-1][0]))


def _names(path: Path, layout: Layout, held: dict[str, Any]) -> tuple[str, ...]:
    names = held.get(layout.named)
    if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
        raise UserError(f"{path}: {layout.names} has no list {layout.named}; fetch the data set again")
    return tuple(name.decode(errors="replace") if isinstance(name, bytes) else name for name in names)


def _records(where: str, data: bytes, labels: int) -> tuple[NDArray, NDArray[np.int64]]:
    """Pixels [M, 3072] and labels [M] of a file of the binary versions."""
    record = labels + PIXELS
    if not data or len(data) % record:
        fault = f"has {len(data)} bytes, no whole number of images of {record}"
        raise UserError(f"{where} {fault}: it is cut off or of another kind; fetch it again")
    rows = np.frombuffer(data, np.uint8).reshape(-1, record)
    return rows[:, labels:], rows[:, labels - 1].astype(np.int64)


def _batch(where: str, held: dict[str, Any], key: str) -> tuple[NDArray, NDArray[np.int64]]:
    """The same of a file of the Python versions."""
    pixels, labels = held.get("data"), held.get(key)
    if (
        not isinstance(pixels, np.ndarray)
        or not isinstance(labels, list)
        or pixels.shape != (len(labels), PIXELS)
        or not labels
        or not all(type(label) is int for label in labels)
    ):
        raise UserError(f"{where} does not hold as many {key} as images of {PIXELS} bytes; fetch it again")
    return pixels, np.array(labels, np.int64)

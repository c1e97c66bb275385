"""Finds the bytes of a glTF scene: one .glb, or a .gltf with the buffers and images beside it, or `data:` addresses.

Only files below the scene's own folder are read, so that a scene from elsewhere cannot open any file it names.
"""

import base64
import binascii
import json
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
from numpy.typing import NDArray

from navprune.errors import UserError, plain

JSON_CHUNK = 0x4E4F534A
BINARY_CHUNK = 0x004E4942
NO_SCENE = "export the scene as .glb, or as .gltf with its files beside it"

Range = tuple[int, int]
"""First byte and end."""


class Place(NamedTuple):
    """Where bytes lie in a file."""

    path: Path
    first: int
    end: int

    def read(self) -> NDArray[np.uint8]:
        """The bytes, as they are now in the file; ValueError where it has become shorter."""
        data = np.fromfile(self.path, np.uint8, self.end - self.first, offset=self.first)
        if len(data) != self.end - self.first:
            raise ValueError(f"{self.path.name} ends too early")
        return data

    def part(self, first: int, end: int) -> "Place":
        """Bytes first to end of it."""
        if not 0 <= first <= end <= self.end - self.first:
            raise ValueError("a part of it lies behind its end")
        return Place(self.path, self.first + first, self.first + end)


def chunks(path: Path) -> tuple[Range, Range]:
    """Where the JSON and the binary part of a scene file lie, by its headers: nothing else is read.

    A .gltf file is all JSON. Raises UserError where the file is missing, no glTF 2.0 or cut off.
    """
    if not path.is_file():
        raise UserError(f"{path}: scene not found; check the scenes folder and the name")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(4)
        if start != b"glTF":
            if (start + file.read(60)).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{":
                return (0, size), (size, size)
            raise UserError(f"{path}: not a glTF file (.glb or .gltf); {NO_SCENE}")
        try:
            version, _ = struct.unpack("<II", file.read(8))
            if version != 2:
                raise UserError(f"{path}: glTF of version {version}; export the scene as glTF 2.0")
            text = _chunk(file, JSON_CHUNK, size)
            # Chunks are padded to four bytes; a file without the second one holds no data.
            file.seek(text[1])
            return text, _chunk(file, BINARY_CHUNK, size) if text[1] < size else (size, size)
        except (struct.error, ValueError) as error:
            raise damaged(path, error) from None


def _chunk(file: IO[bytes], kind: int, limit: int) -> Range:
    """Where the contents lie of the chunk that begins here, in a file of `limit` bytes."""
    size, found = struct.unpack("<II", file.read(8))
    first = file.tell()
    if found != kind or first + size > limit:
        raise ValueError("a chunk is cut off")
    return first, first + size


def damaged(path: Path, error: Exception) -> UserError:
    """What to raise for a scene that a parser tripped over."""
    return UserError(f"{path}: glTF file is damaged or cut off ({plain(error)}); copy it again")


def read_document(path: Path) -> tuple[dict[str, Any], Place]:
    """The JSON part of a scene file, and where its binary part lies; raises as `chunks` does, and ValueError."""
    text, binary = chunks(path)
    document = json.loads(Place(path, *text).read().tobytes().decode("utf-8-sig"))
    version = str(document["asset"]["version"]) if "asset" in document else "2.0"
    if not version.startswith("2."):
        raise UserError(f"{path}: glTF of version {version}; export the scene as glTF 2.0")
    return document, Place(path, *binary)


def check_scene(path: Path) -> None:
    """Raise UserError where a scene is missing or cut off, or a .gltf lacks a buffer; of a .glb, headers are read."""
    if chunks(path)[0][0] > 0:
        return
    try:
        # A buffer without an address holds what is to be decompressed.
        for buffer in (each for each in read_document(path)[0].get("buffers", []) if "uri" in each):
            data = resource(path, buffer["uri"])
            if isinstance(data, Place) and data.end < buffer["byteLength"]:
                raise UserError(f"{path}: its file {data.path} is cut off; copy it again")
    except UserError:
        raise
    except Exception as error:  # whatever the broken part happens to trip over
        raise damaged(path, error) from error


def scene_files(path: Path) -> list[Path]:
    """All files that a scene is read from, itself first: its buffers and images, whether they are there or not.

    Reads the JSON part alone. Raises UserError where that is missing or damaged, or names a buffer elsewhere.
    """
    try:
        document, _ = read_document(path)
        files = [path, *(beside(path, uri) for uri in _addresses(document, "buffers"))]
        for uri in _addresses(document, "images"):
            with suppress(UserError):  # one elsewhere is not read, and the scene shown without it
                files.append(beside(path, uri))
        return list(dict.fromkeys(files))
    except UserError:
        raise
    except Exception as error:  # whatever the broken part happens to trip over
        raise damaged(path, error) from error


def _addresses(document: dict[str, Any], kind: str) -> list[str]:
    """Where a document's buffers or images lie that are files of their own."""
    entries = document.get(kind, [])
    return [entry["uri"] for entry in entries if not entry.get("uri", "data:").startswith("data:")]


def beside(scene: Path, uri: str) -> Path:
    """The file that a relative address (percent-encoded) means; UserError for one outside of the scene's folder."""
    name = os.path.normpath(unquote(uri).replace("\\", "/"))
    if not uri or ":" in uri.split("/")[0] or os.path.isabs(name) or name.split("/")[0] == ".." or "\0" in name:
        raise UserError(f"{scene}: names {uri[:80]!r}, which lies outside of its folder; put it beside the scene")
    return scene.parent / name


def resource(scene: Path, uri: str) -> Place | bytes:
    """What an address in a scene means: `data:` itself, or a file beside the scene.

    Raises UserError where there is no such file and where `data:` is no base64.
    """
    head, comma, text = uri.partition(",")
    if comma and head.startswith("data:"):
        try:
            return base64.b64decode(text, validate=True) if head.endswith(";base64") else unquote_to_bytes(text)
        except (ValueError, binascii.Error) as error:
            raise UserError(f"{scene}: its data are no base64 ({error}); export the scene again") from None
    path = beside(scene, uri)
    if not path.is_file():
        raise UserError(f"{scene}: its file {path.name} is missing; put {path} there, or export the scene as one .glb")
    return Place(path, 0, path.stat().st_size)

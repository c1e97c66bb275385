"""Reads binary glTF 2.0: the JSON part, accessors as arrays, and where each mesh of the scene stands.

A wrong number in a file must not cost memory: whatever is allocated is first held against the bytes that are there.
"""

import base64
import importlib
import json
import re
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from navprune.errors import UserError, plain

JSON_CHUNK = 0x4E4F534A
BINARY_CHUNK = 0x004E4942
COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
POINTS_AND_LINES = (0, 1, 2, 3)
TRIANGLES, STRIP, FAN = 4, 5, 6
DRACO = "KHR_draco_mesh_compression"
KNOWN = re.compile(  # extensions that are read, that are refused where they stand, or that depth and flat colours lack
    f"{DRACO}|(EXT|KHR)_meshopt_compression|KHR_mesh_quantization|KHR_lights_punctual|KHR_xmp.*|KHR_materials_.*"
    "|(KHR|EXT|MSFT|GOOGLE)_texture_.*"
)

Attributes = dict[str, NDArray[np.float32]]
Range = tuple[int, int]
"""First byte and end."""


def chunks(path: Path) -> tuple[Range, Range]:
    """Where the JSON and the binary part of a .glb file lie, by its headers: nothing else is read.

    Raises UserError where the file is missing, no glTF 2.0 or cut off.
    """
    if not path.is_file():
        raise UserError(f"{path}: scene not found; check the scenes folder and the name")
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != b"glTF":
            raise UserError(f"{path}: not a binary glTF file (.glb); export the scene as .glb")
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


class Glb:
    """A binary glTF file in memory; `document` is its JSON part.

    Methods raise UserError for what is compressed or lies outside the file, and whatever Python raises
    (KeyError, TypeError, ValueError, ...) for parts that are missing or malformed.
    """

    def __init__(self, path: Path):
        self.path = path
        (first, end), self._binary = chunks(path)
        self._data = path.read_bytes()
        self._decoded: dict[int, bytes] = {}  # buffers that stand in the JSON part
        self.document: dict[str, Any] = json.loads(self._data[first:end])
        for name in self.document.get("extensionsRequired", []):
            if not KNOWN.fullmatch(name):
                raise UserError(f"{path}: needs the glTF extension {name}, which is not read; export it without")

    def item(self, kind: str, index: int) -> dict[str, Any]:
        """An entry of one of the document's lists."""
        return self.document[kind][_natural(index)]

    def view(self, index: int) -> tuple[bytes, Range, int]:
        """Bytes in which a buffer view lies, where there, and its stride (0: tightly packed)."""
        view = self.item("bufferViews", index)
        if any("meshopt" in name for name in view.get("extensions", {})):
            raise self._compressed("meshopt")
        data, (start, limit) = self._buffer(view["buffer"])
        first = start + _natural(view.get("byteOffset", 0))
        end = first + _natural(view["byteLength"])
        if end > limit:
            raise ValueError(f"buffer view {index} ends behind the data")
        return data, (first, end), _natural(view.get("byteStride", 0))

    def _buffer(self, index: int) -> tuple[bytes, Range]:
        """Bytes in which a buffer lies, and where there."""
        buffer = self.item("buffers", index)
        if "uri" in buffer:
            if index not in self._decoded:
                self._decoded[index] = self._from_uri(buffer["uri"], "data")
            return self._decoded[index], (0, len(self._decoded[index]))
        if index != 0:
            raise ValueError(f"buffer {index} has no data")
        return self._data, self._binary

    def _from_uri(self, uri: str, what: str) -> bytes:
        """What an address holds that is its own data, `data:TYPE;base64,...`."""
        head, _, text = uri.partition(",")
        if not (head.startswith("data:") and head.endswith(";base64")):
            raise UserError(f"{self.path}: its {what} lie outside the file; export the scene as one .glb")
        try:
            return base64.b64decode(text, validate=True)
        except ValueError as error:
            raise UserError(f"{self.path}: its {what} are no base64 ({error}); export the scene again") from None

    def image(self, index: int) -> Range | bytes | UserError:
        """An image file: where it lies in the .glb file, or its bytes, or why it cannot be had."""
        image = self.item("images", index)
        if "bufferView" not in image:
            try:
                return self._from_uri(image.get("uri", ""), "textures")
            except UserError as error:
                return error
        data, place, _ = self.view(image["bufferView"])
        return place if data is self._data else data[slice(*place)]

    def _compressed(self, how: str) -> UserError:
        return UserError(
            f"{self.path}: its geometry is {how}-compressed, which nothing installed here decodes; convert it, for "
            f"example with `gltf-transform copy {self.path.name} OUT.glb`, or import and export it with Blender"
        )

    def _rows(self, source: dict[str, Any], count: int, dtype: np.dtype, width: int) -> NDArray:
        """Rows [count, width] in a buffer view, without copying."""
        data, (first, end), stride = self.view(source["bufferView"])
        first += _natural(source.get("byteOffset", 0))
        stride = stride or dtype.itemsize * width
        if count and first + stride * (count - 1) + dtype.itemsize * width > end:
            raise ValueError("an accessor reaches beyond its buffer view")
        return np.ndarray((count, width), dtype, data, first, (stride, dtype.itemsize))

    def accessor(self, index: int) -> NDArray:
        """Rows [count, width] of an accessor in its own type."""
        accessor = self.item("accessors", index)
        dtype, width = np.dtype(COMPONENTS[accessor["componentType"]]), WIDTHS[accessor["type"]]
        count = _natural(accessor["count"])
        if "bufferView" in accessor:
            rows = self._rows(accessor, count, dtype, width)
        elif count > len(self._data):
            raise ValueError(f"accessor {index} is longer than the file")
        else:
            rows = np.zeros((count, width), dtype)
        if "sparse" in accessor:
            sparse = accessor["sparse"]
            index_type = np.dtype(COMPONENTS[sparse["indices"]["componentType"]])
            changed = _natural(sparse["count"])
            where = self._rows(sparse["indices"], changed, index_type, 1)[:, 0]
            rows = rows.copy()
            rows[where] = self._rows(sparse["values"], changed, dtype, width)
        return rows

    def floats(self, index: int, normalised: bool = False) -> NDArray[np.float32]:
        """Rows of an accessor as numbers; integers count as shares of their maximum where it or the caller says so."""
        return _floats(self.accessor(index), normalised or self.item("accessors", index).get("normalized", False))

    def primitive(self, primitive: dict[str, Any], wanted: Iterable[str]) -> tuple[NDArray[np.int64], Attributes]:
        """Triangles [F, 3] (indices of vertices) and the wanted attributes that a primitive has; none for lines."""
        mode = primitive.get("mode", TRIANGLES)
        names = primitive["attributes"]
        if mode in POINTS_AND_LINES or "POSITION" not in names:
            return np.zeros((0, 3), np.int64), {}
        if DRACO in primitive.get("extensions", {}):
            mode = TRIANGLES  # what Draco keeps of strips too
            corners, attributes = self._draco(primitive, wanted)
        else:
            attributes = {name: self.floats(names[name], name == "COLOR_0") for name in wanted if name in names}
            corners = np.arange(len(attributes["POSITION"]))
            if "indices" in primitive:
                corners = self.accessor(primitive["indices"])[:, 0].astype(np.int64)
        counts = {len(rows) for rows in attributes.values()}
        if len(counts) != 1 or (corners.size and not 0 <= corners.min() <= corners.max() < min(counts)):
            raise ValueError("a primitive's indices or attributes do not fit together")
        return triangles_of(corners, mode), attributes

    def _draco(self, primitive: dict[str, Any], wanted: Iterable[str]) -> tuple[NDArray[np.int64], Attributes]:
        """Corners of the triangles and attributes of a Draco-compressed primitive."""
        try:
            decoder = importlib.import_module("DracoPy")  # optional
        except ImportError:
            raise self._compressed("Draco") from None
        compressed = primitive["extensions"][DRACO]
        data, place, _ = self.view(compressed["bufferView"])
        mesh = decoder.decode(data[slice(*place)])
        attributes = {}
        for name in wanted:
            if name in compressed["attributes"]:
                rows = mesh.get_attribute_by_unique_id(compressed["attributes"][name])["data"]
                said = self.item("accessors", primitive["attributes"][name])
                attributes[name] = _floats(rows, name == "COLOR_0" or said.get("normalized", False))
        return np.asarray(mesh.faces, np.int64).reshape(-1), attributes

    def placed_meshes(self) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """Index of the mesh and transform [4, 4] of each node with a mesh in the default scene."""
        scene = self.item("scenes", self.document.get("scene", 0))
        todo = deque((node, np.eye(4)) for node in scene.get("nodes", []))
        seen = set()
        while todo:
            index, above = todo.popleft()
            if index in seen:
                raise ValueError(f"node {index} has two parents")
            seen.add(index)
            node = self.item("nodes", index)
            transform = above @ _local_transform(node)
            if "mesh" in node:
                yield node["mesh"], transform
            todo.extend((child, transform) for child in node.get("children", []))


def _natural(value: Any) -> int:
    """The value, an integer from 0 on; a negative index would quietly count from the end."""
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is not a size or an index")
    return value


def _floats(rows: NDArray, normalised: bool) -> NDArray[np.float32]:
    if normalised and rows.dtype.kind in "iu":
        return np.maximum(rows / np.iinfo(rows.dtype).max, -1.0).astype(np.float32)
    return rows.astype(np.float32)


def triangles_of(corners: NDArray[np.int64], mode: int) -> NDArray[np.int64]:
    """Triangles [F, 3] of a list, strip or fan of corners, glTF's modes 4 to 6; its specification, 3.7.2.1."""
    if mode == TRIANGLES:
        return corners[: len(corners) // 3 * 3].reshape(-1, 3)
    if mode not in (STRIP, FAN):
        raise ValueError(f"{mode!r} is not a mode of primitives")
    if len(corners) < 3:
        return corners[:0].reshape(0, 3)
    if mode == FAN:
        return np.column_stack([corners[1:-1], corners[2:], np.full(len(corners) - 2, corners[0])])
    triangles = np.column_stack([corners[:-2], corners[1:-1], corners[2:]])
    triangles[1::2, 1:] = triangles[1::2, :0:-1]  # every other one is turned, so that all fronts agree
    return triangles


def _local_transform(node: dict[str, Any]) -> NDArray[np.float64]:
    """A node's transform [4, 4], from its matrix or from translation, rotation and scale."""
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    x, y, z, w = node.get("rotation", (0.0, 0.0, 0.0, 1.0))
    square = x * x + y * y + z * z + w * w
    s = 2.0 / square if square else 0.0
    rotation = np.array(
        [
            [1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)],
            [s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)],
            [s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)],
        ]
    )
    transform = np.eye(4)
    transform[:3, :3] = rotation * np.array(node.get("scale", (1.0, 1.0, 1.0)), np.float64)
    transform[:3, 3] = node.get("translation", (0.0, 0.0, 0.0))
    return transform

"""Reads glTF 2.0: accessors as arrays, and primitives of them.

Each accessor is read from the file by itself, when it is asked for. A wrong number in a file must not cost memory:
whatever is allocated is first held against the bytes that are there.
"""

import importlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from navprune.errors import UserError
from navprune.installing import COMPRESSED
from navprune.scenes.files.resources import Place, read_document, resource
from navprune.scenes.files.shapes import TRIANGLES

COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
ZEROS = 64  # rows of an accessor without data that a byte of the file is worth; those are read as zeros
DRACO = "KHR_draco_mesh_compression"
MESHOPT = ("EXT_meshopt_compression", "KHR_meshopt_compression")
MESHOPT_RATIO = 1024  # meshopt packs 256 bytes of each of four equal columns into one at best
KNOWN = re.compile(  # extensions that are read, that are refused where they stand, or that depth and flat colours lack
    f"{DRACO}|EXT_mesh_gpu_instancing|{'|'.join(MESHOPT)}|KHR_mesh_quantization|KHR_lights_punctual|KHR_xmp.*|KHR_materials_.*"
    "|(KHR|EXT|MSFT|GOOGLE)_texture_.*"
)

Attributes = dict[str, NDArray]


class Geometry(NamedTuple):
    """A primitive: `mode` says how corners [K], indices of vertices, make shapes. attributes: floats or integers."""

    mode: int
    corners: NDArray[np.integer]
    attributes: Attributes


class Gltf:
    """A glTF file; `document` is its JSON part.

    Methods raise UserError for what needs a decoder that is not installed or a file that is not there, and whatever
    Python raises (KeyError, TypeError, ValueError, ...) for parts that are missing or malformed.
    """

    def __init__(self, path: Path):
        self.path = path
        self.document, self._binary = read_document(path)
        self._buffers: dict[int, Place | bytes] = {}
        self._unpacked: dict[int, bytes] = {}  # buffer views that meshopt had compressed
        self.required = self.document.get("extensionsRequired", [])
        for name in self.required:
            if not KNOWN.fullmatch(name):
                raise UserError(f"{path}: needs the glTF extension {name}, which is not read; export it without")

    def item(self, kind: str, index: int) -> dict[str, Any]:
        """An entry of one of the document's lists."""
        return self.document[kind][natural(index)]

    def buffer(self, index: int) -> Place | bytes:
        """A buffer: where it lies, or its bytes."""
        if index not in self._buffers:
            entry = self.item("buffers", index)
            if "uri" not in entry and index != 0:
                raise ValueError(f"buffer {index} has no data")
            self._buffers[index] = resource(self.path, entry["uri"]) if "uri" in entry else self._binary
        return self._buffers[index]

    def view(self, index: int) -> tuple[Place | bytes, int]:
        """A buffer view: where it lies or its bytes, and its stride (0: tightly packed)."""
        view = self.item("bufferViews", index)
        for packed in (view["extensions"][name] for name in MESHOPT if name in view.get("extensions", {})):
            if index not in self._unpacked:
                self._unpacked[index] = self._decompressed(packed)
            return self._unpacked[index], natural(packed["byteStride"])
        return self._part(view), natural(view.get("byteStride", 0))

    def _part(self, view: dict[str, Any]) -> Place | bytes:
        first = natural(view.get("byteOffset", 0))
        return _part(self.buffer(view["buffer"]), first, first + natural(view["byteLength"]))

    def _decompressed(self, packed: dict[str, Any]) -> bytes:
        """What meshopt compressed; the extension's text in Khronos' registry says how."""
        decoder = self._decoder("meshopt")
        data = _bytes(self._part(packed))
        count, stride = natural(packed["count"]), natural(packed["byteStride"])
        if count * stride > MESHOPT_RATIO * len(data):
            raise ValueError("a buffer view is longer than what was compressed")
        how = packed["mode"], packed.get("filter", "NONE")
        return decoder.decode_gltf_buffer(data, count, stride, *how).tobytes()

    def _decoder(self, name: str) -> Any:
        """The optional package that decodes Draco or meshopt."""
        try:
            return importlib.import_module({"Draco": "DracoPy"}.get(name, name))
        except ImportError:
            raise UserError(
                f"{self.path}: its geometry is {name}-compressed; {COMPRESSED}, or convert it, for example with "
                f"`gltf-transform copy {self.path.name} OUT.glb`, or import and export it with Blender"
            ) from None

    def _rows(self, source: dict[str, Any], count: int, dtype: np.dtype, width: int) -> NDArray:
        """Rows [count, width] in a buffer view."""
        data, stride = self.view(source["bufferView"])
        first, row = natural(source.get("byteOffset", 0)), dtype.itemsize * width
        stride = stride or row
        length = stride * (count - 1) + row if count else 0
        data = _bytes(_part(data, first, first + length))
        return np.ndarray((count, width), dtype, data, 0, (stride, dtype.itemsize))

    def accessor(self, index: int) -> NDArray:
        """Rows [count, width] of an accessor in its own type."""
        accessor = self.item("accessors", index)
        dtype, width = np.dtype(COMPONENTS[accessor["componentType"]]), WIDTHS[accessor["type"]]
        count = natural(accessor["count"])
        if "bufferView" in accessor:
            rows = self._rows(accessor, count, dtype, width)
        elif count > ZEROS * self.path.stat().st_size:
            raise ValueError(f"accessor {index} is longer than the file")
        else:
            rows = np.zeros((count, width), dtype)
        if "sparse" in accessor:
            sparse = accessor["sparse"]
            index_type = np.dtype(COMPONENTS[sparse["indices"]["componentType"]])
            changed = natural(sparse["count"])
            where = self._rows(sparse["indices"], changed, index_type, 1)[:, 0]
            rows = rows.copy()
            rows[where] = self._rows(sparse["values"], changed, dtype, width)
        return rows

    def floats(self, index: int, normalised: bool = False) -> NDArray[np.float32]:
        """Rows of an accessor as numbers; integers count as shares of their maximum where it or the caller says so."""
        return _floats(self.accessor(index), normalised or self.item("accessors", index).get("normalized", False))

    def corner_count(self, primitive: dict[str, Any]) -> int:
        """How many corners a primitive has, by its own word."""
        names = primitive["attributes"]
        return natural(self.item("accessors", primitive.get("indices", names["POSITION"]))["count"])

    def geometry(self, primitive: dict[str, Any], wanted: Iterable[str]) -> Geometry:
        """Corners of a primitive and those of the wanted attributes that it has; POSITION must be among them."""
        names = primitive["attributes"]
        if DRACO in primitive.get("extensions", {}):
            corners, attributes = self._draco(primitive, wanted)
        else:
            attributes = {name: self.floats(names[name], name.startswith("COLOR")) for name in wanted if name in names}
            corners = np.arange(len(attributes["POSITION"]))
            if "indices" in primitive:
                corners = self.accessor(primitive["indices"])[:, 0]
        counts = {len(rows) for rows in attributes.values()}
        if len(counts) != 1 or (corners.size and not 0 <= corners.min() <= corners.max() < min(counts)):
            raise ValueError("a primitive's indices or attributes do not fit together")
        return Geometry(primitive_mode(primitive), corners, attributes)

    def _draco(self, primitive: dict[str, Any], wanted: Iterable[str]) -> tuple[NDArray[np.int64], Attributes]:
        """Corners of the triangles and attributes of a Draco-compressed primitive."""
        decoder = self._decoder("Draco")
        compressed = primitive["extensions"][DRACO]
        mesh = decoder.decode(bytes(_bytes(self.view(compressed["bufferView"])[0])))
        attributes = {}
        for name in wanted:
            if name in compressed["attributes"]:
                rows = mesh.get_attribute_by_unique_id(compressed["attributes"][name])["data"]
                said = self.item("accessors", primitive["attributes"][name])
                attributes[name] = _floats(rows, name.startswith("COLOR") or said.get("normalized", False))
        return np.asarray(mesh.faces, np.int64).reshape(-1), attributes


def primitive_mode(primitive: dict[str, Any]) -> int:
    """How a primitive's corners make shapes; Draco keeps triangles alone, of strips too."""
    return TRIANGLES if DRACO in primitive.get("extensions", {}) else primitive.get("mode", TRIANGLES)


def natural(value: Any) -> int:
    """The value, an integer from 0 on; a negative index would quietly count from the end."""
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is not a size or an index")
    return value


def _length(data: Place | bytes) -> int:
    return len(data) if isinstance(data, bytes) else data.end - data.first


def _part(data: Place | bytes, first: int, end: int) -> Place | bytes:
    if end > _length(data):
        raise ValueError("a buffer view or an accessor ends behind the data")
    return data[first:end] if isinstance(data, bytes) else data.part(first, end)


def _bytes(data: Place | bytes) -> Any:
    return data if isinstance(data, bytes) else data.read()


def _floats(rows: NDArray, normalised: bool) -> NDArray[np.float32]:
    if normalised and rows.dtype.kind in "iu":
        return np.maximum(rows / np.iinfo(rows.dtype).max, -1.0).astype(np.float32)
    return rows.astype(np.float32, copy=False)

"""Writes small binary glTF files for tests: arrays become accessors, whatever else is given stands as it is."""

import io
import json
import struct
from typing import Any

import numpy as np
from PIL import Image

COMPONENTS = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}
QUAD = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], np.float32)
QUAD_UV = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)
CHECKER = np.array([[0, 255], [255, 0]], np.uint8)[..., None].repeat(3, -1)
QUAD_FACES = np.array([0, 1, 2, 0, 2, 3], np.uint16)


class GlbFile:
    """A glTF document that grows; `document` may be changed by hand before it is written."""

    def __init__(self):
        self.binary = bytearray()
        self.document: dict[str, Any] = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": []}]}

    def add(self, kind, entry):
        """Appends an entry to one of the document's lists and returns its index."""
        self.document.setdefault(kind, []).append(entry)
        return len(self.document[kind]) - 1

    def view(self, data, **more):
        """A buffer view that holds these bytes."""
        self.binary += b"\0" * (-len(self.binary) % 4)
        view = {"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(data), **more}
        self.binary += data
        return self.add("bufferViews", view)

    def accessor(self, rows, **more):
        """An accessor of these rows [N] or [N, width]."""
        rows = np.asarray(rows)
        kind = {
            "componentType": COMPONENTS[rows.dtype.str[1:]],
            "type": TYPES[1 if rows.ndim == 1 else rows.shape[1]],
            "count": len(rows),
        }
        return self.add("accessors", {"bufferView": self.view(rows.tobytes()), **kind, **more})

    def texture(self, pixels, format="PNG", **sampler):
        """A texture of an image [H, W, 3 or 4], with a sampler if one is given."""
        encoded = io.BytesIO()
        Image.fromarray(np.asarray(pixels, np.uint8)).save(encoded, format, lossless=True)
        image = self.add("images", {"bufferView": self.view(encoded.getvalue()), "mimeType": f"image/{format.lower()}"})
        texture = {"source": image}
        if sampler:
            texture["sampler"] = self.add("samplers", sampler)
        return self.add("textures", texture)

    def material(self, texture=None, factor=None, transform=None, tex_coord=None, **more):
        """A material with a base colour."""
        base: dict[str, Any] = {} if factor is None else {"baseColorFactor": list(factor)}
        if texture is not None:
            base["baseColorTexture"] = {"index": texture}
            if tex_coord is not None:
                base["baseColorTexture"]["texCoord"] = tex_coord
            if transform is not None:
                base["baseColorTexture"]["extensions"] = {"KHR_texture_transform": transform}
        return self.add("materials", {"pbrMetallicRoughness": base, **more})

    def mesh(self, *primitives):
        """A mesh of primitives as `primitive` makes them."""
        return self.add("meshes", {"primitives": list(primitives)})

    def primitive(self, positions, indices=None, material=None, mode=None, **attributes):
        """A primitive; arrays become accessors, integers stand for accessors that exist."""
        attributes = {"POSITION": positions, **attributes}
        made = {name: rows if isinstance(rows, int) else self.accessor(rows) for name, rows in attributes.items()}
        primitive: dict[str, Any] = {"attributes": made}
        if indices is not None:
            primitive["indices"] = indices if isinstance(indices, int) else self.accessor(indices)
        for name, value in (("material", material), ("mode", mode)):
            if value is not None:
                primitive[name] = value
        return primitive

    def place(self, mesh, **node):
        """A node of the scene with this mesh."""
        index = self.add("nodes", {"mesh": mesh, **node})
        self.document["scenes"][0]["nodes"].append(index)
        return index

    def quad(self, material=None, uv=QUAD_UV, **node):
        """A square from -1 to 1 in x and y, seen from +z."""
        return self.place(self.mesh(self.primitive(QUAD, QUAD_FACES, material, TEXCOORD_0=uv)), **node)

    def write(self, path, **buffer):
        """Writes the file, with more about its buffer if anything is given, and returns its path."""
        if self.binary:
            self.document["buffers"] = [{"byteLength": len(self.binary), **buffer}]
        text = json.dumps(self.document).encode()
        text += b" " * (-len(text) % 4)
        binary = bytes(self.binary) + b"\0" * (-len(self.binary) % 4)
        chunks = struct.pack("<II", len(text), 0x4E4F534A) + text
        if binary:
            chunks += struct.pack("<II", len(binary), 0x004E4942) + binary
        path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)
        return path

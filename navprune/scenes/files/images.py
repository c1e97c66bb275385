"""Decodes the images of a scene: what Pillow knows and, where a decoder is installed, Basis (KTX2)."""

import importlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from navprune.errors import UserError
from navprune.installing import COMPRESSED
from navprune.progress import say_once
from navprune.scenes.files.gltf import Gltf
from navprune.scenes.files.resources import Place, resource

BASIS_MAGIC = (b"\xabKTX", b"sB")
WHITE = np.full((1, 1, 4), 255, np.uint8)


class FileImages:
    """Images of a scene's file as uint8 [H, W, 4], decoded each time one is asked for: depth costs nothing of them.

    One that is damaged or missing is white, and a line on standard error says so once; `faults` has these lines. Raises
    UserError for Basis-compressed ones where nothing decodes them, and where the disk fails.
    """

    def __init__(self, gltf: Gltf, sources: Sequence[int]):
        """The file, and the index in it of each image."""
        self._path, self.faults = gltf.path, list[str]()
        self._places = [_where(gltf, source) for source in sources]

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        place = self._places[index]
        try:
            data = place.read().tobytes() if isinstance(place, Place) else place
        except (OSError, ValueError) as error:  # which is no fault of the image, so it is not to be white for ever
            raise UserError(f"{self._path}: cannot read texture {index} ({error}); check the disk") from None
        try:
            if isinstance(data, Exception):
                raise data
            return self._basis(data) if data.startswith(BASIS_MAGIC) else decode(data)
        except _NoDecoderError:
            raise UserError(
                f"{self._path}: its textures are Basis-compressed; {COMPRESSED}, see depth only, or convert it with "
                f"`gltf-transform ktxdecompress {self._path.name} OUT.glb` (of HM3D take the plain .glb files)"
            ) from None
        except Exception as error:  # decoders raise whatever the broken part happens to trip over
            fault = f"texture {index} is damaged or of an unknown format ({type(error).__name__})"
            line = f"{error if isinstance(error, UserError) else f'{self._path}: {fault}'}; it is shown white"
            self.faults.append(line)
            say_once(line)
            return WHITE

    def _basis(self, data: bytes) -> NDArray[np.uint8]:
        """The largest level of a Basis texture, in a KTX2 or a .basis file."""
        try:
            decoder: Any = importlib.import_module("opengl_basisu")  # optional
        except ImportError:
            raise _NoDecoderError from None
        return decoder.open(data).transcode("rgba8").data


class _NoDecoderError(Exception):
    """Nothing that is installed decodes an image."""


def _where(gltf: Gltf, index: int) -> Place | bytes | Exception:
    """Where an image lies, its bytes, or why it cannot be had."""
    try:
        image = gltf.item("images", index)
        return gltf.view(image["bufferView"])[0] if "bufferView" in image else resource(gltf.path, image["uri"])
    except Exception as error:  # only those who ask for colours are told
        return error


def decode(data: bytes) -> NDArray[np.uint8]:
    """An image file as uint8 [H, W, 4]; grey of 16 bits is scaled. Raises what Pillow raises."""
    image: Image.Image = Image.open(io.BytesIO(data))
    if image.mode.startswith("I;16"):
        grey = np.rint(np.asarray(image).astype(np.float32) * (255 / 65535)).astype(np.uint8)
        image = Image.fromarray(grey)
    return np.array(image.convert("RGBA"))

"""What a glTF material shows without light: a factor, a texture, where it is cut out.

Metal, roughness, emission and normal maps do not show in flat shading. What glTF leaves open or habitat-sim does
otherwise was found by experiment.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from navprune.scenes.files.gltf import Gltf
from navprune.scenes.files.images import FileImages

REPEAT, CLAMP, MIRROR = 0, 1, 2
WRAPPING = {10497: REPEAT, 33071: CLAMP, 33648: MIRROR}
NEAREST, LINEAR = 0, 1
NO_LEVELS = -1
# glTF's minification filters: between texels of a level, and between levels.
MINIFYING = {
    9728: (NEAREST, NO_LEVELS),
    9729: (LINEAR, NO_LEVELS),
    9984: (NEAREST, NEAREST),
    9985: (LINEAR, NEAREST),
    9986: (NEAREST, LINEAR),
    9987: (LINEAR, LINEAR),
}
SPECULAR = "KHR_materials_pbrSpecularGlossiness"
NO_MATERIAL = (146 / 255, 128 / 255, 90 / 255, 1.0)  # what habitat-sim shows of a primitive without one


class Sampler(NamedTuple):
    """How a texture is read: wrapping along u and v, and filters as in OpenGL.

    Habitat-sim takes all of them from the file, without anisotropy; what a file leaves out is as here.
    """

    wrap_u: int = REPEAT
    wrap_v: int = REPEAT
    magnify: int = LINEAR
    minify: int = LINEAR
    between_levels: int = LINEAR


class Material(NamedTuple):
    """factor: [4]. texture: index, -1 for none. uv_matrix: [2, 3]. cutoff: alpha below which holes are, 0 for none."""

    factor: NDArray[np.float64]
    texture: int
    uv_matrix: NDArray[np.float64]
    cutoff: float


class Materials:
    """The materials of a file, and the textures that those asked for need."""

    def __init__(self, gltf: Gltf):
        self._gltf = gltf
        self._textures: dict[tuple[int, Sampler], int] = {}

    def of(self, primitive: dict[str, Any]) -> Material:
        """The material of a primitive."""
        if "material" not in primitive:
            return Material(np.array(NO_MATERIAL), -1, _uv_matrix({}), 0.0)
        material = self._gltf.item("materials", primitive["material"])
        base = material.get("pbrMetallicRoughness", {})
        diffuse = material.get("extensions", {}).get(SPECULAR, {})
        factor = diffuse.get("diffuseFactor", base.get("baseColorFactor", (1.0, 1.0, 1.0, 1.0)))
        info = diffuse.get("diffuseTexture", base.get("baseColorTexture", {}))
        return Material(
            np.clip(np.array(factor, np.float64).reshape(4), 0.0, 1.0),
            self._texture(info["index"]) if "index" in info else -1,
            _uv_matrix(info.get("extensions", {}).get("KHR_texture_transform", {})),
            float(material.get("alphaCutoff", 0.5)) if material.get("alphaMode") == "MASK" else 0.0,
        )

    def _texture(self, index: int) -> int:
        """Index in the mesh of a texture of the file; -1 where it has no image."""
        entry = self._gltf.item("textures", index)
        extensions = entry.get("extensions", {}).values()  # WebP and Basis images stand there
        sources = [holder["source"] for holder in (entry, *extensions) if "source" in holder]
        if not sources:
            return -1
        given = self._gltf.item("samplers", entry["sampler"]) if "sampler" in entry else {}
        sampler = Sampler(
            WRAPPING[given.get("wrapS", 10497)],
            WRAPPING[given.get("wrapT", 10497)],
            LINEAR if given.get("magFilter", 9729) == 9729 else NEAREST,
            *MINIFYING[given.get("minFilter", 9987)],
        )
        return self._textures.setdefault((sources[0], sampler), len(self._textures))

    def textures(self) -> tuple[FileImages, tuple[Sampler, ...]]:
        """Image and sampler of each texture."""
        sources = list(self._textures)
        return FileImages(self._gltf, [source for source, _ in sources]), tuple(sampler for _, sampler in sources)


def _uv_matrix(transform: dict[str, Any]) -> NDArray[np.float64]:
    """KHR_texture_transform [2, 3]: scale, then rotate counter-clockwise as seen with v downwards, then shift."""
    angle = transform.get("rotation", 0.0)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    shift = np.array(transform.get("offset", (0.0, 0.0)), np.float64).reshape(2, 1)
    return np.hstack([rotation * np.array(transform.get("scale", (1.0, 1.0)), np.float64), shift])

"""Reads the triangles, colours and textures of a scene's GLB file."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from navprune.errors import UserError
from navprune.scenes.files.gltf import Glb, Range, damaged

# A bare .glb stage counts as z-up in Habitat: glTF's (x, y, z) becomes (x, z, -y).
Z_UP_TO_Y_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
MAX_TRIANGLES = 2**25  # of a scene, all placements of its meshes counted; several times the largest scans
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
BASIS_MAGIC = (b"\xabKTX", b"sB")


class Sampler(NamedTuple):
    """How a texture is read: wrapping along u and v, and filters as in OpenGL.

    Habitat-sim takes all of them from the file, without anisotropy; what a file leaves out is as here.
    """

    wrap_u: int = REPEAT
    wrap_v: int = REPEAT
    magnify: int = LINEAR
    minify: int = LINEAR
    between_levels: int = LINEAR


class AlphaMasks(NamedTuple):
    """Where triangles have holes: there, alpha (of the corners, times the texture's) is below a cutoff.

    alpha: uint8 [T, 3], of the corners. cutoff: float32 [T], 0 for triangles that are drawn whole.
    """

    alpha: NDArray[np.uint8]
    cutoff: NDArray[np.float32]


@dataclass(frozen=True)
class SceneMesh:
    """The triangles of a scene in Habitat's frame (metres, y up), with what colours them.

    vertices: float32 [T, 3, 3], triangle corners; counter-clockwise seen from the front.
    colours: uint8 [T, 3, 3], corner colours: base colour factor times vertex colour.
    uv: float32 [T, 3, 2], texture coordinates as in glTF: (0, 0) is the upper left corner of the image.
    texture: int32 [T], index into textures, -1 for none.
    textures: uint8 [H, W, 4] each; of a file, they are decoded when asked for.
    samplers: how each texture is read; empty for the default.
    masks: the triangles with holes, None where all are drawn whole.
    """

    vertices: NDArray[np.float32]
    colours: NDArray[np.uint8]
    uv: NDArray[np.float32]
    texture: NDArray[np.int32]
    textures: "tuple[NDArray[np.uint8], ...] | FileImages" = ()
    samplers: tuple[Sampler, ...] = ()
    masks: AlphaMasks | None = None

    @classmethod
    def from_vertices(cls, vertices: NDArray) -> "SceneMesh":
        """A white mesh without textures from triangle corners [T, 3, 3]."""
        count = len(vertices)
        white, uv = np.full((count, 3, 3), 255, np.uint8), np.zeros((count, 3, 2), np.float32)
        return cls(np.ascontiguousarray(vertices, np.float32), white, uv, np.full(count, -1, np.int32))


class FileImages:
    """Images of a GLB file as uint8 [H, W, 4], decoded each time one is asked for.

    So depth costs nothing of them, and images that cannot be decoded only fail those who want colours (UserError).
    """

    def __init__(self, path: Path, places: Sequence[Range | bytes | UserError]):
        """The file, and of each image what `Glb.image` says."""
        self._path, self._places = path, places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        place = self._places[index]
        if isinstance(place, UserError):
            raise place
        if isinstance(place, bytes):
            data = place
        else:
            with self._path.open("rb") as file:
                file.seek(place[0])
                data = file.read(place[1] - place[0])
        try:
            return np.array(Image.open(io.BytesIO(data)).convert("RGBA"))
        except Exception as error:  # Pillow raises whatever the broken part happens to trip over
            if data.startswith(BASIS_MAGIC):
                raise UserError(
                    f"{self._path}: nothing here decodes its Basis-compressed textures; see depth only, or convert it "
                    f"with `gltf-transform ktxdecompress {self._path.name} OUT.glb` (of HM3D take the plain .glb files)"
                ) from error
            raise UserError(
                f"{self._path}: texture {index} is damaged or of an unknown format ({type(error).__name__}); see depth "
                "only, or export the scene with PNG, JPEG or WebP images"
            ) from error


class _Material(NamedTuple):
    """factor: [4]. texture: index, -1 for none. uv_set: an attribute. uv_matrix: [2, 3]. cutoff: as in AlphaMasks."""

    factor: NDArray[np.float64]
    texture: int
    uv_set: str
    uv_matrix: NDArray[np.float64]
    cutoff: float


class _Part(NamedTuple):
    """A primitive before it is placed: faces [F, 3] into positions [V, 3], colours [V, 4] and uv [V, 2]."""

    faces: NDArray[np.int64]
    positions: NDArray[np.float64]
    colours: NDArray[np.uint8]
    uv: NDArray[np.float32]
    material: _Material


class _Textures:
    """Which image and sampler each texture of the mesh is."""

    def __init__(self, glb: Glb):
        self._glb = glb
        self._indices: dict[tuple[int, Sampler], int] = {}

    def index(self, texture: int) -> int:
        """Index in the mesh of a texture of the file; -1 where it has no image."""
        entry = self._glb.item("textures", texture)
        extensions = entry.get("extensions", {}).values()  # WebP and Basis images stand there
        sources = [holder["source"] for holder in (entry, *extensions) if "source" in holder]
        if not sources:
            return -1
        given = self._glb.item("samplers", entry["sampler"]) if "sampler" in entry else {}
        sampler = Sampler(
            WRAPPING[given.get("wrapS", 10497)],
            WRAPPING[given.get("wrapT", 10497)],
            LINEAR if given.get("magFilter", 9729) == 9729 else NEAREST,
            *MINIFYING[given.get("minFilter", 9987)],
        )
        return self._indices.setdefault((sources[0], sampler), len(self._indices))

    def all(self) -> tuple[FileImages, tuple[Sampler, ...]]:
        """Image and sampler of each texture."""
        images = FileImages(self._glb.path, [self._glb.image(source) for source, _ in self._indices])
        return images, tuple(sampler for _, sampler in self._indices)


def load_glb(path: str | Path, alpha_masks: bool = False) -> SceneMesh:
    """Load every triangle of the default scene of a binary glTF file, turned from z up to y up.

    alpha_masks: whether materials of alphaMode MASK get holes, as glTF has it. Habitat-sim, which draws the
    scene by Magnum's Phong shader without its alpha mask and without blending, shows them whole.
    UserError: the file is missing, is not glTF, is cut off, has no triangles, or is compressed by Draco without
    DracoPy or by meshopt.
    """
    path = Path(path)
    try:
        with np.errstate(all="ignore"):  # what is not finite is refused in the end
            return _scene_mesh(Glb(path), alpha_masks)
    except UserError:
        raise
    except Exception as error:  # whatever the broken part happens to trip over
        raise damaged(path, error) from error


def _scene_mesh(glb: Glb, alpha_masks: bool) -> SceneMesh:
    textures = _Textures(glb)
    meshes: dict[int, list[_Part]] = {}  # nodes share them
    placed: list[tuple[NDArray, ...]] = []
    count = 0
    for index, transform in glb.placed_meshes():
        if index not in meshes:
            meshes[index] = [_part(glb, primitive, textures) for primitive in glb.item("meshes", index)["primitives"]]
        for part in meshes[index]:
            count += len(part.faces)
            if count > MAX_TRIANGLES:
                raise UserError(f"{glb.path}: more than {MAX_TRIANGLES} triangles; simplify the scene")
            placed.append(_placed(part, transform))
    if not count:
        raise UserError(f"{glb.path}: no triangles in this scene; export it again with its meshes")
    vertices, colours, alpha, uv, texture, cutoff = (np.concatenate(arrays) for arrays in zip(*placed))
    if not np.isfinite(vertices).all():
        raise UserError(f"{glb.path}: some vertices are not finite numbers; export the scene again")
    masks = AlphaMasks(alpha, cutoff) if alpha_masks and cutoff.any() else None
    return SceneMesh(vertices, colours, uv, texture, *textures.all(), masks)


def _part(glb: Glb, primitive: dict[str, Any], textures: _Textures) -> _Part:
    material = _material(glb, primitive, textures)
    faces, attributes = glb.primitive(primitive, {"POSITION", "COLOR_0", material.uv_set})
    positions = attributes.get("POSITION", np.zeros((0, 3), np.float32)).astype(np.float64).reshape(-1, 3)
    colours = np.ones((len(positions), 4))
    if "COLOR_0" in attributes:
        colours[:, : attributes["COLOR_0"].shape[1]] = np.clip(attributes["COLOR_0"], 0.0, 1.0)
    uv = np.zeros((len(positions), 2), np.float32)
    if material.uv_set in attributes:
        moved = attributes[material.uv_set] @ material.uv_matrix[:, :2].T + material.uv_matrix[:, 2]
        uv = np.nan_to_num(moved, posinf=0.0, neginf=0.0).astype(np.float32)
    return _Part(faces, positions, np.rint(colours * material.factor * 255).astype(np.uint8), uv, material)


def _material(glb: Glb, primitive: dict[str, Any], textures: _Textures) -> _Material:
    """The unlit base colour of a primitive; metal, roughness, emission and normal maps do not show in flat shading."""
    material = glb.item("materials", primitive["material"]) if "material" in primitive else {}
    base = material.get("pbrMetallicRoughness", {})
    factor = np.clip(np.array(base.get("baseColorFactor", (1.0, 1.0, 1.0, 1.0)), np.float64).reshape(4), 0.0, 1.0)
    info = base.get("baseColorTexture", {})
    transform = info.get("extensions", {}).get("KHR_texture_transform", {})
    uv_set = f"TEXCOORD_{transform.get('texCoord', info.get('texCoord', 0))}"
    has_texture = "index" in info and uv_set in primitive["attributes"]
    # KHR_texture_transform: scale, then rotate counter-clockwise as seen with v downwards, then shift.
    angle = transform.get("rotation", 0.0)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    shift = np.array(transform.get("offset", (0.0, 0.0)), np.float64).reshape(2, 1)
    return _Material(
        factor,
        textures.index(info["index"]) if has_texture else -1,
        uv_set,
        np.hstack([rotation * np.array(transform.get("scale", (1.0, 1.0)), np.float64), shift]),
        float(material.get("alphaCutoff", 0.5)) if material.get("alphaMode") == "MASK" else 0.0,
    )


def _placed(part: _Part, transform: NDArray[np.float64]) -> tuple[NDArray, ...]:
    """Corners, colours, alpha, uv, texture and cutoff of a part's triangles in the scene, as SceneMesh has them."""
    matrix = Z_UP_TO_Y_UP @ transform[:3, :3]
    vertices = part.positions @ matrix.T + Z_UP_TO_Y_UP @ transform[:3, 3]
    # A mirroring node turns the triangles inside out; glTF and habitat-sim keep their fronts in front.
    faces = part.faces if np.linalg.det(matrix) >= 0 else part.faces[:, ::-1]
    return (
        vertices.astype(np.float32)[faces],
        part.colours[faces, :3],
        part.colours[faces, 3],
        part.uv[faces],
        np.full(len(faces), part.material.texture, np.int32),
        np.full(len(faces), part.material.cutoff, np.float32),
    )

"""Reads the triangles, colours and textures of a scene's GLB file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh
from numpy.typing import NDArray

from navprune.errors import UserError

# A bare .glb stage counts as z-up in Habitat: glTF's (x, y, z) becomes (x, z, -y).
Z_UP_TO_Y_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])


@dataclass(frozen=True)
class SceneMesh:
    """The triangles of a scene in Habitat's frame (metres, y up), with what colours them.

    vertices: float32 [T, 3, 3], triangle corners; counter-clockwise seen from the front.
    colours: uint8 [T, 3, 3], corner colours: base colour factor times vertex colour.
    uv: float32 [T, 3, 2], texture coordinates as in glTF: (0, 0) is the upper left corner of the image.
    texture: int32 [T], index into textures, -1 for none.
    textures: uint8 [H, W, 4] each.
    """

    vertices: NDArray[np.float32]
    colours: NDArray[np.uint8]
    uv: NDArray[np.float32]
    texture: NDArray[np.int32]
    textures: tuple[NDArray[np.uint8], ...] = ()

    @classmethod
    def from_vertices(cls, vertices: NDArray) -> "SceneMesh":
        """A white mesh without textures from triangle corners [T, 3, 3]."""
        count = len(vertices)
        return cls(
            vertices=np.ascontiguousarray(vertices, dtype=np.float32),
            colours=np.full((count, 3, 3), 255, np.uint8),
            uv=np.zeros((count, 3, 2), np.float32),
            texture=np.full(count, -1, np.int32),
        )


def load_glb(path: str | Path) -> SceneMesh:
    """Loads every triangle of a binary glTF file, turned from z up to y up.

    Node transforms are applied; textures that cannot be decoded count as none.
    UserError: the file is missing, is not glTF, is cut off, or has no triangles.
    """
    path = Path(path)
    scene = _load_scene(path)
    textures: dict[int, int] = {}  # id of a decoded image -> its index: primitives share images
    images: list[NDArray[np.uint8]] = []
    parts = []
    for node in scene.graph.nodes_geometry:
        transform, name = scene.graph[node]
        geometry = scene.geometry[name]
        if not isinstance(geometry, trimesh.Trimesh) or len(geometry.faces) == 0:
            continue
        texture = -1
        image = getattr(getattr(geometry.visual, "material", None), "baseColorTexture", None)
        if image is not None and getattr(geometry.visual, "uv", None) is not None:
            if id(image) not in textures:
                textures[id(image)] = len(images)
                images.append(np.ascontiguousarray(image.convert("RGBA"), dtype=np.uint8))
            texture = textures[id(image)]
        parts.append(_primitive(geometry, transform, texture))
    if not parts:
        raise UserError(f"{path}: no triangles in this scene; export it again with its meshes")
    vertices, colours, uv, texture_of = (np.concatenate(arrays) for arrays in zip(*parts))
    if not np.isfinite(vertices).all():
        raise UserError(f"{path}: some vertices are not finite numbers; export the scene again")
    return SceneMesh(vertices, colours, uv, texture_of, tuple(images))


def _load_scene(path: Path) -> trimesh.Scene:
    if not path.is_file():
        raise UserError(f"{path}: scene not found; check the scenes folder and the name")
    with path.open("rb") as file:
        if file.read(4) != b"glTF":
            raise UserError(f"{path}: not a binary glTF file (.glb); export the scene as .glb")
    try:
        return trimesh.load(path, file_type="glb", force="scene", process=False)
    except Exception as error:  # trimesh raises whatever the broken part happens to trip over
        raise UserError(f"{path}: glTF file is damaged or cut off ({error!r}); copy it again") from error


def _primitive(geometry: trimesh.Trimesh, transform: NDArray, texture: int) -> tuple[NDArray, ...]:
    """Corners [T, 3, 3], colours [T, 3, 3], uv [T, 3, 2] and texture [T] of one mesh primitive."""
    matrix = Z_UP_TO_Y_UP @ transform[:3, :3]
    vertices = geometry.vertices @ matrix.T + Z_UP_TO_Y_UP @ transform[:3, 3]
    uv = getattr(geometry.visual, "uv", None)
    if uv is None:
        uv = np.zeros((len(vertices), 2))
    else:
        uv = np.column_stack([uv[:, 0], 1.0 - uv[:, 1]])  # trimesh counts v from the bottom, glTF from the top
    # A mirroring node turns the triangles inside out; glTF keeps their fronts in front.
    faces = geometry.faces if np.linalg.det(matrix) >= 0 else geometry.faces[:, ::-1]
    return (
        vertices[faces].astype(np.float32),
        _vertex_colours(geometry.visual, len(vertices))[faces],
        uv[faces].astype(np.float32),
        np.full(len(faces), texture, np.int32),
    )


def _vertex_colours(visual: object, count: int) -> NDArray[np.uint8]:
    """Base colour factor times vertex colour, uint8 [count, 3]."""
    colours = np.ones((count, 3))
    if getattr(visual, "kind", None) == "vertex":
        colours = colours * _unit(visual.vertex_colors)  # type: ignore[attr-defined]
    attribute = getattr(visual, "vertex_attributes", {}).get("color")
    if attribute is not None:
        colours = colours * _unit(attribute)
    factor = getattr(getattr(visual, "material", None), "baseColorFactor", None)
    if factor is not None:
        colours = colours * _unit(factor)
    return np.rint(colours * 255).astype(np.uint8)


def _unit(colours: NDArray) -> NDArray:
    """Red, green and blue in [0, 1] of colours [..., 3 or 4], whose integers mean shares of their maximum."""
    colours = np.asarray(colours)[..., :3]
    if np.issubdtype(colours.dtype, np.integer):
        return colours / np.iinfo(colours.dtype).max
    return np.clip(colours, 0.0, 1.0)

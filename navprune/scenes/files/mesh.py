"""Reads the triangles, colours and textures of a scene's glTF file."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from navprune.errors import UserError
from navprune.scenes.files.gltf import Geometry, Gltf, primitive_mode
from navprune.scenes.files.images import FileImages
from navprune.scenes.files.materials import Material, Materials, Sampler
from navprune.scenes.files.nodes import placed_meshes
from navprune.scenes.files.resources import damaged
from navprune.scenes.files.shapes import STROKES, TRIANGLES, lines_of, triangle_count, triangles_of

# A bare .glb stage counts as z-up in Habitat: glTF's (x, y, z) becomes (x, z, -y).
Z_UP_TO_Y_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
MAX_TRIANGLES = 2**25  # of a scene, all placements of its meshes counted; several times the largest scans
MAX_COLOUR = 1e6  # in 255ths; keeps what is absurd finite
BLOCK = 2**18  # rows or triangles that are worked on at once, which bounds the memory that loading takes


class AlphaMasks(NamedTuple):
    """Where triangles have holes: there, alpha (of the corners, times the texture's) is below a cutoff.

    alpha: uint8 [T, 3], of the corners; 0 for triangles that are drawn whole. cutoff: float32 [T], 0 for those.
    """

    alpha: NDArray[np.uint8]
    cutoff: NDArray[np.float32]


class Strokes(NamedTuple):
    """Lines and points of a scene, which Habitat draws too.

    ends: float32 [L, 2, 3], metres; both the same for a point. colours: uint8 [L, 2, 3], of both ends.
    """

    ends: NDArray[np.float32]
    colours: NDArray[np.uint8]


@dataclass(frozen=True)
class SceneMesh:
    """The triangles of a scene in Habitat's frame (metres, y up), with what colours them.

    vertices: float32 [T, 3, 3], triangle corners in the order of the file; counter-clockwise seen from the front.
    colours: [T, 3, 3], corner colours: base colour factor times vertex colour. uint8, or float32 in 255ths where the
    file has vertex colours beyond [0, 1]; those are clamped where they are seen, between the corners.
    uv: float32 [T, 3, 2], texture coordinates as in glTF: (0, 0) is the upper left corner of the image.
    texture: int32 [T], index into textures, -1 for none.
    textures: uint8 [H, W, 4] each; of a file, they are decoded when asked for.
    samplers: how each texture is read; empty for the default.
    masks: the triangles with holes, None where all are drawn whole.
    strokes: lines and points, None where there are none.
    """

    vertices: NDArray[np.float32]
    colours: NDArray[np.uint8] | NDArray[np.float32]
    uv: NDArray[np.float32]
    texture: NDArray[np.int32]
    textures: tuple[NDArray[np.uint8], ...] | FileImages = ()
    samplers: tuple[Sampler, ...] = ()
    masks: AlphaMasks | None = None
    strokes: Strokes | None = None

    @classmethod
    def from_vertices(cls, vertices: NDArray) -> "SceneMesh":
        """A white mesh without textures from triangle corners [T, 3, 3]."""
        count = len(vertices)
        white, uv = np.full((count, 3, 3), 255, np.uint8), np.zeros((count, 3, 2), np.float32)
        return cls(np.ascontiguousarray(vertices, np.float32), white, uv, np.full(count, -1, np.int32))


class _Slot(NamedTuple):
    """Where a primitive stands in the scene, and its first triangle there."""

    transform: NDArray[np.float64]
    first: int


class _Part(NamedTuple):
    """A primitive before it is placed: positions [V, 3], colours [V or 1, 4] and uv [V or 1, 2]."""

    geometry: Geometry
    colours: NDArray
    uv: NDArray[np.float32]
    material: Material


def load_glb(path: str | Path, alpha_masks: bool = False) -> SceneMesh:
    """Load what the default scene of a glTF file (.glb, or .gltf with its files) shows, turned from z up to y up.

    alpha_masks: whether materials of alphaMode MASK get holes, as glTF has it. Habitat-sim, which draws the
    scene by Magnum's Phong shader without its alpha mask and without blending, shows them whole.
    Takes about as much memory as the result, and one primitive at a time.
    UserError: the file is missing, is not glTF, is cut off, has no triangles, or is compressed by Draco or meshopt
    without their decoder.
    """
    return _reading(Path(path), lambda gltf: _scene_mesh(gltf, alpha_masks))


def load_triangles(path: str | Path) -> NDArray[np.float32]:
    """The triangles [T, 3, 3] that habitat-sim builds a navmesh from, y up; raises as `load_glb` does.

    They are not those that it draws: a mirrored node's keep their winding, so that floors become ceilings, strips and
    fans are left out, and a sheared matrix is taken as it is.
    """

    def triangles(gltf: Gltf) -> NDArray[np.float32]:
        slots, count = _slots(gltf, lambda primitive: primitive_mode(primitive) == TRIANGLES, shear=True)
        vertices = np.empty((count, 3, 3), np.float32)
        for primitive, places in slots:
            geometry = gltf.geometry(primitive, ["POSITION"])
            faces = _faces(gltf, primitive, geometry)
            for place in places:
                _place(vertices, geometry, faces, place)
        return _finite(vertices, gltf.path)

    return _reading(Path(path), triangles)


def _reading(path: Path, read: Callable[[Gltf], Any]) -> Any:
    """What `read` makes of a file; UserError for whatever a broken one makes Python raise."""
    try:
        with np.errstate(all="ignore"):  # what is not finite is refused in the end
            return read(Gltf(path))
    except UserError:
        raise
    except Exception as error:  # whatever the broken part happens to trip over
        raise damaged(path, error) from error


def _slots(
    gltf: Gltf, wanted: Callable[[dict[str, Any]], bool], shear: bool
) -> tuple[list[tuple[dict[str, Any], list[_Slot]]], int]:
    """Each wanted primitive with its places, and how many triangles there are in all; in the order of the nodes."""
    slots: dict[tuple[int, int], list[_Slot]] = defaultdict(list)
    count = 0
    for index, transform in placed_meshes(gltf, shear):
        for number, primitive in enumerate(gltf.item("meshes", index)["primitives"]):
            if "POSITION" not in primitive["attributes"] or not wanted(primitive):
                continue
            slots[index, number].append(_Slot(transform, count))
            count += triangle_count(gltf.corner_count(primitive), primitive_mode(primitive))
            if count > MAX_TRIANGLES:
                raise UserError(f"{gltf.path}: more than {MAX_TRIANGLES} triangles; simplify the scene")
    if not count:
        raise UserError(f"{gltf.path}: no triangles in this scene; export it again with its meshes")
    return [(gltf.item("meshes", i)["primitives"][k], places) for (i, k), places in slots.items()], count


def _scene_mesh(gltf: Gltf, alpha_masks: bool) -> SceneMesh:
    slots, count = _slots(gltf, lambda primitive: True, shear=False)
    materials = Materials(gltf)
    vertices, uv = np.empty((count, 3, 3), np.float32), np.empty((count, 3, 2), np.float32)
    colours: NDArray = np.empty((count, 3, 3), np.uint8)
    texture, strokes = np.empty(count, np.int32), list[Strokes]()
    masks = AlphaMasks(np.zeros((count, 3), np.uint8), np.zeros(count, np.float32)) if alpha_masks else None
    for primitive, places in slots:
        part = _part(gltf, primitive, materials.of(primitive))
        if part.geometry.mode in STROKES:
            strokes += [_strokes(part, place) for place in places]
            continue
        if part.colours.dtype != np.uint8:
            colours = colours.astype(np.float32, copy=False)
        faces = _faces(gltf, primitive, part.geometry)
        for place in places:
            mirrored = np.linalg.det(place.transform[:3, :3]) < 0
            # A mirroring node turns the triangles inside out; glTF and habitat-sim keep their fronts in front.
            turned = faces[:, ::-1] if mirrored else faces
            _place(vertices, part.geometry, turned, place)
            _gather(colours, part.colours[:, :3], turned, place.first)
            _gather(uv, part.uv, turned, place.first)
            own = slice(place.first, place.first + len(faces))
            texture[own] = part.material.texture
            if masks is not None and part.material.cutoff:
                _gather(masks.alpha, np.clip(part.colours[:, 3], 0, 255).astype(np.uint8), turned, place.first)
                masks.cutoff[own] = part.material.cutoff
    if masks is not None and not masks.cutoff.any():
        masks = None
    lines = Strokes(*map(np.concatenate, zip(*strokes, strict=True))) if strokes else None
    return SceneMesh(_finite(vertices, gltf.path), colours, uv, texture, *materials.textures(), masks, lines)


def _part(gltf: Gltf, primitive: dict[str, Any], material: Material) -> _Part:
    """A primitive with its colours; habitat-sim takes a mesh's first set of colours and coordinates, whatever it is."""
    names = primitive["attributes"]
    colour = min((name for name in names if name.startswith("COLOR_")), default="")
    uv = min((name for name in names if name.startswith("TEXCOORD_")), default="") if material.texture >= 0 else ""
    geometry = gltf.geometry(primitive, [name for name in ("POSITION", colour, uv) if name])
    colours = _colours(geometry.attributes.get(colour, np.ones((1, 4), np.float32)), material.factor)
    # Without coordinates a texture shows its lower left corner, (0, 0) in OpenGL.
    coordinates = geometry.attributes.get(uv, np.array([[0.0, 1.0]], np.float32))
    matrix, shift = material.uv_matrix[:, :2].T, material.uv_matrix[:, 2]
    moved = _in_blocks(coordinates, lambda rows: np.nan_to_num(rows @ matrix + shift, posinf=0.0, neginf=0.0))
    return _Part(geometry, colours, moved, material)


def _colours(rows: NDArray[np.float32], factor: NDArray[np.float64]) -> NDArray:
    """Vertex colours [V, 3 or 4] times a factor in 255ths: uint8, or float32 where the file has such beyond [0, 1]."""
    width = rows.shape[1]
    known = np.nan_to_num(rows)
    beyond = bool(((known < 0) | (known > 1)).any())
    dtype = np.float32 if beyond else np.uint8
    colours = np.empty((len(rows), 4), dtype)
    colours[:, width:] = np.rint(factor[width:] * 255)

    def times_factor(block: NDArray) -> NDArray:
        scaled = block.astype(np.float64) * factor[:width] * 255
        return np.clip(scaled, -MAX_COLOUR, MAX_COLOUR) if beyond else np.rint(scaled)

    colours[:, :width] = _in_blocks(known, times_factor, dtype)
    return colours


def _faces(gltf: Gltf, primitive: dict[str, Any], geometry: Geometry) -> NDArray[np.integer]:
    """The triangles [F, 3] of a primitive; ValueError where a decoder made another number of them than it says."""
    if len(geometry.corners) != gltf.corner_count(primitive):
        raise ValueError("a primitive has more or fewer corners than it says")
    return triangles_of(geometry.corners, geometry.mode)


def _in_blocks(rows: NDArray, function: Callable[[NDArray], NDArray], dtype: type = np.float32) -> NDArray:
    """What a function makes of rows [N, W], a block at a time, since it may work in wider numbers."""
    made: NDArray = np.empty(rows.shape, dtype)
    for first in range(0, len(rows), BLOCK):
        made[first : first + BLOCK] = function(rows[first : first + BLOCK])
    return made


def _moved(positions: NDArray, transform: NDArray[np.float64]) -> NDArray[np.float32]:
    """Positions [V, 3] of a mesh in the scene, y up."""
    matrix, shift = Z_UP_TO_Y_UP @ transform[:3, :3], Z_UP_TO_Y_UP @ transform[:3, 3]
    return _in_blocks(positions, lambda rows: rows.astype(np.float64) @ matrix.T + shift)


def _place(vertices: NDArray[np.float32], geometry: Geometry, faces: NDArray, slot: _Slot) -> None:
    _gather(vertices, _moved(geometry.attributes["POSITION"], slot.transform), faces, slot.first)


def _gather(out: NDArray, rows: NDArray, faces: NDArray, first: int) -> None:
    """Write what the corners of faces [F, 3] have of rows [V, ...] to out[first : first + F]; one row is for all."""
    if len(rows) == 1:
        out[first : first + len(faces)] = rows[0]
        return
    for begin in range(0, len(faces), BLOCK):
        block = faces[begin : begin + BLOCK]
        out[first + begin : first + begin + len(block)] = rows.take(block, axis=0)


def _finite(vertices: NDArray[np.float32], path: Path) -> NDArray[np.float32]:
    blocks: Iterator[NDArray] = (vertices[first : first + BLOCK] for first in range(0, len(vertices), BLOCK))
    if not all(np.isfinite(block).all() for block in blocks):
        raise UserError(f"{path}: some vertices are not finite numbers; export the scene again")
    return vertices


def _strokes(part: _Part, slot: _Slot) -> Strokes:
    """A primitive's lines or points in the scene."""
    lines = lines_of(part.geometry.corners, part.geometry.mode)
    points = _moved(part.geometry.attributes["POSITION"], slot.transform)
    colours = np.broadcast_to(part.colours[:, :3], points.shape)
    return Strokes(points[lines], np.clip(np.rint(colours[lines]), 0, 255).astype(np.uint8))

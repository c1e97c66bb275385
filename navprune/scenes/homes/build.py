"""A plan becomes a home on disk: a z-up GLB with colours and textures, and its navigation mesh.

glTF's frame here is the plan's: x and y on the floor, z up; Habitat reads (x, y, z) as (x, z, -y). Only faces
that look at free space exist, because back faces are culled. Colours carry a fixed shading by direction,
because scenes are shown unlit.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import shapely
import trimesh
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from navprune.scenes.files.navmesh import write_navmesh
from navprune.scenes.homes.floorplan import DOOR_HEIGHT, WALL, Door, FloorPlan
from navprune.scenes.homes.solids import Colour, Solid, at_height, box, extrude, join, painted, plan_triangles, walls
from navprune.scenes.homes.walkable import home_navmesh

LIGHT = np.array([0.35, 0.2, 0.91])  # direction that the fixed shading is brightest in
PAINTS: tuple[Colour, ...] = (
    (236, 230, 218), (214, 222, 226), (226, 214, 200), (206, 216, 200), (222, 206, 206), (240, 238, 232),
)  # fmt: skip
TRIM: Colour = (246, 244, 240)
SILL: Colour = (140, 110, 80)
TEXTURE_SIZE = 64  # pixels
TEXTURE_SPAN = 1.2  # metres of floor that an image covers
FLOORS = {"bathroom": "tiles", "kitchen": "tiles", "bedroom": "carpet", "study": "carpet"}  # others have planks


class Floor(NamedTuple):
    """Floors of one kind: triangles `[T, 3, 2]` in plan, under an image `[H, W, 3]` that spans `TEXTURE_SPAN` metres.

    The image's lower left corner is at the plan's origin.
    """

    name: str
    triangles: NDArray[np.float64]
    image: NDArray[np.uint8]


def write_home(path: Path, plan: FloorPlan) -> int:
    """Write the GLB file `path` and the `.navmesh` beside it; returns the number of triangles."""
    glb, triangles = home_glb(plan)
    path.write_bytes(glb)
    write_navmesh(path.with_suffix(".navmesh"), home_navmesh(plan))
    return triangles


def home_glb(plan: FloorPlan) -> tuple[bytes, int]:
    """The GLB file of a home, and its number of triangles; the same plan gives the same bytes."""
    solid, floors = home_surfaces(plan)
    scene = trimesh.Scene()
    scene.add_geometry(_coloured_mesh(solid), geom_name="home")
    for floor in floors:
        scene.add_geometry(_textured_floor(floor), geom_name=floor.name)
    return unlit_glb(scene), sum(len(mesh.faces) for mesh in scene.geometry.values())


def home_surfaces(plan: FloorPlan) -> tuple[Solid, list[Floor]]:
    """Everything in a home in its final colours, and its textured floors; the same plan gives the same."""
    rng = plan_rng(plan)
    solid = _shaded(join([_shell(plan, rng), *[piece.solid() for piece in plan.pieces]]))
    floors = []
    for name, texture in {"planks": _planks, "tiles": _tiles, "carpet": _carpet}.items():
        rooms = [room.polygon for room in plan.rooms if FLOORS.get(room.kind, "planks") == name]
        image = texture(rng)
        if rooms:
            floors.append(Floor(name, np.concatenate([plan_triangles(room) for room in rooms]), image))
    return solid, floors


def plan_rng(plan: FloorPlan) -> Generator:
    """The generator of all that chance decides in a plan's home."""
    return np.random.default_rng(int(hashlib.sha256(plan.digest().encode()).hexdigest()[:15], 16))


def unlit_glb(scene: trimesh.Scene) -> bytes:
    """A scene as a GLB file that is shown without lights."""
    return scene.export(file_type="glb", tree_postprocessor=_make_unlit)


def _make_unlit(tree: dict) -> None:
    for material in tree["materials"]:
        material["extensions"] = {"KHR_materials_unlit": {}}
    tree["extensionsUsed"] = ["KHR_materials_unlit"]


# ---- walls, ceiling and mouldings


def _shell(plan: FloorPlan, rng: Generator) -> Solid:
    """Everything that is built in: walls, ceiling, doorways, mouldings."""
    tall = [door.polygon for door in plan.doors if door.height > DOOR_HEIGHT]
    below, above = plan.floor, shapely.union_all([*[room.polygon for room in plan.rooms], *tall])
    faces = np.concatenate([walls(below, 0.0, DOOR_HEIGHT), walls(above, DOOR_HEIGHT, plan.ceiling)])
    parts = [
        _painted_walls(plan, faces, rng),
        painted(at_height(plan_triangles(above)[:, ::-1], plan.ceiling), TRIM),
        _strip(below, 0.016, 0.0, 0.07),
        _strip(below, 0.008, 0.07, 0.09),
        _strip(above, 0.05, plan.ceiling - 0.025, plan.ceiling - 0.001),
        _strip(above, 0.025, plan.ceiling - 0.05, plan.ceiling - 0.025),
    ]
    for door in plan.doors:
        parts.append(extrude(door.polygon.buffer(0.01, join_style="mitre"), 0.0005, 0.004, SILL))
        if door.height <= DOOR_HEIGHT:
            parts.append(painted(at_height(plan_triangles(door.polygon)[:, ::-1], DOOR_HEIGHT), TRIM))
            parts += _casing(door)
    return join(parts)


def _strip(area: shapely.Geometry, depth: float, low: float, high: float) -> Solid:
    """A moulding along all walls of an area."""
    return extrude(area.difference(area.buffer(-depth, join_style="mitre")), low, high, TRIM)


def _painted_walls(plan: FloorPlan, triangles: NDArray[np.float64], rng: Generator) -> Solid:
    """Walls in the paint of the room that they face; the insides of doorways white."""
    paints = np.array([*[PAINTS[int(rng.integers(len(PAINTS)))] for _ in plan.rooms], TRIM], np.uint8)
    middle = (triangles[0::2, 0] + triangles[0::2, 1])[:, :2] / 2
    along = (triangles[0::2, 0] - triangles[0::2, 1])[:, :2]
    inward = np.column_stack([-along[:, 1], along[:, 0]]) / np.linalg.norm(along, axis=1, keepdims=True)
    points = shapely.points(middle + 0.01 * inward)
    room = np.full(len(points), len(plan.rooms))
    for i, candidate in enumerate(plan.rooms):
        room[shapely.contains(candidate.polygon, points)] = i
    return Solid(triangles, np.repeat(paints[room], 2, axis=0))


def _casing(door: Door) -> list[Solid]:
    """The frame of a doorway on both sides of its wall; it covers the joints of the wall's faces."""
    x0, y0, x1, y1 = door.polygon.bounds
    upright = x1 - x0 < WALL + 1e-6
    width, thick = 0.07, 0.015
    span = (y1 - y0) if upright else (x1 - x0)
    parts = []
    for side in (-1, 1):
        out = side * (WALL + thick) / 2
        parts += [box((width, thick, DOOR_HEIGHT), TRIM, (end * (span + width) / 2, out, 0)) for end in (-1, 1)]
        parts.append(box((span + 2 * width, thick + 0.006, width), TRIM, (0, out, DOOR_HEIGHT - 0.001)))
    turn = np.pi / 2 if upright else 0.0
    return [part.turned(turn).moved((x0 + x1) / 2, (y0 + y1) / 2) for part in parts]


# ---- colours and textures


def _shaded(solid: Solid) -> Solid:
    """The solid in the colours that it has in the fixed light."""
    normals = np.cross(solid.triangles[:, 1] - solid.triangles[:, 0], solid.triangles[:, 2] - solid.triangles[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    shade = 0.86 + 0.14 * normals @ LIGHT
    return Solid(solid.triangles, np.rint(solid.colours * np.minimum(shade, 1.0)[:, None]).astype(np.uint8))


def _coloured_mesh(solid: Solid) -> trimesh.Trimesh:
    """One mesh with vertex colours; equal corners are shared."""
    colours = np.repeat(solid.colours, 3, axis=0)
    rows = np.column_stack([solid.triangles.reshape(-1, 3), colours]).astype(np.float32)
    rows += np.float32(0.0)  # so that -0 equals 0 in what follows, byte for byte
    _, first, faces = np.unique(rows.view(np.dtype((np.void, 24))), return_index=True, return_inverse=True)
    rgba = np.full((len(first), 4), 255, np.uint8)
    rgba[:, :3] = rows[first, 3:]
    visual = TextureVisuals(material=PBRMaterial(metallicFactor=0.0, roughnessFactor=1.0))
    visual.vertex_attributes["color"] = rgba
    return trimesh.Trimesh(rows[first, :3], faces.reshape(-1, 3), visual=visual, process=False)


def _textured_floor(floor: Floor) -> trimesh.Trimesh:
    """A mesh of floors under one image that repeats."""
    plan = floor.triangles.reshape(-1, 2)
    image = Image.fromarray(floor.image)
    material = PBRMaterial(baseColorTexture=image, metallicFactor=0.0, roughnessFactor=1.0)
    visual = TextureVisuals(uv=plan / TEXTURE_SPAN, material=material)
    faces = np.arange(len(plan)).reshape(-1, 3)
    return trimesh.Trimesh(at_height(plan, 0.0), faces, visual=visual, process=False)


def _planks(rng: Generator) -> NDArray[np.uint8]:
    """Boards of different tone with dark joints, `[H, W, 3]`."""
    boards, n = 8, TEXTURE_SIZE
    tone = rng.uniform(0.75, 1.05, boards)[np.arange(n) * boards // n]
    grain = rng.uniform(0.95, 1.05, (n, 1))
    image = (tone * grain * np.ones((n, n)))[..., None] * rng.uniform(0.8, 1.1) * np.array([172, 128, 86])
    image[:, :: n // boards] *= 0.6
    for board in range(boards):
        image[int(rng.integers(n)), board * n // boards : (board + 1) * n // boards] *= 0.6
    return np.clip(image, 0, 255).astype(np.uint8)


def _tiles(rng: Generator) -> NDArray[np.uint8]:
    """Square tiles with light joints, `[H, W, 3]`."""
    n, count = TEXTURE_SIZE, 4
    tone = rng.uniform(0.9, 1.05, (count, count)).repeat(n // count, 0).repeat(n // count, 1)
    image = tone[..., None] * np.array(PAINTS[int(rng.integers(len(PAINTS)))]) * 0.75
    image[:: n // count] = image[:, :: n // count] = 215
    return np.clip(image, 0, 255).astype(np.uint8)


def _carpet(rng: Generator) -> NDArray[np.uint8]:
    """Fine noise over one colour, `[H, W, 3]`."""
    noise = rng.normal(1.0, 0.06, (TEXTURE_SIZE, TEXTURE_SIZE, 1))
    return np.clip(noise * rng.uniform(110, 190, 3), 0, 255).astype(np.uint8)

"""A home as a scanner leaves it: finely and unevenly cut surfaces, noise, holes, loose flakes and baked textures.

It is made from the same plan as the plain home, in the plan's frame, and has the navigation mesh that Recast
builds on it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import trimesh
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from navprune.kernels import njit
from navprune.scenes.homes.atlas import SIDES, Atlas, Paint, bake, lay_out, surfaces
from navprune.scenes.homes.build import TEXTURE_SPAN, home_surfaces, plan_rng, unlit_glb
from navprune.scenes.homes.cutting import Mesh, cut, edges_of, waves
from navprune.scenes.homes.floorplan import FloorPlan
from navprune.scenes.homes.sight import scanner_places, seen
from navprune.scenes.homes.solids import at_height
from navprune.scenes.recast.build import build_for

SPARSEST, DENSEST = 2_000, 40_000  # triangles for each m2 of floor; with the former it is found out what is seen
FLAT = (0.7, 1.2)  # edges on the smallest and on the largest surfaces, relative to those on one of a square metre
DRIFT, RIPPLE, GRAIN = 0.012, 0.003, 0.001  # metres by which vertices move at most along each axis,
DRIFT_LENGTH, RIPPLE_LENGTH = 3.0, 0.25  # and over how many metres that varies; the grain from vertex to vertex
ROUND = 0.012  # metres by which a vertex moves at most where edges get round
UP, DOWN = 2, 5  # directions, as `surfaces` counts them
WINDOWS = 9.0  # metres of wall for each hole at the height of windows
FLOOR_TOP = 0.3  # metres; below, what faces upwards has no holes
FLAKE = 0.07  # metres of a cube whose surface comes loose as one flake
FLAKES = 1.0  # for each m2 of floor
FLAKE_SHIFT = (0.02, 0.2)  # metres that a flake is off its surface
FLAKE_BASE = 0.15  # metres over the floor where they begin
BRIGHTNESS, TINT, SEAMS = 0.12, 0.02, 0.05  # by which baked light varies: smoothly, in colour, and between photographs
CORNER = 0.2  # share of light that is missing at floor and ceiling
CORNER_HEIGHT = 0.2  # metres over which it returns
SPECKLE = 2.5  # standard deviation of a texel's noise, of 255
BLUR = 0.9  # texels


class _Home(NamedTuple):
    """The plain home: a mesh, colours float32 [F, 3], and for floors an index [F] into images [K, H, W, 3], else -1."""

    mesh: Mesh
    colours: NDArray[np.float32]
    texture: NDArray[np.int32]
    images: NDArray[np.uint8]


def write_scan(path: Path, plan: FloorPlan, density: float) -> int:
    """Write the GLB file `path` and the `.navmesh` beside it; returns the number of triangles."""
    glb, triangles = scan_glb(plan, density)
    path.write_bytes(glb)
    build_for(path, overwrite=True)
    return triangles


def scan_glb(plan: FloorPlan, density: float) -> tuple[bytes, int]:
    """The GLB file of a home as a scan with `density` triangles for each m2 of floor, and its number of triangles.

    The same plan and density give the same bytes.
    """
    rng = plan_rng(plan).spawn(1)[0]
    home = _plain(plan)
    part, direction = surfaces(home.mesh.vertices, home.mesh.faces)
    mesh = _scanned(home.mesh, part, plan, density, rng)
    part, direction, height = part[mesh.origin], direction[mesh.origin], mesh.vertices[mesh.faces, 2]
    floor = (direction == UP) & (height.max(axis=1) < FLOOR_TOP)
    firm = floor | (direction == DOWN) | (height.min(axis=1) < FLAKE_BASE)
    kept = floor | ~_in_holes(mesh, _holes(plan, rng), rng)
    moved = mesh.vertices + _rounding(mesh) + _noise(mesh.vertices, rng)

    mesh = Mesh(mesh.vertices, mesh.faces[kept], mesh.origin[kept])
    atlas = lay_out(mesh.vertices, mesh.faces, part[kept], direction[kept])
    pages = bake(atlas, mesh.vertices, _paint(home, mesh, plan.ceiling, rng))
    positions = moved[atlas.corners]
    loose = _flakes(positions, atlas.faces, ~firm[kept], round(FLAKES * plan.area), rng)
    return _glb(positions, atlas, loose, pages, rng), len(atlas.faces) + len(loose.faces)


def _scanned(plain: Mesh, part: NDArray, plan: FloorPlan, density: float, rng: Generator) -> Mesh:
    """What is seen of a home, cut to `density` triangles for each m2 of floor."""
    lengths = _edge_lengths(plain, part)
    coarse = cut(plain, lengths, round(SPARSEST * plan.area), rng)
    which = seen(coarse, plain.vertices[plain.faces], scanner_places(plan, rng))
    return cut(coarse.part(which), lengths, round(density * plan.area), rng)


def _plain(plan: FloorPlan) -> _Home:
    """The plain home with shared vertices."""
    solid, floors = home_surfaces(plan)
    count = [len(solid.triangles), *[len(floor.triangles) for floor in floors]]
    triangles = np.concatenate([solid.triangles, *[at_height(floor.triangles, 0.0) for floor in floors]])
    colours = np.full((len(triangles), 3), 255, np.float32)
    colours[: count[0]] = solid.colours
    texture = np.repeat(np.arange(-1, len(floors)), count).astype(np.int32)
    return _Home(Mesh.of(triangles), colours, texture, np.stack([floor.image for floor in floors]))


def _edge_lengths(mesh: Mesh, part: NDArray) -> NDArray[np.float64]:
    """How long edges should be on each face `[F]`, relative to each other: large surfaces are cut coarser."""
    corners = mesh.vertices[mesh.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.bincount(part, np.linalg.norm(normals, axis=1) / 2)[part]
    return np.clip(area**0.25, *FLAT)


# ---- noise, holes and flakes


def _noise(vertices: NDArray[np.float64], rng: Generator) -> NDArray[np.float64]:
    """By how many metres vertices `[V, 3]` move: neighbours nearly alike."""
    drift, ripple = waves(vertices, DRIFT_LENGTH, 3, rng), waves(vertices, RIPPLE_LENGTH, 3, rng)
    return DRIFT * drift + RIPPLE * ripple + GRAIN * rng.uniform(-1, 1, vertices.shape)


def _rounding(mesh: Mesh) -> NDArray[np.float64]:
    """By how many metres vertices `[V, 3]` move to make sharp edges round; those on open edges stay."""
    vertices = mesh.vertices
    edges, sides = edges_of(mesh.faces, len(vertices))
    neighbours = np.bincount(edges.ravel(), minlength=len(vertices))
    sums = [np.bincount(edges.ravel(), vertices[edges[:, ::-1].ravel(), k], len(vertices)) for k in range(3)]
    shift = (np.stack(sums, axis=1) / np.maximum(neighbours, 1)[:, None] - vertices) / 2
    shift *= ROUND / np.maximum(np.linalg.norm(shift, axis=1, keepdims=True), ROUND)
    shift[edges[np.bincount(sides.ravel()) == 1]] = 0.0
    return shift


def _holes(plan: FloorPlan, rng: Generator) -> NDArray[np.float64]:
    """Middles and radii `[N, 4]` in metres of holes: corners under the ceiling, and walls at the height of windows."""
    holes = []
    for room in plan.rooms:
        outline = room.polygon.exterior
        for x, y in outline.coords[:-1]:
            if rng.random() < 0.5:
                holes.append((x, y, plan.ceiling, rng.uniform(0.05, 0.25)))
        for place in rng.uniform(0, outline.length, round(outline.length / WINDOWS)):
            wall = outline.interpolate(place)
            holes.append((wall.x, wall.y, rng.uniform(1.2, 1.9), rng.uniform(0.05, 0.25)))
    return np.array(holes)


def _in_holes(mesh: Mesh, holes: NDArray[np.float64], rng: Generator) -> NDArray[np.bool_]:
    """Which faces `[F]` lie in holes, whose edges are ragged."""
    middles = mesh.vertices[mesh.faces].mean(axis=1)
    ragged = 1.0 + 0.4 * waves(middles, 0.4, 1, rng)[:, 0] + 0.1 * rng.uniform(-1, 1, len(middles))
    return _in_balls(middles, holes, ragged)


@njit(cache=True)
def _in_balls(points, balls, scale):  # type: ignore[no-untyped-def]
    """Which points `[N, 3]` are in one of the balls (x, y, z, radius) `[B, 4]`, radii taken by scale `[N]`."""
    inside = np.zeros(len(points), np.bool_)
    for i in range(len(points)):
        for ball in range(len(balls)):
            x, y, z = points[i, 0] - balls[ball, 0], points[i, 1] - balls[ball, 1], points[i, 2] - balls[ball, 2]
            radius = balls[ball, 3] * scale[i]
            inside[i] |= x * x + y * y + z * z < radius * radius
    return inside


class _Flakes(NamedTuple):
    """Loose copies of some faces: positions [N, 3], which corner of the mesh each is of, faces [K, 3] and of which."""

    positions: NDArray[np.float64]
    corners: NDArray[np.int64]
    faces: NDArray[np.int64]
    origin: NDArray[np.int64]


def _flakes(positions: NDArray, faces: NDArray, solid: NDArray[np.bool_], count: int, rng: Generator) -> _Flakes:
    """Some of the surface, as much as a small cube holds each time, shifted off it and tilted.

    solid: the faces `[F]` that may come loose.
    """
    candidates = np.flatnonzero(solid)
    triangles = positions[faces[candidates]]
    cubes = np.floor(triangles.mean(axis=1) / FLAKE).astype(np.int64)
    flake = np.unique(cubes, axis=0, return_inverse=True)[1].reshape(-1)
    number = np.full(flake.max() + 1, -1)
    chosen = rng.choice(len(number), min(count, len(number)), replace=False)
    number[chosen] = np.arange(len(chosen))
    loose = number[flake] >= 0
    flake, origin, triangles = number[flake[loose]], candidates[loose], triangles[loose]

    normals = np.zeros((len(chosen), 3))
    np.add.at(normals, flake, np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]))
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    keys, indices = np.unique(flake[:, None] * len(positions) + faces[origin], return_inverse=True)
    flake, corners = np.divmod(keys, len(positions))
    sums = np.zeros((len(chosen), 3))
    np.add.at(sums, flake, positions[corners])
    middles = sums / np.bincount(flake, minlength=len(chosen))[:, None]
    shifts = normals * rng.uniform(*FLAKE_SHIFT, (len(chosen), 1))
    tilt = rng.normal(0.0, 0.3, (len(chosen), 3))[flake]
    arm = positions[corners] - middles[flake]
    return _Flakes((middles + shifts)[flake] + arm + np.cross(tilt, arm), corners, indices.reshape(-1, 3), origin)


# ---- colours and the file


def _paint(home: _Home, mesh: Mesh, ceiling: float, rng: Generator) -> Paint:
    """The plain home's colours under light that varies, as photographs of different exposure leave it."""
    light = 1.0 + BRIGHTNESS * waves(mesh.vertices, 2.5, 1, rng) + TINT * waves(mesh.vertices, 1.5, 3, rng)
    height = np.minimum(mesh.vertices[:, 2:], ceiling - mesh.vertices[:, 2:])
    light *= 1.0 - CORNER * np.exp(-np.maximum(height, 0.0) / CORNER_HEIGHT)
    exposure = np.rint(2.5 * waves(mesh.vertices[mesh.faces[:, 0]], 2.0, 1, rng)) / 2.5
    colours = (home.colours[mesh.origin] * (1.0 + SEAMS * exposure)).astype(np.float32)
    return Paint(colours, home.texture[mesh.origin], home.images, TEXTURE_SPAN, light.astype(np.float32))


def _glb(positions: NDArray, atlas: Atlas, loose: _Flakes, pages: NDArray[np.uint8], rng: Generator) -> bytes:
    """The file: one mesh for each page, the last page as PNG and the others as JPEG."""
    faces = np.concatenate([atlas.faces, loose.faces + len(positions)])
    page = np.concatenate([atlas.page, atlas.page[loose.origin]])
    texels = np.concatenate([atlas.texels, atlas.texels[loose.corners]])
    positions = np.concatenate([positions, loose.positions])
    scene = trimesh.Scene()
    for number, used in enumerate(atlas.heights):
        rows = min(side for side in SIDES if side >= used)
        speckle = rng.normal(0.0, SPECKLE, (rows, atlas.side, 1))
        pixels = np.clip(pages[number, :rows] + speckle, 0, 255).astype(np.uint8)
        image = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(BLUR))
        image.format = "PNG" if number == len(atlas.heights) - 1 else "JPEG"
        material = PBRMaterial(baseColorTexture=image, metallicFactor=0.0, roughnessFactor=1.0)
        corners, indices = np.unique(faces[page == number], return_inverse=True)
        uv = texels[corners] / [atlas.side, rows]
        uv[:, 1] = 1.0 - uv[:, 1]  # trimesh counts rows from below
        visual = TextureVisuals(uv=uv, material=material)
        mesh = trimesh.Trimesh(positions[corners], indices.reshape(-1, 3), visual=visual, process=False)
        scene.add_geometry(mesh, geom_name=f"page{number}")
    return unlit_glb(scene)

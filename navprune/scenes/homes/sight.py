"""What a scanner that is carried through a home sees of it."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.random import Generator
from numpy.typing import NDArray

from navprune.kernels import njit
from navprune.scenes.homes.cutting import Mesh
from navprune.scenes.homes.floorplan import FloorPlan
from navprune.scenes.homes.walkable import walkable_floor

SPACING = 0.8  # metres between the scanner's places
HEIGHTS = (0.7, 2.1)  # metres over the floor
REACH = 6.0  # metres
VOXEL = 0.04  # metres
CLEAR = 2.0  # voxels off a face, and along the ray, before something can hide it: else it would hide itself


def scanner_places(plan: FloorPlan, rng: Generator) -> NDArray[np.float64]:
    """Places `[N, 3]` in the plan frame from which a home is scanned, all over its walkable floor."""
    floor = walkable_floor(plan)
    x0, y0, x1, y1 = floor.bounds
    x, y = np.meshgrid(np.arange(x0, x1, SPACING), np.arange(y0, y1, SPACING))
    grid = np.column_stack([x.ravel(), y.ravel()]) + rng.uniform(0, SPACING, (x.size, 2))
    grid = grid[shapely.contains_xy(floor, grid)]
    return np.column_stack([grid, rng.uniform(*HEIGHTS, len(grid))])


def seen(mesh: Mesh, hiding: NDArray[np.float64], places: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which faces `[F]` of a mesh are seen from some place `[N, 3]`, their neighbours with them.

    hiding: triangles `[T, 3, 3]` that hide what is behind them. A face counts as seen where it looks at a place and
    the way from its middle meets no voxel that a triangle touches.
    """
    low = hiding.min(axis=(0, 1)) - 3 * VOXEL
    size = np.ceil((hiding.max(axis=(0, 1)) - low) / VOXEL).astype(np.int64) + 3
    filled = np.zeros(size, np.bool_)
    _fill(filled, (hiding - low) / VOXEL)
    corners = (mesh.vertices[mesh.faces] - low) / VOXEL
    direct = _see(filled, corners, (places - low) / VOXEL, REACH / VOXEL)
    touched = np.zeros(len(mesh.vertices), np.bool_)
    touched[mesh.faces[direct]] = True
    return np.any(touched[mesh.faces], axis=1)


@njit(cache=True)
def _fill(filled, triangles):  # type: ignore[no-untyped-def]
    """Mark the voxels that triangles touch, by points on them that are closer than voxels."""
    for triangle in triangles:
        a, b, c = triangle
        steps = 1
        for one, other in ((a, b), (b, c), (c, a)):
            steps = max(steps, int(1.5 * np.sqrt(((one - other) ** 2).sum())) + 1)
        for i in range(steps + 1):
            for j in range(steps + 1 - i):
                v, w = i / steps, j / steps
                x, y, z = a + (b - a) * v + (c - a) * w
                filled[int(x), int(y), int(z)] = True


@njit(cache=True)
def _see(filled, corners, places, reach):  # type: ignore[no-untyped-def]
    result = np.zeros(len(corners), np.bool_)
    for face in range(len(corners)):
        a, b, c = corners[face]
        x, y, z = (a + b + c) / 3
        ux, uy, uz = b - a
        vx, vy, vz = c - a
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        length = np.sqrt(nx * nx + ny * ny + nz * nz)
        if length == 0.0:
            continue
        nx, ny, nz = nx / length, ny / length, nz / length
        for place in range(len(places)):
            dx, dy, dz = places[place, 0] - x, places[place, 1] - y, places[place, 2] - z
            distance = np.sqrt(dx * dx + dy * dy + dz * dz)
            if distance > reach or dx * nx + dy * ny + dz * nz < CLEAR:
                continue
            ahead = CLEAR
            dx, dy, dz = dx / distance, dy / distance, dz / distance
            sx, sy, sz = x + CLEAR * nx, y + CLEAR * ny, z + CLEAR * nz
            while ahead < distance - 2 * CLEAR:
                i, j, k = int(sx + ahead * dx), int(sy + ahead * dy), int(sz + ahead * dz)
                if filled[i, j, k]:
                    break
                ahead += 1.0
            else:
                result[face] = True
                break
    return result

"""A home as it is drawn and as scanners of any resolution leave it, and places in it to look from."""

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from navprune.scenes.files.mesh import load_glb
from navprune.scenes.homes.build import home_glb
from navprune.scenes.homes.floorplan import FloorPlan, draw_plan
from navprune.scenes.homes.scan import scan_glb
from navprune.scenes.homes.walkable import home_navmesh
from navprune.simulator.pathfinder import PathFinder

EYE = np.array([0.0, 1.25, 0.0])


class Places(NamedTuple):
    """Eyes [N, 3] and rotations [N, 4] of cameras."""

    eyes: NDArray[np.float64]
    rotations: NDArray[np.float64]


def make_plan(area: float, seed: int = 0) -> FloorPlan:
    """A furnished home of about an area in m2."""
    return draw_plan(np.random.default_rng(seed), (area, area + 5))


def look_from(plan: FloorPlan, count: int, seed: int = 0) -> Places:
    """Random places on the floor of a home, at the height of Habitat's camera, and random headings there."""
    rng = np.random.default_rng(seed)
    eyes, half = PathFinder(home_navmesh(plan)).sample(count, rng) + EYE, rng.uniform(0, np.pi, count)
    return Places(eyes, np.stack([np.zeros(count), np.sin(half), np.zeros(count), np.cos(half)], axis=1))


def triangles_of(plan: FloorPlan, density: float | None) -> NDArray[np.float32]:
    """The triangles [T, 3, 3] of a home, or of its scan with `density` triangles for each m2 of floor."""
    glb, _ = home_glb(plan) if density is None else scan_glb(plan, density)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "home.glb"
        path.write_bytes(glb)
        return load_glb(path).vertices

"""A home cut as finely as a scanner cuts it, and places in it to look from."""

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from navprune.kernels import njit
from navprune.scenes.files.mesh import load_glb
from navprune.scenes.homes.dataset import generate_dataset
from navprune.simulator.scene import load_scene

NOISE = 0.006  # metres, of each coordinate of a vertex
EYE = np.array([0.0, 1.25, 0.0])


class Home(NamedTuple):
    """Triangles [T, 3, 3], eyes [N, 3] and rotations [N, 4] of cameras in them."""

    vertices: NDArray[np.float32]
    eyes: NDArray[np.float64]
    rotations: NDArray[np.float64]


def make_home(area: float, poses: int, seed: int = 0) -> Home:
    """Generate a furnished home of an area in m2, with random poses on its floor."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        generate_dataset(
            Path(folder),
            name="homes",
            train=1,
            val=1,
            seed=seed,
            area=(area, area + 5),
            episodes_per_scene=20,
            workers=1,
        )
        path = Path(folder) / "scene_datasets/homes/train_0000.glb"
        vertices, pathfinder = load_glb(path).vertices, load_scene(path).pathfinder
        eyes = np.array([pathfinder.sample(1, rng)[0] for _ in range(poses)]) + EYE
    half = rng.uniform(0, np.pi, poses)
    rotations = np.stack([np.zeros(poses), np.sin(half), np.zeros(poses), np.cos(half)], axis=1)
    return Home(vertices, eyes, rotations)


def cut_to(vertices: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Cut triangles until there are about as many, and move their corners by noise.

    Triangles stay joined where they were: equal corners move alike.
    """
    low, high = 0.01, 10.0  # metres; the longest edge that stays
    for _ in range(12):
        longest = np.sqrt(low * high)
        low, high = (longest, high) if cut_count(vertices, longest) > count else (low, longest)
    pieces = np.empty((cut_count(vertices, high), 3, 3), np.float32)
    write_cut(vertices, high, pieces)
    corners, places = np.unique(pieces.reshape(-1, 3), axis=0, return_inverse=True)
    noise = np.random.default_rng(0).normal(0, NOISE, corners.shape)
    return (corners + noise).astype(np.float32)[places.ravel()].reshape(-1, 3, 3)


@njit
def cut_count(vertices, longest):
    """How many pieces `write_cut` makes."""
    return write_cut(vertices, longest, None)


@njit
def write_cut(vertices, longest, pieces):
    """Cut each triangle at the middle of its longest edge until no edge is longer; pieces may be None."""
    todo = np.empty((256, 3, 3), np.float32)
    count = 0
    for triangle in vertices:
        todo[0] = triangle
        waiting = 1
        while waiting > 0:
            waiting -= 1
            piece = todo[waiting].copy()
            edge, length = 0, np.float32(0)
            for k in range(3):
                squared = ((piece[(k + 1) % 3] - piece[k]) ** 2).sum()
                if squared > length:
                    edge, length = k, squared
            if length <= longest * longest:
                if pieces is not None:
                    pieces[count] = piece
                count += 1
                continue
            middle = (piece[edge] + piece[(edge + 1) % 3]) / np.float32(2)
            todo[waiting], todo[waiting + 1] = piece, piece
            todo[waiting, (edge + 1) % 3] = middle
            todo[waiting + 1, edge] = middle
            waiting += 2
    return count

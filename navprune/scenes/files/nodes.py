"""Where each mesh of a glTF scene stands."""

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from navprune.scenes.files.gltf import Gltf

INSTANCES = "EXT_mesh_gpu_instancing"
SHEAR = 1e-5  # cosine between two columns of a matrix from which on it counts as sheared; rounding stays below


def placed_meshes(gltf: Gltf, shear: bool) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Index of the mesh and transform [4, 4] of each node with a mesh in the default scene.

    shear: whether a node's matrix keeps its shear. Copies of a mesh by EXT_mesh_gpu_instancing count where the
    file requires that extension; where it does not, habitat-sim shows the mesh once.
    """
    scene = gltf.item("scenes", gltf.document.get("scene", 0))
    todo = deque((node, np.eye(4)) for node in scene.get("nodes", []))
    seen = set()
    while todo:
        index, above = todo.popleft()
        if index in seen:
            raise ValueError(f"node {index} has two parents")
        seen.add(index)
        node = gltf.item("nodes", index)
        transform = above @ _local_transform(node, shear)
        if "mesh" in node:
            for copy in _copies(gltf, node):
                yield node["mesh"], transform @ copy
        todo.extend((child, transform) for child in node.get("children", []))


def _copies(gltf: Gltf, node: dict[str, Any]) -> Iterator[NDArray[np.float64]]:
    """Transforms [4, 4] of a node's copies of its mesh, itself alone where it says nothing of copies."""
    if INSTANCES not in gltf.required or INSTANCES not in node.get("extensions", {}):
        yield np.eye(4)
        return
    names = node["extensions"][INSTANCES]["attributes"]
    columns = {key.lower(): gltf.floats(names[key]) for key in ("TRANSLATION", "ROTATION", "SCALE") if key in names}
    for rows in zip(*columns.values(), strict=True):
        yield _local_transform(dict(zip(columns, rows, strict=True)), shear=True)


def _local_transform(node: dict[str, Any], shear: bool) -> NDArray[np.float64]:
    """A node's transform [4, 4], from its matrix or from translation, rotation and scale."""
    if "matrix" in node:
        matrix = np.array(node["matrix"], np.float64).reshape(4, 4).T
        return matrix if shear else _without_shear(matrix)
    x, y, z, w = rotation = node.get("rotation", (0.0, 0.0, 0.0, 1.0))
    square = x * x + y * y + z * z + w * w
    transform = np.eye(4)
    transform[:3, :3] = _rotation(rotation, 2.0 / square if square else 0.0)
    transform[:3, :3] *= np.array(node.get("scale", (1.0, 1.0, 1.0)), np.float64)
    transform[:3, 3] = node.get("translation", (0.0, 0.0, 0.0))
    return transform


def _without_shear(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """A transform [4, 4] as habitat-sim draws it: of a sheared one only translation, rotation and scale are kept.

    The scale is the length of the columns; the rotation is read from the columns at unit length as if they were
    orthogonal, and its quaternion is not normalised (found by experiment).
    """
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    unit = matrix[:3, :3] / np.where(lengths > 0, lengths, 1.0)
    if np.abs(unit.T @ unit - np.diag(np.diag(unit.T @ unit))).max() < SHEAR:
        return matrix
    kept = matrix.copy()
    kept[:3, :3] = _rotation(_quaternion(unit)) * lengths
    return kept


def _rotation(quaternion: ArrayLike, s: float = 2.0) -> NDArray[np.float64]:
    """The rotation [3, 3] of a quaternion x y z w; s is 2 over its squared length."""
    x, y, z, w = np.asarray(quaternion, np.float64)
    return np.array(
        [
            [1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)],
            [s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)],
            [s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)],
        ]
    )


def _quaternion(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The quaternion x y z w of a rotation [3, 3]; Shoemake, "Animating rotation with quaternion curves", 1985."""
    quaternion = np.empty(4)
    trace = np.trace(matrix)
    if trace > 0:
        root = np.sqrt(trace + 1)
        for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
            quaternion[i] = 0.5 / root * (matrix[k, j] - matrix[j, k])
        quaternion[3] = 0.5 * root
        return quaternion
    i = int(np.argmax(np.diag(matrix)))
    j, k = (i + 1) % 3, (i + 2) % 3
    root = np.sqrt(matrix[i, i] - matrix[j, j] - matrix[k, k] + 1)
    quaternion[i] = 0.5 * root
    quaternion[j] = 0.5 / root * (matrix[j, i] + matrix[i, j])
    quaternion[k] = 0.5 / root * (matrix[k, i] + matrix[i, k])
    quaternion[3] = 0.5 / root * (matrix[k, j] - matrix[j, k])
    return quaternion

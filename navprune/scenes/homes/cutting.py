"""Cuts meshes finely and unevenly, as scanners' surfaces are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from navprune.kernels import njit

SAME = 1e-5  # metres within which corners are equal
COARSEST = 0.6  # of the longest edge, relative to what is wanted: edges beyond are cut in one go
UNEVEN = 0.4  # logarithm by which lengths of edges vary from place to place


class Mesh(NamedTuple):
    """Triangles that share vertices.

    vertices: float64 [V, 3], metres; faces: int64 [F, 3]; origin: int64 [F], the faces of another mesh that these are
    cut from.
    """

    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]
    origin: NDArray[np.int64]

    @classmethod
    def of(cls, triangles: NDArray[np.float64]) -> Mesh:
        """Triangles `[F, 3, 3]` that share the corners that are equal."""
        corners = triangles.reshape(-1, 3)
        rows = np.rint(corners / SAME).astype(np.int64)
        _, first, faces = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        return cls(corners[first], faces.reshape(-1, 3), np.arange(len(triangles)))

    def part(self, kept: NDArray[np.bool_]) -> Mesh:
        """Some of the faces `[F]`, with the vertices that they need."""
        used, faces = np.unique(self.faces[kept], return_inverse=True)
        return Mesh(self.vertices[used], faces.reshape(-1, 3), self.origin[kept])


def cut(mesh: Mesh, lengths: NDArray[np.float64], count: int, rng: Generator) -> Mesh:
    """Cut a mesh near the middle of its longest edges until it has `count` faces or a few more.

    lengths: how long edges may be, against each other, on the faces `[K]` that the mesh has its origin in. All faces
    at an edge are cut at the same point, so that no cracks appear.
    """
    vertices, faces, origin = mesh
    wanted = np.exp(UNEVEN * waves(vertices, 2.0, 1, rng)[:, 0])
    while len(faces) < count:
        edges, sides = edges_of(faces, len(vertices))
        length = np.full(len(edges), np.inf)
        np.minimum.at(length, sides.ravel(), np.repeat(lengths[origin], 3))
        ends = vertices[edges]
        excess = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1) / (length * wanted[edges].mean(axis=1))
        chosen = np.flatnonzero(excess > COARSEST * excess.max())
        most = (count - len(faces) + 1) // 2  # each of them adds two faces, as a rule
        if len(chosen) > most:
            chosen = chosen[np.argpartition(-excess[chosen], most - 1)[:most]]
        share = rng.uniform(0.4, 0.6, (len(chosen), 1))
        middles = np.full(len(edges), -1)
        middles[chosen] = len(vertices) + np.arange(len(chosen))
        vertices = np.concatenate([vertices, ends[chosen, 0] * (1 - share) + ends[chosen, 1] * share])
        wanted = np.concatenate([wanted, wanted[edges[chosen]].mean(axis=1)])
        faces, origin = _split(vertices, faces, origin, middles[sides])
    return Mesh(vertices, faces, origin)


def edges_of(faces: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of vertices `[E, 2]`, the lesser first, and which of them each face's sides ab, bc, ca are, `[F, 3]`."""
    after = np.roll(faces, -1, axis=1)
    keys, sides = np.unique(np.minimum(faces, after) * count + np.maximum(faces, after), return_inverse=True)
    return np.column_stack(np.divmod(keys, count)), sides.reshape(-1, 3)


def _split(
    vertices: NDArray[np.float64], faces: NDArray[np.int64], origin: NDArray[np.int64], middles: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Faces and their origin after sides were cut at the vertices `middles` `[F, 3]`, -1 where not."""
    is_cut = middles >= 0
    number = is_cut.sum(axis=1)
    # Turned so that of one cut side it is the first, and of two the first two.
    first = np.where(number == 2, (np.argmin(is_cut, axis=1) + 1) % 3, np.argmax(is_cut, axis=1))
    turned = (first[:, None] + np.arange(3)) % 3
    a, b, c = np.take_along_axis(faces, turned, axis=1).T
    ab, bc, ca = np.take_along_axis(middles, turned, axis=1).T
    one, two, three = number == 1, number == 2, number == 3
    across = np.linalg.norm(vertices[a] - vertices[bc], axis=1) < np.linalg.norm(vertices[ab] - vertices[c], axis=1)
    near, far = two & across, two & ~across
    parts = [
        (number == 0, (a, b, c)), (one, (a, ab, c)), (one, (ab, b, c)), (two, (ab, b, bc)),
        (near, (a, ab, bc)), (near, (a, bc, c)), (far, (a, ab, c)), (far, (ab, bc, c)),
        (three, (a, ab, ca)), (three, (ab, b, bc)), (three, (ca, bc, c)), (three, (ab, bc, ca)),
    ]  # fmt: skip
    pieces = [np.column_stack([corner[which] for corner in corners]) for which, corners in parts]
    return np.concatenate(pieces), np.concatenate([origin[which] for which, _ in parts])


def waves(points: NDArray[np.float64], length: float, channels: int, rng: Generator) -> NDArray[np.float64]:
    """A smooth random field at points `[N, 3]`, `[N, channels]` within -1 to 1, that varies over `length` metres."""
    directions = rng.normal(size=(16, 3))
    directions *= 2 * np.pi / (length * np.linalg.norm(directions, axis=1) * rng.uniform(0.6, 1.6, 16))[:, None]
    return _sines(points, directions, rng.uniform(0, 2 * np.pi, (16, channels)))


@njit(cache=True)
def _sines(points, directions, phases):  # type: ignore[no-untyped-def]
    """Sums of sines of standard deviation 1/2, cut at -1 and 1."""
    field = np.zeros((len(points), phases.shape[1]))
    scale = np.sqrt(0.5 / len(directions))
    for i in range(len(points)):
        x, y, z = points[i]
        for wave in range(len(directions)):
            along = x * directions[wave, 0] + y * directions[wave, 1] + z * directions[wave, 2]
            for k in range(phases.shape[1]):
                field[i, k] += scale * np.sin(along + phases[wave, k])
        for k in range(phases.shape[1]):
            field[i, k] = min(max(field[i, k], -1.0), 1.0)
    return field

"""How an agent moves, in the float32 arithmetic of habitat-sim, so that whole episodes stay on its track.

Positions are float32 [N, 3] in metres, rotations float32 [N, 4] as x, y, z, w. What walls make of a step is the path
finder's part, between `aim` and `settle`.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from navprune.tasks import FORWARD, LEFT, RIGHT

COLLISION_TOLERANCE = 1e-5
Floats = NDArray[np.float32]


def turn(rotations: Floats, angles: ArrayLike) -> Floats:
    """Rotate agents about their own +y by angles, radians [N] or one for all; positive is to the left.

    The product of unit quaternions q (0, sin(a / 2), 0, cos(a / 2)), divided by its length.
    """
    half = np.asarray(angles, np.float32) / np.float32(2)
    sin, cos = np.sin(half), np.cos(half)
    x, y, z, w = rotations.T
    turned = np.array([cos * x - z * sin, w * sin + cos * y, cos * z + x * sin, w * cos - y * sin]).T
    x, y, z, w = turned.T
    return turned / np.sqrt(x * x + y * y + z * z + w * w)[..., None]


def first_actions(turns: ArrayLike) -> NDArray[np.int64]:
    """The actions that begin so many turns each, to the left where positive, and a step; shape as `turns`."""
    return np.where(np.equal(turns, 0), FORWARD, np.where(np.greater(turns, 0), LEFT, RIGHT))


def rotated(rotations: NDArray, vector: NDArray) -> NDArray:
    """A vector [3] of the agents' own axes along those of the scene, [N, 3]: v + 2 u x (u x v + w v), q = (u, w)."""
    axes, scalars = rotations[:, :3], rotations[:, 3:]
    return vector + 2 * np.cross(axes, np.cross(axes, vector) + scalars * vector)


def aim(positions: Floats, rotations: Floats, distance: float) -> Floats:
    """Where agents would come that go `distance` metres ahead, [N, 3]: position - distance x the third axis."""
    x, y, z, w = rotations.T
    one, two = np.float32(1), np.float32(2)
    axis: Floats = np.array([two * x * z + two * y * w, two * y * z - two * x * w, one - two * x * x - two * y * y]).T
    return positions - np.float32(distance) * axis


def settle(targets: Floats, reached: ArrayLike) -> Floats:
    """Move agents from their targets to what the path finder let them reach, [N, 3]: by the rounded difference."""
    return targets + (np.asarray(reached).astype(np.float32) - targets)


def collided(starts: NDArray, targets: NDArray, reached: NDArray) -> NDArray[np.bool_]:
    """Which steps [N] from starts towards targets were cut short: squared lengths differ by more than 1e-5."""
    intended, moved = targets - starts, reached - starts
    return np.sum(moved * moved, axis=-1) + COLLISION_TOLERANCE < np.sum(intended * intended, axis=-1)

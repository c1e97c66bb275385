"""PointNav's formulas as Habitat computes them, on plain numbers and arrays."""

import math

import numpy as np
from numpy.typing import NDArray

COLLISION_TOLERANCE = 1e-5
MOVED_TOLERANCE = 1e-4


def heading_of(rotation_xyzw: NDArray[np.float64]) -> float:
    """Angle about +y, in radians, of a rotation quaternion [x, y, z, w]; 0 looks along -z, positive is left."""
    return 2.0 * math.atan2(float(rotation_xyzw[1]), float(rotation_xyzw[3]))


def headings_of(rotations: NDArray[np.float32]) -> NDArray[np.float64]:
    """`heading_of` for rotations [N, 4], in float64."""
    return 2.0 * np.arctan2(rotations[:, 1], rotations[:, 3], dtype=np.float64)


def rotations_of(headings: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quaternions [N, 4] (x, y, z, w) of headings [N] in radians."""
    rotations = np.zeros((len(headings), 4))
    rotations[:, 1] = np.sin(headings / 2)
    rotations[:, 3] = np.cos(headings / 2)
    return rotations


def forward_of(heading: float) -> NDArray[np.float64]:
    """Unit vector [3] that an agent of this heading (radians) looks along."""
    return np.array([-math.sin(heading), 0.0, -math.cos(heading)])


def goal_vectors(
    positions: NDArray[np.floating], headings: NDArray[np.float64], goals: NDArray[np.float64]
) -> NDArray[np.float32]:
    """The `pointgoal_with_gps_compass` sensor: [N, 2] of distance (m) and angle (rad, positive to the left).

    positions and goals [N, 3], headings [N]. With v = R^-1 (goal - position): rho = hypot(-v_z, v_x) and
    -phi, phi = atan2(v_x, -v_z) (habitat-lab, PointGoalSensor in polar coordinates of two dimensions).
    """
    offset = goals - positions
    cos, sin = np.cos(headings), np.sin(headings)
    right = cos * offset[:, 0] - sin * offset[:, 2]
    ahead = -sin * offset[:, 0] - cos * offset[:, 2]
    return np.stack([np.hypot(ahead, right), -np.arctan2(right, ahead)], axis=1).astype(np.float32)


def has_moved(previous: NDArray[np.float64], current: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where [N] Habitat would measure the distance to the goal anew: positions [N, 3] are not allclose."""
    limit = MOVED_TOLERANCE + 1e-5 * np.abs(current)
    return np.any(np.abs(previous - current) > limit, axis=-1)


def collided(start: NDArray[np.float64], target: NDArray[np.float64], end: NDArray[np.float64]) -> bool:
    """Whether a step from start towards target that ended at end ([3] each) was cut short (squared lengths)."""
    intended, moved = target - start, end - start
    return bool(moved @ moved + COLLISION_TOLERANCE < intended @ intended)


def spl(success: bool, shortest: float, travelled: float) -> float:
    """Success weighted by path length: S L / max(L, P) (Anderson et al. 2018, arXiv:1807.06757), lengths in metres."""
    return float(success) * path_efficiency(shortest, travelled)


def soft_spl(distance: float, shortest: float, travelled: float) -> float:
    """SPL with progress for success: max(0, 1 - d / L) L / max(L, P) (Datta et al. 2020), lengths in metres."""
    progress = max(0.0, 1.0 - distance / shortest) if shortest > 0 else 0.0
    return progress * path_efficiency(shortest, travelled)


def path_efficiency(shortest: float, travelled: float) -> float:
    """L / max(L, P): the share of the travelled length that was needed; 0 when both are 0."""
    longest = max(shortest, travelled)
    return shortest / longest if longest > 0 else 0.0

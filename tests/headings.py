"""Headings of one agent: angles about +y in radians, 0 looks along -z, positive is left."""

import math

import numpy as np


def heading_of(rotation):
    """Of a quaternion [x, y, z, w]."""
    return 2.0 * math.atan2(float(rotation[1]), float(rotation[3]))


def forward_of(heading):
    """Unit vector [3] that an agent of this heading looks along."""
    return np.array([-math.sin(heading), 0.0, -math.cos(heading)])

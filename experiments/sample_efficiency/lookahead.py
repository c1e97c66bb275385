"""Prototype: what each action is worth to an agent with a map, in metres."""

import math
import os
from functools import partial

import numpy as np

from navprune.tasks import STOP
from navprune.tasks.motion import collided

P = {"clear": 0.0, "penalty": 0.1, "margin": 0.0, "tau": 0.02, "span": 18, "bump": 0.0}


def values(finder, positions, headings, goals, distances, *, success_distance, forward_step, turn_angle, sliding):
    count = len(positions)
    half = round(math.pi / turn_angle)
    turns = np.arange(-half + 1, half + 1)
    heading = (headings[:, None] + turns * turn_angle).ravel()
    starts, ends = (np.repeat(x, len(turns), axis=0) for x in (positions, goals))
    targets = starts - forward_step * np.stack([np.sin(heading), 0 * heading, np.cos(heading)], -1)
    reached = finder.step(starts, targets, sliding=sliding)
    left = finder.geodesic_distance(reached, ends)
    if P["clear"]:
        near = np.maximum(0, P["clear"] - finder.obstacle_distance(reached, P["clear"])) / P["clear"]
        left = left + P["penalty"] * near * np.minimum(1.0, np.repeat(distances, len(turns)))
    if P["bump"]:
        moved = np.linalg.norm(reached - starts, axis=1)
        left = left + P["bump"] * (1 - moved / forward_step)
    gain = distances[:, None] - left.reshape(count, -1)
    centre = half - 1
    def best(at):
        steps = np.abs(turns - at)
        steps = np.minimum(steps, 2 * half - steps)
        scored = gain - P["tau"] * steps
        k = scored.argmax(1)
        return scored[np.arange(count), k], steps[k]
    straight, needed = best(0)
    q = np.empty((count, 4))
    q[:, 0] = np.where(distances < success_distance, 10.0, -1.0)
    q[:, 1] = gain[:, centre] - P["tau"] * needed + P["margin"]
    q[:, 2], q[:, 3] = best(1)[0] - P["tau"], best(-1)[0] - P["tau"]
    q[:, 1:] = np.where(np.isfinite(q[:, 1:]), q[:, 1:], -10)
    return q


def actions(finder, *state, **task):
    return values(finder, *state, **task).argmax(1)

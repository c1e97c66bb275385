"""Collects the heights of the floor around a polygon of a navigation mesh, as Recast's detail mesh needs them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from navprune.kernels import njit
from navprune.scenes.recast.heightfield import STEP_X, STEP_Z, Field, Grid

UNSET = 0xFFFF  # no height


class Patch(NamedTuple):
    """Heights around one polygon."""

    x: int  # of the first column
    z: int  # of the first row
    heights: np.ndarray  # int32 [rows, columns], UNSET where there is none
    cell_size: np.float32
    cell_height: np.float32
    search: int  # cells to look around for a height


def patch_around(field: Field, regions: np.ndarray, corners: np.ndarray, region: int, grid: Grid, search: int) -> Patch:
    """The heights around a polygon of a region; `corners` int32 [K, 3] on the grid."""
    x0, z0 = (int(max(corners[:, k].min() - 1, 0)) for k in (0, 2))
    x1, z1 = int(min(corners[:, 0].max() + 1, field.width)), int(min(corners[:, 2].max() + 1, field.depth))
    heights = np.full((z1 - z0, x1 - x0), UNSET, np.int32)
    heights = _fill(field, regions, corners, region, x0, z0, heights)
    return Patch(x0, z0, heights, grid.cell_size, grid.cell_height, min(search, max(heights.shape)))


@njit(cache=True)
def _fill(field, regions, corners, region, x0, z0, heights):
    """Fill `heights` with the floors of a region, and spread them to the places around it."""
    rows, columns = heights.shape
    queue = np.empty(rows * columns + 1, np.int32)
    count, empty = 0, True
    for z in range(rows):
        for x in range(columns):
            cell = x + x0 + (z + z0) * field.width
            for i in range(field.first[cell], field.first[cell + 1]):
                if regions[i] != region:
                    continue
                heights[z, x] = field.floor[i]
                empty = False
                for near in field.neighbours[i]:
                    if near >= 0 and regions[near] != region:
                        queue[count] = i
                        count += 1
                        break
                break
    if empty:
        start = _centre(field, corners, x0, z0, heights)
        if start < 0:
            return heights
        heights[field.z[start] - z0, field.x[start] - x0] = field.floor[start]
        queue[0], count = start, 1
    head = 0
    while head < count:
        i = queue[head]
        head += 1
        for near in field.neighbours[i]:
            if near < 0:
                continue
            x, z = field.x[near] - x0, field.z[near] - z0
            if 0 <= x < columns and 0 <= z < rows and heights[z, x] == UNSET:
                heights[z, x] = field.floor[near]
                queue[count] = near
                count += 1
    return heights


@njit(cache=True)
def _centre(field, corners, x0, z0, heights):
    """A place at the middle of a polygon, or as near as one gets from its corners; -1 without any."""
    rows, columns = heights.shape
    start, nearest = -1, UNSET
    for c in range(len(corners)):
        for dx, dz in ((0, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0)):
            x, z = corners[c, 0] + dx, corners[c, 2] + dz
            if nearest == 0 or not (0 <= x - x0 < columns and 0 <= z - z0 < rows):
                continue
            cell = x + z * field.width
            for i in range(field.first[cell], field.first[cell + 1]):
                apart = abs(corners[c, 1] - field.floor[i])
                if apart < nearest:
                    start, nearest = i, apart
    if start < 0:
        return start
    goal_x, goal_z = np.sum(corners[:, 0]) // len(corners), np.sum(corners[:, 2]) // len(corners)
    seen = np.zeros(heights.shape, np.bool_)
    stack = np.empty(rows * columns + 1, np.int32)
    stack[0], depth = start, 1
    i = start
    while depth > 0:
        depth -= 1
        i = stack[depth]
        x, z = field.x[i], field.z[i]
        if x == goal_x and z == goal_z:
            break
        direct = (1 if goal_z > z else 3) if x == goal_x else (2 if goal_x > x else 0)
        for k in range(4):  # the direct way last, to be taken first
            side = direct if k == 3 else (3 if k == direct else k)
            near = field.neighbours[i, side]
            nx, nz = x + STEP_X[side] - x0, z + STEP_Z[side] - z0
            if near >= 0 and 0 <= nx < columns and 0 <= nz < rows and not seen[nz, nx]:
                seen[nz, nx] = True
                stack[depth] = near
                depth += 1
    return i

"""A walled room with a detour, and numbers in the forms that the commands write."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from navprune.evaluation.evaluate import Recording
from navprune.reports.tables import Row
from navprune.scenes.files.episodes import Episode


class TwoRooms:
    """Floor from x = 0 to 2 and 3 to 5, joined by a strip; a table top at 0.8 m; an upper floor at 3 m."""

    def triangles(self):
        boxes = [(0, 0, 2, 3, 0), (3, 0, 5, 3, 0), (2, 2, 3, 3, 0), (0.5, 0.5, 1, 1, 0.8), (0, 0, 9, 9, 3)]
        return np.concatenate([self.rectangle(*box) for box in boxes]).astype(np.float32)

    def rectangle(self, x0, z0, x1, z1, y):
        a, b, c, d = (x0, y, z0), (x0, y, z1), (x1, y, z1), (x1, y, z0)
        return np.array([(a, b, c), (a, c, d)], float)

    def geodesic_distance(self, starts, ends):
        return np.where(ends[:, 1] == 0.8, np.inf, 1.0)  # the table cannot be climbed

    def find_path(self, start, end):
        corners = np.array([start, (2.0, 0.0, 2.0), (3.0, 0.0, 2.0), end])
        return SimpleNamespace(distance=1.0, points=corners)


@pytest.fixture
def recording():
    corners = np.array([(0.25, 0, 0.25), (1.5, 0, 2.5), (3.5, 0, 2.5), (4.5, 0, 0.5)])
    positions = [a + s * (b - a) for a, b in pairwise(corners) for s in np.linspace(0, 1, 5)]
    episode = Episode("7", "homes/two_rooms.glb", tuple(corners[0]), (0, 0, 0, 1), tuple(corners[-1]), 0.2, 5.0)
    ramp = np.tile(np.linspace(0, 1, 48, dtype=np.float32), (48, 1))
    return Recording(
        episode,
        TwoRooms(),
        positions,
        list(np.linspace(0, -np.pi, len(positions))),
        views={"depth": [ramp[..., None]] * len(positions)},
        measures={"success": 1.0, "spl": 0.91, "distance_to_goal": 0.1},
    )


def measures(spl, reward):
    means = {"spl": spl, "success": min(1.0, spl + 0.05), "reward": reward}
    return {name: {"mean": m, "low": m - 0.02, "high": m + 0.02} for name, m in means.items()}


def row(name, spl, reward, macs=None, parameters=None, milliseconds=()):
    """One row of published numbers: batch sizes 1 and 8 of `milliseconds`."""
    cost = macs and {
        "table1": {"macs_gi": macs, "parameters_mi": parameters},
        "deployed": {"macs": int(macs * 3e8), "parameters": int(parameters * 1.2e6)},
        "input": [1, 256, 256],
    }
    latency = [
        {
            "model": name, "runtime": "eager", "batch_size": batch, "median_ms": ms, "p95_ms": 1.1 * ms,
            "p99_ms": 1.2 * ms,
            "saving_realised": 1 - ms / dense, "saving_theoretical": 1 - macs / 1.231,
        }
        for batch, ms, dense in zip((1, 8), milliseconds, (35.7, 139.0))
    ]  # fmt: skip
    evaluation = {
        "split": "val",
        "episodes": 994,
        "measures": measures(spl, reward),
        "frames_per_second": 900.0,
    }
    score = {"iqm": {"mean": spl + 0.01, "low": spl, "high": spl + 0.02}}
    score["worst_scene"] = {"scene": "gibson/Cantwell.glb", "mean": spl / 2}
    statistics = {"scenes": 14, "spl": score, "success": score}
    return Row(name, cost, evaluation, latency, [f"{name}_s1", f"{name}_s2"] if cost else [], statistics)


@pytest.fixture
def rows():
    return [
        row("ResNet50", 0.897, 7.2, 1.231, 5.5913, (35.7, 139.0)),
        row("ResNet50, pruned", 0.901, 7.1, 0.6, 2.43, (25.5, 115.2)),
        row("goal follower", 0.31, 1.5),
    ]


@pytest.fixture
def comparisons():
    """Two agents against ResNet50, as `navprune compare --json` says it."""
    found = [("ResNet50, pruned", 0.004, 0.4, 0.012), ("goal follower", -0.587, 0.0002, 1.0)]
    lines = [
        {
            "name": name,
            "difference": {"mean": mean, "low": mean - 0.02, "high": mean + 0.02, "p": p},
            "improvement": {"mean": 0.52, "low": 0.487, "high": 0.553},
            "non_inferiority": {"at_least": mean - 0.0175, "p": inferior, "shown": inferior < 0.05},
        }
        for name, mean, p, inferior in found
    ]
    return {"reference": "ResNet50", "margin": 0.02, "measures": {"spl": lines, "success": lines}}


@pytest.fixture
def pruning():
    cost = {"table1": {"macs_gi": 1.231, "parameters_mi": 5.5913}}
    slim = {"table1": {"macs_gi": 0.6, "parameters_mi": 2.43}}
    widths = {"stem": [32, 32], "stage1.trunk": [128, 96], "stage1.block0.conv1": [32, 12]}
    return {"method": "gates", "before": cost, "after": slim, "widths": widths, "seconds": 3.0}

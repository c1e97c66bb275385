"""Measures what an image of depth takes, over how finely a home is scanned, beside Embree and beside a former commit.

    git archive c0d2d63 navprune | tar -x -C FORMER
    python experiments/simulator_speed/run.py --former FORMER

writes results.json beside this file. All that is compared draws the same poses in turn, on one thread; time is that
thread's own. figure.py draws the results.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scenes import Places, look_from, make_plan, triangles_of

from navprune.files import write_file

FOLDER = Path(__file__).parent
SIZES = 64, 128, 256
AREA = 40.0  # m2
DENSITIES = 2_000, 4_000, 10_000, 25_000, 60_000, 120_000  # triangles of a scan for each m2 of floor
IN_TURN = 4  # images of one before the next's


class Worker:
    """A process that draws one scene by one of the ways that workers.py knows."""

    def __init__(self, kind: str, scene: Path, package: Path):
        """package: the folder that holds the navprune to use."""
        command = [sys.executable, str(FOLDER / "workers.py"), kind, str(scene)]
        environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, env=environment, text=True, bufsize=1, **pipes)
        self._read()

    def take(self, size: int, first: int, count: int) -> list[float]:
        """Milliseconds of each of these poses."""
        print(size, first, count, file=self._process.stdin, flush=True)
        return list(json.loads(self._read()))

    def _read(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args} has ended")
        return line

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()


def measure(
    triangles: NDArray[np.float32], places: Places, kinds: dict[str, Path], folder: Path
) -> dict[str, dict[str, float]]:
    """Median milliseconds by size and kind; kinds: each with the folder of its package."""
    scene = folder / "scene.npz"
    np.savez(scene, vertices=triangles, **places._asdict())
    workers = {kind: Worker(kind, scene, package) for kind, package in kinds.items()}
    medians = {}
    for size in SIZES:
        taken: dict[str, list[float]] = {kind: worker.take(size, 0, 2) and [] for kind, worker in workers.items()}
        for first in range(0, len(places.eyes), IN_TURN):
            for kind, worker in workers.items():
                taken[kind] += worker.take(size, first, min(IN_TURN, len(places.eyes) - first))
        medians[str(size)] = {kind: float(np.median(times)) for kind, times in taken.items()}
        print(len(triangles), size, medians[str(size)], flush=True)
    for worker in workers.values():
        worker.close()
    return medians


def main() -> None:
    """Measure the plain home and its scans, write results.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--former", type=Path, required=True, help="a folder with the former package navprune")
    parser.add_argument("--poses", type=int, default=60)
    options = parser.parse_args()
    kinds = {"navprune": FOLDER.parents[1], "former": options.former, "embree": FOLDER.parents[1]}
    plan, rows = make_plan(AREA), []
    places = look_from(plan, options.poses)
    with tempfile.TemporaryDirectory() as folder:
        for density in (None, *DENSITIES):
            triangles = triangles_of(plan, density)
            medians = measure(triangles, places, kinds, Path(folder))
            rows.append({"triangles": len(triangles), "plain": density is None, "milliseconds": medians})
    write_file(FOLDER / "results.json", (json.dumps(rows, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()

"""Measures how long scenes take to load and what memory they fill: `python experiments/scene_loading.py SCENE.glb ...`

Each scene is loaded with its navmesh by fresh processes: first with an empty cache, then from it, then by four that
hold it at once and have touched every page of it. Memory that several processes share counts in equal shares
(proportional set size). docs/datasets.md has the figures.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from navprune.reports.tables import rows_table
from navprune.scenes.files.mesh import SceneMesh
from navprune.simulator.asset import RenderAsset
from navprune.simulator.cache import FOLDER
from navprune.simulator.scene import load_scene

MIB = 2**20


def worker(scene: Path | None) -> None:
    """Load a scene, say what that took, and hold it until standard input ends."""
    mesh = SceneMesh.from_vertices([[[0, 0, 0], [1, 0, 0], [0, 1, 0]]])
    RenderAsset(mesh)  # the compiled kernels are loaded
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = {"triangles": 0, "shape_s": 0.0, "colours_s": 0.0, "MiB": 0.0}
    if scene:
        begun, before_s = time.perf_counter(), time.process_time()
        loaded = load_scene(scene)
        shape = time.perf_counter()
        asset, surface = loaded.asset, loaded.asset.surface
        colours = time.perf_counter()
        spent = time.process_time() - before_s
        touched = sum(int(array.reshape(-1).view("u1")[::1024].sum()) for array in (*asset.tree, *surface))
        answer = {"triangles": asset.triangles, "shape_s": shape - begun, "colours_s": colours - shape}
        answer |= {"MiB": asset.nbytes / MIB, "touched": touched, "cpu_s": spent}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(answer | {"peak_MiB": peak / 1024, "peak_before_MiB": before / 1024}), flush=True)
    sys.stdin.read()


def measured(scene: Path | None, count: int = 1) -> tuple[list[dict], float]:
    """What so many workers say that hold a scene at once, and MiB of their proportional set sizes together."""
    command = [sys.executable, __file__, "--worker", *([str(scene)] if scene else [])]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen(command, **pipes) for _ in range(count)]
    answers = [json.loads(worker.stdout.readline()) for worker in workers]
    texts = [Path(f"/proc/{worker.pid}/smaps_rollup").read_text() for worker in workers]
    sizes = [int(line.split()[1]) for text in texts for line in text.splitlines() if line.startswith("Pss:")]
    for process in workers:
        process.communicate()
    return answers, sum(sizes) / 1024


def row(scene: Path) -> dict:
    """What is measured of one scene."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FOLDER] = folder
        ((first,), _), ((again,), one) = measured(scene), measured(scene)
        (_, four), (_, none), (_, four_without) = measured(scene, 4), measured(None), measured(None, 4)
    return {
        "scene": scene.name,
        "triangles": first["triangles"],
        "first_s": first["shape_s"],
        "first_colours_s": first["colours_s"],
        "first_cpu_s": first["cpu_s"],
        "again_s": again["shape_s"],
        "again_colours_s": again["colours_s"],
        "arrays_MiB": first["MiB"],
        "peak_MiB": first["peak_MiB"],
        "of_which_before_MiB": first["peak_before_MiB"],
        "one_process_MiB": one,
        "four_processes_MiB": four,
        "without_a_scene_MiB": none,
        "four_without_MiB": four_without,
        "ratio": four / one,
        "ratio_of_scene_alone": (four - four_without) / (one - none),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="*", type=Path, metavar="SCENE.glb")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.scenes[0] if options.scenes else None)
    else:
        for measures in map(row, options.scenes):
            print(rows_table([{"what": name, "value": value} for name, value in measures.items()]).text())

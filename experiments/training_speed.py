"""How fast whole runs are by the number of workers, and beside another busy process, next to an earlier commit.

    .venv/bin/python experiments/training_speed.py [--commit 3c5ea80] [--repeats 3]

from the repository's root, on an idle machine. Each run trains the demo's ResNet50 agent on the demo's homes: a warm
start of six epochs, then PPO of two from its first update on, twice as many frames, the same gradients a frame for all
(what an optimiser makes of them is its own: Muon does more than Adam). Runs take turns; prints medians of frames/s of a
whole run (collecting, learning, logging) as a table.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from navprune.commands.demo import draw_homes
from navprune.machine import cores

HERE = Path(__file__).resolve().parents[1]
DATA = HERE / "runs/training_speed/data"
SETTINGS = ["agent=resnet50", "warm_start.epochs=6", "ppo.epochs=2", "ppo.critic_updates=0"]
FRAMES = ["warm_start.frames=8192", "trainer.total_frames=24576"]
FEW = ["warm_start.frames=2048", "trainer.total_frames=6144"]
"""For threads beside a busy process, which wait for most of the time."""
BUSY = "import torch\ntorch.set_num_threads(1)\na = torch.rand(512, 512)\nwhile True: a @ a"


def main() -> None:
    """Run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="3c5ea80", help="the earlier one, of one process with threads")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    draw_homes(DATA, "small_homes")
    with earlier(options.commit) as before, tempfile.TemporaryDirectory() as folder:
        ways = {f"{options.commit}, one process": (before, FRAMES, FEW)}
        for n in sorted({1, 2, cores()}):
            settings = [*FRAMES, f"trainer.workers={n}"]
            ways[f"{n} worker{'s' * (n > 1)}"] = HERE, settings, settings
        found: dict[tuple[str, bool], list[float]] = {}
        for repeat in range(options.repeats):
            for name, (checkout, *settings) in ways.items():
                for beside in (False, True):
                    with busy() if beside else nullcontext():
                        own = settings[beside]
                        rate = frames_per_second(checkout, own, Path(folder) / f"{name}-{beside}-{repeat}")
                    found.setdefault((name, beside), []).append(rate)
                    print(f"{name}, {'beside a busy process' if beside else 'alone'}: {rate:,.0f}", file=sys.stderr)
    print("| frames/s | alone | beside one busy process |", "|---|---|---|", sep="\n")
    for name in ways:
        alone, beside = (statistics.median(found[name, other]) for other in (False, True))
        print(f"| {name} | {alone:,.0f} | {beside:,.0f} ({beside / alone:.2f}) |")


def frames_per_second(checkout: Path, settings: list[str], run: Path) -> float:
    """Of a whole run by a checkout's code."""
    told = run.with_suffix(".json")
    command = [sys.executable, "-m", "navprune.cli", "train", "--config", "demo", f"run={run}", f"data.folder={DATA}"]
    command += [*SETTINGS, *settings, "--json", str(told)]
    subprocess.run(
        command, check=True, cwd=checkout, env=os.environ | {"PYTHONPATH": str(checkout)}, capture_output=True
    )
    return json.loads(told.read_text())["frames_per_second"]


@contextmanager
def earlier(commit: str) -> Iterator[Path]:
    """A checkout of an earlier commit, whose kernels are compiled before anything is measured."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "checkout"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(place), commit], check=True, cwd=HERE)
        try:
            frames_per_second(place, FEW, Path(folder) / "first")
            yield place
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(place)], check=True, cwd=HERE)


@contextmanager
def busy() -> Iterator[None]:
    """Another process that computes on one core within the block."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()

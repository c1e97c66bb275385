"""Searches and times pruned encoders on a GPU: eager, compiled, CUDA graphs, TensorRT where it is installed.

    python -m experiments.latency_gpu.run          # from the repository's root; under five minutes

writes results.jsonl beside this file and the tables of README.md from it. What is in results.jsonl is not measured
again: what there was no time for, a second call measures.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from experiments.latency_cpu import table
from experiments.latency_cpu.networks import HALVES, Probes, Results, Setting
from navprune.cli.parsers import numbers
from navprune.costs.latency import measure
from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.spec import EncoderSpec
from navprune.progress import ProgressLine

HERE = Path(__file__).parent
RUNTIMES = ("eager", "cuda-graphs", "compiled", "tensorrt")
"""In the order in which they are measured: those that take minutes to make a network ready come last."""
SEARCHED = ("eager", "cuda-graphs")
LONG = {"compiled": 120.0, "tensorrt": 120.0}
"""Seconds to allow for making all networks ready in a runtime that takes its time."""
BATCHES = (1, 8, 16, 64)


class Deadline:
    """Lets pieces of work begin while there is time for as much as the last of their kind took, at first for `LONG`."""

    def __init__(self, seconds: float) -> None:
        self.end, self.took = time.perf_counter() + seconds, dict(LONG)

    def pieces(self, wanted: Sequence[tuple[str, str]]) -> Iterator[int]:
        """Indices of those (kind, name) for which there is time; says which are skipped."""
        for i, (kind, name) in enumerate(wanted):
            began = time.perf_counter()
            if began + self.took.get(kind, 0.0) > self.end:
                print(f"no time for {kind}, {name}", file=sys.stderr)
                continue
            yield i
            self.took[kind] = time.perf_counter() - began


def search(results: Results, setting: Setting, probes: Probes, deadline: Deadline) -> None:
    """Both halves in eager and by CUDA graphs."""
    wanted = [(runtime, budget) for runtime in SEARCHED if runtime in results.runtimes for budget in HALVES]
    missing = [cell for cell in wanted if not results.of("search", runtime=cell[0], budget=cell[1])]
    for i in deadline.pieces([(f"search in {runtime}", budget) for runtime, budget in missing]):
        runtime, budget = missing[i]
        try:
            row = probes.search(setting, runtime, budget, fresh=not results.of("search", runtime=runtime))
            results.put("search", [row], runtime=runtime, budget=budget)
        except UserError as error:
            print(f"{runtime}, {budget}: {error}", file=sys.stderr)


def searched(results: Results, runtime: str) -> dict[str, EncoderSpec]:
    """The probed networks of a runtime; one without searches of its own takes those of the last that has some."""
    found = {name: probed for name in SEARCHED if (probed := results.searched(name))}
    source = runtime if runtime in found else next(reversed(found), "")
    own = "" if source == runtime else f" ({source})"
    return {f"probe {budget}{own}": spec for budget, spec in found.get(source, {}).items()}


def times(results: Results, setting: Setting, deadline: Deadline, batches: Sequence[int], repeats: int) -> None:
    """All networks of a runtime in turn, at each batch size."""
    fixed = setting.fixed()
    specs = {runtime: fixed | searched(results, runtime) for runtime in results.runtimes}
    cells = [(runtime, batch_size) for runtime in specs for batch_size in batches]
    known = {cell: results.of("table", runtime=cell[0], batch_size=cell[1]) for cell in cells}
    missing = [cell for cell in cells if {row["model"] for row in known[cell]} != specs[cell[0]].keys()]
    line = ProgressLine("timing encoders", len(missing), "settings")
    for i in deadline.pieces([(runtime, f"batch {batch_size}") for runtime, batch_size in missing]):
        runtime, batch_size = missing[i]
        models = {name: build(spec) for name, spec in specs[runtime].items()}
        rows = measure(models, [batch_size], [runtime], results.device, repeats)
        results.put("table", [row.to_json() for row in rows], runtime=runtime, batch_size=batch_size, threads=None)
        line.show(i + 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Search, time, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240.0, help="after which nothing new begins (default: 240)")
    parser.add_argument("--runtimes", default=",".join(RUNTIMES), help=f"(default: {','.join(RUNTIMES)})")
    parser.add_argument("--batch-sizes", default=",".join(map(str, BATCHES)), help="(default: 1,8,16,64)")
    parser.add_argument("--networks", type=int, default=8, help="random networks that a search measures (default: 8)")
    parser.add_argument("--repeats", type=int, default=30, help="passes of each network (default: 30)")
    parser.add_argument("--device", default="cuda", help="cpu only tries the script")
    parser.add_argument("--size", type=int, default=Setting.size, help="pixels; others than 256 try the script")
    parser.add_argument("--base", type=int, default=Setting.base, help="base planes; others than 32 try the script")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.jsonl and README.md")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU that torch can use; --device cpu only tries the script")
    setting, device = Setting(options.size, options.base), torch.device(options.device)
    results = Results(options.out / "results.jsonl", setting, options.runtimes.split(","), device)
    for name, fault in results.missing.items():
        print(f"{name} is left out: {fault}", file=sys.stderr)
    deadline, probes = Deadline(options.seconds), Probes(device, options.networks, options.seconds / 6)
    search(results, setting, probes, deadline)
    times(results, setting, deadline, numbers("--batch-sizes", options.batch_sizes), options.repeats)
    table.write(options.out)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))

"""Searches, times and compares pruned encoders and whole policy steps on a CPU, in every runtime that is installed.

    python -m experiments.latency_cpu.run                      # from the repository's root, on an idle machine
    python -m experiments.latency_cpu.run --runtimes eager,onnxruntime --steps search,table

writes results.jsonl beside this file, and figures and tables of README.md from it. What is in results.jsonl is not
measured again: stop it whenever you like.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from experiments.latency_cpu import table
from experiments.latency_cpu.networks import DENSE, HALVES, RESNET18, Probes, Results, Row, Setting
from navprune.commands.latency import inputs_of, macs_of
from navprune.costs.counting import cost
from navprune.costs.latency import interleaved, measure, ratio, threads_of
from navprune.costs.probing import Timer
from navprune.costs.runtimes import RUNTIMES, runtime_of
from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.spec import EncoderSpec, PolicySpec
from navprune.models.step import PolicyStep
from navprune.progress import ProgressLine
from navprune.tasks.config import TaskConfig

HERE = Path(__file__).parent
CPU = torch.device("cpu")
CPU_RUNTIMES = [name for name in RUNTIMES if name not in ("cuda-graphs", "tensorrt")]
BATCHES, THREADS = (1, 8), (1, 2)
FRONTIER = "onnxruntime"
SHARES = (0.75, 0.5, 0.35, 0.25)
WIDTHS = (1.0, 0.75, 0.5)


def clock_of(threads: int) -> Callable[[], float]:
    """One thread's seconds of work, which others that run on the machine hardly change; else those of the clock."""
    return time.process_time if threads == 1 else time.perf_counter


class Study:
    """The steps, each of which puts what is missing of it into the results."""

    def __init__(self, results: Results, setting: Setting, probes: Probes, repeats: int) -> None:
        self.results, self.setting, self.probes, self.repeats = results, setting, probes, repeats
        self.fixed = setting.fixed()

    def search(self) -> None:
        """Both halves of every runtime; the first probes anew, the second begins with what that has measured."""
        self._searches([(runtime, budget) for runtime in self.results.runtimes for budget in HALVES])

    def _searches(self, wanted: Sequence[tuple[str, str]]) -> None:
        line = ProgressLine("searching", len(wanted), "networks")
        for done, (runtime, budget) in enumerate(wanted, start=1):
            if not self.results.of("search", runtime=runtime, budget=budget):
                fresh = not self.results.of("search", runtime=runtime)
                try:
                    row = self.probes.search(self.setting, runtime, budget, fresh=fresh)
                except UserError as error:
                    print(f"{runtime}, {budget}: {error}", file=sys.stderr)
                else:
                    self.results.put("search", [row], runtime=runtime, budget=budget)
            line.show(done, f"{runtime}, {budget}", last=done == len(wanted))

    def _networks(self, runtime: str) -> dict[str, EncoderSpec]:
        """What is compared in a runtime: the dense network first."""
        probed = self.results.searched(runtime)
        return self.fixed | {f"probe {budget}": spec for budget, spec in probed.items()}

    def table(self) -> None:
        """All networks of a runtime in turn, at each batch size and number of threads."""
        cells = [(name, n, size) for name in self.results.runtimes for n in THREADS for size in BATCHES]
        line = ProgressLine("timing encoders", len(cells), "settings")
        for done, (runtime, threads, batch_size) in enumerate(cells, start=1):
            networks = self._networks(runtime)
            known = self.results.of("table", runtime=runtime, threads=threads, batch_size=batch_size)
            if {row["model"] for row in known} != networks.keys():
                repeats = max(1, self.repeats // (1 if batch_size == 1 else 2))
                models = {name: build(spec) for name, spec in networks.items()}
                timed = measure(models, [batch_size], [runtime], CPU, repeats, clock=clock_of(threads), threads=threads)
                rows = [row.to_json() for row in timed]
                self.results.put("table", rows, runtime=runtime, threads=threads, batch_size=batch_size)
            line.show(done)

    def step(self) -> None:
        """The whole policy step at batch 1 on one thread."""
        task, line = TaskConfig(), ProgressLine("timing steps", len(self.results.runtimes), "runtimes")
        for done, runtime in enumerate(self.results.runtimes, start=1):
            specs = {name: spec for name, spec in self._networks(runtime).items() if name not in ("uniform", "gates")}
            if {row["model"] for row in self.results.of("step", runtime=runtime)} != specs.keys():
                models = {
                    name: PolicyStep(build(PolicySpec(spec)), task.min_depth, task.max_depth)
                    for name, spec in specs.items()
                }
                timed = measure(
                    models, [1], [runtime], CPU, self.repeats, clock=clock_of(1), threads=1,
                    example=inputs_of, macs=macs_of,
                )  # fmt: skip
                self.results.put("step", [row.to_json() for row in timed], runtime=runtime)
            line.show(done)

    def speedup(self) -> None:
        """The dense encoder in eager beside the fastest pruned ResNet50 of each runtime, all in turn, at batch 1."""
        for threads in THREADS:
            timed = self.results.of("table", threads=threads, batch_size=1)
            fastest: dict[str, Row] = {}
            for row in timed:
                if row["median_ms"] and row["model"] not in (DENSE, RESNET18):
                    fastest[row["runtime"]] = min(row, fastest.get(row["runtime"], row), key=lambda r: r["median_ms"])
            wanted = {(name, row["model"]) for name, row in fastest.items()}
            if wanted == {(row["runtime"], row["model"]) for row in self.results.of("speedup", threads=threads)}:
                continue
            names = [("eager", DENSE), *sorted(wanted)]
            with threads_of(threads):
                runs = {" ".join(name): self._ready(*name, threads) for name in names}
                dense, *others = interleaved(runs, self.repeats, clock_of(threads)).values()
            rows = []
            for (runtime, model), seconds in zip(names[1:], others):
                times, half = ratio(dense, seconds)
                rows.append({"runtime": runtime, "model": model, "times": times, "half": half})
            self.results.put("speedup", rows, threads=threads)

    def _ready(self, runtime: str, model: str, threads: int) -> Callable[[], object]:
        network = build(self._networks(runtime)[model])
        return Timer(runtime_of(runtime), CPU, threads).prepared(network, inputs_of(network, 1)[0])

    def frontier(self) -> None:
        """Networks of many sizes in one runtime, in turn, at batch 1 on one thread."""
        runtime = FRONTIER if FRONTIER in self.results.runtimes else self.results.runtimes[0]
        budgets = [f"{measure}={share:g}" for share in SHARES for measure in ("macs", "latency")]
        self._searches([(runtime, budget) for budget in budgets])
        probed = self.results.searched(runtime, budgets)
        specs = {(DENSE, ""): self.fixed[DENSE]}
        specs |= {("uniform", f"macs={share:g}"): self.setting.uniform(share) for share in SHARES}
        if "gates" in self.fixed:
            specs["gates", ""] = self.fixed["gates"]
        specs |= {("probe", name): spec for name, spec in probed.items()}
        specs |= {(RESNET18, f"width={width:g}"): self.setting.encoder("resnet18", width) for width in WIDTHS}
        if {(row["model"], row["budget"]) for row in self.results.of("frontier")} == specs.keys():
            return
        models = {" ".join(name): build(spec) for name, spec in specs.items()}
        timed = measure(models, [1], [runtime], CPU, self.repeats, clock=clock_of(1), threads=1)
        rows = []
        for ((model, budget), spec), row in zip(specs.items(), timed):
            told = {"model": model, "budget": budget, "runtime": runtime, "macs": cost(spec).macs}
            kept = self._kept(model, budget, runtime, spec)
            rows.append(told | {"importance_kept": kept, "median_ms": row.median_ms, "p95_ms": row.p95_ms})
        self.results.put("frontier", rows)

    def _kept(self, model: str, budget: str, runtime: str, spec: EncoderSpec) -> float | None:
        """The share of ResNet50's importance that is left; None of other networks."""
        if model == "probe":
            return float(self.results.of("search", runtime=runtime, budget=budget)[0]["importance_kept"])
        return None if model == RESNET18 else self.setting.kept(spec)


STEPS = ("search", "table", "step", "speedup", "frontier")


def parser() -> argparse.ArgumentParser:
    """What can be asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default=",".join(STEPS), help=f"(default: {','.join(STEPS)})")
    parser.add_argument("--runtimes", default=",".join(CPU_RUNTIMES), help=f"(default: {','.join(CPU_RUNTIMES)})")
    parser.add_argument("--networks", type=int, default=24, help="random networks that a search measures (default: 24)")
    parser.add_argument("--seconds", type=float, default=300.0, help="after which it takes no further (default: 300)")
    parser.add_argument("--repeats", type=int, default=40, help="passes, half as many at batch 8 (default: 40)")
    parser.add_argument("--size", type=int, default=Setting.size, help="pixels; others than 256 try the script")
    parser.add_argument("--base", type=int, default=Setting.base, help="base planes; others than 32 try the script")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.jsonl, README.md and the figures")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Do the steps in order, then write the page."""
    options = parser().parse_args(arguments)
    setting, probes = Setting(options.size, options.base), Probes(CPU, options.networks, options.seconds)
    if unknown := set(options.steps.split(",")) - set(STEPS):
        raise UserError(f"--steps: unknown step {min(unknown)}; there are {', '.join(STEPS)}")
    results = Results(options.out / "results.jsonl", setting, options.runtimes.split(","), CPU)
    for name, fault in results.missing.items():
        print(f"{name} is left out: {fault}", file=sys.stderr)
    study = Study(results, setting, probes, options.repeats)
    for step in options.steps.split(","):
        getattr(study, step)()
    table.write(options.out)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))

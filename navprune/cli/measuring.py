"""`navprune cost, latency, compare, benchmark, parity, doctor`: what measures."""

import argparse
from pathlib import Path
from typing import Any

from navprune.cli.parsers import command, given, note, numbers, positive, share


def add_commands(commands: Any) -> None:
    """Add the parsers of these commands."""
    parser = command(commands, "cost", _cost, "navprune cost resnet50")
    parser.add_argument("source", metavar="SPEC", help="name, spec.json, file of weights, checkpoint or run")
    parser.add_argument("--layers", action="store_true", help="one row for each layer, too")

    example = "navprune latency resnet50 runs/slim --batch-sizes 1 --runtime eager,onnxruntime --threads 1"
    parser = command(commands, "latency", _latency, example)
    sources = "names of encoders or classifiers, specs, files of weights, checkpoints or runs"
    parser.add_argument("sources", nargs="+", metavar="SPEC", help=sources)
    parser.add_argument("--batch-sizes", default="1,8", help="default: 1,8")
    runtimes = "one or more, or all; `navprune doctor` lists them (default: eager)"
    parser.add_argument("--runtime", default="eager", metavar="NAME,NAME", help=runtimes)
    parser.add_argument("--device", help="cpu or cuda (default: cuda where present)")
    parser.add_argument("--threads", type=positive, help="threads of a CPU (default: torch's, one a core)")
    step = "time an agent's whole step, from images and goal to action and next state, not its encoder alone"
    parser.add_argument("--step", action="store_true", help=step)
    parser.add_argument("--runs", type=positive, default=30, help="timed runs of each (default: 30)")

    parser = command(
        commands, "compare", _compare, "navprune compare dense='runs/r50_s*' pruned='runs/slim_s*' runs/r18"
    )
    runs = "run folders, or whatever else holds an agent; NAME=PATTERN takes all that match as one agent's trainings"
    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN", help=runs)
    parser.add_argument("--out", type=Path, default=Path("runs/comparison"), help="folder of report.html")
    parser.add_argument("--split", help="split to compare on (default: the runs' data.val)")
    parser.add_argument("--batch-sizes", default="1,8", help="of the latency (default: 1,8)")
    parser.add_argument("--pictures", default="1", metavar="N", help="maps and videos of N episodes of each run")
    margin = "of SPL or of successes that may be lost without being called worse (default: 0.02)"
    parser.add_argument("--margin", type=share, default=0.02, metavar="X", help=margin)
    own = "measure each run on its own data and task where they differ; table and page say how"
    parser.add_argument("--each-its-own", action="store_true", help=own)

    _add_benchmark(commands)

    parser = command(commands, "parity", _parity, "navprune parity tests/data/reference --json parity.json")
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of recorded answers")
    parser.add_argument("--scenes", metavar="NAME,NAME", help="only these scenes")

    parser = command(commands, "doctor", _doctor, "navprune doctor --data data")
    parser.add_argument("--data", type=Path, default=Path("data"), help="data folder (default: data)")


def _add_benchmark(commands: Any) -> None:
    benchmark = commands.add_parser("benchmark", help="measure frames per second")
    kinds = benchmark.add_subparsers(metavar="COMMAND", required=True)
    example = "navprune benchmark simulator --widths 64,128 --environments 32"
    simulator = command(kinds, "simulator", _benchmark_simulator, example)
    simulator.add_argument("--widths", default="64,128,256", help="image widths (default: 64,128,256)")
    simulator.add_argument("--environments", type=positive, default=32)
    simulator.add_argument("--threads", type=positive, help="rendering threads (default: all cores)")
    frames = "agent steps at each width (default: 100000)"
    simulator.add_argument("--frames", type=positive, default=100_000, help=frames)
    example = "navprune benchmark training --encoder resnet18 --width 128 --workers 1,2"
    training = command(kinds, "training", _benchmark_training, example)
    for parser, generated in (
        (simulator, "one home is generated, plain and as a scan"),
        (training, "one home is generated"),
    ):
        parser.add_argument("--data", type=Path, help=f"data folder (default: {generated})")
        parser.add_argument("--name", default="homes", help="data set in it (default: homes)")
    training.add_argument("--encoder", default="resnet18", help="(default: resnet18)")
    training.add_argument("--base-planes", type=positive, default=32, metavar="N", help="of the encoder (default: 32)")
    training.add_argument("--width", type=positive, default=128, help="image width (default: 128)")
    training.add_argument("--environments", type=positive, default=8, metavar="N", help="of all workers (default: 8)")
    training.add_argument("--workers", help="numbers of workers (default: 1, 2, 4, ... to all cores)")
    training.add_argument("--epochs", type=positive, default=4, help="PPO epochs (default: 4)")
    training.add_argument("--updates", type=positive, default=3, help="measured updates of 128 steps (default: 3)")


def _cost(options: argparse.Namespace) -> dict[str, Any]:
    """Count multiply-accumulates and parameters of an encoder or classifier.
    As deployed: all of it, of an encoder with its pooled input and compression. Of an encoder also by the convention
    of the published table (backbone alone, convolutions only, Gi = 2^30, Mi = 2^20), of a classifier by thop's, which
    counts biases, norms and pooling besides.
    """
    from navprune.costs.counting import cost_json, cost_rows
    from navprune.reports.tables import cost_table, rows_table
    from navprune.source import Source

    spec = Source.parse(options.source).spec()
    answer = cost_json(spec)
    print(cost_table({options.source: answer}).text())
    if options.layers:
        print("\n" + rows_table(cost_rows(spec)).text())
    return answer


def _latency(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the forward time of encoders and classifiers in interleaved runs.
    Median, 95th and 99th percentile, and the saving against the first one: realised, and in theory, which is that of
    the deployed multiply-accumulates (`navprune cost` says which these are).
    """
    from navprune.commands.latency import chosen_runtimes, run_latency, timed_part
    from navprune.reports.tables import latency_table
    from navprune.source import named

    sizes = numbers("--batch-sizes", options.batch_sizes)
    networks = {name: timed_part(source, options.step) for name, source in named(options.sources).items()}
    runtimes = chosen_runtimes(options.runtime)
    answer = run_latency(networks, sizes, runtimes, options.device, options.runs, options.threads)
    print(latency_table(answer["rows"]).text())
    for line in dict.fromkeys(f"{row['runtime']}: {row['note']}" for row in answer["rows"] if row["note"]):
        note(line)
    return answer


def _compare(options: argparse.Namespace) -> dict[str, Any]:
    """Compare agents: costs, SPL with intervals, success, reward and latency in tables, figures and a page.
    Every run is evaluated anew. Episodes and task must be the same for all (what agents see may differ).
    dense='runs/r50_s*' stands for the trainings of one agent, which differ in their seed; intervals are over runs,
    scenes and episodes then. All are held against the first agent: difference, how often better, not worse by --margin.
    """
    from navprune.commands.compare import run_comparison

    sizes = numbers("--batch-sizes", options.batch_sizes)
    text, page, answer = run_comparison(**given(options, run_comparison, batch_sizes=sizes))
    print(f"{text}\n\n{page}")
    return answer


def _benchmark_simulator(options: argparse.Namespace) -> dict[str, Any]:
    """Frames per second of the full environment step (move, measure, render) in a home, plain and as a scan."""
    from navprune.commands.benchmark import benchmark_simulator
    from navprune.reports.tables import rows_table

    widths = numbers("--widths", options.widths)
    answer = benchmark_simulator(**given(options, benchmark_simulator, widths=widths, report=note))
    print(rows_table(answer["rows"]).text())
    before, after = answer["memory_mib"]
    print(f"\nmemory {before:.0f} MiB before, {after:.0f} MiB after")
    return answer


def _benchmark_training(options: argparse.Namespace) -> dict[str, Any]:
    """Frames per second of PPO training by so many workers, and the seconds that each phase takes the first of them."""
    from navprune.commands.benchmark import benchmark_training
    from navprune.reports.tables import rows_table

    workers = numbers("--workers", options.workers) if options.workers else None
    answer = benchmark_training(**given(options, benchmark_training, report=note, workers=workers))
    flat = [{**row, **{f"{k} s": v for k, v in row["seconds"].items()}} for row in answer["rows"]]
    print(rows_table([{k: v for k, v in row.items() if k != "seconds"} for row in flat]).text())
    return answer


def _parity(options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """Compare the embedded simulator's answers with those recorded from Habitat.
    Depth, colours, distances, snapping, steps and whole episodes; DIR holds scenes, episodes and answers as
    docs/habitat.md describes them. The exit status is 1 where a required figure is missed or a scene fails.
    """
    from navprune.comparisons.parity import parity, shortfalls
    from navprune.progress import ProgressLine
    from navprune.reports.tables import parity_table

    line = ProgressLine("comparing", 0, "files")

    def show(done: int, total: int) -> None:
        line.total = total
        line.show(done)

    scenes = options.scenes.split(",") if options.scenes else None
    answer = parity(options.folder, scenes, progress=show)
    print(parity_table(answer).text())
    faults = [f"missed: {line}" for line in shortfalls(answer)]
    faults += [f"failed: {each['scene']}: {each['reason']}" for each in answer["failed"]]
    print("\n" + "\n".join(faults or ["every required figure is reached"]))
    return answer, 1 if faults else 0


def _doctor(options: argparse.Namespace) -> dict[str, Any]:
    """Say what is installed, which simulator and data sets are found, and what to do about what is not."""
    from navprune.commands.doctor import examine

    findings = examine(options.data)
    for finding in findings:
        mark, advice = ("ok", "") if finding.ok else ("--", f"  ->  {finding.advice}")
        print(f"{mark}  {finding.name:24} {finding.found}{advice}")
    return {"findings": [finding._asdict() for finding in findings]}

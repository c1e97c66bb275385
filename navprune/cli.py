"""The command line: parses, calls, prints."""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from navprune import __version__
from navprune.errors import UserError

# Every command imports what it needs when it runs, so that --help answers at once.


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0, 2 for the user's mistakes, 130 after Ctrl-C."""
    parser = make_parser()
    options = parse(parser, arguments)
    try:
        result = options.run(options)
        if options.json is not None and result is not None:
            from navprune.rl.checkpoints import write_file

            write_file(options.json, (json.dumps(result, indent=2) + "\n").encode())
    except UserError as error:
        print(f"navprune: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"navprune: {error.filename or 'a file'}: {error.strerror}; check disk and permissions", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("navprune: interrupted", file=sys.stderr)
        return 130
    return 0


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses a command; key=value may stand anywhere, which argparse alone allows only in one place."""
    options, rest = parser.parse_known_args(arguments)
    wrong = [text for text in rest if text.startswith("-") or not hasattr(options, "settings")]
    if wrong:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if rest:
        options.settings = [*options.settings, *rest]
    return options


class Parser(argparse.ArgumentParser):
    """A parser whose help may end in text that takes a while to gather."""

    late: Callable[[], str] | None = None

    def format_help(self) -> str:
        """The usual help, with the late text behind it."""
        return super().format_help() + (f"\n{self.late()}\n" if self.late else "")


def make_parser() -> Parser:
    """The parser of every command."""
    parser = Parser(
        prog="navprune",
        description="PointNav agents with slim visual encoders: train, prune, and measure SPL and milliseconds.",
        epilog="`navprune COMMAND --help` explains a command. `navprune demo` shows everything in miniature.",
    )
    parser.add_argument("--version", action="version", version=f"navprune {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_scenes(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_prune(commands)
    _add_cost(commands)
    _add_latency(commands)
    _add_compare(commands)
    _add_benchmark(commands)
    _add_doctor(commands)
    _add_demo(commands)
    return parser


def _command(commands: Any, name: str, run: Any, help: str, example: str = "") -> Parser:
    epilog = f"example:\n  {example}" if example else None
    raw = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(
        name, help=help.partition("\n")[0], description=help, epilog=epilog, formatter_class=raw
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there for programs to read")
    parser.set_defaults(run=run)
    return parser


def _add_overrides(parser: argparse.ArgumentParser, default: str | None) -> None:
    text = "recipe of habitat_configs/ by name, or a YAML file"
    fallback = default or "the checkpoint's own, else pointnav"
    parser.add_argument("--config", metavar="NAME", default=default, help=f"{text} (default: {fallback})")
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="changes to the configuration, e.g. ppo.lr=1e-4"
    )


# --- scenes


def _add_scenes(commands: Any) -> None:
    scenes = commands.add_parser("scenes", help="make scenes").add_subparsers(metavar="COMMAND", required=True)
    parser = _command(
        scenes,
        "generate",
        _scenes_generate,
        "Writes a procedural data set of furnished homes in Habitat's layout: .glb, .navmesh and PointNav episodes.",
        "navprune scenes generate --out data --train 40 --val 10 --seed 1",
    )
    parser.add_argument("--out", type=Path, default=Path("data"), help="data folder (default: data)")
    parser.add_argument("--name", default="homes", help="name of the data set (default: homes)")
    parser.add_argument("--train", type=_positive, default=40, metavar="N", help="training scenes (default: 40)")
    parser.add_argument("--val", type=_positive, default=10, metavar="M", help="validation scenes (default: 10)")
    parser.add_argument("--seed", type=_natural, default=0, help="the same seed gives the same bytes (default: 0)")
    parser.add_argument(
        "--area", type=float, nargs=2, metavar=("MIN", "MAX"), default=(40.0, 200.0),
        help="floor area of a home in m2 (default: 40 200)",
    )  # fmt: skip
    parser.add_argument("--train-episodes", type=_positive, default=200, metavar="N", help="episodes a training scene")
    parser.add_argument("--val-episodes", type=_positive, default=20, metavar="N", help="episodes a validation scene")


def _scenes_generate(options: argparse.Namespace) -> dict[str, Any]:
    from navprune.progress import ProgressLine
    from navprune.reports.tables import rows_table
    from navprune.tasks.dataset import generate_dataset

    line = ProgressLine("drawing", options.train + options.val, "homes")
    statistics = generate_dataset(
        options.out,
        name=options.name,
        train=options.train,
        val=options.val,
        seed=options.seed,
        area=tuple(options.area),
        episodes_per_scene=options.train_episodes,
        val_episodes_per_scene=options.val_episodes,
        progress=line.show,
    )
    answer = dataclasses.asdict(statistics)
    print(rows_table([{"split": split, **_spreads(values)} for split, values in answer["splits"].items()]).text())
    return answer


# --- train, evaluate, prune


def _spreads(values: dict[str, Any]) -> dict[str, Any]:
    """A split's statistics with each spread as one cell."""
    return {
        name: f"{value['mean']:,.3g} ({value['low']:,.3g} to {value['high']:,.3g})"
        if isinstance(value, dict)
        else value
        for name, value in values.items()
    }


def _add_train(commands: Any) -> None:
    parser = _command(
        commands,
        "train",
        _train,
        "Trains an agent: expert warm start (if asked for), then PPO. Resumes when the run folder holds a checkpoint.",
        "navprune train --config pointnav_homes run=runs/r18 agent.encoder=resnet18 task.width=128 task.height=128",
    )
    _add_overrides(parser, "pointnav_homes")


def _train(options: argparse.Namespace) -> dict[str, Any]:
    from navprune.config import load_config
    from navprune.jobs import run_training

    result = run_training(load_config(options.config, options.settings))
    measures = "  ".join(f"{name} {value:.3f}" for name, value in result.metrics.items())
    print(f"{result.frames:,} frames at {result.frames_per_second:,.0f} frames/s  {measures}")
    print(f"checkpoint: {result.latest}")
    return result._asdict() | {"latest": str(result.latest), "best": str(result.best)}


def _add_evaluate(commands: Any) -> None:
    parser = _command(
        commands,
        "evaluate",
        _evaluate,
        "Evaluates an agent on every episode of a split: SPL, success, reward, with bootstrap 95 %% intervals.\n"
        "AGENT is a checkpoint or run folder, a habitat-baselines .pth, or random, goal-follower, shortest-path.",
        "navprune evaluate runs/r18 --split val --pictures 3",
    )
    parser.add_argument("agent", metavar="AGENT", help="checkpoint, run folder, .pth or control")
    _add_overrides(parser, None)
    parser.add_argument("--split", help="split of the data set (default: the configuration's data.val)")
    parser.add_argument("--episodes", type=_positive, metavar="N", help="only the first N episodes")
    parser.add_argument(
        "--environments", type=_positive, default=16, metavar="N", help="in lockstep; does not change the result"
    )
    parser.add_argument("--greedy", action="store_true", help="take the likeliest action instead of sampling")
    parser.add_argument("--seed", type=_natural, default=0, help="of the sampled actions")
    parser.add_argument("--out", type=Path, help="folder for summary.json, episodes.jsonl and pictures")
    pictures = "maps and videos of N episodes, or of chosen ones: SCENE:ID,SCENE:ID"
    parser.add_argument("--pictures", default="0", metavar="N", help=pictures)


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
    from navprune.jobs import config_of, run_evaluation, run_folder
    from navprune.reports.tables import measure_table

    config = config_of(options.agent, options.config, options.settings)
    split = options.split or config.data.val
    agent = Path(options.agent)
    out = options.out or (run_folder(agent) or Path("runs") / agent.stem) / "evaluation" / split
    result, shown = run_evaluation(
        options.agent,
        config,
        split=split,
        limit=options.episodes,
        environments=options.environments,
        greedy=options.greedy,
        seed=options.seed,
        out=out,
        pictures=options.pictures,
    )
    print(measure_table(result.to_json(split)).text())
    print(
        f"\n{len(result.episodes)} episodes of {split}; written to {out}"
        + "".join(f"\n  {s.map}\n  {s.video}" for s in shown)
    )
    return result.to_json(split)


def _add_prune(commands: Any) -> None:
    parser = _command(
        commands,
        "prune",
        _prune,
        "Prunes an encoder to a budget and writes a slim checkpoint, with pruning.json saying what was cut where.\n"
        "SOURCE is an encoder's name, a spec.json, a checkpoint or run folder, or a habitat-baselines .pth.",
        "navprune prune resnet50 --method magnitude --budget macs=0.488,parameters=0.435 --out runs/slim",
    )
    parser.late = _pruning_methods
    parser.add_argument("source", metavar="SOURCE")
    _add_overrides(parser, None)
    parser.add_argument("--method", default="gates", help="one of the methods below (default: gates)")
    parser.add_argument("--budget", required=True, help="shares of the dense encoder: macs=0.5[,parameters=0.5]")
    parser.add_argument("--out", type=Path, required=True, help="folder of the slim checkpoint")
    parser.add_argument("--seed", type=_natural, default=0)
    parser.add_argument(
        "--steps", type=_positive, default=400, help="gates: observations of each environment (default: 400)"
    )
    parser.add_argument("--epochs", type=_positive, default=3, help="gates: passes through them (default: 3)")
    parser.add_argument("--expansion", type=float, default=1.25, help="gates: width of the searched network (1.25)")


def _pruning_methods() -> str:
    from navprune.pruning.methods import METHODS

    return "methods:\n" + "\n".join(f"  {name:10} {summary}" for name, summary in METHODS.items())


def _prune(options: argparse.Namespace) -> dict[str, Any]:
    from navprune.jobs import config_of, pruning_json, run_pruning
    from navprune.pruning.gates import GateConfig
    from navprune.pruning.search import parse_budget
    from navprune.reports.tables import pruning_table

    result = run_pruning(
        options.source,
        options.method,
        parse_budget(options.budget),
        options.out,
        config_of(options.source, options.config, options.settings),
        seed=options.seed,
        steps=options.steps,
        epochs=options.epochs,
        gates=GateConfig(expansion=options.expansion),
    )
    answer = pruning_json(result)
    print(pruning_table(answer).text())
    command = f"navprune train --config {options.out}/config.yaml init={options.out} run={options.out}_run"
    print(
        f"\nslim checkpoint in {options.out}; train it from the weights kept, or with init_weights=false from scratch:"
    )
    print(f"  {command}")
    return answer


# --- cost, latency, compare


def _add_cost(commands: Any) -> None:
    parser = _command(
        commands,
        "cost",
        _cost,
        "Multiply-accumulates and parameters of an encoder: by the convention of the published table (backbone\n"
        "alone, convolutions only, Gi = 2^30, Mi = 2^20) and as deployed (pooled input, compression, all parameters).",
        "navprune cost resnet50",
    )
    parser.add_argument("source", metavar="SPEC", help="encoder's name, spec.json, checkpoint, run folder or .pth")
    parser.add_argument("--layers", action="store_true", help="one row for each layer, too")


def _cost(options: argparse.Namespace) -> dict[str, Any]:
    from navprune.evaluation.cost import breakdown, cost
    from navprune.jobs import spec_of
    from navprune.reports.tables import cost_table, rows_table

    spec = spec_of(options.source)
    answer = cost(spec).to_json()
    print(cost_table({options.source: answer}).text())
    if options.layers:
        print("\n" + rows_table([dataclasses.asdict(layer) for layer in breakdown(spec)]).text())
    return answer


def _add_latency(commands: Any) -> None:
    parser = _command(
        commands,
        "latency",
        _latency,
        "Measures the forward time of encoders in interleaved runs: median and 95th percentile, and the saving\n"
        "against the first one, realised and in theory.",
        "navprune latency resnet50 runs/slim --batch-sizes 1,8 --runtime eager,compiled",
    )
    parser.add_argument("sources", nargs="+", metavar="SPEC", help="encoders' names, specs, checkpoints or run folders")
    parser.add_argument("--batch-sizes", default="1,8", help="default: 1,8")
    parser.add_argument("--runtime", default="eager", help="eager, compiled or both: eager,compiled (default: eager)")
    parser.add_argument("--device", default=None, help="cpu or cuda (default: cuda where present)")
    parser.add_argument("--runs", type=_positive, default=30, help="timed runs of each (default: 30)")


def _latency(options: argparse.Namespace) -> dict[str, Any]:
    from navprune.jobs import run_latency
    from navprune.reports.tables import latency_table

    sizes = _numbers("--batch-sizes", options.batch_sizes)
    answer = run_latency(options.sources, sizes, options.runtime.split(","), options.device, options.runs)
    print(latency_table(answer["rows"]).text())
    return answer


def _add_compare(commands: Any) -> None:
    parser = _command(
        commands,
        "compare",
        _compare,
        "Compares runs: costs, SPL with intervals, success, reward and latency in one table, figures and a page.\n"
        "Every run is evaluated anew on the same episodes.",
        "navprune compare runs/r50 runs/slim runs/r18 --out runs/comparison",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--out", type=Path, default=Path("runs/comparison"), help="folder of report.html")
    parser.add_argument("--split", default=None, help="split to compare on (default: the runs' data.val)")
    parser.add_argument("--batch-sizes", default="1,8", help="of the latency (default: 1,8)")
    parser.add_argument("--pictures", default="1", metavar="N", help="maps and videos of N episodes of each run")


def _compare(options: argparse.Namespace) -> dict[str, Any]:
    from navprune.jobs import run_comparison

    table, page, answer = run_comparison(
        options.runs,
        options.out,
        split=options.split,
        batch_sizes=_numbers("--batch-sizes", options.batch_sizes),
        pictures=options.pictures,
    )
    print(table.text())
    print(f"\n{page}")
    return answer


# --- benchmark, doctor, demo


def _add_benchmark(commands: Any) -> None:
    kinds = commands.add_parser("benchmark", help="measure frames per second").add_subparsers(
        metavar="COMMAND", required=True
    )
    simulator = _command(
        kinds,
        "simulator",
        _benchmark_simulator,
        "Frames per second of the full environment step (move, measure, render) on a furnished home.",
        "navprune benchmark simulator --widths 128,256 --environments 32",
    )
    simulator.add_argument("--data", type=Path, help="data folder (default: one home is generated)")
    simulator.add_argument("--name", default="homes", help="data set in it (default: homes)")
    simulator.add_argument("--widths", default="128,256", help="image widths (default: 128,256)")
    simulator.add_argument("--environments", type=_positive, default=32)
    simulator.add_argument("--threads", type=_positive, help="rendering threads (default: all cores)")
    simulator.add_argument(
        "--frames", type=_positive, default=100_000, help="agent steps at each width (default: 100000)"
    )
    training = _command(
        kinds,
        "training",
        _benchmark_training,
        "Frames per second of PPO training, and the seconds that each phase takes.",
        "navprune benchmark training --encoder resnet18 --width 128 --environments 6",
    )
    training.add_argument("--data", type=Path, help="data folder (default: one home is generated)")
    training.add_argument("--name", default="homes", help="data set in it (default: homes)")
    training.add_argument("--encoder", default="resnet18")
    training.add_argument("--base-planes", type=_positive, default=32)
    training.add_argument("--width", type=_positive, default=128, help="image width (default: 128)")
    training.add_argument("--environments", type=_positive, default=6)
    training.add_argument("--epochs", type=_positive, default=4, help="PPO epochs (default: 4)")
    training.add_argument("--updates", type=_positive, default=3, help="measured updates of 128 steps (default: 3)")


def _benchmark_simulator(options: argparse.Namespace) -> dict[str, Any]:
    from navprune.benchmark import benchmark_simulator
    from navprune.reports.tables import rows_table

    widths = _numbers("--widths", options.widths)
    answer = benchmark_simulator(
        options.data,
        options.name,
        widths=widths,
        environments=options.environments,
        threads=options.threads,
        frames=options.frames,
        report=_note,
    )
    print(rows_table(answer["rows"]).text())
    before, after = answer["memory_mib"]
    print(f"\nmemory {before:.0f} MiB before, {after:.0f} MiB after")
    return answer


def _benchmark_training(options: argparse.Namespace) -> dict[str, Any]:
    from navprune.benchmark import benchmark_training
    from navprune.reports.tables import rows_table

    answer = benchmark_training(
        options.data,
        options.name,
        encoder=options.encoder,
        base_planes=options.base_planes,
        width=options.width,
        environments=options.environments,
        epochs=options.epochs,
        updates=options.updates,
        report=_note,
    )
    flat = [{**row, **{f"{k} s": v for k, v in row["seconds"].items()}} for row in answer["rows"]]
    print(rows_table([{k: v for k, v in row.items() if k != "seconds"} for row in flat]).text())
    return answer


def _add_doctor(commands: Any) -> None:
    parser = _command(
        commands,
        "doctor",
        _doctor,
        "Says what is installed, which simulator and data sets are found, and what to do about what is not.",
        "navprune doctor --data data",
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="data folder (default: data)")


def _doctor(options: argparse.Namespace) -> dict[str, Any]:
    from navprune.doctor import examine

    findings = examine(options.data)
    for finding in findings:
        mark, advice = ("ok", "") if finding.ok else ("--", f"  ->  {finding.advice}")
        print(f"{mark}  {finding.name:24} {finding.found}{advice}")
    return {"findings": [finding._asdict() for finding in findings]}


def _add_demo(commands: Any) -> None:
    parser = _command(
        commands,
        "demo",
        _demo,
        "The main job in miniature: makes small homes, trains a ResNet50-style agent, its pruned twin and a\n"
        "ResNet18-style one alike, evaluates all on unseen homes and writes a report. An interrupted demo goes on.",
        "navprune demo",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder (default: runs/demo)")
    _add_overrides(parser, "demo")


def _demo(options: argparse.Namespace) -> dict[str, Any]:
    from navprune.config import load_config
    from navprune.demo import run_demo

    table, page, answer = run_demo(options.out, load_config(options.config, options.settings), _note)
    print(table.text())
    print(f"\n{page}")
    return answer


def _numbers(option: str, text: str) -> list[int]:
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UserError(f"{option} takes whole numbers such as 1,8, not {text}")
    return numbers


def _natural(text: str) -> int:
    """For argparse: a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 0")
    return int(text)


def _positive(text: str) -> int:
    """For argparse: a whole number of at least 1."""
    if _natural(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 1")
    return int(text)


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

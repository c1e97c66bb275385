"""`navprune train, evaluate, export, demo`: what has to do with agents."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from navprune.cli.parsers import add_overrides, command, given, natural, note, positive
from navprune.errors import UserError


def add_commands(commands: Any) -> None:
    """Add the parsers of these commands."""
    example = "navprune train --config pointnav_homes run=runs/r50 agent=resnet50"
    add_overrides(command(commands, "train", _train, example), "pointnav_homes")

    parser = command(commands, "evaluate", _evaluate, "navprune evaluate runs/r18 --split val --pictures 3")
    parser.add_argument("agent", metavar="AGENT", help="checkpoint, run folder, file of weights or control")
    add_overrides(parser, None)
    parser.add_argument("--split", help="split of the data set (default: the configuration's data.val)")
    parser.add_argument("--episodes", dest="limit", type=positive, metavar="N", help="only the first N episodes")
    lockstep = "in lockstep; does not change the result"
    parser.add_argument("--environments", type=positive, default=16, metavar="N", help=lockstep)
    parser.add_argument("--greedy", action="store_true", help="take the likeliest action instead of sampling")
    parser.add_argument("--seed", type=natural, default=0, help="of the sampled actions")
    parser.add_argument("--out", type=Path, help="folder for summary.json, episodes.jsonl and pictures")
    pictures = "maps and videos of N episodes, or of chosen ones: SCENE:ID,SCENE:ID"
    parser.add_argument("--pictures", default="0", metavar="N", help=pictures)

    parser = command(commands, "export", _export, "navprune export runs/r50 --format habitat-baselines --out r50.pth")
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("--format", choices=["habitat-baselines"], default="habitat-baselines")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.pth", help="an existing file is replaced")

    parser = command(commands, "demo", _demo, "navprune demo")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder (default: runs/demo)")
    add_overrides(parser, "demo")


def _train(options: argparse.Namespace) -> dict[str, Any] | None:
    """Train an agent: expert warm start (if asked for), then PPO. Where the run folder holds a run it goes on;
    trainer.start=restart moves that aside and begins anew, trainer.start=new refuses. Seed, init, task, data,
    cuts stay what they were; schedules and lengths may change. Ctrl-C, SIGTERM and SIGUSR1 save and stop.
    Networks come from agent=NAME or init=CHECKPOINT; pruning=gradual pruning.budget=macs=0.5 cuts them as they
    train, pruning=distil adds a teacher. env=habitat trains through habitat-lab, simulator=habitat_sim in its
    simulator.
    """
    from navprune.commands.train import run_training
    from navprune.config import load_config

    result = run_training(load_config(options.config, options.settings))
    if os.environ.get("RANK", "0") != "0":
        return None  # of the workers that torchrun began the first one speaks
    measures = "  ".join(f"{name} {value:.3f}" for name, value in result.metrics.items())
    rate = f" at {result.frames_per_second:,.0f} frames/s" if result.frames_per_second else ""  # had it been complete
    print(f"{result.frames:,} frames{rate}  {measures}")
    print(f"checkpoint: {result.latest}")
    return result._asdict() | {"latest": str(result.latest), "best": str(result.best)}


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Evaluate an agent on every episode of a split: SPL, success, reward, with bootstrap 95 % intervals.
    AGENT is a checkpoint or run folder, a file of weights (.pth, .pt, .ckpt, .safetensors),
    or random, goal-follower, shortest-path.
    """
    from navprune.commands.evaluate import opened, run_evaluation
    from navprune.reports.tables import measure_table
    from navprune.source import Source

    source = Source.parse(options.agent)
    config = source.config(options.config, options.settings)
    split = options.split or config.data.val
    out = options.out or (source.run or Path("runs") / source.place.stem) / "evaluation" / split
    passed = given(options, run_evaluation, source=opened(source, config), config=config, split=split, out=out)
    result, shown = run_evaluation(**passed)
    print(measure_table(result.to_json(split)).text())
    print(f"\n{len(result.episodes)} episodes of {split}; written to {out}")
    for pictures in shown:
        print(f"  {pictures.map}\n  {pictures.video}")
    return result.to_json(split)


def _export(options: argparse.Namespace) -> dict[str, Any]:
    """Write a dense policy as a file that habitat-baselines loads.
    Its setting rl.ddppo.pretrained_weights takes it. SOURCE is a checkpoint, a run folder or a file of weights.
    FILE.pth.json beside it tells navprune what the shapes may not: the images' size and the channels' order.
    """
    from navprune.files import write_file
    from navprune.models.weights import foreign_bytes, foreign_hints, hints_file
    from navprune.source import Source

    beside = hints_file(options.out)
    if options.json == beside:
        raise UserError(f"{beside} is where navprune looks for the images' size; give --json another name")
    policy = Source.parse(options.source).policy()
    write_file(options.out, foreign_bytes(policy))
    write_file(beside, (json.dumps(foreign_hints(policy)) + "\n").encode())
    print(options.out)
    return {"format": options.format, "out": str(options.out), "spec": policy.spec.to_json()}


def _demo(options: argparse.Namespace) -> dict[str, Any]:
    """The main job in miniature, in under twenty-five minutes on two cores.
    Make small homes, train a ResNet50-style agent, its pruned twin and a ResNet18-style one alike, evaluate
    all on unseen homes and write a report. An interrupted demo goes on.
    """
    from navprune.commands.demo import run_demo
    from navprune.config import load_config

    text, page, answer = run_demo(options.out, load_config(options.config, options.settings), note)
    print(f"{text}\n\n{page}")
    return answer

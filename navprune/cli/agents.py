"""`navprune train, evaluate, export, demo`: what has to do with agents."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from navprune.cli.parsers import add_overrides, command, given, natural, note, positive
from navprune.errors import UserError

if TYPE_CHECKING:
    from navprune.source import Source


OF_AGENTS = {
    "--episodes": "limit",
    "--environments": "environments",
    "--greedy": "greedy",
    "--seed": "seed",
    "--pictures": "pictures",
    "--against": "against",
}
"""Options of `evaluate` that mean nothing to a classifier, and where they are kept."""


def add_commands(commands: Any) -> None:
    """Add the parsers of these commands."""
    example = "navprune train --config pointnav_homes run=runs/r50 agent=resnet50"
    add_overrides(command(commands, "train", _train, example), "pointnav_homes")

    parser = command(commands, "evaluate", _evaluate, "navprune evaluate runs/r18 --split val --pictures 3")
    networks = "checkpoint, run folder, file of weights, exported policy or control"
    parser.add_argument("network", metavar="NETWORK", help=networks)
    add_overrides(parser, None)
    parser.add_argument("--split", help="(default: the configuration's data.val, of labelled images test)")
    parser.add_argument("--episodes", dest="limit", type=positive, metavar="N", help="only the first N episodes")
    lockstep = "in lockstep; does not change the result"
    parser.add_argument("--environments", type=positive, metavar="N", help=f"{lockstep} (default: 16)")
    greedy = "take the likeliest action instead of sampling"
    parser.add_argument("--greedy", action="store_true", default=None, help=greedy)
    parser.add_argument("--seed", type=natural, help="of the sampled actions (default: 0)")
    out = "folder for summary.json, episodes.jsonl (images.jsonl) and pictures"
    parser.add_argument("--out", type=Path, help=out)
    pictures = "maps and videos of N episodes, or of chosen ones: SCENE:ID,SCENE:ID"
    parser.add_argument("--pictures", metavar="N", help=pictures)
    against = "another network that sees the same: list the steps at which it would act otherwise"
    parser.add_argument("--against", metavar="AGENT", help=against)

    parser = command(commands, "export", _export, "navprune export runs/r50 --format onnx --out r50.onnx")
    parser.add_argument("source", metavar="SOURCE", help="checkpoint, run folder or file of weights")
    add_overrides(parser, None)
    formats = ["habitat-baselines", "onnx", "openvino", "torch"]
    parser.add_argument("--format", choices=formats, default=formats[0], help=f"default: {formats[0]}")
    parser.add_argument("--int8", action="store_true", default=None, help="the encoder in int8 (onnx, openvino)")
    steps = "observations of the training split that int8 takes its ranges from (default: 512)"
    parser.add_argument("--calibration-steps", type=positive, metavar="N", help=steps)
    ends = "ends in .onnx, .xml (openvino), .pt2 (torch) or .pth; an existing file is replaced"
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=ends)

    parser = command(commands, "demo", _demo, "navprune demo")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder (default: runs/demo)")
    add_overrides(parser, "demo")


def _train(options: argparse.Namespace) -> dict[str, Any] | None:
    """Train an agent: expert warm start (if asked for), then PPO. Or a classifier, by the recipes digits_resnet20,
    cifar10_resnet56, cifar100_vgg16_bn, imagenet_resnet50: images.source=PATH says where the images are.
    Where the run folder holds a run it goes on; trainer.start=restart moves that aside and begins anew,
    trainer.start=new refuses. Seed, init, task, data, images, cuts stay what they were; schedules and lengths may
    change. Ctrl-C, SIGTERM and SIGUSR1 save and stop. Networks come from agent=NAME, classifier.family=NAME or
    init=CHECKPOINT; pruning=gradual pruning.budget=macs=0.5 cuts them as they train, pruning=distil adds a teacher.
    env=habitat trains through habitat-lab, simulator=habitat_sim in its simulator.
    """
    from navprune.commands.train import run_training
    from navprune.config import load_config

    config = load_config(options.config, options.settings)
    result, unit = run_training(config), "images" if config.images else "frames"
    if os.environ.get("RANK", "0") != "0":
        return None  # of the workers that torchrun began the first one speaks
    measures = "  ".join(f"{name} {value:.3f}" for name, value in result.metrics.items())
    rate = f" at {result.frames_per_second:,.0f} {unit}/s" if result.frames_per_second else ""  # had it been complete
    print(f"{result.frames:,} {unit}{rate}  {measures}")
    print(f"checkpoint: {result.latest}")
    return result._asdict() | {"latest": str(result.latest), "best": str(result.best)}


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Evaluate an agent on every episode of a split, a classifier on every image, with bootstrap 95 % intervals.
    Of agents it measures SPL, success, reward, of classifiers top-1, top-5 and cross-entropy. NETWORK is a checkpoint
    or run folder, a file of weights (.pth, .pt, .ckpt, .safetensors), an exported policy (.onnx, .xml, .pt2) or
    random, goal-follower, shortest-path; a classifier's name stands for one with random weights.
    """
    from navprune.commands.evaluate import default_split, difference, opened, opened_any, run_evaluation
    from navprune.commands.evaluate_classifier import OpenedClassifier, run_classification
    from navprune.reports.tables import few_classes, measure_table
    from navprune.source import Source

    source = Source.parse(options.network)
    config = source.config(options.config, options.settings)
    split = options.split or default_split(config)
    out = options.out or (source.run or own_folder(source)) / "evaluation" / split
    network = opened_any(source, config, split)
    if isinstance(network, OpenedClassifier):
        asked = {name: getattr(options, field) for name, field in OF_AGENTS.items()}
        if unused := [name for name, value in asked.items() if value is not None]:
            raise UserError(f"{unused[0]} is for agents, and {source.text} is a classifier; leave it out")
        answer = run_classification(network, out).to_json(split)
        print(measure_table(answer).text())
        print("".join(f"\n{line}" for line in few_classes(answer)))
        print(f"{answer['images']} images of {split}, {answer['images_per_second']:,.0f} a second; written to {out}")
        print(f"checkpoint: {network.told['checkpoint'] or 'none'}")
        return answer
    against = opened(Source.parse(options.against), config) if options.against else None
    passed = {"source": network, "config": config, "split": split, "out": out, "against": against}
    result, shown = run_evaluation(**given(options, run_evaluation, **passed))
    print(measure_table(result.to_json(split)).text())
    if result.against:
        print(f"\n{difference(result.against, options.against)}")
    print(f"\n{len(result.episodes)} episodes of {split}; written to {out}")
    if network.told["checkpoint"]:
        print(f"checkpoint: {network.told['checkpoint']}")
    for pictures in shown:
        print(f"  {pictures.map}\n  {pictures.video}")
    return result.to_json(split)


def own_folder(source: Source) -> Path:
    """Where the evaluations of what lies in no run are kept: below runs/, of runs/masked/8 in runs/masked-8."""
    from navprune.source import EXPORTED

    place, runs = source.place, Path("runs").absolute()
    name = place.name if source.kind == EXPORTED else place.stem
    within = place.parent.relative_to(runs).parts if place.is_relative_to(runs) else ()
    return Path("runs") / "-".join([*within, name])


def _export(options: argparse.Namespace) -> dict[str, Any]:
    """Write a policy as a file that runs elsewhere: on a robot, or in habitat-baselines; or a classifier.
    onnx, openvino and torch hold a whole step, dense or pruned, from raw images to logits and the next state; they
    are checked against the policy over 500 steps. FILE.policy_contract.json says how to call them: docs/deployment.md.
    habitat-baselines takes dense ones, as rl.ddppo.pretrained_weights; FILE.pth.json beside it tells navprune what the
    shapes may not: the images' size and the channels' order. SOURCE is a checkpoint, a run folder or a file of weights.
    Of a classifier they hold normalised images to logits, with FILE.classifier_contract.json.
    """
    from navprune.commands.export import ExportOptions, export_for_habitat_baselines, run_export
    from navprune.evaluation.exported import contract_of
    from navprune.models.classifiers import ClassifierSpec
    from navprune.source import Source

    source = Source.parse(options.source)
    if isinstance(source.spec(), ClassifierSpec):
        return _export_classifier(source, options)
    if options.format == "habitat-baselines":
        if options.out.suffix in (".onnx", ".xml", ".pt2"):
            raise UserError(
                f"{options.out} is no name for habitat-baselines' weights; give --format onnx, openvino or torch"
            )
        if options.int8 or options.calibration_steps or options.config or options.settings:
            raise UserError("habitat-baselines' files hold weights alone: leave out --int8, --config and settings")
        policy = export_for_habitat_baselines(source, options.out, options.json)
        print(options.out)
        return {"format": options.format, "out": str(options.out), "spec": policy.spec.to_json()}
    if options.calibration_steps and not options.int8:
        raise UserError("--calibration-steps is for --int8; give both or neither")
    config = source.config(options.config, options.settings)
    contract = run_export(source, config, options.out, ExportOptions(**given(options, ExportOptions)))
    check = contract["check"]
    print(f"{options.out}\n{contract_of(options.out)}")
    print(f"logits are at most {check['logits']:.2g} away from the policy's over {check['steps']} steps")
    return {"format": options.format, "out": str(options.out), "spec": contract["spec"], "check": check}


def _export_classifier(source: Source, options: argparse.Namespace) -> dict[str, Any]:
    from navprune.commands.export import ExportOptions
    from navprune.commands.export_classifier import export_classifier
    from navprune.evaluation.exported import CLASSIFIER_CONTRACT, contract_of

    if options.format == "habitat-baselines":
        raise UserError(f"{source.text} is a classifier, which habitat-baselines has none of; give --format onnx")
    if options.calibration_steps or options.config or options.settings:
        raise UserError("a classifier is exported as it is: leave out --calibration-steps, --config and settings")
    contract = export_classifier(source, options.out, ExportOptions(**given(options, ExportOptions)))
    check = contract["check"]
    print(f"{options.out}\n{contract_of(options.out, CLASSIFIER_CONTRACT)}")
    print(f"logits are at most {check['logits']:.2g} away from the classifier's over {check['images']} images")
    return {"format": options.format, "out": str(options.out), "spec": contract["spec"], "check": check}


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

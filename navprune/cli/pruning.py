"""`navprune prune`: what makes encoders smaller."""

import argparse
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from navprune.cli.parsers import Parser, add_overrides, command, given, natural, note, positive
from navprune.errors import UserError


def add_commands(commands: Any) -> None:
    """Add the parser of this command."""
    example = "navprune prune resnet50 --method l1 --budget macs=0.488,parameters=0.435 --out runs/slim"
    parser = command(commands, "prune", _prune, example)
    parser.late = _methods
    parser.add_argument("source", metavar="SOURCE")
    add_overrides(parser, None)
    parser.add_argument("--method", default="gates", help="one of the methods below (default: gates)")
    parser.add_argument(
        "--budget", required=True, metavar="NAME=SHARE,...",
        help="shares of the dense encoder: macs=0.5,parameters=0.5, or latency=0.7, which is measured",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder of the slim checkpoint")
    parser.add_argument("--seed", type=natural, default=0, help="of random weights and draws (default: 0)")
    _add_search(parser)
    _add_evidence(parser)
    after = parser.add_argument_group("what follows")
    after.add_argument("--scratch", action="store_true", help="print the command that trains from new weights")
    after.add_argument("--equal-compute", action="store_true", help="the same, for as much compute as the dense one's")
    after.add_argument(
        "--frames-per-second", type=float, metavar="X",
        help="of training, by `navprune benchmark training`: tells the search's share of the training it saves",
    )  # fmt: skip


def _add_search(parser: Parser) -> None:
    group = parser.add_argument_group("what may be cut")
    group.add_argument("--blocks", action="store_true", help="whole residual blocks, too")
    group.add_argument(
        "--scope", choices=["global", "layer"], default="global",
        help="global: one threshold; layer: the same share of each layer (default: global)",
    )  # fmt: skip
    group.add_argument("--limits", metavar="LAYER=SHARE,...", help="largest share kept, such as stage4.*=0.3,stem=0.5")
    group.add_argument("--minimum", type=positive, default=1, metavar="N", help="units that stay everywhere (1)")
    group.add_argument("--minimum-share", type=float, default=0.0, metavar="X", help="share that stays everywhere (0)")
    group.add_argument("--multiple", type=positive, default=1, metavar="N", help="widths are multiples of this (1)")
    group.add_argument("--latency-batch", type=positive, metavar="N", help="batch size of latency (1)")
    group.add_argument("--latency-runtime", choices=["eager", "compiled"], help="eager or compiled (default: eager)")


def _add_evidence(parser: Parser) -> None:
    group = parser.add_argument_group("what methods that need batches look at")
    group.add_argument(
        "--loss", choices=["imitation", "ppo", "classification", "distillation"],
        help="imitation (default of gates), ppo (of other scores), classification (of classifiers) or distillation",
    )  # fmt: skip
    group.add_argument("--teacher", metavar="RUN", help="taylor on distillation: the dense network of a pruned SOURCE")
    group.add_argument("--steps", type=positive, metavar="N", help="steps of each environment (400)")
    group.add_argument("--epochs", type=positive, metavar="N", help="gates: passes through them (3)")
    group.add_argument("--batch-size", type=positive, metavar="N", help="observations a batch (100)")
    group.add_argument("--expansion", type=float, metavar="X", help="gates: width of the searched network (1.25)")
    group.add_argument(
        "--stable", type=float, metavar="X",
        help="gates: stop once their ranking correlates so much with the last (0.95)",
    )  # fmt: skip
    group.add_argument("--paper", choices=["cifar", "imagenet"], help="gates: the paper's settings for classification")
    group.add_argument("--images", type=Path, metavar="FILE.npz", help="labelled images, for classification")


def _methods() -> str:
    from navprune.pruning.methods import METHODS

    return "methods:\n" + "\n".join(f"  {name:20} {summary}" for name, summary in METHODS.items())


def _prune(options: argparse.Namespace) -> dict[str, Any]:
    """Prune an encoder to a budget and write a slim checkpoint.
    SOURCE is an encoder's or classifier's name, a spec.json, a checkpoint or run folder, or a file of weights
    (.pth, .pt, .ckpt, .safetensors). pruning.json and widths.png in the new folder say what was cut where.
    docs/pruning.md has the formulas.
    """
    from navprune.commands.evidence import PruningOptions
    from navprune.commands.prune import next_step, run_pruning
    from navprune.comparisons.torch_pruning import TOLERANCE
    from navprune.pruning.methods import TORCH_PRUNING
    from navprune.pruning.search import SearchConfig, parse_budget, parse_shares, shortfall
    from navprune.reports.tables import pruning_table
    from navprune.rl.checkpoints import PRUNING
    from navprune.source import Source

    budget = parse_budget(options.budget)
    _check_used(options, budget)
    config = Source.parse(options.source).config(options.config, options.settings)
    limits = parse_shares("--limits", options.limits) if options.limits else {}
    search = SearchConfig(**given(options, SearchConfig, limits=limits))
    more = _gates(options) | given(options, PruningOptions, search=search)
    result = run_pruning(options.source, options.method, budget, options.out, config, **more)
    answer = json.loads((options.out / PRUNING).read_text())
    print(pruning_table(answer).text())
    one_ratio = options.method == TORCH_PRUNING
    slack = (TOLERANCE, "its one pruning ratio cannot make both bind") if one_ratio else (search.tolerance,)
    if line := shortfall(budget, result.reached, *slack):
        note(line)
    if len({score for scores in result.scores.values() for score in scores.tolist()}) == 1:
        note(f"all {options.method} scores are equal, as before training norms' scales are: the order of units decided")
    print("\n" + next_step(options.out, answer, scratch=options.scratch, equal_compute=options.equal_compute))
    return answer


def _check_used(options: argparse.Namespace, budget: Collection[str]) -> None:
    """Raise UserError for an option that the method makes no use of."""
    from navprune.pruning.methods import GATES, METHODS, NEEDS_BATCHES
    from navprune.pruning.search import LATENCY

    method, labelled = options.method, options.images is not None
    if method not in METHODS:
        return
    gates, looks = method == GATES, method in NEEDS_BATCHES
    rollouts = not labelled and (options.loss or ("ppo" if method == "taylor" else "")) == "ppo"
    used = {
        "loss": (looks, "methods that need batches"),
        "teacher": (options.loss == "distillation", "--loss distillation"),
        "steps": (looks and not labelled, "methods that need batches, where the agent collects them"),
        "batch_size": (looks and not rollouts, "methods that need batches, unless PPO draws its own mini-batches"),
        "epochs": (gates and not rollouts, "gates, unless PPO makes its own passes"),
        "expansion": (gates, "gates"),
        "stable": (gates, "gates"),
        "paper": (gates and labelled, "gates that learn from labelled --images"),
        "latency_batch": (LATENCY in budget, "a budget of latency"),
        "latency_runtime": (LATENCY in budget, "a budget of latency"),
    }
    for name, (matters, users) in used.items():
        if not matters and getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} is for {users}; leave it out")


def _gates(options: argparse.Namespace) -> dict[str, Any]:
    """How gates are learned: the paper's settings or the project's, with what the user changes."""
    from dataclasses import replace

    from navprune.pruning.gates import PAPER_RECIPES, GateConfig

    recipe = dict(PAPER_RECIPES[options.paper]) if options.paper else {"config": GateConfig()}
    return {"gates": replace(recipe.pop("config"), **given(options, GateConfig)), **recipe}

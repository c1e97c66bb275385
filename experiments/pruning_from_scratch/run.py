"""Searches slim classifiers from random and from trained weights, trains them anew, and tells what each took.

    python -m experiments.pruning_from_scratch.run --workers 2       # on the digits; from the repository's root
    python -m experiments.pruning_from_scratch.run --images data/cifar-10-batches-py --recipe cifar10_resnet56

appends to results.jsonl beside this file, of other images to --out. What is measured is not measured again: stop it and
go on whenever you like. `python -m experiments.pruning_from_scratch.figure` makes the tables and the figure of it.
"""

import argparse
import datetime
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from experiments.cells import read, work
from experiments.classifiers import DIGITS, answers, configured, line_of, trained, training_batches
from navprune.commands.classification import classifier_of, training_images
from navprune.config import Config
from navprune.models.build import build
from navprune.models.classifiers import Classifier, ClassifierSpec
from navprune.pruning.config import PAPERS, GateConfig, PruningConfig, budget_of
from navprune.pruning.losses import Evidence, classification_loss
from navprune.pruning.methods.base import Context, chosen_units
from navprune.pruning.methods.gates import expanded, gated, learn_gates
from navprune.pruning.prune import prune, weights_hash
from navprune.pruning.structure import Structure, structure_of

RESULTS = Path(__file__).parent / "results.jsonl"
SHARE, SEEDS = 0.5, range(5)
ON_DIGITS = ("supervised.epochs=40",)
PUBLISHED = PAPERS["cifar"]
PAPER = GateConfig(penalty=PUBLISHED["gates.penalty"], stable=PUBLISHED["gates.stable"])
"""Wang et al., AAAI 2020; what else they set is the default."""
BATCH, PASSES, LONG = int(PUBLISHED["evidence.batch_size"]), int(PUBLISHED["evidence.epochs"]), 40
"""Images of a step, passes over the images as published, and more where a pass is ten steps instead of 390."""
SLIMMING = 1e-3
"""Strength of the penalty of network slimming: 1e-4 of Liu et al. (ICCV 2017), whose steps go through a momentum of
0.9, which makes ten times as much of them; here the scales shrink behind each step."""
STAGES = (0.1, 0.5, 1.0)
"""Shares of a training after which gates are learned on its weights."""

DENSE, UNIFORM, SCRATCH, LONGER = "dense", "uniform", "scratch", "scratch, 40 passes"
SLIMMED = "slimming"
TRAINED = {stage: f"gates after {stage:.0%} of training" for stage in STAGES}
ARMS = (DENSE, UNIFORM, SCRATCH, LONGER, SLIMMED, *TRAINED.values())


class Cell(NamedTuple):
    """One search, and the trainings that follow it."""

    arm: str
    seed: int


class Task(NamedTuple):
    """Where and how all cells are trained."""

    recipe: str
    overrides: tuple[str, ...]
    passes: tuple[int, int]
    """Of gates over the images: published, and longer."""

    @property
    def config(self) -> Config:
        """The configuration of the dense network's training."""
        return configured(self.recipe, self.overrides)

    def epochs(self, times: float) -> str:
        """The setting of so many times its length."""
        return f"supervised.epochs={times * self.config.supervised.epochs}"


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="cells at a time, a core each")
    parser.add_argument("--cells", type=int, metavar="N", help="stop after so many")
    parser.add_argument("--images", metavar="SOURCE", help="other images than the digits: CIFAR's folder, for example")
    parser.add_argument("--recipe", default="cifar10_resnet56", help="how these are learnt (default: cifar10_resnet56)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes to the recipe")
    parser.add_argument("--out", type=Path, default=Path("runs/pruning_from_scratch.jsonl"), help="of other images")
    options = parser.parse_args()
    if options.images:
        task = Task(options.recipe, (f"images.source={options.images}", *options.set), (PASSES, PASSES))
        results = options.out
    else:
        task, results = Task(DIGITS, (*ON_DIGITS, *options.set), (PASSES, LONG)), RESULTS
    done = {Cell(record["arm"], record["seed"]) for record in read(results)}
    left = [cell for cell in grid(task) if cell not in done][: options.cells]
    work("pruning from scratch", left, options.workers, partial(measure, task), results, line_of)


def grid(task: Task) -> list[Cell]:
    """All cells, the first seed first; no longer search where that is the published one."""
    arms = [arm for arm in ARMS if arm != LONGER or task.passes[0] < task.passes[1]]
    return [Cell(arm, seed) for seed in SEEDS for arm in arms]


def measure(task: Task, cell: Cell) -> dict[str, Any]:
    """Search, train, and answer the test images: one record of all that a cell comes to."""
    torch.set_num_threads(1)
    config, seeded = task.config, f"trainer.seed={cell.seed}"
    spec = classifier_of(config, training_images(config)[0])
    learn = partial(trained, task.recipe)
    fresh = (*task.overrides, seeded)
    found: dict[str, Any] = {"trainings": {}}

    def tell(name: str, network: Classifier, seconds: float) -> None:
        found["trainings"][name] = {**answers(network, config), "seconds": seconds}

    def retrain(widths: ClassifierSpec, share: float) -> None:
        for name, times in (("equal epochs", 1.0), ("equal compute", 1 / share)):
            tell(name, *learn((*fresh, task.epochs(times)), widths))

    if cell.arm == DENSE:
        tell("dense", *learn(fresh, spec))
        found |= {"search_seconds": 0.0, "widths": dict(spec.widths), "initial": weights_hash(build(spec, cell.seed))}
    elif cell.arm == SLIMMED:
        penalised = learn((*fresh, "pruning.penalty=norm-scale", f"pruning.strength={SLIMMING}"), spec)
        tell("dense, penalised", *penalised)
        cut = prune(penalised.network, PruningConfig(method="norm-scale", budget=f"macs={SHARE}"), seed=cell.seed)
        tell("cut", cast(Classifier, cut.model), 0.0)
        small = cast(ClassifierSpec, cut.spec)
        tell("fine-tuned", *learn((*fresh, task.epochs(0.5), f"supervised.lr={config.supervised.lr / 10}"), cut.model))
        retrain(small, cut.reached["macs"])
        found |= {
            "search_seconds": penalised.seconds + cut.search_seconds,
            "widths": dict(small.widths),
            "reached": cut.reached,
            "initial": weights_hash(build(spec, cell.seed)),
        }
    elif cell.arm == UNIFORM:
        cut = prune(spec, PruningConfig(method="uniform", budget=f"macs={SHARE}"), seed=cell.seed)
        retrain(cast(ClassifierSpec, cut.spec), cut.reached["macs"])
        found |= {"search_seconds": cut.search_seconds, "widths": dict(cast(ClassifierSpec, cut.spec).widths)}
        found |= {"reached": cut.reached, "initial": cut.initial_weights}
    else:
        stage = next((stage for stage, arm in TRAINED.items() if arm == cell.arm), 0.0)
        wide = cast(ClassifierSpec, expanded(spec, PAPER.expansion))
        network, before = learn(fresh, wide, stage) if stage else (build(wide, cell.seed), 0.0)
        initial, passes = weights_hash(network), task.passes[cell.arm == LONGER]
        began = time.process_time()
        small, gates = searched(network, spec, batches(config, cell.seed, passes))
        found |= {"search_seconds": time.process_time() - began + before}
        share = structure_of(build(spec, 0)).shares(small.widths)["macs"]
        retrain(small, share)
        found |= {"widths": dict(small.widths), "reached": {"macs": share}, "gates": gates, "initial": initial}
    about = {"torch": torch.__version__, "date": str(datetime.date.today())}
    return {"arm": cell.arm, "seed": cell.seed, **found, **about}


def batches(config: Config, seed: int, passes: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What gates look at."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(passes):
        yield from training_batches(config, BATCH, generator)


def searched(
    network: torch.nn.Module, dense: ClassifierSpec, seen: Iterator[tuple[torch.Tensor, torch.Tensor]]
) -> tuple[ClassifierSpec, dict[str, float]]:
    """Algorithm 1 on the weights that a wide network has: the slim spec, and mean and deviation of the gates."""
    config = PruningConfig(method="gates", budget=f"macs={SHARE}", gates=PAPER)
    wide, whole = structure_of(network), structure_of(build(dense, 0))
    learned = learn_gates(wide, seen, classification_loss, config.gates)
    context = Context(config, Evidence(torch.Generator()))
    keep = chosen_units(wide, learned.gates, budget_of(config), context, whole)
    values = torch.cat([*learned.gates.values()])
    gates = {"mean": values.mean().item(), "deviation": values.std().item(), "groups": len(gated(wide))}
    return slim_spec(dense, wide, keep), gates | {"first_loss": learned.losses[0], "last_loss": learned.losses[-1]}


def slim_spec(dense: ClassifierSpec, wide: Structure, keep: dict[str, torch.Tensor]) -> ClassifierSpec:
    """The dense spec with the widths that stay of the wide network."""
    left: dict[str, int] = wide.widths_of(keep)
    return replace(dense, widths={name: left[name] for name in dense.widths})


if __name__ == "__main__":
    main()

"""Trains VGG16-BN with each penalty, cuts it in every way and fine-tunes it: the cells that results.jsonl lacks.

    .venv/bin/python -m experiments.structured_sparsity.run --workers 2

from the repository's root; stop it by Ctrl-C, which lets the cells at work finish, and go on whenever you like.
README.md says what is measured, and what to type for CIFAR.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from experiments.cells import Record, read, work
from experiments.classifiers import DIGITS, answers, configured, trained
from experiments.structured_sparsity.counts import PUBLISHED_STRENGTH, SHARE, WAYS, cost
from navprune.comparisons.published import MEAN_ABS, RULES, SUM_SQUARES, pruned_ratio, rounded_up, select
from navprune.config import Config
from navprune.errors import UserError
from navprune.images.measures import TOP1
from navprune.images.splits import TEST, VAL
from navprune.models.build import Spec, build
from navprune.models.classifiers import Classifier
from navprune.models.widths import widths
from navprune.pruning.config import LASSOS
from navprune.pruning.groups import BOTH, CHANNELS, FILTERS, units
from navprune.pruning.methods.scores import group_lasso_strength
from navprune.pruning.penalties import survivors
from navprune.pruning.prune import weights_hash
from navprune.pruning.structure import structure_of

HERE = Path(__file__).parent
RESULTS, OTHERS = HERE / "results.jsonl", Path("runs/structured_sparsity.jsonl")
SEEDS = (0, 1, 2, 3, 4)
DEEPER = 0.6
"""A share at which the public records differ by more than at that of the table."""
NONE = "none"
PENALTIES = (NONE, SUM_SQUARES, *LASSOS)
LASSO_OF = {over: penalty for penalty, over in LASSOS.items()}
WHOLE, RANDOM, GROUP_LASSO = "whole", "random", "group-lasso"
TRAINED, CUT, TUNED, SCRATCH = "trained", "cut", "tuned", "scratch"
"""Where networks are measured; from scratch, the widths of a cut are trained for as long as its whole course."""


class Cut(NamedTuple):
    """What a trained network loses: a share of all filters, input channels or both, those of the lowest score."""

    over: str
    score: str
    share: float


NOTHING = Cut(FILTERS, WHOLE, 0.0)
AGAIN = (Cut(FILTERS, SUM_SQUARES, SHARE), Cut(CHANNELS, SUM_SQUARES, SHARE))
"""Cuts whose widths are also trained from scratch."""


class Cell(NamedTuple):
    """A training, with all cuts of its network."""

    penalty: str
    seed: int


@dataclass(frozen=True)
class Course:
    """How all networks are trained; by default the digits, for a few minutes a cell."""

    recipe: str = DIGITS
    settings: tuple[str, ...] = (
        "images.size=32", "images.test=0.8", "images.validation=0.25", "classifier.family=cifar_vgg16_bn",
        "classifier.width=0.25", "supervised.epochs=80", "supervised.lr=0.02", "supervised.weight_decay=1e-4",
    )  # fmt: skip
    """On top of the recipe's."""
    tuning: tuple[str, ...] = ("supervised.epochs=25", "supervised.lr=0.005")
    """On top of these, behind a cut; without any it is trained as before, as in the public code."""
    strength: float = 0.02
    """Of the group lassos over filters and over channels."""
    split: str = TEST
    """The images that networks are measured on."""

    def overrides(self, seed: int, *settings: str) -> list[str]:
        """What goes on top of the recipe in one training."""
        return [*self.settings, f"trainer.seed={seed}", *settings]

    def config(self, *settings: str) -> Config:
        """The configuration of a training."""
        return configured(self.recipe, [*self.settings, *settings])

    def measured(self, network: nn.Module) -> Record:
        """What a network reaches, and which images it tells right."""
        return answers(network, self.config(), self.split)

    def learnt(self, seed: int, *settings: str, init: nn.Module | Spec | None = None) -> Record:
        """What the network of a training reaches at its end, and the CPU's seconds that it took."""
        network, seconds = trained(self.recipe, self.overrides(seed, *settings), init)
        return self.measured(network) | {"seconds": round(seconds, 1)}

    def paid(self, penalty: str) -> float:
        """The strength of a penalty, 0 of none: half over both, where each weight pays twice."""
        both = self.strength / 2
        return {NONE: 0.0, SUM_SQUARES: PUBLISHED_STRENGTH, LASSO_OF[BOTH]: both}.get(penalty, self.strength)

    def said(self) -> Record:
        """As records hold it."""
        return json.loads(json.dumps(asdict(self)))


def cuts(penalty: str) -> list[Cut]:
    """The ways to cut a network that was trained with a penalty."""
    if penalty in LASSOS:
        return [NOTHING, *(Cut(LASSOS[penalty], GROUP_LASSO, share) for share in (SHARE, DEEPER))]
    published = [Cut(over, score, SHARE) for over, score in WAYS]
    deeper = [Cut(over, MEAN_ABS, DEEPER) for over in (FILTERS, CHANNELS, BOTH)] if penalty == SUM_SQUARES else []
    return [NOTHING, *published, Cut(FILTERS, RANDOM, SHARE), *deeper]


def measure(course: Course, cell: Cell) -> Record:
    """Train as a cell says, then cut and fine-tune in each of its ways."""
    torch.set_num_threads(1)
    began = time.process_time()
    strength = course.paid(cell.penalty)
    paid = [f"pruning.penalty={cell.penalty}", f"pruning.strength={strength}"] if strength else []
    model, seconds = trained(course.recipe, course.overrides(cell.seed, *paid))
    record = cell._asdict() | {
        "strength": strength,
        "weights": weights_hash(build(model.spec, cell.seed)),
        TRAINED: course.measured(model) | {"seconds": round(seconds, 1)},
        "zeros": zeros(model, LASSOS.get(cell.penalty, FILTERS)),
        "cuts": [followed(course, cell, model, cut) for cut in cuts(cell.penalty)],
    }
    about = {"course": course.said(), "torch": torch.__version__, "date": date.today().isoformat()}
    return record | {"seconds": round(time.process_time() - began, 1)} | about


def followed(course: Course, cell: Cell, model: Classifier, cut: Cut) -> Record:
    """What a cut leaves of a network, and what that is worth at once, fine-tuned and perhaps trained from scratch."""
    keep = chosen(model, cut, torch.Generator().manual_seed(cell.seed))
    small = structure_of(model).slim(keep)
    assert isinstance(small, Classifier)
    convolutions = [name for name in widths(small.spec) if name.startswith("features.")]
    before, after = ([widths(each.spec)[name] for name in convolutions] for each in (model, small))
    counted = {"widths": after, "ratio": round(pruned_ratio(before, after, cut.over, small.spec.input[0]), 4)}
    record = cut._asdict() | cost(small.spec) | counted | {CUT: course.measured(small)}
    record[TUNED] = course.learnt(cell.seed, *course.tuning, init=small)
    if cell.penalty == SUM_SQUARES and cut in AGAIN:
        epochs = sum(course.config(*settings).supervised.epochs for settings in ((), course.tuning))
        record[SCRATCH] = course.learnt(cell.seed, f"supervised.epochs={epochs}", init=small.spec)
    return record


def chosen(model: Classifier, cut: Cut, generator: torch.Generator) -> dict[str, Tensor]:
    """The units of the convolutions that a cut leaves, {group name: bool [units]}.

    Where the public code has no such rule, what it does with a score is done with ||W_g||_2 / sqrt(|g|), or at random.
    """
    if cut == NOTHING:
        return {}
    if cut.score in RULES:
        return select(model, cut.over, cut.score, cut.share, generator).keep
    groups = [group for group in structure_of(model).groups if group.name.startswith("features.")]
    if cut.score == RANDOM:
        scores = [torch.rand(units(group), generator=generator) for group in groups]
    else:
        scores = [group_lasso_strength(model, group, cut.over).float() for group in groups]
    everything = torch.cat(scores)
    threshold = everything.sort().values[int(len(everything) * cut.share)]
    return {group.name: rounded_up(each > threshold, generator) for group, each in zip(groups, scores)}


def zeros(model: Classifier, over: str) -> int:
    """Units of which training left nothing."""
    alive = survivors(model, structure_of(model).groups, over)
    return sum(int((~each).sum()) for each in alive.values())


def read_results(path: Path = RESULTS) -> dict[Cell, Record]:
    """The records written so far."""
    return {Cell(*(record[name] for name in Cell._fields)): record for record in read(path)}


def told(record: Record) -> str:
    """What the line of progress says of a cell."""
    return f"{record['penalty']} {record['seed']}: top1 {record[TRAINED][TOP1]:.3f} in {record['seconds']:.0f} s"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what is missing, `workers` cells at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="cells at a time, a core each")
    parser.add_argument("--cells", type=int, help="stop after so many")
    parser.add_argument("--only", choices=PENALTIES, nargs="+", default=PENALTIES, help="trainings with these alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--images", help="other images than the digits: CIFAR's folder, as images.source")
    parser.add_argument("--recipe", default="cifar100_vgg16_bn", help="for these images (default: %(default)s)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings on top of the recipe's")
    parser.add_argument("--strength", type=float, help="of the group lassos")
    parser.add_argument("--split", choices=(VAL, TEST), default=TEST, help="what to measure on (default: %(default)s)")
    parser.add_argument("--out", type=Path, help=f"where else to write; other courses go to {OTHERS}")
    options = parser.parse_args(arguments)
    course = course_of(options)
    out = options.out or (RESULTS if course == Course() else OTHERS)
    done = read_results(out)
    if any(record["course"] != course.said() for record in done.values()):
        raise UserError(f"{out} holds results of another course: move it away, or give --out another file")
    left = [Cell(*each) for seed in options.seeds for each in product(options.only, [seed]) if Cell(*each) not in done]
    out.parent.mkdir(parents=True, exist_ok=True)
    work("structured sparsity", left[: options.cells], options.workers, partial(measure, course), out, told)


def course_of(options: argparse.Namespace) -> Course:
    """What the options ask for."""
    if options.images:
        settings = f"images.source={options.images}", *options.set
        course = Course(options.recipe, settings, (), options.strength or PUBLISHED_STRENGTH, options.split)
    else:
        settings = *Course.settings, *options.set
        course = Course(settings=settings, strength=options.strength or Course.strength, split=options.split)
    course.config(*course.tuning)  # what is wrong is said at once
    return course


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))

"""Measures the cells that results.jsonl lacks; stop it and go on whenever you like.

    .venv/bin/python -m experiments.shrinkbench.run --workers 2

from the repository's root. Ctrl-C lets the cells at work finish. With images of your own,

    .venv/bin/python -m experiments.shrinkbench.run --images data/cifar-10-batches-py --workers 1

it trains and fine-tunes as the papers do, and writes to runs/shrinkbench/RECIPE/.
"""

import argparse
import datetime
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.cells import work
from experiments.pruning_methods import run as homes
from experiments.pruning_methods.grid import TUNED
from experiments.shrinkbench.grid import AS_PUBLISHED, DENSE, HERE, PAIRS, RESULTS, Cell, Pair, grid, read_results
from navprune.commands.classification import images_of, training_images
from navprune.commands.demo import draw_homes
from navprune.commands.train import run_training
from navprune.config import Config, load_config
from navprune.errors import UserError
from navprune.evaluation.classification import classify
from navprune.images.measures import MEASURES
from navprune.images.splits import TEST, open_images
from navprune.models.build import Network
from navprune.models.classifiers import Classifier
from navprune.models.encoders import Encoder
from navprune.models.policy import PointNavPolicy
from navprune.pruning.losses import Evidence, classification_loss, labelled_batches
from navprune.pruning.masked import Masking
from navprune.pruning.masks import STRATEGIES, Masks, apply_masks, compression_ratio, theoretical_speedup
from navprune.pruning.methods.base import BATCHES, LOSS
from navprune.pruning.prune import weights_hash
from navprune.rl.checkpoints import load_classifier, load_policy, save_checkpoint

RUNS = Path("runs/shrinkbench")
BATCH, LOOKED_AT = 128, 10
"""Images of a batch, and batches that strategies look at: those of weights at the first, structured ones at all."""
ENCODER = "net.visual_encoder."
"""Before the names of an agent's parameters that are pruned."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    """Runs what is missing, `workers` cells at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="cells at a time, a core each")
    parser.add_argument("--cells", type=int, help="stop after so many")
    parser.add_argument("--only", choices=PAIRS, help="only this pair")
    parser.add_argument("--images", help="a folder or file of labelled images, in place of the pairs")
    parser.add_argument("--recipe", default="cifar10_resnet56", help="how their classifier is trained")
    options = parser.parse_args()
    if options.images:
        pairs, runs = [with_images(options.images, options.recipe)], RUNS / options.recipe
    else:
        pairs, runs = [pair for pair in PAIRS.values() if options.only in (None, pair.name)], RUNS
    measure_all(pairs, runs, runs if options.images else HERE, options.workers, options.cells)


def with_images(path: str, recipe: str) -> Pair:
    """A user's images with the network and the training of a recipe, fine-tuned as published."""
    return Pair(f"{Path(path).name} x {recipe}", recipe, (f"images.source={path}",), AS_PUBLISHED)


def measure_all(pairs: list[Pair], runs: Path, results: Path, workers: int, cells: int | None = None) -> None:
    """Measure what the folder `results` lacks of these pairs; trained networks are kept in `runs`.

    Raises UserError where the records that are there began with other weights than those networks.
    """
    done, by_name = read_results(results), {pair.name: pair for pair in pairs}
    left = [cell for cell in grid(pairs) if cell not in done][:cells]
    for name, initial in dict.fromkeys((cell.pair, cell.initial) for cell in left):
        prepare(by_name[name], initial, runs)
        own = weights_hash(trained(by_name[name], initial, runs))
        if {record["initial_weights"] for cell, record in done.items() if cell[:2] == (name, initial)} - {own}:
            raise UserError(f"{results / RESULTS} is of other weights of {name} than those in {runs}: move it away")
    results.mkdir(parents=True, exist_ok=True)
    work("shrinkbench", left, workers, partial(measure, by_name, runs), results / RESULTS, told)


def told(record: dict[str, Any]) -> str:
    """What the line of progress says of a cell."""
    where = " ".join(str(record[name]) for name in Cell._fields)
    if "refused" in record:
        return f"{where}: {record['refused']}"
    outcome = f"top-1 {record['top1']:.3f}" if "top1" in record else f"SPL {np.mean(record['spl']):.3f}"
    return f"{where}: {outcome} in {record['search_seconds'] + record['training_seconds']:.0f} s"


def prepare(pair: Pair, initial: int, runs: Path) -> None:
    """Train the classifier that cells begin with, or draw the homes, unless they are there."""
    if pair.recipe:
        run_training(configured(pair, initial, kept(pair, initial, runs)))
    else:
        draw_homes(homes.DATA, homes.DEMO.data.name)


def trained(pair: Pair, initial: int, runs: Path) -> Network:
    """The network that cells begin with: the trained classifier, or the agent of `experiments/pruning_methods`."""
    return load_classifier(kept(pair, initial, runs)) if pair.recipe else load_policy(homes.AGENT).policy


def kept(pair: Pair, initial: int, runs: Path) -> Path:
    """Where a trained classifier is."""
    return runs / f"{pair.name.replace(' ', '_')}-{initial}"


def configured(pair: Pair, seed: int, run: Path, *more: str) -> Config:
    """A training of a pair's classifier into the folder `run`."""
    own = f"run={run}", f"trainer.seed={seed}", "trainer.workers=1", "trainer.threads=1"
    return load_config(pair.recipe, [*pair.settings, *more, *own])


def measure(pairs: Mapping[str, Pair], runs: Path, cell: Cell) -> dict[str, Any]:
    """Prunes, fine-tunes and evaluates the network of a cell; seconds are the CPU's."""
    torch.set_num_threads(1)
    pair = pairs[cell.pair]
    network = trained(pair, cell.initial, runs)
    pruned = part(network)
    record = cell._asdict() | {
        "initial_weights": weights_hash(network),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }
    began = time.process_time()
    try:
        masks = masks_of(pair, cell, network)
    except UserError as error:
        return record | {"refused": str(error)}
    searched = time.process_time()
    apply_masks(pruned, masks)
    record["compression"] = round(compression_ratio(pruned, masks), 4)
    record["speedup"] = round(theoretical_speedup(pruned, masks, torch.zeros(1, *pruned.spec.input)), 4)
    outcome = tuned_classifier(pair, cell, network, masks) if pair.recipe else tuned_agent(cell, network, masks)
    seconds = {"search_seconds": searched - began, "training_seconds": time.process_time() - searched}
    return record | {name: round(value, 2) for name, value in seconds.items()} | outcome


def part(network: Network) -> Classifier | Encoder:
    """What is pruned of a network: all of a classifier, the visual encoder of an agent."""
    return network.encoder if isinstance(network, PointNavPolicy) else network


def masks_of(pair: Pair, cell: Cell, network: Network) -> Masks:
    """The masks of a cell, by the names in what is pruned; raises UserError where its ratio cannot be met."""
    if cell.strategy == DENSE:
        return {}
    strategy, pruned = STRATEGIES[cell.strategy], part(network)
    if isinstance(network, PointNavPolicy):
        # The last convolution of an encoder says no classes, so that it may be pruned, too.
        with seen_in_homes(cell, network) as evidence:
            return strategy(pruned, evidence, cell.ratio, classifier=True)
    return strategy(pruned, seen_images(pair, cell), cell.ratio)


def seen_images(pair: Pair, cell: Cell) -> Evidence:
    """Some images to train on, as they are evaluated."""
    images, _ = training_images(configured(pair, cell.seed, RUNS))
    generator = torch.Generator().manual_seed(cell.seed)
    rows = torch.randperm(len(images), generator=generator)[: LOOKED_AT * BATCH]
    size = min(BATCH, len(rows))
    batches = [*labelled_batches(images.views(rows), images.labels[rows], size, 1, generator)]
    return Evidence(generator, batches, classification_loss)


@contextmanager
def seen_in_homes(cell: Cell, policy: PointNavPolicy) -> Iterator[Evidence]:
    """What the agent meets with PPO's loss on it, or what is seen along the expert's paths."""
    needs = STRATEGIES[cell.strategy].needs
    like = "taylor" if LOSS in needs else "activation" if BATCHES in needs else "l1"
    with homes.evidence(in_homes(cell, like)) as given:
        evidence = Evidence(torch.Generator().manual_seed(cell.seed), **given).of(policy)
        loss = evidence.loss
        # Scores see the encoder, and the loss is the whole agent's.
        yield replace(evidence, loss=loss and (lambda _encoder, rows: loss(policy, rows)))


def in_homes(cell: Cell, method: str) -> homes.Cell:
    """The cell of `experiments/pruning_methods` that looks at, and goes through, the same frames."""
    return homes.Cell(TUNED, method, 1 / cell.ratio, cell.seed)


def tuned_classifier(pair: Pair, cell: Cell, network: Classifier, masks: Masks) -> dict[str, Any]:
    """What a masked classifier reaches on the test images after fine-tuning; its last weights count."""
    with tempfile.TemporaryDirectory() as folder, silent():
        start = save_checkpoint(Path(folder) / "start", network, masks=masks)
        config = configured(pair, cell.seed, Path(folder) / "run", *pair.tuning, f"init={start}")
        tuned = load_classifier(run_training(config).latest, DEVICE)
    found = classify(tuned, open_images(images_of(config), TEST), BATCH)
    record: dict[str, Any] = {"images": len(found.labels)}
    for name in MEASURES:
        hit = found.figures[name] > 0
        record |= {name: round(float(hit.mean()), 4), f"{name}_hits": np.packbits(hit).tobytes().hex()}
    return record


def tuned_agent(cell: Cell, policy: PointNavPolicy, masks: Masks) -> dict[str, Any]:
    """SPL of a masked agent in each validation episode after fine-tuning."""
    held = Masking({f"{ENCODER}{name}": mask for name, mask in masks.items()})
    homes.train(policy, in_homes(cell, cell.strategy), [held])
    return {"spl": [round(spl, 4) for spl in homes.evaluated(policy)]}


@contextmanager
def silent() -> Iterator[None]:
    """Trainings within say nothing."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


if __name__ == "__main__":
    main()

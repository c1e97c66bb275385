"""What the experiments with classifiers share: trainings by the trainer, what a network answers on the test images."""

import contextlib
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn

from navprune.commands.train import run_training
from navprune.config import Config, load_config
from navprune.evaluation.classification import classify
from navprune.images.measures import CROSS_ENTROPY, MEASURES, TOP1
from navprune.images.splits import TEST, TRAIN, open_images
from navprune.models.build import Spec, build
from navprune.models.classifiers import Classifier
from navprune.rl.checkpoints import checkpoint_folder, load_classifier, numbered, save_checkpoint
from navprune.rl.trainer import device_of

BATCH = 256
DIGITS = "digits_resnet20"
ALONE = ("trainer.workers=1", "trainer.threads=1", "trainer.checkpoint_seconds=1e9", "trainer.device=cpu")
"""A cell has one thread of its own, and is measured again where it is lost."""


class Trained(NamedTuple):
    """A classifier behind its training, and the CPU seconds that this took."""

    network: Classifier
    seconds: float


def configured(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """A recipe as one cell trains it."""
    return load_config(recipe, [*ALONE, *overrides])


def trained(
    recipe: str, overrides: Sequence[str] = (), init: nn.Module | Spec | None = None, stage: float = 1.0
) -> Trained:
    """Train by a recipe with `overrides`: from the weights of `init`, or anew where it is a spec or None.

    With a `stage` below 1 the network is that after this share of the training, and so are the seconds.
    """
    with TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        given = ["trainer.checkpoint_seconds=0", f"trainer.keep_checkpoints={10**9}"] if stage < 1 else []
        if init is not None:
            network = init if isinstance(init, nn.Module) else build(init, 0)
            save_checkpoint(Path(folder) / "init", cast(Classifier, network))
            weights = str(isinstance(init, nn.Module)).lower()
            given += [f"init={folder}/init", f"init_weights={weights}"]
        config = configured(recipe, [*overrides, *given, f"run={folder}/run"])
        began = time.process_time()
        result = run_training(config)
        seconds = time.process_time() - began
        frames = min(frames for frames in numbered(Path(config.run)) if frames >= stage * result.frames)
        return Trained(load_classifier(checkpoint_folder(Path(config.run), frames)), stage * seconds)


def answers(network: nn.Module, config: Config, split: str = TEST) -> dict[str, Any]:
    """What a network reaches on a split: top1, top5, cross-entropy, and which images it told apart, `packed`."""
    assert config.images is not None
    network.to(device_of(config.trainer.device))
    found = classify(cast(Classifier, network), open_images(config.images, split), BATCH)
    means = {name: found.measures[name]["mean"] for name in MEASURES}
    loss = found.measures[CROSS_ENTROPY]["mean"]
    return {"images": len(found.labels), **means, "loss": loss, "right": packed(found.figures[TOP1] > 0)}


def packed(right: np.ndarray) -> str:
    """Booleans [M] as hexadecimal digits."""
    return np.packbits(right).tobytes().hex()


def unpacked(text: str, count: int) -> np.ndarray:
    """What `packed` was given, [M]."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))[:count].astype(np.float64)


def training_batches(config: Config, size: int, generator: torch.Generator) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """One pass over the training images in random order, as evaluated, in full batches."""
    assert config.images is not None
    images = open_images(config.images, TRAIN)
    order = torch.randperm(len(images), generator=generator)
    return [(images.views(rows), images.labels[rows]) for rows in order.split(size) if len(rows) == size]


def line_of(record: dict[str, Any]) -> str:
    """A record in one line, for looking at."""
    return json.dumps({name: value for name, value in record.items() if name != "right"})

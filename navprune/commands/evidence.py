"""What pruning methods look at: observations, rollouts or labelled images."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from navprune.commands.environments import check_sees, training_env
from navprune.config import Config
from navprune.errors import UserError
from navprune.models.build import Spec
from navprune.models.classifiers import ClassifierSpec
from navprune.models.spec import PolicySpec
from navprune.progress import ProgressLine
from navprune.pruning.config import CLASSIFICATION, DISTILLATION, IMITATION, PPO, EvidenceConfig
from navprune.pruning.losses import (
    Batches,
    LossFunction,
    PPOTask,
    collect_observations,
    distillation_loss,
    labelled_batches,
    read_labelled,
    shuffled_batches,
)
from navprune.pruning.methods.base import BATCHES, LOSS, PASSES, Method
from navprune.source import Source


def material(
    method: Method, spec: Spec, asked: EvidenceConfig, config: Config, seed: int, closing: ExitStack
) -> tuple[Batches | None, LossFunction | None]:
    """What `method` looks at, with a line of progress on the way, and its loss; None for what it does not need.

    An environment that it goes on to act in is closed with `closing`; `seed` is that of the order of observations.
    Raises UserError where the kind of network and the loss do not fit together.
    """
    if BATCHES not in method.needs:
        return None, None
    follows, learns = LOSS in method.needs, PASSES in method.needs
    loss = asked.loss or method.loss
    if loss == DISTILLATION and (learns or not follows):
        raise UserError(f"distillation is a loss of taylor scores, not of {method.name!r}: leave it out")
    taught = distillation_loss(Source.parse(asked.teacher).load()) if asked.teacher else None
    epochs = asked.epochs if learns else 1
    generator = torch.Generator().manual_seed(seed)
    if isinstance(spec, ClassifierSpec) or loss == CLASSIFICATION:
        images, labels = _labelled(spec, asked)
        batches = labelled_batches(images, labels, asked.batch_size, epochs, generator)
        return _shown(method.name, batches, epochs * (len(images) // asked.batch_size)), taught
    if asked.loss and not follows:
        raise UserError(f"{method.name} follows no loss, of {asked.loss} neither: leave it out")
    if loss == IMITATION and not learns:
        raise UserError(
            f"imitation learns a readout along with gates; {method.name!r} scores follow ppo's loss: leave it out"
        )
    assert isinstance(spec, PolicySpec)
    check_sees(spec.encoder, config)
    env = training_env(config)
    closing.callback(env.close)
    if loss == PPO and follows:
        rollouts = max(1, asked.steps // config.ppo.steps)
        # While nothing learns, a second pass says what the first one said.
        ppo = config.ppo if learns else replace(config.ppo, epochs=1)
        task = PPOTask(env, ppo, rollouts, seed)
        return _shown(method.name, task.batches, rollouts * ppo.epochs * ppo.minibatches), task.loss

    def observed(_model: torch.nn.Module) -> Iterator[Any]:
        data = collect_observations(env, asked.steps, np.random.default_rng(seed))
        return shuffled_batches(data, asked.batch_size, epochs, generator)

    return _shown(method.name, observed, epochs * (asked.steps * env.num_envs // asked.batch_size)), taught


def _shown(title: str, batches: Batches, total: int) -> Batches:
    """The batches, at most `total`, with a line of progress while they are looked at."""

    def draw(model: torch.nn.Module) -> Iterator[Any]:
        line, done = ProgressLine(title, total, "batches"), 0
        try:
            for batch in batches(model) if callable(batches) else batches:
                line.show(done, last=False)
                done += 1
                yield batch
        finally:
            line.show(done, last=True)

    return draw


def _labelled(spec: Spec, asked: EvidenceConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels that fit the classifier."""
    if not isinstance(spec, ClassifierSpec):
        raise UserError("classification needs a classifier, such as cifar_resnet56; encoders use imitation or ppo")
    if asked.loss not in (None, CLASSIFICATION, DISTILLATION):
        known = f"{CLASSIFICATION} or {DISTILLATION}"
        raise UserError(f"{spec.family} classifies images: its loss is {known}, not {asked.loss}")
    if asked.images is None:
        raise UserError("classification looks at labelled images: give an .npz file with images and labels")
    images, labels = read_labelled(asked.images)
    if tuple(images.shape[1:]) != spec.input or labels.max() >= spec.classes:
        found = f"{list(images.shape[1:])} with {int(labels.max()) + 1} classes"
        wanted = f"{list(spec.input)} with {spec.classes}"
        raise UserError(f"{asked.images} holds images of {found}, and {spec.family} takes {wanted}")
    return images, labels

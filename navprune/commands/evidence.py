"""What pruning methods look at: observations, rollouts or labelled images."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from navprune.commands.classification import images_to_look_at
from navprune.commands.environments import check_sees, training_env
from navprune.config import Config
from navprune.errors import UserError
from navprune.images.splits import TRAIN, Images, open_images
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
    shuffled_batches,
)
from navprune.pruning.methods.base import BATCHES, LOSS, ONE_BATCH, PASSES, Criterion
from navprune.pruning.recover import check_teacher
from navprune.source import Source


def material(
    method: Criterion, spec: Spec, asked: EvidenceConfig, config: Config, seed: int, closing: ExitStack
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
    taught = distillation_loss(_teacher(spec, asked.teacher)) if asked.teacher else None
    epochs = asked.epochs if learns else 1
    generator = torch.Generator().manual_seed(seed)
    if isinstance(spec, ClassifierSpec) or loss == CLASSIFICATION:
        images = _labelled(spec, asked, config)
        drawn = shuffled_batches({"rows": torch.arange(len(images))}, asked.batch_size, epochs, generator)
        batches = ((images.views(batch["rows"]), images.labels[batch["rows"]]) for batch in drawn)
        return _shown(method, batches, epochs * (len(images) // asked.batch_size)), taught
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
        return _shown(method, task.batches, rollouts * ppo.epochs * ppo.minibatches), task.loss

    def observed(_model: torch.nn.Module) -> Iterator[Any]:
        data = collect_observations(env, asked.steps, np.random.default_rng(seed))
        return shuffled_batches(data, asked.batch_size, epochs, generator)

    return _shown(method, observed, epochs * (asked.steps * env.num_envs // asked.batch_size)), taught


def _shown(method: Criterion, batches: Batches, total: int) -> Batches:
    """The batches, at most `total`, with a line of progress while they are looked at."""

    def draw(model: torch.nn.Module) -> Iterator[Any]:
        line, done = ProgressLine(method.name, 1 if ONE_BATCH in method.needs else total, "batches"), 0
        try:
            for batch in batches(model) if callable(batches) else batches:
                line.show(done, last=False)
                done += 1
                yield batch
        finally:
            line.show(done, last=True)

    return draw


def _teacher(spec: Spec, text: str) -> torch.nn.Module:
    """The network that is named as a teacher; raises UserError where it cannot teach a classifier of this spec."""
    source = Source.parse(text)
    if not isinstance(spec, ClassifierSpec):
        return source.load()
    teacher = source.classifier()
    check_teacher(teacher.spec, spec)
    return teacher


def _labelled(spec: Spec, asked: EvidenceConfig, config: Config) -> Images:
    """Labelled images that fit the classifier."""
    if not isinstance(spec, ClassifierSpec):
        raise UserError("classification needs a classifier, such as cifar_resnet56; encoders use imitation or ppo")
    if asked.loss not in (None, CLASSIFICATION, DISTILLATION):
        known = f"{CLASSIFICATION} or {DISTILLATION}"
        raise UserError(f"{spec.family} classifies images: its loss is {known}, not {asked.loss}")
    named = images_to_look_at(asked.images, config)
    if named is None:
        raise UserError(
            "classification looks at labelled images: give --images SOURCE, or --config of a classifier's recipe"
        )
    images = open_images(named, TRAIN)
    if images.shape != spec.input or len(images.classes) > spec.classes:
        found, wanted = f"{list(images.shape)} with {len(images.classes)} classes", f"{list(spec.input)}"
        raise UserError(f"{named.source} holds images of {found}, and {spec.family} takes {wanted} with {spec.classes}")
    return images

"""What scores and gates look at: observations, rollouts or labelled images."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from navprune.commands.environments import check_sees, training_env
from navprune.config import Config
from navprune.errors import UserError
from navprune.models.classifiers import ClassifierSpec
from navprune.models.spec import PolicySpec
from navprune.progress import ProgressLine
from navprune.pruning.gates import GateConfig
from navprune.pruning.losses import PPOTask, collect_observations, labelled_batches, read_labelled, shuffled_batches
from navprune.pruning.methods import GATES, NEEDS_BATCHES
from navprune.pruning.prune import Batches
from navprune.pruning.scores import LossFunction, distillation_loss
from navprune.pruning.search import SearchConfig
from navprune.pruning.slim import Spec
from navprune.source import Source

DISTILLATION = "distillation"

LOSSES = ("imitation", "ppo", "classification", DISTILLATION)


@dataclass(frozen=True, kw_only=True)
class PruningOptions:
    """How `run_pruning` goes about it."""

    seed: int = 0
    """Of initial weights, of chance in scores, and of the order of observations."""
    steps: int = 400
    """Observations of each of the configured training environments that scores and gates look at; 1 or more."""
    epochs: int = 3
    """Passes of gates through them or through labelled images; of PPO the configured ones instead."""
    batch_size: int = 100
    """Observations or images of each batch; of PPO a mini-batch instead."""
    gates: GateConfig | None = None
    """How gates are learned; None for the defaults."""
    loss: str | None = None
    """imitation, ppo, classification or distillation; None is imitation for gates and ppo for other scores, of
    classifiers classification."""
    teacher: str | None = None
    """Checkpoint or run of the network that distillation compares with: the dense one, of which some is cut already."""
    images: Path | None = None
    """An .npz file of labelled images, for classification."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """What may be cut."""
    blocks: bool = False
    """Whether residual blocks may go whole."""
    latency_batch: int = 1
    """Batch size at which a budget of latency is measured."""
    latency_runtime: str = "eager"
    """Runtime in which it is."""
    frames_per_second: float | None = None
    """Of training the dense network, as `navprune benchmark training` measures it: says what the search costs."""

    def __post_init__(self) -> None:
        if self.loss not in (None, *LOSSES):
            raise UserError(f"the loss is {self.loss!r}; use {', '.join(LOSSES)}")
        if (self.loss == DISTILLATION) != bool(self.teacher):
            raise UserError("distillation and a teacher go together: give both, a checkpoint or run for the teacher")
        if self.frames_per_second is not None and not self.frames_per_second > 0:
            raise UserError(f"training runs at more than 0 frames per second, not at {self.frames_per_second:g}")


def material(
    method: str, spec: Spec, options: PruningOptions, config: Config, closing: ExitStack
) -> tuple[Batches | None, LossFunction | None]:
    """What `method` looks at, with a line of progress on the way, and its loss; None for what it does not need.

    An environment that it goes on to act in is closed with `closing`. Raises UserError where the kind of network and
    the loss do not fit together.
    """
    if method not in NEEDS_BATCHES:
        return None, None
    loss = options.loss or ("imitation" if method == GATES else "ppo")
    if loss == DISTILLATION and method != "taylor":
        raise UserError(f"distillation is a loss of taylor scores, not of {method!r}: leave it out")
    taught = distillation_loss(Source.parse(options.teacher).load()) if options.teacher else None
    epochs = options.epochs if method == GATES else 1
    generator = torch.Generator().manual_seed(options.seed)
    if isinstance(spec, ClassifierSpec) or loss == "classification":
        images, labels = _labelled(spec, options)
        batches = labelled_batches(images, labels, options.batch_size, epochs, generator)
        return _shown(method, batches, epochs * (len(images) // options.batch_size)), taught
    if method == "activation" and options.loss:
        raise UserError(f"activation follows no loss, of {options.loss} neither: leave it out")
    if method != GATES and loss == "imitation":
        raise UserError(
            f"imitation learns a readout along with gates; {method!r} scores follow ppo's loss: leave it out"
        )
    assert isinstance(spec, PolicySpec)
    check_sees(spec.encoder, config)
    env = training_env(config)
    closing.callback(env.close)
    if loss == "ppo" and method != "activation":
        rollouts = max(1, options.steps // config.ppo.steps)
        # While nothing learns, a second pass says what the first one said.
        ppo = config.ppo if method == GATES else replace(config.ppo, epochs=1)
        task = PPOTask(env, ppo, rollouts, options.seed)
        return _shown(method, task.batches, rollouts * ppo.epochs * ppo.minibatches), task.loss

    def observed(_model: torch.nn.Module) -> Iterator[Any]:
        data = collect_observations(env, options.steps, np.random.default_rng(options.seed))
        return shuffled_batches(data, options.batch_size, epochs, generator)

    return _shown(method, observed, epochs * (options.steps * env.num_envs // options.batch_size)), taught


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


def _labelled(spec: Spec, options: PruningOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels that fit the classifier."""
    if not isinstance(spec, ClassifierSpec):
        raise UserError("classification needs a classifier, such as cifar_resnet56; encoders use imitation or ppo")
    if options.loss not in (None, "classification", DISTILLATION):
        known = f"classification or {DISTILLATION}"
        raise UserError(f"{spec.family} classifies images: its loss is {known}, not {options.loss}")
    if options.images is None:
        raise UserError("classification looks at labelled images: give an .npz file with images and labels")
    images, labels = read_labelled(options.images)
    if tuple(images.shape[1:]) != spec.input or labels.max() >= spec.classes:
        found = f"{list(images.shape[1:])} with {int(labels.max()) + 1} classes"
        wanted = f"{list(spec.input)} with {spec.classes}"
        raise UserError(f"{options.images} holds images of {found}, and {spec.family} takes {wanted}")
    return images, labels

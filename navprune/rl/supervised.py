"""Supervised training of classifiers: gradient descent on labelled images, by the schedules of the papers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from navprune.checks import TINY, bounded, check_fields, chosen
from navprune.errors import UserError
from navprune.images.measures import CROSS_ENTROPY, TOP1, TOP5, measured
from navprune.images.splits import DRAWS, Images
from navprune.models.classifiers import Classifier
from navprune.models.modes import evaluating
from navprune.rl.callbacks import Callback
from navprune.rl.learner import GradientLearner, Update, gradient_step
from navprune.rl.trainee import Trainee

SGD, ADAM = OPTIMISERS = ("sgd", "adam")
COSINE, STEPS, CONSTANT = SCHEDULES = ("cosine", "steps", "constant")

Batch = tuple[Tensor, Tensor]
"""Images [B, C, H, W] and their classes, int64 [B]."""


class Draw(NamedTuple):
    """What chance has in a gradient step.

    The images of its batch, int64 [B], how each is seen, float32 [B, DRAWS], and the seed of dropout.
    """

    rows: Tensor
    draws: Tensor
    seed: int


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig:
    """How a classifier learns; the defaults are those of ResNets on CIFAR (He et al., CVPR 2016)."""

    epochs: float = bounded(200.0, TINY, 1e6)
    """Passes over the training images, which say how long the run is; above 0, to a million."""
    batch: int = bounded(128, 2)
    """Images in a gradient step, of all workers together; a multiple of their number, 2 or more."""
    optimiser: str = chosen(SGD, OPTIMISERS)
    """sgd or adam."""
    lr: float = bounded(0.1, TINY, 10)
    """Learning rate at the beginning; above 0."""
    momentum: float = bounded(0.9, 0, 0.9999)
    """Of sgd; from 0 to 0.9999, since at 1 it never forgets."""
    nesterov: bool = False
    """Whether sgd's momentum is Nesterov's."""
    weight_decay: float = bounded(1e-4, 0, 1)
    """Times each weight, added to its gradient; 0 or more."""
    schedule: str = chosen(STEPS, SCHEDULES)
    """How the learning rate falls: cosine (to 0), steps (at `milestones`) or constant."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Shares of the run at which `steps` multiply the learning rate by `decay`; from 0 to 1."""
    decay: float = bounded(0.1, TINY, 1)
    """What they multiply it by; above 0, to 1."""
    warm_up: float = bounded(0.0, 0, 1)
    """Share of the run in which the learning rate rises linearly, from that of one step on; from 0 to 1."""
    label_smoothing: float = bounded(0.0, 0, 0.9999)
    """Share of each label that is spread over all classes (Szegedy et al., CVPR 2016); from 0 to 0.9999,
    since at 1 no label is left."""
    max_grad_norm: float = bounded(math.inf, TINY)
    """Gradients are scaled down to this norm; above 0, .inf leaves them."""
    steps: int = bounded(20, 1)
    """Gradient steps of an update, between which signals, checkpoints, cuts and validation wait; 1 or more."""

    def __post_init__(self) -> None:
        check_fields("supervised", self)
        if any(not 0 <= place <= 1 for place in self.milestones):
            raise UserError(f"supervised.milestones are {self.milestones}; they are shares of the run, from 0 to 1")
        if self.nesterov and not self.momentum:
            raise UserError("supervised.nesterov needs a momentum; set supervised.momentum=0.9")

    def frames(self, images: int) -> int:
        """Images that a run sees in `epochs` passes over so many: whole batches, at least one."""
        return max(1, round(self.epochs * images / self.batch)) * self.batch

    def rate(self, progress: float, step: float = 0.0) -> float:
        """The learning rate of a gradient step at `progress` in [0, 1] of the run, of which it is the share `step`.

        The rise reaches so far that the first step has a rate above 0.
        """
        if progress < self.warm_up:
            return self.lr * min(1.0, (progress + step) / self.warm_up)
        if self.schedule == COSINE:
            done = (progress - self.warm_up) / max(1 - self.warm_up, TINY)
            return self.lr * 0.5 * (1 + math.cos(math.pi * done))
        if self.schedule == STEPS:
            # Rounding must not put off a milestone by a step.
            return self.lr * self.decay ** sum(progress >= place - 1e-9 for place in self.milestones)
        return self.lr


class Reader(Trainee):
    """A classifier and the images that it learns: batches in an order that the seed and the place in the run decide.

    `train` and `val` are splits of labelled images; None where nothing is held out. Every worker draws the whole of a
    batch and reads its part.
    """

    network: Classifier
    unit, shown, lasting = "images", ("top1",), False
    longer = "a larger supervised.epochs trains longer"

    def __init__(self, data: tuple[Images, Images | None], network: Classifier, **passed: Any) -> None:
        super().__init__(network, **passed)
        self.train, self.val = data
        self.score = None if self.val is None else TOP1
        self.seed = self.generator.initial_seed()

    def facts(self) -> dict[str, Any]:
        """Return by what images are normalised, channel by channel in the units they are stored in, and the classes."""
        scales = {name: getattr(self.train, name).flatten().tolist() for name in ("mean", "deviation")}
        return {**scales, "classes": list(self.train.classes)}

    def state_dict(self) -> dict[str, Any]:
        """Return a digest of the images to train on, from the worker that writes it; None from others."""
        return {"images": self.train.digest if self.group.leads else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raise UserError where the state is of other images than these; earlier versions of navprune kept none."""
        if self.group.leads and state.get("images", self.train.digest) != self.train.digest:
            raise UserError(
                "images.source holds other images to train on than those that this run learns; give these, or use "
                "another run folder"
            )

    def draw_batch(self, first: int, size: int) -> Draw:
        """This worker's part of the batch of `size` images that begins at image `first` of the run."""
        draws = torch.rand(size, DRAWS, generator=self.generator)
        seed = int(torch.randint(2**62, (), generator=self.generator)) + self.group.rank
        mine = self.group.rows(size // self.group.size)
        return Draw(batch_rows(self.seed, len(self.train), first, size)[mine], draws[mine], seed)

    def read(self, draw: Draw) -> Batch:
        """What was drawn: views [B, C, H, W] and labels [B]."""
        views, labels = self.train.views(draw.rows, draw.draws), self.train.labels[draw.rows]
        return views.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    @torch.no_grad()
    def measure(self, size: int) -> dict[str, float]:
        """What the network reaches on the images that are held out: top1, top5 and loss, by batches of `size`."""
        val, names = self.val, {TOP1: TOP1, TOP5: TOP5, "loss": CROSS_ENTROPY}
        assert val is not None
        mine = torch.arange(len(val))[self.group.rank :: self.group.size]
        batches = ((val.views(rows), val.labels[rows]) for rows in mine.split(size) if len(rows))

        def answer(views: Tensor) -> Tensor:
            with self.autocast():
                return self.network(views.to(self.device))

        sums = torch.zeros(len(names), dtype=torch.float64)
        with evaluating(self.network):
            for found in measured(answer, batches):
                sums += torch.stack([found[name].double().sum() for name in names.values()]).cpu()
        return dict(zip(names, (self.group.sum(sums) / len(val)).tolist()))


def batch_rows(seed: int, count: int, first: int, size: int) -> Tensor:
    """Which of `count` images are those from `first` on in a run, int64 [size].

    Passes over all of them, each in an order of its own, follow one another without a gap.
    """
    passes = range(first // count, (first + size - 1) // count + 1)
    return torch.from_numpy(np.concatenate([epoch_order(seed, each, count) for each in passes])[first % count :][:size])


@lru_cache(maxsize=2)
def epoch_order(seed: int, number: int, count: int) -> NDArray[np.int64]:
    """The order of `count` images in a pass, given by its number in the run."""
    return np.random.default_rng((seed, number)).permutation(count)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Within the context the generator of torch's own from which dropout draws on a device begins at a seed."""
    own = torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator
    state = own.get_state()
    own.manual_seed(seed)
    try:
        yield
    finally:
        own.set_state(state)


class Supervised(GradientLearner):
    """Descends on the cross-entropy of labelled images."""

    name = "supervised"

    def __init__(self, reader: Reader, config: SupervisedConfig, callbacks: Sequence[Callback] = ()) -> None:
        if config.batch % reader.group.size:
            raise UserError(
                f"supervised.batch is {config.batch}, which {reader.group.size} workers cannot share; use a multiple"
            )
        if config.batch > len(reader.train):
            raise UserError(
                f"supervised.batch is {config.batch}, more than the {len(reader.train)} images to train on; use fewer"
            )
        self.reader, self.config = reader, config
        self.total = config.frames(len(reader.train))
        self.latest: list[Draw] = []
        """What the latest update learnt from."""
        super().__init__(reader, callbacks)

    @property
    def frames_per_update(self) -> int:
        """Images of all workers that one update takes in at most."""
        return self.config.steps * self.config.batch

    @property
    def steps_per_update(self) -> int:
        """Batches of an update."""
        return self.config.steps

    def new_optimiser(self, network: nn.Module) -> torch.optim.Optimizer:
        """SGD or Adam, as configured."""
        config, weights = self.config, network.parameters()
        if config.optimiser == ADAM:
            return torch.optim.Adam(weights, lr=config.lr, weight_decay=config.weight_decay, fused=True)
        return torch.optim.SGD(
            weights, config.lr, config.momentum, weight_decay=config.weight_decay, nesterov=config.nesterov, fused=True
        )

    def update(self, progress: float, frames: int) -> Update:
        """Learn, let the callbacks act and, where a pass or the run ends, measure the network that goes on."""
        update = super().update(progress, frames)
        reader, after, count = self.reader, frames + update.frames, len(self.reader.train)
        if reader.val is not None and (after // count > frames // count or after >= self.total):
            with reader.timers("validation"):
                measures = reader.measure(self.config.batch)
            if reader.group.leads:
                reader.note(after, 0, measures)
        return update

    def learn(self, progress: float) -> tuple[int, dict[str, float]]:
        """Take up to `steps` steps, each at the learning rate of its own place in the run."""
        config, reader = self.config, self.reader
        left = max(1, (self.total - self.frames) // config.batch)
        steps, rate = min(config.steps, left), config.lr
        sums = torch.zeros(2, device=reader.device)
        self.latest = [reader.draw_batch(self.frames + step * config.batch, config.batch) for step in range(steps)]
        self.network.train()
        with ThreadPoolExecutor(1) as thread:
            reading = thread.submit(reader.read, self.latest[0])
            for step, draw in enumerate(self.latest):
                rate = config.rate(progress + (1 - progress) * step / left, (1 - progress) / left)
                self.set_rate(rate)
                with reader.timers("images"):
                    batch = reading.result()
                if step + 1 < steps:  # the next batch is read while this one is learnt
                    reading = thread.submit(reader.read, self.latest[step + 1])
                with reader.timers("learn"):
                    sums += self._step(batch, draw.seed)
        loss, accuracy = (sums / steps).tolist()
        return steps * config.batch, {"loss": loss, "accuracy": accuracy, "learning_rate": rate}

    def _step(self, batch: Batch, seed: int) -> Tensor:
        """Take one gradient step; returns [2]: the loss and the share of right answers, of all workers."""
        config, reader, (images, labels) = self.config, self.reader, batch
        with seeded(seed, reader.device), reader.autocast():
            logits = self.network(images).float()
        right = (logits.detach().argmax(1) == labels).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing, reduction="sum") / config.batch
        for callback in self.callbacks:
            loss = loss + callback.loss(batch, logits)
        parts = torch.stack([loss.detach(), right.sum() / config.batch])
        return gradient_step(self.network, self.optimiser, loss, config.max_grad_norm, reader.group, parts)

    def loss_of(self, network: nn.Module, batch: Batch) -> Tensor:
        """The cross-entropy of a batch, a scalar."""
        return F.cross_entropy(network(batch[0]).float(), batch[1])

    def recent(self) -> Iterator[Batch]:
        """The batches of the latest update, read once more: to keep them would take much memory."""
        return map(self.reader.read, self.latest)

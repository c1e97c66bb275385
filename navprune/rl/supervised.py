"""Supervised training of classifiers: gradient descent on labelled images, by the schedules of the papers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from navprune.checks import TINY, bounded, check_fields, chosen
from navprune.errors import UserError
from navprune.images.measures import hits
from navprune.images.splits import DRAWS, Images
from navprune.models.classifiers import Classifier
from navprune.models.modes import evaluating
from navprune.rl.callbacks import Callback
from navprune.rl.learner import GradientLearner, Update, gradient_step
from navprune.rl.trainee import Trainee

SGD, ADAM = OPTIMISERS = ("sgd", "adam")
COSINE, STEPS, CONSTANT = SCHEDULES = ("cosine", "steps", "constant")


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig:
    """How a classifier learns; the defaults are those of ResNets on CIFAR (He et al., CVPR 2016)."""

    epochs: float = bounded(200.0, TINY)
    """Passes over the training images, which say how long the run is; above 0."""
    batch: int = bounded(128, 2)
    """Images in a gradient step, of all workers together; a multiple of their number, 2 or more."""
    optimiser: str = chosen(SGD, OPTIMISERS)
    """sgd or adam."""
    lr: float = bounded(0.1, TINY, 10)
    """Learning rate at the beginning; above 0."""
    momentum: float = bounded(0.9, 0, 1)
    """Of sgd; from 0 to 1."""
    nesterov: bool = False
    """Whether sgd's momentum is Nesterov's."""
    weight_decay: float = bounded(1e-4, 0, 1)
    """Times each weight, added to its gradient; 0 or more."""
    schedule: str = chosen(STEPS, SCHEDULES)
    """How the learning rate falls: cosine (to 0), steps (at `milestones`) or constant; it changes between updates."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Shares of the run at which `steps` multiply the learning rate by `decay`; from 0 to 1."""
    decay: float = bounded(0.1, TINY, 1)
    """What they multiply it by; above 0, to 1."""
    warm_up: float = bounded(0.0, 0, 1)
    """Share of the run in which the learning rate rises linearly from 0; from 0 to 1."""
    label_smoothing: float = bounded(0.0, 0, 1)
    """Share of each label that is spread over all classes (Szegedy et al., CVPR 2016); from 0 to 1."""
    max_grad_norm: float = bounded(math.inf, TINY)
    """Gradients are scaled down to this norm; above 0, .inf leaves them."""
    steps: int = bounded(20, 1)
    """Gradient steps of an update: between two looks at signals, checkpoints and schedules; 1 or more."""

    def __post_init__(self) -> None:
        check_fields("supervised", self)
        if any(not 0 <= place <= 1 for place in self.milestones):
            raise UserError(f"supervised.milestones are {self.milestones}; they are shares of the run, from 0 to 1")
        if self.nesterov and not self.momentum:
            raise UserError("supervised.nesterov needs a momentum; set supervised.momentum=0.9")

    def frames(self, images: int) -> int:
        """Images that a run sees in `epochs` passes over so many: whole batches, at least one."""
        return max(1, round(self.epochs * images / self.batch)) * self.batch

    def rate(self, progress: float) -> float:
        """The learning rate at `progress` in [0, 1] of the run."""
        if progress < self.warm_up:
            return self.lr * progress / self.warm_up
        if self.schedule == COSINE:
            done = (progress - self.warm_up) / max(1 - self.warm_up, TINY)
            return self.lr * 0.5 * (1 + math.cos(math.pi * done))
        if self.schedule == STEPS:
            return self.lr * self.decay ** sum(progress >= place for place in self.milestones)
        return self.lr


class Reader(Trainee):
    """A classifier and the images that it learns: batches in an order that the seed and the place in the run decide.

    `train` and `val` are splits of labelled images; None where nothing is held out. Every worker draws the whole of a
    batch and reads its part.
    """

    network: Classifier
    unit, score, shown = "images", "top1", ("top1",)
    longer = "a larger supervised.epochs trains longer"

    def __init__(self, data: tuple[Images, Images | None], network: Classifier, **passed: Any) -> None:
        super().__init__(network, **passed)
        self.train, self.val = data
        self.seed = self.generator.initial_seed()

    def facts(self) -> dict[str, Any]:
        """Return by what images are normalised, channel by channel in the units they are stored in, and the classes."""
        scales = {name: getattr(self.train, name).flatten().tolist() for name in ("mean", "deviation")}
        return {**scales, "classes": list(self.train.classes)}

    def batch(self, first: int, size: int) -> tuple[Tensor, Tensor]:
        """This worker's part of the batch that begins at image `first` of the run: views [B, C, H, W], labels [B].

        Passes follow one another without a gap, so that every batch is full.
        """
        count = len(self.train)
        places = range(first, first + size)
        draws = torch.rand(size, DRAWS, generator=self.generator)
        rows = torch.tensor([order(self.seed, place // count, count)[place % count] for place in places])
        mine = self.group.rows(size // self.group.size)
        views = self.train.views(rows[mine], draws[mine])
        return views.to(self.device, non_blocking=True), self.train.labels[rows[mine]].to(self.device)

    @torch.no_grad()
    def measure(self, size: int) -> dict[str, float]:
        """What the network reaches on the images that are held out: top1, top5 and loss, by batches of `size`."""
        assert self.val is not None
        sums = torch.zeros(3, dtype=torch.float64)
        with evaluating(self.network):
            for rows in torch.arange(len(self.val))[self.group.rank :: self.group.size].split(size):
                labels = self.val.labels[rows].to(self.device)
                with self.autocast():
                    logits = self.network(self.val.views(rows).to(self.device))
                found = [hit.sum().item() for hit in hits(logits, labels).values()]
                sums += torch.tensor([*found, F.cross_entropy(logits.float(), labels, reduction="sum").item()])
        top1, top5, loss = (self.group.sum(sums) / len(self.val)).tolist()
        return {"top1": top1, "top5": top5, "loss": loss}


@lru_cache(maxsize=2)
def order(seed: int, epoch: int, count: int) -> list[int]:
    """The order of `count` images in a pass."""
    return np.random.default_rng((seed, epoch)).permutation(count).tolist()


class Supervised(GradientLearner):
    """Descends on the cross-entropy of labelled images."""

    name = "supervised"

    def __init__(self, reader: Reader, config: SupervisedConfig, callbacks: Sequence[Callback] = ()) -> None:
        if config.batch % reader.group.size:
            raise UserError(
                f"supervised.batch is {config.batch}, which {reader.group.size} workers cannot share; use a multiple"
            )
        self.reader, self.config = reader, config
        self.total = config.frames(len(reader.train))
        self.latest: list[tuple[Tensor, Tensor]] = []
        """The last batches that were learnt from, as many as an update takes."""
        super().__init__(reader, callbacks)

    @property
    def classifier(self) -> Classifier:
        """The network that learns."""
        return self.reader.network

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
        """Learn from some batches, measure where a pass ends, let the callbacks act."""
        config, count = self.config, len(self.reader.train)
        rate = config.rate(progress)
        self.set_rate(rate)
        steps = min(config.steps, max(1, (self.total - frames) // config.batch))
        sums = torch.zeros(2, device=self.reader.device)
        self.latest = []
        self.network.train()
        for step in range(steps):
            with self.reader.timers("images"):
                self.latest.append(self.reader.batch(frames + step * config.batch, config.batch))
            with self.reader.timers("learn"):
                sums += self._step(self.latest[-1])
        after = frames + steps * config.batch
        if self.reader.val is not None and (after // count > frames // count or after >= self.total):
            with self.reader.timers("validation"):
                measures = self.reader.measure(config.batch)
            if self.reader.group.leads:
                self.reader.note(after, 0, measures)
        loss, accuracy = (sums / steps).tolist()
        return self.after(after - frames, after, {"loss": loss, "accuracy": accuracy, "learning_rate": rate})

    def _step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Take one gradient step; returns [2]: the loss and the share of right answers, of all workers."""
        config, (images, labels) = self.config, batch
        # Dropout draws from torch's own generator.
        seed = int(torch.randint(2**62, (), generator=self.reader.generator)) + self.reader.group.rank
        with torch.random.fork_rng(devices=[]), self.reader.autocast():
            torch.default_generator.manual_seed(seed)
            logits = self.classifier(images).float()
        share = len(labels) / config.batch
        loss = share * F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        for callback in self.callbacks:
            loss = loss + callback.loss(batch, logits)
        right = (logits.detach().argmax(1) == labels).float().sum() / config.batch
        parts = torch.stack([loss.detach(), right])
        return gradient_step(self.network, self.optimiser, loss, config.max_grad_norm, self.reader.group, parts)

    def loss_of(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The cross-entropy of a batch, a scalar."""
        return F.cross_entropy(cast(Tensor, network(batch[0])).float(), batch[1])

    def recent(self) -> Iterable[tuple[Tensor, Tensor]]:
        """The batches of the latest update."""
        return self.latest

"""What gates can be learned on, and scores that follow a loss measured on: batches, and a loss for each.

*Imitation*: the cross-entropy of the shortest-path expert's action by one linear readout of the encoder's
features and the goal. It asks which features are linearly useful for the next action, without memory: less than
what the recurrent policy will ask of the encoder.

*PPO*: its own loss on rollouts of the policy itself, as it is at the time.

*Classification*: the cross-entropy of labelled images.

*Distillation*: the difference from what a teacher answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from navprune.errors import UserError
from navprune.models.modes import evaluating
from navprune.models.policy import PointNavPolicy
from navprune.pruning.graph import reason_of
from navprune.pruning.groups import encoder_in
from navprune.rl.monitor import Timers
from navprune.rl.ppo import PPO, PPOConfig
from navprune.rl.rollouts import Actor
from navprune.tasks import GOAL

if TYPE_CHECKING:
    from navprune.tasks.engine import VectorEnv

EXPERT = "expert"
ACTIONS = 4  # stop, forward, left, right

Batch = Mapping[str, Tensor]
Answer = TypeVar("Answer")


LossFunction = Callable[[nn.Module, Any], Tensor]
"""(model, batch) -> scalar. A batch is whatever the loss reads."""

Batches = Iterable[Any] | Callable[[nn.Module], Iterable[Any]]
"""Batches, or a function of the network that is looked at that draws them."""


@dataclass(frozen=True)
class Evidence:
    """What a score may look at beside the weights.

    `generator` is what chance comes from; `batches` and `loss` are asked for by some scores alone.
    """

    generator: torch.Generator
    batches: Batches | None = None
    loss: LossFunction | None = None

    def of(self, model: nn.Module) -> Evidence:
        """The same, with batches that were drawn for this network where they are a function of it."""
        return replace(self, batches=self.batches(model)) if callable(self.batches) else self

    def drawn(self, method: str) -> Iterator[Any]:
        """The batches; raises UserError, with the method's name, where there are none."""
        batch = None
        if isinstance(self.batches, Tensor) or not isinstance(self.batches, Iterable | None):
            kind = type(self.batches).__name__
            raise UserError(f"{method!r} scores look at batches, not at one {kind}: give a list of them")
        for batch in self.batches or ():
            yield batch
        if batch is None:
            raise UserError(f"{method!r} scores need batches of the network's inputs: give at least one")


class Imitation(nn.Module):
    """Cross-entropy of the expert's action by a linear readout, which learns along with whatever uses this loss.

    Batches hold observations [B, ...] and, under "expert", int64 actions [B]. `model` is an encoder or a policy; only
    the readout's initial weights are random, from `generator`.
    """

    def __init__(self, model: nn.Module, generator: torch.Generator):
        super().__init__()
        _, encoder = encoder_in(model)
        inputs = math.prod(encoder.output_shape) + 2  # features, and the goal's distance and angle
        linear = nn.utils.skip_init(nn.Linear, inputs, ACTIONS)
        nn.init.normal_(linear.weight, std=inputs**-0.5, generator=generator)
        nn.init.zeros_(linear.bias)
        # Standardised, since the scale of random features is arbitrary.
        self.readout = nn.Sequential(nn.BatchNorm1d(inputs, affine=False), linear)
        self.to(next(encoder.parameters()).device)

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss, a scalar; raises UserError for a batch of another shape than the network's."""
        _, encoder = encoder_in(model)
        if missing := [name for name in (*encoder.spec.observations, GOAL, EXPERT) if name not in batch]:
            raise UserError(f"a batch for imitation lacks {missing[0]!r}; it holds {', '.join(batch) or 'nothing'}")
        features = outputs(encoder, batch).flatten(1)
        logits = self.readout(torch.cat([features, batch[GOAL].to(features.device)], dim=1))
        return F.cross_entropy(logits, batch[EXPERT].to(logits.device))


class PPOTask:
    """PPO's loss on rollouts that the network itself collects in `env`, by chance of `seed`.

    Hand `batches` and `loss` to `prune` or `Evidence` together: a batch is a mini-batch of the latest of `updates`
    rollouts, each gone through `config.epochs` times.
    """

    def __init__(self, env: VectorEnv, config: PPOConfig, updates: int, seed: int = 0) -> None:
        self.env, self.config, self.updates = env, config, updates
        self.generator = torch.Generator().manual_seed(seed)
        self.ppo: PPO | None = None

    def batches(self, model: nn.Module) -> Iterator[Tensor]:
        """Indices [K] of the environments of each mini-batch, acting in between; UserError unless a policy acts."""
        if not isinstance(model, PointNavPolicy):
            raise UserError(f"PPO's loss needs a whole policy, not {type(model).__name__}: prune the policy")
        device, timers = next(model.parameters()).device, Timers()
        actor = Actor(self.env, model, device=device, generator=self.generator, timers=timers)
        actor.reset()
        self.ppo = PPO(actor, self.config)
        for _ in range(self.updates):
            self.ppo.collect()
            for _ in range(self.config.epochs):
                yield from actor.minibatches(self.config.minibatches)

    def loss(self, model: Any, rows: Tensor) -> Tensor:
        """The loss of a mini-batch, a scalar."""
        assert self.ppo is not None, "draw a batch first"
        for module in model.modules():  # acting put it into evaluation, in which cuDNN cannot differentiate it
            module.training |= isinstance(module, nn.RNNBase)
        return self.ppo.loss(model, rows).total


def classification_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of (images [B, C, H, W], labels int64 [B]), the mean over the batch.

    Raises UserError for labels that do not fit the images or the classes.
    """
    logits, labels = outputs(model, batch), batch[1]
    if labels.shape != logits.shape[:1] or not (0 <= labels.min() and labels.max() < logits.shape[1]):
        count, classes = logits.shape
        raise UserError(f"a batch of {count} images needs {count} labels from 0 to {classes - 1}, one for each image")
    return F.cross_entropy(logits, labels.to(logits.device))


def distillation_loss(teacher: nn.Module) -> LossFunction:
    """The loss that compares a model's outputs with a teacher's: their mean squared difference.

    Of an encoder or a policy, the encoder's features; of a classifier, the logits (Ba & Caruana, NeurIPS 2014). It
    has no slope at the teacher itself. Raises UserError where the two differ in shape.
    """

    def loss(model: nn.Module, batch: Any) -> Tensor:
        with torch.no_grad(), evaluating(teacher):
            wanted = outputs(teacher, batch)
        found = outputs(model, batch)
        if found.shape != wanted.shape:
            shapes = f"{list(wanted.shape[1:])} and the network {list(found.shape[1:])}"
            raise UserError(f"the teacher answers {shapes} to an input: give the network that this one was cut from")
        return F.mse_loss(found, wanted.to(found))

    return loss


def run_batch(method: str, run: Callable[[nn.Module, Any], Answer], model: nn.Module, batch: Any) -> Answer:
    """What `run` makes of a model and a batch; raises UserError, with the method's name, for one that does not fit."""
    try:
        return run(model, batch)
    except (RuntimeError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        complaint = f"a batch does not fit the network ({reason_of(error)}); check the shapes it holds"
        raise UserError(f"{method}: {complaint}") from error


def loss_of(method: str, loss: LossFunction, model: nn.Module, batch: Any) -> Tensor:
    """The loss of a batch, a scalar with a slope; raises UserError as `run_batch`, or for any other value."""
    value = run_batch(method, loss, model, batch)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        found = f"a tensor of {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"{method}: the loss of a batch is {found}: give one number that depends on the network")
    return value.reshape(())


def outputs(model: nn.Module, batch: Any) -> Tensor:
    """What a model says of a batch: images, (images, labels), or observations by name, which its encoder reads.

    Raises UserError where it lacks an observation, or images have another shape than the network's input.
    """
    device = next(model.parameters()).device
    if isinstance(batch, Mapping):
        _, model = encoder_in(model)
        if missing := [name for name in model.spec.observations if name not in batch]:
            raise UserError(f"a batch lacks {missing[0]!r}, which the network sees; it holds {', '.join(batch)}")
        images = model.images({name: value.to(device) for name, value in batch.items()})
    else:
        images = (batch if isinstance(batch, Tensor) else batch[0]).to(device)
    wanted = getattr(getattr(model, "spec", None), "input", None)
    if wanted and tuple(images.shape[1:]) != tuple(wanted):
        shape = list(images.shape[1:])
        raise UserError(f"a batch holds images of {shape} and the network sees {list(wanted)}; make them alike")
    return model(images)


def collect_observations(env: VectorEnv, steps: int, rng: np.random.Generator, wander: float = 0.2) -> Batch:
    """Observations along the expert's paths, tensors [steps * N, ...], with its actions under "expert".

    With probability `wander` an environment moves or turns at random instead, so that recoveries are seen.
    """
    observations = env.reset()
    seen: list[dict[str, Tensor]] = []
    for _ in range(steps):
        expert = env.expert_actions()
        seen.append({**observations, EXPERT: expert})
        strays = torch.from_numpy(rng.random(env.num_envs) < wander)
        moves = torch.from_numpy(rng.integers(1, ACTIONS, env.num_envs))
        observations = env.step(torch.where(strays, moves, expert)).observations
    return {name: torch.cat([step[name] for step in seen]) for name in seen[0]}


def shuffled_batches(data: Batch, size: int, epochs: int, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
    """Go `epochs` times through `data` [M, ...] in random order, by batches of `size`; no short last batch.

    Raises UserError when a batch cannot be filled or holds less than two observations.
    """
    count = len(next(iter(data.values())))
    if not 2 <= size <= count:
        raise UserError(f"batches of {size} cannot be made from {count} observations: use 2 to {count}")
    for _ in range(epochs):
        for batch in torch.randperm(count, generator=generator).split(size):
            if len(batch) == size:
                yield {name: tensor[batch] for name, tensor in data.items()}


def labelled_batches(
    images: Tensor, labels: Tensor, size: int, epochs: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """`shuffled_batches` of images [M, C, H, W] and labels int64 [M], as `classification_loss` reads them."""
    for batch in shuffled_batches({"images": images, "labels": labels}, size, epochs, generator):
        yield batch["images"], batch["labels"]

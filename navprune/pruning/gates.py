"""Pruning from scratch: gates on random weights say which channels a task needs, before anything is trained.

Wang et al., Pruning from Scratch, AAAI 2020. One gate a unit, initially 1, multiplies its channels after the
norm and before the activation, inside residual blocks only. The weights stay at their random initialisation;
the gates minimise

    task loss + penalty * (mean |gate| - target)^2

by Adam, clamped to [0, 1] after each step.

The task loss here is the cross-entropy of the shortest-path expert's action. A frozen random policy head
would carry no signal, so one linear readout, from the encoder's features and the goal to the action, learns
along with the gates and is thrown away. So the gates measure which random features are linearly useful for
the next action, without memory: less than what the recurrent policy will ask of the encoder.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from navprune.errors import UserError
from navprune.models.encoders import Encoder
from navprune.pruning.groups import encoder_in, groups_of, is_inner, scaled, units
from navprune.pruning.scores import Scores
from navprune.tasks import GOAL

if TYPE_CHECKING:
    from navprune.tasks.pointnav import VectorEnv

EXPERT = "expert"
ACTIONS = 4  # stop, forward, left, right

Batch = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """How gates are learned; expansion and Adam's rate are the paper's.

    The penalty is not: the paper's 0.5 works over thousands of steps. In 192 steps of 64 observations at
    64 x 64, which a ResNet50 of base 8 makes in half a minute, it left the mean gate at 0.9, and the gates
    learned from two orders of the same observations correlated by 0.25; with 20 the mean came to 0.54 and the
    correlation to 0.67.
    """

    expansion: float = 1.25
    """Widths of the searched network relative to the dense one, to which budgets refer; at least 1.

    Trunks and stem are widened too, as in the paper, though no gate cuts them. In networks of few, coarse units
    they then eat the budget (ResNet50 of base 8 cannot go below 0.38 of the MACs): 1 leaves the gates more room.
    """
    penalty: float = 20.0
    """Weight of (mean |gate| - target)^2; at least 0."""
    target: float = 0.5
    """Mean gate to aim at, between 0 and 1."""
    learning_rate: float = 0.01
    """Adam's rate for the gates; above 0."""
    readout_learning_rate: float = 1e-3
    """Adam's rate for the linear readout; above 0."""

    def __post_init__(self) -> None:
        if not 0 < self.target < 1:
            raise UserError(f"gates.target must lie between 0 and 1, not {self.target:g}")
        if self.expansion < 1:
            raise UserError(f"gates.expansion must be at least 1, not {self.expansion:g}")
        if self.penalty < 0 or min(self.learning_rate, self.readout_learning_rate) <= 0:
            raise UserError("gates.penalty must be at least 0, and both learning rates above 0")


class LearnedGates(NamedTuple):
    """Gates of the inner groups, {group name: float [units]} in [0, 1], and the task loss of each batch."""

    gates: Scores
    losses: list[float]


def learn_gates(
    model: nn.Module, batches: Iterable[Batch], config: GateConfig, generator: torch.Generator
) -> LearnedGates:
    """Learns one gate for each unit inside the residual blocks; the weights of `model` are left as they are.

    A batch holds observations [B, ...] and, under "expert", int64 actions [B]; it makes one step of the
    gates. Nothing is random but the readout's initial weights, which come from `generator`. Raises UserError
    when there is no batch.
    """
    _, encoder = encoder_in(model)
    device = next(encoder.parameters()).device
    gates = {
        group.name: torch.ones(units(group), device=device, requires_grad=True)
        for group in groups_of(encoder)
        if is_inner(group)
    }
    learns = [parameter.requires_grad for parameter in encoder.parameters()]
    trains = encoder.training
    encoder.requires_grad_(False).eval()
    try:
        losses = _descend(encoder, gates, batches, config, generator)
    finally:
        encoder.train(trains)
        for parameter, flag in zip(encoder.parameters(), learns):
            parameter.requires_grad_(flag)
    if not losses:
        raise UserError("gates cannot be learned from no observations: give at least one batch")
    return LearnedGates({name: gate.detach().cpu() for name, gate in gates.items()}, losses)


def _descend(
    encoder: Encoder,
    gates: Scores,
    batches: Iterable[Batch],
    config: GateConfig,
    generator: torch.Generator,
) -> list[float]:
    """Moves the gates in place, one step a batch, and returns the task losses."""
    device = next(iter(gates.values())).device
    readout = _readout(encoder, generator).to(device)
    optimiser = torch.optim.Adam(
        [
            {"params": list(gates.values()), "lr": config.learning_rate},
            {"params": readout.parameters(), "lr": config.readout_learning_rate},
        ]
    )
    losses = []
    for batch in batches:
        here = {name: tensor.to(device) for name, tensor in batch.items()}
        with scaled(encoder, gates):
            features = encoder(encoder.images(here)).flatten(1)
        logits = readout(torch.cat([features, here[GOAL]], dim=1))
        loss = F.cross_entropy(logits, here[EXPERT])
        excess = torch.cat(list(gates.values())).abs().mean() - config.target
        optimiser.zero_grad()
        (loss + config.penalty * excess**2).backward()
        optimiser.step()
        with torch.no_grad():
            for gate in gates.values():
                gate.clamp_(0, 1)
        losses.append(loss.item())
    return losses


def _readout(encoder: Encoder, generator: torch.Generator) -> nn.Module:
    """Features and goal -> action logits; standardised, since the scale of random features is arbitrary."""
    inputs = math.prod(encoder.output_shape) + 2  # features, and the goal's distance and angle
    linear = nn.utils.skip_init(nn.Linear, inputs, ACTIONS)
    nn.init.normal_(linear.weight, std=inputs**-0.5, generator=generator)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm1d(inputs, affine=False), linear)


def collect_observations(
    env: VectorEnv, steps: int, rng: np.random.Generator, wander: float = 0.2
) -> dict[str, Tensor]:
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
    """Goes `epochs` times through `data` [M, ...] in random order, by batches of `size`; no short last batch.

    Raises UserError when a batch cannot be filled or holds less than two observations.
    """
    count = len(data[EXPERT])
    if not 2 <= size <= count:
        raise UserError(f"batches of {size} cannot be made from {count} observations: use 2 to {count}")
    for _ in range(epochs):
        for batch in torch.randperm(count, generator=generator).split(size):
            if len(batch) == size:
                yield {name: tensor[batch] for name, tensor in data.items()}

"""Pruning from scratch: gates on random weights say which channels a task needs, before anything is trained.

Wang et al., Pruning from Scratch, AAAI 2020. One gate a unit, initially 1, multiplies its channels after the norm
and before the activation, inside residual blocks only. The weights stay at their random initialisation; the gates
minimise

    task loss + penalty * (mean |gate| - target)^2

by Adam, clamped to [0, 1] after each step.

The task loss here is the cross-entropy of the shortest-path expert's action. A frozen random policy head would
carry no signal, so one linear readout, from the encoder's features and the goal to the action, learns along with
the gates and is thrown away. So the gates measure which random features are linearly useful for the next action,
without memory: less than what the recurrent policy will ask of the encoder.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from navprune.errors import UserError
from navprune.models.encoders import Encoder
from navprune.pruning.groups import channel_groups, encoder_in, is_inner, scaled, units
from navprune.pruning.scores import Scores
from navprune.tasks.pointnav import GOAL, VectorEnv

EXPERT = "expert"
Batch = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """How gates are learned; the defaults are the paper's for CIFAR, but for the epochs."""

    penalty: float = 0.5
    """Weight of (mean |gate| - target)^2."""
    target: float = 0.5
    """Mean gate to aim at, between 0 and 1."""
    learning_rate: float = 0.01
    """Adam's rate for the gates."""
    readout_learning_rate: float = 1e-3
    """Adam's rate for the linear readout."""
    expansion: float = 1.25
    """Widths of the searched network relative to the dense one; the budget refers to the dense one."""

    def __post_init__(self) -> None:
        if not 0 < self.target < 1:
            raise UserError(f"gates.target must lie between 0 and 1, not {self.target}")


class LearnedGates(NamedTuple):
    """Gates of the inner groups, {group name: float [units]} in [0, 1], and the task loss of each batch."""

    gates: Scores
    losses: list[float]


def learn_gates(
    model: nn.Module, batches: Iterable[Batch], config: GateConfig, generator: torch.Generator
) -> LearnedGates:
    """Learns one gate for each unit inside the residual blocks; the weights of `model` are left as they are.

    A batch holds observations [B, ...] and, under "expert", int64 actions [B]; each is used once, in order.
    The readout's initial weights come from `generator`, nothing else is random.
    """
    _, encoder = encoder_in(model)
    device = next(encoder.parameters()).device
    gates = {
        group.name: torch.ones(units(group), device=device, requires_grad=True)
        for group in channel_groups(encoder)
        if is_inner(group)
    }
    learning = {id(p): p.requires_grad for p in encoder.parameters()}
    was_training = encoder.training
    encoder.requires_grad_(False).eval()
    try:
        return _learn(encoder, gates, batches, config, generator)
    finally:
        encoder.train(was_training)
        for parameter in encoder.parameters():
            parameter.requires_grad_(learning[id(parameter)])


def _learn(
    encoder: Encoder, gates: Scores, batches: Iterable[Batch], config: GateConfig, generator: torch.Generator
) -> LearnedGates:
    device = next(iter(gates.values())).device
    readout: nn.Linear | None = None
    losses: list[float] = []
    for batch in batches:
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        with scaled(encoder, gates):
            features = torch.cat(
                [encoder(encoder.images(batch)).flatten(1), goal_features(batch[GOAL])], dim=1
            )
        if readout is None:
            readout = _readout(features.shape[1], generator).to(device)
            optimiser = torch.optim.Adam(
                [
                    {"params": list(gates.values()), "lr": config.learning_rate},
                    {"params": readout.parameters(), "lr": config.readout_learning_rate},
                ]
            )
        loss = functional.cross_entropy(readout(features), batch[EXPERT])
        mean = torch.cat(list(gates.values())).abs().mean()
        optimiser.zero_grad()
        (loss + config.penalty * (mean - config.target) ** 2).backward()
        optimiser.step()
        with torch.no_grad():
            for gate in gates.values():
                gate.clamp_(0, 1)
        losses.append(loss.item())
    if not losses:
        raise UserError("gates cannot be learned from no observations: collect at least one batch")
    return LearnedGates({name: gate.detach().cpu() for name, gate in gates.items()}, losses)


def goal_features(goal: Tensor) -> Tensor:
    """Polar goal vectors [B, 2], metres and radians -> [rho, cos(-phi), sin(-phi)] [B, 3], as the policy does."""
    rho, phi = goal.unbind(-1)
    return torch.stack([rho, torch.cos(-phi), torch.sin(-phi)], dim=-1)


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
        stray = torch.from_numpy(rng.random(env.num_envs) < wander)
        moves = torch.from_numpy(rng.integers(1, env.action_space.n, env.num_envs))
        observations = env.step(torch.where(stray, moves, expert)).observations
    return {name: torch.cat([step[name] for step in seen]) for name in seen[0]}


def shuffled_batches(
    data: Batch, size: int, epochs: int, generator: torch.Generator
) -> Iterator[dict[str, Tensor]]:
    """Goes `epochs` times through `data` [B, ...] in random order, in batches of `size`; drops a short last one.

    Raises UserError when there is not enough for one batch.
    """
    count = len(next(iter(data.values())))
    if count < size:
        raise UserError(
            f"{count} observations are fewer than one batch of {size}: collect more or use smaller batches"
        )
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - size + 1, size):
            yield {name: tensor[order[start : start + size]] for name, tensor in data.items()}


def _readout(features: int, generator: torch.Generator, actions: int = 4) -> nn.Linear:
    readout = nn.Linear(features, actions)
    with torch.no_grad():
        readout.weight.normal_(0, features**-0.5, generator=generator)
        readout.bias.zero_()
    return readout

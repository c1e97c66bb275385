"""Pruning from scratch: gates on random weights say which channels a task needs, before anything is trained.

Wang et al., Pruning from Scratch, AAAI 2020. One gate a unit, initially 1, multiplies its channels after the
norm and before the activation, inside residual blocks only; in plain networks, behind every layer. The weights
stay at their random initialisation; the gates minimise

    task loss + penalty * (mean |gate| - target)^2

by Adam, clamped to [0, 1] after each step. What the task's loss may be is in `losses`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from navprune.checks import TINY, bounded, check_fields
from navprune.errors import UserError
from navprune.models.encoders import Encoder, RunningMeanAndVar
from navprune.models.modes import evaluating
from navprune.pruning.graph import Example
from navprune.pruning.groups import groups_of, is_inner, scaled, units
from navprune.pruning.scores import LossFunction, Scores, loss_of

STABLE_OVER = 20  # steps between two looks at the ranking, which decide on an early stop
NEAR_TARGET = 0.25  # the mean gate must have come so near to its target before an early stop


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """How gates are learned; expansion and Adam's rate are the paper's.

    The penalty is not: the paper's 0.5 works over thousands of steps, and here a hundred or two must do.
    """

    expansion: float = bounded(1.25, 1, 8)  # beyond, a typing error is likelier than a wish
    """Widths of the searched network relative to the dense one, to which budgets refer; from 1 to 8.

    Trunks and stem are widened too, as in the paper, though no gate cuts them. In networks of few, coarse units
    they then eat the budget (ResNet50 of base 8 cannot go below 0.38 of the MACs): 1 leaves the gates more room.
    """
    penalty: float = bounded(20.0, 0)
    """Weight of (mean |gate| - target)^2; at least 0."""
    target: float = bounded(0.5, TINY, 1 - TINY)
    """Mean gate to aim at, between 0 and 1."""
    learning_rate: float = bounded(0.01, TINY)
    """Adam's rate for the gates; above 0."""
    readout_learning_rate: float = bounded(1e-3, TINY)
    """Adam's rate for what learns along with them behind the encoder; above 0."""
    stable: float = bounded(0.95, TINY, 1)
    """Stop once the gates' ranking correlates by this much (Spearman) with that of 20 steps before, and their mean is
    within 0.25 of the target; above 0, and 1 goes through all batches. More steps do not make it more certain.
    """

    def __post_init__(self) -> None:
        check_fields("gates", self)


PAPER_RECIPES: dict[str, dict[str, Any]] = {
    "cifar": {"config": GateConfig(penalty=0.5, stable=1.0), "epochs": 10, "batch_size": 128},
    "imagenet": {"config": GateConfig(penalty=0.05, stable=1.0), "epochs": 1, "batch_size": 100},
}
"""The paper's settings for classification, with the passes over the data and the size of its batches."""


class LearnedGates(NamedTuple):
    """Gates of the inner groups, {group name: float [units]} in [0, 1], and the task loss of each step."""

    gates: Scores
    losses: list[float]


def learn_gates(
    model: nn.Module,
    batches: Iterable[Any],
    loss: LossFunction,
    config: GateConfig,
    *,
    example: Example | None = None,
    blocks: bool = False,
) -> LearnedGates:
    """Learn one gate for each unit inside the residual blocks; `model` is left as it was.

    Each batch makes one step, on `loss(model, batch)`, a scalar. The weights stand still, of a policy those of its
    encoder: what lies behind it learns along and is put back, since untrained heads carry no signal; so do the
    parameters of a loss that is a module. Norms work as in training. `example` and `blocks` are those of `groups_of`;
    with `blocks` whole residual blocks have gates, too. Batches are drawn while the gates are in place. Raises
    UserError when there is no batch, or one does not fit the network.
    """
    groups = [group for group in groups_of(model, example, blocks=blocks) if is_inner(group) or group.block]
    if not groups:
        raise UserError(f"{type(model).__name__} has no channels inside residual blocks: gates have nothing to cut")
    device = next(model.parameters()).device
    gates = {group.name: torch.ones(units(group), device=device, requires_grad=True) for group in groups}
    inside = {id(value) for part in model.modules() if isinstance(part, Encoder) for value in part.parameters()}
    behind = [parameter for parameter in model.parameters() if inside and id(parameter) not in inside]
    along = [*behind, *(loss.parameters() if isinstance(loss, nn.Module) else ())]
    with _put_back(model, along), evaluating(model), scaled(model, gates, example):
        losses = _descend(model, gates, along, batches, loss, config)
    if not losses:
        raise UserError("gates cannot be learned from no observations: give at least one batch")
    return LearnedGates({name: gate.detach().double().cpu() for name, gate in gates.items()}, losses)


def _descend(
    model: nn.Module,
    gates: Scores,
    along: list[nn.Parameter],
    batches: Iterable[Any],
    loss: LossFunction,
    config: GateConfig,
) -> list[float]:
    """Move the gates in place, one step a batch, and return the task losses."""
    settings = [{"params": list(gates.values()), "lr": config.learning_rate}]
    if along:
        settings.append({"params": along, "lr": config.readout_learning_rate})
    optimiser = torch.optim.Adam(settings)
    losses: list[float] = []
    before = None
    for batch in batches:
        for module in model.modules():  # each time, since whatever draws batches may set modes; no dropout
            module.training = isinstance(module, nn.modules.batchnorm._BatchNorm | nn.RNNBase | RunningMeanAndVar)
        value = loss_of("gates", loss, model, batch)
        if not torch.isfinite(value):
            raise UserError(f"gates: the loss of a batch is {value.item():g}: look for NaN in the observations")
        excess = torch.cat(list(gates.values())).abs().mean() - config.target
        optimiser.zero_grad()
        (value + config.penalty * excess**2).backward()
        optimiser.step()
        with torch.no_grad():
            for gate in gates.values():
                gate.clamp_(0, 1)
        losses.append(value.item())
        if config.stable < 1 and len(losses) % STABLE_OVER == 0:
            now = torch.cat(list(gates.values())).detach().clone()
            near = abs(now.mean().item() - config.target) <= NEAR_TARGET
            if before is not None and near and rank_correlation(before, now) >= config.stable:
                break
            before = now
    return losses


@contextmanager
def _put_back(model: nn.Module, along: list[nn.Parameter]) -> Iterator[None]:
    """Within the context only `along` learns; behind it the model has its values and flags of before."""
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    for parameter in along:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        model.load_state_dict(state)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for parameter in along:
            parameter.grad = None


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's correlation of two vectors [n], from -1 to 1; ties have their mean rank, and constants give 0."""
    ranks = torch.stack([_mean_ranks(values.detach().double().cpu()) for values in (first, second)])
    return torch.corrcoef(ranks)[0, 1].nan_to_num().item()


def _mean_ranks(values: Tensor) -> Tensor:
    _, places, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2)[places]

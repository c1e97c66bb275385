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
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from navprune.errors import UserError
from navprune.models.build import Spec, build
from navprune.models.encoders import ChannelGroup, Encoder, RunningMeanAndVar
from navprune.models.modes import evaluating
from navprune.models.spec import EncoderSpec
from navprune.models.widths import widths, with_widths
from navprune.pruning.config import IMITATION, Budget, GateConfig
from navprune.pruning.groups import is_inner, units
from navprune.pruning.losses import Evidence, Imitation, LossFunction, loss_of
from navprune.pruning.methods import GATES
from navprune.pruning.methods.base import (
    BATCHES,
    LOSS,
    PASSES,
    Context,
    Method,
    Outcome,
    Scores,
    check_reach,
    chosen_units,
)
from navprune.pruning.slim import encoder_of, with_encoder
from navprune.pruning.structure import Structure, structure_of

STABLE_OVER = 20  # steps between two looks at the ranking, which decide on an early stop
NEAR_TARGET = 0.25  # the mean gate must have come so near to its target before an early stop


class LearnedGates(NamedTuple):
    """Gates of the inner groups, {group name: float [units]} in [0, 1], and the task loss of each step."""

    gates: Scores
    losses: list[float]


def run(structure: Structure, budget: Budget, context: Context) -> Outcome:
    """Learn gates on random weights and keep the units whose gates stayed open.

    What has a spec is searched `expansion` times as wide, with random weights from the seed, whatever its own are;
    anything else as it is. Without a loss, agents imitate the expert.
    """
    config, wide = context.config.gates, structure
    if structure.spec is not None:
        model = build(expanded(structure.spec, config.expansion), context.seed).to(context.device)
        wide = structure_of(model, blocks=structure.with_blocks)
    check_reach(wide, gated(wide), budget, context, structure)
    evidence = context.evidence.of(wide.model)
    if evidence.batches is None:
        raise UserError("gates are learned on observations: give batches with expert actions, or others and their loss")
    learned = learn_gates(wide, cast(Iterable[Any], evidence.batches), _loss(wide, evidence), config)
    keep = chosen_units(wide, learned.gates, budget, context, structure)
    return Outcome(wide, keep, learned.gates, learned.losses)


def _loss(structure: Structure, evidence: Evidence) -> LossFunction:
    if evidence.loss is not None:
        return evidence.loss
    if not any(isinstance(module, Encoder) for module in structure.model.modules()):
        raise UserError("gates follow a loss: give one, such as classification_loss")
    return Imitation(structure.model, evidence.generator)


def expanded(spec: Spec, factor: float) -> Spec:
    """The same network with every free width multiplied by `factor`, rounded to whole units."""
    own = encoder_of(spec)
    units = own.unit_channels if isinstance(own, EncoderSpec) else dict.fromkeys(own.widths, 1)
    wider = {name: max(1, round(factor * count / units[name])) * units[name] for name, count in widths(own).items()}
    return with_encoder(spec, with_widths(own, wider))


def gated(structure: Structure) -> list[ChannelGroup]:
    """The groups that have gates: those inside residual blocks and, where blocks are offered, the blocks."""
    return [group for group in structure.groups if is_inner(group) or group.block]


def learn_gates(structure: Structure, batches: Iterable[Any], loss: LossFunction, config: GateConfig) -> LearnedGates:
    """Learn one gate for each unit inside the residual blocks; the model is left as it was.

    Each batch makes one step, on `loss(model, batch)`, a scalar. The weights stand still, of a policy those of its
    encoder: what lies behind it learns along and is put back, since untrained heads carry no signal; so do the
    parameters of a loss that is a module. Norms work as in training. Where the structure offers blocks, whole
    residual blocks have gates, too. Batches are drawn while the gates are in place. Raises UserError when there is no
    batch, or one does not fit the network.
    """
    model, groups = structure.model, gated(structure)
    if not groups:
        raise UserError(f"{type(model).__name__} has no channels inside residual blocks: gates have nothing to cut")
    device = next(model.parameters()).device
    gates = {group.name: torch.ones(units(group), device=device, requires_grad=True) for group in groups}
    inside = {id(value) for part in model.modules() if isinstance(part, Encoder) for value in part.parameters()}
    behind = [parameter for parameter in model.parameters() if inside and id(parameter) not in inside]
    along = [*behind, *(loss.parameters() if isinstance(loss, nn.Module) else ())]
    with _put_back(model, along), evaluating(model), structure.scaled(gates):
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


METHODS = {
    GATES: Method(name=GATES, run=run, needs=frozenset({BATCHES, LOSS, PASSES}), loss=IMITATION, options="gates")
}

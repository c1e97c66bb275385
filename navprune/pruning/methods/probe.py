"""Probe-wise pruning: the widths and blocks that keep the most importance within milliseconds that were measured.

The layers' times come from `costs.probing`, on the device, runtime, threads and batch size of the clock; the choice
from `allocation`, exactly. A network that was chosen is then measured whole, beside the dense one; where prediction and
clock differ, the prediction is scaled and the choice made anew.

**Importance.** Scores rank the units of a width. Near its minimum a loss grows with the square of what is taken away,
as in Optimal Brain Damage (LeCun et al., NeurIPS 1989): a width that keeps the share k of its scores' sum keeps

    W (1 - (1 - k)^2)

of the W that it is worth, so that the more of it is gone, the more the next unit counts. W is the sum of its scores,
once for each branch that writes it (all blocks of a stage write its trunk), since what depends on a width is so much
more. Scores that are changes of a loss or learned together hold that already. A block that goes loses all that the
widths inside it are worth, and its own score.

**Budgets.** A share of multiply-accumulates or of parameters is asked of the milliseconds as well, unless latency is
budgeted: what is saved in operations is to be saved in time. So that several measures bind, their loads are added up
with weights, which multiplicative updates bring to where all loads are alike.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from navprune.costs.counting import LayerCost
from navprune.costs.probing import LayerTimes, Network, Timer, check_quiet, probe
from navprune.errors import UserError
from navprune.files import user_cache
from navprune.pruning.allocation import Factor, Problem, allocate
from navprune.pruning.config import LATENCY, LATENCY_MS, Budget
from navprune.pruning.groups import units
from navprune.pruning.methods import GATES, PROBE
from navprune.pruning.methods.base import CLOCK, Context, Method, Outcome, Scores
from navprune.pruning.methods.gates import gate_scores
from navprune.pruning.methods.scores import SCORES
from navprune.pruning.search import BudgetUnmet, largest, sizes
from navprune.pruning.structure import Structure
from navprune.pruning.timing import network_of

LEVELS = 16  # numbers of channels of a width that are told apart, at most
UPDATES = 16  # of the weights with which several measures are added up, at most
PACE = 12.0  # of these updates
CLOSE = 0.99  # load of every measure at which they end
TRIALS = 6  # networks that are measured whole, at most
AIM = 0.98  # of a budget of latency: clocks do not repeat to one per cent
NEAR = 0.04  # how far below it a measured network may end
ABSOLUTE = ("taylor", GATES)
"""Importance that is a change of a loss, or was learned for all units together."""

_BLOCK = re.compile(r".*layer\d+\.\d+(?=\.)")

Array = NDArray[np.float64]
Widths = dict[str, int]


class Candidate(NamedTuple):
    """A choice of widths, the importance that it keeps, and its share of the dense time, predicted and measured."""

    widths: Widths
    kept: float
    predicted: float
    measured: float


def run(structure: Structure, budget: Budget, context: Context) -> Outcome:
    """Probe, choose, measure; see the module."""
    timer, config = context.clock, context.config.probe
    if not isinstance(timer, Timer):
        raise UserError("probe measures milliseconds: give a clock, as costs.probing.Timer")
    structure = replace(structure, with_blocks=True)
    scores = _scores(structure, context)
    network = network_of(structure, timer.batch, _sizes(structure, scores, context))
    cache = user_cache() if config.cache else None
    times = probe(network, timer, config.networks, config.seconds, cache and cache / "probes")
    search = _Search(structure, network, times, importances(structure, scores, config.importance))
    found, tried = _refined(search, timer, _limits(budget, times))
    keep = {
        group.name: largest(scores.get(group.name, torch.zeros(units(group))), found.widths[group.name] // group.unit)
        for group in structure.groups
    }
    latency = {LATENCY: found.measured, LATENCY_MS: found.measured * times.milliseconds}
    reached = {name: share for name, share in latency.items() if name in budget or name == LATENCY}
    return Outcome(structure, keep, scores, reached=reached, report=_report(search, found, tried, timer))


def _scores(structure: Structure, context: Context) -> Scores:
    name = context.config.probe.importance
    return gate_scores(structure, context) if name == GATES else SCORES[name](structure, context.evidence)


def _sizes(structure: Structure, scores: Scores, context: Context) -> dict[str, list[int]]:
    """Channels that each width with scores may have."""
    config, least = context.config, context.config.probe.least
    asked = replace(config, minimum_share=max(config.minimum_share, least))
    cut = (group for group in structure.channels if group.name in scores)
    return {group.name: [n * group.unit for n in _thinned(sizes(group, asked, group.channels))] for group in cut}


def _thinned(counts: Sequence[int]) -> list[int]:
    """At most LEVELS of them, evenly."""
    places = np.linspace(0, len(counts) - 1, min(LEVELS, len(counts))).round().astype(int)
    return [counts[place] for place in places]


def importances(structure: Structure, scores: Scores, importance: str) -> dict[str, Array]:
    """What each width is worth with so many of its best units, {group name: [units + 1]}; of a block at the end."""
    gains = {}
    for group in structure.groups:
        if group.name not in scores:
            continue
        score = scores[group.name].clamp(min=0).sort(descending=True).values.double().numpy()
        total = max(float(score.sum()), np.finfo(float).tiny)
        kept = np.concatenate([[0.0], np.cumsum(score)]) / total
        branches = 1 if importance in ABSOLUTE or group.block else max(1, len(group.norms or group.producers))
        gains[group.name] = branches * total * (1 - (1 - kept) ** 2)
    return gains


class _Search:
    """Choices for one network under limits on time, multiply-accumulates and parameters."""

    def __init__(self, structure: Structure, network: Network, times: LayerTimes, gains: dict[str, Array]) -> None:
        self.structure, self.network, self.times, self.gains = structure, network, times, gains
        self.dense = times.share(network.channels)
        """What the dense network is predicted to take; 1 were the prediction perfect."""
        self.scale = 1.0
        """Measured over predicted time, near the last choice."""
        self.inside = {block: [n for n in network.channels if n.startswith(f"{block}.")] for block in network.blocks}
        unit = {group.name: group.unit for group in structure.channels}
        self.levels = {
            name: gains[name][[count // unit[name] for count in counts]] if name in gains else np.zeros(1)
            for name, counts in network.sizes.items()
        }
        counted = structure.layers if structure.table1 is None else structure.table1
        whole = structure.cost({})
        self.costs: dict[str, list[Factor]] = {
            LATENCY: self._factors(network.layers, times.layer, self.dense),
            "macs": self._factors(counted, _macs, whole["macs"]),
            "parameters": self._factors(counted, _parameters, whole["parameters"]),
        }
        self.total = sum(float(gain[-1]) for name, gain in gains.items())

    def _factors(self, layers: Sequence[LayerCost], cost: Callable[..., Any], whole: float) -> list[Factor]:
        found: dict[tuple[tuple[str, ...], str | None], Any] = defaultdict(float)
        for layer in layers:
            names = tuple(dict.fromkeys(name for name in (layer.source, layer.target) if name))
            counts = [np.asarray(self.network.sizes[name] if name else 1.0) for name in (layer.source, layer.target)]
            if len(names) == 2:
                counts = [counts[0][:, None], counts[1][None, :]]
            shape = tuple(len(self.network.sizes[name]) for name in names)
            found[names, self._block(layer)] += np.broadcast_to(cost(layer, *counts) / whole, shape)
        return [Factor(names, cost, block) for (names, block), cost in found.items()]

    def _block(self, layer: LayerCost) -> str | None:
        prefix, module = layer.module, self.network.blocks
        return next((block for block, place in module.items() if f"{place}." in f"{prefix}."), None)

    def predicted(self, widths: Widths) -> float:
        """The share of the dense network's time."""
        return self.scale * self.times.share(widths) / self.dense

    def loads(self, widths: Widths, limits: Mapping[str, float]) -> dict[str, float]:
        """Each measure over its limit."""
        shares = {**self.structure.shares(widths), LATENCY: self.predicted(widths)}
        return {name: shares[name] / limit for name, limit in limits.items()}

    def kept(self, widths: Widths) -> float:
        """The share of all importance that is left."""
        gone = {name for block, inside in self.inside.items() if not widths[block] for name in inside}
        unit = {group.name: group.unit for group in self.structure.groups}
        left = (gain[widths[name] // unit[name]] for name, gain in self.gains.items() if name not in gone)
        return float(sum(left)) / self.total

    def best(self, limits: Mapping[str, float]) -> Widths:
        """The widths of most importance within the limits; raises BudgetUnmet where none were found."""
        weights, margin = {name: 1 / len(limits) for name in limits}, 1.0
        found: list[tuple[float, Widths]] = []
        loads: dict[str, float] = {}
        for _ in range(UPDATES):
            widths = self._allocated(limits, {name: margin * weight for name, weight in weights.items()})
            loads = self.loads(widths, limits)
            if max(loads.values()) <= 1:
                found.append((self.kept(widths), widths))
                if len(limits) == 1 or min(loads.values()) > CLOSE:
                    break
            # What was rounded to bins may add up to a little more than there is room for.
            margin *= max(1.0, sum(weights[name] * load for name, load in loads.items()))
            raised = {name: weight * float(np.exp(PACE * (loads[name] - 1))) for name, weight in weights.items()}
            weights = {name: weight / sum(raised.values()) for name, weight in raised.items()}
        if not found:
            said = ", ".join(f"{name} {load * limits[name]:.3g}" for name, load in loads.items())
            raise BudgetUnmet(f"probe finds no widths within the budget: nearest found is {said}; ask for more")
        return self._filled(max(found, key=lambda each: each[0])[1], limits)

    def _allocated(self, limits: Mapping[str, float], weights: Mapping[str, float]) -> Widths:
        added: dict[tuple[tuple[str, ...], str | None], Any] = defaultdict(float)
        for name, limit in limits.items():
            factor = weights[name] / limit * (self.scale if name == LATENCY else 1.0)
            for each in self.costs[name]:
                added[each.widths, each.block] += factor * each.cost
        room = 1.0
        if LATENCY in limits:
            room -= weights[LATENCY] / limits[LATENCY] * self.scale * self.times.terms[("call",)] / self.dense
        own = {block: float(self.gains[block][-1]) for block in self.inside if block in self.gains}
        factors = [Factor(names, cost, block) for (names, block), cost in added.items()]
        problem = Problem(self.levels, factors, self.inside, own)
        choice = allocate(problem, max(room, 1e-9))
        widths = {name: counts[choice[name]] for name, counts in self.network.sizes.items()}
        return widths | {block: choice[block] for block in self.inside}

    def _filled(self, widths: Widths, limits: Mapping[str, float]) -> Widths:
        """The room that is left filled with the levels that add the most importance for their load."""
        widths, full = (
            dict(widths),
            {name for block, names in self.inside.items() if not widths[block] for name in names},
        )
        while True:
            before, load = self.kept(widths), max(self.loads(widths, limits).values())
            options = []
            for name in self.network.sizes.keys() - full:
                wider = [count for count in self.network.sizes[name] if count > widths[name]]
                trial = {**widths, name: wider[0]} if wider else None
                if trial is None or (more := max(self.loads(trial, limits).values())) > 1:
                    full.add(name)
                else:
                    options.append(((self.kept(trial) - before) / max(more - load, 1e-9), name, trial))
            if not options:
                return widths
            widths = max(options, key=lambda option: option[:2])[2]


def _macs(layer: LayerCost, inputs: Any, outputs: Any) -> Any:
    return layer.positions * layer.taps * layer.inputs * inputs * layer.outputs * outputs


def _parameters(layer: LayerCost, inputs: Any, outputs: Any) -> Any:
    return (layer.taps * layer.inputs * inputs + layer.vectors) * layer.outputs * outputs


def _limits(budget: Budget, times: LayerTimes) -> dict[str, float]:
    """Shares by measure; that of latency is always there."""
    limits = {name: share for name, share in budget.items() if name != LATENCY_MS}
    if LATENCY_MS in budget:
        limits[LATENCY] = budget[LATENCY_MS] / times.milliseconds
        if limits[LATENCY] > 1:
            dense, asked = f"{times.milliseconds:.2f} ms", f"{budget[LATENCY_MS]:g} ms"
            raise UserError(f"the dense network takes {dense}, which is within {asked} already; ask for less")
    return {LATENCY: min(limits.values()), **limits}


def _refined(search: _Search, timer: Timer, limits: Mapping[str, float]) -> tuple[Candidate, list[Candidate]]:
    """The best network whose measured time is within its budget and near it, and all that were measured."""
    aimed = {**limits, LATENCY: AIM * limits[LATENCY]}
    network = search.network
    reference = timer.prepared(network.build(network.channels), network.example)
    tried: list[Candidate] = []
    for _ in range(TRIALS):
        widths = search.best(aimed)
        said = search.predicted(widths)
        found = timer.ratio(timer.prepared(network.build(widths), network.example), reference).value
        tried.append(Candidate(widths, search.kept(widths), said, found))
        search.scale *= found / said
        if (1 - NEAR) * limits[LATENCY] <= found <= limits[LATENCY]:
            break
    fitting = [each for each in tried if each.measured <= limits[LATENCY]]
    best = max(fitting, key=lambda each: each.kept) if fitting else min(tried, key=lambda each: each.measured)
    again = timer.prepared(network.build(network.channels), network.example)
    measured = timer.ratio(timer.prepared(network.build(best.widths), network.example), again).value
    check_quiet(measured, best.measured)
    return best._replace(measured=measured, predicted=search.predicted(best.widths)), tried


def _report(search: _Search, found: Candidate, tried: Sequence[Candidate], timer: Timer) -> dict[str, Any]:
    """What `pruning.json` says of a probe: milliseconds predicted and measured, and of each block at any width."""
    times, network = search.times, search.network
    return {
        **timer.place,
        "dense_ms": times.milliseconds,
        "predicted_ms": found.predicted * times.milliseconds,
        "measured_ms": found.measured * times.milliseconds,
        "error": times.error,
        "importance_kept": found.kept,
        "candidates": [{"kept": e.kept, "predicted": e.predicted, "measured": e.measured} for e in tried],
        "block_ms": {place: _curve(search, place) for place in _places(network)},
        "chosen_block_ms": {
            place: times.milliseconds * _part(search, place, found.widths) for place in _places(network)
        },
    }


def _places(network: Network) -> list[str]:
    """Residual blocks and, outside of them, single layers, by the names of their modules."""
    found = (_BLOCK.match(layer.module) for layer in network.layers if layer.module)
    return list(dict.fromkeys(match[0] if match else layer.module for match, layer in zip(found, network.layers)))


def _curve(search: _Search, place: str) -> list[list[float]]:
    """[share of all widths, milliseconds] of a place."""
    sizes = search.network.sizes
    rows = []
    for share in np.linspace(0.25, 1, 7):
        widths = {name: min(counts, key=lambda c: abs(c - share * counts[-1])) for name, counts in sizes.items()}
        rows.append([float(share), search.times.milliseconds * _part(search, place, widths)])
    return rows


def _part(search: _Search, place: str, widths: Widths) -> float:
    return search.times.part(place, widths) / search.dense


METHODS = {PROBE: Method(name=PROBE, run=run, needs=frozenset({CLOCK}), options=PROBE)}

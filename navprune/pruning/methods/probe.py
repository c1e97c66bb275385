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

**Budgets.** Where latency is not budgeted, a share of multiply-accumulates is asked to be saved in time, too: at least
`EFFICIENCY` of what is saved in operations is to be saved in milliseconds. One measure is met by the allocation itself;
others are brought in by Lagrange multipliers, each bisected for the least that keeps its limit.
"""

from __future__ import annotations

import math
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
EFFICIENCY = 0.95  # share of the saving in operations that is to be saved in time
STEPS = 10  # towards a multiplier, doubled and then halved
TRIALS = 7  # networks that are measured whole, at most
FRESH = 3  # times that the one taken is made ready and measured anew: where its memory lies makes a difference
AIM = 0.98  # of a limit of time: clocks do not repeat to one per cent
MARGINS = (1.0, 0.985, 0.97, 0.955)  # costs are rounded to bins, which a search for the best turns to its advantage
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
    cache = user_cache()
    times = probe(network, timer, config.networks, config.seconds, cache and cache / "probes", fresh=config.fresh)
    gains = importances(structure, scores, config.importance)
    search = _Search(structure, network, times, gains, _limits(budget, times))
    found, tried = _refined(search, timer)
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


def importance_kept(structure: Structure, gains: Mapping[str, Array], widths: Widths) -> float:
    """The share of the `importances` of a structure that is left at these widths, which name blocks that may be gone.

    Of a width that is wider than in the structure, all that it has there.
    """
    gone = tuple(f"{group.name}." for group in structure.blocks if widths.get(group.name, 1) == 0)
    left = 0.0
    for group in structure.groups:
        if group.name in gains and not group.name.startswith(gone):
            gain = gains[group.name]
            left += float(gain[min(widths.get(group.name, group.channels) // group.unit, len(gain) - 1)])
    return left / sum(float(gain[-1]) for gain in gains.values())


class _Search:
    """Choices for one network under limits on time, multiply-accumulates and parameters."""

    def __init__(
        self,
        structure: Structure,
        network: Network,
        times: LayerTimes,
        gains: dict[str, Array],
        limits: dict[str, float],
    ) -> None:
        self.structure, self.network, self.times, self.gains, self.limits = structure, network, times, gains, limits
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

    def excess(self, widths: Widths) -> dict[str, float]:
        """By how much each measure is over its limit, as a share of the limit; 0 or less where it is within."""
        shares = {**self.structure.shares(widths), LATENCY: self.predicted(widths)}
        limits = self.limits | ({LATENCY: self.room(widths)} if self.timed else {})
        return {name: shares[name] / limit - 1 for name, limit in limits.items()}

    @property
    def timed(self) -> bool:
        """Whether time is limited: by itself, or by the operations that are saved."""
        return LATENCY in self.limits or "macs" in self.limits

    def room(self, widths: Widths) -> float:
        """The share of the dense network's time that widths may take; 1 where it is not limited."""
        if LATENCY in self.limits or not self.timed:
            return self.limits.get(LATENCY, 1.0)
        return 1 - EFFICIENCY * (1 - self.structure.shares(widths)["macs"])

    def kept(self, widths: Widths) -> float:
        """The share of all importance that is left."""
        return importance_kept(self.structure, self.gains, widths)

    def best(self) -> Widths:
        """The widths of most importance within the limits; raises BudgetUnmet where none were found."""
        first = LATENCY if LATENCY in self.limits else next(iter(self.limits))
        multipliers: dict[str, float] = {}
        widths = self._allocated(first, multipliers)
        for name in [name for name in self.excess(widths) if name != first]:
            if self.excess(widths)[name] <= 0:
                continue
            low, high = 0.0, math.inf
            for _ in range(STEPS):
                multipliers[name] = (low + high) / 2 if high < math.inf else 2 * low or self.total
                trial = self._allocated(first, multipliers)
                if self.excess(trial)[name] <= 0:
                    high, widths = multipliers[name], trial
                else:
                    low = multipliers[name]
            if high == math.inf:
                break
            multipliers[name] = high
        over = {name: excess for name, excess in self.excess(widths).items() if excess > 0}
        if over:
            said = ", ".join(f"{name} {excess:.1%} above its limit" for name, excess in over.items())
            raise BudgetUnmet(f"probe finds no widths within the budget: nearest found has {said}; ask for more")
        return self._filled(widths)

    def _allocated(self, first: str, multipliers: Mapping[str, float]) -> Widths:
        """The best choice within the limit of the first measure, others by their multipliers."""
        gains: dict[tuple[tuple[str, ...], str | None], Any] = defaultdict(float)
        for name, multiplier in multipliers.items():
            scale = self.scale if name == LATENCY else 1.0
            for each in self.costs[name]:
                gains[each.widths, each.block] -= multiplier * scale * each.cost
            if name == LATENCY and LATENCY not in self.limits:  # more operations allow more time
                for each in self.costs["macs"]:
                    gains[each.widths, each.block] += multiplier * EFFICIENCY * each.cost
        costs = {(each.widths, each.block): each.cost for each in self.costs[first]}
        factors = [
            Factor(names, costs.get((names, block), np.zeros_like(gain)), block, gain)
            for (names, block), gain in ({key: None for key in costs} | dict(gains)).items()
        ]
        limit = self.limits[first]
        if first == LATENCY:
            limit = limit / self.scale - self.times.terms[("call",)] / self.dense
        own = {block: float(self.gains[block][-1]) for block in self.inside if block in self.gains}
        widths: Widths = {}
        for margin in MARGINS:
            choice = allocate(Problem(self.levels, factors, self.inside, own), margin * limit)
            widths = {name: counts[choice[name]] for name, counts in self.network.sizes.items()}
            widths |= {block: choice[block] for block in self.inside}
            if self.excess(widths)[first] <= 0:
                break
        return widths

    def _filled(self, widths: Widths) -> Widths:
        """The room that is left filled with the levels that add the most importance for what they take of it."""
        full = {name for block, names in self.inside.items() if not widths[block] for name in names}
        while True:
            before, taken = self.kept(widths), max(self.excess(widths).values())
            options = []
            for name in self.network.sizes.keys() - full:
                wider = [count for count in self.network.sizes[name] if count > widths[name]]
                trial = {**widths, name: wider[0]} if wider else None
                if trial is None or (more := max(self.excess(trial).values())) > 0:
                    full.add(name)
                else:
                    options.append(((self.kept(trial) - before) / max(more - taken, 1e-9), name, trial))
            if not options:
                return widths
            widths = max(options, key=lambda option: option[:2])[2]


def _macs(layer: LayerCost, inputs: Any, outputs: Any) -> Any:
    return layer.positions * layer.taps * layer.inputs * inputs * layer.outputs * outputs


def _parameters(layer: LayerCost, inputs: Any, outputs: Any) -> Any:
    return (layer.taps * layer.inputs * inputs + layer.vectors) * layer.outputs * outputs


def _limits(budget: Budget, times: LayerTimes) -> dict[str, float]:
    """Shares by measure."""
    limits = {name: share for name, share in budget.items() if name != LATENCY_MS}
    if LATENCY_MS in budget:
        limits[LATENCY] = budget[LATENCY_MS] / times.milliseconds
        if limits[LATENCY] > 1:
            dense, asked = f"{times.milliseconds:.2f} ms", f"{budget[LATENCY_MS]:g} ms"
            raise UserError(f"the dense network takes {dense}, which is within {asked} already; ask for less")
    return limits


def _refined(search: _Search, timer: Timer) -> tuple[Candidate, list[Candidate]]:
    """The best network whose measured time is within its limit and near it, and all that were measured.

    The prediction's scale is what is varied: by what a network took over what it may take, later between the two
    scales that lie nearest on either side.
    """
    network = search.network
    reference = timer.prepared(network.build({}), network.example)
    tried: list[Candidate] = []
    loads: dict[float, float] = {}
    for _ in range(TRIALS):
        widths = search.best()
        if any(each.widths == widths for each in tried):
            break
        expected = search.predicted(widths)
        took = timer.ratio(timer.prepared(network.build(widths), network.example), reference).value
        tried.append(Candidate(widths, search.kept(widths), expected, took))
        loads[search.scale] = took / search.room(widths)
        if 1 - NEAR <= loads[search.scale] <= 1 or not search.timed:
            break
        search.scale = _between(loads)
    fitting = [each for each in tried if each.measured <= search.room(each.widths)]
    best = max(fitting, key=lambda each: each.kept) if fitting else min(tried, key=lambda each: each.measured)
    found = []
    for _ in range(FRESH):
        pair = (timer.prepared(network.build(each), network.example) for each in (best.widths, {}))
        found.append(timer.ratio(*pair).value)
    check_quiet(float(np.median(found)), best.measured)
    return best._replace(measured=float(np.median(found))), tried


def _between(loads: Mapping[float, float]) -> float:
    """The scale at which the measured load should be AIM; loads fall with the scale."""
    above = [scale for scale, load in loads.items() if load > AIM]
    below = [scale for scale, load in loads.items() if load <= AIM]
    if above and below and max(above) < min(below):
        low, high = max(above), min(below)
        return low + (high - low) * (loads[low] - AIM) / (loads[low] - loads[high])
    scale = next(reversed(loads))
    return scale * loads[scale] / AIM


def _report(search: _Search, found: Candidate, tried: Sequence[Candidate], timer: Timer) -> dict[str, Any]:
    """What `pruning.json` says of a probe: milliseconds predicted and measured, and of each block at any width."""
    times, dense = search.times, search.times.milliseconds
    return {
        **timer.place,
        "dense_ms": dense,
        "predicted_ms": found.predicted * dense,
        "measured_ms": found.measured * dense,
        "error": times.error,
        "importance_kept": found.kept,
        "candidates": [{"kept": e.kept, "predicted": e.predicted, "measured": e.measured} for e in tried],
        "places": {place: _place(search, place, found.widths) for place in _places(search.network)},
    }


def _places(network: Network) -> list[str]:
    """Residual blocks and, outside of them, single layers, by the names of their modules."""
    modules = [layer.module for layer in network.layers if layer.taps]
    found = ((_BLOCK.match(module), module) for module in modules)
    return list(dict.fromkeys(match[0] if match else module for match, module in found))


def _place(search: _Search, place: str, widths: Widths) -> dict[str, Any]:
    """Milliseconds of a block: "ms" [[share of all widths, milliseconds]], and what is "left" of it."""
    times, sizes, curve = search.times, search.network.sizes, []
    for share in np.linspace(0.25, 1, 7):
        at = {name: min(counts, key=lambda count: abs(count - share * counts[-1])) for name, counts in sizes.items()}
        curve.append([float(share), times.milliseconds * times.part(place, at) / search.dense])
    own = {name for layer in search.network.present({}, place) for name in (layer.source, layer.target) if name}
    kept = [widths[name] / sizes[name][-1] for name in own]
    left = search.scale * times.milliseconds * times.part(place, widths) / search.dense
    return {"ms": curve, "left": [float(np.mean(kept)) if kept and left else 0.0, left]}


METHODS = {PROBE: Method(name=PROBE, run=run, needs=frozenset({CLOCK}), options=PROBE, borrows=True)}

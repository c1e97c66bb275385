"""Choices of widths and blocks for one network, under limits on time, multiply-accumulates and parameters.

Importance and budgets are as `methods.probe` says. One measure is met by `allocation` itself; others are brought in by
Lagrange multipliers, each bisected for the least that keeps its limit.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from navprune.costs.counting import LayerCost
from navprune.costs.probing import LayerTimes, Network
from navprune.errors import UserError
from navprune.pruning.allocation import Factor, Problem, allocate
from navprune.pruning.config import LATENCY
from navprune.pruning.methods import GATES
from navprune.pruning.methods.base import Scores
from navprune.pruning.search import BudgetUnmet
from navprune.pruning.structure import Structure

EFFICIENCY = 0.92  # share of the saving in operations that is to be saved in time
STEPS = 10  # towards a multiplier, doubled and then halved
MARGINS = (1.0, 0.985, 0.97, 0.955)  # costs are rounded to bins, which a search for the best turns to its advantage
ABSOLUTE = ("taylor", GATES)
"""Importance that is a change of a loss, or was learned for all units together."""

Array = NDArray[np.float64]
Widths = dict[str, int]


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


class Choices:
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
        self.soft = False
        """Whether the saving in operations was found not to be had in time."""
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
        return self.scale * self.fitted(widths)

    def fitted(self, widths: Widths) -> float:
        """The same by the layers' times alone."""
        return self.times.share(widths) / self.dense

    def excess(self, widths: Widths) -> dict[str, float]:
        """By how much each measure is over its limit, as a share of the limit; 0 or less where it is within."""
        shares = {**self.structure.shares(widths), LATENCY: self.predicted(widths)}
        limits = self.limits | ({LATENCY: self.room(widths)} if self.timed and not self.soft else {})
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
        """The widths of most importance within the limits; raises BudgetUnmet where none were found.

        Where the saving in operations cannot be had in time, that is given up (`soft`).
        """
        first = LATENCY if LATENCY in self.limits else next(iter(self.limits))
        multipliers: dict[str, float] = {}
        widths = self._allocated(first, multipliers)
        for name in [name for name in self.excess(widths) if name != first]:
            found = self._bisected(first, name, multipliers) if self.excess(widths)[name] > 0 else widths
            if found is None and name == LATENCY and self.soft is False:
                self.soft = True
                multipliers.pop(name)
            elif found is not None:
                widths = found
        if over := {name: excess for name, excess in self.excess(widths).items() if excess > 0}:
            said = ", ".join(f"{name} {excess:.1%} above its limit" for name, excess in over.items())
            raise BudgetUnmet(f"probe finds no widths within the budget: nearest found has {said}; ask for more")
        return self._filled(widths)

    def _bisected(self, first: str, name: str, multipliers: dict[str, float]) -> Widths | None:
        """The best choice at the least multiplier that keeps a further measure within its limit; None without any."""
        low, high, widths = 0.0, math.inf, None
        for _ in range(STEPS):
            multipliers[name] = (low + high) / 2 if high < math.inf else 4 * low or self.total
            trial = self._allocated(first, multipliers)
            if self.excess(trial)[name] <= 0:
                high, widths = multipliers[name], trial
            else:
                low = multipliers[name]
        multipliers[name] = high if widths else 0.0
        return widths

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
        if limit <= 0:
            share = self.scale * self.times.terms[("call",)] / self.dense
            asked = f"{first}={self.limits[first]:.3g}"
            raise BudgetUnmet(f"budget {asked} cannot be met: a call alone takes {share:.3g}; ask for more")
        own = {block: float(self.gains[block][-1]) for block in self.inside if block in self.gains}
        widths: Widths = {}
        for margin in MARGINS:
            try:
                choice = allocate(Problem(self.levels, factors, self.inside, own), margin * limit)
            except UserError:
                if margin < 1:
                    break
                narrow = {name: counts[0] for name, counts in self.network.sizes.items()}
                share = self.limits[first] * (1 + self.excess({**narrow, **dict.fromkeys(self.inside, 0)})[first])
                asked = f"{first}={self.limits[first]:.3g}"
                fault = f"budget {asked} cannot be met: the narrowest network has {share:.3g}; ask for more"
                raise BudgetUnmet(fault) from None
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

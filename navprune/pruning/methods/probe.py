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

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from navprune.costs.probing import AGREE, Network, Ratio, Timer, check_quiet, probe
from navprune.errors import UserError
from navprune.files import user_cache
from navprune.pruning.choosing import EFFICIENCY, Choices, Widths, importances
from navprune.pruning.config import LATENCY, LATENCY_MS, Budget
from navprune.pruning.groups import units
from navprune.pruning.methods import GATES, PROBE
from navprune.pruning.methods.base import CLOCK, Context, Method, Outcome, Scores
from navprune.pruning.methods.gates import gate_scores
from navprune.pruning.methods.scores import SCORES
from navprune.pruning.search import BudgetUnmet, check_limits, largest, sizes
from navprune.pruning.structure import Structure
from navprune.pruning.timing import network_of

LANES = 16  # channels that a processor's vectors and a runtime's layouts hold
LEVELS = 16  # numbers of channels of a width that are told apart, at most
TRIALS = 7  # networks that are measured whole, at most
FRESH = 3  # times that the one taken is made ready and measured anew: where its memory lies makes a difference
AIM = 0.98  # of a limit of time: clocks do not repeat to one per cent
DOUBTFUL = 0.1  # error of a fit, or interval of a measurement, of which a reader is told
NEAR = 0.04  # how far below it a measured network may end

_BLOCK = re.compile(r".*layer\d+\.\d+(?=\.)")


class Candidate(NamedTuple):
    """A choice of widths, the importance that it keeps, and its share of the dense network's time.

    `fitted` by the layers' times alone, `predicted` by these and the networks measured before it, and `measured`.
    """

    widths: Widths
    kept: float
    fitted: float
    predicted: float
    measured: float


def run(structure: Structure, budget: Budget, context: Context) -> Outcome:
    """Probe, choose, measure; see the module."""
    timer, config = context.clock, context.config.probe
    if not isinstance(timer, Timer):
        raise UserError("probe measures milliseconds: give a clock, as costs.probing.Timer")
    structure = replace(structure, with_blocks=True)
    check_limits(context.config, [group.name for group in structure.channels])
    scores = _scores(structure, context)
    network = network_of(structure, timer.batch, _sizes(structure, scores, context))
    reference = timer.prepared(network.build({}), network.example)
    limits = _limits(budget, timer.milliseconds(reference))
    _check_floors(structure, network, limits)
    cache = user_cache()
    folder = cache / "probes" if cache else None
    times = probe(network, timer, reference, config.networks, config.seconds, folder, fresh=config.fresh)
    search = Choices(structure, network, times, importances(structure, scores, config.importance), limits)
    found, tried = _refined(search, timer, reference)
    keep = {
        group.name: largest(scores.get(group.name, torch.zeros(units(group))), found.widths[group.name] // group.unit)
        for group in structure.groups
    }
    latency = {LATENCY: found.measured, LATENCY_MS: found.measured * times.milliseconds}
    reached = {name: share for name, share in latency.items() if name in budget or name == LATENCY}
    return Outcome(structure, keep, scores, reached=reached, report=_report(search, found, tried, timer))


def _check_floors(structure: Structure, network: Network, limits: Mapping[str, float]) -> None:
    """Raise BudgetUnmet, before minutes go into a probe, for operations or parameters that no widths can meet."""
    floors = {name: counts[0] for name, counts in network.sizes.items()} | dict.fromkeys(network.blocks, 0)
    for name, share in structure.shares(floors).items():
        if share > limits.get(name, 1.0):
            raise BudgetUnmet(
                f"budget {name}={limits[name]:g} cannot be met: the narrowest has {share:.3g}; ask for more"
            )


def _scores(structure: Structure, context: Context) -> Scores:
    name = context.config.probe.importance
    return gate_scores(structure, context) if name == GATES else SCORES[name](structure, context.evidence)


def _sizes(structure: Structure, scores: Scores, context: Context) -> dict[str, list[int]]:
    """Channels that each width with scores may have.

    Unless a multiple is asked for, multiples of LANES, where there are enough: what lies between takes as long as the
    next, or longer, in a way that no sum of smooth terms tells.
    """
    config, found = context.config, {}
    for group in (group for group in structure.channels if group.name in scores):
        lanes = LANES if group.channels >= 2 * LANES and config.multiple == 1 else config.multiple
        share = max(config.minimum_share, config.probe.least)
        asked = replace(config, minimum_share=share, multiple=lanes)
        found[group.name] = [n * group.unit for n in _thinned(sizes(group, asked, group.channels))]
    return found


def _thinned(counts: Sequence[int]) -> list[int]:
    """At most LEVELS of them, evenly."""
    places = np.linspace(0, len(counts) - 1, min(LEVELS, len(counts))).round().astype(int)
    return [counts[place] for place in places]


def _limits(budget: Budget, milliseconds: float) -> dict[str, float]:
    """Shares by measure, of a dense network that takes so many milliseconds."""
    limits = {name: share for name, share in budget.items() if name != LATENCY_MS}
    if LATENCY_MS in budget:
        limits[LATENCY] = budget[LATENCY_MS] / milliseconds
        if limits[LATENCY] > 1:
            dense, asked = f"{milliseconds:.2f} ms", f"{budget[LATENCY_MS]:g} ms"
            raise UserError(f"the dense network takes {dense}, which is within {asked} already; ask for less")
    return limits


def _refined(search: Choices, timer: Timer, reference: Callable[[], object]) -> tuple[Candidate, list[Candidate]]:
    """The network whose measured time is within its limit and near it, and all that were measured.

    The prediction's scale is what is varied: by what a network took over what it may take, later between the two
    scales that lie nearest on either side. What is near its limit is made ready and measured anew before it is taken.
    Raises BudgetUnmet where none is within its limit.
    """
    network, tried = search.network, list[Candidate]()
    loads: dict[float, float] = {}
    held = search.scale
    for _ in range(TRIALS):
        widths = search.best()
        if search.soft and tried:  # so far the prediction cannot be scaled
            search.soft, search.scale = False, (held + search.scale) / 2
            continue
        held = search.scale
        if any(each.widths == widths for each in tried):
            break
        small = network.build(widths)
        took = timer.ratio(timer.prepared(small, network.example), reference)
        load = took.value / search.room(widths)
        if 1 - NEAR <= load <= 1 or search.soft or not search.timed:
            took = check_quiet(partial(_anew, search, timer, widths), took.value)
            load = took.value / search.room(widths)
        said = search.fitted(widths), search.predicted(widths)
        tried.append(Candidate(widths, search.kept(widths), *said, took.value))
        loads[search.scale] = load
        if 1 - NEAR <= load <= 1 or search.soft or not search.timed:
            return tried[-1], tried
        search.scale = _between(loads)
    fitting = [each for each in tried if each.measured <= search.room(each.widths)]
    for best in sorted(fitting, key=lambda each: -each.kept):
        measured = _anew(search, timer, best.widths).value
        if measured <= search.room(best.widths):
            return best._replace(measured=measured), tried
    if LATENCY not in search.limits:
        return min(tried, key=lambda each: each.measured / search.room(each.widths)), tried
    nearest = min(each.measured for each in tried)
    raise BudgetUnmet(
        f"budget latency={search.limits[LATENCY]:.3g} was not met by any network that was measured: nearest is "
        f"{nearest:.3g}; ask for that"
    )


def _anew(search: Choices, timer: Timer, widths: Widths) -> Ratio:
    """The median of several measurements, for each of which both networks are made ready anew."""
    network, found = search.network, list[Ratio]()
    for _ in range(FRESH):
        pair = (timer.prepared(network.build(each), network.example) for each in (widths, {}))
        found.append(timer.ratio(*pair))
    return sorted(found)[FRESH // 2]


def _between(loads: Mapping[float, float]) -> float:
    """The scale at which the measured load should be AIM; loads fall with the scale."""
    above = [scale for scale, load in loads.items() if load > AIM]
    below = [scale for scale, load in loads.items() if load <= AIM]
    if above and below and max(above) < min(below):
        low, high = max(above), min(below)
        return low + (high - low) * (loads[low] - AIM) / (loads[low] - loads[high])
    scale = next(reversed(loads))
    return scale * loads[scale] / AIM


def _report(search: Choices, found: Candidate, tried: Sequence[Candidate], timer: Timer) -> dict[str, Any]:
    """What `pruning.json` says of a probe: milliseconds predicted and measured, and of each block at any width."""
    times, dense = search.times, search.times.milliseconds
    return {
        **timer.place,
        "dense_ms": dense,
        "fitted_ms": found.fitted * dense,
        "predicted_ms": found.predicted * dense,
        "measured_ms": found.measured * dense,
        "networks": times.networks,
        "error": times.error,
        "importance_kept": found.kept,
        "notes": _notes(search, found),
        "candidates": [{name: value for name, value in e._asdict().items() if name != "widths"} for e in tried],
        "places": {place: _place(search, place, found.widths) for place in _places(search.network)},
    }


def _notes(search: Choices, found: Candidate) -> list[str]:
    """What a reader must know before trusting the numbers, in one line each."""
    times, notes = search.times, []
    if times.error is not None and times.error > DOUBTFUL:
        notes.append(f"the layers' times err by {times.error:.0%} on stages they have not seen: give --networks more")
    if times.doubt > DOUBTFUL:
        notes.append(f"one measurement is known to {times.doubt:.0%} only: a quieter machine would tell more")
    saved = 1 - search.structure.shares(found.widths)["macs"]
    if LATENCY not in search.limits and search.timed and 1 - found.measured < EFFICIENCY * saved * (1 - AGREE):
        notes.append(
            f"of the saving in operations {(1 - found.measured) / saved:.0%} is saved in time: budget latency for more"
        )
    return notes


def _places(network: Network) -> list[str]:
    """Residual blocks and, outside of them, single layers, by the names of their modules."""
    modules = [layer.module for layer in network.layers if layer.taps]
    found = ((_BLOCK.match(module), module) for module in modules)
    return list(dict.fromkeys(match[0] if match else module for match, module in found))


def _place(search: Choices, place: str, widths: Widths) -> dict[str, Any]:
    """Milliseconds of a block: "ms" [[share of all widths, milliseconds]], and what is "left" of it."""
    times, sizes, curve = search.times, search.network.sizes, []
    for share in np.linspace(0.25, 1, 7):
        at = {name: min(counts, key=lambda count: abs(count - share * counts[-1])) for name, counts in sizes.items()}
        curve.append([float(share), times.milliseconds * times.part(place, at) / search.dense])
    own = {name for layer in search.network.present({}, place) for name in (layer.source, layer.target) if name}
    kept = [widths[name] / sizes[name][-1] for name in own]
    left = search.scale * times.milliseconds * times.part(place, widths) / search.dense
    return {"ms": curve, "left": [float(np.mean(kept)) if kept and left else 0.0, left]}


HEEDS = ("limits", "minimum", "minimum_share", "multiple")
METHODS = {PROBE: Method(name=PROBE, run=run, needs=frozenset({CLOCK}), options=PROBE, heeds=HEEDS, borrows=True)}

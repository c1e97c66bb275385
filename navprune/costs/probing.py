"""Milliseconds of every layer of a network at any widths, from measurements of many narrower networks.

What is measured are whole stages, chains of blocks that run one after the other, of networks whose widths and blocks
are drawn at random: each in the layout, with the fusions and out of the caches that it will run with. Each takes turns
with the dense network, and what counts is the median of the ratios, which a machine that slows down leaves alone. A
layer of `i` inputs and `o` outputs at `p` positions takes

    a + b i o taps p + c o p

milliseconds, with one a, b, c >= 0 for all layers that are alike in the dense network. The call, and carrying the
inputs and outputs of a stage to and fro, have terms of their own: what a stage takes beside its layers is in no layer's
time. The terms come from least squares of relative errors.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from navprune.costs.counting import LayerCost
from navprune.costs.latency import device_name, interleaved, ratio, threads_of
from navprune.costs.runtimes.base import Runtime
from navprune.errors import UserError
from navprune.files import json_bytes, write_file
from navprune.models.modes import evaluating
from navprune.progress import ProgressLine, say_once

STAGE = re.compile(r"(^|\.)layer\d+$")
"""Names of the modules that are chains of blocks."""
ENDS = re.compile(r"(^|\.)(conv1|compression)$")
"""Of what lies before and behind them, outside of blocks."""
BLOCKS_GO = 0.35  # share of the removable blocks that a random network lacks
WARM = 3  # passes before anything is measured
PASSES = 10  # between two looks at how narrow the interval is
NARROW = 0.015  # half the 95 % interval of a ratio, relative, at which it is known well enough
MOST_PASSES = 60
FEWEST = 4  # networks that a fit is made of
AGREE = 0.05  # by how much two measurements of the same networks may differ

Widths = Mapping[str, int]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Network:
    """What can be measured at any widths.

    `build(widths)` is the network at {width: channels}, 0 for a removed block; `layers` are the dense network's, by the
    names of its widths; `channels` {width: dense channels}, `sizes` {width: channels it may have, ascending}; `blocks`
    {removable block: the name of its module}; `example` [B, C, ...] is its input.
    """

    build: Callable[[Widths], nn.Module]
    layers: Sequence[LayerCost]
    channels: Widths
    sizes: Mapping[str, Sequence[int]]
    blocks: Mapping[str, str]
    example: Tensor
    name: str

    def drawn(self, rng: random.Random) -> dict[str, int]:
        """Random widths, with some blocks removed."""
        widths = {name: rng.choice(sizes) for name, sizes in self.sizes.items()}
        return widths | {block: int(rng.random() >= BLOCKS_GO) for block in self.blocks}

    def present(self, widths: Widths, part: str = "") -> list[LayerCost]:
        """The layers of a part that are left at these widths."""
        gone = tuple(f"{module}." for block, module in self.blocks.items() if widths.get(block, 1) == 0)
        inside = f"{part}." if part else ""
        return [
            layer
            for layer in self.layers
            if f"{layer.module}.".startswith(inside) and not (gone and layer.module.startswith(gone))
        ]


class Ratio(NamedTuple):
    """How long something takes, as a multiple of something else, with half its 95 % interval."""

    value: float
    half: float


@dataclass(frozen=True)
class Timer:
    """Measures on one device, in one runtime, with so many threads of a CPU (None: torch's) and images at once.

    With one thread of a CPU it counts the process' seconds of work, which others that run on the machine hardly change;
    else seconds of the clock.
    """

    runtime: Runtime
    device: torch.device
    threads: int | None = None
    batch: int = 1

    @property
    def place(self) -> dict[str, Any]:
        """What measurements depend on beside the network."""
        return {
            "device": device_name(self.device, self.threads),
            "runtime": self.runtime.name,
            "version": self.runtime.version(),
            "batch": self.batch,
        }

    def prepared(self, module: nn.Module, example: Tensor) -> Callable[[], object]:
        """A function that runs a module once on an example, warm."""
        example = example.to(self.device)
        with threads_of(self.threads):
            run = partial(self.runtime.prepare(module, (example,)), example)
            for _ in range(WARM):
                run()
        return run

    def ratio(self, one: Callable[[], object], other: Callable[[], object]) -> Ratio:
        """The time of one as a multiple of the other's, both `prepared`, in turns until it is known well enough."""
        mine: list[float] = []
        others: list[float] = []
        result = Ratio(math.nan, math.inf)
        while len(mine) < MOST_PASSES and not result.half <= NARROW * result.value:
            mine, others = (taken + more for taken, more in zip((mine, others), self._seconds(one, other, PASSES)))
            result = Ratio(*ratio(mine, others))
        return result

    def milliseconds(self, run: Callable[[], object]) -> float:
        """The median of what is `prepared`."""
        return 1e3 * float(np.median(self._seconds(run, run, PASSES)))

    def _seconds(self, one: Callable[[], object], other: Callable[[], object], passes: int) -> tuple[list[float], ...]:
        with threads_of(self.threads):
            alone = self.device.type == "cpu" and torch.get_num_threads() == 1
            clock = time.process_time if alone else time.perf_counter
            return tuple(interleaved({"one": one, "other": other}, passes, clock, self.device).values())


@dataclass(frozen=True)
class Sample:
    """One measurement: widths, the part that was run (the whole: ""), and its time as a share of the dense network's.

    `ends` are the values that go into a part and come out of it.
    """

    widths: dict[str, int]
    part: str
    ends: tuple[float, float]
    share: Ratio


@dataclass(frozen=True)
class LayerTimes:
    """Time of each kind of layer, as a share of the dense network's; see the module's text.

    `milliseconds` are the dense network's; `networks` were measured. `error` is the median relative error of stages
    that were left out of a fit, None of too few; `doubt` half the widest of the measurements' intervals, relative.
    """

    terms: Mapping[tuple[Any, ...], float]
    network: Network
    milliseconds: float
    networks: int
    error: float | None
    doubt: float

    def layer(self, layer: LayerCost, inputs: Any, outputs: Any) -> Any:
        """The share that a layer of so many input and output channels takes; arrays broadcast."""
        a, b, c = (self.terms[(*kind(layer, self.network.channels), term)] for term in "abc")
        filters = layer.outputs * outputs
        return a + b * layer.taps * layer.inputs * inputs * filters * layer.positions + c * filters * layer.positions

    def share(self, widths: Widths) -> float:
        """The share that the network takes at other widths."""
        return self.terms[("call",)] + self.part("", widths)

    def part(self, place: str, widths: Widths) -> float:
        """The share that the layers inside a module take, 0 of a block that is gone."""
        channels = {**self.network.channels, **widths}
        return sum(
            self.layer(layer, _width(channels, layer.source), _width(channels, layer.target))
            for layer in self.network.present(widths, place)
        )


def _width(channels: Widths, name: str | None) -> int:
    return channels[name] if name else 1


def kind(layer: LayerCost, channels: Widths) -> tuple[int, ...]:
    """What layers have in common that take the same time at the same widths."""
    outputs, inputs = layer.filters(channels)
    return layer.taps, layer.positions, inputs, outputs


def probe(
    network: Network,
    timer: Timer,
    reference: Callable[[], object],
    rounds: int,
    seconds: float,
    cache: Path | None,
    *,
    fresh: bool = False,
) -> LayerTimes:
    """Measure `rounds` random networks, stage by stage, or fewer where `seconds` are over, and fit the layers' times.

    `reference` is the dense network, `prepared`. What has been measured with the same device, runtime, versions and
    threads is read from `cache`, unless it is to be `fresh`. Raises UserError where the same network, measured twice,
    disagrees with itself, or `seconds` are over too soon.
    """
    again = timer.prepared(network.build({}), network.example)
    check_quiet(lambda: timer.ratio(again, reference), 1.0)
    store = _Store(cache, {**timer.place, "network": network.name}, fresh)
    rng, line = random.Random(0), ProgressLine(f"probing {timer.runtime.name}", rounds, "networks")
    began, networks, samples = time.perf_counter(), 0, [_whole(network, dict(network.channels), Ratio(1.0, 0.0))]
    for done in range(rounds):
        widths = network.drawn(rng)
        if time.perf_counter() - began > seconds and widths not in store:
            break
        if widths not in store:
            store.add(widths, _measured(network, widths, timer, reference, whole=done % 4 == 0))
        else:
            store.read += 1
        samples += store.samples(widths)
        networks = done + 1
        line.show(networks)
    if store.read:
        say_once(f"{store.read} of {networks} networks were measured by an earlier probe here; --fresh measures anew")
    if networks < FEWEST:
        raise UserError(f"a probe stopped after {networks} networks, of {FEWEST} at least: give it more seconds")
    return fitted(network, samples, timer.milliseconds(reference), networks)


def check_quiet(measure: Callable[[], Ratio], before: float) -> Ratio:
    """A measurement that agrees with one before; raises UserError where two in a row do not."""
    for _ in range(2):
        found = measure()
        if abs(found.value - before) <= AGREE * before + found.half:
            return found
    raise UserError(
        f"two measurements of the same network differ by {abs(found.value / before - 1):.0%}: the machine is not quiet "
        "enough to say how long anything takes; end what else runs on it, or choose a method without a clock"
    )


def _measured(
    network: Network, widths: dict[str, int], timer: Timer, reference: Callable[[], object], whole: bool
) -> list[Sample]:
    """The stages of a network, and the whole of it where asked for or where there are none."""
    model = network.build(widths)
    names = [name for name, _ in model.named_modules()]
    parts = [name for name in names if STAGE.search(name)]
    if whole or not parts:
        inside = tuple(f"{part}." for part in parts)
        parts += [name for name in names if parts and ENDS.search(name) and not name.startswith(inside)] + [""]
    inputs, outputs = _shapes(model, network.example, parts)
    samples = []
    for part in parts:
        example = network.example if not part else torch.rand(inputs[part], generator=torch.Generator().manual_seed(0))
        run = timer.prepared(model.get_submodule(part), example)
        ends = (0.0, 0.0) if not part else (float(math.prod(inputs[part])), float(math.prod(outputs[part])))
        samples.append(Sample(widths, part, ends, timer.ratio(run, reference)))
    return samples


def _whole(network: Network, widths: dict[str, int], share: Ratio) -> Sample:
    return Sample(widths, "", (0.0, 0.0), share)


def _shapes(model: nn.Module, example: Tensor, parts: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Shapes of what modules are given and give."""
    inputs, outputs, hooks = {}, {}, []

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...], answer: Tensor) -> None:
            inputs[name], outputs[name] = tuple(given[0].shape), tuple(answer.shape)

        return hook

    for name in filter(None, parts):
        hooks.append(model.get_submodule(name).register_forward_hook(note(name)))
    with evaluating(model), torch.no_grad():
        model(example)
    for hook in hooks:
        hook.remove()
    return inputs, outputs


def fitted(network: Network, samples: Sequence[Sample], milliseconds: float, networks: int) -> LayerTimes:
    """The layers' times, by non-negative least squares of relative errors; whole networks count fourfold."""
    rows = [_terms(network, sample) for sample in samples]
    names = sorted({name for row in rows for name in row}, key=str)
    matrix = np.array([[row.get(name, 0.0) for name in names] for row in rows])
    shares = np.array([sample.share.value for sample in samples])
    weights = np.array([1.0 if sample.part else 2.0 for sample in samples])
    scaled = matrix * (weights / shares)[:, None]
    left_out = []
    for fold in range(4) if len(samples) >= 16 else ():
        out = np.arange(len(samples)) % 4 == fold
        terms = non_negative(scaled[~out], weights[~out])
        left_out += list(np.abs(matrix[out] @ terms / shares[out] - 1))
    terms = non_negative(scaled, weights)
    error = float(np.median(left_out)) if left_out else None
    doubt = max(sample.share.half / sample.share.value for sample in samples)
    return LayerTimes(dict(zip(names, terms.tolist())), network, milliseconds, networks, error, doubt)


def _terms(network: Network, sample: Sample) -> dict[tuple[Any, ...], float]:
    """How often each term counts in a sample."""
    found: dict[tuple[Any, ...], float] = {("call",): 1.0, ("in",): sample.ends[0], ("out",): sample.ends[1]}
    channels = {**network.channels, **sample.widths}
    for layer in network.layers:  # so that every kind has its terms, measured or not
        for term in "abc":
            found.setdefault((*kind(layer, network.channels), term), 0.0)
    for layer in network.present(sample.widths, sample.part):
        outputs, inputs = layer.filters(channels)
        key = kind(layer, network.channels)
        found[(*key, "a")] += 1.0
        found[(*key, "b")] += layer.taps * inputs * outputs * layer.positions
        found[(*key, "c")] += outputs * layer.positions
    return found


def non_negative(matrix: Array, wanted: Array, sweeps: int = 500) -> Array:
    """The x >= 0 of least |matrix x - wanted|^2, by descending along one coordinate after the other."""
    scale = np.sqrt((matrix**2).sum(0))
    scale[scale == 0] = np.inf  # what is in no sample counts nothing
    normed = matrix / scale
    products, x = normed.T @ normed, np.zeros(matrix.shape[1])
    slope = -(normed.T @ wanted)
    for _ in range(sweeps):
        for i in range(len(x)):
            step = max(-x[i], -slope[i])
            if step:
                x[i] += step
                slope += step * products[i]
    return x / scale


@dataclass
class _Store:
    """The samples of a place and network, in a file of the cache."""

    folder: Path | None
    key: dict[str, Any]
    fresh: bool
    read: int = 0
    known: dict[str, list[dict[str, Any]]] = field(init=False)

    def __post_init__(self) -> None:
        self.known = {}
        if self.folder is not None and not self.fresh:
            try:
                held = json.loads(self.path.read_text())
                self.known = held["samples"] if held["key"] == self.key else {}
            except (OSError, ValueError, KeyError, TypeError):
                pass  # none yet, or what something else left there

    @property
    def path(self) -> Path:
        assert self.folder is not None
        return self.folder / f"{hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:16]}.json"

    def __contains__(self, widths: Widths) -> bool:
        return json.dumps(widths) in self.known

    def add(self, widths: Widths, samples: Sequence[Sample]) -> None:
        rows = [{"part": sample.part, "ends": sample.ends, "share": list(sample.share)} for sample in samples]
        self.known[json.dumps(widths)] = rows
        if self.folder is not None:
            write_file(self.path, json_bytes({"key": self.key, "samples": self.known}))

    def samples(self, widths: dict[str, int]) -> list[Sample]:
        rows = self.known[json.dumps(widths)]
        return [Sample(widths, row["part"], tuple(row["ends"]), Ratio(*row["share"])) for row in rows]

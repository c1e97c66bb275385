"""Time of networks in each runtime, measured in turn, and how much of the theoretical saving is real."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from navprune.costs.counting import cost, count
from navprune.costs.runtimes import runtime_of
from navprune.costs.runtimes.base import Example, Runtime
from navprune.models.spec import EncoderSpec

Clock = Callable[[], float]
"""Seconds since any moment."""


@dataclass(frozen=True)
class LatencyRow:
    """One network under one runtime and batch size; savings are shares of the first network's.

    `saving_realised` is of the median time, `saving_theoretical` of the deployed multiply-accumulates. Where
    the runtime does not work on this machine, the times are None and `note` says why and what to do.
    """

    model: str
    runtime: str
    batch_size: int
    median_ms: float | None
    p95_ms: float | None
    saving_realised: float | None
    saving_theoretical: float
    note: str = ""
    p99_ms: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON data."""
        return asdict(self)


def images_of(module: Any, batch_size: int) -> Example:
    """Noise from 0 to 1 in the shape that a network's spec names, float32 [B, C, H, W], the same each time."""
    return (torch.rand(batch_size, *module.spec.input, generator=torch.Generator().manual_seed(0)),)


def deployed_macs(module: nn.Module, example: Example) -> int:
    """Multiply-accumulates of one image by the deployed convention."""
    spec = getattr(module, "spec", None)
    return cost(spec).macs if isinstance(spec, EncoderSpec) else count(module, *example).macs


def measure(
    models: Mapping[str, nn.Module],
    batch_sizes: Sequence[int] = (1, 8),
    runtimes: Sequence[str] = ("eager",),
    device: str | torch.device = "cpu",
    repeats: int = 50,
    warmup: int = 5,
    progress: Callable[[int, int], None] | None = None,
    clock: Clock = time.perf_counter,
    *,
    threads: int | None = None,
    example: Callable[[Any, int], Example] = images_of,
    macs: Callable[[nn.Module, Example], int] = deployed_macs,
) -> list[LatencyRow]:
    """Forward times of every network for each runtime and batch size, in that order of nesting.

    The networks take turns, one pass each, so that a machine that slows down slows all of them alike. `example(module,
    batch_size)` gives the inputs of a network, by default of one whose spec has an `input`; `macs(module, inputs)` its
    work. `progress(done, total)` counts the combinations of runtime and batch size; `clock` gives seconds; `threads`
    are those of a CPU. Raises UserError for an unknown runtime.
    """
    chosen, device = [runtime_of(name) for name in runtimes], torch.device(device)
    work = {name: macs(module, example(module, 1)) for name, module in models.items()}
    cells = [(runtime, batch_size) for runtime in chosen for batch_size in batch_sizes]
    rows: list[LatencyRow] = []
    with threads_of(threads):
        for done, (runtime, batch_size) in enumerate(cells, start=1):
            examples = {
                name: tuple(x.to(device) for x in example(module, batch_size)) for name, module in models.items()
            }
            runs, notes = _prepared(runtime, models, examples, device, warmup)
            seconds = interleaved(runs, repeats, clock, device)
            rows += _rows((runtime.name, batch_size), work, seconds, notes)
            if progress:
                progress(done, len(cells))
    return rows


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    repeats: int,
    clock: Clock = time.perf_counter,
    device: str | torch.device = "cpu",
) -> dict[str, list[float]]:
    """Seconds of each of `repeats` calls, which take turns: the n-th of one is paired with the n-th of another."""
    device = torch.device(device)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            _synchronise(device)
            start = clock()
            run()
            _synchronise(device)
            seconds[name].append(clock() - start)
    return seconds


def ratio(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """The median of first / second over paired calls, and half the width of its 95 % interval.

    The interval lies between two of the sorted ratios, whatever their distribution: the k-th from either end, where
    k - 1 of n tosses of a coin or fewer fall on one side in 2.5 % of the cases at most (David and Nagaraja, Order
    Statistics, 2003, 7.1). It is infinite for fewer than six pairs.
    """
    ratios = np.sort(np.asarray(first, float) / np.asarray(second, float))
    pairs = len(ratios)
    k, ways, below = 0, 1, 1  # of the 2^n outcomes: those with k heads, with at most k
    while 40 * below <= 2**pairs:
        ways = ways * (pairs - k) // (k + 1)
        k, below = k + 1, below + ways
    return float(np.median(ratios)), float(ratios[-k] - ratios[k - 1]) / 2 if k else math.inf


@contextmanager
def threads_of(count: int | None) -> Iterator[None]:
    """Within the context torch, and what takes its number, computes with so many threads; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_name(device: str | torch.device = "cpu", threads: int | None = None) -> str:
    """The device in words, with the number of threads on a CPU, by default torch's."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = named[0] if named else platform.processor() or platform.machine()
    return f"{name}, {threads or torch.get_num_threads()} threads"


def _prepared(
    runtime: Runtime,
    models: Mapping[str, nn.Module],
    examples: Mapping[str, Example],
    device: torch.device,
    warmup: int,
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """What runs, warm, of the networks that work, and the reasons of those that do not."""
    if note := runtime.missing(device):
        return {}, dict.fromkeys(models, note)
    runs: dict[str, Callable[[], object]] = {}
    notes: dict[str, str] = {}
    for name, module in models.items():
        try:
            run = partial(runtime.prepare(module, examples[name]), *examples[name])
            for _ in range(warmup):
                run()
        except Exception as error:  # whatever a compiler or exporter raises is the answer for this row
            if runtime.name == "eager":
                raise
            notes[name] = (str(error).strip() or type(error).__name__).splitlines()[0]
        else:
            runs[name] = run
    return runs, notes


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _rows(
    cell: tuple[str, int], macs: Mapping[str, int], seconds: Mapping[str, list[float]], notes: Mapping[str, str]
) -> list[LatencyRow]:
    first = next(iter(macs))
    times = {name: 1e3 * np.quantile(taken, (0.5, 0.95, 0.99)) for name, taken in seconds.items()}
    rows = []
    for name in macs:
        median, p95, p99 = map(float, times[name]) if name in times else (None,) * 3
        realised = None if median is None or first not in times else 1 - median / float(times[first][0])
        theoretical = 1 - macs[name] / macs[first] if macs[first] else 0.0
        rows.append(LatencyRow(name, *cell, median, p95, realised, theoretical, notes.get(name, ""), p99))
    return rows

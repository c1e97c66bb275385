"""Forward time of encoders, and how much of the theoretical saving is real."""

from __future__ import annotations

import copy
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from navprune.costs.counting import cost
from navprune.errors import UserError
from navprune.machine import compile_fault
from navprune.models.encoders import Encoder

RUNTIMES = ("eager", "compiled")
Clock = Callable[[], float]
"""Seconds since any moment."""


@dataclass(frozen=True)
class LatencyRow:
    """One encoder under one runtime and batch size; savings are shares of the first encoder's.

    `saving_realised` is of the median time, `saving_theoretical` of the deployed multiply-accumulates. Where
    the runtime does not work on this machine, the times are None and `note` says why.
    """

    model: str
    runtime: str
    batch_size: int
    median_ms: float | None
    p95_ms: float | None
    saving_realised: float | None
    saving_theoretical: float
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON data."""
        return asdict(self)


def measure(
    models: Mapping[str, Encoder],
    batch_sizes: Sequence[int] = (1, 8),
    runtimes: Sequence[str] = RUNTIMES,
    device: str | torch.device = "cpu",
    repeats: int = 50,
    warmup: int = 5,
    progress: Callable[[int, int], None] | None = None,
    clock: Clock = time.perf_counter,
) -> list[LatencyRow]:
    """Forward times of every encoder for each runtime and batch size, in that order of nesting.

    The encoders take turns, one forward pass each, so that a machine that slows down slows all of them alike.
    `progress(done, total)` counts the combinations of runtime and batch size; `clock` gives seconds.
    Raises UserError for an unknown runtime.
    """
    for runtime in runtimes:
        if runtime not in RUNTIMES:
            raise UserError(f"unknown runtime {runtime!r}; known are {', '.join(RUNTIMES)}")
    device = torch.device(device)
    copies = {name: copy.deepcopy(model).to(device).eval() for name, model in models.items()}
    cells = [(runtime, batch_size) for runtime in runtimes for batch_size in batch_sizes]
    rows: list[LatencyRow] = []
    for done, (runtime, batch_size) in enumerate(cells, start=1):
        seconds, notes = _measure_cell(copies, (runtime, batch_size), device, repeats, warmup, clock)
        rows += _rows(copies, (runtime, batch_size), seconds, notes)
        if progress:
            progress(done, len(cells))
    return rows


def device_name(device: str | torch.device = "cpu") -> str:
    """The device in words, with the number of threads on a CPU."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = named[0] if named else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


@torch.inference_mode()
def _measure_cell(
    models: Mapping[str, Encoder], cell: tuple[str, int], device: torch.device, repeats: int, warmup: int, clock: Clock
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of each pass for the encoders that work, and the reasons of those that do not."""
    runtime, batch_size = cell
    runs: dict[str, Callable[[], Tensor]] = {}
    notes: dict[str, str] = {}
    torch._dynamo.reset()  # else earlier batch sizes use up the limit of recompilations
    if runtime == "compiled" and device.type == "cpu" and (fault := compile_fault()):
        return {}, dict.fromkeys(models, fault)
    for name, model in models.items():
        run = _runner(model, runtime, torch.rand(batch_size, *model.spec.input, device=device))
        try:
            for _ in range(warmup):
                run()
        except Exception as error:  # whatever a compiler's backend raises is the answer for this row
            if runtime == "eager":
                raise
            notes[name] = str(error).strip().splitlines()[0]
        else:
            runs[name] = run
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            _synchronise(device)
            start = clock()
            run()
            _synchronise(device)
            seconds[name].append(clock() - start)
    return seconds, notes


def _runner(model: Encoder, runtime: str, images: Tensor) -> Callable[[], Tensor]:
    # Full graph, or a part that cannot be compiled would run eagerly under the name of the compiled.
    forward = torch.compile(model, dynamic=False, fullgraph=True) if runtime == "compiled" else model
    return lambda: forward(images)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _rows(
    models: Mapping[str, Encoder], cell: tuple[str, int], seconds: Mapping[str, list[float]], notes: Mapping[str, str]
) -> list[LatencyRow]:
    first = next(iter(models))
    macs = {name: cost(model.spec).macs for name, model in models.items()}
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    rows = []
    for name in models:
        median = p95 = realised = None
        if name in medians:
            median, p95 = 1e3 * medians[name], 1e3 * float(torch.tensor(seconds[name]).quantile(0.95))
            realised = 1 - medians[name] / medians[first] if first in medians else None
        theoretical = 1 - macs[name] / macs[first] if macs[first] else 0.0
        note = notes.get(name, "")
        rows.append(LatencyRow(name, *cell, median, p95, realised, theoretical, note))
    return rows

"""`navprune latency`: the forward time of networks in interleaved runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from navprune.costs.latency import device_name, measure
from navprune.costs.runtimes import RUNTIMES, runtime_of
from navprune.errors import UserError
from navprune.models.policy import PointNavPolicy
from navprune.progress import ProgressLine
from navprune.rl.trainer import default_device
from navprune.source import Source

ALL = "all"


def run_latency(
    networks: Mapping[str, nn.Module],
    batch_sizes: Sequence[int],
    runtimes: Sequence[str] = ("eager",),
    device: str | None = None,
    runs: int = 30,
    threads: int | None = None,
) -> dict[str, Any]:
    """Measure networks by the names for the table, interleaved; savings are against the first.

    `threads` are those of a CPU, by default torch's.
    """
    device = checked_device(device or default_device())
    line = ProgressLine("measuring latency", len(runtimes) * len(batch_sizes), "settings")
    rows = measure(
        networks, batch_sizes, runtimes, device, runs, progress=lambda done, _: line.show(done), threads=threads
    )
    here = [runtime_of(name) for name in runtimes if runtime_of(name).missing(torch.device(device)) is None]
    return {
        "device": device_name(device, threads),
        "versions": {runtime.name: runtime.version() for runtime in here},
        "rows": [row.to_json() for row in rows],
    }


def checked_device(name: str) -> str:
    """The name of a device; raises UserError for one that torch cannot use here."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used here ({str(error).splitlines()[0]}); give cpu") from None
    return name


def timed_part(source: Source) -> nn.Module:
    """What of a network is measured: of an agent its encoder, else the whole."""
    network = source.load()
    return network.encoder if isinstance(network, PointNavPolicy) else network


def chosen_runtimes(text: str) -> list[str]:
    """Names of runtimes parted by commas, or all of them for "all"."""
    return list(RUNTIMES) if text == ALL else text.split(",")

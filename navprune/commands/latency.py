"""`navprune latency`: the forward time of encoders in interleaved runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from navprune.costs.latency import device_name, measure
from navprune.models.encoders import Encoder
from navprune.progress import ProgressLine
from navprune.rl.trainer import default_device


def run_latency(
    encoders: Mapping[str, Encoder],
    batch_sizes: Sequence[int],
    runtimes: Sequence[str],
    device: str | None = None,
    runs: int = 30,
) -> dict[str, Any]:
    """Measure encoders by the names for the table, interleaved; savings are against the first."""
    device = device or default_device()
    line = ProgressLine("measuring latency", len(runtimes) * len(batch_sizes), "settings")
    rows = measure(encoders, batch_sizes, runtimes, device, runs, progress=lambda done, _: line.show(done))
    return {"device": device_name(device), "rows": [row.to_json() for row in rows]}

"""`navprune latency`: the forward time of encoders in interleaved runs."""

from collections.abc import Sequence
from typing import Any

from navprune.config import Config
from navprune.evaluation.latency import device_name, measure
from navprune.progress import ProgressLine
from navprune.rl.trainer import default_device
from navprune.source import display_names, policy_of


def run_latency(
    sources: Sequence[str],
    batch_sizes: Sequence[int],
    runtimes: Sequence[str],
    device: str | None = None,
    runs: int = 30,
    config: Config | None = None,
) -> dict[str, Any]:
    """Measures the encoders of `sources` interleaved; savings are against the first."""
    if not sources:
        return {"device": device_name(device or default_device()), "rows": []}
    encoders = {
        name: policy_of(source, config).encoder for name, source in zip(display_names(sources), sources, strict=True)
    }
    device = device or default_device()
    line = ProgressLine("measuring latency", len(runtimes) * len(batch_sizes), "settings")
    rows = measure(encoders, batch_sizes, runtimes, device, runs, progress=lambda done, total: line.show(done))
    return {"device": device_name(device), "rows": [row.to_json() for row in rows]}

"""`navprune latency`: the forward time of networks in interleaved runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from navprune.costs.latency import deployed_macs, device_name, images_of, measure
from navprune.costs.runtimes import RUNTIMES, runtime_of
from navprune.costs.runtimes.base import Example
from navprune.errors import UserError
from navprune.models.classifiers import Classifier
from navprune.models.policy import PointNavPolicy
from navprune.models.step import PolicyStep
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
        networks, batch_sizes, runtimes, device, runs, progress=lambda done, _: line.show(done), threads=threads,
        example=inputs_of, macs=macs_of,
    )  # fmt: skip
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


def timed_part(source: Source, step: bool = False) -> nn.Module:
    """What of a network is measured: of an agent its encoder or, where asked for, its whole `step`; else all of it.

    Raises UserError for the step of what is no agent.
    """
    network = source.load()
    if not isinstance(network, PointNavPolicy):
        if step:
            kind = "a classifier" if isinstance(network, Classifier) else "an encoder alone"
            raise UserError(f"--step times an agent from images to action, and {source.text} is {kind}: leave it out")
        return network
    if step:
        task = source.config().task
        return PolicyStep(network, task.min_depth, task.max_depth)
    return network.encoder


def inputs_of(module: nn.Module, batch_size: int) -> Example:
    """What a network is measured on."""
    return module.example(batch_size) if isinstance(module, PolicyStep) else images_of(module, batch_size)


def macs_of(module: nn.Module, example: Example) -> int:
    """Deployed multiply-accumulates; of a step also those of linear layers and the recurrent core, each weight once."""
    if not isinstance(module, PolicyStep):
        return deployed_macs(module, example)
    encoder = module.policy.encoder
    others = {*module.policy.modules()} - {*encoder.modules()}
    products = (part for part in others if isinstance(part, nn.Linear | nn.RNNBase))
    weights = (weight for part in products for weight in part.parameters(recurse=False) if weight.ndim == 2)
    return deployed_macs(encoder, ()) + sum(weight.numel() for weight in weights)


def chosen_runtimes(text: str) -> list[str]:
    """Names of runtimes parted by commas, or all of them for "all"."""
    return list(RUNTIMES) if text == ALL else text.split(",")

"""The structure of a network as something that is timed at any widths: of a policy its encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import cast

import torch
from torch import Tensor, nn

from navprune.costs.probing import Network, Timer
from navprune.errors import UserError
from navprune.models.classifiers import ClassifierSpec
from navprune.models.spec import EncoderSpec
from navprune.progress import ProgressLine
from navprune.pruning.groups import Widths, block_of, encoder_in, units
from navprune.pruning.structure import Structure, structure_of


def network_of(structure: Structure, batch: int, sizes: Mapping[str, Sequence[int]] | None = None) -> Network:
    """What is timed, with the channels that its widths may have (`sizes`; those of others are fixed)."""
    model = structure.model if structure.table1 is None else encoder_in(structure.model)[1]
    part = structure_of(model, structure.example)
    allowed = {name: (sizes or {}).get(name, (channels,)) for name, channels in part.widths.items()}
    blocks = {group.name: block_of(group) for group in part.blocks}
    example = torch.rand(batch, *_input(model, structure), generator=torch.Generator().manual_seed(0))
    leaves = [f"{name} {module!r}" for name, module in model.named_modules() if not [*module.children()]]
    said = repr((type(model).__name__, part.layers, leaves, sorted(allowed.items()), sorted(blocks.items())))
    name = hashlib.sha256(said.encode()).hexdigest()
    return Network(partial(_built, part), part.layers, part.widths, allowed, blocks, example, name)


def _input(model: nn.Module, structure: Structure) -> tuple[int, ...]:
    if structure.example is None:
        return tuple(cast(EncoderSpec | ClassifierSpec, model.spec).input)
    if not isinstance(structure.example, Tensor):
        raise UserError("milliseconds are measured of networks with one input; give an example that is one tensor")
    return tuple(structure.example.shape[1:])


def _built(part: Structure, widths: Widths) -> nn.Module:
    """The first channels of each width."""
    known = (group for group in part.everything if group.name in widths)
    keep = {group.name: torch.arange(units(group)) < widths[group.name] // group.unit for group in known}
    return part.slim(keep).cpu().eval()


class Stopwatch:
    """Times a network at other widths, each beside the dense one: noisy, and costly to ask."""

    def __init__(self, structure: Structure, timer: Timer) -> None:
        self.network, self.timer, self.asked = network_of(structure, timer.batch), timer, 0
        steps = sum(units(group) for group in structure.groups).bit_length()
        self.line = ProgressLine("latency", 1 + steps, "networks")  # as many as a bisection asks

    @cached_property
    def dense(self) -> Callable[[], object]:
        """The dense network, ready to run."""
        return self.timer.prepared(self.network.build({}), self.network.example)

    def share(self, widths: Widths) -> float:
        """The time at these widths as a share of the dense network's."""
        found = self.timer.ratio(self.timer.prepared(self.network.build(widths), self.network.example), self.dense)
        self.asked += 1
        self.line.show(self.asked, f"{found.value:.0%} of the dense network's time", last=True)
        return found.value

    def milliseconds(self, widths: Widths) -> float:
        """The time at these widths."""
        return self.share(widths) * self.timer.milliseconds(self.dense)

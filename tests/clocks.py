"""A machine that is made up: what it takes for a network is a sum over its layers, with noise where asked for."""

import random
from dataclasses import dataclass, field

import torch

from navprune.costs.counting import module_layers
from navprune.costs.probing import Ratio, Timer
from navprune.costs.runtimes import RUNTIMES

CALL, LAYER, MAC, OUTPUT = 1e-5, 2e-6, 1e-10, 1e-9


def seconds(module, example, constant=1.0):
    """A constant for the call, one for each layer, and its work and outputs at a rate."""
    layers = [layer for layer in module_layers(module, example) if layer.taps]
    work = [layer.outputs * layer.positions for layer in layers]
    macs = [layer.taps * layer.inputs * out for layer, out in zip(layers, work)]
    work_alone = sum(MAC * m + OUTPUT * out for m, out in zip(macs, work))
    return work_alone + constant * (CALL + LAYER * len(layers))


@dataclass(frozen=True)
class Machine(Timer):
    """Measures `seconds` instead of a clock; `prepared_networks` are those that it was given."""

    noise: float = 0.0
    drift: float = 0.0
    constant: float = 1.0
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    prepared_networks: list = field(default_factory=list)

    def prepared(self, module, example):
        self.prepared_networks.append(module)
        taken = seconds(module, example, self.constant)
        return lambda: taken

    def ratio(self, one, other):
        found = one() / other() * (1 + self.noise * self.rng.gauss(0, 1))
        return Ratio(found * (1 + self.drift * len(self.prepared_networks)), 0.0)

    def milliseconds(self, run):
        return 1e3 * run()


def machine(**options):
    return Machine(RUNTIMES["eager"], torch.device("cpu"), **options)

import random
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from navprune.costs import probing
from navprune.costs.counting import module_layers
from navprune.costs.probing import Timer, check_quiet, non_negative, probe, ratio
from navprune.costs.runtimes import RUNTIMES
from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.classifiers import classifier_spec
from navprune.models.spec import encoder_spec
from navprune.pruning.config import PruningConfig
from navprune.pruning.methods.probe import network_of
from navprune.pruning.methods.scores import SCORES
from navprune.pruning.structure import structure_of

CALL, LAYER, MAC, OUTPUT = 2e-4, 1e-5, 1e-11, 1e-10


def seconds(module, example):
    """A machine on which the model of the module is the truth."""
    layers = [layer for layer in module_layers(module, example) if layer.taps]
    work = [layer.outputs * layer.positions for layer in layers]
    macs = [layer.taps * layer.inputs * out for layer, out in zip(layers, work)]
    return CALL + sum(LAYER + MAC * m + OUTPUT * out for m, out in zip(macs, work))


@dataclass(frozen=True)
class Machine(Timer):
    """Takes what `seconds` says, with some noise."""

    noise: float = 0.0
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    prepared_networks: list = field(default_factory=list)

    def prepared(self, module, example):
        self.prepared_networks.append(module)
        exact = seconds(module, example)
        return lambda: exact * (1 + self.noise * self.rng.gauss(0, 1))


def machine(noise=0.0):
    return Machine(RUNTIMES["eager"], torch.device("cpu"), noise)


def network(spec):
    structure = structure_of(build(spec, 0), blocks=True)
    scores = SCORES["l1"](structure, None)
    return network_of(structure, scores, PruningConfig())


SPECS = {
    "resnet50": encoder_spec("resnet50", (1, 64, 64), 8),
    "resnet18": encoder_spec("resnet18", (1, 64, 64), 8),
    "cifar_resnet20": classifier_spec("cifar_resnet20"),
}
"""Families with stages, which are measured one by one."""


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_where_time_is_a_sum_over_layers_it_is_found(spec):
    net, timer = network(spec), machine()
    times = probe(net, timer, 24, 60, None)
    rng = random.Random(1)
    dense = seconds(net.build(net.channels), net.example)
    for _ in range(5):
        widths = net.drawn(rng)
        assert times.share(widths) == pytest.approx(seconds(net.build(widths), net.example) / dense, rel=0.03)
    assert times.milliseconds == pytest.approx(1e3 * dense)
    assert times.error < 0.05

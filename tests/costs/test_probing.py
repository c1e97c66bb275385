import random

import numpy as np
import pytest
import torch
from clocks import machine, seconds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from navprune.costs.probing import Ratio, Timer, check_quiet, non_negative, probe
from navprune.costs.runtimes import RUNTIMES
from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.classifiers import classifier_spec
from navprune.models.spec import encoder_spec
from navprune.pruning.groups import units
from navprune.pruning.structure import structure_of
from navprune.pruning.timing import network_of

CIFAR = classifier_spec("cifar_resnet56", 10)
CLASSIFIER = CIFAR.without_blocks([name for name in CIFAR.removable_blocks() if int(name[-1]) > 2])  # shorter
SPECS = {
    "resnet50": encoder_spec("resnet50", (1, 64, 64), 8),
    "resnet18": encoder_spec("resnet18", (1, 64, 64), 8),
    "se_resnet50": encoder_spec("se_resnet50", (1, 64, 64), 8),
    "simple_cnn": encoder_spec("simple_cnn", (1, 64, 64)),
    "cifar_resnet": CLASSIFIER,
}
"""Families with stages, which are measured one by one, and one without."""


def network(spec):
    structure = structure_of(build(spec, 0), blocks=True)
    sizes = {
        group.name: [group.unit * n for n in range(max(1, units(group) // 4), units(group) + 1)]
        for group in structure.channels
    }
    return network_of(structure, 1, sizes)


def probed(net, timer, networks, seconds, cache, **options):
    return probe(net, timer, timer.prepared(net.build({}), net.example), networks, seconds, cache, **options)


def true_share(net, widths):
    return seconds(net.build(widths), net.example) / seconds(net.build({}), net.example)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_where_time_is_a_sum_over_layers_it_is_found(spec):
    net = network(spec)
    times = probed(net, machine(), 24, 60, None)
    rng = random.Random(1)
    for _ in range(5):
        widths = net.drawn(rng)
        assert times.share(widths) == pytest.approx(true_share(net, widths), rel=0.03)
    assert times.milliseconds == pytest.approx(1e3 * seconds(net.build({}), net.example))
    assert times.error < 0.05


def test_noise_is_averaged_out():
    net = network(SPECS["resnet50"])
    times = probed(net, machine(noise=0.02), 24, 60, None)
    rng = random.Random(1)
    errors = [times.share(widths) / true_share(net, widths) - 1 for widths in (net.drawn(rng) for _ in range(10))]
    assert np.abs(errors).mean() < 0.04


def test_a_machine_that_disagrees_with_itself_is_refused():
    with pytest.raises(UserError, match=r"differ by 2\d%.*not quiet.*end what else runs"):
        probed(network(SPECS["resnet18"]), machine(drift=0.1), 4, 60, None)
    found = iter([Ratio(1.2, 0.0), Ratio(1.04, 0.0), Ratio(1.06, 0.0), Ratio(1.06, 0.0), Ratio(1.06, 0.02)])
    assert check_quiet(lambda: next(found), 1.0).value == 1.04  # the second time
    with pytest.raises(UserError, match="6%"):
        check_quiet(lambda: next(found), 1.0)
    assert check_quiet(lambda: next(found), 1.0).half == 0.02  # within its interval


def test_what_was_measured_is_not_measured_again(tmp_path):
    net, first, second, fresh = network(SPECS["resnet18"]), machine(), machine(), machine()
    before = probed(net, first, 6, 60, tmp_path)
    again = probed(net, second, 6, 60, tmp_path)
    assert again.terms == before.terms
    assert len(first.prepared_networks) > 6 and len(second.prepared_networks) == 2  # the dense one, twice
    assert probed(net, machine(), 8, 60, tmp_path).terms != before.terms  # two more
    probed(net, fresh, 6, 60, tmp_path, fresh=True)
    assert len(fresh.prepared_networks) == len(first.prepared_networks)
    probed(network(SPECS["resnet50"]), third := machine(), 4, 60, tmp_path)
    assert len(third.prepared_networks) > 4  # another network


def test_a_cache_that_cannot_be_read_is_measured_anew(tmp_path):
    net = network(SPECS["resnet18"])
    before = probed(net, machine(), 4, 60, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text("{")
    assert probed(net, machine(), 4, 60, tmp_path).terms == before.terms


def test_it_ends_when_its_time_is_over():
    timer = machine()
    with pytest.raises(UserError, match="stopped after 0 networks, of 4 at least: give it more seconds"):
        probed(network(SPECS["resnet18"]), timer, 1000, 0.0, None)
    assert len(timer.prepared_networks) == 2


def test_networks_that_differ_have_names_that_differ():
    specs = [
        encoder_spec("resnet18", (1, 64, 64), 8), encoder_spec("resnet18", (4, 64, 64), 8),
        encoder_spec("resnet18", (1, 64, 64)),
        classifier_spec("cifar_resnet56", 10), classifier_spec("cifar_resnet56", 100),
    ]  # fmt: skip
    modules = [nn.Sequential(nn.Conv2d(3, 8, 3), act, nn.Conv2d(8, 4, 3)) for act in (nn.ReLU(), nn.GELU())]
    names = [network(spec).name for spec in specs]
    names += [network_of(structure_of(module, torch.rand(1, 3, 8, 8)), 1).name for module in modules]
    assert len(set(names)) == len(names) and network(specs[0]).name == names[0]


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    probed(network(SPECS["resnet18"]), machine(), 4, 60, None)
    assert torch.equal(torch.get_rng_state(), before)


def test_stems_inside_of_blocks_are_no_parts():
    timer = machine()
    probed(network(SPECS["cifar_resnet"]), timer, 4, 60, None)
    assert len(timer.prepared_networks) == 2 + 4 * 3 + 2  # the dense one twice, stages, one stem and one whole


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 12))
def test_non_negative_least_squares_meet_their_conditions(seed, columns, rows):
    rng = np.random.default_rng(seed)
    matrix, wanted = rng.normal(size=(rows, columns)), rng.normal(size=rows)
    x = non_negative(matrix, wanted, sweeps=5000)
    slope = matrix.T @ (matrix @ x - wanted)
    assert (x >= 0).all()
    assert (slope > -1e-3).all() and abs(slope @ x) < 1e-3  # Karush, Kuhn and Tucker


def test_a_timer_measures():
    timer = Timer(RUNTIMES["eager"], torch.device("cpu"), threads=1)
    net = network(SPECS["simple_cnn"])
    run = timer.prepared(net.build({}), net.example)
    before = torch.get_num_threads()
    found = timer.ratio(run, run)
    assert 0.5 < found.value < 2 and found.half > 0 and timer.milliseconds(run) > 0
    assert torch.get_num_threads() == before
    assert {"device", "runtime", "version", "batch"} == timer.place.keys()

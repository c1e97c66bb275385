import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from navprune.costs import latency
from navprune.costs.counting import cost, count
from navprune.costs.latency import device_name, interleaved, measure, ratio, threads_of
from navprune.costs.runtimes import RUNTIMES
from navprune.costs.runtimes.pytorch import Compiled
from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.classifiers import classifier_spec
from navprune.models.encoders import Encoder
from navprune.models.spec import encoder_spec

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


class Clock:
    """Time passes only when a `Timed` encoder runs."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed(Encoder):
    """Takes the given seconds in turn, over and over, and notes each pass in a log."""

    def __init__(self, name, spec, clock, log, seconds):
        super().__init__(spec)
        self.name, self.clock, self.log, self.seconds = name, clock, log, itertools.cycle(seconds)

    def __deepcopy__(self, memo):  # so that the clock and the log stay those of the test
        return self

    def forward(self, images):
        assert not torch.is_grad_enabled() and not self.training
        self.log.append((self.name, len(images)))
        self.clock.now += next(self.seconds)
        return images


@pytest.fixture
def timed():
    clock, log = Clock(), []
    wide, slim = encoder_spec("resnet18", (1, 32, 32), 8), encoder_spec("resnet18", (1, 32, 32), 8, width=0.5)
    models = {
        "wide": Timed("wide", wide, clock, log, [0.004]),
        "slim": Timed("slim", slim, clock, log, [0.003]),
    }
    return models, clock, log


def test_encoders_take_turns_after_the_warm_up(timed):
    models, clock, log = timed
    measure(models, (2,), ("eager",), repeats=3, warmup=2, clock=clock)
    assert log == [("wide", 2)] * 2 + [("slim", 2)] * 2 + [("wide", 2), ("slim", 2)] * 3


def test_savings_are_relative_to_the_first(timed):
    models, clock, _ = timed
    wide, slim = measure(models, (1,), ("eager",), repeats=4, clock=clock)
    assert (wide.median_ms, slim.median_ms) == pytest.approx((4.0, 3.0))
    assert (wide.saving_realised, wide.saving_theoretical) == (0.0, 0.0)
    assert slim.saving_realised == pytest.approx(0.25)
    macs = [cost(model.spec).macs for model in models.values()]
    assert slim.saving_theoretical == pytest.approx(1 - macs[1] / macs[0])


def test_median_and_percentiles():
    clock = Clock()
    times = [0.001 * i for i in range(1, 101)]
    model = Timed("a", encoder_spec("resnet18", (1, 32, 32), 8), clock, [], times)
    (row,) = measure({"a": model}, (1,), ("eager",), repeats=100, warmup=0, clock=clock)
    assert row.median_ms == pytest.approx(50.5)
    assert (row.p95_ms, row.p99_ms) == pytest.approx((95.05, 99.01))


def test_rows_cover_every_combination_in_order(timed):
    models, clock, _ = timed
    calls = []
    rows = measure(models, (1, 4), ("eager",), clock=clock, progress=lambda *a: calls.append(a))
    assert [(row.runtime, row.batch_size, row.model) for row in rows] == [
        ("eager", batch_size, model) for batch_size in (1, 4) for model in models
    ]
    assert calls == [(1, 2), (2, 2)]
    assert rows[0].to_json().keys() >= {
        "model", "runtime", "batch_size", "median_ms", "p95_ms", "p99_ms", "saving_realised", "saving_theoretical",
    }  # fmt: skip


def test_what_fails_is_told_in_its_rows_and_the_rest_is_measured(timed, monkeypatch):
    models, clock, _ = timed

    def prepare(self, module, example):
        if module is models["wide"]:
            raise RuntimeError("no C++ compiler\nand a long trace")
        return lambda *images: images

    monkeypatch.setattr(Compiled, "missing", lambda *_: None)
    monkeypatch.setattr(Compiled, "prepare", prepare)
    rows = measure(models, (1,), ("compiled", "eager"), clock=clock)
    assert [row.note for row in rows] == ["no C++ compiler", "", "", ""]
    assert rows[0].median_ms is rows[0].p99_ms is rows[0].saving_realised is rows[1].saving_realised is None
    assert rows[1].median_ms is not None and rows[3].saving_realised == pytest.approx(0.25)


def test_a_runtime_that_is_missing_is_told_in_its_rows(timed, monkeypatch):
    models, clock, log = timed
    monkeypatch.setattr("navprune.costs.runtimes.pytorch.compile_fault", lambda: "it needs a C++ compiler; install one")
    rows = measure(models, (1,), ("compiled",), clock=clock)
    assert [row.note for row in rows] == ["it needs a C++ compiler; install one"] * 2 and log == []
    assert rows[1].median_ms is None and rows[1].saving_theoretical > 0


def test_a_mistake_in_a_module_is_no_row_but_raised():
    with pytest.raises(RuntimeError):
        measure({"a": nn.Linear(3, 2)}, (1,), example=lambda module, batch: (torch.rand(batch, 4),), macs=lambda *_: 1)


@pytest.mark.parametrize("device", DEVICES)
def test_real_encoders_are_measured_and_left_as_they_were(device):
    encoder = build(encoder_spec("simple_cnn", (1, 40, 40)), seed=0)
    runtimes = [name for name in RUNTIMES if name != "compiled"]
    for row in measure({"cnn": encoder}, (2,), runtimes, device, repeats=2, warmup=1):
        missing = RUNTIMES[row.runtime].missing(torch.device(device))
        assert row.note == (missing or "")
        assert missing or 0 < row.median_ms <= row.p95_ms <= row.p99_ms
    assert encoder.training
    assert {parameter.device.type for parameter in encoder.parameters()} == {"cpu"}


def test_classifiers_and_foreign_modules_are_measured_by_their_multiply_accumulates():
    wide, slim = (build(classifier_spec("cifar_vgg16_bn", 10, width=width), 0) for width in (0.1, 0.05))
    rows = measure({"wide": wide, "slim": slim}, (1,), repeats=1, warmup=0)
    images = torch.rand(1, 3, 32, 32)
    assert rows[1].saving_theoretical == pytest.approx(1 - count(slim, images).macs / count(wide, images).macs)
    lone = {"four": nn.Linear(8, 4), "one": nn.Linear(8, 1)}
    (_, one) = measure(lone, (3,), repeats=1, example=lambda module, batch: (torch.rand(batch, 8),))
    assert one.saving_theoretical == 0.75


def test_inputs_are_the_same_each_time():
    encoder = build(encoder_spec("simple_cnn", (1, 40, 40)), seed=0)
    state = torch.get_rng_state()
    first, second = (latency.images_of(encoder, 2)[0] for _ in range(2))
    assert torch.equal(first, second) and first.shape == (2, 1, 40, 40)
    assert torch.equal(state, torch.get_rng_state())


def test_unknown_runtime_is_told_before_anything_is_measured(timed):
    models, clock, log = timed
    with pytest.raises(UserError, match="tvm"):
        measure(models, runtimes=("eager", "tvm"), clock=clock)
    assert log == []


# Threads ------------------------------------------------------------------------------------------


class Counting(nn.Module):
    """Notes the threads of torch at each pass."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __deepcopy__(self, memo):  # so that the notes stay those of the test
        return self

    def forward(self, x):
        self.seen.add(torch.get_num_threads())
        return x


def test_threads_are_torchs_within_the_measurement_and_put_back():
    before, seen = torch.get_num_threads(), set()
    other, example = before + 1, (torch.rand(1, 3),)
    measure({"a": Counting(seen)}, (1,), repeats=2, threads=other, example=lambda *_: example, macs=lambda *_: 1)
    assert seen == {other} and torch.get_num_threads() == before
    assert device_name("cpu", other).endswith(f", {other} threads")


def test_threads_are_put_back_after_a_failure_and_none_changes_nothing():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), threads_of(before + 1):
        raise ZeroDivisionError
    assert torch.get_num_threads() == before
    with threads_of(None):
        assert torch.get_num_threads() == before


# Calls in turn, and their ratio -------------------------------------------------------------------


def test_calls_take_turns_and_are_paired():
    clock, calls = Clock(), []

    def call(name, seconds):
        calls.append(name)
        clock.now += seconds

    taken = interleaved({"a": lambda: call("a", 2.0), "b": lambda: call("b", 3.0)}, 3, clock)
    assert taken == {"a": [2.0] * 3, "b": [3.0] * 3} and calls == ["a", "b"] * 3
    assert ratio(taken["b"], taken["a"])[0] == 1.5


positive = st.floats(0.1, 10)


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=40), st.sampled_from([0.25, 2.0, 1024.0]))
def test_a_ratio_knows_no_unit_and_a_machine_that_slows_down_slows_both(pairs, factor):
    first, second = np.array(pairs).T
    middle, half = ratio(first, second)
    assert ratio(factor * first, factor * second) == (middle, half)
    assert ratio(factor * first, second) == (factor * middle, factor * half)
    slower = np.linspace(1, 5, len(first))
    assert ratio(slower * first, slower * second) == pytest.approx((middle, half), rel=1e-9, abs=1e-12)


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=40).filter(lambda pairs: len(pairs) % 2))
def test_the_ratio_of_the_second_is_the_inverse(pairs):
    first, second = np.array(pairs).T
    assert ratio(first, second)[0] * ratio(second, first)[0] == pytest.approx(1)


def test_few_pairs_have_no_interval():
    assert ratio([1.0] * 5, [2.0] * 5) == (0.5, math.inf)
    assert ratio([1.0] * 6, [2.0] * 6) == (0.5, 0.0)


@pytest.mark.parametrize("pairs", [6, 11, 40])
def test_the_interval_holds_the_median_of_all_in_95_of_100_samples(pairs):
    """Symmetric noise around 1: half the width holds it where the interval lies evenly, which it does on average."""
    rng = np.random.default_rng(pairs)
    noise = rng.lognormal(sigma=0.2, size=(2000, pairs))
    held = []
    for sample in noise:
        low, high = np.sort(sample)[[rank(pairs) - 1, -rank(pairs)]]
        assert ratio(sample, np.ones(pairs))[1] == pytest.approx((high - low) / 2)
        held.append(low <= 1 <= high)
    assert np.mean(held) > 0.94


def rank(pairs):
    """The k-th from either end bounds the interval: from the cumulated binomial distribution."""
    shares = np.cumsum([math.comb(pairs, k) for k in range(pairs)]) / 2**pairs
    return int(np.searchsorted(shares, 0.025, side="right"))

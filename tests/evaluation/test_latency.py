import itertools

import pytest
import torch

from navprune.costs.counting import cost
from navprune.errors import UserError
from navprune.evaluation import latency
from navprune.evaluation.latency import RUNTIMES, measure
from navprune.machine import compile_fault
from navprune.models.build import build
from navprune.models.encoders import Encoder
from navprune.models.spec import encoder_spec

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
NEEDS = {"compiled": pytest.mark.skipif(compile_fault() is not None, reason=f"torch.compile: {compile_fault()}")}
"""What a runtime needs of the machine."""


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


def test_median_and_95th_percentile():
    clock = Clock()
    times = [0.001 * i for i in range(1, 101)]
    model = Timed("a", encoder_spec("resnet18", (1, 32, 32), 8), clock, [], times)
    (row,) = measure({"a": model}, (1,), ("eager",), repeats=100, warmup=0, clock=clock)
    assert row.median_ms == pytest.approx(50.5)
    assert row.p95_ms == pytest.approx(95.05)


def test_rows_cover_every_combination_in_order(timed):
    models, clock, _ = timed
    calls = []
    rows = measure(models, (1, 4), ("eager",), clock=clock, progress=lambda *a: calls.append(a))
    assert [(row.runtime, row.batch_size, row.model) for row in rows] == [
        ("eager", batch_size, model) for batch_size in (1, 4) for model in models
    ]
    assert calls == [(1, 2), (2, 2)]
    assert rows[0].to_json().keys() >= {
        "model", "runtime", "batch_size", "median_ms", "p95_ms", "saving_realised", "saving_theoretical",
    }  # fmt: skip


def test_a_runtime_that_does_not_work_is_told_in_its_rows(timed, monkeypatch):
    models, clock, _ = timed

    def broken(images):
        raise RuntimeError("no C++ compiler\nand a long trace")

    monkeypatch.setattr(latency.torch, "compile", lambda model, **_: broken)
    monkeypatch.setattr(latency, "compile_fault", lambda: None)
    rows = measure(models, (1,), ("compiled", "eager"), clock=clock)
    assert [row.note for row in rows] == ["no C++ compiler"] * 2 + [""] * 2
    assert rows[0].median_ms is None and rows[0].saving_realised is None
    assert rows[2].median_ms is not None


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("runtime", [pytest.param(runtime, marks=NEEDS.get(runtime, ())) for runtime in RUNTIMES])
def test_a_real_encoder_is_measured_and_left_as_it_was(runtime, device):
    encoder = build(encoder_spec("simple_cnn", (1, 40, 40)), seed=0)
    (row,) = measure({"cnn": encoder}, (2,), (runtime,), device, repeats=2, warmup=1)
    assert row.note == "" and 0 < row.median_ms <= row.p95_ms
    assert encoder.training
    assert {parameter.device.type for parameter in encoder.parameters()} == {"cpu"}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("runtime", [pytest.param(runtime, marks=NEEDS.get(runtime, ())) for runtime in RUNTIMES])
def test_a_runtime_computes_what_the_module_computes(runtime, device):
    encoder, images = build(encoder_spec("simple_cnn", (1, 40, 40)), seed=0).to(device), torch.rand(2, 1, 40, 40)
    with torch.inference_mode():
        answer = latency._runner(encoder.eval(), runtime, images.to(device))()
        torch.testing.assert_close(answer, encoder(images.to(device)), atol=1e-4, rtol=1e-4)


def test_unknown_runtime():
    with pytest.raises(UserError, match="tensorrt"):
        measure({}, runtimes=("tensorrt",))


def test_where_nothing_can_be_compiled_the_rows_say_why(monkeypatch):
    monkeypatch.setattr("navprune.evaluation.latency.compile_fault", lambda: "it needs a C++ compiler; install one")
    (row,) = measure({"cnn": build(encoder_spec("simple_cnn", (1, 40, 40)), 0)}, (1,), ("compiled",), "cpu", repeats=1)
    assert row.note.startswith("it needs a C++ compiler") and row.median_ms is None

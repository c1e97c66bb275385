import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from navprune.costs.latency import threads_of
from navprune.costs.runtimes import RUNTIMES
from navprune.costs.runtimes.onnx import onnx_bytes
from navprune.errors import UserError

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from navprune.costs.runtimes import onnx_runtime  # noqa: E402
from navprune.costs.runtimes.onnx_runtime import CUDA, TENSORRT, bound, session_of  # noqa: E402

GPU = torch.device("cuda")


class Sums(nn.Module):
    """Three inputs of two types, one of which is not read, and two outputs."""

    def forward(self, unread, x, keep):
        return x * keep[:, None], x.sum(dim=1) > 0


def test_bound_tensors_give_what_the_module_gives():
    module, example = Sums(), (torch.randn(5), torch.randn(2, 3), torch.tensor([True, False]))
    run = bound(session_of(onnx_bytes(module, example)), module, example)
    others = torch.randn(5), torch.randn(3, 2).t(), torch.tensor([False, True])  # not in the order of a row
    kept = [(inputs, run(*inputs)) for inputs in (example, others)]
    for inputs, given in kept:
        torch.testing.assert_close(given, module(*inputs))


def test_a_session_has_the_threads_of_torch():
    graph = onnx_bytes(nn.Linear(3, 2), (torch.rand(1, 3),))
    for count in (1, 2):
        with threads_of(count):
            assert session_of(graph).get_session_options().intra_op_num_threads == count


def test_what_is_no_graph_is_told_in_one_line():
    with pytest.raises(UserError, match="onnxruntime cannot run this graph") as caught:
        session_of(b"no graph")
    assert "\n" not in str(caught.value)


def test_a_provider_that_is_not_there_is_named_with_the_package_that_has_it(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert RUNTIMES["onnxruntime"].missing(GPU) == f"onnxruntime lacks its {CUDA}: pip install onnx onnxruntime-gpu"
    assert TENSORRT in RUNTIMES["tensorrt"].missing(GPU)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, "CPUExecutionProvider"])
    assert RUNTIMES["onnxruntime"].missing(GPU) is RUNTIMES["tensorrt"].missing(GPU) is None


@pytest.mark.parametrize(("name", "provider"), [("onnxruntime", CUDA), ("tensorrt", TENSORRT)])
def test_a_provider_that_does_not_start_is_not_measured_under_its_name(monkeypatch, name, provider):
    asked = []

    def fallen_back(graph, providers):
        asked.extend(providers)
        return SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])

    monkeypatch.setattr(onnx_runtime, "session_of", fallen_back)
    monkeypatch.setattr(onnx_runtime, "onnx_bytes", lambda *_, **__: b"")
    example = (SimpleNamespace(device=GPU),)
    with pytest.raises(UserError, match=f"cannot start its {provider}: "):
        RUNTIMES[name].prepare(nn.Identity(), example)
    assert asked[0] == provider and "onnxruntime" in sys.modules

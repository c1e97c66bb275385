import pytest
import torch
from torch import nn

from navprune.costs.latency import threads_of
from navprune.costs.runtimes import RUNTIMES
from navprune.costs.runtimes.onnx import onnx_bytes

openvino = pytest.importorskip("openvino")
pytest.importorskip("onnx")

from navprune.costs.runtimes.openvino import request_of  # noqa: E402


def test_a_request_has_the_threads_of_torch_and_the_precision_asked_for():
    graph = onnx_bytes(nn.Linear(3, 2), (torch.rand(1, 3),))
    with threads_of(1):
        model = request_of(graph).get_compiled_model()
    assert model.get_property("INFERENCE_NUM_THREADS") == 1
    assert model.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32


def test_a_processor_without_a_precision_says_so(monkeypatch):
    class Core:
        def get_property(self, *_):
            return ["FP32"]

    monkeypatch.setattr(openvino, "Core", Core)
    cpu = torch.device("cpu")
    assert RUNTIMES["openvino"].missing(cpu) is None
    assert "does not compute in BF16" in RUNTIMES["openvino-bf16"].missing(cpu)
    assert "does not compute in INT8" in RUNTIMES["openvino-int8"].missing(cpu)


def test_it_is_for_the_cpu():
    assert RUNTIMES["openvino"].missing(torch.device("cuda")) == "OpenVINO is measured on the CPU: give --device cpu"

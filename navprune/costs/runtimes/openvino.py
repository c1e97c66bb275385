"""OpenVINO on the CPU: float32, bfloat16, int8."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from navprune.costs.runtimes.base import Example, Run
from navprune.costs.runtimes.onnx import MOMENTS, PLAIN, onnx_bytes, quantised

INSTALL = "pip install openvino onnx onnxruntime"


@dataclass(frozen=True)
class OpenVino:
    """The ONNX graph of a module, compiled for least latency; int8 is `quantised`, and bfloat16 where that is not."""

    name: str = "openvino"
    precision: str = "f32"
    int8: bool = False

    def missing(self, device: torch.device) -> str | None:
        """Whether it is not installed, or the processor does not compute in its precision."""
        for package in ("openvino", "onnx", *(["onnxruntime"] if self.int8 else [])):
            if importlib.util.find_spec(package) is None:
                return f"{package} is not installed: {INSTALL}"
        if device.type != "cpu":
            return "OpenVINO is measured on the CPU: give --device cpu"
        import openvino

        able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        wanted = "INT8" if self.int8 else "BF16" if self.precision == "bf16" else "FP32"
        return None if wanted in able else f"this processor does not compute in {wanted}"

    def version(self) -> str:
        """openvino's."""
        import openvino

        return f"openvino {openvino.__version__.partition('-')[0]}"

    def prepare(self, module: nn.Module, example: Example) -> Run:
        """See `Runtime`."""
        graph = onnx_bytes(module, example, form=MOMENTS if self.precision == "f32" and not self.int8 else PLAIN)
        if self.int8:
            names = [f"input_{i}" for i in range(len(example))]
            graph = quantised(graph, [{name: x.numpy() for name, x in zip(names, example)}])
        request = request_of(graph, self.precision)

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            found = request.infer({i: tensor.numpy() for i, tensor in enumerate(inputs)}, share_inputs=True)
            return tuple(torch.from_numpy(value.copy()) for value in found.values())

        return run


def request_of(graph: bytes, precision: str = "f32") -> Any:
    """What answers to inputs by an ONNX graph, with as many threads as torch has."""
    import openvino

    core = openvino.Core()
    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
    }
    return core.compile_model(core.read_model(graph), "CPU", options).create_infer_request()

"""OpenVINO on the CPU: float32, bfloat16, int8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from navprune.costs.runtimes.base import Example, Run, absent
from navprune.costs.runtimes.onnx import MOMENTS, PLAIN, int8_bytes, named, onnx_bytes
from navprune.installing import DEPLOY


@dataclass(frozen=True)
class OpenVino:
    """The ONNX graph of a module, compiled for least latency; int8 is `quantised`, and bfloat16 where that is not."""

    name: str = "openvino"
    precision: str = "f32"
    int8: bool = False

    def missing(self, device: torch.device) -> str | None:
        """Whether it is not installed, or the processor does not compute in its precision."""
        if device.type != "cpu":
            return "OpenVINO is measured on the CPU: give --device cpu"
        if fault := absent(DEPLOY, "openvino", "onnx", *(["onnxruntime"] if self.int8 else [])):
            return fault
        import openvino

        able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        wanted = "INT8" if self.int8 else "BF16" if self.precision == "bf16" else "FP32"
        return None if wanted in able else f"this processor does not compute in {wanted}: take openvino"

    def version(self) -> str:
        """openvino's."""
        import openvino

        return f"openvino {openvino.__version__.partition('-')[0]}"

    def prepare(self, module: nn.Module, example: Example) -> Run:
        """See `Runtime`."""
        form = MOMENTS if self.precision == "f32" else PLAIN
        graph = int8_bytes(module, example) if self.int8 else onnx_bytes(module, example, form=form)
        request = request_of(graph, self.precision)
        read = {place.get_any_name() for place in request.model_inputs}

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            found = request.infer({name: x.numpy() for name, x in named(inputs, read).items()}, share_inputs=True)
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
        "ENABLE_CPU_PINNING": False,  # else it waits for its core where another process is at work there
    }
    return core.compile_model(core.read_model(graph), "CPU", options).create_infer_request()

"""ONNX Runtime: float32 and int8 on the CPU, its CUDA and TensorRT providers on GPUs."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from navprune.costs.runtimes.base import Example, Run
from navprune.costs.runtimes.onnx import AFFINE, INSTALL, PLAIN, onnx_bytes, quantised

INSTALL_GPU = "pip install onnx onnxruntime-gpu"
CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"


@dataclass(frozen=True)
class OnnxRuntime:
    """float32 on the CPU, or by its CUDA provider; with int8 `quantised` on the example's own values."""

    name: str = "onnxruntime"
    int8: bool = False
    tensorrt: bool = False

    def missing(self, device: torch.device) -> str | None:
        """Whether it, or its provider for the device, is not installed."""
        install = INSTALL_GPU if device.type == "cuda" or self.tensorrt else INSTALL
        for package in ("onnxruntime", "onnx"):
            if importlib.util.find_spec(package) is None:
                return f"{package} is not installed: {install}"
        if self.tensorrt and device.type != "cuda":
            return "TensorRT needs a GPU: give --device cuda"
        import onnxruntime

        wanted = TENSORRT if self.tensorrt else CUDA if device.type == "cuda" else "CPUExecutionProvider"
        if wanted not in onnxruntime.get_available_providers():
            return f"onnxruntime lacks {wanted}: {install}"
        return None

    def version(self) -> str:
        """onnxruntime's."""
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"

    def prepare(self, module: nn.Module, example: Example) -> Run:
        """See `Runtime`."""
        device = example[0].device
        graph = onnx_bytes(module, example, form=PLAIN if self.int8 or device.type == "cuda" else AFFINE)
        names = [f"input_{i}" for i in range(len(example))]
        if self.int8:
            graph = quantised(graph, [{name: x.cpu().numpy() for name, x in zip(names, example)}])
        providers = [TENSORRT] if self.tensorrt else []
        session = session_of(graph, [*providers, CUDA] if device.type == "cuda" else None)
        if device.type == "cuda":
            return _bound(session, names)

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            given = {name: tensor.numpy() for name, tensor in zip(names, inputs)}
            return tuple(map(torch.from_numpy, session.run(None, given)))

        return run


def session_of(graph: bytes, providers: list[str] | None = None) -> Any:
    """A session of an ONNX graph, on the CPU with as many threads as torch has; raises UserError for no such graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=providers or ["CPUExecutionProvider"])


def _bound(session: Any, names: list[str]) -> Run:
    """Inputs and outputs stay in the memory of the GPU."""

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        binding = session.io_binding()
        for name, x in zip(names, inputs):
            x = x.contiguous()
            kind = str(x.dtype).removeprefix("torch.").replace("bool", "bool_")
            import numpy

            binding.bind_input(name, "cuda", 0, getattr(numpy, kind), tuple(x.shape), x.data_ptr())
        for output in session.get_outputs():
            binding.bind_output(output.name, "cuda")
        session.run_with_iobinding(binding)
        return tuple(torch.from_dlpack(value._ortvalue) for value in binding.get_outputs())

    return run

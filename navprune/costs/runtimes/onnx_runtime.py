"""ONNX Runtime: float32 and int8 on the CPU, its CUDA and TensorRT providers on GPUs."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from navprune.costs.runtimes.base import Example, Run, absent, as_tuple
from navprune.costs.runtimes.onnx import AFFINE, PLAIN, int8_bytes, named, onnx_bytes
from navprune.errors import UserError
from navprune.installing import DEPLOY, DEPLOY_GPU

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
LIBRARIES = {CUDA: "its CUDA and cuDNN are others than torch's", TENSORRT: "pip install tensorrt"}
"""What is amiss where a provider is installed and does not start."""


@dataclass(frozen=True)
class OnnxRuntime:
    """float32 on the CPU, or by its CUDA provider; with int8 `quantised` on the example's own values."""

    name: str = "onnxruntime"
    int8: bool = False
    tensorrt: bool = False

    def missing(self, device: torch.device) -> str | None:
        """Whether it, or its provider for the device, is not installed."""
        if self.tensorrt and device.type != "cuda":
            return "TensorRT needs a GPU: give --device cuda"
        install = DEPLOY_GPU if device.type == "cuda" else DEPLOY
        if fault := absent(install, "onnxruntime", "onnx"):
            return fault
        import onnxruntime

        wanted = self._providers(device)[0]
        here = wanted in onnxruntime.get_available_providers()
        return None if here else f"onnxruntime lacks its {wanted}: {install}"

    def version(self) -> str:
        """onnxruntime's."""
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"

    def prepare(self, module: nn.Module, example: Example) -> Run:
        """See `Runtime`."""
        device = example[0].device
        form = PLAIN if device.type == "cuda" else AFFINE
        graph = int8_bytes(module, example) if self.int8 else onnx_bytes(module, example, form=form)
        providers = self._providers(device)
        session = session_of(graph, providers)
        if device.type == "cuda":
            if providers[0] not in session.get_providers():  # it then runs on another one, and only logs so
                raise UserError(f"onnxruntime cannot start its {providers[0]}: {LIBRARIES[providers[0]]}")
            return bound(session, module, example)
        read = {value.name for value in session.get_inputs()}

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            given = {name: x.numpy() for name, x in named(inputs, read).items()}
            return tuple(map(torch.from_numpy, session.run(None, given)))

        return run

    def _providers(self, device: torch.device) -> list[str]:
        """The one that is meant, and those that take what it cannot."""
        return [TENSORRT] * self.tensorrt + [CUDA] * (device.type == "cuda") or [CPU]


def session_of(graph: bytes, providers: list[str] | None = None) -> Any:
    """A session of an ONNX graph, on the CPU with as many threads as torch has; raises UserError for no such graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # else its threads wait on others' cores
    try:
        return onnxruntime.InferenceSession(graph, options, providers=providers or [CPU])
    except Exception as error:  # its exceptions share no class of their own
        raise UserError(f"onnxruntime cannot run this graph: {' '.join(str(error).split())}") from None


def bound(session: Any, module: nn.Module, example: Example) -> Run:
    """As `Runtime.prepare`, of a session whose inputs and outputs stay in the memory of the example's device."""
    device = example[0].device
    with torch.inference_mode():
        answers = as_tuple(copy.deepcopy(module).cpu().eval()(*(x.cpu() for x in example)))
    read = {value.name for value in session.get_inputs()}
    written = [value.name for value in session.get_outputs()]

    def place(name: str, x: Tensor) -> tuple[Any, ...]:
        kind = torch.empty(0, dtype=x.dtype).numpy().dtype
        return name, device.type, device.index or 0, kind, tuple(x.shape), x.data_ptr()

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        given = {name: x.contiguous() for name, x in named(inputs, read).items()}
        outputs = tuple(torch.empty(x.shape, dtype=x.dtype, device=device) for x in answers)
        binding = session.io_binding()
        for name, x in given.items():
            binding.bind_input(*place(name, x))
        for name, x in zip(written, outputs):
            binding.bind_output(*place(name, x))
        if device.type == "cuda":  # the session has a stream of its own, and does not wait for torch's
            torch.cuda.current_stream(device).synchronize()
        session.run_with_iobinding(binding)
        return outputs

    return run

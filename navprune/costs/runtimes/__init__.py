"""The runtimes by name."""

from navprune.costs.runtimes.base import Runtime
from navprune.costs.runtimes.onnx_runtime import OnnxRuntime
from navprune.costs.runtimes.openvino import OpenVino
from navprune.costs.runtimes.pytorch import Compiled, CudaGraphs, Eager
from navprune.errors import UserError

_ALL: tuple[Runtime, ...] = (
    Eager(),
    Compiled(),
    CudaGraphs(),
    OnnxRuntime(),
    OnnxRuntime("onnxruntime-int8", int8=True),
    OnnxRuntime("tensorrt", tensorrt=True),
    OpenVino(),
    OpenVino("openvino-bf16", precision="bf16"),
    OpenVino("openvino-int8", precision="bf16", int8=True),
)
RUNTIMES: dict[str, Runtime] = {runtime.name: runtime for runtime in _ALL}


def runtime_of(name: str) -> Runtime:
    """The runtime of a name; raises UserError for an unknown one."""
    if name not in RUNTIMES:
        raise UserError(f"unknown runtime {name!r}; known are {', '.join(RUNTIMES)}")
    return RUNTIMES[name]

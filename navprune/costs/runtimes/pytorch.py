"""torch itself: eager, compiled, and replayed by CUDA graphs."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import FunctionType

import torch
from torch import Tensor, nn

from navprune.costs.runtimes.base import Example, Run, as_tuple
from navprune.machine import compile_fault


def _moved(module: nn.Module, example: Example) -> nn.Module:
    """A copy on the example's device, its convolutions' weights in channels-last order, which is the faster one."""
    moved: nn.Module = copy.deepcopy(module).eval().to(example[0].device)
    return moved.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # it forgets this form


@dataclass(frozen=True)
class Eager:
    """Operation by operation, convolutions in channels-last order."""

    name: str = "eager"

    def missing(self, device: torch.device) -> str | None:
        """None."""
        return None

    def version(self) -> str:
        """torch's."""
        return f"torch {torch.__version__}"

    def prepare(self, module: nn.Module, example: Example) -> Run:
        """See `Runtime`."""
        module = _moved(module, example)
        return torch.inference_mode()(lambda *inputs: as_tuple(module(*inputs)))


@dataclass(frozen=True)
class Compiled(Eager):
    """By torch.compile, the whole graph: a part that cannot be compiled would run eagerly under this name."""

    name: str = "compiled"

    def missing(self, device: torch.device) -> str | None:
        """Whether a C++ compiler is missing."""
        return compile_fault() if device.type == "cpu" else None

    def prepare(self, module: nn.Module, example: Example) -> Run:
        """See `Runtime`."""
        module = _moved(module, example)

        def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
            return as_tuple(module(*inputs))

        # torch keeps what it compiled with the code of a function, at most 8 results, and looks through all of them at
        # each call: modules that shared their class's code would slow each other down and use up that number.
        own = FunctionType(forward.__code__.replace(), forward.__globals__, closure=forward.__closure__)
        run = torch.inference_mode()(torch.compile(own, dynamic=False, fullgraph=True))
        with torch._dynamo.config.patch(allow_rnn=True):  # recurrent layers too, which it leaves out by itself
            run(*example)
        return run


@dataclass(frozen=True)
class CudaGraphs(Eager):
    """The kernels of one eager pass, captured and launched together."""

    name: str = "cuda-graphs"

    def missing(self, device: torch.device) -> str | None:
        """Whether there is no GPU."""
        return None if device.type == "cuda" else "CUDA graphs need a GPU: give --device cuda"

    @torch.inference_mode()
    def prepare(self, module: nn.Module, example: Example) -> Run:
        """See `Runtime`."""
        module = _moved(module, example)
        held = tuple(tensor.clone() for tensor in example)
        with torch.cuda.device(example[0].device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # whatever is chosen at the first passes must not be captured
                for _ in range(3):
                    module(*held)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = as_tuple(module(*held))

        @torch.inference_mode()
        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            for place, value in zip(held, inputs):
                place.copy_(value)
            graph.replay()
            return tuple(output.clone() for output in outputs)

        return run

"""A module as an ONNX graph, with every GroupNorm in a form that a runtime computes quickly, in float32 or int8.

Torch's exporter that traces is used, not the one that captures programs: that one writes GRUs whose reset gate acts
before the recurrent product, where torch's acts behind it.
"""

from __future__ import annotations

import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from navprune.errors import UserError

OPSET = 17
INSTALL = "pip install onnx onnxruntime"


class NormForm(nn.Module):
    """A GroupNorm written with other operations; by itself with those of torch's exporter."""

    weight: Tensor
    bias: Tensor

    def __init__(self, norm: nn.GroupNorm):
        super().__init__()
        self.groups, self.channels, self.eps = norm.num_groups, norm.num_channels, norm.eps
        self.register_buffer("weight", norm.weight.detach())
        self.register_buffer("bias", norm.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> the same."""
        return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)


class AffineForm(NormForm):
    """The scale and shift as a depthwise 1 x 1 convolution.

    ONNX Runtime then takes along the sum and the ReLU that follow, in the layout of its other convolutions.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> the same."""
        normed = F.instance_norm(x.reshape(len(x), self.groups, -1), eps=self.eps).reshape(x.shape)
        return F.conv2d(normed, self.weight.view(-1, 1, 1, 1), self.bias, groups=self.channels)


class MomentsForm(NormForm):
    """The mean and the mean square by global pooling: no operation gives the images another shape.

    OpenVINO then keeps its blocked layout. A variance is E[x^2] - E[x]^2, which in float32 loses digits where a mean is
    far larger than the deviation; zeros that convolutions pad with keep that from happening here.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> the same."""
        mean, square = (self._over_groups(F.adaptive_avg_pool2d(y, 1)) for y in (x, x * x))
        variance = (square - mean * mean).clamp(min=0)
        scale = self.weight.view(1, -1, 1, 1) / torch.sqrt(variance + self.eps)
        return x * scale + (self.bias.view(1, -1, 1, 1) - mean * scale)

    def _over_groups(self, each: Tensor) -> Tensor:
        """Means of channels [B, C, 1, 1] -> of their groups, for each channel."""
        batch, size = len(each), self.channels // self.groups
        means = each.view(batch, self.groups, size).mean(2, keepdim=True)
        return means.expand(batch, self.groups, size).reshape(batch, self.channels, 1, 1)


PLAIN, AFFINE, MOMENTS = NormForm, AffineForm, MomentsForm


def with_norms(module: nn.Module, form: Callable[[nn.GroupNorm], nn.Module]) -> nn.Module:
    """A copy of a module in evaluation whose GroupNorms have another form."""
    module = copy.deepcopy(module).eval()
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.GroupNorm):
            module.set_submodule(name, form(part))
    return module


def onnx_bytes(
    module: nn.Module,
    example: tuple[Tensor, ...],
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    form: Callable[[nn.GroupNorm], nn.Module] = AFFINE,
) -> bytes:
    """The ONNX graph of a module for inputs of the shapes of `example`, in evaluation, on the CPU.

    `inputs` and `outputs` are the names of its tensors ("input_0" and so on by default).
    """
    inputs = inputs or [f"input_{i}" for i in range(len(example))]
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the deprecation of this exporter, and branches on shapes, which are fixed
        torch.onnx.export(
            with_norms(module, form).cpu(),
            tuple(tensor.cpu() for tensor in example),
            cast(Any, file),  # its annotation forgets files that are open
            dynamo=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs) if outputs else None,
        )
    return file.getvalue()


def quantised(graph: bytes, observed: Iterable[Mapping[str, Any]], within: str = "") -> bytes:
    """An ONNX graph with convolutions and matrix products in int8, ranges taken from what it computes on `observed`.

    `observed` are inputs by name, NumPy arrays. Weights have a scale for each channel, activations one for each tensor
    (QDQ nodes, which ONNX Runtime and OpenVINO both read). Depthwise 1 x 1 convolutions stay: those are norms' scales.
    Only nodes whose name has `within` in it are touched.
    Raises UserError where onnx or onnxruntime is not installed.
    """
    try:
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    except ImportError as error:
        raise UserError(f"int8 needs {error.name}, which is not installed: {INSTALL}") from None

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest: Iterator[Mapping[str, Any]] = iter(observed)

        def get_next(self) -> Any:
            return next(self.rest, None)

    nodes = onnx.load_from_string(graph).graph.node
    products = (node.name for node in nodes if node.op_type in ("Gemm", "MatMul") or _dense(node))
    chosen = [name for name in products if within in name]
    with tempfile.TemporaryDirectory() as folder, _quiet():
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        before.write_bytes(graph)
        quantize_static(
            before,
            after,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=chosen,
        )
        return after.read_bytes()


def _dense(node: Any) -> bool:
    grouped = any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)
    return node.op_type == "Conv" and not grouped


class _quiet:
    """Without the quantiser's advice to preprocess graphs, which these do not need."""

    def __enter__(self) -> None:
        self.level = logging.getLogger().level
        logging.getLogger().setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.getLogger().setLevel(self.level)

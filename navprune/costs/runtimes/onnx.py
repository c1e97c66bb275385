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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from navprune.costs.runtimes.base import absent
from navprune.errors import UserError
from navprune.installing import DEPLOY

OPSET = 17
BATCH = "batch"
"""Name of a dimension of any size."""


class NormForm(nn.Module):
    """A GroupNorm written with other operations; by itself with those of torch's exporter."""

    weight: Tensor
    bias: Tensor

    def __init__(self, norm: nn.GroupNorm):
        super().__init__()
        self.groups, self.channels, self.eps = norm.num_groups, norm.num_channels, norm.eps
        ones = torch.ones(norm.num_channels)
        self.register_buffer("weight", norm.weight.detach() if norm.affine else ones)
        self.register_buffer("bias", norm.bias.detach() if norm.affine and norm.bias is not None else 0 * ones)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> the same."""
        return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)


class AffineForm(NormForm):
    """The scale and shift of images as a depthwise 1 x 1 convolution.

    ONNX Runtime then takes along the sum and the ReLU that follow, in the layout of its other convolutions.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> the same."""
        if x.ndim != 4 or x[0].numel() == self.groups:  # torch has no instance norm of single values
            return super().forward(x)
        normed = F.instance_norm(x.reshape(len(x), self.groups, -1), eps=self.eps).reshape(x.shape)
        return F.conv2d(normed, self.weight.view(-1, 1, 1, 1), self.bias, groups=self.channels)


class MomentsForm(NormForm):
    """The mean and the variance of images by global pooling, where an image has at least `LEAST` values.

    No operation gives the images another shape, so OpenVINO keeps its blocked layout; smaller ones are put into another
    layout in less time than the pooling takes. Two passes, since E[x^2] - E[x]^2 loses its digits on even images.
    """

    LEAST = 1 << 15

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> the same."""
        if x.ndim != 4 or x[0].numel() < self.LEAST:
            return super().forward(x)
        centred = x - self._means(x)
        deviation = torch.sqrt(self._means(centred * centred) + self.eps)
        return centred * (self.weight.view(1, -1, 1, 1) / deviation) + self.bias.view(1, -1, 1, 1)

    def _means(self, x: Tensor) -> Tensor:
        """Means over groups, for each of their channels: [B, C, h, w] -> [B, C, 1, 1]."""
        batch, size = len(x), self.channels // self.groups
        means = F.adaptive_avg_pool2d(x, 1).view(batch, self.groups, size).mean(2, keepdim=True)
        return means.expand(batch, self.groups, size).reshape(batch, self.channels, 1, 1)


PLAIN, AFFINE, MOMENTS = NormForm, AffineForm, MomentsForm


def with_norms(module: nn.Module, form: Callable[[nn.GroupNorm], nn.Module]) -> nn.Module:
    """A copy of a module in evaluation whose GroupNorms have another form; those of other classes may do more."""
    module = copy.deepcopy(module).eval()
    for name, part in list(module.named_modules()):
        if name and type(part) is nn.GroupNorm:
            module.set_submodule(name, form(part))
    return module


def onnx_bytes(
    module: nn.Module,
    example: tuple[Tensor, ...],
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    form: Callable[[nn.GroupNorm], nn.Module] = AFFINE,
    *,
    any_batch: bool = False,
) -> bytes:
    """The ONNX graph of a module for inputs of the shapes of `example`, in evaluation, on the CPU.

    `inputs` and `outputs` are the names of its tensors ("input_0" and so on by default); with `any_batch` their first
    dimension may have any size.
    """
    inputs = inputs or list(named(example))
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
            dynamic_axes={name: {0: BATCH} for name in (*inputs, *(outputs or ()))} if any_batch else None,
        )
    return file.getvalue()


def named(inputs: tuple[Tensor, ...], read: Collection[str] | None = None) -> dict[str, Tensor]:
    """Inputs by the names that `onnx_bytes` gives them; `read` are those that a graph takes, which lacks the unread."""
    names = {f"input_{i}": x for i, x in enumerate(inputs)}
    return {name: x for name, x in names.items() if read is None or name in read}


def int8_bytes(module: nn.Module, example: tuple[Tensor, ...]) -> bytes:
    """The graph of a module, `quantised` on what it computes of the example: enough to time it, not to act by it."""
    observed = {name: x.cpu().numpy() for name, x in named(example).items()}
    return quantised(onnx_bytes(module, example, form=PLAIN), [observed])


def quantised(graph: bytes, observed: Iterable[Mapping[str, Any]], within: str = "") -> bytes:
    """An ONNX graph with convolutions and matrix products in int8, ranges taken from what it computes on `observed`.

    `observed` are inputs by name, NumPy arrays. Weights have a scale for each channel, activations one for each tensor
    (QDQ nodes, which ONNX Runtime and OpenVINO both read). Grouped 1 x 1 convolutions stay: those are norms' scales.
    Only nodes whose name has `within` in it are touched.
    Raises UserError where onnx or onnxruntime is not installed.
    """
    if fault := absent(DEPLOY, "onnx", "onnxruntime"):
        raise UserError(fault)
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    proto = onnx.load_from_string(graph).graph
    read = {value.name for value in proto.input}

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(observed)

        def get_next(self) -> Any:
            values = next(self.rest, None)
            return values and {name: value for name, value in values.items() if name in read}

    products = (node.name for node in proto.node if node.op_type in ("Gemm", "MatMul") or _dense(node))
    chosen = [name for name in products if within in name]
    if not chosen:  # which the quantiser would take for all
        return graph
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
    """Whether an ONNX node is a convolution, but not one of single pixels in groups."""
    said = {attribute.name: attribute for attribute in node.attribute}
    scales = "group" in said and said["group"].i > 1 and set(said["kernel_shape"].ints) == {1}
    return node.op_type == "Conv" and not scales


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's advice to preprocess graphs, which these do not need, and without the handler that
    logging puts in place to tell it.
    """
    root, silent = logging.getLogger(), logging.NullHandler()
    level = root.level
    root.addHandler(silent)
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(silent)

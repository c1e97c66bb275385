"""Faster ways on a CPU to what torch computes, with its gradients; each falls back to torch's own wherever it must.

All are for float32 tensors that are computed with now: what is traced, exported or compiled, on another device or in
another precision goes torch's way, and so does what several threads share (torch splits a norm over them, these
kernels do not).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from navprune.models import norms

LAST = torch.channels_last
NOTHING = np.empty(0, np.float32)
FEWEST, SMALLEST = 4, 1 << 14  # images and values of a batch, below which calling kernels takes longer than torch
LARGEST = 1 << 15  # values of an image beyond which it leaves the cache between a kernel's passes
_product = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def eager(x: Any) -> bool:
    """Whether `x` is a tensor that is computed with now, neither a trace's stand-in nor something compiled."""
    return type(x) is Tensor and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def plain_on_cpu(x: Any) -> bool:
    """Whether `x` is float32 on a CPU, and to be computed with as it is, now."""
    return eager(x) and x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def product(a: Tensor, b: Tensor) -> Tensor:
    """a [N, K] times b [M, K] transposed, [N, M], no gradients; of `plain_on_cpu` tensors.

    By oneDNN, which uses all of AVX-512 where MKL, on a processor that is not Intel's, does not: twice as fast.
    """
    return a @ b.t() if _product is None else _product(_dense(a), _dense(b), None, "none", [], "")


def _dense(matrix: Tensor) -> Tensor:
    """Row by row or column by column without gaps: for others oneDNN has but its slow reference."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        y = product(x, weight)
        return y if bias is None else y.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        dx = product(dy, weight.t()) if wanted[0] else None
        dweight = product(dy.t(), x.t()) if wanted[1] else None
        return dx, dweight, dy.sum(0) if wanted[2] else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of [N, K]: [N, M]."""
    return _Linear.apply(x, weight, bias) if plain_on_cpu(x) else F.linear(x, weight, bias)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, other: Tensor | None, layer: nn.GroupNorm, relu: bool, *_: Tensor) -> Tensor:
        x = x.contiguous(memory_format=LAST)
        y, statistics = _norm(x, other, layer, relu)
        ctx.sizes = x[0, 0].numel(), layer.num_channels // layer.num_groups, other is not None, relu
        ctx.save_for_backward(x, layer.weight, statistics, y if relu else None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, statistics, y = ctx.saved_tensors
        dy = dy.contiguous(memory_format=LAST)
        dx = torch.empty_like(x, memory_format=LAST)
        dother = torch.empty_like(x, memory_format=LAST) if ctx.sizes[2] else None
        dparameters = x.new_zeros(2, len(weight))
        seen = _flat(dy), _flat(x), _flat(y), weight.detach().numpy(), statistics.numpy()
        norms.backward(*seen, _flat(dx), _flat(dother), *dparameters.numpy(), *ctx.sizes)
        return dx, dother, None, None, *dparameters


def _norm(x: Tensor, other: Tensor | None, layer: nn.GroupNorm, relu: bool) -> tuple[Tensor, Tensor]:
    """relu(norm(x) + other), with what its gradient needs; `x` lies in channels-last order."""
    y = torch.empty_like(x, memory_format=LAST)
    others = None if other is None else other.contiguous(memory_format=LAST)
    images, channels, height, width = x.shape
    group = channels // layer.num_groups
    statistics = x.new_empty(images, -(-channels // max(group, norms.WIDTH)), 2, norms.WIDTH)
    arrays = _flat(x), _flat(others), layer.weight.detach().numpy(), layer.bias.detach().numpy(), _flat(y)
    norms.forward(*arrays, statistics.numpy(), height * width, group, other is not None, relu, layer.eps)
    return y, statistics


def _flat(x: Tensor | None) -> Any:
    """The values of images [B, C, h, w] in channels-last order, in which they lie; none of None."""
    return NOTHING if x is None else x.detach().permute(0, 2, 3, 1).numpy().reshape(-1)


def stack(layers: nn.Sequential, x: Tensor, other: Callable[[], Tensor] | None = None) -> Tensor:
    """`layers(x)`, or relu(layers(x) + other()), where norms take along the sum and the ReLU that follow them."""
    kernels = plain_on_cpu(x) and len(x) >= FEWEST and x.numel() >= SMALLEST and torch.get_num_threads() == 1
    rest = list(layers) if kernels and not _hooked(layers) else [layers]
    while rest:
        layer = rest.pop(0)
        if not isinstance(layer, nn.GroupNorm) or not _takes(layer, x):
            x = layer(x)
        elif rest and type(rest[0]) is nn.ReLU and not _hooked(rest[0]):
            x = _normed(layer, x, None, relu=True)
            rest.pop(0)
        elif other is not None and not rest:
            return _normed(layer, x, other(), relu=True)
        else:
            x = _normed(layer, x, None, relu=False)
    return x if other is None else F.relu(x + other(), inplace=True)


def _normed(layer: nn.GroupNorm, x: Tensor, other: Tensor | None, *, relu: bool) -> Tensor:
    if torch.is_grad_enabled():
        return _Norm.apply(x, other, layer, relu, layer.weight, layer.bias)
    return _norm(x.contiguous(memory_format=LAST), other, layer, relu)[0]


def _takes(layer: nn.GroupNorm, x: Tensor) -> bool:
    """Whether the kernels can compute this norm, and nobody listens to it alone."""
    if type(layer) is not nn.GroupNorm or layer.bias is None or layer.weight.dtype != torch.float32 or _hooked(layer):
        return False
    channels, group = layer.num_channels, layer.num_channels // layer.num_groups
    fits = channels >= norms.WIDTH and (group in (1, 2, 4) or group % norms.WIDTH == 0)
    return fits and x.ndim == 4 and x.numel() >= SMALLEST and x[0].numel() <= LARGEST


def _hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)

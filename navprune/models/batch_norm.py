"""BatchNorm over the images of all workers that learn together, on any device (torch's SyncBatchNorm needs a GPU)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

PIXELS = (0, 2, 3)
Sum = Callable[[Tensor], Tensor]


class BatchNorm2d(nn.BatchNorm2d):
    """torch's layer. Where several workers learn together, `sum` adds up a tensor over them, perhaps in its place.

    In training it then standardises by the statistics of all their images, and the input's gradient is that of the sum
    of the workers' losses; those of scale and shift are each worker's own, to be summed as any other parameter's. Each
    worker gives at least one image, and `sum` is called once in `forward` and once in its gradient.
    """

    sum: Sum | None = None
    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int):
        super().__init__(channels)

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, h, w] -> the same."""
        if self.sum is None or not self.training:
            return super().forward(input)
        x = input.to(self.running_mean.dtype)  # bfloat16, which autocast hands on, would round a count
        mean, variance, count = _moments(x.detach(), self.sum)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)  # that of the sample is unbiased
            self.num_batches_tracked.add_(1)
        output: Tensor = _BatchNorm.apply(x, self.weight, self.bias, mean, variance, count, self.eps, self.sum)
        return output.to(input.dtype)


def _moments(x: Tensor, sum: Sum) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of each channel over the pixels of all workers, [C] each, and their number.

    Each worker's own are taken about its own mean and put together in float64 (Chan et al., 1979), which keeps the
    digits of the variance where means are large.
    """
    variance, mean = (moment.double() for moment in torch.var_mean(x, PIXELS, correction=0))
    count = mean.new_full((1,), x.numel() // len(mean))
    sums = sum(torch.cat([count, count * mean, count * (variance + mean**2)]))
    count, means = sums[:1], sums[1:] / sums[:1]
    mean, square = means.chunk(2)
    return mean.to(x.dtype), (square - mean**2).clamp(min=0).to(x.dtype), count.to(x.dtype)


class _BatchNorm(torch.autograd.Function):
    """Normalises by moments of the input; the gradient takes into account that they are (Ioffe and Szegedy, 2015)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, count: Tensor, eps: float,
        sum: Sum,
    ) -> Tensor:  # fmt: skip
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale, count)
        ctx.sum = sum
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        normal = (x - _wide(mean)) * _wide(scale)
        shift, stretch = gradient.sum(PIXELS), (gradient * normal).sum(PIXELS)
        shifts, stretches = (ctx.sum(torch.cat([shift, stretch])) / count).chunk(2)
        slope = _wide(weight * scale) * (gradient - _wide(shifts) - normal * _wide(stretches))
        return slope, stretch, shift, None, None, None, None, None


def _wide(values: Tensor) -> Tensor:
    """[C] -> [C, 1, 1]."""
    return values.view(-1, 1, 1)

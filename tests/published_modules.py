"""Modules in the ways in which timm, torchvision and others publish them, to be pruned without knowing them."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def make_norm_act(base: Any, call: Any) -> Any:
    """A norm by inheritance, with a drop and an activation inside; `call` computes the norm."""

    class NormAct(base):
        def __init__(self, *args, act, **kwargs):
            super().__init__(*args, **kwargs)
            self.drop, self.act = nn.Identity(), act()

        def forward(self, x):
            return self.act(self.drop(call(self, super(), x)))

    return NormAct


def _timm_batch_norm(norm, _base, x):
    torch._assert(x.ndim == 4, f"expected 4D input (got {x.ndim}D input)")
    batch = norm.training or (norm.running_mean is None and norm.running_var is None)
    means = norm.running_mean if not norm.training or norm.track_running_stats else None
    variances = norm.running_var if not norm.training or norm.track_running_stats else None
    return F.batch_norm(x, means, variances, norm.weight, norm.bias, batch, norm.momentum, norm.eps)


BatchNormAct2d = make_norm_act(nn.BatchNorm2d, _timm_batch_norm)
InheritedNormAct2d = make_norm_act(nn.BatchNorm2d, lambda norm, base, x: base.forward(x))
GroupNormAct = make_norm_act(
    nn.GroupNorm, lambda norm, base, x: F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
)


class FrozenBatchNorm2d(nn.Module):
    """torchvision.ops.misc: nothing but buffers."""

    def __init__(self, channels, eps=1e-5):
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x):
        w, b = self.weight.reshape(1, -1, 1, 1), self.bias.reshape(1, -1, 1, 1)
        rv, rm = self.running_var.reshape(1, -1, 1, 1), self.running_mean.reshape(1, -1, 1, 1)
        scale = w * (rv + self.eps).rsqrt()
        return x * scale + (b - rm * scale)


class Detectron2FrozenBatchNorm2d(FrozenBatchNorm2d):
    """It branches on whether gradients are asked for."""

    def forward(self, x):
        if x.requires_grad:
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            bias = self.bias - self.running_mean * scale
            return x * scale.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, eps=self.eps)


class Affine(nn.Module):
    """ResMLP's and NFNets' scale and shift."""

    def __init__(self, channels):
        super().__init__()
        self.alpha = nn.Parameter(torch.rand(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.rand(channels, 1, 1))

    def forward(self, x):
        return torch.addcmul(self.beta, self.alpha, x) if False else x.mul(self.alpha).add_(self.beta)


class DropPath(nn.Module):
    """timm's."""

    def __init__(self, p=0.5):
        super().__init__()
        self.p = p

    def forward(self, x):
        if self.p == 0.0 or not self.training:
            return x
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        return x * x.new_empty(shape).bernoulli_(1 - self.p).div_(1 - self.p)


def stochastic_depth(input, p, mode, training=True):
    """torchvision.ops: a trace sees the call alone."""
    if not training or p == 0.0:
        return input
    size = [input.shape[0]] + [1] * (input.ndim - 1) if mode == "row" else [1] * input.ndim
    return input * torch.empty(size, dtype=input.dtype, device=input.device).bernoulli_(1 - p).div_(1 - p)


torch.fx.wrap("stochastic_depth")


class StochasticDepth(nn.Module):
    def __init__(self, p=0.5, mode="row"):
        super().__init__()
        self.p, self.mode = p, mode

    def forward(self, input):
        return stochastic_depth(input, self.p, self.mode, self.training)


class SqueezeExcitation(nn.Module):
    """The usual one, by views; `way` says how it gets to and from the linear layers."""

    def __init__(self, channels, way):
        super().__init__()
        self.way, self.pool = way, nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(nn.Linear(channels, 3, bias=False), nn.ReLU(True), nn.Linear(3, channels), nn.Sigmoid())

    def forward(self, x):
        b, c, h, w = x.size()
        if self.way == "view":
            y = self.fc(self.pool(x).view(b, c)).view(b, c, 1, 1)
            return x * y.expand_as(x)
        if self.way == "axis":
            return self.fc(x.mean(axis=(2, 3))).reshape(b, c, 1, 1) * x
        if self.way == "flat":
            return x * self.fc(x.view(b, c, h * w).mean(-1))[..., None, None]
        y = self.fc(torch.mean(x, dim=[-1, -2])).unsqueeze(2).unsqueeze(3)
        return x.mul_(y)


class ConvExcitation(nn.Module):
    """timm's SEModule, with 1 x 1 convolutions."""

    def __init__(self, channels, gate):
        super().__init__()
        self.fc1, self.bn, self.act = nn.Conv2d(channels, 3, 1), nn.Identity(), nn.ReLU(inplace=True)
        self.fc2, self.gate = nn.Conv2d(3, channels, 1), gate()

    def forward(self, x):
        scale = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.fc2(self.act(self.bn(self.fc1(scale)))))


class EfficientAttention(nn.Module):
    """ECA: a convolution over neighbouring channels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.conv(F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * torch.sigmoid(y).expand_as(x)


class LayerScale(nn.Module):
    """timm's, torchvision's and one for all channels."""

    def __init__(self, shape, view=None):
        super().__init__()
        self.gamma, self.view = nn.Parameter(torch.rand(shape)), view

    def forward(self, x):
        return x * (self.gamma if self.view is None else self.gamma.view(self.view))


class SameConv2d(nn.Conv2d):
    """timm's Conv2dSame: TensorFlow's padding, from the size of the image."""

    def forward(self, x):
        ih, iw = x.size()[-2:]
        sides = []
        for size, kernel, stride in zip((iw, ih), self.kernel_size[::-1], self.stride[::-1]):
            pad = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            sides += [pad // 2, pad - pad // 2]
        if any(sides):
            x = F.pad(x, sides)
        return F.conv2d(x, self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


class Shuffle(nn.Module):
    """ShuffleNet's unit."""

    def __init__(self, channels):
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            nn.Conv2d(half, half, 1), nn.BatchNorm2d(half), nn.ReLU(True),
            nn.Conv2d(half, half, 3, padding=1, groups=half), nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1), nn.BatchNorm2d(half), nn.ReLU(True),
        )  # fmt: skip

    def forward(self, x):
        one, two = x.chunk(2, dim=1)
        x = torch.cat((one, self.branch(two)), dim=1)
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)


class Tokens(nn.Module):
    """A head over image tokens, behind a convolution stem."""

    def __init__(self, channels, kind):
        super().__init__()
        self.kind, self.norm, self.out = kind, nn.LayerNorm(channels), nn.Linear(channels, 3)
        self.cls = nn.Parameter(torch.rand(1, 1, channels))
        self.core: nn.Module
        if kind == "lstm":
            self.core = nn.LSTM(channels, channels, batch_first=True)
        elif kind == "attention":
            self.core = nn.MultiheadAttention(channels, 2, batch_first=True)
        else:
            self.core = nn.TransformerEncoderLayer(channels, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, x):
        b, c, h, w = x.shape
        x = x.reshape(b, c, h * w).permute(0, 2, 1)
        x = self.norm(torch.cat([self.cls.expand(b, -1, -1), x], dim=1))
        if self.kind == "lstm":
            x, _ = self.core(x)
        elif self.kind == "attention":
            x, _ = self.core(x, x, x, need_weights=False)
        else:
            x = self.core(x)
        return self.out(x[:, 0])

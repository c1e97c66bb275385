"""Visual encoders built from a spec, with habitat-baselines' layers and parameter names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from navprune.models.spec import Conv, EncoderSpec, Layer, convolutions, trunk_name

VARIANCE_FLOOR = 1e-2  # of habitat-baselines' running variance


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be cut together. Module names are as `get_submodule` takes them.

    `name` is that of the width in the spec, or of what has no spec, the first layer that writes it; `unit` channels
    make one norm group (of ResNeXt: whole groups of norm and grouped convolution) and go or stay together.
    `producers` are the convolutions and linear layers whose outputs these are, `norms` the norms behind them (none in
    SimpleCNN and behind a squeeze), `readers` the layers whose inputs these are. A grouped convolution is a producer
    alone, since the input channels of each of its groups stay as many. `multipliers` are the excitations that scale
    these channels: they lose what the producers lose, but a channel that is silent before them is so behind them,
    whatever they say.
    `vectors` are parameters and buffers of their own that hold an entry for each channel, such as layer scales.
    `ends` are the modules behind which channels are masked and scaled: by default the norms, or the producers where
    there are none. A `trunk` is written by residual sums or read by several layers. A `block` is no width but a whole
    residual block, a single unit whose one norm is the last of its branch: scaled by 0 it leaves its trunk as it is.
    Readers and norms may have several features a channel, one behind the other, as behind a flatten.
    """

    name: str
    channels: int
    unit: int
    producers: tuple[str, ...]
    norms: tuple[str, ...]
    readers: tuple[str, ...]
    multipliers: tuple[str, ...] = ()
    vectors: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    trunk: bool = False
    block: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "ends", self.ends or self.norms or self.producers)


class Encoder(nn.Module):
    """Images float32 [B, C, H, W] with values from 0 to 1 -> features [B, *output_shape]."""

    def __init__(self, spec: EncoderSpec):
        super().__init__()
        self.spec = spec

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """[C, h, w] of the features."""
        return self.spec.output_shape

    def groups(self, prefix: str = "") -> list[ChannelGroup]:
        """Every free width with what writes and reads it, in the order of `spec.layers`; `prefix` begins all names."""
        return [self._group(layer, prefix) for layer in self.spec.layers]

    def _group(self, layer: Layer, prefix: str) -> ChannelGroup:
        convs = convolutions(self.spec)
        writers = [conv for conv in convs if conv.target == layer.name]
        return ChannelGroup(
            layer.name,
            layer.channels,
            self.spec.unit_channels[layer.name],
            producers=tuple(prefix + conv.module for conv in writers if not conv.multiplies),
            norms=tuple(prefix + conv.norm for conv in writers if conv.norm),
            readers=tuple(prefix + conv.module for conv in convs if conv.source == layer.name and not conv.per_group),
            multipliers=tuple(prefix + conv.module for conv in writers if conv.multiplies),
            trunk=layer.name == "stem" or layer.name.endswith(".trunk"),
        )

    def images(self, observations: Mapping[str, Tensor]) -> Tensor:
        """The encoder's input, float32 [B, C, H, W], from observations [B, H, W, C]; bytes become 0 to 1."""
        planes = (observations[key] for key in self.spec.observations)
        scaled = [plane / 255.0 if plane.dtype == torch.uint8 else plane for plane in planes]
        return torch.cat(scaled, dim=-1).permute(0, 3, 1, 2)


class RunningMeanAndVar(nn.Module):
    """Standardises each channel by statistics over all images seen in training (Chan et al., 1979).

    Where several workers learn together, `sum` adds up a tensor over them, and the images are those of all.
    """

    sum: Callable[[Tensor], Tensor] | None = None
    _mean: Tensor
    _var: Tensor
    _count: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("_mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("_var", torch.zeros(1, channels, 1, 1))
        self.register_buffer("_count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same, standardised; in training mode the statistics first take in `x`."""
        if self.training:
            self._update(x.detach())
        scale = self._var.clamp(min=VARIANCE_FLOOR).rsqrt()
        return torch.addcmul(-self._mean * scale, x, scale)

    def _update(self, x: Tensor) -> None:
        var, mean = torch.var_mean(x, dim=(0, 2, 3), keepdim=True, correction=0)
        count = torch.tensor(float(len(x)), device=x.device)
        if self.sum is not None:
            moments = torch.stack([torch.ones_like(mean), mean, var + mean**2]).double() * count
            total, mean, squares = self.sum(moments)
            mean, var = mean / total, squares / total - (mean / total) ** 2
            count, mean, var = total.flatten()[0].float(), mean.float(), var.float()
        share = count / (self._count + count)  # of the new images among all
        step = mean - self._mean
        self._var += share * (var - self._var) + share * (1 - share) * step**2
        self._mean += share * step
        self._count += count


class Conv2d(nn.Conv2d):
    """A convolution without bias that keeps the size up to its stride (odd kernel, padded by half of it).

    Its weights lie in channels-last order, which is faster on CPUs: 1.1 to 1.5 times in training, up to three
    times in inference at batch 1. On a single pixel all taps but the centre's meet only padding, so that it
    is a linear layer: the same result, up to 1.8 times the speed of a whole ResNet50 on images of 64 x 64.
    """

    def __init__(self, source: int, target: int, kernel: int, stride: int = 1, groups: int = 1):
        self.centre = kernel // 2
        super().__init__(source, target, kernel, stride, padding=self.centre, groups=groups, bias=False)
        self.weight = nn.Parameter(self.weight.detach().contiguous(memory_format=torch.channels_last))

    def forward(self, input: Tensor) -> Tensor:
        """[B, source, h, w] -> [B, target, ceil(h / stride), ceil(w / stride)]."""
        if input.shape[-2:] != (1, 1) or self.groups > 1:
            return super().forward(input)
        return F.linear(input.flatten(1), self.weight[:, :, self.centre, self.centre])[:, :, None, None]


class SqueezeExcitation(nn.Module):
    """A factor from 0 to 1 for each channel, from the means of all (Hu et al., 2018)."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        squeeze, excite = nn.Linear(channels, squeezed), nn.Linear(squeezed, channels)
        self.excite = nn.Sequential(squeeze, nn.ReLU(inplace=True), excite, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C, 1, 1]."""
        return self.excite(x.mean(dim=(2, 3)))[:, :, None, None]


class Block(nn.Module):
    """A residual block: convolutions with GroupNorm, excited if asked for, added to the input or its projection."""

    def __init__(self, spec: EncoderSpec, place: str):
        super().__init__()
        convs = {c.module.removeprefix(place): c for c in convolutions(spec) if c.module.startswith(place)}
        layers: list[nn.Module] = []
        for name, conv in convs.items():
            if name.startswith("convs."):
                layers += [_conv(spec, conv), _norm(spec.by_name[conv.target]), nn.ReLU(inplace=True)]
        self.convs = nn.Sequential(*layers[:-1])
        project, squeeze = convs.get("downsample.0"), convs.get("se.excite.0")
        self.downsample = nn.Sequential(_conv(spec, project), _norm(spec.by_name[project.target])) if project else None
        self.se = SqueezeExcitation(spec.channels[squeeze.source], spec.channels[squeeze.target]) if squeeze else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, source, h, w] -> [B, trunk, h / stride, w / stride]."""
        branch = self.convs(x)
        if self.se is not None:
            branch = self.se(branch) * branch
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(branch + shortcut, inplace=True)


class Backbone(nn.Module):
    """Stem and stages: [B, C, H, W] -> [B, last trunk, H / 32, W / 32]."""

    def __init__(self, spec: EncoderSpec):
        super().__init__()
        stem = spec.by_name["stem"]
        self.conv1 = nn.Sequential(Conv2d(spec.input[0], stem.channels, 7, 2), _norm(stem), nn.ReLU(inplace=True))
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.stages = [f"layer{stage}" for stage in range(1, len(spec.blocks) + 1)]
        for name, blocks in zip(self.stages, spec.blocks):
            places = (f"backbone.{name}.{index}." for index in range(blocks))
            self.add_module(name, nn.Sequential(*(Block(spec, place) for place in places)))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.maxpool(self.conv1(x))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return x


class ResNetEncoder(Encoder):
    """2 x 2 average pooling, running statistics if asked for, ResNet, 3 x 3 compression with GroupNorm(1)."""

    def __init__(self, spec: EncoderSpec):
        super().__init__(spec)
        self.running_mean_and_var = RunningMeanAndVar(spec.input[0]) if spec.normalise else nn.Identity()
        self.backbone = Backbone(spec)
        last = spec.by_name[trunk_name(spec.block, len(spec.blocks))]
        conv, norm = Conv2d(last.channels, spec.output, 3), nn.GroupNorm(1, spec.output)
        self.compression = nn.Sequential(conv, norm, nn.ReLU(inplace=True))

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, *output_shape]."""
        x = self.running_mean_and_var(F.avg_pool2d(images, 2))
        return self.compression(self.backbone(x))


class SimpleCNNEncoder(Encoder):
    """Three convolutions without norms, as in habitat-baselines' SimpleCNN (after Mnih et al., 2015)."""

    def __init__(self, spec: EncoderSpec):
        super().__init__(spec)
        layers: list[nn.Module] = []
        for conv in convolutions(spec):
            width_in, width_out = spec.channels[conv.source], spec.channels[conv.target]
            module = nn.Conv2d(width_in, width_out, conv.kernel, conv.stride)
            nn.init.kaiming_normal_(module.weight, a=math.sqrt(2))
            nn.init.zeros_(module.get_parameter("bias"))
            layers += [module, nn.ReLU(inplace=True)]
        self.cnn = nn.Sequential(*layers[:-1])

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, *output_shape]."""
        return self.cnn(images)


class BlindEncoder(Encoder):
    """Sees nothing: an encoder without layers, so that blind agents need no special case elsewhere."""

    def images(self, observations: Mapping[str, Tensor]) -> Tensor:
        """[B, 0, 0, 0]."""
        some = next(iter(observations.values()))
        return torch.zeros(len(some), 0, 0, 0, device=some.device)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 0, 0, 0] -> the same."""
        return images


def build_encoder(spec: EncoderSpec) -> Encoder:
    """The encoder of a spec; its weights come from torch's global generator."""
    return {"resnet": ResNetEncoder, "simple_cnn": SimpleCNNEncoder, "blind": BlindEncoder}[spec.family](spec)


def _norm(layer: Layer) -> nn.GroupNorm:
    return nn.GroupNorm(layer.channels // layer.group, layer.channels)


def _conv(spec: EncoderSpec, conv: Conv) -> Conv2d:
    source, target = spec.channels[conv.source], spec.channels[conv.target]
    return Conv2d(source, target, conv.kernel, conv.stride, source // conv.per_group if conv.per_group else 1)

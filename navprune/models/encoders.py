"""Visual encoders built from a spec, with habitat-baselines' layers and parameter names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from navprune.models.fast import linear, plain_on_cpu, stack
from navprune.models.spec import Conv, EncoderSpec, Layer, convolutions, trunk_name

VARIANCE_FLOOR = 1e-2  # of habitat-baselines' running variance
MANY = 32  # images from which on rearranging weights for them pays


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

    def prepare(self, observations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The observations [B, H, W, C] that the encoder reads, made as small as is exact enough."""
        return {key: observations[key] for key in self.spec.observations}

    def images(self, observations: Mapping[str, Tensor]) -> Tensor:
        """The encoder's input, float32 [B, C, H, W], from observations [B, H, W, C]; bytes become 0 to 1."""
        planes = [_scaled(observations[key]) for key in self.spec.observations]
        return (planes[0] if len(planes) == 1 else torch.cat(planes, dim=-1)).permute(0, 3, 1, 2)


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
    times in inference at batch 1. On maps so small that each result sees every pixel it is a linear layer, without
    the taps that meet only padding: on a single pixel always, on 2 x 2 where many images share the rearranged weights.
    """

    def __init__(self, source: int, target: int, kernel: int, stride: int = 1, groups: int = 1):
        self.centre = kernel // 2
        super().__init__(source, target, kernel, stride, padding=self.centre, groups=groups, bias=False)
        self.weight = nn.Parameter(self.weight.detach().contiguous(memory_format=torch.channels_last))

    def forward(self, input: Tensor) -> Tensor:
        """[B, source, h, w] -> [B, target, ceil(h / stride), ceil(w / stride)]."""
        if self.groups == 1 and plain_on_cpu(input) and len(input) >= MANY:
            return self._of_many(input)
        if self.groups > 1 or input.shape[-2:] != (1, 1):
            return super().forward(input)
        return F.linear(input.flatten(1), self.weight[:, :, self.centre, self.centre])[:, :, None, None]

    def _of_many(self, input: Tensor) -> Tensor:
        """As `forward`; on small maps each pixel of the result is a product with the taps that meet the map."""
        (height, width), stride = input.shape[-2:], self.stride[0]
        if max(height, width) > self.centre + 1:
            if stride == 1 or self.centre > 0 or not torch.is_grad_enabled():
                return super().forward(input)
            # The gradient of a stride is slow, that of a choice of pixels is not.
            return F.conv2d(input[:, :, ::stride, ::stride], self.weight)
        weight = self.weight.permute(0, 2, 3, 1)
        tops = range(self.centre, self.centre - height, -stride)
        lefts = range(self.centre, self.centre - width, -stride)
        windows = [weight[:, top : top + height, left : left + width] for top in tops for left in lefts]
        taps = windows[0] if len(windows) == 1 else torch.stack(windows).flatten(0, 1)
        y = linear(input.permute(0, 2, 3, 1).flatten(1), taps.flatten(1))
        return y.view(len(input), len(tops), len(lefts), -1).permute(0, 3, 1, 2)


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

        def shortcut() -> Tensor:
            return x if self.downsample is None else stack(self.downsample, x)

        if self.se is None:
            return stack(self.convs, x, shortcut)
        branch = stack(self.convs, x)
        return F.relu(self.se(branch) * branch + shortcut(), inplace=True)


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
        x = self.maxpool(stack(self.conv1, x))
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

    def prepare(self, observations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Images [B, H, W, C] averaged over 2 x 2 pixels, float16; those that are so already stay as they are."""
        seen = {key: observations[key] for key in self.spec.observations}
        pooled = {key: _halved(_scaled(x)).half() for key, x in seen.items() if x.shape[1:3] != self.spec.pooled}
        return {**seen, **pooled}

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W], or their 2 x 2 averages as `prepare` makes them -> [B, *output_shape]."""
        if images.shape[-2:] != self.spec.pooled:
            last = images.permute(0, 2, 3, 1)
            images = _halved(last).permute(0, 3, 1, 2) if plain_on_cpu(images) else F.avg_pool2d(images, 2)
        return stack(self.compression, self.backbone(self.running_mean_and_var(images)))


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


def _scaled(image: Tensor) -> Tensor:
    """Bytes as 0 to 1, and halves as float32, as convolutions on a CPU want them."""
    if image.dtype == torch.uint8:
        return image / 255.0
    return image.float() if image.dtype == torch.float16 else image


def _halved(images: Tensor) -> Tensor:
    """Averages of 2 x 2 pixels, [B, H, W, C] -> [B, H / 2, W / 2, C]; ten times as fast as torch's pooling of them."""
    height, width = (side // 2 * 2 for side in images.shape[1:3])
    rows = images[:, 0:height:2] + images[:, 1:height:2]
    return (rows[:, :, 0:width:2] + rows[:, :, 1:width:2]) * 0.25


def _norm(layer: Layer) -> nn.GroupNorm:
    return nn.GroupNorm(layer.channels // layer.group, layer.channels)


def _conv(spec: EncoderSpec, conv: Conv) -> Conv2d:
    source, target = spec.channels[conv.source], spec.channels[conv.target]
    return Conv2d(source, target, conv.kernel, conv.stride, source // conv.per_group if conv.per_group else 1)

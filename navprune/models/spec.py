"""What there is to know of a network, as data: family, input, every width and every norm's group size.

A pruned network is a smaller spec and smaller weights. Nothing here needs torch until `build`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from navprune.errors import UserError
from navprune.sensors import SENSORS, channels_of, with_channels

EXPANSION = {"basic": 1, "bottleneck": 4, "se_bottleneck": 4, "resnext": 2, "se_resnext": 2}
FAMILIES = {"resnet": tuple(EXPANSION), "simple_cnn": ("",), "blind": ("",)}
RESNETS = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resneXt50": ("resnext", (3, 4, 6, 3)),
    "se_resnet50": ("se_bottleneck", (3, 4, 6, 3)),
    "se_resneXt50": ("se_resnext", (3, 4, 6, 3)),
    "se_resneXt101": ("se_resnext", (3, 4, 23, 3)),
}  # spelt as habitat-baselines spells them
NAMES = (*RESNETS, "simple_cnn", "blind")
FLAT_SIZE = 2048  # habitat-baselines compresses the last stage to about this many values
BLOCK = re.compile(r"(?:stage|layer)(\d+)\.(?:block)?(\d+)")  # in the name of a width or of a module
SQUEEZE = 16  # a squeeze-and-excitation has this many times fewer channels than its trunk


class Conv(NamedTuple):
    """One convolution of an encoder: where it stands and which widths it joins.

    `source` and `target` name widths: "input", a layer of the spec, or "output". `height` and `width` are
    those of its result in pixels. A grouped convolution has groups of `per_group` channels and the same source
    as target; 0 means that it is not grouped. The two linear layers of a squeeze-and-excitation stand here, too,
    as convolutions of a single pixel; the second `multiplies` its target instead of writing it.
    """

    module: str
    norm: str | None
    source: str
    target: str
    kernel: int
    stride: int
    padding: int
    height: int
    width: int
    per_group: int = 0
    multiplies: bool = False


@dataclass(frozen=True)
class Layer:
    """A free width: `channels`, in norm groups of `group` channels each (1 where there is no norm)."""

    name: str
    channels: int
    group: int = 1


@dataclass(frozen=True)
class EncoderSpec:
    """A visual encoder: `input` is [C, H, W], `observations` the keys it reads, concatenated in that order.

    `layers` are the free widths ("stem", "stage1.block0.conv1", "stage1.trunk", ...): a trunk is what all
    block outputs and the shortcut of its stage share; with basic blocks, stage 1 has no shortcut convolution,
    so that its trunk is the stem. The grouped convolution that begins each stage of a ResNeXt ties its two widths
    to one ("stage1.block0.conv1"); a squeeze-and-excitation squeezes to "stage1.block0.se". `output` counts the
    channels that leave the encoder (of a ResNet: the compression's) and is never pruned. `normalise` says whether
    a running mean and variance standardises the input. Raises UserError where these contradict each other.
    """

    family: str
    input: tuple[int, int, int]
    observations: tuple[str, ...]
    block: str = ""
    blocks: tuple[int, ...] = ()
    layers: tuple[Layer, ...] = ()
    output: int = 0
    normalise: bool = False

    def __post_init__(self) -> None:
        title = f"{self.family} encoder"
        if self.family not in FAMILIES:
            raise UserError(f"unknown family of encoders {self.family!r}; known are {', '.join(FAMILIES)}")
        if self.block not in FAMILIES[self.family]:
            raise UserError(f"{title}: block is {self.block!r}; known are {FAMILIES[self.family]}")
        if self.family == "resnet":
            check_blocks(title, self.blocks, first=0 if self.block == "basic" else 1)
            if not self.blocks:
                raise UserError(f"{title}: no stages; give the number of blocks of each stage")
        if self.family != "blind":
            check_input(title, self.input)
            if not self.observations or any(key not in SENSORS for key in self.observations):
                raise UserError(f"{title}: observations are {self.observations}; they must be of {', '.join(SENSORS)}")
            if channels_of(self.observations) != self.input[0]:
                raise UserError(f"{title}: {' + '.join(self.observations)} do not have {self.input[0]} channels")
            if min((min(conv.height, conv.width) for conv in convolutions(self)), default=0) < 1:
                raise UserError(f"{title}: input of {self.input[1]} x {self.input[2]} pixels is too small")
            check_positive(f"{title}: output", self.output)
        expected = _layer_names(self.family, self.block, self.blocks)
        if tuple(layer.name for layer in self.layers) != expected:
            raise UserError(f"{title}: layers must be, in this order: {', '.join(expected) or 'none'}")
        for layer in self.layers:
            check_positive(f"{title}: group size of {layer.name}", layer.group)
            check_positive(f"{title}: width of {layer.name}", layer.channels)
            if layer.channels % self.unit_channels[layer.name]:
                size = f"{layer.channels} channels, no multiple of its group size {self.unit_channels[layer.name]}"
                raise UserError(f"{title}: {layer.name} has {size}")

    @cached_property
    def by_name(self) -> dict[str, Layer]:
        """The layers, by name."""
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def channels(self) -> dict[str, int]:
        """Channels of every width that a `Conv` names: the layers, "input" and "output"."""
        return {"input": self.input[0], **{layer.name: layer.channels for layer in self.layers}, "output": self.output}

    @cached_property
    def unit_channels(self) -> dict[str, int]:
        """Channels of every layer that go or stay together: a norm group, of ResNeXt whole groups of both kinds."""
        return {layer.name: math.lcm(layer.group, _per_group(self.block, layer.name)) for layer in self.layers}

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """[C, h, w] of the features that leave the encoder; zeros for a blind one."""
        convs = convolutions(self)
        return (self.output, convs[-1].height, convs[-1].width) if convs else (0, 0, 0)

    @property
    def pooled(self) -> tuple[int, int]:
        """[H, W] that the first convolution sees: Habitat's ResNets average 2 x 2 pixels beforehand."""
        _, height, width = self.input
        return (height // 2, width // 2) if self.family == "resnet" else (height, width)

    def removable_blocks(self) -> dict[str, str]:
        """Blocks from a trunk to the same trunk ("stage2.block1"), each with the last norm of its branch."""
        convs = [conv for conv in convolutions(self) if self.family == "resnet" and BLOCK.search(conv.module)]
        projected = {conv.module.rpartition(".downsample.")[0] for conv in convs}
        last = {conv.module.rpartition(".convs.")[0]: conv.norm or "" for conv in convs if ".convs." in conv.module}
        own = {place.removeprefix("backbone."): norm for place, norm in last.items() if place not in projected}
        return {BLOCK.sub(r"stage\1.block\2", place): norm for place, norm in own.items()}

    def without_blocks(self, removed: Collection[str]) -> EncoderSpec:
        """The same encoder without some of its `removable_blocks`; those behind move up."""
        moved = ((renumbered(layer.name, removed), layer) for layer in self.layers)
        layers = tuple(replace(layer, name=name) for name, layer in moved if name)
        return replace(self, layers=layers, blocks=fewer_blocks(self.blocks, removed))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON data; `layers` become {name: [channels, group]}."""
        layers = {layer.name: [layer.channels, layer.group] for layer in self.layers}
        return json.loads(json.dumps(asdict(self) | {"layers": layers}))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EncoderSpec:
        """The spec that `to_json` wrote; raises UserError for anything else."""
        values = known_fields(cls, data)
        try:
            for key in ("input", "observations", "blocks"):
                values[key] = tuple(values.get(key, ()))
            names = _layer_names(values.get("family", ""), values.get("block", ""), values["blocks"])
            layers = (Layer(name, *pair) for name, pair in values.get("layers", {}).items())
            # JSON objects have no order: a file with sorted keys holds the same spec.
            values["layers"] = tuple(sorted(layers, key=lambda layer: (*names, layer.name).index(layer.name)))
            return cls(**values)
        except (TypeError, AttributeError) as error:
            raise UserError(f"not an encoder's spec: {error}; write one with `encoder_spec`") from error


@dataclass(frozen=True)
class PolicySpec:
    """A recurrent actor-critic: the encoder, its linear to `visual_features`, and the recurrent core."""

    encoder: EncoderSpec
    visual_features: int = 512
    hidden_size: int = 512
    rnn: str = "gru"
    rnn_layers: int = 1
    actions: int = 4
    goal_details: bool = False
    """Whether the core is also told how near the goal is on a fine scale and how far the last step ahead took it."""

    def __post_init__(self) -> None:
        if self.rnn not in ("gru", "lstm"):
            raise UserError(f"policy: rnn is {self.rnn!r}; use 'gru' or 'lstm'")
        if not isinstance(self.goal_details, bool):
            raise UserError(f"policy: goal_details is {self.goal_details!r}; use true or false")
        for name in ("visual_features", "hidden_size", "rnn_layers", "actions"):
            check_positive(f"policy: {name}", getattr(self, name))

    @property
    def state_layers(self) -> int:
        """Rows of the recurrent state: layers, of an LSTM twice as many; one more where goals have details."""
        return self.rnn_layers * (2 if self.rnn == "lstm" else 1) + self.goal_details

    def to_json(self) -> dict[str, Any]:
        """As plain JSON data."""
        return asdict(self) | {"encoder": self.encoder.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PolicySpec:
        """The spec that `to_json` wrote; raises UserError for anything else."""
        values = known_fields(cls, data)
        if "encoder" not in values:
            raise UserError("not a policy's spec: 'encoder' is missing")
        return cls(**{**values, "encoder": EncoderSpec.from_json(values["encoder"])})


def encoder_spec(
    name: str,
    input: tuple[int, int, int] = (1, 256, 256),
    base_planes: int = 32,
    *,
    groups: int | None = None,
    width: float = 1.0,
    output: int | None = None,
    observations: tuple[str, ...] | None = None,
) -> EncoderSpec:
    """One of Habitat's ResNets (the names in `RESNETS`), its "simple_cnn", or "blind".

    `input` is [C, H, W]; C says which `observations` are read: 1 depth, 3 rgb, 4 depth and rgb (habitat-baselines
    joins them in alphabetical order). A ResNet starts with `base_planes` channels and has `groups` groups in every
    norm, by default half as many, as in Habitat; `width` narrows every free width uniformly, in whole units;
    `output` replaces Habitat's round(2048 / (h w)) channels of compression. Raises UserError where these do not
    fit.
    """
    if name not in NAMES:
        raise UserError(f"unknown encoder {name!r}; known are {', '.join(NAMES)}")
    if name == "blind":
        return EncoderSpec("blind", (0, 0, 0), ())
    check_input(name, input)
    input = (*input,)
    if observations is None:
        observations = with_channels(input[0])
    if name == "simple_cnn":
        free = _narrow(Layer("conv1", 32), width), _narrow(Layer("conv2", 64), width)
        return EncoderSpec(name, input, observations, layers=free, output=output or 32)
    block, blocks = RESNETS[name]
    groups = base_planes // 2 if groups is None else groups
    if block.endswith("resnext") and base_planes % 2:
        raise UserError(f"{name}: {base_planes} base planes; its grouped convolutions need an even number")
    if groups < 1 or base_planes % groups:
        raise UserError(f"{name}: {base_planes} base planes cannot be split into {groups} norm groups")
    layers = []
    for layer, planes in _habitat_planes(block, blocks, base_planes).items():
        group = 1 if layer.endswith(".se") else planes // groups  # no norm follows a squeeze
        layers.append(_narrow(Layer(layer, planes, group), width, _per_group(block, layer)))
    if output is None:
        pooled = input[1] // 2, input[2] // 2
        last = _convolutions("resnet", block, blocks, *pooled)[-1]
        output = round(FLAT_SIZE / max(1, last.height * last.width))
    normalise = any(SENSORS[key].is_bytes for key in observations if key in SENSORS)  # as habitat-baselines does
    return EncoderSpec("resnet", input, observations, block, blocks, tuple(layers), output, normalise)


def renumbered(name: str, removed: Collection[str]) -> str | None:
    """The name of a width or a module once blocks are removed ("stage2.block1" or "layer2.1"); None within these."""
    match = BLOCK.search(name)
    if match is None:
        return name
    stage, index = match.groups()
    gone = [other[2] for other in map(BLOCK.fullmatch, removed) if other and other[1] == stage]
    if index in gone:
        return None
    return f"{name[: match.start(2)]}{int(index) - sum(int(i) < int(index) for i in gone)}{name[match.end(2) :]}"


def fewer_blocks(blocks: tuple[int, ...], removed: Collection[str]) -> tuple[int, ...]:
    """The number of blocks of each stage once some are removed."""
    gone = [int(match[1]) for match in map(BLOCK.fullmatch, removed) if match]
    return tuple(count - gone.count(stage) for stage, count in enumerate(blocks, start=1))


def trunk_name(block: str, stage: int) -> str:
    """Name of the width that leaves stage 0 (the stem), 1, 2, ..."""
    return "stem" if stage == 0 or (stage == 1 and block == "basic") else f"stage{stage}.trunk"


def convolutions(spec: EncoderSpec, size: tuple[int, int] | None = None) -> tuple[Conv, ...]:
    """Every convolution of the encoder in order of execution, for a first input of `size` [H, W].

    `size` is by default what the first convolution of the deployed encoder sees. Module names are relative
    to the encoder.
    """
    return _convolutions(spec.family, spec.block, spec.blocks, *(size or spec.pooled))


@lru_cache(maxsize=256)
def _convolutions(family: str, block: str, blocks: tuple[int, ...], height: int, width: int) -> tuple[Conv, ...]:
    convs: list[Conv] = []

    def add(
        size: tuple[int, int], module: str, norm: str | None, source: str, target: str,
        kernel: int, stride: int = 1, padding: int = 0, per_group: int = 0, multiplies: bool = False,
    ) -> tuple[int, int]:  # fmt: skip
        h, w = ((side + 2 * padding - kernel) // stride + 1 for side in size)
        convs.append(Conv(module, norm, source, target, kernel, stride, padding, h, w, per_group, multiplies))
        return h, w

    size = (height, width)
    if family == "simple_cnn":
        size = add(size, "cnn.0", None, "input", "conv1", kernel=8, stride=4)
        size = add(size, "cnn.2", None, "conv1", "conv2", kernel=4, stride=2)
        add(size, "cnn.4", None, "conv2", "output", kernel=3)
    elif family == "resnet":
        h, w = add(size, "backbone.conv1.0", "backbone.conv1.1", "input", "stem", kernel=7, stride=2, padding=3)
        size = (h - 1) // 2 + 1, (w - 1) // 2 + 1  # max-pool
        kernels = (3, 3) if block == "basic" else (1, 3, 1)
        for stage, index in ((s, i) for s, count in enumerate(blocks, start=1) for i in range(count)):
            place = f"backbone.layer{stage}.{index}"
            source = trunk_name(block, stage - 1 if index == 0 else stage)
            trunk = trunk_name(block, stage)
            own = f"stage{stage}.block{index}"
            per_group = _per_group(block, f"{own}.conv1")
            inner = [f"{own}.conv{i + 1}" for i in range(len(kernels) - 1)]
            if per_group > 1:
                inner = [f"{own}.conv1"] * 2
            before, stride = size, 2 if stage > 1 and index == 0 else 1
            for i, (kernel, a, b) in enumerate(zip(kernels, [source, *inner], [*inner, trunk])):
                names = f"{place}.convs.{3 * i}", f"{place}.convs.{3 * i + 1}"
                step = stride if i == kernels.index(3) else 1  # the first 3 x 3 takes the stage's stride
                size = add(size, *names, a, b, kernel, step, kernel // 2, per_group if a == b else 0)
            if block.startswith("se_"):
                add((1, 1), f"{place}.se.excite.0", None, trunk, f"{own}.se", kernel=1)
                add((1, 1), f"{place}.se.excite.2", None, f"{own}.se", trunk, kernel=1, multiplies=True)
            if source != trunk:
                names = f"{place}.downsample.0", f"{place}.downsample.1"
                add(before, *names, source, trunk, kernel=1, stride=stride)
        last = trunk_name(block, len(blocks))
        add(size, "compression.0", "compression.1", last, "output", kernel=3, padding=1)
    return tuple(convs)


def _per_group(block: str, layer: str) -> int:
    """Channels in each group of the grouped convolution on a width; 1 where there is none.

    Habitat's ResNeXts group only the first block of each stage, into half as many groups as base planes. Its
    planes grow with the stage and with the base planes, so that a group's channels depend on the stage alone.
    """
    stage, _, place = layer.partition(".")
    if not block.endswith("resnext") or place != "block0.conv1":
        return 1
    return 4 * 2 ** (int(stage.removeprefix("stage")) - 1)


def _habitat_planes(block: str, blocks: tuple[int, ...], base_planes: int) -> dict[str, int]:
    """Unpruned channels of every free width, in the order of the layers."""
    planes = {"stem": base_planes}
    for name in _layer_names("resnet", block, blocks)[1:]:
        stage = int(name[len("stage") : name.index(".")])
        own = base_planes * 2 ** (stage - 1) * (2 if block.endswith("resnext") else 1)
        trunk = own * EXPANSION[block]
        planes[name] = {"trunk": trunk, "se": max(1, trunk // SQUEEZE)}.get(name.rpartition(".")[2], own)
    return planes


@lru_cache(maxsize=256)
def _layer_names(family: str, block: str, blocks: tuple[int, ...]) -> tuple[str, ...]:
    targets = (conv.target for conv in _convolutions(family, block, blocks, 256, 256))
    return tuple(name for name in dict.fromkeys(targets) if name != "output")


def _narrow(layer: Layer, width: float, per_group: int = 1) -> Layer:
    unit = math.lcm(layer.group, per_group)
    return replace(layer, channels=max(1, round(width * layer.channels / unit)) * unit)


def known_fields(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of JSON data that has no keys but the fields of a dataclass; else raises UserError."""
    if not isinstance(data, Mapping):
        raise UserError(f"not a spec: expected an object with keys, found {type(data).__name__}")
    known = [f.name for f in fields(cls)]
    for key in data:
        if key not in known:
            raise UserError(f"spec has an unknown key {key!r}; known are {', '.join(known)}")
    return dict(data)


def check_positive(what: str, value: object) -> None:
    """Raise UserError unless the value is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{what} is {value!r}; it must be a whole number of at least 1")


def check_input(title: str, input: tuple[int, ...]) -> None:
    """Raise UserError unless these are sides [C, H, W]."""
    if len(input) != 3:
        raise UserError(f"{title}: input is (channels, height, width), not {tuple(input)}")
    for what, value in zip(("channels", "height", "width"), input):
        check_positive(f"{title}: input {what}", value)


def check_blocks(title: str, blocks: tuple[int, ...], first: int) -> None:
    """Raise UserError for a stage without blocks, the first for one with less than `first`."""
    for stage, count in enumerate(blocks, start=1):
        # The first block of a stage changes the resolution or the width, so that it cannot be left out.
        least = first if stage == 1 else 1
        if not isinstance(count, int) or count < least:
            raise UserError(f"{title}: stage {stage} has {count!r} blocks; it needs at least {least}")

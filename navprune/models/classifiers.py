"""Classifiers with BatchNorm: ResNets and VGG16 for ImageNet and for CIFAR, with torchvision's parameter names."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor, nn

from navprune.errors import UserError
from navprune.models.batch_norm import BatchNorm2d
from navprune.models.spec import check_blocks, check_input, check_positive, fewer_blocks, known_fields, renumbered


class ResNetFamily(NamedTuple):
    """Blocks of each stage, whose planes double from `planes` on; a `cifar` stem keeps the resolution."""

    blocks: tuple[int, ...]
    planes: int
    expansion: int
    cifar: bool


RESNET_FAMILIES = {
    "cifar_resnet20": ResNetFamily((3, 3, 3), 16, 1, cifar=True),
    "cifar_resnet32": ResNetFamily((5, 5, 5), 16, 1, cifar=True),
    "cifar_resnet44": ResNetFamily((7, 7, 7), 16, 1, cifar=True),
    "cifar_resnet56": ResNetFamily((9, 9, 9), 16, 1, cifar=True),
    "cifar_resnet110": ResNetFamily((18, 18, 18), 16, 1, cifar=True),
    "imagenet_resnet18": ResNetFamily((2, 2, 2, 2), 64, 1, cifar=False),
    "imagenet_resnet50": ResNetFamily((3, 4, 6, 3), 64, 4, cifar=False),
}
VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # 0 halves the resolution
HIDDEN = 4096  # of the two linear layers in VGG's head for ImageNet
CLASSIFIERS = (*RESNET_FAMILIES, "vgg16_bn", "cifar_vgg16_bn")


@dataclass(frozen=True)
class ClassifierSpec:
    """A classifier of images `input` [C, H, W]: its family, blocks of each stage (of ResNets) and every free width.

    `widths` are named after the first layer that writes them, as a `Structure` names its groups: the trunk of a
    stage after the last convolution of its first block or, where the stem leads into it, "conv1". Raises UserError
    where these contradict each other.
    """

    family: str
    input: tuple[int, int, int]
    classes: int
    widths: Mapping[str, int] = field(hash=False)
    blocks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.family not in CLASSIFIERS:
            raise UserError(f"unknown classifier {self.family!r}; known are {', '.join(CLASSIFIERS)}")
        check_positive(f"{self.family}: classes", self.classes)
        check_input(self.family, self.input)
        if self.family not in RESNET_FAMILIES and min(self.input[1:]) < 32:
            raise UserError(f"{self.family}: input of {self.input[1]} x {self.input[2]} pixels is too small; use 32")
        stages = len(RESNET_FAMILIES[self.family].blocks) if self.family in RESNET_FAMILIES else 0
        if len(self.blocks) != stages:
            raise UserError(f"{self.family}: blocks are {self.blocks}; give the number of each of its {stages} stages")
        check_blocks(self.family, self.blocks, first=0 if _depth(self.family) == 2 else 1)
        names = dense_widths(self.family, self.blocks)
        if self.widths.keys() != names.keys():
            wrong = sorted(self.widths.keys() ^ names.keys())[0]
            verb = "is missing" if wrong in names else "does not exist"
            raise UserError(f"{self.family}: width {wrong!r} {verb}; there are {', '.join(names)}")
        for name, channels in self.widths.items():
            check_positive(f"{self.family}: width of {name}", channels)
        # In the order of execution, whatever the order of a JSON object.
        object.__setattr__(self, "widths", {name: self.widths[name] for name in names})

    def removable_blocks(self) -> dict[str, str]:
        """Blocks from a trunk to the same trunk ("layer2.1"), each with the last norm of its branch."""
        blocks = _blocks(self.family, self.blocks)
        return {b.place: f"{b.place}.bn{len(b.inner) + 1}" for b in blocks if b.source == b.target}

    def without_blocks(self, removed: Collection[str]) -> ClassifierSpec:
        """The same classifier without some of its `removable_blocks`; those behind move up."""
        names = {name: renumbered(name, removed) for name in self.widths}
        widths = {new: self.widths[old] for old, new in names.items() if new}
        return replace(self, widths=widths, blocks=fewer_blocks(self.blocks, removed))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON data."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ClassifierSpec:
        """The spec that `to_json` wrote; raises UserError for anything else."""
        values = known_fields(cls, data)
        try:
            return cls(**{**values, **{key: tuple(values.get(key, ())) for key in ("input", "blocks")}})
        except (TypeError, AttributeError) as error:
            raise UserError(f"not a classifier's spec: {error}; write one with `classifier_spec`") from error


def classifier_spec(
    name: str, classes: int | None = None, input: tuple[int, int, int] | None = None, width: float = 1.0
) -> ClassifierSpec:
    """A dense classifier, one of `CLASSIFIERS`; `width` narrows every free width uniformly.

    `classes` are by default 10 for CIFAR, 1000 for ImageNet, and 100 for vgg16_bn, whose published cuts are for
    CIFAR-100 (`comparisons.published`). `input` [C, H, W] is by default 3 x 32 x 32 for CIFAR and 3 x 224 x 224 for
    the others. ResNets: He et al., CVPR 2016, of CIFAR with projections (option B), of ImageNet with the stride in the
    3 x 3 convolution, as in torchvision. VGG: Simonyan and Zisserman, ICLR 2015, with BatchNorm. Raises UserError for
    an unknown name.
    """
    side = 32 if name.startswith("cifar") else 224
    if classes is None:
        classes = 10 if side == 32 else 1000 if name.startswith("imagenet") else 100
    blocks = RESNET_FAMILIES[name].blocks if name in RESNET_FAMILIES else ()
    widths = {layer: max(1, round(width * channels)) for layer, channels in dense_widths(name, blocks).items()}
    return ClassifierSpec(name, input or (3, side, side), classes, widths, blocks)


def dense_widths(family: str, blocks: tuple[int, ...]) -> dict[str, int]:
    """Unpruned channels of every free width, in the order of execution."""
    if family in RESNET_FAMILIES:
        planes = RESNET_FAMILIES[family].planes
        widths = {"conv1": planes}
        for block in _blocks(family, blocks):
            own = planes * 2 ** (block.stage - 1)
            widths |= dict.fromkeys(block.inner, own)
            widths.setdefault(block.target, own * RESNET_FAMILIES[family].expansion)
        return widths
    widths = {f"features.{index}": channels for index, channels in _vgg_layers() if channels}
    return widths | ({"classifier.0": HIDDEN, "classifier.3": HIDDEN} if family == "vgg16_bn" else {})


class Classifier(nn.Module):
    """Images float [B, C, H, W] -> logits [B, classes]."""

    def __init__(self, spec: ClassifierSpec):
        super().__init__()
        self.spec = spec


class ResidualBlock(nn.Module):
    """Two convolutions, or three of which the second is 3 x 3, added to the input or to its projection."""

    def __init__(self, spec: ClassifierSpec, block: BlockPlan):
        super().__init__()
        widths = [spec.widths[name] for name in (block.source, *block.inner, block.target)]
        kernels = (3, 3) if len(block.inner) == 1 else (1, 3, 1)
        self.depth = len(kernels)
        for index, kernel in enumerate(kernels):
            stride = block.stride if index == kernels.index(3) else 1
            self.add_module(f"conv{index + 1}", _conv(widths[index], widths[index + 1], kernel, stride))
            self.add_module(f"bn{index + 1}", BatchNorm2d(widths[index + 1]))
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if block.source != block.target:
            projection = _conv(widths[0], widths[-1], 1, block.stride)
            self.downsample = nn.Sequential(projection, BatchNorm2d(widths[-1]))

    def forward(self, x: Tensor) -> Tensor:
        """[B, source, h, w] -> [B, target, h / stride, w / stride]."""
        branch = x
        for index in range(1, self.depth + 1):
            branch = self.get_submodule(f"bn{index}")(self.get_submodule(f"conv{index}")(branch))
            if index < self.depth:
                branch = self.relu(branch)
        return self.relu(branch + (x if self.downsample is None else self.downsample(x)))


class ResNet(Classifier):
    """Stem, stages, average over the image, linear layer."""

    def __init__(self, spec: ClassifierSpec):
        super().__init__(spec)
        stem = spec.widths["conv1"]
        cifar = RESNET_FAMILIES[spec.family].cifar
        self.conv1 = _conv(spec.input[0], stem, 3) if cifar else _conv(spec.input[0], stem, 7, 2)
        self.bn1 = BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if cifar else nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.stages = [f"layer{stage}" for stage in range(1, len(spec.blocks) + 1)]
        blocks = list(_blocks(spec.family, spec.blocks))
        for stage, name in enumerate(self.stages, start=1):
            self.add_module(name, nn.Sequential(*(ResidualBlock(spec, b) for b in blocks if b.stage == stage)))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(spec.widths[blocks[-1].target], spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        """See `Classifier`."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return self.fc(self.avgpool(x).flatten(1))


class Vgg(Classifier):
    """Convolutions with BatchNorm, average to 7 x 7 cells and three linear layers, or to one cell and one."""

    def __init__(self, spec: ClassifierSpec):
        super().__init__(spec)
        layers: list[nn.Module] = []
        source = spec.input[0]
        for index, channels in _vgg_layers():
            if channels:
                target = spec.widths[f"features.{index}"]
                layers += [nn.Conv2d(source, target, 3, padding=1), BatchNorm2d(target), nn.ReLU(inplace=True)]
                source = target
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        _initialise(self.features)
        cells = 7 if spec.family == "vgg16_bn" else 1
        self.avgpool = nn.AdaptiveAvgPool2d(cells)
        sizes = [source * cells**2, *(spec.widths[n] for n in ("classifier.0", "classifier.3") if n in spec.widths)]
        head: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            head += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True), nn.Dropout()]
        head.append(nn.Linear(sizes[-1], spec.classes))
        self.classifier = nn.Sequential(*head) if len(head) > 1 else head[0]

    def forward(self, images: Tensor) -> Tensor:
        """See `Classifier`."""
        return self.classifier(self.avgpool(self.features(images)).flatten(1))


def build_classifier(spec: ClassifierSpec) -> Classifier:
    """The classifier of a spec; its weights come from torch's global generator."""
    return ResNet(spec) if spec.family in RESNET_FAMILIES else Vgg(spec)


class BlockPlan(NamedTuple):
    """A residual block at `place`, from the width `source` through the `inner` ones to the width `target`."""

    place: str
    stage: int
    source: str
    inner: tuple[str, ...]
    target: str
    stride: int


def _depth(family: str) -> int:
    """Convolutions of a residual block."""
    return 3 if family in RESNET_FAMILIES and RESNET_FAMILIES[family].expansion > 1 else 2


def _blocks(family: str, blocks: tuple[int, ...]) -> Iterator[BlockPlan]:
    depth, trunk = _depth(family), "conv1"
    for stage, count in enumerate(blocks, start=1):
        for index in range(count):
            place, source = f"layer{stage}.{index}", trunk
            if index == 0 and (stage > 1 or depth == 3):
                trunk = f"{place}.conv{depth}"
            stride = 2 if stage > 1 and index == 0 else 1
            inner = tuple(f"{place}.conv{i}" for i in range(1, depth))
            yield BlockPlan(place, stage, source, inner, trunk, stride)


def _vgg_layers() -> Iterator[tuple[int, int]]:
    """Index within `features` and channels of every convolution; 0 channels where the resolution is halved."""
    index = 0
    for channels in VGG16:
        yield index, channels
        index += 3 if channels else 1


def _conv(source: int, target: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(source, target, kernel, stride, padding=kernel // 2, bias=False)
    _initialise(conv)
    return conv


def _initialise(module: nn.Module) -> None:
    """He et al., ICCV 2015, over the outputs, as torchvision does."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

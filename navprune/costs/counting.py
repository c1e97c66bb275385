"""Multiply-accumulates and parameters: whatever is counted is a list of layers, which `total` adds up.

`encoder_layers` makes the list of an encoder's spec, `module_layers` of any network by running it once, and
`pruning.trace` by following its graph, which also says which widths each layer joins. Conventions are views of it:

*Table 1* is the published one: the backbone's convolutions alone, without norms and biases, on an image of 256 x 256
without the 2 x 2 pooling before it, in binary units (Gi = 2^30, Mi = 2^20).

*Deployed* is what runs on the robot and what `latency` times: the whole encoder on its own input, from the pooling to
the compression, with all its parameters, in decimal units. The policy's linear layer behind the encoder is part of
neither, since pruning leaves it as it is.

*thop's* adds operations of biases, BatchNorm and adaptive pooling to the multiply-accumulates of any network; of
classifiers it is told beside the deployed one, which is all of them.

Multiply-accumulates are those of convolutions, padding included, and of linear layers; those of
squeeze-and-excitations count as convolutions of a single pixel.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from navprune.models.build import Spec, build
from navprune.models.classifiers import ClassifierSpec
from navprune.models.modes import evaluating
from navprune.models.spec import Conv, EncoderSpec, PolicySpec, convolutions

TABLE1_SIZE = (256, 256)
GI, MI = 2**30, 2**20
TABLE1, DEPLOYED = "table 1", "deployed"
"""Names of the conventions."""


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs: a convolution, linear layer, norm or pooling, or parameters that belong to none.

    `source` and `target` name widths, or are None where these are fixed; `inputs` and `outputs` are features for
    each channel of those widths, or all of them. Each of `positions` takes `taps` multiply-accumulates for each pair
    of input and output; `vectors` counts parameters for each output: a bias, or a norm's scale and shift. `others`
    are the operations for each output at each position that thop counts besides.
    """

    module: str
    source: str | None
    inputs: int
    target: str | None
    outputs: int
    taps: int
    positions: int
    vectors: int
    others: int = 0

    def filters(self, channels: Mapping[str, int]) -> tuple[int, int]:
        """Numbers of outputs and of the inputs of each, at {width: channels}."""
        outputs = self.outputs * (channels[self.target] if self.target else 1)
        return outputs, self.inputs * (channels[self.source] if self.source else 1)


def total(layers: Iterable[LayerCost], channels: Mapping[str, int], removed: Collection[str] = ()) -> dict[str, int]:
    """Add up layers at {width: channels}, without those of `removed` modules: {"macs", "parameters"} for one input."""
    gone = tuple(f"{name}." for name in removed)
    macs = parameters = 0
    for layer in layers:
        if gone and layer.module.startswith(gone):
            continue
        outputs, inputs = layer.filters(channels)
        weights = layer.taps * inputs * outputs
        macs += layer.positions * weights
        parameters += weights + layer.vectors * outputs
    return {"macs": macs, "parameters": parameters}


def encoder_layers(spec: EncoderSpec, convention: str = DEPLOYED) -> list[LayerCost]:
    """The convolutions of an encoder, each with its norm or bias, in a convention; widths are those of the spec."""
    if convention == DEPLOYED:
        return [_layer(conv, spec) for conv in convolutions(spec)]
    backbone = [conv for conv in convolutions(spec, TABLE1_SIZE) if not conv.module.startswith("compression")]
    return [replace(_layer(conv, spec), vectors=0) for conv in backbone]


def _layer(conv: Conv, spec: EncoderSpec) -> LayerCost:
    fixed = {"input": spec.input[0], "output": spec.output}
    source = None if conv.per_group or conv.source in fixed else conv.source
    inputs = conv.per_group or fixed.get(conv.source, 1)
    target = None if conv.target in fixed else conv.target
    # A norm has a scale and a shift for each channel; a convolution without a norm has a bias.
    vectors, positions = 2 if conv.norm else 1, conv.height * conv.width
    return LayerCost(conv.module, source, inputs, target, fixed.get(conv.target, 1), conv.kernel**2, positions, vectors)


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates and parameters in both conventions; `input` [C, H, W] is the deployed one."""

    table1_macs: int
    table1_parameters: int
    macs: int
    parameters: int
    input: tuple[int, int, int]

    def to_json(self) -> dict[str, Any]:
        """What `navprune cost --json` holds; the table's figures with its four decimals."""
        macs, parameters = round(self.table1_macs / GI, 4), round(self.table1_parameters / MI, 4)
        return {
            "table1": {"macs_gi": macs, "parameters_mi": parameters},
            "deployed": {"macs": self.macs, "parameters": self.parameters},
            "input": list(self.input),
        }


@dataclass(frozen=True)
class ConvCost:
    """One convolution as deployed, with its norm: output [h, w], shape [target, source, kernel, kernel].

    The source is that of one group where the convolution is grouped.
    """

    module: str
    width: str
    shape: tuple[int, int, int, int]
    output: tuple[int, int]
    macs: int
    parameters: int


def cost(spec: EncoderSpec | PolicySpec) -> Cost:
    """What an encoder (of a policy: its encoder) costs; zeros for a blind one."""
    encoder = _encoder(spec)
    table1, deployed = (total(encoder_layers(encoder, kind), encoder.channels) for kind in (TABLE1, DEPLOYED))
    return Cost(table1["macs"], table1["parameters"], deployed["macs"], deployed["parameters"], encoder.input)


def breakdown(spec: EncoderSpec | PolicySpec) -> list[ConvCost]:
    """The deployed cost convolution by convolution; the sums are `cost(spec).macs` and `.parameters`."""
    encoder, rows = _encoder(spec), []
    for conv, layer in zip(convolutions(encoder), encoder_layers(encoder)):
        shape = *layer.filters(encoder.channels), conv.kernel, conv.kernel
        counted = total([layer], encoder.channels)
        rows.append(ConvCost(conv.module, conv.target, shape, (conv.height, conv.width), **counted))
    return rows


def _encoder(spec: EncoderSpec | PolicySpec) -> EncoderSpec:
    return spec.encoder if isinstance(spec, PolicySpec) else spec


class Count(NamedTuple):
    """Multiply-accumulates of convolutions and linear layers for one input, all parameters, thop's operations."""

    macs: int
    parameters: int
    thop: int


def count(module: nn.Module, example: Tensor) -> Count:
    """What any network costs, by running it once on `example` [B, C, ...]; on the meta device nothing is computed.

    thop adds to the multiply-accumulates 1 for each output of a convolution with bias, 2 for each element behind a
    BatchNorm, and of adaptive average pooling, for each output, the cells averaged and 1 (so 2 where the size stays).
    """
    layers = module_layers(module, example)
    macs = total(layers, {})["macs"]
    return Count(macs, sum(p.numel() for p in module.parameters()), macs + sum(map(_others, layers)))


def _others(layer: LayerCost) -> int:
    """What thop counts of a layer beside its multiply-accumulates."""
    return layer.others * layer.outputs * layer.positions


def module_layers(module: nn.Module, example: Tensor) -> list[LayerCost]:
    """The layers that run on an `example` [B, C, ...], in order of execution; calls of the same one add up."""
    calls: dict[tuple[str, int], LayerCost] = {}
    names = {part: name for name, part in module.named_modules()}

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if (call := _call(names[layer], layer, inputs[0], output, len(example))) is not None:
            before = calls.get((call.module, call.others))
            positions = call.positions + (before.positions if before else 0)
            calls[call.module, call.others] = replace(call, positions=positions)

    with ExitStack() as hooks, evaluating(module), torch.no_grad():
        for part in module.modules():
            if not [*part.children()]:
                hooks.enter_context(part.register_forward_hook(hook))
        module(example)
    return [*calls.values()]


def _call(name: str, layer: nn.Module, source: Tensor, output: Tensor, images: int) -> LayerCost | None:
    """One call of a layer; None of one that costs nothing."""
    elements = output.numel() // images
    if isinstance(layer, nn.Conv2d | nn.Linear):
        weight = layer.weight
        outputs, inputs, taps = len(weight), weight.shape[1], math.prod(weight.shape[2:])
        biased = int(layer.bias is not None)
        others = biased if isinstance(layer, nn.Conv2d) else 0
        return LayerCost(name, None, inputs, None, outputs, taps, elements // outputs, biased, others)
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        outputs = layer.num_features
        return LayerCost(name, None, 0, None, outputs, 0, elements // outputs, 2 * int(layer.affine), 2)
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        cells = math.prod(a // b for a, b in zip(source.shape[2:], output.shape[2:]))
        return LayerCost(name, None, 0, None, output.shape[1], 0, elements // output.shape[1], 0, cells + 1)
    return None


def cost_json(spec: Spec) -> dict[str, Any]:
    """What `navprune cost --json` holds: of a classifier the deployed and thop's figures, else what `cost` says."""
    if not isinstance(spec, ClassifierSpec):
        return cost(spec).to_json()
    counted = count(*_unvalued(spec))
    return {
        "deployed": {"macs": counted.macs, "parameters": counted.parameters},
        "thop": {"operations": counted.thop, "parameters": counted.parameters},
        "input": list(spec.input),
    }


def cost_rows(spec: Spec) -> list[dict[str, Any]]:
    """The same layer by layer: of encoders as `breakdown`, of classifiers also norms and pooling, each by itself.

    A classifier's layer has `taps` (9 of a 3 x 3 convolution) weights for each pair of output and input, which act at
    so many `positions`.
    """
    if not isinstance(spec, ClassifierSpec):
        return [asdict(layer) for layer in breakdown(spec)]
    rows = []
    for layer in module_layers(*_unvalued(spec)):
        shape = {name: getattr(layer, name) for name in ("module", "outputs", "inputs", "taps", "positions")}
        counted = total([layer], {})
        rows.append({**shape, **counted, "thop": counted["macs"] + _others(layer)})
    return rows


def _unvalued(spec: ClassifierSpec) -> tuple[nn.Module, Tensor]:
    """A classifier and an input of it whose tensors have no values."""
    with torch.device("meta"):
        return build(spec), torch.empty(1, *spec.input)

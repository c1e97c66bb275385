"""Multiply-accumulates and parameters of an encoder, as pure functions of its spec.

Two conventions. "Table 1" is the published one: the backbone's convolutions alone, on an image of 256 x 256
without the 2 x 2 pooling before it, in binary units (Gi = 2^30, Mi = 2^20). "Deployed" is what runs on the
robot and what `latency` times: the whole encoder on its own input, from the pooling to the compression, with
all its parameters, in decimal units. Multiply-accumulates are those of convolutions, padding included, and of
the linear layers of squeeze-and-excitations, which count as convolutions of a single pixel. The policy's
linear layer behind the encoder is part of neither, since pruning leaves it as it is.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from navprune.models.spec import Conv, EncoderSpec, PolicySpec, convolutions

if TYPE_CHECKING:
    from torch import Tensor, nn

TABLE1_SIZE = (256, 256)
GI, MI = 2**30, 2**20


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
    encoder = spec.encoder if isinstance(spec, PolicySpec) else spec
    channels = encoder.channels
    table1 = [conv for conv in convolutions(encoder, TABLE1_SIZE) if not conv.module.startswith("compression")]
    deployed = convolutions(encoder)
    return Cost(
        table1_macs=sum(_weights(conv, channels) * conv.height * conv.width for conv in table1),
        table1_parameters=sum(_weights(conv, channels) for conv in table1),
        macs=sum(_weights(conv, channels) * conv.height * conv.width for conv in deployed),
        parameters=sum(_parameters(conv, channels) for conv in deployed),
        input=encoder.input,
    )


def breakdown(spec: EncoderSpec | PolicySpec) -> list[ConvCost]:
    """The deployed cost convolution by convolution; the sums are `cost(spec).macs` and `.parameters`."""
    encoder = spec.encoder if isinstance(spec, PolicySpec) else spec
    rows = []
    for conv in convolutions(encoder):
        shape, output = _shape(conv, encoder.channels), (conv.height, conv.width)
        macs, parameters = math.prod(shape + output), _parameters(conv, encoder.channels)
        rows.append(ConvCost(conv.module, conv.target, shape, output, macs, parameters))
    return rows


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
    import torch
    from torch import nn

    from navprune.models.modes import evaluating

    totals = {"macs": 0, "thop": 0}

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        elements = output.numel() // len(example)
        macs, others = 0, 0
        if isinstance(layer, nn.Conv2d):
            macs = elements * layer.in_channels // layer.groups * math.prod(layer.kernel_size)
            others = elements * (layer.bias is not None)
        elif isinstance(layer, nn.Linear):
            macs = elements * layer.in_features
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            others = 2 * elements
        elif isinstance(layer, nn.AdaptiveAvgPool2d):
            others = elements * (math.prod(a // b for a, b in zip(inputs[0].shape[2:], output.shape[2:])) + 1)
        totals["macs"] += macs
        totals["thop"] += macs + others

    with ExitStack() as hooks, evaluating(module), torch.no_grad():
        for part in module.modules():
            if not [*part.children()]:
                hooks.enter_context(part.register_forward_hook(hook))
        module(example)
    return Count(totals["macs"], sum(p.numel() for p in module.parameters()), totals["thop"])


def _shape(conv: Conv, channels: dict[str, int]) -> tuple[int, int, int, int]:
    return channels[conv.target], conv.per_group or channels[conv.source], conv.kernel, conv.kernel


def _weights(conv: Conv, channels: dict[str, int]) -> int:
    return math.prod(_shape(conv, channels))


def _parameters(conv: Conv, channels: dict[str, int]) -> int:
    # A norm has a scale and a shift for each channel; a convolution without a norm has a bias.
    return _weights(conv, channels) + channels[conv.target] * (2 if conv.norm else 1)

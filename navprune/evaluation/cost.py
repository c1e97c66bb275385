"""Multiply-accumulates and parameters of an encoder, as pure functions of its spec.

Two conventions. "Table 1" is the published one: the backbone's convolutions alone, on an image of 256 x 256
without the 2 x 2 pooling before it, in binary units (Gi = 2^30, Mi = 2^20). "Deployed" is what runs on the
robot and what `latency` times: the whole encoder on its own input, from the pooling to the compression, with
all its parameters, in decimal units. Multiply-accumulates are those of convolutions, padding included, and of
the linear layers of squeeze-and-excitations, which count as convolutions of a single pixel. The policy's
linear layer behind the encoder is part of neither, since pruning leaves it as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from navprune.models.spec import Conv, EncoderSpec, PolicySpec, convolutions

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
        return {
            "table1": {
                "macs_gi": round(self.table1_macs / GI, 4),
                "parameters_mi": round(self.table1_parameters / MI, 4),
            },
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
    channels = encoder.channels
    return [
        ConvCost(
            conv.module,
            conv.target,
            (channels[conv.target], _fan(conv, channels), conv.kernel, conv.kernel),
            (conv.height, conv.width),
            _weights(conv, channels) * conv.height * conv.width,
            _parameters(conv, channels),
        )
        for conv in convolutions(encoder)
    ]


def _fan(conv: Conv, channels: dict[str, int]) -> int:
    return conv.per_group or channels[conv.source]


def _weights(conv: Conv, channels: dict[str, int]) -> int:
    return _fan(conv, channels) * channels[conv.target] * conv.kernel**2


def _parameters(conv: Conv, channels: dict[str, int]) -> int:
    # A norm has a scale and a shift for each channel; a convolution without a norm has a bias.
    return _weights(conv, channels) + channels[conv.target] * (2 if conv.norm else 1)

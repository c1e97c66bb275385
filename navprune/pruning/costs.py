"""What a network costs at any widths, as arithmetic over its layers: no forward pass, cheap enough for a search."""

from collections.abc import Mapping
from dataclasses import dataclass

from navprune.errors import UserError
from navprune.models.encoders import ChannelGroup


@dataclass(frozen=True)
class LayerCost:
    """What one convolution, linear layer or norm costs; see `module_cost`.

    `source` and `target` name groups, or are None where the width is fixed; `inputs` and `outputs` are features for
    each channel of those groups, or all of them. Each of `positions` takes `taps` multiply-accumulates for each pair
    of input and output; `vectors` counts parameters for each output: a bias, or a norm's scale and shift. A parameter
    of its own with an entry for each channel is a layer of one vector.
    """

    module: str
    source: str | None
    inputs: int
    target: str | None
    outputs: int
    taps: int
    positions: int
    vectors: int


@dataclass(frozen=True)
class Trace:
    """The groups of a network, in order of execution, its layers, and parameters that no cut changes.

    `obstacles` name the operations that keep channels whole, since these cannot be followed through them.
    """

    groups: tuple[ChannelGroup, ...]
    layers: tuple[LayerCost, ...]
    parameters: int
    obstacles: tuple[str, ...] = ()

    def cost(self, widths: Mapping[str, int]) -> dict[str, int]:
        """Multiply-accumulates for one input, and parameters: {"macs", "parameters"}, at {group name: channels}.

        Groups that are not named keep their channels; a name that leads to 0 channels removes the block it names.
        """
        channels = {group.name: group.channels for group in self.groups}
        for name, count in widths.items():
            if name not in channels and count not in (0, 1):
                raise UserError(f"no channel group {name!r}: there are {', '.join(channels)}")
            if count < 0:
                raise UserError(f"{name} cannot have {count} channels: give 0 or more")
        channels |= widths
        removed = tuple(f"{name}." for name, count in widths.items() if count == 0)
        macs, parameters = 0, self.parameters
        for layer in self.layers:
            if removed and layer.module.startswith(removed):
                continue
            outputs = layer.outputs * (channels[layer.target] if layer.target else 1)
            weights = layer.taps * layer.inputs * (channels[layer.source] if layer.source else 1) * outputs
            macs += layer.positions * weights
            parameters += weights + layer.vectors * outputs
        return {"macs": macs, "parameters": parameters}

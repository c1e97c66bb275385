"""Sets of channels, the tensors that hold them, and what single operations make of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, fx, nn

from navprune.pruning.operations import (
    ELEMENTWISE,
    ELEMENTWISE_NAMES,
    PADS,
    POOL_NAMES,
    POOLS,
    REDUCTIONS,
    RESHAPES,
    SUMS,
    argument,
    at_zero,
    full_index,
    long_axis,
    padding_of,
    shape_of,
    sizes_of,
    width_of,
)


class ObstacleError(Exception):
    """An operation that channels cannot be followed through, in words where its name does not say enough."""


@dataclass(eq=False)
class Channels:
    """A set of channels that layers share; sets that turn out to be one have the same `root`, which knows it all.

    `ends` are the modules behind which cut channels must be silenced, since they are read behind them; `speaking`
    are the layers whose values are read, `multiplying` those whose values scale others that can be silenced.
    """

    size: int
    unit: int = 1
    fixed: bool = False
    trunk: bool = False
    parent: Channels | None = None
    ends: set[str] = field(default_factory=set)
    speaking: set[str] = field(default_factory=set)
    multiplying: set[str] = field(default_factory=set)

    @property
    def root(self) -> Channels:
        """The set that this one has become part of."""
        channels = self
        while channels.parent is not None:
            channels = channels.parent
        return channels

    def join(self, other: Channels) -> None:
        """Makes one set of two; of different sizes, both stay whole."""
        first, second = self.root, other.root
        if first.size != second.size:
            first.fixed = second.fixed = True
        elif first is not second:
            first.unit = math.lcm(first.unit, second.unit)
            first.fixed |= second.fixed
            first.trunk |= second.trunk
            first.ends |= second.ends
            first.speaking |= second.speaking
            first.multiplying |= second.multiplying
            second.parent = first


@dataclass(frozen=True)
class Value:
    """A tensor: its channels and their dimension, and the layers that have written them.

    Masks behind the `silencers` make cut channels 0 in it; None where there are no such modules. A value without
    writers is a parameter with an entry for each channel, or computed from such; cut channels are not 0 in it.
    """

    channels: Channels
    silencers: frozenset[str] | None = None
    writers: frozenset[str] = frozenset()
    axis: int = 1

    @property
    def free(self) -> bool:
        """Whether its channels may be cut, as far as one knows."""
        return not self.channels.root.fixed

    def read(self) -> None:
        """Notes that something reads it in which every channel counts."""
        self.channels.root.ends |= self.silencers or frozenset()
        self.channels.root.speaking |= self.writers

    def keep(self) -> None:
        """Notes that something reads it that needs all of its channels."""
        self.channels.root.fixed = True
        self.read()


def whole(result: Any) -> Value | None:
    """A tensor whose channels all stay; None of anything else."""
    return Value(Channels(width_of(result), fixed=True)) if isinstance(result, Tensor) else None


def silenced_by(first: Value, second: Value) -> frozenset[str] | None:
    """Where two values can be silenced together."""
    return None if first.silencers is None or second.silencers is None else first.silencers | second.silencers


def of_one(node: fx.Node, name: str, layer: nn.Module | None, value: Value) -> Value:
    """What an operation on one tensor makes of it. Raises ObstacleError where channels cannot be followed."""
    if not value.writers and name in RESHAPES | {"getitem"}:
        return _reshaped_vector(node, name, value)
    if name == "pad" or isinstance(layer, PADS):
        keeps_channels, keeps_zeros = padding_of(node, layer)
        if not keeps_channels:
            raise ObstacleError("pad of channels")
        return value if keeps_zeros else replace(value, silencers=None)
    if value.axis == 1 and _is_per_channel(node, name, layer, value):
        return value
    if name in ELEMENTWISE_NAMES or isinstance(layer, ELEMENTWISE):
        return _elementwise(node, name, layer, value)
    raise ObstacleError


def of_two(node: fx.Node, name: str, a: fx.Node, b: fx.Node, first: Value, second: Value) -> Value:
    """A sum, product or quotient of two tensors; one of them may have a number for all channels."""
    turned = not first.free or (not first.writers and bool(second.writers))
    if turned:
        a, b, first, second = b, a, second, first
    shape, other = shape_of(a.meta["result"]), shape_of(b.meta["result"])
    place = first.axis - len(shape)  # from the right, as tensors are aligned
    extent = other[place] if len(other) >= -place else 1
    axis = place + len(shape_of(node.meta["result"]))
    if name == "div" and (turned or (second.free and second.writers)):
        raise ObstacleError
    aligned = second.axis - len(other) == place and second.channels.root.size == first.channels.root.size
    if extent == 1 and shape[place] > 1:
        second.keep()
        return replace(first, axis=axis, silencers=None if name in SUMS else first.silencers)
    if extent != shape[place] or not aligned:
        raise ObstacleError(f"{name} of {list(shape)} and {list(other)}")
    first.channels.join(second.channels)
    root, writers = first.channels.root, first.writers | second.writers
    if name in SUMS:
        root.trunk |= bool(first.writers and second.writers)
        return Value(first.channels, silenced_by(first, second), writers, axis)
    strong, weak = sorted((first, second), key=_strength, reverse=True)
    if _strength(strong) > _strength(weak):
        root.multiplying |= weak.writers
        writers = strong.writers
    return Value(first.channels, strong.silencers, writers, axis)


def _strength(value: Value) -> int:
    """How well a value can be silenced: not at all, behind some module, or behind the layers that write it."""
    return 0 if value.silencers is None else 1 + (value.silencers <= value.writers)


def of_vectors(name: str, value: Value, *vectors: Value) -> Value:
    """A norm or the like that takes an entry of each of several parameters for each channel."""
    if any(v.free and (v.writers or v.axis or v.channels.size != value.channels.size) for v in vectors):
        raise ObstacleError
    for vector in vectors:
        if vector.free or vector.channels.size > 1:
            value.channels.join(vector.channels)
    return value if name == "prelu" else replace(value, silencers=None)


def _reshaped_vector(node: fx.Node, name: str, value: Value) -> Value:
    """A parameter with an entry for each channel, with dimensions of 1 added or removed."""
    result = node.meta["result"]
    axis = long_axis(result)
    simple = name != "getitem" or all(part is None or part == slice(None) for part in full_index(node))
    if axis is None or result.numel() != value.channels.size or not simple:
        raise ObstacleError
    _check_not_written_out(node, name, axis)
    return replace(value, axis=axis)


def _is_per_channel(node: fx.Node, name: str, layer: nn.Module | None, value: Value) -> bool:
    """Whether an operation treats every channel by itself and leaves a silent one silent."""
    shape, result = shape_of(node.all_input_nodes[0].meta["result"]), shape_of(node.meta["result"])
    keeps_order = len(result) >= 2 and result[0] == shape[0] and result[1] % value.channels.size == 0
    if layer is not None:
        return (isinstance(layer, POOLS) and len(shape) == 4) or (isinstance(layer, nn.Flatten) and keeps_order)
    if name in REDUCTIONS:
        dims = argument(node, 1, "dim", "axis", default=())
        dims = dims if isinstance(dims, tuple | list) else (dims,)
        return bool(dims) and all(isinstance(d, int) and d % len(shape) >= 2 for d in dims)
    if name == "getitem":
        index = full_index(node)
        simple = all(part is None or isinstance(part, int | slice) for part in index[2:])
        return index[:2] == (slice(None), slice(None)) and simple and keeps_order
    if name == "squeeze" and len(node.args) + len(node.kwargs) < 2:
        raise ObstacleError("squeeze of every dimension (give it one)")
    if name in RESHAPES:
        _check_not_written_out(node, name, 1)
        return keeps_order
    if name == "expand":
        _check_not_written_out(node, name, 1)
        return keeps_channels(node)
    return name in POOL_NAMES and len(shape) == 4


def keeps_channels(node: fx.Node) -> bool:
    """Whether a larger view repeats what is in each channel, and neither batch nor channels."""
    return shape_of(node.all_input_nodes[0].meta["result"])[:2] == shape_of(node.meta["result"])[:2]


def _check_not_written_out(node: fx.Node, name: str, axis: int) -> None:
    """A width that stands as a number in `view` and the like would be wrong in the smaller network."""
    sizes = sizes_of(node) if name in ("view", "reshape", "expand") else None
    if sizes is not None and len(sizes) > axis and isinstance(sizes[axis], int) and sizes[axis] != -1:
        advice = "where the width stands as a number (write flatten(1), or -1 in its place)"
        raise ObstacleError(f"{name}(..., {sizes[axis]}, ...), {advice},")


def _elementwise(node: fx.Node, name: str, layer: nn.Module | None, value: Value) -> Value:
    """An operation on each value alone; what it makes of 0 is found by computing it."""
    if isinstance(layer, nn.PReLU) and layer.num_parameters > 1:
        raise ObstacleError("PReLU with a slope for each channel")
    if len(node.all_input_nodes) > 1 and name not in ("mul", "div"):
        raise ObstacleError(f"{name} with a number computed")
    if not value.writers:
        return value
    answer = at_zero(node, layer)
    if not answer.isfinite().all():
        raise ObstacleError(f"{name}, which is not finite where cut channels are 0,")
    return replace(value, silencers=None) if answer.any() else value

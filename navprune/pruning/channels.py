"""Sets of channels, the tensors that hold them, and what single operations make of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d, nn.GroupNorm)
WEIGHTED = (nn.Conv2d, nn.Linear, *NORMS)
ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardtanh, nn.Hardsigmoid, nn.Sigmoid, nn.LogSigmoid, nn.Softplus, nn.Softsign, nn.Tanh,
    nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Dropout, nn.Dropout2d, nn.Identity,
)  # fmt: skip
PADS = (nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, *PADS)
ELEMENTWISE_NAMES = {
    *"relu relu6 leaky_relu elu selu celu gelu silu mish hardswish hardtanh hardsigmoid sigmoid logsigmoid".split(),
    *"softplus softsign tanh tanhshrink softshrink hardshrink clamp clamp_min clamp_max abs neg square pow exp".split(),
    *"sqrt rsqrt reciprocal sin cos dropout dropout2d contiguous clone detach to float double half".split(),
    *"add sub rsub mul div maximum minimum".split(),
    *"stochastic_depth drop_path".split(),  # torchvision's and timm's: in training they drop whole rows of a batch
}
POOL_NAMES = {*"max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d interpolate upsample".split()}
REDUCTIONS = {"mean", "sum", "amax", "amin"}
SUMS = {"add", "sub", "maximum", "minimum"}  # nothing comes of nothing
RESHAPES = {"flatten", "view", "reshape", "squeeze", "unsqueeze"}
IN_PLACE = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div"}


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
        """Make one set of two; of different sizes, both stay whole."""
        first, second = self.root, other.root
        if first.size != second.size:
            first.fixed = second.fixed = True
        elif first is not second:
            first.unit = math.lcm(first.unit, second.unit)
            for name in ("fixed", "trunk", "ends", "speaking", "multiplying"):
                setattr(first, name, getattr(first, name) | getattr(second, name))
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
        """Note that something reads it in which every channel counts."""
        self.channels.root.ends |= self.silencers or frozenset()
        self.channels.root.speaking |= self.writers

    def keep(self) -> None:
        """Note that something reads it that needs all of its channels."""
        self.channels.root.fixed = True
        self.read()


def whole(result: Any) -> Value | None:
    """A tensor whose channels all stay; None of anything else."""
    return Value(Channels(width_of(result), fixed=True)) if isinstance(result, Tensor) else None


def silenced_by(first: Value, second: Value) -> frozenset[str] | None:
    """Where two values can be silenced together."""
    return None if first.silencers is None or second.silencers is None else first.silencers | second.silencers


def followed(node: fx.Node, name: str, layer: nn.Module | None, values: dict[fx.Node, Value]) -> Value:
    """What an operation makes of the values it reads. Raises ObstacleError where channels cannot be followed."""
    tensors = [n for n in node.all_input_nodes if n in values]
    inputs = [values[n] for n in tensors]
    if node.kwargs.get("out") is not None:
        raise ObstacleError(f"{name} with out=")
    if isinstance(node.meta["result"], Tensor) and len(tensors) == 1:
        return _of_one(node, name, layer, inputs[0])
    if len(tensors) == 2 and name in SUMS | {"mul", "div"}:
        return _of_two(node, name, (tensors[0], inputs[0]), (tensors[1], inputs[1]))
    if name == "batch_norm" and not any(v.writers for v in inputs[1:]):
        for vector in inputs[1:]:
            inputs[0].channels.join(vector.channels)
        return replace(inputs[0], silencers=None)
    if name == "expand_as" and len(tensors) == 2 and _keeps_channels(node):
        inputs[0].channels.join(inputs[1].channels)
        return inputs[0]
    raise ObstacleError


def _of_one(node: fx.Node, name: str, layer: nn.Module | None, value: Value) -> Value:
    if not value.writers and name in RESHAPES | {"getitem"}:
        return _reshaped_vector(node, name, value)
    if name == "pad" or isinstance(layer, PADS):
        return _padded(node, layer, value)
    if value.axis == 1 and _is_per_channel(node, name, layer, value):
        return value
    if name in ELEMENTWISE_NAMES or isinstance(layer, ELEMENTWISE):
        return _elementwise(node, name, layer, value)
    raise ObstacleError


def _of_two(node: fx.Node, name: str, *pair: tuple[fx.Node, Value]) -> Value:
    """A sum, product or quotient of two tensors; one of them may have a number for all channels."""
    (a, first), (b, second) = sorted(pair, key=lambda one: (one[1].free, bool(one[1].writers)), reverse=True)
    shape, other = shape_of(a), shape_of(b)
    place = first.axis - len(shape)  # from the right, as tensors are aligned
    extent = other[place] if len(other) >= -place else 1
    axis = place + len(shape_of(node))
    if name == "div" and (a is not pair[0][0] or (second.free and second.writers)):
        raise ObstacleError
    if extent == 1 and shape[place] > 1:
        second.keep()
        return replace(first, axis=axis, silencers=None if name in SUMS else first.silencers)
    root = first.channels.root
    if extent != shape[place] or second.axis - len(other) != place or second.channels.root.size != root.size:
        raise ObstacleError(f"{name} of {list(shape)} and {list(other)}")
    root.join(second.channels)
    writers = first.writers | second.writers
    if name in SUMS:
        root.trunk |= bool(first.writers and second.writers)
        return Value(root, silenced_by(first, second), writers, axis)
    strong, weak = sorted((first, second), key=_strength, reverse=True)
    if _strength(strong) > _strength(weak):
        root.multiplying |= weak.writers
        writers = strong.writers
    return Value(root, strong.silencers, writers, axis)


def _strength(value: Value) -> int:
    """How well a value can be silenced: not at all, behind some module, or behind the layers that write it."""
    return 0 if value.silencers is None else 1 + (value.silencers <= value.writers)


def _reshaped_vector(node: fx.Node, name: str, value: Value) -> Value:
    """A parameter with an entry for each channel, with dimensions of 1 added or removed."""
    axis = long_axis(node.meta["result"])
    simple = name != "getitem" or all(part in (None, Ellipsis, slice(None)) for part in _index(node))
    if axis is None or node.meta["result"].numel() != value.channels.size or not simple:
        raise ObstacleError
    _check_not_written_out(node, name, axis)
    return replace(value, axis=axis)


def _padded(node: fx.Node, layer: nn.Module | None, value: Value) -> Value:
    if layer is None and any(argument(node, 1, "pad")[2 * (len(shape_of(node)) - 2) :]):
        raise ObstacleError("pad of channels")
    filled = argument(node, 3, "value") if layer is None else getattr(layer, "value", 0)
    return replace(value, silencers=None) if filled else value


def _is_per_channel(node: fx.Node, name: str, layer: nn.Module | None, value: Value) -> bool:
    """Whether an operation treats every channel by itself and leaves a silent one silent."""
    shape, result = shape_of(node.all_input_nodes[0]), shape_of(node)
    keeps_order = len(result) >= 2 and result[0] == shape[0] and result[1] % value.channels.size == 0
    if layer is not None:
        return (isinstance(layer, POOLS) and len(shape) == 4) or (isinstance(layer, nn.Flatten) and keeps_order)
    if name in REDUCTIONS:
        dims = argument(node, 1, "dim", "axis")
        dims = dims if isinstance(dims, tuple | list) else (dims,)
        return bool(dims) and all(isinstance(d, int) and d % len(shape) >= 2 for d in dims)
    if name == "getitem":
        index = _index(node)
        at_end = index[0] is Ellipsis and not any(index[1:])
        simple = index[:2] == (slice(None), slice(None)) and all(isinstance(i, int | slice | None) for i in index[2:])
        return (at_end or simple) and keeps_order
    if name == "squeeze" and len(node.args) + len(node.kwargs) < 2:
        raise ObstacleError("squeeze of every dimension (give it one)")
    if name in RESHAPES | {"expand"}:
        _check_not_written_out(node, name, 1)
        return _keeps_channels(node) if name == "expand" else keeps_order
    return name in POOL_NAMES and len(shape) == 4


def _keeps_channels(node: fx.Node) -> bool:
    """Whether a larger view repeats what is in each channel, and neither batch nor channels."""
    return shape_of(node.all_input_nodes[0])[:2] == shape_of(node)[:2]


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
    if not value.writers or isinstance(layer, nn.PReLU):
        return value
    zero = torch.zeros(1, 1, 1, 1, device="cpu")
    args, kwargs = fx.node.map_arg(
        (node.args, node.kwargs), lambda n: zero if isinstance(n.meta["result"], Tensor) else n.meta["result"]
    )
    function = layer or (getattr(Tensor, node.target) if isinstance(node.target, str) else node.target)
    answer = function(*args, **kwargs)
    if not answer.isfinite().all():
        raise ObstacleError(f"{name}, which is not finite where cut channels are 0,")
    return replace(value, silencers=None) if answer.any() else value


def operation_of(node: fx.Node) -> str:
    """The name of an operation, the same for function, method, operator and in-place form."""
    if node.op == "call_function":
        name = getattr(node.target, "__name__", str(node.target))
        return {**IN_PLACE, "truediv": "div"}.get(name, name).strip("_")
    return str(node.target).rstrip("_") if node.op == "call_method" else node.op


def argument(node: fx.Node, place: int, *names: str) -> Any:
    """What an operation is given at a place or under one of several names, computed or not; None where nothing."""
    found = [node.kwargs[name] for name in names if name in node.kwargs]
    value = found[0] if found else node.args[place] if place < len(node.args) else None
    return fx.node.map_arg(value, lambda other: other.meta["result"])


def sizes_of(node: fx.Node) -> tuple[Any, ...] | None:
    """The sizes that `view` and the like are given, nodes among them; None where a node says them all."""
    given = node.kwargs.get("shape", node.kwargs.get("size", node.args[1:]))
    if isinstance(given, tuple) and len(given) == 1 and isinstance(given[0], tuple | list | fx.Node):
        given = given[0]
    return tuple(given) if isinstance(given, tuple | list) else None


def _index(node: fx.Node) -> tuple[Any, ...]:
    return node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of a tensor; () of anything else."""
    return tuple(node.meta["result"].shape) if isinstance(node.meta["result"], Tensor) else ()


def width_of(tensor: Tensor) -> int:
    """Its channels or features."""
    return tensor.shape[1] if tensor.dim() > 1 else 1


def long_axis(tensor: Tensor) -> int | None:
    """The only dimension of more than one entry: where a value for each channel lies, as in [C, 1, 1]."""
    longer = [axis for axis, size in enumerate(tensor.shape) if size > 1]
    return longer[0] if len(longer) == 1 else None

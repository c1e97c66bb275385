"""Channel groups and costs of any convolutional network, by following a symbolic trace of it (torch.fx).

Every tensor has channels along dimension 1; behind a flatten each of them is several features wide. Layers that
write the same channels, or write what is added together, share one set of them, in units of whole norm groups
and whole groups of grouped convolutions. Sets that reach an input or an output of the network stay as they are.
A channel may be cut if it is *silent* wherever a layer reads it: once its producers and norms say 0, it is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from navprune.errors import UserError
from navprune.models.encoders import ChannelGroup
from navprune.pruning.costs import Layer, Trace
from navprune.pruning.graph import (
    ELEMENTWISE,
    ELEMENTWISE_NAMES,
    NORMS,
    POOL_NAMES,
    POOLS,
    REDUCTIONS,
    RESHAPES,
    SIZES,
    SUMS,
    WEIGHTED,
    Example,
    memory_of,
    operation_of,
    shaped_graph,
    width_of,
)

ADVICE = "prune the parts around it, or write it with convolutions, norms, linear layers, sums and pooling"


def trace(module: nn.Module, example: Example) -> Trace:
    """The groups and costs of a network of convolutions, norms, linear layers, pooling, flattening and sums.

    `example` is an input [B, C, ...] of it, or the tuple of its inputs; only shapes are used, and nothing is
    computed. Layers that are called twice have both their inputs and outputs coupled. Raises UserError, naming
    operation and layer, where channels that could be cut meet anything else.
    """
    ghost, graph = shaped_graph(module, example)
    return _Follower(ghost).follow(graph)


def module_cost(module: nn.Module, example: Example) -> Callable[[Mapping[str, int]], dict[str, int]]:
    """Multiply-accumulates and parameters of a network as a function of its widths, without running it.

    The answer takes {group name: channels} and gives {"macs", "parameters"}; see `Trace.cost`. Multiply-accumulates
    are those of convolutions, padding included, and linear layers, for one input. Raises UserError as `trace`.
    """
    return trace(module, example).cost


@dataclass(eq=False)
class _Channels:
    """A set of channels that layers share; sets that turn out to be one have the same `root`."""

    size: int
    unit: int = 1
    fixed: bool = False
    trunk: bool = False
    parent: _Channels | None = None

    @property
    def root(self) -> _Channels:
        channels = self
        while channels.parent is not None:
            channels = channels.parent
        return channels

    def join(self, other: _Channels) -> None:
        first, second = self.root, other.root
        if first is not second:
            first.unit = math.lcm(first.unit, second.unit)
            first.fixed |= second.fixed
            first.trunk |= second.trunk
            second.parent = first


@dataclass(frozen=True)
class _Value:
    """A tensor: its channels, whether cut ones are 0 in it, and the layers that have written them."""

    channels: _Channels
    silent: bool = True
    writers: frozenset[str] = frozenset()

    @property
    def free(self) -> bool:
        return not self.channels.root.fixed


def _whole(result: Any) -> _Value | None:
    """A tensor whose channels all stay; None of anything else."""
    return _Value(_Channels(width_of(result), fixed=True)) if isinstance(result, Tensor) else None


@dataclass
class _Call:
    """A convolution, linear layer or norm and the channels it joins; `source` is None where inputs stay as many."""

    module: nn.Module
    source: _Channels | None
    target: _Channels
    positions: int
    behind_norm: bool = False


@dataclass
class _Follower:
    """Walks the graph in order of execution and keeps what it has seen."""

    module: nn.Module
    values: dict[fx.Node, _Value] = field(default_factory=dict)
    counts: dict[fx.Node, tuple[_Channels, int | None]] = field(default_factory=dict)
    """Shapes, with the place of the number of channels in them, and numbers that come of it (None)."""
    calls: dict[str, _Call] = field(default_factory=dict)
    elsewhere: set[str] = field(default_factory=set)
    """Layers that are called, or whose weights are read, in a way that no cut survives."""
    speaking: set[str] = field(default_factory=set)
    multiplying: set[str] = field(default_factory=set)
    obstacle: str | None = None

    def follow(self, graph: fx.Graph) -> Trace:
        last = self._behind_all_layers(graph)
        for node in graph.nodes:
            if node.op == "output":
                self._fix(node)
            elif (result := self._last_value(node) if node in last else self._value(node)) is not None:
                self.values[node] = result
                if self._is_in_place(node):
                    self._overwrite(node, result)
        return self._result()

    def _last_value(self, node: fx.Node) -> _Value | None:
        """The value of a node that only outputs follow: where it cannot be followed, what it reads stays whole."""
        try:
            return self._value(node)
        except UserError:
            self.obstacle = self.obstacle or self._called(node, operation_of(node))
            self._fix(node)
            return _whole(node.meta["result"])

    def _behind_all_layers(self, graph: fx.Graph) -> set[fx.Node]:
        """The nodes that only outputs follow: what they read stays whole, whatever they make of it."""
        last: set[fx.Node] = set()
        for node in reversed(graph.nodes):
            ends = node.users and all(user.op == "output" or user in last for user in node.users)
            writes = self._is_in_place(node) or node.kwargs.get("out") is not None
            if ends and not writes and not self._has_parameters(node):
                last.add(node)
        return last

    def _fix(self, node: fx.Node) -> None:
        """Notes that what a node reads is for others to know: all of these channels stay."""
        for value in self._inputs(node):
            value.channels.root.fixed = True
            self.speaking |= value.writers
        for count in self.counts.keys() & set(node.all_input_nodes):
            self.counts[count][0].root.fixed = True

    def _is_in_place(self, node: fx.Node) -> bool:
        """Whether an operation leaves its result in its first input, by its name or by its `inplace`."""
        if node.op == "call_module":
            return bool(getattr(self._layer(node), "inplace", False)) and bool(node.all_input_nodes)
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        writes = name.endswith("_") or name in ("iadd", "isub", "imul", "itruediv") or node.kwargs.get("inplace")
        return bool(node.all_input_nodes) and bool(writes)

    def _overwrite(self, node: fx.Node, result: _Value) -> None:
        """What an operation in place writes is read under every name of the memory: its input and views of it."""
        written = node.all_input_nodes[0]
        memory = memory_of(written)
        for other, value in self.values.items():
            if other not in (node, written) and memory is not None and memory_of(other) == memory:
                silent, writers = value.silent and result.silent, value.writers | result.writers
                self.values[other] = _Value(value.channels, silent, writers)
        self.values[written] = result

    def _inputs(self, node: fx.Node) -> list[_Value]:
        return [self.values[n] for n in node.all_input_nodes if n in self.values]

    def _value(self, node: fx.Node) -> _Value | None:
        """The value of a node; None where it is no tensor."""
        inputs = self._inputs(node)
        result = node.meta["result"]
        name = operation_of(node)
        if node.op == "get_attr":
            self.elsewhere.add(str(node.target).rpartition(".")[0])
        self._count_channels(node, name)
        if node.kwargs.get("out") is not None:
            raise self._refusal(node, f"{name} with out=")
        if node.op == "call_module" and isinstance(layer := self._layer(node), WEIGHTED):
            ranks = (2,) if isinstance(layer, nn.Linear) else (4,) if isinstance(layer, nn.Conv2d) else (2, 4)
            if result.dim() in ranks:
                return self._weighted(node, inputs[0])
            self.elsewhere.add(str(node.target))
            if isinstance(layer, nn.Linear):  # along the last of several dimensions: it costs, but cannot be cut
                outputs, positions = _Channels(layer.out_features, fixed=True), math.prod(result.shape[1:-1])
                self.calls.setdefault(str(node.target), _Call(layer, None, outputs, 0)).positions += positions
        if not all(value.free for value in inputs) and self._has_parameters(node):
            self.obstacle = self.obstacle or self._called(node, name)
        if not any(value.free for value in inputs):
            return _whole(result)
        if name in SIZES and not isinstance(result, Tensor):
            return None
        tensors = [n for n in node.all_input_nodes if n in self.values]
        if isinstance(result, Tensor) and len(tensors) == 2 and name in SUMS | {"mul"}:
            return self._joined(node, *tensors)
        if name == "expand_as" and len(tensors) == 2 and self._keeps_channels(node):
            self._join(node, inputs[0].channels, inputs[1].channels)
            return inputs[0]
        if isinstance(result, Tensor) and len(tensors) == 1:
            value = inputs[0]
            if self._is_per_channel(node, name):
                return value
            if name in ELEMENTWISE_NAMES or (node.op == "call_module" and isinstance(self._layer(node), ELEMENTWISE)):
                return self._elementwise(node, value)
        raise self._refusal(node, name)

    def _count_channels(self, node: fx.Node, name: str) -> None:
        """Follows the number of channels that can be cut; refuses all but giving the same channels another shape."""
        result = node.meta["result"]
        value = self.values.get(node.all_input_nodes[0]) if node.all_input_nodes else None
        index = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        index = index.meta["result"] if isinstance(index, fx.Node) else index
        if name in ("size", "getattr", "numel") and value is not None and value.free:
            if index in (None, "shape", "nbytes", 1, 1 - node.all_input_nodes[0].meta["result"].dim()):
                self.counts[node] = value.channels, 1 if isinstance(result, tuple) else None
            return
        for count in (n for n in node.all_input_nodes if n in self.counts):
            channels, place = self.counts[count]
            if name == "getitem" and place is not None and isinstance(index, int | slice):
                left = range(len(count.meta["result"]))[index]
                if left == place:
                    self.counts[node] = channels, None
                elif isinstance(left, range) and place in left:
                    self.counts[node] = channels, left.index(place)
            elif not isinstance(result, Tensor):
                self.counts[node] = channels, None
            elif name not in RESHAPES | {"expand"} or value is None or value.channels.root is not channels.root:
                raise self._refusal(node, f"{name} with a number of channels")

    def _has_parameters(self, node: fx.Node) -> bool:
        """Whether an operation has parameters of its own, or is given some."""
        if node.op == "call_module":
            return next(self._layer(node).parameters(), None) is not None
        return any(isinstance(n.meta["result"], nn.Parameter) for n in node.all_input_nodes)

    def _layer(self, node: fx.Node) -> nn.Module:
        return self.module.get_submodule(str(node.target))

    def _weighted(self, node: fx.Node, value: _Value) -> _Value:
        """A convolution, linear layer or norm."""
        name, layer, result = str(node.target), self._layer(node), node.meta["result"]
        if isinstance(layer, NORMS):
            target, source = value.channels, None
            if isinstance(layer, nn.GroupNorm):
                if value.free and width_of(result) != value.channels.size:
                    raise self._refusal(node, "GroupNorm behind flatten")
                target.root.unit = math.lcm(target.root.unit, layer.num_channels // layer.num_groups)
        elif isinstance(layer, nn.Conv2d) and layer.groups > 1:
            target, source = self._grouped(node, layer, value), None
        else:
            if value.free and not value.silent:
                reason = f"{name} reads channels that are not 0 where cut ones are 0"
                raise UserError(f"cannot prune before {name}: {reason} (sigmoid, added constant); use ReLU or the like")
            self.speaking |= value.writers
            target, source = _Channels(width_of(result)), value.channels
        positions = math.prod(result.shape[2:])
        only_norms = all(u.op == "call_module" and isinstance(self._layer(u), NORMS) for u in node.users)
        if earlier := self.calls.get(name):
            earlier.positions += positions
            earlier.behind_norm &= only_norms
            self._join(node, earlier.target, target)
            if source and earlier.source:
                self._join(node, earlier.source, source)
            earlier.source = earlier.source or source
        else:
            self.calls[name] = _Call(layer, source, target, positions, only_norms)
        before = value.writers if source is None else frozenset()
        return _Value(target, writers=before | {name})

    def _grouped(self, node: fx.Node, layer: nn.Conv2d, value: _Value) -> _Channels:
        if value.free and layer.in_channels != value.channels.size:
            raise self._refusal(node, "grouped Conv2d behind flatten")
        if layer.in_channels == layer.out_channels:
            root = value.channels.root
            root.unit = math.lcm(root.unit, layer.in_channels // layer.groups)
            return root
        # Units on both sides would have to be cut together in different sizes: they stay.
        value.channels.root.fixed = True
        self.obstacle = self.obstacle or self._called(node, "grouped Conv2d of two widths")
        return _Channels(layer.out_channels, fixed=True)

    def _joined(self, node: fx.Node, a: fx.Node, b: fx.Node) -> _Value:
        """A sum or a product of two tensors."""
        first, second = self.values[a], self.values[b]
        shapes = a.meta["result"].shape, b.meta["result"].shape
        if len(shapes[0]) != len(shapes[1]) or shapes[0][1:2] != shapes[1][1:2]:
            raise self._refusal(node, f"{operation_of(node)} of {list(shapes[0])} and {list(shapes[1])}")
        self._join(node, first.channels, second.channels)
        writers = first.writers | second.writers
        if operation_of(node) in SUMS:
            first.channels.root.trunk = True
            return _Value(first.channels, first.silent and second.silent, writers)
        for value, other in ((first, second), (second, first)):
            if not value.silent and other.silent:
                self.multiplying |= value.writers
                writers = other.writers
        return _Value(first.channels, first.silent or second.silent, writers)

    def _join(self, node: fx.Node, first: _Channels, second: _Channels) -> None:
        if first.root.size != second.root.size:
            raise self._refusal(node, f"{operation_of(node)} of {first.size} and {second.size} channels")
        first.join(second)

    def _is_per_channel(self, node: fx.Node, name: str) -> bool:
        """Whether an operation treats every channel by itself and leaves a silent one silent."""
        shape = node.all_input_nodes[0].meta["result"].shape
        result = node.meta["result"].shape
        if node.op == "call_module":
            layer = self._layer(node)
            return (isinstance(layer, POOLS) and len(shape) == 4) or (
                isinstance(layer, nn.Flatten) and self._keeps_order(node, shape, result)
            )
        if name in REDUCTIONS:
            dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else ())
            dims = dims if isinstance(dims, tuple | list) else (dims,)
            return bool(dims) and all(isinstance(d, int) and d % len(shape) >= 2 for d in dims)
        if name == "getitem":
            index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
            whole = index[:2] == (slice(None), slice(None))
            simple = all(i is None or isinstance(i, int | slice) for i in index[2:])
            return whole and simple and self._keeps_order(node, shape, result)
        if name == "squeeze" and len(node.args) + len(node.kwargs) < 2:
            raise self._refusal(node, "squeeze of every dimension (give it one)")
        if name in RESHAPES:
            self._check_not_written_out(node, name)
            return self._keeps_order(node, shape, result)
        if name == "expand":
            self._check_not_written_out(node, name)
            return self._keeps_channels(node)
        return name in POOL_NAMES and len(shape) == 4

    def _keeps_channels(self, node: fx.Node) -> bool:
        """Whether a larger view repeats what is in each channel, and neither batch nor channels."""
        return node.all_input_nodes[0].meta["result"].shape[:2] == node.meta["result"].shape[:2]

    def _keeps_order(self, node: fx.Node, shape: torch.Size, result: torch.Size) -> bool:
        """Whether batch and channels still come first, each channel with all of its features in a row."""
        size = self.values[node.all_input_nodes[0]].channels.size
        return len(result) >= 2 and result[0] == shape[0] and result[1] % size == 0

    def _check_not_written_out(self, node: fx.Node, name: str) -> None:
        """A width that stands as a number in `view` and the like would be wrong in the smaller network."""
        sizes = (
            node.args[1] if len(node.args) == 2 else node.kwargs.get("shape", node.kwargs.get("size", node.args[1:]))
        )
        if name in ("view", "reshape", "expand") and isinstance(sizes, tuple | list) and len(sizes) > 1:
            if isinstance(sizes[1], int) and sizes[1] != -1:
                raise UserError(
                    f"cannot prune before {name}(..., {sizes[1]}, ...) {self._place(node)}: the width stands there as "
                    "a number; write flatten(1), or -1 in its place"
                )

    def _elementwise(self, node: fx.Node, value: _Value) -> _Value:
        """An operation on each value alone; what it makes of 0 is found by computing it."""
        zero = torch.zeros(1, 1, 1, 1, device="cpu")
        if node.op == "call_module":
            layer = self._layer(node)
            if isinstance(layer, nn.PReLU) and layer.num_parameters > 1:
                raise self._refusal(node, "PReLU with a slope for each channel")
            answer = zero if isinstance(layer, nn.PReLU) else layer(zero)
        else:
            if len(node.all_input_nodes) > 1:
                raise self._refusal(node, f"{operation_of(node)} with a number computed in forward")
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda _: zero)
            function = getattr(torch.Tensor, node.target) if isinstance(node.target, str) else node.target
            answer = function(*args, **kwargs)
        if not answer.isfinite().all():
            raise self._refusal(node, f"{operation_of(node)}, which is not finite where cut channels are 0,")
        return _Value(value.channels, value.silent and not answer.any(), value.writers)

    def _place(self, node: fx.Node) -> str:
        stack = node.meta.get("nn_module_stack") or {}
        layer = str(node.target) if node.op == "call_module" else next(reversed(stack), "")
        return f"at {layer}" if layer else "in forward"

    def _called(self, node: fx.Node, name: str) -> str:
        """An operation and its place; a layer goes by its kind unless `name` says more."""
        name = type(self._layer(node)).__name__ if node.op == "call_module" and " " not in name else name
        return f"{name} {self._place(node)}"

    def _refusal(self, node: fx.Node, name: str) -> UserError:
        return UserError(f"cannot follow channels through {self._called(node, name)}: {ADVICE}")

    def _result(self) -> Trace:
        for call in (self.calls[name] for name in self.elsewhere & self.calls.keys()):
            for channels in filter(None, (call.source, call.target)):
                channels.root.fixed = True
        free: dict[_Channels, list[str]] = {}
        for name, call in self.calls.items():
            if not isinstance(call.module, NORMS) and not call.target.root.fixed:
                free.setdefault(call.target.root, []).append(name)
        names = {channels: writers[0] for channels, writers in free.items()}
        groups = tuple(self._group(channels, writers) for channels, writers in free.items())
        layers = tuple(_layer(name, call, names) for name, call in self.calls.items())
        counted = Trace(groups, layers, 0).cost({})["parameters"]
        return Trace(groups, layers, sum(p.numel() for p in self.module.parameters()) - counted, self.obstacle)

    def _group(self, channels: _Channels, writers: list[str]) -> ChannelGroup:
        silenced = self.multiplying - self.speaking
        norms = [n for n, c in self.calls.items() if isinstance(c.module, NORMS) and c.target.root is channels]
        readers = [n for n, c in self.calls.items() if c.source and c.source.root is channels]
        norms_here = tuple(name for name in norms if name not in silenced)
        producers = tuple(name for name in writers if name not in silenced)
        bare = tuple(name for name in producers if not self.calls[name].behind_norm)
        return ChannelGroup(
            writers[0],
            channels.size,
            channels.unit,
            producers,
            norms_here,
            tuple(readers),
            multipliers=tuple(name for name in (*writers, *norms) if name in silenced),
            ends=(*norms_here, *bare),
            trunk=channels.trunk or len(readers) > 1,
        )


def _layer(name: str, call: _Call, names: Mapping[_Channels, str]) -> Layer:
    """One entry of the costs, of a layer as it is before any cut."""
    module = call.module
    source = names.get(call.source.root) if call.source else None
    target = names.get(call.target.root)
    inputs, outputs, taps, vectors = 0, call.target.size, 0, 0
    if isinstance(module, nn.Conv2d):
        inputs, taps = module.in_channels // module.groups, math.prod(module.kernel_size)
        vectors = int(module.bias is not None)
    elif isinstance(module, nn.Linear):
        inputs, taps, vectors = module.in_features, 1, int(module.bias is not None)
    else:
        vectors = sum(p is not None for p in module._parameters.values())
        outputs = next((len(p) for p in module.parameters()), outputs)
    if source and call.source:
        inputs //= call.source.size
    if target:
        outputs //= call.target.size
    return Layer(name, source, inputs, target, outputs, taps, call.positions, vectors)

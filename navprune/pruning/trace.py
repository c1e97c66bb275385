"""Channel groups and costs of any convolutional network, by following a symbolic trace of it (torch.fx).

Every tensor has channels along dimension 1; behind a flatten each of them is several features wide. Layers that
write the same channels, or write what is added together, share one set of them, in units of whole norm groups
and whole groups of grouped convolutions. Sets that reach an input or an output of the network, or an operation that
cannot be followed, stay as they are. A channel may be cut if there are modules behind which it can be silenced such
that it is 0 wherever a layer reads it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, fx, nn

from navprune.costs.counting import LayerCost, total
from navprune.models.encoders import ChannelGroup
from navprune.pruning.channels import (
    IN_PLACE,
    NORMS,
    RESHAPES,
    WEIGHTED,
    Channels,
    ObstacleError,
    Value,
    argument,
    followed,
    long_axis,
    operation_of,
    silenced_by,
    sizes_of,
    whole,
    width_of,
)
from navprune.pruning.graph import Example, features_kept, shaped_graph

FUNCTIONS: dict[str, type[nn.Module] | tuple[type[nn.Module], ...]] = {
    "conv2d": nn.Conv2d, "linear": nn.Linear, "batch_norm": NORMS[:3], "instance_norm": nn.InstanceNorm2d,
    "group_norm": nn.GroupNorm,
}  # fmt: skip
"""Functions that compute what these layers do; a layer derived from one may call it with its own weights."""
ADVICE = "prune the parts around it, or write it with convolutions, norms, linear layers, sums and pooling"


@dataclass(frozen=True)
class Trace:
    """The groups of a network, in order of execution, and its layers, with what no cut changes as the last of them.

    `obstacles` name the operations that keep channels whole, since these cannot be followed through them; `features`
    are modules and those of their attributes in which `forward` keeps tensors that it does not read again.
    """

    groups: tuple[ChannelGroup, ...]
    layers: tuple[LayerCost, ...]
    obstacles: tuple[str, ...]
    features: tuple[tuple[str, str], ...]


def trace(module: nn.Module, example: Example) -> Trace:
    """The groups and layers of a network of convolutions, norms, linear layers, pooling, flattening and sums.

    `example` is an input [B, C, ...] of it, or the tuple of its inputs; only shapes are used, and nothing is
    computed. Layers that are called twice have both their inputs and outputs coupled. What reads channels in any
    other way keeps them whole, and is named among the `obstacles`. Raises UserError as `shaped_graph`.
    """
    ghost, graph = shaped_graph(module, example)
    features = features_kept(ghost, graph)
    return _Follower(ghost).follow(graph, features)


@dataclass
class _Call:
    """A convolution, linear layer or norm and the channels it joins; `source` is None where inputs stay as many."""

    module: nn.Module
    source: Channels | None
    target: Channels
    positions: int


@dataclass
class _Follower:
    """Walks the graph in order of execution and keeps what it has seen."""

    module: nn.Module
    values: dict[fx.Node, Value] = field(default_factory=dict)
    counts: dict[fx.Node, tuple[Channels, int | None, bool]] = field(default_factory=dict)
    """Numbers and shapes that come of a number of channels: its place in a shape, and whether they grow with it."""
    calls: dict[str, _Call] = field(default_factory=dict)
    vectors: dict[str, Channels] = field(default_factory=dict)
    """Parameters and buffers outside layers with one entry for each channel."""
    elsewhere: set[str] = field(default_factory=set)
    """Layers that are called, or whose weights are read, in a way that no cut survives."""
    obstacles: dict[fx.Node, str] = field(default_factory=dict)

    def follow(self, graph: fx.Graph, features: tuple[tuple[str, str], ...]) -> Trace:
        """The whole graph."""
        for node in graph.nodes:
            if node.op == "output":
                self._keep(node)
            elif (result := self._followed(node)) is not None:
                end = node.meta.get("end_of")
                stuck = end and result.free and result.writers and result.silencers is None and result.axis == 1
                # What a module answers with can be silenced behind it, whatever it is.
                self.values[node] = replace(result, silencers=frozenset({end})) if stuck else result
                self._overwrite(node, result)
            if node.meta.get("decided") and node in self.counts:
                self._note(node, "a branch on a number of channels")
                self.counts[node][0].root.fixed = True
        return self._result(features)

    def _followed(self, node: fx.Node) -> Value | None:
        """The value of a node; where channels cannot be followed through it, those that it reads stay whole."""
        try:
            return self._value(node)
        except ObstacleError as obstacle:
            if any(value.writers for value in self._inputs(node)) or not self._inputs(node):
                self._note(node, str(obstacle))
            self._keep(node)
            return self._value(node)

    def _keep(self, node: fx.Node) -> None:
        """Note that what a node reads is for others to know: all of these channels stay."""
        for value in self._inputs(node):
            value.keep()
        for count in self.counts.keys() & set(node.all_input_nodes):
            self.counts[count][0].root.fixed = True

    def _overwrite(self, node: fx.Node, result: Value) -> None:
        """What an operation in place writes is read under every name of the memory: its first input and views of it."""
        if node.op == "call_module":
            in_place = getattr(self._layer(node), "inplace", False)
        else:
            name = getattr(node.target, "__name__", str(node.target))
            in_place = name.endswith("_") or name in IN_PLACE or node.kwargs.get("inplace")
        written = node.all_input_nodes[0] if in_place and node.all_input_nodes else node
        if written is node or written not in self.values:
            return
        memory = _memory(written)
        for other, value in self.values.items():
            if other not in (node, written) and _memory(other) == memory:
                writers = value.writers | result.writers
                self.values[other] = replace(value, silencers=silenced_by(value, result), writers=writers)
        self.values[written] = result

    def _inputs(self, node: fx.Node) -> list[Value]:
        return [self.values[n] for n in node.all_input_nodes if n in self.values]

    def _value(self, node: fx.Node) -> Value | None:
        """The value of a node; None where it is no tensor. Raises ObstacleError where it reads free channels alone."""
        if node.op == "get_attr":
            return self._attribute(node)
        inputs, result, name = self._inputs(node), node.meta["result"], operation_of(node)
        self._count_channels(node, name)
        place, layer = self._weights(node)
        if layer is not None and result.dim() in _ranks(layer):
            return self._weighted(node, place, layer, inputs[0])
        if not any(value.free for value in inputs):
            self._meet(node, place, layer)
            return whole(result)
        if name in ("size", "getattr", "dim", "numel") and not isinstance(result, Tensor):
            return None
        return followed(node, name, self._layer(node) if node.op == "call_module" else None, self.values)

    def _attribute(self, node: fx.Node) -> Value | None:
        """A parameter or buffer that `forward` reads by itself."""
        (owner, _, own), result = str(node.target).rpartition("."), node.meta["result"]
        layer = self.module.get_submodule(owner)
        if isinstance(layer, WEIGHTED):
            if any(self._weights(user)[1] is not layer for user in node.users):
                self.elsewhere.add(owner)
            return whole(result)
        axis = long_axis(result) if own in {**layer._parameters, **layer._buffers} else None
        if axis is None:
            return whole(result)
        return Value(self.vectors.setdefault(str(node.target), Channels(result.shape[axis])), axis=axis)

    def _count_channels(self, node: fx.Node, name: str) -> None:
        """Follow the number of channels that can be cut, as far as the same channels are given another shape."""
        first = node.all_input_nodes[0] if node.all_input_nodes else None
        value = self.values.get(first) if first else None
        result, index = node.meta["result"], argument(node, 1, "dim")
        if first and name in ("size", "getattr", "numel") and value is not None and value.free:
            if index in (None, "shape", "nbytes", value.axis, value.axis - first.meta["result"].dim()):
                self.counts[node] = value.channels, value.axis if isinstance(result, tuple) else None, True
            return
        counts = [n for n in node.all_input_nodes if n in self.counts and not self.counts[n][0].root.fixed]
        for count in counts:
            channels, place, grows = self.counts[count]
            if name == "getitem" and place is not None and isinstance(index, int | slice):
                left = range(len(count.meta["result"]))[index]
                if left == place:
                    self.counts[node] = channels, None, True
                elif isinstance(left, range) and place in left:
                    self.counts[node] = channels, left.index(place), True
            elif name == "assert":
                raise ObstacleError("an assertion about a number of channels")
            elif not isinstance(result, Tensor):
                self.counts[node] = channels, None, grows and name == "mul" and len(counts) == 1
            elif name not in RESHAPES | {"expand"} or not self._is_width(node, count, value):
                raise ObstacleError(f"{name} with a number of channels")

    def _is_width(self, node: fx.Node, count: fx.Node, value: Value | None) -> bool:
        """Whether a reshape is given a number of channels as the width of its result; they are the same, then."""
        if value is None or not value.free:
            return False
        channels, place, grows = self.counts[count]
        sizes, result = sizes_of(node), node.meta["result"]
        axis = 1 if value.writers else long_axis(result)
        at = place if sizes is None else sizes.index(count) if count in sizes else None
        own, other = value.channels.root, channels.root
        if not grows or at is None or at != axis or (own is not other and {own.size, other.size} != {result.shape[at]}):
            return False
        own.join(other)
        return True

    def _layer(self, node: fx.Node) -> nn.Module:
        return self.module.get_submodule(str(node.target))

    def _weights(self, node: fx.Node) -> tuple[str, nn.Module | None]:
        """The layer that a node calls, or that calls a function with its own weights in its forward, and its name."""
        if node.op == "call_module":
            layer = self._layer(node)
            return str(node.target), layer if isinstance(layer, WEIGHTED) else None
        kinds = FUNCTIONS.get(operation_of(node)) if node.op == "call_function" else None
        name = _inside(node)
        layer = self.module.get_submodule(name)
        if not kinds or not isinstance(layer, kinds):
            return name, None
        own = {f"{name}.{own}".lstrip(".") for own in ("weight", "bias", "running_mean", "running_var")}
        given = [str(n.target) for n in node.all_input_nodes[1:] if isinstance(n.meta["result"], Tensor)]
        groups = argument(node, 6, "groups") or 1 if isinstance(layer, nn.Conv2d) else None
        parts = argument(node, 1, "num_groups") if isinstance(layer, nn.GroupNorm) else None
        fits = (groups, parts) == (getattr(layer, "groups", None), getattr(layer, "num_groups", None))
        return name, layer if given and own.issuperset(given) and fits else None

    def _meet(self, node: fx.Node, place: str, layer: nn.Module | None) -> None:
        """Note what has parameters, but meets only fixed channels, or meets them in no way that is followed."""
        if layer is not None:
            self.elsewhere.add(place)
            if isinstance(layer, nn.Linear):  # along the last of several dimensions: it costs, but is not cut
                outputs, positions = Channels(layer.out_features, fixed=True), node.meta["result"].shape[1:-1]
                self.calls.setdefault(place, _Call(layer, None, outputs, 0)).positions += math.prod(positions)
        read = [n for n in node.all_input_nodes if n in self.values]
        own = self._layer(node).parameters() if node.op == "call_module" else (n.meta["result"] for n in read)
        if any(isinstance(p, nn.Parameter) for p in own) and any(n.op != "get_attr" for n in read):
            self._note(node)

    def _weighted(self, node: fx.Node, name: str, layer: nn.Module, value: Value) -> Value:
        """A convolution, linear layer or norm."""
        result, source = node.meta["result"], None
        if value.free and not value.writers:
            raise ObstacleError
        if isinstance(layer, NORMS):
            target = value.channels
            if isinstance(layer, nn.GroupNorm):
                if value.free and width_of(result) != value.channels.size:
                    raise ObstacleError("GroupNorm behind flatten")
                target.root.unit = math.lcm(target.root.unit, layer.num_channels // layer.num_groups)
        elif isinstance(layer, nn.Conv2d) and layer.groups > 1:
            target = self._grouped(node, layer, value)
        else:
            if value.free and value.silencers is None:
                reason = f"{type(layer).__name__}, since {name} reads channels that are not 0 where cut ones are 0"
                raise ObstacleError(f"{reason} (sigmoid, added constant: use ReLU or the like),")
            value.read()
            target, source = Channels(width_of(result)), value.channels
        call = self.calls.setdefault(name, _Call(layer, source, target, 0))
        call.positions += math.prod(result.shape[2:])
        call.target.join(target)
        if source and call.source:
            call.source.join(source)
        call.source = call.source or source
        before = value.writers if source is None else frozenset()
        return Value(target, frozenset({name}) if node.op == "call_module" else None, before | {name})

    def _grouped(self, node: fx.Node, layer: nn.Conv2d, value: Value) -> Channels:
        if value.free and layer.in_channels != value.channels.size:
            raise ObstacleError("grouped Conv2d behind flatten")
        if layer.in_channels == layer.out_channels:
            root = value.channels.root
            root.ends |= value.silencers or frozenset()
            root.unit = math.lcm(root.unit, layer.in_channels // layer.groups)
            return root
        # Units on both sides would have to be cut together in different sizes: they stay.
        value.keep()
        self._note(node, "grouped Conv2d of two widths")
        return Channels(layer.out_channels, fixed=True)

    def _note(self, node: fx.Node, what: str = "") -> None:
        """Note an operation in words, by its name or a layer by its kind, with its place."""
        layer = type(self._layer(node)).__name__ if node.op == "call_module" else operation_of(node)
        place = str(node.target) if node.op == "call_module" else _inside(node)
        at = f"at {place}" if place else "in forward"
        self.obstacles.setdefault(node, f"{what or layer} {at}")

    def _result(self, features: tuple[tuple[str, str], ...]) -> Trace:
        for call in (self.calls[name] for name in self.elsewhere & self.calls.keys()):
            for channels in filter(None, (call.source, call.target)):
                channels.root.fixed = True
        free: dict[Channels, list[str]] = {}
        for name, call in self.calls.items():
            if not isinstance(call.module, NORMS) and not call.target.root.fixed:
                free.setdefault(call.target.root, []).append(name)
        names = {channels: writers[0] for channels, writers in free.items()}
        groups = tuple(self._group(channels, writers) for channels, writers in free.items())
        layers = [_layer(name, call, names) for name, call in self.calls.items()]
        parameters = dict(self.module.named_parameters())
        cut = [(name, names.get(channels.root)) for name, channels in self.vectors.items() if name in parameters]
        layers += [LayerCost(name, None, 0, target, 1, 0, 0, 1) for name, target in cut if target]
        counted = total(layers, {group.name: group.channels for group in groups})["parameters"]
        others = sum(p.numel() for p in parameters.values()) - counted
        layers.append(LayerCost("", None, 0, None, others, 0, 0, 1))
        return Trace(groups, tuple(layers), tuple(dict.fromkeys(self.obstacles.values())), features)

    def _group(self, channels: Channels, writers: list[str]) -> ChannelGroup:
        silenced = channels.multiplying - channels.speaking
        norms = [n for n, c in self.calls.items() if isinstance(c.module, NORMS) and c.target.root is channels]
        readers = [n for n, c in self.calls.items() if c.source and c.source.root is channels]
        layers = [*norms, *writers]
        return ChannelGroup(
            writers[0],
            channels.size,
            channels.unit,
            tuple(name for name in writers if name not in silenced),
            tuple(name for name in norms if name not in silenced),
            tuple(readers),
            multipliers=tuple(name for name in (*writers, *norms) if name in silenced),
            ends=(*[name for name in layers if name in channels.ends], *sorted(channels.ends - set(layers))),
            vectors=tuple(name for name, vector in self.vectors.items() if vector.root is channels),
            trunk=channels.trunk or len(readers) > 1,
        )


def _ranks(layer: nn.Module) -> tuple[int, ...]:
    """The numbers of dimensions in which the channels of a layer's answer are dimension 1."""
    return (2,) if isinstance(layer, nn.Linear) else (4,) if isinstance(layer, nn.Conv2d) else (2, 4)


def _memory(node: fx.Node) -> int:
    """What tells the memory of a tensor from that of others; views share it."""
    return node.meta["result"].untyped_storage()._cdata


def _inside(node: fx.Node) -> str:
    """The module in whose forward a node stands; "" of the network itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(next(reversed(stack.values()))[0]) if stack else ""


def _layer(name: str, call: _Call, names: Mapping[Channels, str]) -> LayerCost:
    """One entry of the costs, of a layer as it is before any cut."""
    source, target = (names.get(channels.root) if channels else None for channels in (call.source, call.target))
    shapes = [parameter.shape for parameter in call.module.parameters()]
    inputs, *kernel = next((shape[1:] for shape in shapes if len(shape) > 1), (0, 0))  # a norm has neither
    taps, vectors = math.prod(kernel), sum(len(shape) == 1 for shape in shapes)
    outputs = shapes[0][0] if shapes else call.target.size
    if source and call.source:
        inputs //= call.source.size
    if target:
        outputs //= call.target.size
    return LayerCost(name, source, inputs, target, outputs, taps, call.positions, vectors)

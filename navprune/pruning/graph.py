"""The graph of a network's operations with the shape of every tensor, without computing any (torch.fx)."""

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize, prune

from navprune.errors import UserError
from navprune.models.batch_norm import BatchNorm2d
from navprune.models.encoders import Conv2d
from navprune.pruning.channels import ELEMENTWISE, POOLS, WEIGHTED

Example = Tensor | tuple[Tensor, ...]

WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")
REMEDIES = {"WeightNorm": "remove_weight_norm", "SpectralNorm": "remove_spectral_norm", "prune": "prune.remove"}


def shaped_graph(module: nn.Module, example: Example) -> tuple[nn.Module, fx.Graph]:
    """A copy of `module` whose tensors have no values, and its graph; every node notes its meta["result"].

    `example` is an input [B, C, ...] of it, or the tuple of its inputs; branches on shapes go as it goes. Nodes whose
    number decided something in Python note meta["decided"], and what a module that is called once answers with notes
    its name in meta["end_of"]. Raises UserError for what `check_plain` refuses, where layers share weights, where
    `forward` branches on values, and for an example that does not fit.
    """
    inputs = example if isinstance(example, tuple | list) else (example,)
    if not all(isinstance(tensor, Tensor) for tensor in inputs):
        raise UserError(f"an example is a tensor or a tuple of tensors, not {type(example).__name__}: give one input")
    check_plain(module)
    _check_not_shared(module)
    ghost = copied(module, _ghost).eval()
    for part in ghost.modules():
        part._forward_hooks.clear()  # they are ours, and meant for values
    try:
        rest = list(inspect.signature(ghost.forward).parameters.values())[len(inputs) :]
        defaults = {input.name: input.default for input in rest if input.default is not inspect.Parameter.empty}
        with torch.no_grad():
            return ghost, _Tracer(ghost, [_ghost(tensor) for tensor in inputs]).trace(ghost, defaults)
    except _MisfitError as error:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in inputs)
        complaint = f"does not take an example of {shapes} ({reason_of(error)}): give another"
        raise UserError(f"{type(module).__name__} {complaint}") from error
    except Exception as error:  # whatever the user's forward raises when it is given no values
        advice = "its forward must not branch on values; prune the modules inside it"
        raise UserError(f"{type(module).__name__} cannot be traced ({reason_of(error)}): {advice}") from error


def check_plain(module: nn.Module) -> None:
    """Raise UserError, with the layer's name, where a network does more than its modules' forward says."""
    for name, part in module.named_modules():
        what = f"{type(part).__name__}{name and f' at {name}'}"
        computed = f"weights of {name} are computed ({{}}): make them plain parameters with torch.nn.utils.{{}}"
        compiled, outside = isinstance(part, torch.jit.ScriptModule), "forward" in vars(part)
        lazy = any(map(nn.parameter.is_lazy, part._parameters.values()))
        refusals = {
            f"{what} is compiled by torch.jit: give the module it was made of": compiled,
            f"{what} is compiled by torch.compile: give its ._orig_mod": "_orig_mod" in part._modules,
            f"{what} is a wrapper for several devices: give its .module": type(part).__name__ in WRAPPERS,
            f"{what} has no weights before its first call: run the network once": lazy,
            f"{what} has a forward from outside, and its copy would run the original: make it a method": outside,
            computed.format("parametrised", "parametrize.remove_parametrizations"): parametrize.is_parametrized(part),
        }
        for hook in (*part._forward_pre_hooks.values(), *part._forward_hooks.values()):
            kind = type(hook).__name__
            remedy = REMEDIES.get("prune" if isinstance(hook, prune.BasePruningMethod) else kind)
            foreign = not str(getattr(hook, "__module__", "")).startswith("navprune.")
            advice = "which a trace does not see: remove it, and set it on the smaller network"
            refusals[computed.format(kind, remedy)] = bool(remedy)
            refusals[f"{name or kind} has a forward hook, {advice}"] = foreign
        if complaint := next((words for words, found in refusals.items() if found), None):
            raise UserError(complaint)


def _check_not_shared(module: nn.Module) -> None:
    """Raise UserError where a layer's weights are another layer's, too, or are no parameters."""
    owners: dict[int, str] = {}
    for name, part in module.named_modules():
        if isinstance(part, WEIGHTED) and "weight" not in part._parameters:
            raise UserError(f"weights of {name} are computed: make them plain parameters first")
        for parameter in part.parameters(recurse=False):
            other = owners.setdefault(id(parameter), name)
            if other != name:
                raise UserError(f"{other} and {name} share a parameter: give each its own, or use one layer twice")


def copied(module: nn.Module, change: Callable[[Tensor], Tensor] | None = None) -> nn.Module:
    """A deep copy, whose tensors are what `change` makes of them.

    Without it, those that a gradient led to, such as features that `forward` keeps, are left out. Raises UserError
    where something else cannot be copied.
    """
    memo: dict[int, Any] = {}
    for tensor in tensors_in([vars(part) for part in module.modules()]):
        if change is not None:
            other = change(tensor)
            memo[id(tensor)] = nn.Parameter(other, False) if isinstance(tensor, nn.Parameter) else other
        elif not tensor.is_leaf:
            memo[id(tensor)] = None
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # whatever copying the user's objects raises
        advice = "keep what is neither tensor nor module out of it"
        raise UserError(f"{type(module).__name__} cannot be copied ({reason_of(error)}): {advice}") from error


def tensors_in(value: Any) -> Iterator[Any]:
    """The tensors in nested lists and dicts, and what stands for them in a trace."""
    if isinstance(value, Tensor | fx.Proxy):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(part)


def features_kept(ghost: nn.Module, graph: fx.Graph) -> tuple[tuple[str, str], ...]:
    """Modules of a `shaped_graph` and those of their attributes in which `forward` keeps tensors for others to read."""
    read = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    return tuple(
        (name, key)
        for name, part in ghost.named_modules()
        for key, value in vars(part).items()
        if any(isinstance(t, fx.Proxy) for t in tensors_in(value)) and f"{name}.{key}".lstrip(".") not in read
    )


class _MisfitError(Exception):
    """An operation that the example does not fit."""


class _Tracer(fx.Tracer):
    """Follows `forward` with the shapes of its inputs at hand, so that it may branch on them."""

    proxy_buffer_attributes = True

    def __init__(self, ghost: nn.Module, inputs: list[Tensor]):
        super().__init__()
        self.interpreter = fx.Interpreter(ghost, graph=fx.Graph())
        self.interpreter.args_iter = iter(inputs)
        self.computing = False

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """See the class."""
        graph = super().trace(root, concrete_args)
        for node in graph.nodes:
            if self.num_calls.get(node.meta.get("end_of", ""), 1) > 1:
                del node.meta["end_of"]
        return graph

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Subclasses that compute what their base computes are layers, too; others are looked into."""
        forward = type(m).forward
        known = next((kind for kind in (*WEIGHTED, BatchNorm2d, *ELEMENTWISE, *POOLS) if forward is kind.forward), None)
        if known in (nn.Conv2d, None) and isinstance(m, nn.Conv2d):
            return isinstance(m, Conv2d) or (known is not None and type(m)._conv_forward is nn.Conv2d._conv_forward)
        return known is not None or super().is_leaf_module(m, module_qualified_name)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> fx.Node:
        """Note the result, a tensor without values, beside its node."""
        node = super().create_node(kind, target, args, kwargs, *rest, **more)
        self.computing = True
        try:
            self._take_values(node)
            given = fx.node.map_arg((node.args, node.kwargs), lambda other: other.meta["result"])
            node.meta["result"] = getattr(self.interpreter, kind)(target, *given)
        except Exception as error:
            if isinstance(error, NotImplementedError) or "meta tensor" in str(error):
                raise  # it asks for values
            raise _MisfitError(reason_of(error)) from error
        finally:
            self.computing = False
        return node

    def _take_values(self, node: fx.Node) -> None:
        """Take the values of tensors that `forward` makes where they meet a layer or a tensor without values."""
        results = {other: other.meta["result"] for other in node.all_input_nodes}
        if node.op == "call_module" or any(tensor.is_meta for tensor in tensors_in(list(results.values()))):
            for other, result in results.items():
                if isinstance(result, Tensor) and not result.is_meta:
                    other.meta["result"] = _ghost(result)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Note which node a module answers with."""
        if self.computing:
            return forward(*args, **kwargs)
        answer, path = super().call_module(m, forward, args, kwargs), self.path_of_module(m)
        if isinstance(answer, fx.Proxy) and path in answer.node.meta.get("nn_module_stack", ()):
            answer.node.meta.setdefault("end_of", path)
        return answer

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """Parameters stand for themselves where a result is computed."""
        return attr_val if self.computing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """What stands for a node in `forward`."""
        return _Proxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Branches follow the example's shapes, but no values."""
        return bool(_decided(obj))

    def iter(self, obj: Any) -> Iterator[Any]:
        """One after the other of as many as there are in the example."""
        return (obj[i] for i in range(len(obj)))


class _Number:
    """What Python asks of a value where it wants a plain number; the example answers."""

    def __len__(self: Any) -> int:
        return len(self.node.meta["result"])

    def __int__(self: Any) -> int:
        return int(_decided(self))

    __index__ = __int__

    def __float__(self: Any) -> float:
        return float(_decided(self))


class _Proxy(_Number, fx.Proxy):
    def __getattr__(self, k: str) -> fx.proxy.Attribute:
        return _Attribute(self, k)


class _Attribute(_Number, fx.proxy.Attribute):
    pass


def _decided(proxy: fx.Proxy) -> Any:
    """The number behind a value that `forward` wants to know."""
    if isinstance(result := proxy.node.meta["result"], Tensor):
        raise fx.proxy.TraceError("it asks for the value of a tensor")
    proxy.node.meta["decided"] = True
    return result


def reason_of(error: Exception) -> str:
    """The first line of what an exception says, or its kind."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _ghost(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta", dtype=torch.float32 if tensor.is_floating_point() else None)

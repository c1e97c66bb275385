"""The graph of a network's operations with the shape of every tensor, without computing any (torch.fx)."""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from navprune.errors import UserError
from navprune.models.encoders import Conv2d

Example = Tensor | tuple[Tensor, ...]

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d, nn.GroupNorm)
WEIGHTED = (nn.Conv2d, nn.Linear, *NORMS)
ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardtanh, nn.Hardsigmoid, nn.Sigmoid, nn.LogSigmoid, nn.Softplus, nn.Softsign, nn.Tanh,
    nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Dropout, nn.Dropout2d, nn.Identity,
)  # fmt: skip
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad2d)
ELEMENTWISE_NAMES = {
    *"relu relu6 leaky_relu elu selu celu gelu silu mish hardswish hardtanh hardsigmoid sigmoid logsigmoid".split(),
    *"softplus softsign tanh tanhshrink softshrink hardshrink clamp clamp_min clamp_max abs neg square pow exp".split(),
    *"dropout dropout2d contiguous clone detach to float double half add sub rsub mul div truediv".split(),
    "maximum",
    "minimum",
}
POOL_NAMES = {*"max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d interpolate upsample".split()}
REDUCTIONS = {"mean", "sum", "amax"}
SUMS = {"add", "sub", "maximum", "minimum"}  # nothing comes of nothing
RESHAPES = {"flatten", "view", "reshape", "squeeze", "unsqueeze"}
SIZES = {"size", "getattr", "dim", "numel"}


def shaped_graph(module: nn.Module, example: Example) -> tuple[nn.Module, fx.Graph]:
    """A copy of `module` whose tensors have no values, and its graph; every node notes its meta["result"].

    `example` is an input [B, C, ...] of it, or the tuple of its inputs. Raises UserError where layers share weights or
    compute them, where `forward` branches on values, and for an example that does not fit.
    """
    _check_weights(module)
    inputs = example if isinstance(example, tuple | list) else (example,)
    if not all(isinstance(tensor, Tensor) for tensor in inputs):
        raise UserError(f"an example is a tensor or a tuple of tensors, not {type(example).__name__}: give one input")
    try:
        ghost = _without_values(module).float().eval()  # the example need not have its precision
        graph = _Tracer().trace(ghost)
    except Exception as error:  # whatever the user's forward raises when it is given no values
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        advice = "its forward must not branch on values; prune the modules inside it"
        raise UserError(f"{type(module).__name__} cannot be traced ({reason}): {advice}") from error
    try:
        with torch.no_grad():
            _Shapes(fx.GraphModule(ghost, graph)).run(*(_ghost(tensor) for tensor in inputs))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        shapes = ", ".join(str(list(tensor.shape)) for tensor in inputs)
        raise UserError(
            f"{type(module).__name__} does not take an example of {shapes} ({reason}): give another"
        ) from error
    return ghost, graph


def operation_of(node: fx.Node) -> str:
    """The name of an operation, the same for function, method, operator and in-place form."""
    if node.op == "call_function":
        name = getattr(node.target, "__name__", str(node.target))
        return {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div"}.get(name, name).strip("_")
    return str(node.target).rstrip("_") if node.op == "call_method" else node.op


def memory_of(node: fx.Node) -> int | None:
    """What tells the memory of a tensor from that of others; views share it."""
    result = node.meta["result"]
    return result.untyped_storage()._cdata if isinstance(result, Tensor) else None


def width_of(tensor: Tensor) -> int:
    """Its channels or features."""
    return tensor.shape[1] if tensor.dim() > 1 else 1


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Subclasses that compute what their base computes are layers, too; others are looked into."""
        forward = type(m).forward
        known = next((kind for kind in (*WEIGHTED, *ELEMENTWISE, *POOLS) if forward is kind.forward), None)
        if known in (nn.Conv2d, None) and isinstance(m, nn.Conv2d):
            return isinstance(m, Conv2d) or (known is not None and type(m)._conv_forward is nn.Conv2d._conv_forward)
        return known is not None or super().is_leaf_module(m, module_qualified_name)


class _Shapes(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        """Notes each result, a tensor without values, beside its node."""
        n.meta["result"] = result = super().run_node(n)
        return result


def _ghost(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta", dtype=torch.float32 if tensor.is_floating_point() else None)


def _without_values(module: nn.Module) -> nn.Module:
    """A copy whose tensors have shapes and nothing else."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for tensor in (*part._parameters.values(), *part._buffers.values(), *vars(part).values()):
            if isinstance(tensor, Tensor):
                shape = torch.empty_like(tensor, device="meta")
                memo[id(tensor)] = nn.Parameter(shape) if isinstance(tensor, nn.Parameter) else shape
    ghost = copy.deepcopy(module, memo)
    for part in ghost.modules():
        part._forward_hooks.clear()  # they are the user's, and meant for values
        part._forward_pre_hooks.clear()
    return ghost


def _check_weights(module: nn.Module) -> None:
    """Raises UserError where a layer's weights are another layer's, too, or are computed from others."""
    owners: dict[int, str] = {}
    for name, part in module.named_modules():
        computed = isinstance(part, WEIGHTED) and "weight" not in part._parameters
        if computed or parametrize.is_parametrized(part):
            raise UserError(f"weights of {name} are computed (parametrised): make them plain parameters first")
        for parameter in part.parameters(recurse=False):
            other = owners.setdefault(id(parameter), name)
            if other != name:
                raise UserError(f"{other} and {name} share a parameter: give each its own, or use one layer twice")

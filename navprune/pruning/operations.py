"""What is known of single operations: those that treat every channel by itself, and what a node of a graph says."""

from typing import Any

import torch
from torch import Tensor, fx, nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d, nn.GroupNorm)
WEIGHTED = (nn.Conv2d, nn.Linear, *NORMS)
FUNCTIONS: dict[str, tuple[type[nn.Module], ...]] = {
    "conv2d": (nn.Conv2d,),
    "linear": (nn.Linear,),
    "batch_norm": NORMS[:3],
    "instance_norm": (nn.InstanceNorm2d,),
    "group_norm": (nn.GroupNorm,),
}
"""Functions that compute what these layers do; a layer derived from one may call it with its own weights."""
ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardtanh, nn.Hardsigmoid, nn.Sigmoid, nn.LogSigmoid, nn.Softplus, nn.Softsign, nn.Tanh,
    nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Threshold, nn.Dropout, nn.Dropout2d, nn.Identity,
)  # fmt: skip
PADS = (nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, *PADS)
ELEMENTWISE_NAMES = {
    *"relu relu6 leaky_relu elu selu celu gelu silu mish hardswish hardtanh hardsigmoid sigmoid logsigmoid".split(),
    *"softplus softsign tanh tanhshrink softshrink hardshrink threshold clamp clamp_min clamp_max abs neg".split(),
    *"square sqrt rsqrt reciprocal pow exp log1p expm1 erf sin cos sign nan_to_num".split(),
    *"dropout dropout2d contiguous clone detach to float double half add sub rsub mul div maximum minimum".split(),
    *"stochastic_depth drop_path".split(),  # torchvision's and timm's: in training they drop whole rows of a batch
}
POOL_NAMES = {*"max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d interpolate upsample".split()}
REDUCTIONS = {"mean", "sum", "amax", "amin"}
SUMS = {"add", "sub", "maximum", "minimum"}  # nothing comes of nothing
RESHAPES = {"flatten", "view", "reshape", "squeeze", "unsqueeze"}
SIZES = {"size", "getattr", "dim", "numel"}
IN_PLACE = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div"}


def operation_of(node: fx.Node) -> str:
    """The name of an operation, the same for function, method, operator and in-place form."""
    if node.op == "call_function":
        name = getattr(node.target, "__name__", str(node.target))
        return {**IN_PLACE, "truediv": "div", "multiply": "mul", "divide": "div"}.get(name, name).strip("_")
    return str(node.target).rstrip("_") if node.op == "call_method" else node.op


def argument(node: fx.Node, place: int, *names: str, default: Any = None) -> Any:
    """What an operation is given at a place or under one of several names; what forward computed as its result."""
    found = [node.kwargs[name] for name in names if name in node.kwargs]
    value = found[0] if found else node.args[place] if place < len(node.args) else default
    return fx.node.map_arg(value, lambda other: other.meta["result"])


def sizes_of(node: fx.Node) -> tuple[Any, ...] | None:
    """The sizes that `view` and the like are given, nodes among them; None where they come as one."""
    given = node.kwargs.get("shape", node.kwargs.get("size", node.args[1:]))
    if isinstance(given, tuple) and len(given) == 1 and isinstance(given[0], tuple | list | fx.Node):
        given = given[0]
    return tuple(given) if isinstance(given, tuple | list) else None


def full_index(node: fx.Node) -> tuple[Any, ...]:
    """The index of a getitem with `...` written out."""
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    if (place := next((i for i, part in enumerate(index) if part is Ellipsis), None)) is None:
        return index
    named = sum(part is not None and part is not Ellipsis for part in index)
    rest = shape_of(argument(node, 0)) if isinstance(node.args[0], fx.Node) else ()
    return (*index[:place], *[slice(None)] * (len(rest) - named), *index[place + 1 :])


def shape_of(result: Any) -> tuple[int, ...]:
    """The shape of a tensor; () of anything else."""
    return tuple(result.shape) if isinstance(result, Tensor) else ()


def memory_of(node: fx.Node) -> int | None:
    """What tells the memory of a tensor from that of others; views share it."""
    result = node.meta["result"]
    return result.untyped_storage()._cdata if isinstance(result, Tensor) else None


def writes(node: fx.Node) -> bool:
    """Whether a function or method leaves its result in its first input, by its name or by its `inplace`."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.endswith("_") or name in IN_PLACE or bool(node.kwargs.get("inplace"))


def width_of(tensor: Tensor) -> int:
    """Its channels or features."""
    return tensor.shape[1] if tensor.dim() > 1 else 1


def long_axis(tensor: Tensor) -> int | None:
    """The only dimension of more than one entry: where a value for each channel lies, as in [C, 1, 1]."""
    longer = [axis for axis, size in enumerate(tensor.shape) if size > 1]
    return longer[0] if len(longer) == 1 else None


def padding_of(node: fx.Node, layer: nn.Module | None) -> tuple[bool, bool]:
    """Whether a padding leaves batch and channels alone, and whether it leaves zeros among zeros."""
    if layer is not None:
        return True, getattr(layer, "value", 0) == 0
    sides, mode = argument(node, 1, "pad"), argument(node, 2, "mode", default="constant")
    value = argument(node, 3, "value") if mode == "constant" else 0
    rank = len(shape_of(argument(node, 0, "input")))
    return not any(sides[2 * (rank - 2) :]), not value


def at_zero(node: fx.Node, layer: nn.Module | None) -> Tensor:
    """What an operation on each value alone makes of 0."""
    zero = torch.zeros(1, 1, 1, 1, device="cpu")
    if layer is not None:
        return zero if isinstance(layer, nn.PReLU) else layer(zero)
    tensors = lambda n: zero if isinstance(n.meta["result"], Tensor) else n.meta["result"]  # noqa: E731
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), tensors)
    function = getattr(torch.Tensor, node.target) if isinstance(node.target, str) else node.target
    return function(*args, **kwargs)

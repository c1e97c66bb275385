"""The pruning methods: which module of this folder holds each, and what it is, in one line with its source.

Nothing here needs torch, so that `--help` can read it. A new method is a `base.Method` in the METHODS of its own
module, and a line here.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING

from navprune.errors import UserError

if TYPE_CHECKING:
    from navprune.pruning.config import PruningConfig
    from navprune.pruning.methods.base import Method

GATES = "gates"
PROBE = "probe"
TORCH_PRUNING = "torch-pruning"


MODULES = {
    "gates": {
        GATES: "pruning from scratch: gates learned on wider, random weights (Wang et al., AAAI 2020; needs batches)",
    },
    "probe": {
        PROBE: "milliseconds measured layer by layer; most importance within them, blocks too (docs/pruning.md)",
    },
    "scores": {
        "l1": "L1 norm of a unit's filters over its layer's mean (after Li et al., ICLR 2017)",
        "l2": "L2 norm of a unit's filters over its layer's mean (after Li et al., ICLR 2017)",
        "magnitude": "another name of l1",
        "mean-abs": "mean absolute weight of a unit's filters (github.com/ZJCV/SSL, behind the VGG16 table)",
        "sum-squares": "sum of squared weights of a unit's filters (github.com/ZJCV/SSL, its group lasso)",
        "group-lasso": "strength of the group lasso that sets a unit's filters to zero (Wen et al., NeurIPS 2016)",
        "group-lasso-channel": "the same for the weights that read a unit (Wen et al., NeurIPS 2016)",
        "group-lasso-both": "the same for both together (Wen et al., NeurIPS 2016; DepGraph: Fang et al., CVPR 2023)",
        "geometric-median": "distance of a unit's filters to all others of its layer (FPGM: He et al., CVPR 2019)",
        "norm-scale": "mean |scale| of a unit's norms (network slimming: Liu et al., ICCV 2017)",
        "taylor": "first-order change of the loss without a unit (Molchanov et al., CVPR 2019; needs batches)",
        "activation": "mean |activation| of a unit where layers read it (Molchanov et al., ICLR 2017; needs batches)",
        "uniform": "control: the same share of every layer, the filters of largest L1 norm stay",
        "random": "control: units drawn at random (Blalock et al., MLSys 2020)",
    },
    "torch_pruning": {
        TORCH_PRUNING: "control: Torch-Pruning's cut, inexact under GroupNorm (Fang et al., CVPR 2023; an extra)",
    },
}
"""Module of this folder -> its methods and what each is."""

METHODS = {name: summary for methods in MODULES.values() for name, summary in methods.items()}


def method_of(name: str) -> Method:
    """The method of this name; raises UserError for an unknown one."""
    module = next((module for module, methods in MODULES.items() if name in methods), None)
    if module is None:
        raise UserError(f"unknown pruning method {name!r}; known are {', '.join(METHODS)}")
    return import_module(f"{__name__}.{module}").METHODS[name]


def method_for(config: PruningConfig) -> Method:
    """The method that is asked for, by default gates; it needs what the one needs that it takes its importance from."""
    method, other = method_of(config.method or GATES), lender_for(config)
    return replace(method, needs=method.needs | other.needs, loss=other.loss) if other else method


def lender_for(config: PruningConfig) -> Method | None:
    """The method that the one asked for takes its importance from; None where it has its own."""
    method = method_of(config.method or GATES)
    return method_of(getattr(config, str(method.options)).importance) if method.borrows else None

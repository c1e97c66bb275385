"""Evaluation mode within a context, whatever mode each module was in."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the context norms and dropout do as in evaluation, and so leave no trace in the model."""
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        module.training = isinstance(module, nn.RNNBase)  # cuDNN cannot differentiate a recurrent core otherwise
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode

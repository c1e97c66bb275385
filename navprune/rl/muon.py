"""Muon (Jordan et al. 2024): matrices are moved by their orthogonalised momentum, all other weights by Adam.

A matrix's step has singular values near 1, so that directions which gradients seldom show are learnt as fast as those
that dominate them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

MATRIX_RATE = 10.0
"""Learning rate of matrices as a multiple of Adam's."""
MOMENTUM = 0.95
QUINTIC = 3.4445, -4.7750, 2.0315
"""a, b, c of x -> a x + b x^3 + c x^5, which brings singular values from (0, 1] to about 0.7 to 1.2 in five rounds."""
ROUNDS = 5
GATES = {nn.GRU: 3, nn.LSTM: 4}


class Muon(torch.optim.Adam):
    """Adam whose groups with `parts` are moved by Muon; a matrix of several gates is as many matrices, its `parts`."""

    def __init__(self, network: nn.Module, lr: float, eps: float = 1e-5) -> None:
        super().__init__(_groups(network), lr=lr, eps=eps)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move all weights that have gradients."""
        assert closure is None, "gradients are worked out beforehand"
        self._move_matrices([group for group in self.param_groups if group["parts"]])
        everything = self.param_groups
        try:
            self.param_groups = [group for group in everything if not group["parts"]]
            super().step()
        finally:
            self.param_groups = everything

    def _move_matrices(self, groups: list[dict[str, Any]]) -> None:
        moved = [(p, group) for group in groups for p in group["params"] if p.grad is not None]
        pieces: list[Tensor] = []
        for p, group in moved:
            momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
            momentum.lerp_(p.grad, 1 - MOMENTUM)
            pieces += p.grad.lerp(momentum, MOMENTUM).flatten(1).chunk(group["parts"])
        done = iter(orthogonalised(pieces))
        for p, group in moved:
            step = torch.cat([next(done) for _ in range(group["parts"])])
            p.sub_(step.view_as(p), alpha=MATRIX_RATE * group["lr"])


def _groups(network: nn.Module) -> list[dict[str, Any]]:
    """The weights as an optimiser's groups: `parts` 0 for Adam's, else into how many matrices each splits.

    Embeddings, vectors and linear layers to a few outputs (heads) or from a few inputs are Adam's.
    """
    parts: dict[Tensor, int] = {}
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            small = parameter.ndim < 2 or min(parameter.flatten(1).shape) < 8 or isinstance(module, nn.Embedding)
            parts[parameter] = 0 if small else GATES.get(type(module), 1)
    groups = defaultdict(list)
    for parameter in network.parameters():
        groups[parts[parameter]].append(parameter)
    return [{"params": groups[count], "parts": count} for count in sorted(groups)]


def orthogonalised(matrices: Iterable[Tensor]) -> list[Tensor]:
    """Matrices [n, m] with the same singular vectors and singular values near 1, times sqrt(n / m) where n > m.

    Newton-Schulz iterations of a quintic, on the Gram matrices: x -> p(x x^T) x leaves x = q x0, where q is a
    polynomial in x0 x0^T alone. These are small, and those of one size go together.
    """
    scaled = [m / (torch.linalg.matrix_norm(m) + 1e-7) for m in matrices]
    wide = [m.T if len(m) > m.shape[1] else m for m in scaled]
    factors: list[Tensor] = [wide[0]] * len(wide)
    a, b, c = QUINTIC
    for size in {len(m) for m in wide}:
        rows = [i for i, m in enumerate(wide) if len(m) == size]
        gram = torch.stack([wide[i] @ wide[i].T for i in rows])
        factor = one = torch.eye(size, device=gram.device, dtype=gram.dtype)
        for number in range(ROUNDS):
            p = a * one + b * gram + c * (gram @ gram)
            factor = p @ factor if number else p
            if number + 1 < ROUNDS:
                gram = p @ p @ gram
        for i, f in zip(rows, factor):
            factors[i] = f
    found = [f @ m for f, m in zip(factors, wide)]
    return [
        f.T * (len(m) / m.shape[1]) ** 0.5 if len(m) > m.shape[1] else f for f, m in zip(found, scaled)
    ]

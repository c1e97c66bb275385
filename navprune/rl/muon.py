"""Muon (Jordan et al. 2024): matrices move by their orthogonalised momentum, all other weights by Adam.

All singular values of such a step are near 1, so what gradients seldom ask for is learnt as fast as what they always
ask for. Of a group of workers each orthogonalises a share of the matrices, for all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from navprune.models.fast import plain_on_cpu, product
from navprune.rl.group import Group

MATRIX_RATE = 10.0
"""Learning rate of matrices as a multiple of Adam's."""
MOMENTUM = 0.95
BETAS = 0.9, 0.999
"""Adam's decays."""
QUINTIC = 3.4445, -4.7750, 2.0315
"""a, b, c of x -> a x + b x^3 + c x^5; five rounds bring all but tiny singular values up to 1 to about 0.7 to 1.2."""
ROUNDS = 5
LARGE = 128
"""Rows from which a matrix is multiplied by itself, not in a stack of its like."""
SMALL = 8
"""A matrix with fewer rows or columns is Adam's: heads, layers on a few inputs."""
GATES = {nn.GRU: 3, nn.LSTM: 4}
"""Recurrent layers keep the matrices of so many gates in one, below each other."""


class Muon(torch.optim.Optimizer):
    """Moves the weights of a network; every group has `lr`, Adam's, and `parts`, the matrices in each weight or 0.

    The gradients are to be the same in all `workers`, and so are the steps.
    """

    def __init__(self, network: nn.Module, lr: float, eps: float = 1e-5, workers: Group | None = None) -> None:
        self.workers = workers or Group()
        super().__init__(_groups(network), {"lr": lr, "eps": eps, "fused": True})  # by which torch places a state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move all weights that have gradients once; a `closure` is not called."""
        groups = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        matrices = [(p, group) for group, moved in groups if group["parts"] for p in moved]
        pieces = [piece for p, group in matrices for piece in self._pieces(p, group["parts"])]
        steps = iter(self._orthogonalised(pieces))
        for p, group in matrices:
            step = torch.cat([next(steps) for _ in range(group["parts"])])
            p.sub_(step.view_as(p), alpha=MATRIX_RATE * group["lr"])
        for group, moved in groups:
            if not group["parts"]:
                self._adam_step(moved, group)

    def _pieces(self, p: Tensor, parts: int) -> Sequence[Tensor]:
        """The matrices of a weight's momentum, to which its gradient is added."""
        if not self.state[p]:
            self.state[p]["momentum"] = torch.zeros_like(p)
        momentum, gradient = self.state[p]["momentum"], cast(Tensor, p.grad)
        momentum.lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(momentum, MOMENTUM).flatten(1).chunk(parts)

    def _orthogonalised(self, matrices: list[Tensor]) -> list[Tensor]:
        """As the function, by all workers together."""
        if self.workers.size == 1 or not matrices:
            return orthogonalised(matrices)
        whose = shares([tuple(m.shape) for m in matrices], self.workers.size)
        own = [i for i, rank in enumerate(whose) if rank == self.workers.rank]
        steps = [torch.zeros_like(m) for m in matrices]
        for i, step in zip(own, orthogonalised([matrices[i] for i in own])):
            steps[i] = step
        flat = self.workers.sum(torch.cat([step.flatten() for step in steps]))
        return [part.view_as(m) for part, m in zip(flat.split([m.numel() for m in matrices]), matrices)]

    def _adam_step(self, moved: list[Tensor], group: dict[str, Any]) -> None:
        for p in moved:
            if not self.state[p]:
                start = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                self.state[p] = {"step": torch.zeros((), device=p.device), **start}
        means, squares, steps = ([self.state[p][k] for p in moved] for k in ("exp_avg", "exp_avg_sq", "step"))
        beta1, beta2 = BETAS
        rates = {"lr": group["lr"], "eps": group["eps"], "beta1": beta1, "beta2": beta2, "weight_decay": 0.0}
        off = {"amsgrad": False, "maximize": False}
        adam(moved, [p.grad for p in moved], means, squares, [], steps, fused=True, **off, **rates)  # type: ignore


def _groups(network: nn.Module) -> list[dict[str, Any]]:
    """The weights by how many matrices each holds, 0 for Adam's: vectors, embeddings and small matrices."""
    groups = defaultdict(list)
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            table = parameter.ndim < 2 or isinstance(module, nn.Embedding)
            small = table or min(parameter.flatten(1).shape) < SMALL
            groups[0 if small else GATES.get(type(module), 1)].append(parameter)
    return [{"params": groups[parts], "parts": parts} for parts in sorted(groups)]


def shares(shapes: Sequence[tuple[int, ...]], workers: int) -> list[int]:
    """Return which of the workers is to orthogonalise each matrix [n, m], so that all have about as much to do."""
    work = [min(shape) ** 2 * (2 * max(shape) + 4 * ROUNDS * min(shape)) for shape in shapes]
    loads, whose = [0] * workers, [0] * len(shapes)
    for i in sorted(range(len(shapes)), key=lambda i: -work[i]):
        whose[i] = loads.index(min(loads))
        loads[whose[i]] += work[i]
    return whose


def orthogonalised(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Matrices [n, m] with the same singular vectors and singular values near 1, times sqrt(n / m) where n > m.

    Newton-Schulz iterations of a quintic. Round by round x becomes p(x x^T) x, so that in the end it is q x with a
    polynomial q in x x^T. These Gram matrices are small, and those of one size go through the rounds together, unless
    they are so large that the product of each by itself is faster.
    """
    scaled = [m / (torch.linalg.matrix_norm(m) + 1e-7) for m in matrices]
    wide = [m.T if len(m) > m.shape[1] else m for m in scaled]
    by_size = defaultdict(list)
    for i, m in enumerate(wide):
        by_size[len(m)].append(i)
    found = list(wide)
    for rows, same in by_size.items():
        for batch in [[i] for i in same] if rows >= LARGE else [same]:
            gram = [times(wide[i], wide[i].T) for i in batch]
            factors = [_factor(gram[0])] if len(batch) == 1 else _factor(torch.stack(gram))
            for i, factor in zip(batch, factors):
                found[i] = times(factor, wide[i])
    return [x.T * (len(m) / m.shape[1]) ** 0.5 if len(m) > m.shape[1] else x for x, m in zip(found, matrices)]


def _factor(gram: Tensor) -> Tensor:
    """What to multiply a matrix with that has this Gram matrix [n, n], or matrices [K, n, n]."""
    a, b, c = QUINTIC
    one = factor = torch.eye(gram.shape[-1], device=gram.device, dtype=gram.dtype)
    for _ in range(ROUNDS):
        p = a * one + b * gram + c * times(gram, gram)
        factor, gram = times(p, factor), times(times(p, p), gram)
    return factor


def times(a: Tensor, b: Tensor) -> Tensor:
    """a b, by what is fastest for matrices of this size."""
    return product(a, b.T) if a.ndim == b.ndim == 2 and len(a) >= LARGE and plain_on_cpu(a) else a @ b

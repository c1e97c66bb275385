"""Pruning end to end: score or learn gates, search the widths under a budget, slim."""

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from navprune.errors import UserError
from navprune.models.spec import EncoderSpec, build, widths, with_widths
from navprune.pruning.gates import Batch, GateConfig, learn_gates
from navprune.pruning.groups import groups_of
from navprune.pruning.methods import GATES, METHODS
from navprune.pruning.scores import SCORES, Scores
from navprune.pruning.search import MEASURES, Budget, check_budget, search
from navprune.pruning.slim import Spec, encoder_of, slim, with_encoder

CountCost = Callable[[EncoderSpec], Mapping[str, float]]
"""An encoder's multiply-accumulates and parameters, {"macs", "parameters"}, as `evaluation.cost` has them."""


@dataclass(frozen=True)
class PruningResult:
    """A pruned network and how it came about.

    `model` holds the weights kept; `fresh(seed)` gives the same spec with new random weights.
    `widths` is {name: (before, after)} channels; before is the dense network asked about. `keep` and `scores`
    are those of the network that was searched, which with gates is wider than the dense one.
    """

    model: nn.Module
    method: str
    budget: dict[str, float]
    reached: dict[str, float]
    widths: dict[str, tuple[int, int]]
    keep: dict[str, Tensor]
    scores: Scores
    seed: int
    seconds: float
    initial_weights: str

    @property
    def spec(self) -> Spec:
        """The slim spec."""
        return cast(Spec, self.model.spec)

    def fresh(self, seed: int) -> nn.Module:
        """The slim network with new random weights, for training from scratch."""
        return build(self.spec, seed)

    def to_json(self) -> dict[str, Any]:
        """What `pruning.json` holds: everything but the weights."""
        return {
            "method": self.method,
            "budget": self.budget,
            "reached": self.reached,
            "widths": {name: list(pair) for name, pair in self.widths.items()},
            "keep": {name: kept.int().tolist() for name, kept in self.keep.items()},
            "scores": {name: score.tolist() for name, score in self.scores.items()},
            "seed": self.seed,
            "seconds": self.seconds,
            "initial_weights": self.initial_weights,
        }


def prune(
    network: nn.Module | Spec,
    method: str,
    budget: Budget,
    cost: CountCost,
    *,
    seed: int = 0,
    batches: Iterable[Batch] | None = None,
    gates: GateConfig | None = None,
    minimum: int = 1,
    tolerance: float = 0.01,
) -> PruningResult:
    """Prunes an encoder or a whole policy, given as a module or as a spec (then with random weights).

    `budget` {"macs" or "parameters": share} refers to `cost` of the dense network and is met from below
    within `tolerance` (relative); `minimum` units of each group stay. Gates need `batches` of observations
    with expert actions; they start from random weights of `gates.expansion` times the width whatever
    `network` holds, and leave trunks and stem at that width. Raises UserError for an unknown method, or a
    budget that cannot be met.
    """
    if method not in METHODS:
        raise UserError(f"unknown pruning method {method!r}; known are {', '.join(METHODS)}")
    check_budget(budget)
    began = time.perf_counter()
    dense = cast(Spec, network.spec) if isinstance(network, nn.Module) else network
    generator = torch.Generator().manual_seed(seed)
    if method == GATES:
        if batches is None:
            raise UserError("gates are learned on observations: give batches with expert actions")
        config = gates or GateConfig()
        model = build(expanded(dense, config.expansion), seed)
        initial = weights_hash(model)
        scores = learn_gates(model, batches, config, generator).gates
    else:
        model = network if isinstance(network, nn.Module) else build(dense, seed)
        initial = weights_hash(model)
        scores = SCORES[method](model, generator)
    encoder = encoder_of(dense)
    whole = cost(encoder)

    def share(channels: Mapping[str, int]) -> dict[str, float]:
        counts = cost(with_widths(encoder, channels))
        return {name: counts[name] / whole[name] for name in MEASURES}

    keep = search(groups_of(model), scores, share, budget, minimum, tolerance)
    small = slim(model, keep)
    after = widths(encoder_of(cast(Spec, small.spec)))
    return PruningResult(
        model=small,
        method=method,
        budget=dict(budget),
        reached=share(after),
        widths={name: (before, after[name]) for name, before in widths(encoder).items()},
        keep=keep,
        scores=scores,
        seed=seed,
        seconds=time.perf_counter() - began,
        initial_weights=initial,
    )


def expanded(spec: Spec, factor: float) -> Spec:
    """The same network with every encoder width multiplied by `factor`, rounded to whole units."""
    encoder = encoder_of(spec)
    channels, units = widths(encoder), encoder.units
    wider = {name: max(1, round(factor * channels[name] / unit)) * unit for name, unit in units.items()}
    return with_encoder(spec, with_widths(encoder, wider))


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over names and values of a model's state, as hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()

"""Pruning end to end: a method chooses what stays of a network's structure under a budget, and it is slimmed."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from navprune.costs.probing import Timer
from navprune.errors import UserError
from navprune.models.build import Spec, build
from navprune.models.classifiers import ClassifierSpec
from navprune.models.spec import renumbered
from navprune.pruning.config import LATENCY, LATENCY_MS, MEASURES, Budget, PruningConfig, budget_of
from navprune.pruning.graph import Example
from navprune.pruning.losses import Batches, Evidence, LossFunction, classification_loss
from navprune.pruning.methods import lender_for, method_for
from navprune.pruning.methods.base import CLOCK, SEARCHED, Context, Method, Outcome, Scores
from navprune.pruning.search import Share
from navprune.pruning.structure import Structure, structure_of
from navprune.pruning.timing import Stopwatch


@dataclass(frozen=True)
class PruningResult:
    """A pruned network and how it came about.

    `model` holds the weights kept; `fresh(seed)` gives the same spec with new random weights; `dense` is the spec
    that was asked about, None of a network that has none. `widths` is {name: (before, after)} channels, before in the
    dense network, after 0 in removed `blocks`. `keep` and `scores` are those of the network that was searched, which
    with gates is wider than the dense one. `seconds` is all the time taken, `search_seconds` that of scores or gates
    and of the search. `losses` are those of the gates' steps; `report` is what else the method says; in JSON it has the
    method's name.
    """

    model: nn.Module
    dense: Spec | None
    method: str
    budget: dict[str, float]
    reached: dict[str, float]
    widths: dict[str, tuple[int, int]]
    blocks: tuple[str, ...]
    keep: dict[str, Tensor]
    scores: Scores
    seed: int
    seconds: float
    search_seconds: float
    initial_weights: str
    settings: dict[str, Any] = field(default_factory=dict)
    losses: tuple[float, ...] = ()
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> Spec:
        """The slim spec; raises UserError for a network that has none."""
        if self.dense is None:
            raise UserError(f"{type(self.model).__name__} comes from no spec; keep the pruned module itself")
        return cast(Spec, self.model.spec)

    @property
    def equal_compute(self) -> float:
        """How many times the dense network's training fits the same multiply-accumulates: 1 / the share reached."""
        return 1 / self.reached["macs"]

    def fresh(self, seed: int) -> nn.Module:
        """The slim network with new random weights, for training from scratch; raises UserError without a spec."""
        return build(self.spec, seed)

    def to_json(self) -> dict[str, Any]:
        """What `pruning.json` holds: everything but the weights."""
        left_out = ("model", "dense", "blocks", "report")
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}
        own = {self.method: self.report} if self.report else {}
        return (
            plain
            | own
            | {
                "equal_compute": self.equal_compute,
                "widths": {name: list(pair) for name, pair in self.widths.items()},
                "blocks_removed": list(self.blocks),
                "keep": {name: kept.int().tolist() for name, kept in self.keep.items()},
                "scores": {name: score.tolist() for name, score in self.scores.items()},
                "losses": list(self.losses),
            }
        )


def prune(
    network: nn.Module | Spec,
    config: PruningConfig,
    *,
    seed: int = 0,
    batches: Batches | None = None,
    loss: LossFunction | None = None,
    clock: Timer | None = None,
    costs: Mapping[str, Share] | None = None,
    example: Example | None = None,
    device: torch.device | str = "cpu",
) -> PruningResult:
    """Prune an encoder, a policy, a classifier or any module that can be traced with an `example` of its input.

    A spec begins with random weights from `seed`. The budget refers to the dense network and is met from below as
    `search` says: macs and parameters as `Structure.cost` counts them, latency by the `clock`, further measures by
    `costs`, {name: widths -> share}. What is built from a spec is looked at on `device`.

    Methods that need them look at `batches`, some through `loss(model, batch)`, by default classification for
    classifiers and imitation for gates of agents. What else the method is and does, it says in `methods`. Raises
    UserError for an unknown method, weights that do not fit the spec, or a budget that cannot be met.
    """
    method = method_for(config)
    budget = budget_of(config, (*MEASURES, *((LATENCY, LATENCY_MS) if clock else ()), *(costs or ())))
    _check_offered(method, config)
    began, dense = time.perf_counter(), checked_spec(network)
    model = network if isinstance(network, nn.Module) else build(network, seed).to(device)
    structure = structure_of(model, example, blocks=config.blocks)
    measured = _measured(structure, method, budget, clock, costs or {})
    loss = loss or (classification_loss if isinstance(dense, ClassifierSpec) else None)
    evidence = Evidence(torch.Generator().manual_seed(seed), batches, loss)
    found = method.run(structure, budget, Context(config, evidence, measured, clock, seed, device))
    search_seconds = time.perf_counter() - began
    return PruningResult(
        model=(found.model or found.searched.slim(found.keep)).cpu(),
        dense=dense,
        method=method.name,
        budget=budget,
        **_left(structure, found, measured),
        keep=found.keep,
        scores=found.scores,
        seed=seed,
        seconds=time.perf_counter() - began,
        search_seconds=search_seconds,
        initial_weights=weights_hash(found.searched.model),
        settings=_settings(method, config),
        losses=tuple(found.losses),
        report=dict(found.report),
    )


def _check_offered(method: Method, config: PruningConfig) -> None:
    """Raise UserError for options of the search that the method does not heed."""
    own, usual = _settings_of_search(config), _settings_of_search(PruningConfig())
    if unheeded := [name for name in own if own[name] != usual[name] and name not in method.heeds]:
        raise UserError(f"{method.name} knows no {' and no '.join(unheeded)}: leave it out")


def _settings(method: Method, config: PruningConfig) -> dict[str, Any]:
    """The options that the method made use of, as `pruning.json` holds them."""
    search = {name: value for name, value in _settings_of_search(config).items() if name in method.heeds}
    found: dict[str, Any] = {"blocks": search.pop("blocks")} if "blocks" in search else {}
    found = ({"search": search} if search else {}) | found
    sections = [method.options, *(["clock"] if CLOCK in method.needs else [])]
    if method.borrows and (lender := lender_for(config)) is not None:
        sections.append(lender.options)
    return found | {name: asdict(getattr(config, name)) for name in sections if name}


def _settings_of_search(config: PruningConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in SEARCHED}


def _left(dense: Structure, found: Outcome, measured: Mapping[str, Share]) -> dict[str, Any]:
    """What a cut leaves, as fields of `PruningResult`: "reached", "widths" and "blocks"."""
    left = found.widths or found.searched.widths_of(found.keep)
    removed = tuple(group.name for group in dense.blocks if left.get(group.name) == 0)
    after = {name: left[name] if renumbered(name, removed) else 0 for name in dense.widths}
    return {
        "reached": {**dense.shares(left), **found.reached, **{name: share(left) for name, share in measured.items()}},
        "widths": {name: (count, after[name]) for name, count in dense.widths.items()},
        "blocks": removed,
    }


def checked_spec(network: nn.Module | Spec) -> Spec | None:
    """The spec of a network; raises UserError where its weights are of other shapes."""
    if isinstance(network, Spec):
        return network
    if not isinstance(network, nn.Module):
        raise UserError(f"what is pruned is a network or a spec, not {network!r}: such as encoder_spec('resnet50')")
    spec = getattr(network, "spec", None)
    if not isinstance(spec, Spec):
        return None
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in build(spec).state_dict().items()}
    own = {name: value.shape for name, value in network.state_dict().items()}
    for name in sorted({*shapes, *own}):
        if shapes.get(name) != own.get(name):
            there, here = (list(s[name]) if name in s else "absent" for s in (own, shapes))
            raise UserError(f"the network does not fit its spec: {name} is {there} in it, {here} by the spec")
    return spec


def _measured(
    structure: Structure, method: Method, budget: Budget, clock: Timer | None, costs: Mapping[str, Share]
) -> dict[str, Share]:
    """What of the budget is asked of a clock or of the caller, by the search; a method with a clock asks by itself."""
    by_clock: dict[str, Share] = {}
    if clock and CLOCK not in method.needs and budget.keys() & {LATENCY, LATENCY_MS}:
        watch = Stopwatch(structure, clock)
        by_clock = {LATENCY: watch.share, LATENCY_MS: watch.milliseconds}
    return {name: _remembered(share) for name, share in {**by_clock, **costs}.items() if name in budget}


def _remembered(share: Share) -> Share:
    """The same function, asked once for the same widths: a measurement does not repeat."""
    ask = lru_cache(maxsize=None)(lambda items: share(dict(items)))
    return lambda channels: ask(tuple(sorted(channels.items())))


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over names and values of a model's state, as hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())  # NumPy has no bfloat16
    return digest.hexdigest()

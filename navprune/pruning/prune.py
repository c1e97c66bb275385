"""Pruning end to end: score or learn gates, search the widths under a budget, slim."""

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.classifiers import ClassifierSpec
from navprune.models.encoders import ChannelGroup, Encoder
from navprune.models.spec import EncoderSpec, PolicySpec, renumbered
from navprune.models.widths import widths, with_widths
from navprune.pruning.gates import GateConfig, learn_gates
from navprune.pruning.graph import Example
from navprune.pruning.groups import Keep, groups_of, is_inner, units
from navprune.pruning.losses import Imitation
from navprune.pruning.methods import GATES, METHODS, NEEDS_BATCHES, TORCH_PRUNING
from navprune.pruning.scores import SCORES, Evidence, LossFunction, Scores, classification_loss
from navprune.pruning.search import MEASURES, Budget, SearchConfig, Share, Shares, Widths, check_budget, search
from navprune.pruning.slim import Spec, encoder_of, slim, with_encoder
from navprune.pruning.trace import module_cost

CountCost = Callable[[EncoderSpec], Mapping[str, float]]
"""An encoder's multiply-accumulates and parameters, {"macs", "parameters"}, as `costs.counting` has them."""
Batches = Iterable[Any] | Callable[[nn.Module], Iterable[Any]]
"""Batches, or a function of the network that is looked at that draws them."""


@dataclass(frozen=True)
class PruningResult:
    """A pruned network and how it came about.

    `model` holds the weights kept; `fresh(seed)` gives the same spec with new random weights; `dense` is the spec
    that was asked about, None of a network that has none. `widths` is {name: (before, after)} channels, before in the
    dense network, after 0 in removed `blocks`. `keep` and `scores` are those of the network that was searched, which
    with gates is wider than the dense one. `seconds` is all the time taken, `search_seconds` that of scores or gates
    and of the search. `losses` are those of the gates' steps.
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
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("model", "dense", "blocks")}
        return plain | {
            "equal_compute": self.equal_compute,
            "widths": {name: list(pair) for name, pair in self.widths.items()},
            "blocks_removed": list(self.blocks),
            "keep": {name: kept.int().tolist() for name, kept in self.keep.items()},
            "scores": {name: score.tolist() for name, score in self.scores.items()},
            "losses": list(self.losses),
        }


def prune(
    network: nn.Module | Spec,
    method: str,
    budget: Budget,
    cost: CountCost | None = None,
    *,
    seed: int = 0,
    batches: Batches | None = None,
    loss: LossFunction | None = None,
    gates: GateConfig | None = None,
    config: SearchConfig | None = None,
    costs: Mapping[str, Share] | None = None,
    blocks: bool = False,
    example: Example | None = None,
    device: torch.device | str = "cpu",
) -> PruningResult:
    """Prune an encoder, a policy, a classifier or any module that can be traced with an `example` of its input.

    A spec begins with random weights from `seed`. `budget` {measure: share} refers to the dense network and is met
    from below as `search` says under `config`: "macs" and "parameters" by `cost` of the encoder's spec, without an
    encoder those of the whole network as it runs (`module_cost`), further measures by `costs`, {name: widths ->
    share}. With `blocks` residual blocks may go whole. What is built from a spec is looked at on `device`.

    Scores that need them look at `batches`, some through `loss(model, batch)`. Gates need batches, too; their loss is
    by default imitation, of classifiers classification; they start from random weights of `gates.expansion` times the
    width whatever `network` holds (without a spec, from its own weights and widths), and leave trunks and stem so wide.
    Torch-Pruning takes no `config`, and its `keep` is of channels. Raises UserError for an unknown method, weights that
    do not fit the spec, or a budget that cannot be met.
    """
    config, costs, gates = config or SearchConfig(), costs or {}, (gates or GateConfig()) if method == GATES else None
    _check(method, budget, costs)
    began, dense = time.perf_counter(), checked_spec(network)
    model = _looked_at(network, dense, gates, seed, device)
    groups, initial = groups_of(model, example, blocks=blocks), weights_hash(model)
    shares = shares_of(dense or _spec_within(model) or model, cost, example)
    measured = {name: _remembered(share) for name, share in costs.items() if name in budget}
    drawn = batches(model) if callable(batches) else batches
    own = {group.name: group.channels for group in groups if not group.block}
    before = widths(encoder_of(dense)) if dense else own  # with gates not those of the network that is searched
    _check_reach(groups, method, shares, budget, config, before)
    evidence = Evidence(torch.Generator().manual_seed(seed), drawn, loss, example, blocks)
    scores, losses = _scored(model, method, evidence, gates)
    keep = search(groups, scores, shares, budget, config, measured, before)
    search_seconds = time.perf_counter() - began
    return PruningResult(
        model=slim(model, keep, example).cpu(),
        dense=dense,
        method=method,
        budget=dict(budget),
        **_left(before, groups, keep, shares, measured),
        keep=keep,
        scores=scores,
        seed=seed,
        seconds=time.perf_counter() - began,
        search_seconds=search_seconds,
        initial_weights=initial,
        settings={"search": asdict(config), "blocks": blocks} | ({"gates": asdict(gates)} if gates else {}),
        losses=tuple(losses),
    )


def _check(method: str, budget: Budget, costs: Iterable[str]) -> None:
    if method not in METHODS:
        raise UserError(f"unknown pruning method {method!r}; known are {', '.join(METHODS)}")
    if method == TORCH_PRUNING:
        raise UserError("torch-pruning is a control: navprune.comparisons.torch_pruning.prune runs it")
    check_budget(budget, (*MEASURES, *costs))


def _looked_at(
    network: nn.Module | Spec, dense: Spec | None, gates: GateConfig | None, seed: int, device: torch.device | str
) -> nn.Module:
    """The network with its weights, or random ones; for gates, where it has a spec, a wider one with random ones."""
    if gates and dense:
        network = expanded(dense, gates.expansion)
    return network if isinstance(network, nn.Module) else build(network, seed).to(device)


def _left(
    before: Widths, groups: Sequence[ChannelGroup], keep: Keep, shares: Shares, measured: Mapping[str, Share]
) -> dict[str, Any]:
    """What a cut leaves, as fields of `PruningResult`: "reached", "widths" and "blocks"."""
    kept = {group.name: int(keep[group.name].sum()) * group.unit for group in groups}
    removed = tuple(group.name for group in groups if group.block and not kept[group.name])
    return {
        "reached": {**shares(kept), **{name: share(kept) for name, share in measured.items()}},
        "widths": {name: (count, kept[name] if renumbered(name, removed) else 0) for name, count in before.items()},
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


def _check_reach(
    groups: Sequence[ChannelGroup], method: str, shares: Shares, budget: Budget, config: SearchConfig, dense: Widths
) -> None:
    """Raise UserError for limits or a budget that no scores could meet, before minutes go into scores."""
    if method not in NEEDS_BATCHES:
        return
    cut = [group for group in groups if method != GATES or is_inner(group) or group.block]
    if exact := {name: budget[name] for name in MEASURES if name in budget}:
        alike = {group.name: torch.ones(units(group)) for group in cut}
        search(groups, alike, shares, exact, replace(config, tolerance=1.0), dense=dense)


def _spec_within(model: nn.Module) -> EncoderSpec | None:
    """That of an encoder of ours in somebody's module: its own groups are cut, whatever lies around it."""
    return next((module.spec for module in model.modules() if isinstance(module, Encoder)), None)


def _scored(model: nn.Module, method: str, evidence: Evidence, gates: GateConfig | None) -> tuple[Scores, list[float]]:
    """Scores of the units, and the losses of gates."""
    classifier = isinstance(getattr(model, "spec", None), ClassifierSpec)
    loss = evidence.loss or (classification_loss if classifier else None)
    if gates is None:
        return SCORES[method](model, replace(evidence, loss=loss)), []
    if evidence.batches is None:
        raise UserError("gates are learned on observations: give batches with expert actions, or others and their loss")
    if loss is None and _spec_within(model) is None:
        raise UserError("gates follow a loss: give one, such as classification_loss")
    loss = loss or Imitation(model, evidence.generator)
    return learn_gates(model, evidence.batches, loss, gates, example=evidence.example, blocks=evidence.blocks)


def shares_of(network: nn.Module | Spec, cost: CountCost | None = None, example: Example | None = None) -> Shares:
    """Widths -> shares of multiply-accumulates and parameters of the dense network; `cost` and `example` as `prune`."""
    count = _count(network, cost, example)
    whole = count({})
    return lambda channels: {name: found / whole[name] for name, found in count(channels).items() if name in MEASURES}


def _count(
    network: nn.Module | Spec, cost: CountCost | None, example: Example | None
) -> Callable[[Widths], Mapping[str, float]]:
    """Widths -> multiply-accumulates and parameters."""
    if isinstance(network, EncoderSpec | PolicySpec):
        encoder = cast(EncoderSpec, encoder_of(network))
        if cost is None:
            raise UserError("what an encoder costs depends on the convention: give `cost`: commands.prune.count_cost")
        return lambda channels: cost(resized(encoder, channels))
    if isinstance(network, ClassifierSpec):
        example = torch.empty(1, *network.input)
        with torch.device("meta"):
            network = build(network)
    if example is None:
        raise UserError(f"{type(network).__name__} comes from no spec: give an example of its input")
    return module_cost(network, example)


def resized(spec: EncoderSpec, channels: Widths) -> EncoderSpec:
    """An encoder with other widths; blocks whose entry is 0 are removed."""
    present = widths(spec)
    other = with_widths(spec, {name: count for name, count in channels.items() if name in present})
    return other.without_blocks([name for name, count in channels.items() if count == 0])


def _remembered(share: Share) -> Share:
    """The same function, asked once for the same widths: a measurement does not repeat."""
    ask = lru_cache(maxsize=None)(lambda items: share(dict(items)))
    return lambda channels: ask(tuple(sorted(channels.items())))


def expanded(spec: Spec, factor: float) -> Spec:
    """The same network with every free width multiplied by `factor`, rounded to whole units."""
    own = encoder_of(spec)
    units = own.unit_channels if isinstance(own, EncoderSpec) else dict.fromkeys(own.widths, 1)
    wider = {name: max(1, round(factor * count / units[name])) * units[name] for name, count in widths(own).items()}
    return with_encoder(spec, with_widths(own, wider))


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over names and values of a model's state, as hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())  # NumPy has no bfloat16
    return digest.hexdigest()

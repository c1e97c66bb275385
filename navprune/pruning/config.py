"""What pruning can be asked for, the same for `navprune prune`, for cuts while an agent trains and for the library.

In YAML it is the section `pruning`. Nothing here needs torch, so that `--help` can read it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real

from navprune.checks import TINY, bounded, check_fields, chosen
from navprune.errors import UserError
from navprune.pruning.methods import GATES, METHODS, MODULES

MEASURES = ("macs", "parameters")
LATENCY = "latency"
LATENCY_MS = "latency_ms"
"""A budget of latency in milliseconds; `latency=4ms` is another way to write it."""
KNOWN = (*MEASURES, LATENCY, LATENCY_MS)

Budget = Mapping[str, float]
"""Largest share of the dense network for each measure, in (0, 1]; of `latency_ms` the milliseconds."""

SCOPES = ("global", "layer")
IMITATION, PPO, CLASSIFICATION, DISTILLATION = LOSSES = ("imitation", "ppo", "classification", "distillation")
SCHEDULES = ("cubic", "steps")
IMPORTANCE = (*(name for name in MODULES["scores"] if name != "geometric-median"), GATES)
"""Methods whose scores compare widths and blocks."""
LASSOS = {"group-lasso": "filters", "group-lasso-channel": "channels", "group-lasso-both": "both"}
GROWING = "growing"
PENALTIES = (None, *LASSOS, GROWING)


MASKS = {
    "global-magnitude": "the largest |w| of all layers (Han et al., NeurIPS 2015)",
    "layer-magnitude": "the largest |w| of each parameter, the same share of each",
    "global-magnitude-gradient": "of all layers by |w x gradient| on one batch (Blalock et al., MLSys 2020)",
    "layer-magnitude-gradient": "of each parameter by |w x gradient| on one batch",
    "global-magnitude-activation": "of all layers by |w| x mean |input that w reads| on one batch (the same)",
    "layer-magnitude-activation": "of each parameter by |w| x mean |input that w reads| on one batch",
    "global-random": "control: weights of all layers at random",
    "layer-random": "control: the same share of each parameter at random",
    "structured-METHOD": f"units of best score, by one of {', '.join(MODULES['scores'])}",
}
"""Strategies of masks, and which weights each keeps."""


def parse_shares(option: str, text: str) -> dict[str, float]:
    """Read `macs=0.5,parameters=0.45`: each name once, with a number.

    Raises UserError, naming the `option`, on anything else.
    """
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name or name in shares:
            reason = f"cannot read {part.strip()!r}; write NAME=SHARE, each name once, as in stem=0.5,stage4.*=0.3"
            raise UserError(f"{option} {text!r}: {reason}")
        try:
            shares[name] = float(value)
        except ValueError:
            raise UserError(f"{option} {text!r}: {value!r} is not a number; write a share such as 0.5") from None
    return shares


def parse_budget(text: str) -> dict[str, float]:
    """Read `macs=0.5,parameters=0.45`, `latency=0.7` or `latency=4ms`; {measure: share, of latency_ms milliseconds}.

    Raises UserError on what cannot be read, and on shares that are none. Which measures there are is for
    `check_budget` to say, where they are known.
    """
    in_ms = re.compile(rf"(?<![^,\s]){LATENCY}\s*=([^,]*)ms\s*(?=,|$)")
    budget = parse_shares("budget", in_ms.sub(rf"{LATENCY_MS}=\1", text)) if text.strip() else {}
    check_budget(budget, tuple(budget) or MEASURES)
    if {LATENCY, LATENCY_MS} <= budget.keys():
        raise UserError(f"budget {text!r} has two limits of latency; give a share or milliseconds")
    return budget


def check_budget(budget: Budget, known: Sequence[str] = MEASURES) -> None:
    """Raise UserError unless every entry is a share in (0, 1], or positive milliseconds, of a known measure."""
    named = isinstance(budget, Mapping)
    shares = {name: value for name, value in budget.items() if name != LATENCY_MS} if named else budget
    check_shares("budget", "the dense network", shares)
    if not budget:
        raise UserError(f"the budget is empty: give a share of {' or '.join(known)}")
    if unknown := [name for name in budget if name not in known]:
        raise UserError(f"budget: unknown measure {unknown[0]!r}; there are {', '.join(known)}")
    if not budget.get(LATENCY_MS, 1.0) > 0:
        raise UserError(f"budget: {budget[LATENCY_MS]:g} ms is no time; give more than 0")


def check_shares(title: str, whole: str, shares: object) -> None:
    """Raise UserError unless `shares` is a mapping of names to shares of `whole`, in (0, 1]."""
    if not isinstance(shares, Mapping):
        raise UserError(f"{title} must not be {shares!r}: give shares by name, such as {{'NAME': 0.5}}")
    for name, share in shares.items():
        if not isinstance(share, Real) or not 0 < float(share) <= 1:
            raise UserError(f"{title}: {name}={share} is not a share of {whole}; give 0 < {name} <= 1")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What a search may cut, and how."""

    scope: str = chosen("global", SCOPES)
    """global: one threshold for all layers; layer: the same share of each, its best units."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """Largest share kept of layers by pattern, such as stage4.*=0.3,stem=0.5; above 0, to 1."""
    minimum: int = bounded(1, 1)
    """Units that stay of every width; 1 or more."""
    minimum_share: float = bounded(0.0, 0, 1)
    """Share that stays of every width; from 0 to 1."""
    multiple: int = bounded(1, 1)
    """Kept channels are multiples of this, and at least so many, or all of a width; 1 or more."""
    tolerance: float = bounded(0.01, 0, 1)
    """How far below its budget the tightest measure may end, relative; from 0 to 1."""

    def __post_init__(self) -> None:
        check_fields("pruning", self)
        check_shares("limits", "the layer", self.limits)


@dataclass(frozen=True, kw_only=True)
class EvidenceConfig:
    """What methods that need batches look at."""

    loss: str | None = chosen(None, (None, *LOSSES))
    """imitation, ppo, classification or distillation; null: imitation for gates, ppo for other methods of agents,
    classification for those of classifiers."""
    teacher: str | None = None
    """Checkpoint or run of the network that distillation compares with: the dense one, of which some is cut already."""
    steps: int = bounded(400, 1)
    """Observations of each of the configured training environments; 1 or more."""
    epochs: int = bounded(3, 1)
    """Passes of gates through them or through labelled images; PPO makes its own."""
    batch_size: int = bounded(100, 1)
    """Observations or images of each batch; PPO draws its own mini-batches."""
    images: str | None = None
    """An .npz file of labelled images, for classification; null: those that the configuration trains on."""

    def __post_init__(self) -> None:
        check_fields("pruning.evidence", self)
        if (self.loss == DISTILLATION) != bool(self.teacher):
            raise UserError("distillation and a teacher go together: give both, a checkpoint or run for the teacher")


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """How gates are learned; expansion and Adam's rate are the paper's.

    The penalty is not: the paper's 0.5 works over thousands of steps, and here a hundred or two must do.
    """

    expansion: float = bounded(1.25, 1, 8)  # beyond, a typing error is likelier than a wish
    """Widths of the searched network relative to the dense one, to which budgets refer; from 1 to 8.

    Trunks and stem are widened too, as in the paper, though no gate cuts them. In networks of few, coarse units
    they then eat the budget (ResNet50 of base 8 cannot go below 0.38 of the MACs): 1 leaves the gates more room.
    """
    penalty: float = bounded(20.0, 0)
    """Weight of (mean |gate| - target)^2; at least 0."""
    target: float = bounded(0.5, TINY, 1 - TINY)
    """Mean gate to aim at, between 0 and 1."""
    learning_rate: float = bounded(0.01, TINY)
    """Adam's rate for the gates; above 0."""
    readout_learning_rate: float = bounded(1e-3, TINY)
    """Adam's rate for what learns along with them behind the encoder; above 0."""
    stable: float = bounded(0.95, TINY, 1)
    """Stop once the gates' ranking correlates by this much (Spearman) with that of 20 steps before, and their mean is
    within 0.25 of the target; above 0, and 1 goes through all batches.

    More steps do not make it more certain.
    """

    def __post_init__(self) -> None:
        check_fields("pruning.gates", self)


PAPERS = {
    "cifar": {"gates.penalty": 0.5, "gates.stable": 1.0, "evidence.epochs": 10, "evidence.batch_size": 128},
    "imagenet": {"gates.penalty": 0.05, "gates.stable": 1.0, "evidence.epochs": 1, "evidence.batch_size": 100},
}
"""Settings of `pruning` with which Pruning from Scratch was published, for classification (Wang et al., AAAI 2020)."""


@dataclass(frozen=True, kw_only=True)
class ClockConfig:
    """Where milliseconds are measured, where a budget or a method asks for them."""

    batch: int = bounded(1, 1)
    """Images at once; 1 or more."""
    runtime: str = "eager"
    """Runtime in which they run; `navprune doctor` lists them."""
    threads: int | None = bounded(None, 1)
    """Threads of a CPU that it takes; null: as many as torch does."""

    def __post_init__(self) -> None:
        check_fields("pruning.clock", self)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How layers are timed, and what is worth keeping."""

    importance: str = chosen("l1", IMPORTANCE)
    """What ranks units: one of the scores, or gates."""
    networks: int = bounded(24, 4)
    """Random narrower networks that are measured, stage by stage; 4 or more."""
    seconds: float = bounded(300.0, 0)
    """After so many no further one is."""
    least: float = bounded(0.25, TINY, 1)
    """Share of every width that stays; above 0, to 1."""
    fresh: bool = False
    """Whether to measure anew what an earlier probe on this machine has measured."""

    def __post_init__(self) -> None:
        check_fields("pruning.probe", self)


@dataclass(frozen=True, kw_only=True)
class PruningConfig(SearchConfig):
    """What is pruned, by which method, to which budget."""

    method: str | None = chosen(None, (None, *METHODS))
    """One of the methods of `navprune prune --help`; null: gates, while an agent trains taylor, on PPO's own loss."""
    budget: str | None = None
    """Shares of the dense network, such as macs=0.5,parameters=0.45; latency=0.7 and latency=4ms are measured."""
    blocks: bool = False
    """Whether residual blocks may go whole."""
    evidence: EvidenceConfig = field(default_factory=EvidenceConfig)
    """What methods that need batches look at."""
    gates: GateConfig = field(default_factory=GateConfig)
    """How gates are learned."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """How layers are timed, and what is worth keeping."""
    clock: ClockConfig = field(default_factory=ClockConfig)
    """How latency is measured."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget is not None:
            parse_budget(self.budget)


def budget_of(config: PruningConfig, known: Sequence[str] = MEASURES) -> dict[str, float]:
    """The budget of a configuration; raises UserError where it has none, or one of measures that are not `known`."""
    if config.budget is None:
        raise UserError("nothing says how much is to stay; set pruning.budget, as in macs=0.5,parameters=0.45")
    budget = parse_budget(config.budget)
    check_budget(budget, known)
    return budget


@dataclass(frozen=True, kw_only=True)
class PruningScheduleConfig(PruningConfig):
    """What is cut while PPO trains, and what helps the agent to recover.

    Cuts follow PPO's own rollouts and loss: evidence, gates, clock and blocks are for `navprune prune` alone.
    """

    schedule: str = chosen("cubic", SCHEDULES)
    """cubic (most of it early) or steps (the same share of what is left each time)."""
    begin: float = bounded(0.1, 0, 1)
    """Share of PPO's frames after which the schedule begins; from 0 to 1."""
    end: float = bounded(0.6, TINY, 1)
    """Share of PPO's frames at which the last cut is made; above `begin`, to 1."""
    cuts: int = bounded(8, 1)
    """Number of cuts, at equal distances, the last at `end`; 1 or more."""
    penalty: str | None = chosen(None, PENALTIES)
    """What prepares the cuts: group-lasso (of filters), group-lasso-channel, group-lasso-both, growing, or null."""
    strength: float | None = bounded(None, TINY)
    """Of a group lasso, the weight of the penalty (null: 0.01); of growing, minus the logarithm of what a unit that the
    gradient leaves alone has faded to at its cut (null: 3); above 0."""
    rewind: str | None = None
    """Early checkpoint of the dense run: after a cut the weights that stay go back to it, with a fresh optimiser. Where
    `budget` is null, those of `init`, which was pruned, do so before the run."""
    rewind_lr: bool = False
    """Whether the schedules of PPO's learning rate and clip begin anew after each cut."""
    teacher: str | None = None
    """Checkpoint or run of the dense agent to distil from; null for PPO alone."""
    teach_policy: float = bounded(1.0, 0)
    """Weight of the divergence from the teacher's actions; 0 or more."""
    teach_features: float = bounded(1.0, 0)
    """Weight of the squared difference from the teacher's visual features; 0 or more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.begin >= self.end:
            raise UserError(f"pruning.begin is {self.begin:g}; it must lie before end, {self.end:g}")
        if self.budget is None and (self.penalty or self.rewind_lr):
            raise UserError("pruning.penalty and pruning.rewind_lr go with cuts; set pruning.budget, as in macs=0.5")

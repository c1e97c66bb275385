"""Pruning while PPO trains: cuts on a schedule, each one real, with the optimiser's state cut along.

At cut i of k the budget is, with the final share r of the dense network,

    cubic:  r + (1 - r) (1 - i / k)^3    most of it early, while there is plenty (Zhu & Gupta, ICLR workshop 2018)
    steps:  r^(i / k)                    every cut leaves the same share of what there is (Frankle & Carbin, ICLR 2019)

Between cuts a penalty may prepare the next one: the group lasso by proximal steps, which lets the network choose, or
a growing one on the units that are about to go (Wang et al., Neural Pruning via Growing Regularization, ICLR 2021).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from navprune.checks import TINY, bounded, check_fields, chosen
from navprune.errors import UserError
from navprune.models.policy import PointNavPolicy
from navprune.models.widths import widths
from navprune.pruning.graph import Example
from navprune.pruning.groups import Keep, groups_of, spread, units
from navprune.pruning.penalties import proximal_step
from navprune.pruning.prune import CountCost, shares_of, weights_hash
from navprune.pruning.recover import rewound
from navprune.pruning.scores import BOTH, CHANNELS, FILTERS, SCORES, Evidence, Scores
from navprune.pruning.search import (
    MEASURES,
    Budget,
    BudgetUnmet,
    SearchConfig,
    check_budget,
    parse_budget,
    search,
    shortfall,
)
from navprune.pruning.slim import slim, slim_optimiser
from navprune.rl.callbacks import Callback, Replacement
from navprune.rl.ppo import PPO

SCHEDULES = ("cubic", "steps")
LASSOS = {"group-lasso": FILTERS, "group-lasso-channel": CHANNELS, "group-lasso-both": BOTH}
GROWING = "growing"
PENALTIES = (None, *LASSOS, GROWING)
TOLERANCES = (0.01, 0.03, 0.1, 1.0)
"""How far below its budget a cut may end, the first that can be met in whole units: a run that has come so far does
not stop for that."""


@dataclass(frozen=True, kw_only=True)
class PruningScheduleConfig:
    """What is cut while PPO trains, and what helps the agent to recover."""

    method: str = chosen("taylor", SCORES)
    """Score of the units, one of `navprune prune --help` but gates; taylor follows PPO's own loss."""
    budget: str | None = None
    """Final shares of the network that the run begins with, such as macs=0.5,parameters=0.45; null cuts nothing."""
    schedule: str = chosen("cubic", SCHEDULES)
    """cubic (most of it early) or steps (the same share of what is left each time)."""
    begin: float = bounded(0.1, 0, 1)
    """Share of PPO's frames after which the schedule begins; from 0 to 1."""
    end: float = bounded(0.6, TINY, 1)
    """Share of PPO's frames at which the last cut is made; above `begin`, to 1."""
    cuts: int = bounded(8, 1)
    """Number of cuts, at equal distances, the last at `end`; 1 or more."""
    minimum: int = bounded(1, 1)
    """Units that stay of every width; 1 or more."""
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
        check_fields("pruning", self)
        if self.begin >= self.end:
            raise UserError(f"pruning.begin is {self.begin:g}; it must lie before end, {self.end:g}")
        if self.budget is not None:
            check_budget(parse_budget(self.budget))
        elif self.penalty or self.rewind_lr:
            raise UserError("pruning.penalty and pruning.rewind_lr go with cuts; set pruning.budget, as in macs=0.5")


def share_after(cut: int, cuts: int, final: float, schedule: str) -> float:
    """The budget at cut `cut` of `cuts`, 1 at cut 0 and `final` at the last; see the module's text."""
    done = cut / cuts
    return final**done if schedule == "steps" else final + (1 - final) * (1 - done) ** 3


class GradualPruning(Callback):
    """Cuts PPO's network on a schedule; what is left of it is an ordinary smaller network at any time."""

    name = "pruning"

    def __init__(
        self,
        config: PruningScheduleConfig,
        dense: PointNavPolicy,
        cost: CountCost,
        *,
        frames: tuple[int, int],
        update: int,
        seed: int = 0,
        early: PointNavPolicy | None = None,
    ) -> None:
        """`dense` is the network that the run begins with, to whose `cost` the budget refers; `frames` are those at
        which PPO begins and ends, `update` those of one update; `early` is what weights are rewound to.

        Raises UserError without a budget, and for one that cannot be met.
        """
        if config.budget is None:
            raise UserError("nothing is to be cut; set pruning.budget, as in macs=0.5")
        self.config, self.dense, self.seed, self.early = config, dense.spec.encoder, seed, early
        self.shares = shares_of(self.dense, cost)
        """Widths -> shares of the dense network that remain, {"macs", "parameters"}."""
        self.budget = parse_budget(config.budget)
        first, last = frames
        self.strength = config.strength or (3.0 if config.penalty == GROWING else 0.01)
        self.begin, self.end = (first + share * (last - first) for share in (config.begin, config.end))
        self.interval = (self.end - self.begin) / config.cuts
        """Frames between two cuts."""
        self.initial_weights = weights_hash(dense)
        self.kept = {group.name: torch.ones(units(group), dtype=torch.bool) for group in groups_of(dense)}
        """Which of the dense network's units are left, {group name: bool [units]}."""
        self.history: list[dict[str, float]] = []
        """The cuts so far, {"frames", "macs", "parameters", "tolerance"}: shares of the dense network, how far below
        the cut's budget the tightest was let end (relative)."""
        self.tolerance = TOLERANCES[0]
        """That of the cut that was chosen last."""
        self.doomed: dict[str, Tensor] = {}
        """The units of the present network that go at the next cut, {group name: bool [units]}."""
        self.frames, self.made = first, 0
        if self.interval < update:
            between = int((self.end - self.begin) / update)
            remedy = f"pruning.begin and pruning.end; ask for {'fewer cuts' if between else 'more frames'}"
            raise UserError(f"pruning.cuts is {config.cuts}, but PPO makes {between} updates between {remedy}")
        self._search(dense, {name: torch.ones(len(kept)) for name, kept in self.kept.items()}, self.budget, 1.0)
        if self.early is not None and self.early.spec != dense.spec:
            raise UserError("pruning.rewind is of another network; give an early checkpoint of the dense run")

    def due(self, frames: int) -> int:
        """How many cuts are to be made by then."""
        # Rounding must not put off the last cut, at which the run may end.
        return min(max(math.floor((frames - self.begin) / self.interval + 1e-6), 0), self.config.cuts)

    def attach(self, ppo: PPO) -> None:
        """Act behind each step of the optimiser, where a penalty is asked for."""
        groups = groups_of(ppo.policy)

        def step(optimiser: torch.optim.Optimizer, *_: Any) -> None:
            active = self.begin <= self.frames and self.made < self.config.cuts
            if not active or ppo.updates < ppo.config.critic_updates:
                return
            if over := LASSOS.get(self.config.penalty or ""):
                proximal_step(ppo.policy, groups, optimiser.param_groups[0]["lr"] * self.strength, over)
            elif self.doomed:
                fade(ppo.policy, self.doomed, self._faded(ppo))

        if self.config.penalty:
            ppo.optimiser.register_step_post_hook(step)

    def _faded(self, ppo: PPO) -> float:
        """What one step leaves of a unit to be cut: exp(-strength) over the interval, the rate growing linearly."""
        ends = self.frames, self.frames + ppo.frames_per_update
        # From 0 at the latest cut to 1 at the next.
        before, after = (min(max((end - self.begin) / self.interval - self.made, 0.0), 1.0) for end in ends)
        steps = ppo.config.epochs * ppo.config.minibatches
        return math.exp(-self.strength * (after**2 - before**2) / steps)

    def on_update(self, ppo: PPO, frames: int) -> Replacement | None:
        """Make the cut whose time has come, if any, and choose what goes next."""
        self.frames = frames
        policy, replacement, due = ppo.policy, None, self.due(frames)
        if due > self.made:
            ready = self.doomed if due == self.made + 1 else {}
            keep = {name: ~goes for name, goes in ready.items()} or self._choose(ppo, policy, due)
            replacement = self._cut(ppo, keep)
            policy, self.made, self.doomed = replacement.policy, due, {}
            if due == self.config.cuts and (line := shortfall(self.budget, self.history[-1], TOLERANCES[0])):
                ppo.actor.group.say(line)
        waits = self.begin <= frames and self.made < self.config.cuts and not self.doomed
        if self.config.penalty == GROWING and waits:
            self.doomed = {name: ~kept for name, kept in self._choose(ppo, policy, self.made + 1).items()}
        return replacement

    def _choose(self, ppo: PPO, policy: PointNavPolicy, cut: int) -> Keep:
        """The units of `policy` to keep at a cut, scored on the latest rollout by PPO's own loss."""
        actor = ppo.actor
        rows = torch.arange(actor.env.num_envs, device=actor.device)
        generator, batches = torch.Generator().manual_seed(self.seed + cut), rows.tensor_split(ppo.config.minibatches)
        evidence = Evidence(generator, batches, lambda model, batch: ppo.loss(cast(PointNavPolicy, model), batch).total)
        with torch.compiler.set_stance("force_eager"):  # compiled code would not call the hooks that scores need
            own = SCORES[self.config.method](policy, evidence)
        scores = {name: actor.group.sum(score) / actor.group.size for name, score in own.items()}
        config = self.config
        budget = {name: share_after(cut, config.cuts, final, config.schedule) for name, final in self.budget.items()}
        for self.tolerance, looser in pairwise(TOLERANCES):
            try:
                return self._search(policy, scores, budget, self.tolerance)
            except BudgetUnmet as error:
                actor.group.say(f"cut {cut} of {config.cuts} may miss by {looser:.0%}: {error}")
        self.tolerance = TOLERANCES[-1]
        return self._search(policy, scores, budget, self.tolerance)

    def _search(self, policy: PointNavPolicy, scores: Scores, budget: Budget, tolerance: float) -> Keep:
        config = SearchConfig(minimum=self.config.minimum, tolerance=tolerance)
        return search(groups_of(policy), scores, self.shares, budget, config)

    def _cut(self, ppo: PPO, keep: Keep) -> Replacement:
        for name, kept in keep.items():
            left = self.kept[name].nonzero().flatten()
            self.kept[name] = torch.zeros_like(self.kept[name]).index_fill(0, left[kept], True)
        if self.early is None:
            small, optimiser = slim(ppo.policy, keep), slim_optimiser(ppo.optimiser, ppo.policy, keep)
        else:
            small, optimiser = rewound(self.kept, self.early).to(ppo.actor.device), None
        policy = cast(PointNavPolicy, small)
        shares = self.shares(widths(policy.spec.encoder))
        self.history.append({"frames": self.frames, **shares, "tolerance": self.tolerance})
        return Replacement(policy, optimiser, restart=self.config.rewind_lr)

    def scalars(self) -> dict[str, float]:
        """Shares of the dense network that are left."""
        latest = self.history[-1] if self.history else dict.fromkeys(MEASURES, 1.0)
        return {f"pruning/{name}": latest[name] for name in MEASURES}

    def to_json(self) -> dict[str, Any]:
        """What `pruning.json` holds: as `PruningResult.to_json`, with the cuts instead of the last scores."""
        left = {name: int(self.kept[name].sum()) * unit for name, unit in self.dense.unit_channels.items()}
        return {
            "method": self.config.method,
            "budget": self.budget,
            "reached": self.shares(left),
            "widths": {name: [before, left[name]] for name, before in widths(self.dense).items()},
            "keep": {name: kept.int().tolist() for name, kept in self.kept.items()},
            "cuts": self.history,
            "seed": self.seed,
            "initial_weights": self.initial_weights,
        }

    def state_dict(self) -> dict[str, Any]:
        """What was cut and what goes next."""
        names = "frames", "made", "kept", "doomed", "history", "tolerance", "initial_weights"
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        vars(self).update(state)


@torch.no_grad()
def fade(model: nn.Module, doomed: Mapping[str, Tensor], factor: float, example: Example | None = None) -> None:
    """Multiply the units that the next cut takes, {group name: bool [units]}, by `factor` in place.

    That is the scale and shift of their norms, since a norm divides by the scale of the filters before it; where
    there is none, the filters and biases. A unit that has faded to 0 is as good as masked. `example` is that of
    `groups_of`.
    """
    for group in groups_of(model, example):
        if group.name in doomed:
            each = torch.where(doomed[group.name], factor, 1.0)
            for layer in group.ends:
                for parameter in model.get_submodule(layer).parameters(recurse=False):
                    parameter.mul_(spread(each, parameter, 0).to(parameter))

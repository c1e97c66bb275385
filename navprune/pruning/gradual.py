"""Pruning while a network trains: cuts on a schedule, each one real, with the optimiser's state cut along.

At cut i of k the budget is, with the final share r of the dense network,

    cubic:  r + (1 - r) (1 - i / k)^3    most of it early, while there is plenty (Zhu & Gupta, ICLR workshop 2018)
    steps:  r^(i / k)                    every cut leaves the same share of what there is (Frankle & Carbin, ICLR 2019)

Until the last cut a penalty may prepare the next one: one of those in `penalties`, which let the network choose, or a
growing one on the units that are about to go (Wang et al., Neural Pruning via Growing Regularization, ICLR 2021).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from navprune.errors import UserError
from navprune.models.classifiers import Classifier
from navprune.models.policy import PointNavPolicy
from navprune.pruning.config import GROWING, MEASURES, Budget, PruningScheduleConfig, budget_of
from navprune.pruning.groups import Keep, spread, units
from navprune.pruning.losses import Evidence
from navprune.pruning.methods.base import Scores
from navprune.pruning.methods.scores import SCORES
from navprune.pruning.prune import weights_hash
from navprune.pruning.recover import rewound
from navprune.pruning.search import BudgetUnmet, search, shortfall
from navprune.pruning.slim import encoder_of
from navprune.pruning.structure import Structure, structure_of
from navprune.rl.callbacks import Callback, Replacement
from navprune.rl.learner import GradientLearner

TAYLOR = "taylor"
LOOSER = (0.03, 0.1, 1.0)
"""How far below its budget a cut may end where whole units do not allow the configured tolerance, the first that can
be met: a run that has come so far does not stop for that."""


def share_after(cut: int, cuts: int, final: float, schedule: str) -> float:
    """The budget at cut `cut` of `cuts`, 1 at cut 0 and `final` at the last; see the module's text."""
    done = cut / cuts
    return final**done if schedule == "steps" else final + (1 - final) * (1 - done) ** 3


class GradualPruning(Callback):
    """Cuts the network that learns on a schedule; what is left of it is an ordinary smaller network at any time."""

    name = "pruning"

    def __init__(
        self,
        config: PruningScheduleConfig,
        dense: PointNavPolicy | Classifier,
        *,
        frames: tuple[int, int],
        update: int,
        seed: int = 0,
        early: PointNavPolicy | Classifier | None = None,
    ) -> None:
        """`dense` is the network that the run begins with, to which the budget refers; `frames` are those at which
        its phase begins and ends, `update` those of one update; `early` is what weights are rewound to.

        Raises UserError without a budget, for one that cannot be met, and for what no cut while training can do.
        """
        self.method = config.method or TAYLOR
        if self.method not in SCORES:
            raise UserError(f"pruning.method is {self.method}; known are {', '.join(SCORES)}, while a network trains")
        if config.blocks:
            raise UserError("pruning.blocks is true; while a network trains, widths alone are cut: leave it out")
        self.config, self.seed, self.early = config, seed, early
        self.structure = structure_of(dense)
        """That of the network that the run begins with."""
        self.dense = encoder_of(dense.spec)
        self.budget = budget_of(config)
        self.begin, self.end = config.between(frames)
        self.interval = (self.end - self.begin) / config.cuts
        """Frames between two cuts."""
        self.initial_weights = weights_hash(dense)
        self.kept = {group.name: torch.ones(units(group), dtype=torch.bool) for group in self.structure.groups}
        """Which of the dense network's units are left, {group name: bool [units]}."""
        self.history: list[dict[str, float]] = []
        """The cuts so far, {"frames", "macs", "parameters", "tolerance"}: shares of the dense network, how far below
        the cut's budget the tightest was let end (relative)."""
        self.tolerance = config.tolerance
        """That of the cut that was chosen last."""
        self.doomed: dict[str, Tensor] = {}
        """The units of the present network that go at the next cut, {group name: bool [units]}."""
        self.frames, self.made = frames[0], 0
        if self.interval < update:
            between = int((self.end - self.begin) / update)
            remedy = f"pruning.begin and pruning.end; ask for {'fewer cuts' if between else 'more frames'}"
            raise UserError(f"pruning.cuts is {config.cuts}, but training makes {between} updates between {remedy}")
        alike = {name: torch.ones(len(kept)) for name, kept in self.kept.items()}
        self._search(self.structure, alike, self.budget, 1.0)
        if self.early is not None and self.early.spec != dense.spec:
            raise UserError("pruning.rewind is of another network; give an early checkpoint of the dense run")

    def due(self, frames: int) -> int:
        """How many cuts are to be made by then."""
        # Rounding must not put off the last cut, at which the run may end.
        return min(max(math.floor((frames - self.begin) / self.interval + 1e-6), 0), self.config.cuts)

    def attach(self, learner: GradientLearner) -> None:
        """Let the units that go next fade behind each step of the optimiser, where the penalty is a growing one."""
        structure = structure_of(learner.network)

        def step(*_: Any) -> None:
            if self.doomed and not learner.partial:
                fade(structure, self.doomed, self._faded(learner))

        if self.config.penalty == GROWING:
            learner.optimiser.register_step_post_hook(step)

    def _faded(self, learner: GradientLearner) -> float:
        """What one step leaves of a unit to be cut: exp(-strength) over the interval, the rate growing linearly."""
        ends = self.frames, self.frames + learner.frames_per_update
        # From 0 at the latest cut to 1 at the next.
        before, after = (min(max((end - self.begin) / self.interval - self.made, 0.0), 1.0) for end in ends)
        return math.exp(-self.config.weight * (after**2 - before**2) / learner.steps_per_update)

    def on_update(self, learner: GradientLearner, frames: int) -> Replacement | None:
        """Make the cut whose time has come, if any, and choose what goes next."""
        self.frames = frames
        network, replacement, due = learner.network, None, self.due(frames)
        if due > self.made:
            structure = structure_of(network)
            ready = self.doomed if due == self.made + 1 else {}
            keep = {name: ~goes for name, goes in ready.items()} or self._choose(learner, structure, due)
            replacement = self._cut(learner, structure, keep)
            network, self.made, self.doomed = replacement.network, due, {}
            if due == self.config.cuts and (line := shortfall(self.budget, self.history[-1], self.config.tolerance)):
                learner.trainee.group.say(line)
        waits = self.begin <= frames and self.made < self.config.cuts and not self.doomed
        if self.config.penalty == GROWING and waits:
            keep = self._choose(learner, structure_of(network), self.made + 1)
            self.doomed = {name: ~kept for name, kept in keep.items()}
        return replacement

    def _choose(self, learner: GradientLearner, structure: Structure, cut: int) -> Keep:
        """The units of the network that learns, or of the one that takes its place, to keep at a cut.

        They are scored on what was learnt from latest, by the learner's own loss."""
        group, generator = learner.trainee.group, torch.Generator().manual_seed(self.seed + cut)
        evidence = Evidence(generator, learner.recent(), learner.loss_of)
        with torch.compiler.set_stance("force_eager"):  # compiled code would not call the hooks that scores need
            own = SCORES[self.method](structure, evidence)
        scores = {name: group.sum(score) / group.size for name, score in own.items()}
        config = self.config
        budget = {name: share_after(cut, config.cuts, final, config.schedule) for name, final in self.budget.items()}
        tolerances = config.tolerance, *(looser for looser in LOOSER if looser > config.tolerance)
        for self.tolerance, looser in pairwise(tolerances):
            try:
                return self._search(structure, scores, budget, self.tolerance)
            except BudgetUnmet as error:
                group.say(f"cut {cut} of {config.cuts} may miss by {looser:.0%}: {error}")
        self.tolerance = tolerances[-1]
        return self._search(structure, scores, budget, self.tolerance)

    def _search(self, structure: Structure, scores: Scores, budget: Budget, tolerance: float) -> Keep:
        config = replace(self.config, tolerance=tolerance)
        return search(structure.groups, scores, self.structure.shares, budget, config, dense=self.structure.widths)

    def _cut(self, learner: GradientLearner, structure: Structure, keep: Keep) -> Replacement:
        for name, kept in keep.items():
            left = self.kept[name].nonzero().flatten()
            self.kept[name] = torch.zeros_like(self.kept[name]).index_fill(0, left[kept], True)
        if self.early is None:
            small, optimiser = structure.slim(keep), structure.slim_optimiser(learner.optimiser, keep)
        else:
            small, optimiser = rewound(self.kept, self.early).to(learner.trainee.device), None
        shares = self.structure.shares(self.structure.widths_of(self.kept))
        self.history.append({"frames": self.frames, **shares, "tolerance": self.tolerance})
        return Replacement(cast("PointNavPolicy | Classifier", small), optimiser, restart=self.config.rewind_lr)

    def scalars(self) -> dict[str, float]:
        """Shares of the dense network that are left."""
        latest = self.history[-1] if self.history else dict.fromkeys(MEASURES, 1.0)
        return {f"pruning/{name}": latest[name] for name in MEASURES}

    def to_json(self) -> dict[str, Any]:
        """What `pruning.json` holds: as `PruningResult.to_json`, with the cuts instead of the last scores."""
        left = self.structure.widths_of(self.kept)
        return {
            "method": self.method,
            "budget": self.budget,
            "reached": self.structure.shares(left),
            "widths": {name: [before, left[name]] for name, before in self.structure.widths.items()},
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
def fade(structure: Structure, doomed: Mapping[str, Tensor], factor: float) -> None:
    """Multiply the units that the next cut takes, {group name: bool [units]}, by `factor` in place.

    That is the scale and shift of their norms, since a norm divides by the scale of the filters before it; where
    there is none, the filters and biases. A unit that has faded to 0 is as good as masked.
    """
    for group in structure.channels:
        if group.name in doomed:
            each = torch.where(doomed[group.name], factor, 1.0)
            for layer in group.ends:
                for parameter in structure.model.get_submodule(layer).parameters(recurse=False):
                    parameter.mul_(spread(each, parameter, 0).to(parameter))

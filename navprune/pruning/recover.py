"""Recovery of what pruning cost: distillation from the dense teacher, and weights rewound to an early checkpoint.

A pruned agent is fine-tuned by PPO like any other. With a teacher the loss has two more terms,

    weight_policy * KL(teacher || student) + weight_features * mean squared difference of the visual features,

the first over the actions (Rusu et al., Policy Distillation, ICLR 2016), the second behind the layer that follows
the encoder (Romero et al., FitNets, ICLR 2015), whose width no cut changes. Of a classifier it is the first alone,
over its classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from navprune.errors import UserError
from navprune.models.classifiers import Classifier, ClassifierSpec
from navprune.models.policy import PointNavPolicy, PolicyOutput
from navprune.models.spec import EncoderSpec, PolicySpec
from navprune.pruning.structure import structure_of
from navprune.rl.callbacks import Callback
from navprune.rl.checkpoints import PRUNING, DamagedCheckpoint, load_network, read_any_spec
from navprune.rl.group import ENVIRONMENTS, Group
from navprune.rl.learner import GradientLearner
from navprune.rl.ppo import PPO


class Distillation(Callback):
    """Teaches PPO's policy what a frozen teacher answers to the same observations.

    The teacher remembers for itself: it goes through every rollout once, from its own recurrent state, so that on
    the student's path it answers as it would have along the way. Episodes that began before it came are left out.
    """

    name = "distillation"

    def __init__(self, teacher: PointNavPolicy, student: PolicySpec, *, policy: float, features: float) -> None:
        """`policy` and `features` are the weights of the two terms.

        Raises UserError where student and teacher cannot be compared.
        """
        theirs = teacher.spec
        if (student.visual_features, student.actions) != (theirs.visual_features, theirs.actions):
            raise UserError(
                f"the teacher has {theirs.visual_features} visual features and {theirs.actions} actions, the pruned "
                f"network {student.visual_features} and {student.actions}; give the network that it was pruned from"
            )
        if not (theirs.encoder.observations and student.encoder.observations):
            raise UserError("a blind network has no visual features to distil; give a teacher and a network that see")
        if not _reads_what_is_kept(theirs.encoder, student.encoder):
            its, own = (
                f"{each.encoder.family} of {', '.join(each.encoder.observations)}" for each in (theirs, student)
            )
            raise UserError(
                f"the teacher ({its}) cannot read images as they are kept for the pruned network ({own}); give the "
                "network that it was pruned from"
            )
        self.teacher = teacher.eval().requires_grad_(False)
        self.weights = torch.tensor([policy, features])
        self.state: Tensor | None = None
        """The teacher's recurrent state [N, layers, hidden] before the next rollout."""
        self.seen: Tensor | None = None
        """Whether the teacher has seen the running episode from its beginning, bool [N]."""
        self.sums = torch.zeros(3)
        self.answered: Tensor | None = None
        self.group = Group()

    def attach(self, learner: GradientLearner) -> None:
        """Listen to the student's features."""
        ppo = cast(PPO, learner)
        device, count, self.group = ppo.actor.device, ppo.actor.env.num_envs, ppo.actor.group
        self.teacher.to(device)
        self.weights = self.weights.to(device)
        if self.state is None or self.seen is None:
            self.state = self.teacher.initial_state(count)
            self.seen = torch.zeros(count, dtype=torch.bool, device=device)
        ppo.policy.net.visual_fc.register_forward_hook(self._listen)

    def _listen(self, _module: Any, _inputs: Any, output: Tensor) -> None:
        self.answered = output

    @torch.no_grad()
    def on_rollout(self, learner: GradientLearner) -> None:
        """Let the teacher answer the whole rollout, some environments at a time, and remember where it ends."""
        ppo = cast(PPO, learner)
        rollout = ppo.rollout
        assert self.state is not None and self.seen is not None
        logits, features, states = [], [], []
        for rows in torch.arange(len(self.state), device=self.state.device).tensor_split(ppo.config.minibatches):
            masks = rollout.masks[:, rows]
            seen = {name: value[:, rows] for name, value in rollout.observations.items()}
            with ppo.actor.autocast():
                flat = {name: seen[name].flatten(0, 1) for name in self.teacher.spec.encoder.observations}
                encoded = self.teacher.encode(flat).unflatten(0, masks.shape)
                output = self.teacher.sequence(seen, self.state[rows], rollout.previous[:, rows], masks, encoded)
            logits.append(output.logits.float())
            features.append(encoded.float())
            states.append(output.state)
        self.logits, self.features, self.state = torch.cat(logits, 1), torch.cat(features, 1), torch.cat(states)
        self.known = self.seen | (~rollout.masks).cumsum(0).bool()
        self.seen = self.known[-1]
        self.sums = torch.zeros(3)

    def loss(self, batch: Tensor, output: PolicyOutput) -> Tensor:
        """Both terms, weighted, this worker's part: means over the steps [T, B] whose episode the teacher saw begin."""
        assert self.answered is not None
        known = self.known[:, batch]
        answered, self.answered = self.answered.unflatten(0, known.shape).float(), None
        policy = policy_divergence(self.logits[:, batch], output.logits.float())
        features = (answered - self.features[:, batch]).square().mean(-1)
        count = self.group.sum(known.sum()).clamp_min(1)
        terms = torch.stack([policy[known].sum(), features[known].sum()]) / count
        self.sums += torch.cat([terms.detach().cpu(), torch.ones(1)])
        return (self.weights * terms).sum()

    def scalars(self) -> dict[str, float]:
        """The terms, unweighted, over the latest update."""
        policy, features = (self.group.sum(self.sums[:2].clone()) / self.sums[2].clamp_min(1)).tolist()
        return {"distillation/policy": policy, "distillation/features": features}

    def state_dict(self) -> dict[str, Any]:
        """What the teacher remembers."""
        return {ENVIRONMENTS: {"state": self.state, "seen": self.seen}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        if (own := state[ENVIRONMENTS])["state"] is not None:
            self.state, self.seen = (own[name].to(self.weights.device) for name in ("state", "seen"))


class LogitDistillation(Callback):
    """Teaches a classifier what a frozen teacher answers to the same views (Hinton et al., 2015, at temperature 1)."""

    name = "distillation"

    def __init__(
        self, teacher: Classifier, student: ClassifierSpec, *, weight: float, facts: Mapping[str, Any] | None = None
    ) -> None:
        """`weight` is that of the divergence, `facts` are what the teacher's checkpoint tells of its images.

        Raises UserError where student and teacher see or know other things.
        """
        check_teacher(teacher.spec, student)
        self.teacher, self.weight, self.facts = teacher.eval().requires_grad_(False), weight, facts or {}
        self.group = Group()
        self.sums = torch.zeros(2)
        """The divergences of this update's steps, and how many these are."""

    def attach(self, learner: GradientLearner) -> None:
        """Be where the student is; raises UserError where that learns other images than the teacher learnt."""
        for name, own in learner.trainee.facts().items():
            theirs = self.facts.get(name, own)
            alike = theirs == own if name == "classes" else np.allclose(theirs, own, rtol=1e-5)
            if not alike:
                fault = f"the teacher learnt images whose {name} {'are' if name == 'classes' else 'is'} other than here"
                raise UserError(f"{fault}; give a teacher of the same data, parted alike")
        self.group, self.autocast = learner.trainee.group, learner.trainee.autocast
        self.teacher.to(learner.trainee.device)
        self.sums = self.sums.to(learner.trainee.device)

    def loss(self, batch: tuple[Tensor, Tensor], output: Tensor) -> Tensor:
        """The divergence from the teacher's classes, weighted: this worker's part of the mean over the batch."""
        with torch.no_grad(), self.autocast():
            wanted = self.teacher(batch[0]).float()
        divergence = policy_divergence(wanted, output).mean() / self.group.size
        self.sums += torch.stack([divergence.detach(), torch.ones_like(divergence)])
        return self.weight * divergence

    def scalars(self) -> dict[str, float]:
        """The divergence, unweighted, over the latest update."""
        total, steps = self.sums.tolist()
        self.sums = torch.zeros_like(self.sums)
        return {"distillation/classes": self.group.sum(torch.tensor([total])).item() / max(steps, 1)}


def check_teacher(teacher: ClassifierSpec, student: ClassifierSpec) -> None:
    """Raise UserError where one classifier cannot teach another, for they see or know other things."""
    if (teacher.input, teacher.classes) != (student.input, student.classes):
        told = (f"{spec.classes} classes of images {list(spec.input)}" for spec in (teacher, student))
        raise UserError("the teacher knows {} and the network {}; give a teacher of the same data".format(*told))


def policy_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) [...] of the distributions given by logits [..., A], in nats."""
    wanted, found = teacher.log_softmax(-1), student.log_softmax(-1)
    return F.kl_div(found, wanted, reduction="none", log_target=True).sum(-1)


def rewound(keep: Mapping[str, Tensor], early: PointNavPolicy | Classifier) -> PointNavPolicy | Classifier:
    """The weights that stay, as they were in an early checkpoint of the dense run (Frankle et al., ICML 2020).

    `keep` is {group name: bool [units]} of the dense network. Raises UserError where it does not fit `early`.
    """
    return cast(PointNavPolicy | Classifier, structure_of(early).slim(keep))


def rewound_checkpoint(pruned: Path, early: Path | str) -> PointNavPolicy | Classifier:
    """The pruned network of a checkpoint folder with its weights as they were in `early`, the dense run's.

    Raises UserError where the folder has no pruning.json, or that is of another network.
    """
    keep = kept_units(pruned)
    small = rewound(keep, load_network(early))
    if small.spec != read_any_spec(pruned):
        raise UserError(f"{early} is not of the network that {pruned} was pruned from; give one of its checkpoints")
    return small


def kept_units(pruned: Path) -> dict[str, Tensor]:
    """The units that stayed, {group name: bool [units]} of the dense network, from a checkpoint's pruning.json."""
    try:
        keep = json.loads((pruned / PRUNING).read_text())["keep"]
        return {name: torch.tensor(flags, dtype=torch.bool) for name, flags in keep.items()}
    except FileNotFoundError:
        raise UserError(f"{pruned} has no {PRUNING}; weights are rewound in what `navprune prune` wrote") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedCheckpoint(f"{pruned / PRUNING} is damaged ({error}); prune again") from error


def _reads_what_is_kept(teacher: EncoderSpec, student: EncoderSpec) -> bool:
    """Whether a teacher can read a rollout, in which the student's images are kept as its `prepare` makes them.

    A teacher takes all its images as they are seen, or all as its own `prepare` makes them.
    """
    seen = teacher.input[1:]
    kept = {student.pooled if name in student.observations else seen for name in teacher.observations}
    return kept in ({seen}, {teacher.pooled})

"""Acting in a vector environment and recording what happened, [T, N] at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from navprune.errors import UserError
from navprune.rl.group import ENVIRONMENTS
from navprune.rl.trainee import NotFinite, Trainee

if TYPE_CHECKING:
    from navprune.models.policy import PointNavPolicy, PolicyOutput
    from navprune.tasks.engine import Step, VectorEnv


class Actor(Trainee):
    """N agents in mid-run: what they see, what they remember, and what they did last.

    `observations` are what the policy reads of what is seen; others' stand there as they are. `state` is the recurrent
    state [N, layers, hidden] before the next step, `previous` the last actions [N], `masks` [N] is False where an
    episode begins. Nothing here records gradients.
    """

    network: PointNavPolicy

    def __init__(self, env: VectorEnv, policy: PointNavPolicy, **passed: Any) -> None:
        """`env` holds the environments of one worker; what else is `passed` is a trainee's."""
        super().__init__(policy, **passed)
        self.env, self.environments = env, env.num_envs * self.group.size
        self.observations: dict[str, Tensor] = {}
        self.state = policy.initial_state(env.num_envs).to(self.device)
        self.previous = torch.zeros(env.num_envs, dtype=torch.int64, device=self.device)
        self.masks = torch.zeros(env.num_envs, dtype=torch.bool, device=self.device)
        self.steps = 0

    @property
    def policy(self) -> PointNavPolicy:
        """The network that acts."""
        return self.network

    def reset(self) -> None:
        """Begin new episodes everywhere."""
        self._see(self.env.reset())
        self.state = torch.zeros_like(self.state)
        self.previous = torch.zeros_like(self.previous)
        self.masks = torch.zeros_like(self.masks)

    def draw(self) -> Tensor:
        """Return a uniform number in [0, 1) for each environment, float64 [N] on the device."""
        drawn = torch.rand(self.environments, generator=self.generator, dtype=torch.float64)
        return drawn[self.rows].to(self.device, non_blocking=True)

    def minibatches(self, count: int) -> Iterator[Tensor]:
        """Split the environments at random into `count` groups, as even as can be; yields indices of this worker's.

        Of `count` neighbours each goes to another group, so that all workers have as many in each.
        """
        neighbours = -(-self.environments // count)
        keys = torch.rand(neighbours, count, generator=self.generator)
        keys.view(-1)[self.environments :] = 2  # what is not there comes last, so that no group lacks two
        place = keys.argsort(dim=1).argsort(dim=1).flatten()[: self.environments]
        for group in range(count):
            yield (place[self.rows] == group).nonzero().squeeze(-1).to(self.device)

    @torch.no_grad()
    def forward(self) -> PolicyOutput:
        """Run the policy on the present observations of all agents."""
        with self.timers("policy"), self.autocast():
            return self.policy(self.observations, self.state, self.previous, self.masks)

    def sample(self, logits: Tensor) -> Tensor:
        """Draw an action for each row of `logits` [N, A]; returns int64 [N], below 0 where they are not finite."""
        with self.timers("policy"):
            return torch.where(logits.isfinite().all(-1), choose(logits, self.draw()), -1)

    def step(self, actions: Tensor, state: Tensor) -> Step:
        """Carry out `actions` [N]; `state` [N, layers, hidden] is what the agents remember from now on."""
        with self.timers("policy"):
            chosen = actions.cpu()  # the one point of a step at which a GPU is waited for
        if (chosen < 0).any():
            seen = [name for name, value in self.observations.items() if not value.isfinite().all()]
            what = f"the observation {seen[0]}" if seen else "the policy's answer"
            raise NotFinite(f"{what} is not finite; {'mend what makes it' if seen else 'use other weights'}")
        with self.timers("environment"):
            step = self.env.step(chosen)
            if not step.reward.isfinite().all():
                raise NotFinite(f"the reward {step.reward[~step.reward.isfinite()][0]:g} is not finite; mend the task")
            self._see(step.observations)
        self.state, self.previous = state, actions
        self.masks = ~(step.terminated | step.truncated).to(self.device, non_blocking=True)
        self.steps += 1
        return step

    def count(self, env: int, measures: Mapping[str, float]) -> None:
        """Note the measures of an episode that ended in an environment of this worker."""
        self.note(self.steps, self.rows.start + env, measures)

    @torch.no_grad()
    def final_values(self, step: Step) -> Tensor:
        """Return the values [K] of the last observations of the K episodes that `step` cut off, in order."""
        rows = step.truncated.nonzero().squeeze(-1).to(self.device)
        assert step.final_observations is not None
        seen = self._read(step.final_observations)
        alive = torch.ones(len(rows), dtype=torch.bool, device=self.device)
        with self.timers("policy"), self.autocast():
            return self.policy(seen, self.state[rows], self.previous[rows], alive).values.float()

    def _see(self, observations: dict[str, Tensor]) -> None:
        self.observations = self._read(observations)

    def _read(self, observations: dict[str, Tensor]) -> dict[str, Tensor]:
        seen = {name: value.to(self.device, non_blocking=True) for name, value in observations.items()}
        return seen | self.policy.prepare(seen)

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on from here bit for bit."""
        own = {"env": self.env.state_dict()}
        own |= {name: getattr(self, name).cpu() for name in ("state", "previous", "masks")}
        return {ENVIRONMENTS: own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what the `state_dict` of all workers joined; UserError for another number of environments."""
        count = len(state[ENVIRONMENTS]["masks"])
        if count != self.environments:
            raise UserError(
                f"the checkpoint was written with {count} environments and this run has {self.environments}; "
                "use the same number, or another run folder"
            )
        own = self.part_of(state)[ENVIRONMENTS]
        self._see(self.env.load_state_dict(own["env"]))
        for name in ("state", "previous", "masks"):
            setattr(self, name, own[name].to(self.device))


def choose(logits: Tensor, draws: Tensor | None) -> Tensor:
    """Turn `logits` [R, A] into actions int64 [R]: the largest, or by inversion of the distribution function.

    With `draws` float64 [R] in [0, 1), action a is taken when the draw falls into the a-th of the intervals
    that softmax(logits) cuts [0, 1) into.
    """
    if draws is None:
        return logits.argmax(dim=-1)
    below = logits.double().softmax(dim=-1).cumsum(dim=-1)[:, :-1]
    return (draws[:, None] >= below).sum(dim=-1)


@dataclass
class Rollout:
    """T steps of N agents; every tensor but `state` is [T, N, ...] and is overwritten by the next rollout.

    `state` [N, layers, hidden] is the recurrent state before the first step. `next_values` are the values of
    what followed each step: of the last observation where the time limit struck, anything where the episode
    terminated.
    """

    observations: dict[str, Tensor]
    state: Tensor
    actions: Tensor
    previous: Tensor
    masks: Tensor
    log_probs: Tensor
    values: Tensor
    next_values: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor

    @classmethod
    def like(cls, actor: Actor, steps: int) -> Rollout:
        """Allocate room for `steps` steps of the actor's agents on its device."""

        def room(dtype: torch.dtype) -> Tensor:
            return torch.zeros(steps, actor.env.num_envs, dtype=dtype, device=actor.device)

        return cls(
            observations={name: value.new_zeros(steps, *value.shape) for name, value in actor.observations.items()},
            state=torch.zeros_like(actor.state),
            actions=room(torch.int64),
            previous=room(torch.int64),
            masks=room(torch.bool),
            log_probs=room(torch.float32),
            values=room(torch.float32),
            next_values=room(torch.float32),
            rewards=room(torch.float32),
            terminated=room(torch.bool),
            truncated=room(torch.bool),
        )

    def first(self, steps: int) -> Rollout:
        """Return the first `steps` steps, without a copy."""
        names = [field.name for field in fields(self) if field.name not in ("observations", "state")]
        seen = {name: value[:steps] for name, value in self.observations.items()}
        return replace(self, observations=seen, **{name: getattr(self, name)[:steps] for name in names})


@torch.no_grad()
def collect(actor: Actor, rollout: Rollout, enough: Callable[[int], bool] = lambda steps: False) -> Rollout:
    """Let the agents act by their policy and fill `rollout`, until `enough` of its steps are taken; returns these."""
    actor.policy.eval()  # running statistics are learnt from the rollout, not while it is collected
    rollout.state.copy_(actor.state)
    cut_off: list[tuple[int, Tensor, Tensor]] = []
    steps = 0
    while steps < len(rollout.rewards) and not enough(steps):
        t, steps = steps, steps + 1
        for name, value in actor.observations.items():
            rollout.observations[name][t] = value
        rollout.previous[t], rollout.masks[t] = actor.previous, actor.masks
        output = actor.forward()
        actions = actor.sample(output.logits)
        step = actor.step(actions, output.state)
        rollout.actions[t], rollout.values[t] = actions, output.values
        rollout.log_probs[t] = log_probability(output.logits, actions)
        rollout.rewards[t], rollout.terminated[t], rollout.truncated[t] = (step.reward, step.terminated, step.truncated)
        if step.truncated.any():
            cut_off.append((t, step.truncated, actor.final_values(step)))
        for finished in step.finished:
            actor.count(finished.env, finished.measures)
    taken = rollout.first(steps)
    taken.next_values[:-1] = taken.values[1:]
    taken.next_values[-1] = actor.forward().values
    for t, truncated, values in cut_off:
        taken.next_values[t, truncated.to(values.device)] = values
    return taken


def log_probability(logits: Tensor, actions: Tensor) -> Tensor:
    """Return log p(action) [...] under `logits` [..., A], in float32."""
    return logits.float().log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)

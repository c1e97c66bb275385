"""Acting in a vector environment and recording what happened, [T, N] at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from navprune.errors import UserError
from navprune.rl.monitor import EpisodeWindow, Timers

if TYPE_CHECKING:
    from navprune.models.policy import PointNavPolicy, PolicyOutput
    from navprune.tasks.engine import Step, VectorEnv


class NotFinite(UserError):
    """A number that training needs is infinite or none at all."""


class Actor:
    """N agents in mid-run: what they see, what they remember, and what they did last.

    `state` is the recurrent state [N, layers, hidden] before the next step, `previous` the last actions [N],
    `masks` [N] is False where an episode begins. Nothing here records gradients.
    """

    def __init__(
        self,
        env: VectorEnv,
        policy: PointNavPolicy,
        *,
        device: torch.device,
        generator: torch.Generator,
        window: EpisodeWindow,
        timers: Timers,
        bf16: bool = False,
    ) -> None:
        self.env, self.policy, self.device = env, policy, device
        self.generator, self.window, self.timers, self.bf16 = generator, window, timers, bf16
        self.observations: dict[str, Tensor] = {}
        self.state = policy.initial_state(env.num_envs).to(device)
        self.previous = torch.zeros(env.num_envs, dtype=torch.int64, device=device)
        self.masks = torch.zeros(env.num_envs, dtype=torch.bool, device=device)

    def reset(self) -> None:
        """Begin new episodes everywhere."""
        self._see(self.env.reset())
        self.state = torch.zeros_like(self.state)
        self.previous = torch.zeros_like(self.previous)
        self.masks = torch.zeros_like(self.masks)

    def autocast(self) -> AbstractContextManager:
        """Return the context in which the network runs: bfloat16 where asked for."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @torch.no_grad()
    def forward(self) -> PolicyOutput:
        """Run the policy on the present observations of all agents."""
        with self.timers("policy"), self.autocast():
            return self.policy(self.observations, self.state, self.previous, self.masks)

    def sample(self, logits: Tensor) -> Tensor:
        """Draw an action for each row of `logits` [K, A]; returns int64 [K]."""
        with self.timers("policy"):
            # On the CPU whatever the device, so that one generator serves and its state is easily kept.
            probabilities = logits.float().softmax(-1).cpu()
            if not probabilities.isfinite().all():
                seen = [name for name, value in self.observations.items() if not value.isfinite().all()]
                what = f"the observation {seen[0]}" if seen else "the policy's answer"
                raise NotFinite(f"{what} is not finite; {'mend what makes it' if seen else 'use other weights'}")
            drawn = torch.multinomial(probabilities, 1, generator=self.generator)
            return drawn.squeeze(-1).to(self.device)

    def step(self, actions: Tensor, state: Tensor) -> Step:
        """Carry out `actions` [N]; `state` [N, layers, hidden] is what the agents remember from now on."""
        with self.timers("environment"):
            step = self.env.step(actions.cpu())
            if not step.reward.isfinite().all():
                raise NotFinite(f"the reward {step.reward[~step.reward.isfinite()][0]:g} is not finite; mend the task")
            self._see(step.observations)
        self.state, self.previous = state, actions
        self.masks = ~(step.terminated | step.truncated).to(self.device)
        return step

    @torch.no_grad()
    def final_values(self, step: Step) -> Tensor:
        """Return the values [K] of the last observations of the K episodes that `step` cut off, in order."""
        rows = step.truncated.nonzero().squeeze(-1).to(self.device)
        assert step.final_observations is not None
        seen = {name: value.to(self.device) for name, value in step.final_observations.items()}
        alive = torch.ones(len(rows), dtype=torch.bool, device=self.device)
        with self.timers("policy"), self.autocast():
            return self.policy(seen, self.state[rows], self.previous[rows], alive).values.float()

    def _see(self, observations: dict[str, Tensor]) -> None:
        self.observations = {name: value.to(self.device) for name, value in observations.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on from here bit for bit."""
        return {
            "env": self.env.state_dict(),
            "state": self.state.cpu(),
            "previous": self.previous.cpu(),
            "masks": self.masks.cpu(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned; raises UserError for another number of environments."""
        if len(state["masks"]) != self.env.num_envs:
            raise UserError(
                f"the checkpoint was written with {len(state['masks'])} environments and this run has "
                f"{self.env.num_envs}; use the same number, or another run folder"
            )
        self._see(self.env.load_state_dict(state["env"]))
        self.state = state["state"].to(self.device)
        self.previous = state["previous"].to(self.device)
        self.masks = state["masks"].to(self.device)


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

    def minibatches(self, count: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Split the agents at random into `count` groups of whole sequences; yields their indices."""
        order = torch.randperm(self.masks.shape[1], generator=generator)
        yield from order.to(self.masks.device).tensor_split(count)


@torch.no_grad()
def collect(actor: Actor, rollout: Rollout) -> None:
    """Let the agents act by their policy and fill `rollout`; adds ended episodes to the actor's window."""
    actor.policy.eval()  # running statistics are learnt from the rollout, not while it is collected
    rollout.state.copy_(actor.state)
    cut_off: list[tuple[int, Tensor, Tensor]] = []
    for t in range(len(rollout.rewards)):
        for name, value in actor.observations.items():
            rollout.observations[name][t] = value
        rollout.previous[t], rollout.masks[t] = actor.previous, actor.masks
        output = actor.forward()
        actions = actor.sample(output.logits)
        rollout.actions[t] = actions
        rollout.log_probs[t] = log_probability(output.logits, actions)
        rollout.values[t] = output.values
        step = actor.step(actions, output.state)
        rollout.rewards[t], rollout.terminated[t], rollout.truncated[t] = (step.reward, step.terminated, step.truncated)
        if step.truncated.any():
            cut_off.append((t, step.truncated, actor.final_values(step)))
        for finished in step.finished:
            actor.window.add(finished.measures)
    rollout.next_values[:-1] = rollout.values[1:]
    rollout.next_values[-1] = actor.forward().values
    for t, truncated, values in cut_off:
        rollout.next_values[t, truncated.to(values.device)] = values


def log_probability(logits: Tensor, actions: Tensor) -> Tensor:
    """Return log p(action) [...] under `logits` [..., A], in float32."""
    return logits.float().log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)

"""Proximal policy optimisation (Schulman et al. 2017) with a recurrent policy, as Habitat trains PointNav."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from navprune.checks import TINY, bounded, check_fields
from navprune.errors import UserError
from navprune.rl.callbacks import Callback
from navprune.rl.learner import GradientLearner, gradient_step
from navprune.rl.rollouts import Actor, Rollout, collect, log_probability

if TYPE_CHECKING:
    from navprune.models.policy import PointNavPolicy, PolicyOutput


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """How PPO learns; the defaults are habitat-baselines' for a single machine."""

    steps: int = bounded(128, 1)
    """Environment steps of each agent between two updates; 1 or more."""
    epochs: int = bounded(4, 1)
    """Passes over each rollout; 1 or more."""
    minibatches: int = bounded(2, 1)
    """Groups of environments that a pass is split into; from 1 to the number of environments."""
    lr: float = bounded(2.5e-4, TINY, 1)
    """Adam's learning rate; above 0."""
    eps: float = bounded(1e-5, TINY, 1)
    """Adam's epsilon; above 0."""
    clip: float = bounded(0.2, TINY)
    """How far the ratio of probabilities may move from 1, and the value from its old estimate; above 0."""
    gamma: float = bounded(0.99, 0, 1)
    """Discount of a step; from 0 to 1."""
    gae_lambda: float = bounded(0.95, 0, 1)
    """Lambda of the generalised advantage: 0 trusts the critic, 1 the returns; from 0 to 1."""
    entropy_coefficient: float = bounded(0.01, 0)
    """Weight of the entropy bonus; 0 or more."""
    value_coefficient: float = bounded(0.5, 0)
    """Weight of the value loss; 0 or more."""
    clip_values: bool = True
    """Whether the value loss is clipped as the policy's."""
    max_grad_norm: float = bounded(0.5, TINY)
    """Gradients are scaled down to this norm; above 0."""
    linear_lr: bool = False
    """Whether the learning rate falls linearly to 0 over the run."""
    linear_clip: bool = False
    """Whether `clip` falls linearly to 0 over the run."""
    bootstrap_time_limits: bool = True
    """Whether the time limit cuts an episode off (its last value counts); in Habitat it ends it."""
    normalise_advantages: bool = False
    """Whether the advantages of a rollout are brought to mean 0 and deviation 1."""
    critic_updates: int = bounded(0, 0)
    """First updates that train the critic's own layer alone, so that a policy which is good already
    is not spoilt by a critic that is not; 0 or more."""
    preempt: float = bounded(0.0, 0, 1)
    """Share of the workers after which the others stop collecting, a quarter of a rollout at least (DD-PPO: 0.6,
    Wijmans et al. 2020), so that no run can be repeated exactly; 0 lets all of them end; from 0 to 1."""

    def __post_init__(self) -> None:
        check_fields("ppo", self)


def advantages(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Return the generalised advantage of every step (Schulman et al. 2016, eq. 16).

    A_t = delta_t + gamma lambda A_{t+1}, delta_t = r_t + gamma V(s_{t+1}) - V(s_t). V(s_{t+1}) counts as 0
    where the episode terminated; the sum stops where it terminated or was cut off.

    Shapes: all [T, N]; `next_values[t]` is the value of the state that step t led to within the same episode
    (for a truncated one, of its last observation). Returns float32 [T, N]. Raises ValueError where shapes
    differ.
    """
    shapes = [tuple(x.shape) for x in (rewards, values, next_values, terminated, truncated)]
    if len(set(shapes)) > 1:
        raise ValueError(f"rewards, values, next_values, terminated and truncated differ in shape: {shapes}")
    deltas = rewards + gamma * next_values * ~terminated - values
    decay = gamma * gae_lambda * (~(terminated | truncated)).to(deltas.dtype)
    result = torch.empty_like(deltas)
    carried = torch.zeros_like(deltas[0])
    for t in reversed(range(len(deltas))):
        carried = deltas[t] + decay[t] * carried
        result[t] = carried
    return result


def policy_loss(log_probs: Tensor, old_log_probs: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Return the clipped surrogate loss, a scalar (Schulman et al. 2017, eq. 7); inputs of one shape."""
    ratio = (log_probs - old_log_probs).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """Return half the mean squared error of the values, a scalar; inputs of one shape.

    With `clip`, the larger of the errors with and without limiting the value's move from `old_values` to
    `clip`.
    """
    error = (values - returns).square()
    if clip is not None:
        limited = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (limited - returns).square())
    return 0.5 * error.mean()


def entropy(logits: Tensor) -> Tensor:
    """Return the mean entropy in nats, a scalar, of the distributions given by `logits` [..., A]."""
    log_probs = logits.float().log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1).mean()


class Loss(NamedTuple):
    """PPO's loss of a mini-batch, a scalar; its parts [3]: value, action, entropy; and the policy's answer."""

    total: Tensor
    parts: Tensor
    output: PolicyOutput


class PPO(GradientLearner):
    """Collects rollouts with the actor's policy and improves it."""

    name = "ppo"

    def __init__(self, actor: Actor, config: PPOConfig, callbacks: Sequence[Callback] = ()) -> None:
        workers, parts = actor.group.size, config.minibatches * actor.group.size
        title = f"{config.minibatches} mini-batches cannot be made of {actor.environments} environments"
        if workers == 1 and actor.environments < parts:
            raise UserError(f"{title}; ask for as many environments or fewer mini-batches")
        if workers > 1 and actor.environments % parts:
            raise UserError(f"{title} by {workers} workers; ask for {parts} or more, a multiple of {parts}")
        self.actor, self.config = actor, config
        self.room = self.rollout = Rollout.like(actor, config.steps)
        self.advantage = self.returns = torch.zeros_like(self.rollout.values)
        self.share = 1 / actor.group.size
        """Of the frames of all workers that this one collected."""
        self.clip = config.clip
        super().__init__(actor, callbacks)

    def new_optimiser(self, network: nn.Module) -> torch.optim.Optimizer:
        """Adam, as configured."""
        return torch.optim.Adam(network.parameters(), lr=self.config.lr, eps=self.config.eps, fused=True)

    @property
    def policy(self) -> PointNavPolicy:
        """The network that acts and learns."""
        return self.actor.policy

    @property
    def frames_per_update(self) -> int:
        """Environment steps of all workers that one update takes in at most."""
        return self.config.steps * self.actor.environments

    @property
    def steps_per_update(self) -> int:
        """Mini-batches of all passes over a rollout."""
        return self.config.epochs * self.config.minibatches

    @property
    def partial(self) -> bool:
        """Whether the critic's own layer alone learns."""
        return self.updates < self.config.critic_updates

    def loss_of(self, network: nn.Module, batch: Tensor) -> Tensor:
        """The loss of a policy on the collected rollout's environments `batch`, a scalar."""
        return self.loss(cast("PointNavPolicy", network), batch).total

    def recent(self) -> Iterable[Tensor]:
        """This worker's environments, in as many parts as there are mini-batches."""
        return torch.arange(self.actor.env.num_envs, device=self.actor.device).tensor_split(self.config.minibatches)

    def learn(self, progress: float) -> tuple[int, dict[str, float]]:
        """Collect a rollout and learn from it; schedules are at `progress` in [0, 1]."""
        config = self.config
        lr = config.lr * (1 - progress) if config.linear_lr else config.lr
        self.set_rate(lr)
        gained = self.collect()
        with self.actor.timers("learn"):
            self.clip = config.clip * (1 - progress) if config.linear_clip else config.clip
            with only_critic(self.policy) if self.partial else nullcontext():
                losses = self._improve(critic_only=self.partial)
        return gained, {**losses, "learning_rate": lr}

    def collect(self) -> int:
        """Act for one rollout, and work out advantages and returns, which `loss` needs; returns all workers' frames."""
        config, actor = self.config, self.actor
        seen = self.rollout = collect(actor, self.room, self._enough)
        ended = seen.terminated if config.bootstrap_time_limits else seen.terminated | seen.truncated
        steps = (seen.rewards, seen.values, seen.next_values, ended, seen.truncated)
        self.advantage = advantages(*steps, gamma=config.gamma, gae_lambda=config.gae_lambda)
        self.returns = self.advantage + seen.values
        if self.preempts:
            actor.group.count(f"done {self.updates}")
        moments = torch.stack([torch.ones_like(self.advantage), self.advantage, self.advantage**2]).double().sum((1, 2))
        count, total, squares = actor.group.sum(moments)
        if config.normalise_advantages:
            mean = total / count
            deviation = ((squares - count * mean**2) / (count - 1).clamp_min(1)).clamp_min(0).sqrt()
            self.advantage = (self.advantage - mean.float()) / (deviation.float() + 1e-5)
        frames = round(count.item())
        self.share = self.advantage.numel() / frames
        return frames

    @property
    def preempts(self) -> bool:
        """Whether some workers end the rollouts of others."""
        return self.config.preempt > 0 and self.actor.group.size > 1

    def _enough(self, steps: int) -> bool:
        """Whether so many workers are done that this one, `steps` into its rollout, need not go on."""
        if not self.preempts or 4 * steps < self.config.steps:
            return False
        return self.actor.group.count(f"done {self.updates}", add=0) >= self.config.preempt * self.actor.group.size

    def _improve(self, *, critic_only: bool) -> dict[str, float]:
        config, actor = self.config, self.actor
        self.policy.train()
        for callback in self.callbacks:
            callback.on_rollout(self)
        sums = torch.zeros(3, device=actor.device)
        for _ in range(config.epochs):
            for rows in actor.minibatches(config.minibatches):
                loss = self.loss(self.policy, rows, critic_only=critic_only)
                total = self.share * loss.total
                if not critic_only:
                    for callback in self.callbacks:
                        total = total + callback.loss(rows, loss.output)
                parts = self.share * loss.parts.detach()
                sums += gradient_step(self.policy, self.optimiser, total, config.max_grad_norm, actor.group, parts)
        value, action, spread = (sums / (config.epochs * config.minibatches)).tolist()
        return {"value_loss": value, "action_loss": action, "dist_entropy": spread}

    def loss(self, policy: PointNavPolicy, rows: Tensor, *, critic_only: bool = False) -> Loss:
        """Return the loss of `policy` on the collected rollout's environments `rows`, indices [K] of this worker's."""
        config, rollout = self.config, self.rollout
        with self.actor.autocast():
            output = policy.sequence(
                {name: value[:, rows] for name, value in rollout.observations.items()},
                rollout.state[rows],
                rollout.previous[:, rows],
                rollout.masks[:, rows],
            )
        log_probs = log_probability(output.logits, rollout.actions[:, rows])
        action = policy_loss(log_probs, rollout.log_probs[:, rows], self.advantage[:, rows], self.clip)
        value = value_loss(
            output.values.float(),
            rollout.values[:, rows],
            self.returns[:, rows],
            self.clip if config.clip_values and not critic_only else None,
        )
        spread = entropy(output.logits)
        total = config.value_coefficient * value
        if not critic_only:
            total = total + action - config.entropy_coefficient * spread
        return Loss(total, torch.stack([value, action, spread]), output)


@contextmanager
def only_critic(policy: nn.Module) -> Iterator[None]:
    """Within the block only the parameters named `critic...` record gradients; all others stand still."""
    frozen = [p for name, p in policy.named_parameters() if p.requires_grad and not name.startswith("critic")]
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)

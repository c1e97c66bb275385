"""Expert warm start: imitation of shortest-path actions with dataset aggregation (DAgger, Ross et al. 2011).

Each update collects one round of `steps` x N frames, labels every frame with the expert's action, adds the
round to a bounded buffer and takes gradient steps on sequences drawn from all of it. In an episode the actions are
at first the expert's, with probability beta, or the policy's, so that the agent also learns what to do where its
own mistakes lead it. Where the policy makes no progress, the expert acts from then on; and while the expert acts,
the policy takes a step now and then, so that paths are left and found again.
"""

from __future__ import annotations

import shutil
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from navprune.checks import TINY, bounded, check_fields
from navprune.errors import UserError
from navprune.files import write_file
from navprune.rl.checkpoints import load_tensors
from navprune.rl.muon import Muon
from navprune.rl.ppo import gradient_step
from navprune.rl.rollouts import Actor
from navprune.tasks import STOP

if TYPE_CHECKING:
    from navprune.models.policy import PointNavPolicy
    from navprune.tasks.engine import Finished


@dataclass(frozen=True, kw_only=True)
class WarmStartConfig:
    """How the expert is imitated before PPO begins."""

    frames: int = bounded(100_000, 1)
    """Environment steps of this phase; they count towards the run's total; 1 or more."""
    steps: int = 64
    """Environment steps of each agent between two updates; a multiple of `sequence`."""
    sequence: int = bounded(32, 1)
    """Steps of a training sequence, through which gradients flow; 1 or more."""
    batch: int = bounded(8, 1)
    """Sequences in a gradient step; 1 or more."""
    epochs: float = bounded(2.0, TINY)
    """How often a frame is trained on, on average; above 0."""
    capacity: int = 65_536
    """Frames in the buffer, the oldest leave first; images take 2 bytes a value; at least `steps` x N."""
    lr: float = bounded(1e-3, TINY, 1)
    """Learning rate at the beginning, falling linearly to 0; above 0. Matrices learn at ten times as much, by Muon."""
    max_grad_norm: float = bounded(1.0, TINY)
    """Gradients are scaled down to this norm; above 0."""
    beta_final: float = bounded(0.3, 0, 1)
    """Probability that an episode begins with the expert at the end of the phase, falling linearly from 1;
    from 0 to 1."""
    patience: int = bounded(15, 1)
    """Steps without getting nearer to the goal after which the policy hands over to the expert; 1 or more.
    Without it a policy that hesitates fills the buffer with the places where it is stuck."""
    stray: float = bounded(0.2, 0, 1)
    """Share of the expert's steps that the policy takes, though it may not stop there; from 0 to 1."""
    inflection_weight: float = bounded(1.0, TINY)
    """Weight of frames whose label differs from the previous action (Wijmans et al. 2019); above 0."""
    value_coefficient: float = bounded(0.05, 0)
    """Weight of the squared error of the critic to the discounted return of the episode; 0 or more."""
    gamma: float = bounded(0.99, 0, 1)
    """Discount of a step in those returns, PPO's; from 0 to 1."""

    def __post_init__(self) -> None:
        check_fields("warm_start", self)
        if self.steps < 1 or self.steps % self.sequence:
            raise UserError(f"warm_start.steps is {self.steps}; it must be a multiple of sequence, {self.sequence}")


@dataclass
class Round:
    """What one update collected: `steps` x N labelled frames.

    `data` never changes once collected: all [T, N], `observations.KEY` (images as float16 or uint8),
    `previous`, `masks`, `expert`, `rewards`, `done`. What training revises is apart: `states` [T / sequence,
    N, layers, hidden], the recurrent states before each sequence, and `returns` [T, N], NaN where an episode
    has not ended yet.
    """

    number: int
    data: dict[str, Tensor]
    states: Tensor
    returns: Tensor


class Drivers:
    """Who acts in each of N environments, the expert or the policy; see the module's text."""

    def __init__(self, environments: int, patience: int) -> None:
        self.patience = patience
        self.expert = torch.zeros(environments, dtype=torch.bool)
        """Whether the expert acts, [N]."""
        self.handed_over = torch.zeros(environments, dtype=torch.bool)
        """Whether it took over in the running episode, [N]."""
        self._reward, self._best, self._stalled = torch.zeros(3, environments)

    def choose(self, begins: Tensor, draws: Tensor, beta: float) -> None:
        """Choose anew where an episode begins, bool [N], by uniform `draws` [N]; hand over where one is stuck."""
        stuck = ~begins & ~self.expert & (self._stalled >= self.patience)
        self.expert = torch.where(begins, draws < beta, self.expert | stuck)
        self.handed_over = ~begins & (self.handed_over | stuck)

    def note(self, reward: Tensor, ended: Tensor) -> None:
        """Take in the rewards float [N] of a step and whether it ended the episode; progress is a new best sum."""
        self._reward += reward
        better = self._reward > self._best
        self._best = torch.where(better, self._reward, self._best) * ~ended
        self._stalled = torch.where(better, 0.0, self._stalled + 1) * ~ended
        self._reward *= ~ended

    def state_dict(self) -> dict[str, Tensor]:
        """Return all of it."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` returned."""
        vars(self).update(state)


def discounted_returns(rewards: Tensor, done: Tensor, following: Tensor, gamma: float) -> Tensor:
    """Return the discounted sum of rewards to the end of the episode for every step.

    Shapes: `rewards`, `done` [T, N]; `following` [N], the return of the step after the last one. Returns [T,
    N].
    """
    result = torch.empty_like(rewards)
    for t in reversed(range(len(rewards))):
        following = rewards[t] + gamma * torch.where(done[t], 0.0, following)
        result[t] = following
    return result


class WarmStart:
    """Collects rounds and imitates the expert on all that the buffer holds.

    The recurrent state before a sequence is the one that the agent had when it was collected; each time a sequence
    is trained on, its last state replaces the stored one of the sequence after it. Rounds needed to go on are kept
    in `folder`, a file each.
    """

    name = "warm_start"

    def __init__(self, policy: PointNavPolicy, actor: Actor, config: WarmStartConfig, folder: Path) -> None:
        self.policy, self.actor, self.config, self.folder = policy, actor, config, folder
        if config.capacity < self.frames_per_update:
            raise UserError(
                f"warm_start.capacity is {config.capacity}; it must hold a round of "
                f"{config.steps} steps of {actor.env.num_envs} environments, {self.frames_per_update} frames"
            )
        self.optimiser = Muon(policy, config.lr)
        self.rounds: deque[Round] = deque(maxlen=config.capacity // self.frames_per_update)
        self.drivers = Drivers(actor.env.num_envs, config.patience)
        self.collected = 0
        self.on_disk: set[int] = set()

    @property
    def frames_per_update(self) -> int:
        """Environment steps that one update takes in."""
        return self.config.steps * self.actor.env.num_envs

    def beta(self, progress: float) -> float:
        """Return the probability that an episode at `progress` in [0, 1] begins with the expert."""
        return 1.0 - progress * (1.0 - self.config.beta_final)

    def update(self, progress: float) -> dict[str, float]:
        """Collect a round, learn from the buffer, return mean losses; schedules are at `progress` [0, 1]."""
        lr = self.config.lr * (1 - progress)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        beta = self.beta(progress)
        self.rounds.append(self._collect(beta))
        with self.actor.timers("learn"):
            self._revise_returns()
            losses = self._learn()
        return {**losses, "learning_rate": lr, "beta": beta}

    @torch.no_grad()
    def _collect(self, beta: float) -> Round:
        actor, frames, states = self.actor, [], []
        self.policy.eval()
        for t in range(self.config.steps):
            begins = ~actor.masks.cpu()
            draws = torch.rand(len(begins), generator=actor.generator)
            self.drivers.choose(begins, draws, beta)
            if t % self.config.sequence == 0:
                states.append(actor.state.cpu())
            with actor.timers("environment"):
                expert = actor.env.expert_actions()
            frame = {f"observations.{name}": compact(value) for name, value in actor.observations.items()}
            frame |= {"previous": actor.previous.cpu(), "masks": actor.masks.cpu(), "expert": expert.cpu()}
            step = actor.step(*self._act(expert.to(actor.device)))
            reward, done = step.reward.cpu(), (step.terminated | step.truncated).cpu()
            frames.append({**frame, "rewards": reward, "done": done})
            self._count(step.finished)
            self.drivers.note(reward, done)
        data = {name: torch.stack([frame[name] for frame in frames]) for name in frames[0]}
        self.collected += 1
        unknown = torch.full_like(data["rewards"], float("nan"))
        return Round(self.collected, data, torch.stack(states), unknown)

    def _act(self, expert: Tensor) -> tuple[Tensor, Tensor]:
        """Return the actions to take [N] and the policy's recurrent states after them."""
        actor = self.actor
        output = actor.forward()
        own = actor.sample(output.logits)
        strays = torch.rand(len(own), generator=actor.generator).to(actor.device) < self.config.stray
        leads = self.drivers.expert.to(actor.device) & ~(strays & (own != STOP))
        return torch.where(leads, expert, own), output.state

    def _count(self, finished: list[Finished]) -> None:
        """Take the measures of the policy's episodes into the window; one that it handed over is a failure."""
        for end in finished:
            if self.drivers.handed_over[end.env]:
                self.actor.window.add({**end.measures, "success": 0.0, "spl": 0.0, "soft_spl": 0.0})
            elif not self.drivers.expert[end.env]:
                self.actor.window.add(end.measures)

    def _revise_returns(self) -> None:
        """Bring the returns up to date with the episodes that ended in the latest round."""
        following = torch.full_like(self.rounds[-1].returns[0], float("nan"))
        for past in reversed(self.rounds):
            if past.returns.isfinite().all():
                break
            past.returns = discounted_returns(past.data["rewards"], past.data["done"], following, self.config.gamma)
            following = past.returns[0]

    def _learn(self) -> dict[str, float]:
        config = self.config
        self.policy.train()
        steps = max(1, round(config.epochs * self.frames_per_update / (config.sequence * config.batch)))
        sums = torch.zeros(3, device=self.actor.device)
        for _ in range(steps):
            sums += self._gradient_step(self._draw())
        action, value, accuracy = (sums / steps).tolist()
        return {"imitation_loss": action, "value_loss": value, "expert_agreement": accuracy}

    def _draw(self) -> list[tuple[int, int, int]]:
        """Draw the sequences of a batch: (round, sequence within it, environment) each."""
        sequences, n = self.config.steps // self.config.sequence, self.actor.env.num_envs
        drawn = torch.randint(len(self.rounds) * sequences * n, (self.config.batch,), generator=self.actor.generator)
        return [(i // (sequences * n), i // n % sequences, i % n) for i in drawn.tolist()]

    def _gradient_step(self, places: list[tuple[int, int, int]]) -> Tensor:
        """Take one gradient step; returns [3]: imitation loss, value loss, agreement with the expert."""
        config, device = self.config, self.actor.device
        data, state, returns = self._batch(places)
        previous, masks, expert = data["previous"], data["masks"], data["expert"]
        observations = {
            name.removeprefix("observations."): value.float() if value.dtype == torch.float16 else value
            for name, value in data.items()
            if name.startswith("observations.")
        }
        with self.actor.autocast():
            output = self.policy.sequence(observations, state, previous, masks)
        self._pass_on_states(places, output.state.detach().float().cpu())
        logits = output.logits.float()
        loss = functional.cross_entropy(logits.flatten(0, 1), expert.flatten(), reduction="none")
        inflection = ((expert != previous) | ~masks).flatten()
        weights = torch.where(inflection, config.inflection_weight, 1.0)
        action = (weights * loss).sum() / weights.sum()
        known = returns.isfinite()
        errors = (output.values.float() - returns.nan_to_num())[known].square()
        value = errors.mean() if len(errors) else torch.zeros((), device=device)
        gradient_step(self.policy, self.optimiser, action + config.value_coefficient * value, config.max_grad_norm)
        agreement = (logits.argmax(-1) == expert).float().mean()
        return torch.stack([action, value, agreement]).detach()

    def _batch(self, places: list[tuple[int, int, int]]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Gather sequences from the buffer: data [sequence, batch, ...], states [batch, ...], returns."""
        length, device = self.config.sequence, self.actor.device
        at = [(self.rounds[r], slice(k * length, (k + 1) * length), n) for r, k, n in places]
        data = {
            name: torch.stack([past.data[name][span, n] for past, span, n in at], dim=1).to(device)
            for name in self.rounds[0].data
        }
        state = torch.stack([self.rounds[r].states[k, n] for r, k, n in places]).to(device)
        returns = torch.stack([past.returns[span, n] for past, span, n in at], dim=1).to(device)
        return data, state, returns

    def _pass_on_states(self, places: list[tuple[int, int, int]], states: Tensor) -> None:
        sequences = self.config.steps // self.config.sequence
        for (r, k, n), state in zip(places, states):
            r, k = (r, k + 1) if k + 1 < sequences else (r + 1, 0)
            if r < len(self.rounds):
                self.rounds[r].states[k, n] = state

    def store(self) -> None:
        """Write the rounds that are not in the folder yet; what is written never changes."""
        for past in self.rounds:
            if past.number not in self.on_disk:
                write_file(self._file(past.number), safetensors.torch.save(past.data))
                self.on_disk.add(past.number)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06}.safetensors"

    def state_dict(self) -> dict[str, Any]:
        """Return all but the rounds' data, which `store` keeps."""
        return {
            "optimiser": self.optimiser.state_dict(),
            "drivers": self.drivers.state_dict(),
            "collected": self.collected,
            "states": [past.states for past in self.rounds],
            "returns": [past.returns for past in self.rounds],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned, with the data that `store` wrote.

        Raises UserError for one of earlier versions, which moved all weights by Adam.
        """
        try:
            self.optimiser.load_state_dict(state["optimiser"])
        except ValueError:
            raise UserError(
                "this warm start was begun by an earlier navprune, whose optimiser was another; begin a new run"
            ) from None
        self.drivers.load_state_dict(state["drivers"])
        self.collected = state["collected"]
        first = self.collected - len(state["states"]) + 1
        self.rounds.clear()
        for number, states, returns in zip(range(first, self.collected + 1), state["states"], state["returns"]):
            data = load_tensors(self._file(number))
            self.rounds.append(Round(number, data, states, returns))
        self.on_disk = {past.number for past in self.rounds}


def rounds_after(frames: int, environments: int, config: WarmStartConfig) -> set[int]:
    """Return the numbers of the rounds in the buffer when `frames` of the warm start are done."""
    a_round = config.steps * environments
    latest = frames // a_round
    return set(range(max(1, latest - config.capacity // a_round + 1), latest + 1))


def forget_rounds(folder: Path, needed: set[int]) -> None:
    """Delete the files of all but the `needed` rounds, and `folder` with the last one."""
    for path in folder.glob("*.safetensors"):
        if int(path.stem) not in needed:
            path.unlink()
    if not needed:
        shutil.rmtree(folder, ignore_errors=True)


def compact(value: Tensor) -> Tensor:
    """Return an observation [N, ...] as the buffer keeps it: images of floats as float16, the rest as is."""
    return value.to("cpu", torch.float16 if value.ndim >= 4 and value.is_floating_point() else value.dtype)

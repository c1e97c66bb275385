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
from collections.abc import Iterable
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
from navprune.rl.group import ENVIRONMENTS
from navprune.rl.learner import Update, gradient_step
from navprune.rl.muon import Muon
from navprune.rl.rollouts import Actor
from navprune.tasks import STOP

if TYPE_CHECKING:
    from navprune.models.policy import PointNavPolicy
    from navprune.tasks.engine import Finished


SEEN = "observations."
"""What names of observations begin with among a round's data."""


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
    in `folder`, a file each and for each worker, named NUMBER.FIRST after the worker's first environment.
    """

    name = "warm_start"

    def __init__(self, actor: Actor, folder: Path, config: WarmStartConfig) -> None:
        self.actor, self.folder, self.config = actor, folder, config
        if config.capacity < self.frames_per_update:
            raise UserError(
                f"warm_start.capacity is {config.capacity}; it must hold a round of "
                f"{config.steps} steps of {actor.environments} environments, {self.frames_per_update} frames"
            )
        if config.batch % actor.group.size:
            raise UserError(
                f"warm_start.batch is {config.batch}; {actor.group.size} workers need a multiple of {actor.group.size}"
            )
        self.optimiser = Muon(self.policy, config.lr, workers=actor.group)
        self.rounds: deque[Round] = deque(maxlen=config.capacity // self.frames_per_update)
        self.drivers = Drivers(actor.env.num_envs, config.patience)
        self.collected = 0
        self.on_disk: set[int] = set()

    @property
    def policy(self) -> PointNavPolicy:
        """The network that acts and learns."""
        return self.actor.policy

    @property
    def frames_per_update(self) -> int:
        """Environment steps of all workers that one update takes in."""
        return self.config.steps * self.actor.environments

    def beta(self, progress: float) -> float:
        """Return the probability that an episode at `progress` in [0, 1] begins with the expert."""
        return 1.0 - progress * (1.0 - self.config.beta_final)

    def update(self, progress: float, frames: int) -> Update:
        """Collect a round, learn from the buffer, return mean losses; schedules are at `progress` [0, 1]."""
        lr = self.config.lr * (1 - progress)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        beta = self.beta(progress)
        self.rounds.append(self._collect(beta))
        with self.actor.timers("learn"):
            self._revise_returns()
            losses = self._learn()
        return Update(self.frames_per_update, {**losses, "learning_rate": lr, "beta": beta})

    @torch.no_grad()
    def _collect(self, beta: float) -> Round:
        actor, frames, states = self.actor, [], []
        self.policy.eval()
        for t in range(self.config.steps):
            self.drivers.choose(~actor.masks.cpu(), actor.draw().cpu(), beta)
            if t % self.config.sequence == 0:
                states.append(actor.state.cpu())
            with actor.timers("environment"):
                expert = actor.env.expert_actions()
            frame = {SEEN + name: compact(value) for name, value in actor.observations.items()}
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
        strays = actor.draw() < self.config.stray
        leads = self.drivers.expert.to(actor.device) & ~(strays & (own != STOP)) & (own >= 0)
        return torch.where(leads, expert, own), output.state

    def _count(self, finished: list[Finished]) -> None:
        """Count the policy's episodes; one that it handed over is a failure."""
        for end in finished:
            if self.drivers.handed_over[end.env]:
                self.actor.count(end.env, {**end.measures, "success": 0.0, "spl": 0.0, "soft_spl": 0.0})
            elif not self.drivers.expert[end.env]:
                self.actor.count(end.env, end.measures)

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
        batches = [self._draw() for _ in range(steps)]
        # All at once, since each exchange between workers waits for the slowest of them.
        counts = self.actor.group.sum(torch.stack([self._counts(places) for places in batches])).clamp_min(1)
        sums = torch.zeros(3, device=self.actor.device)
        for places, count in zip(batches, counts.to(self.actor.device)):
            sums += self._gradient_step(places, count)
        action, value, accuracy = (sums / steps).tolist()
        return {"imitation_loss": action, "value_loss": value, "expert_agreement": accuracy}

    def _draw(self) -> list[tuple[int, int, int]]:
        """Draw this worker's sequences of a batch: (round, sequence within it, environment of the worker) each.

        The batch is spread over all environments: its i-th sequence is of somewhere in the i-th share of them, whose
        ends may lie within an environment, so that all are as likely.
        """
        config, actor, generator = self.config, self.actor, self.actor.generator
        sequences, share = config.steps // config.sequence, actor.environments / config.batch
        drawn = torch.randint(len(self.rounds) * sequences, (config.batch,), generator=generator)
        where = torch.rand(config.batch, generator=generator, dtype=torch.float64) + torch.arange(config.batch)
        mine = actor.group.rows(config.batch // actor.group.size)
        own = ((where[mine] * share).long() - actor.rows.start).clamp(0, actor.env.num_envs - 1)  # where it is rounded
        places = zip(drawn[mine].tolist(), own.tolist())
        return [(i // sequences, i % sequences, n) for i, n in places]

    def _gradient_step(self, places: list[tuple[int, int, int]], counts: Tensor) -> Tensor:
        """Take one gradient step; returns [3]: imitation loss, value loss, agreement with the expert.

        `counts` are the sums of `_counts` over all workers.
        """
        config, group = self.config, self.actor.group
        data, state, returns = self._batch(places)
        previous, masks, expert = data["previous"], data["masks"], data["expert"]
        observations = {
            name.removeprefix(SEEN): value.float() if value.dtype == torch.float16 else value
            for name, value in data.items()
            if name.startswith(SEEN)
        }
        with self.actor.autocast():
            output = self.policy.sequence(observations, state, previous, masks)
        self._pass_on_states(places, output.state.detach().float().cpu())
        logits = output.logits.float()
        loss = functional.cross_entropy(logits.flatten(0, 1), expert.flatten(), reduction="none")
        errors = (output.values.float() - returns.nan_to_num()).square() * returns.isfinite()
        agreement = (logits.argmax(-1) == expert).float().sum()
        weighted = (self._weights(data).flatten() * loss).sum()
        action, value, agreement = torch.stack([weighted, errors.sum(), agreement]) / counts
        total = action + config.value_coefficient * value
        parts = torch.stack([action, value, agreement])
        return gradient_step(self.policy, self.optimiser, total, config.max_grad_norm, group, parts)

    def _weights(self, data: dict[str, Tensor]) -> Tensor:
        """How much each action counts: more where the expert does another thing than before."""
        inflection = (data["expert"] != data["previous"]) | ~data["masks"]
        return torch.where(inflection, self.config.inflection_weight, 1.0)

    def _counts(self, places: list[tuple[int, int, int]]) -> Tensor:
        """What sums of a batch's losses are divided by, [3]: the actions' weights, the known returns, the frames."""
        data, returns = self._sequences(places, ("expert", "previous", "masks"))
        weights = self._weights(data)
        return torch.stack([weights.sum(), returns.isfinite().sum(), torch.ones_like(weights).sum()])

    def _batch(self, places: list[tuple[int, int, int]]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Gather sequences from the buffer: data [sequence, batch, ...], states [batch, ...], returns."""
        data, returns = self._sequences(places, self.rounds[0].data)
        state = torch.stack([self.rounds[r].states[k, n] for r, k, n in places])
        device = self.actor.device
        return {name: value.to(device) for name, value in data.items()}, state.to(device), returns.to(device)

    def _sequences(self, places: list[tuple[int, int, int]], names: Iterable[str]) -> tuple[dict[str, Tensor], Tensor]:
        """What the buffer has at these places, [sequence, batch, ...]: the data of these names, and the returns."""
        length = self.config.sequence
        at = [(self.rounds[r], slice(k * length, (k + 1) * length), n) for r, k, n in places]
        data = {name: torch.stack([past.data[name][span, n] for past, span, n in at], dim=1) for name in names}
        return data, torch.stack([past.returns[span, n] for past, span, n in at], dim=1)

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
                file = self.folder / f"{past.number:06}.{self.actor.rows.start:06}.safetensors"
                write_file(file, safetensors.torch.save(past.data))
                self.on_disk.add(past.number)

    def _read(self, number: int) -> dict[str, Tensor]:
        """This worker's part of a round, whoever wrote it."""
        # A worker writes NUMBER.FIRST; earlier versions, which had but one, NUMBER.
        files = sorted(self.folder.glob(f"{number:06}.*safetensors")) or [self.folder / f"{number:06}.safetensors"]
        parts = [load_tensors(file) for file in files]
        whole = {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}
        if (found := len(whole["expert"][0])) != self.actor.environments:
            raise UserError(
                f"{files[0]} and its like hold {found} of {self.actor.environments} environments; restore them, or use "
                "another run folder"
            )
        own = {name: value[:, self.actor.rows] for name, value in whole.items()}
        seen = {name.removeprefix(SEEN): value for name, value in own.items() if name.startswith(SEEN)}
        if any(value.shape[2:] != self.actor.observations[name].shape[1:] for name, value in seen.items()):
            flat = self.policy.prepare({name: value.flatten(0, 1) for name, value in seen.items()})  # earlier: raw
            own |= {SEEN + name: compact(value.unflatten(0, own["expert"].shape)) for name, value in flat.items()}
        return own

    def state_dict(self) -> dict[str, Any]:
        """Return all but the rounds' data, which `store` keeps."""
        own = {
            "drivers": self.drivers.state_dict(),
            "states": torch.stack([past.states for past in self.rounds]).movedim(2, 0),
            "returns": torch.stack([past.returns for past in self.rounds]).movedim(2, 0),
        }
        return {"optimiser": self.optimiser.state_dict(), "collected": self.collected, ENVIRONMENTS: own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned, with the data that `store` wrote, of as many rounds as are kept now."""
        own = state[ENVIRONMENTS]
        try:
            self.optimiser.load_state_dict(state["optimiser"])
        except ValueError:
            line = "the warm start was begun by an earlier navprune, with another optimiser; this one begins afresh"
            self.actor.group.say(line)
        self.drivers.load_state_dict(own["drivers"])
        self.collected = state["collected"]
        kept = slice(-(self.rounds.maxlen or 0), None)
        states, returns = (own[name].movedim(0, 2)[kept].contiguous() for name in ("states", "returns"))
        self.rounds.clear()
        for number, *known in zip(range(self.collected - len(states) + 1, self.collected + 1), states, returns):
            self.rounds.append(Round(number, self._read(number), *known))
        self.on_disk = {past.number for past in self.rounds}

    @staticmethod
    def tidy(config: WarmStartConfig, folder: Path, environments: int, frames: Iterable[int]) -> None:
        """Delete the rounds that none of the checkpoints at these frames needs, and `folder` with the last one."""
        needed = set[int]().union(*(rounds_after(each, environments, config) for each in frames))
        for path in folder.glob("*.safetensors"):
            if int(path.name.split(".")[0]) not in needed:
                path.unlink()
        if not needed:
            shutil.rmtree(folder, ignore_errors=True)


def rounds_after(frames: int, environments: int, config: WarmStartConfig) -> set[int]:
    """Return the numbers of the rounds in the buffer when `frames` of the warm start are done."""
    a_round = config.steps * environments
    latest = frames // a_round
    return set(range(max(1, latest - config.capacity // a_round + 1), latest + 1))


def compact(value: Tensor) -> Tensor:
    """Return an observation [N, ...] as the buffer keeps it: images of floats as float16, the rest as is."""
    return value.to("cpu", torch.float16 if value.ndim >= 4 and value.is_floating_point() else value.dtype)

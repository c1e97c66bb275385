"""Agents that can be evaluated: a trained policy, and the controls that say what its score is worth."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from navprune.evaluation.exported import Step
from navprune.models.policy import PointNavPolicy
from navprune.models.spec import PolicySpec
from navprune.models.step import DEPTH, metres_of
from navprune.rl.rollouts import choose
from navprune.tasks import FORWARD, GOAL, LEFT, RIGHT, STOP
from navprune.tasks.config import TaskConfig
from navprune.tasks.engine import VectorEnv


class Agent(ABC):
    """Chooses the actions of N environments at once, with no random state of its own."""

    def start(self, environments: int) -> None:
        """Prepare for an evaluation over N `environments`; most agents have nothing to prepare."""
        return None

    @abstractmethod
    def act(self, observations: dict[str, Tensor], masks: Tensor, rows: Tensor, draws: Tensor) -> Tensor:
        """Choose one action for each of R waiting environments.

        `observations` {name: [N, ...]} and `masks` bool [N] (False where an episode begins) describe all
        environments; `rows` int64 [R] are those that wait for an action; `draws` float64 [R] holds one number
        in [0, 1) for each of them, from which any chance is to be taken. Returns int64 [R] on the CPU.
        """


class NetworkAgent(Agent):
    """A recurrent network, taking its most likely action (`greedy`) or sampling from its distribution."""

    def __init__(self, spec: PolicySpec, greedy: bool, device: torch.device | str = "cpu"):
        self.spec, self.greedy, self.device = spec, greedy, torch.device(device)
        self.start(0)

    def start(self, environments: int) -> None:
        """Forget all recurrent states and previous actions; make room for N `environments`."""
        self.state = torch.zeros(environments, self.spec.state_layers, self.spec.hidden_size, device=self.device)
        self.previous = torch.zeros(environments, dtype=torch.int64, device=self.device)

    def act(self, observations: dict[str, Tensor], masks: Tensor, rows: Tensor, draws: Tensor) -> Tensor:
        """Choose actions, see `Agent.act`."""
        actions = self.choose(self.logits(observations, masks, rows), draws)
        self.took(rows, actions)
        return actions

    def choose(self, logits: Tensor, draws: Tensor) -> Tensor:
        """The actions int64 [R] that follow from `logits` [R, A]."""
        return choose(logits, None if self.greedy else draws)

    def took(self, rows: Tensor, actions: Tensor) -> None:
        """Note the actions that these environments took."""
        self.previous[rows.to(self.device)] = actions.to(self.device)

    @abstractmethod
    def logits(self, observations: dict[str, Tensor], masks: Tensor, rows: Tensor) -> Tensor:
        """Advance the recurrent state of these rows; return their logits [R, A], float32 on the CPU."""


class PolicyAgent(NetworkAgent):
    """A trained policy.

    Floating-point sums depend on the batch size: the same image gives other last bits in a batch of 4 than of
    16. They do not depend on the position in the batch or on the other images. So the network always sees
    exactly `chunk` rows, the last chunk filled up with repetitions, and an episode goes the same way whatever
    runs beside it. A blind agent is a policy whose encoder is blind.
    """

    def __init__(self, policy: PointNavPolicy, greedy: bool = True, chunk: int = 16):
        self.policy = policy.eval()
        self.chunk = chunk
        super().__init__(policy.spec, greedy, next(policy.parameters()).device)

    @torch.inference_mode()
    def logits(self, observations: dict[str, Tensor], masks: Tensor, rows: Tensor) -> Tensor:
        """See `NetworkAgent.logits`."""
        return torch.cat([self._forward(observations, masks, part) for part in rows.split(self.chunk)])

    def _forward(self, observations: dict[str, Tensor], masks: Tensor, rows: Tensor) -> Tensor:
        """Advance the recurrent state of at most `chunk` rows; return their logits [R, A] on the CPU."""
        count = len(rows)
        rows = torch.cat([rows, rows[:1].expand(self.chunk - count)])

        def pick(tensor: Tensor) -> Tensor:
            return tensor[rows.to(tensor.device)].to(self.device)

        seen = {name: pick(values) for name, values in observations.items()}
        output = self.policy(seen, pick(self.state), pick(self.previous), pick(masks))
        self.state[rows[:count].to(self.device)] = output.state[:count]
        return output.logits[:count].float().cpu()


class FileAgent(NetworkAgent):
    """An exported policy, one environment after the other, as a robot runs it."""

    def __init__(self, step: Step, spec: PolicySpec, task: TaskConfig, greedy: bool = True):
        super().__init__(spec, greedy)
        self.step, self.task = step, task

    def logits(self, observations: dict[str, Tensor], masks: Tensor, rows: Tensor) -> Tensor:
        """See `NetworkAgent.logits`."""
        inputs = self.inputs(observations, masks)
        return torch.cat([self._forward(inputs, int(row)) for row in rows])

    def inputs(self, observations: dict[str, Tensor], masks: Tensor) -> dict[str, Tensor]:
        """What the file takes, by name, of all environments: what the task's sensors tell in a robot's units."""
        seen = {name: observations[name].cpu() for name in self.spec.encoder.observations}
        if DEPTH in seen:
            seen[DEPTH] = metres_of(seen[DEPTH], self.task.min_depth, self.task.max_depth)
        goal, mask = observations[GOAL].cpu(), masks.cpu().float()
        return {**seen, "goal": goal, "previous_action": self.previous, "mask": mask, "state": self.state}

    def _forward(self, inputs: dict[str, Tensor], row: int) -> Tensor:
        outputs = self.step({name: tensor[row : row + 1] for name, tensor in inputs.items()})
        self.state[row] = outputs["next_state"][0]
        return outputs["logits"]


class Compared(Agent):
    """Acts as a network does, and notes every step at which another network would have chosen otherwise.

    Both see the same, remember what each made of it, and are told the same previous actions.
    """

    def __init__(self, agent: NetworkAgent, reference: NetworkAgent, env: VectorEnv):
        self.agent, self.reference, self.env = agent, reference, env

    def start(self, environments: int) -> None:
        """See `Agent.start`."""
        self.agent.start(environments)
        self.reference.start(environments)
        self.steps, self.deviation = 0, 0.0
        self.differing: list[dict[str, Any]] = []
        self._step = torch.zeros(environments, dtype=torch.int64)

    def act(self, observations: dict[str, Tensor], masks: Tensor, rows: Tensor, draws: Tensor) -> Tensor:
        """Choose actions, see `Agent.act`."""
        both = self.agent, self.reference
        logits, wanted = (agent.logits(observations, masks, rows) for agent in both)
        actions, others = self.agent.choose(logits, draws), self.reference.choose(wanted, draws)
        self._step[rows] = torch.where(masks[rows], self._step[rows] + 1, 0)
        self.steps += len(rows)
        self.deviation = max(self.deviation, float((logits - wanted).abs().max()))
        gaps = margins(wanted, None if self.reference.greedy else draws)
        for i in (actions != others).nonzero()[:, 0].tolist():
            episode = self.env.episodes[int(rows[i])]
            assert episode is not None
            chosen = {"action": int(actions[i]), "reference": int(others[i]), "margin": float(gaps[i])}
            place = {"scene": episode.scene_id, "episode_id": episode.episode_id, "step": int(self._step[rows[i]])}
            self.differing.append(place | chosen)
        for agent in both:
            agent.took(rows, actions)
        return actions

    def to_json(self) -> dict[str, Any]:
        """How many steps there were, the largest difference between logits, and the steps that differ."""
        return {"steps": self.steps, "largest_deviation": self.deviation, "differing": self.differing}


def margins(logits: Tensor, draws: Tensor | None) -> Tensor:
    """How far, in probability, each choice of `choose` is from another one, float64 [R]; near 0 is a tie."""
    chances = logits.double().softmax(dim=-1)
    if draws is None:
        first, second = chances.topk(2, dim=-1).values.unbind(-1)
        return first - second
    return (draws[:, None] - chances.cumsum(dim=-1)[:, :-1]).abs().amin(dim=-1)


class RandomAgent(Agent):
    """Habitat's random agent: stops within the success distance, else forward, left or right by chance.

    It is told when to stop, so its score is what wandering alone finds. An agent that also stopped by chance
    would end after four steps on average, and score lower still.
    """

    def __init__(self, task: TaskConfig | None = None):
        self.task = task or TaskConfig()

    def act(self, observations: dict[str, Tensor], masks: Tensor, rows: Tensor, draws: Tensor) -> Tensor:
        """Choose actions, see `Agent.act`."""
        distance = observations[GOAL].cpu()[rows, 0]
        return torch.where(distance <= self.task.success_distance, STOP, FORWARD + (3 * draws).long())


class GoalFollower(Agent):
    """Habitat's goal follower: turns until it faces the goal within 15 degrees, then walks straight at it."""

    tolerance = math.radians(15.0)

    def __init__(self, task: TaskConfig | None = None):
        self.task = task or TaskConfig()

    def act(self, observations: dict[str, Tensor], masks: Tensor, rows: Tensor, draws: Tensor) -> Tensor:
        """Choose actions, see `Agent.act`."""
        distance, angle = observations[GOAL].cpu()[rows].unbind(-1)
        turn = torch.where(angle > 0, LEFT, RIGHT)
        walk = torch.where(angle.abs() < self.tolerance, FORWARD, turn)
        return torch.where(distance <= self.task.success_distance, STOP, walk)


class ShortestPathAgent(Agent):
    """Asks the simulator for the way: an upper bound of what the actions allow."""

    def __init__(self, env: VectorEnv):
        self.env = env

    def act(self, observations: dict[str, Tensor], masks: Tensor, rows: Tensor, draws: Tensor) -> Tensor:
        """Choose actions, see `Agent.act`."""
        return self.env.expert_actions().cpu()[rows]

"""Agents that can be evaluated: a trained policy, and the controls that say what its score is worth."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from navprune.models.policy import PointNavPolicy
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


class PolicyAgent(Agent):
    """A trained policy, taking its most likely action (`greedy`) or sampling from its distribution.

    Floating-point sums depend on the batch size: the same image gives other last bits in a batch of 4 than of
    16. They do not depend on the position in the batch or on the other images. So the network always sees
    exactly `chunk` rows, the last chunk filled up with repetitions, and an episode goes the same way whatever
    runs beside it. A blind agent is a policy whose encoder is blind.
    """

    def __init__(self, policy: PointNavPolicy, greedy: bool = True, chunk: int = 16):
        self.policy = policy.eval()
        self.greedy = greedy
        self.chunk = chunk
        self.device = next(policy.parameters()).device
        self.start(0)

    def start(self, environments: int) -> None:
        """Forget all recurrent states and previous actions; make room for N `environments`."""
        self.state = self.policy.initial_state(environments).to(self.device)
        self.previous = torch.zeros(environments, dtype=torch.int64, device=self.device)

    @torch.inference_mode()
    def act(self, observations: dict[str, Tensor], masks: Tensor, rows: Tensor, draws: Tensor) -> Tensor:
        """Choose actions, see `Agent.act`."""
        logits = [self._forward(observations, masks, part) for part in rows.split(self.chunk)]
        actions = choose(torch.cat(logits), None if self.greedy else draws)
        self.previous[rows.to(self.device)] = actions.to(self.device)
        return actions

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

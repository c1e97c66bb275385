"""The recurrent actor-critic of PointNav, with habitat-baselines' parameter names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from navprune.models.encoders import Encoder, build_encoder
from navprune.models.recurrent import StateEncoder, orthogonal
from navprune.models.spec import PolicySpec
from navprune.tasks import FORWARD, GOAL

EMBEDDING = 32  # values each for the goal, the previous action and the goal's details
FULL_STEP = 0.25
"""Metres of a step forward that nothing hinders, Habitat's; the unit of how far one went."""


class PolicyOutput(NamedTuple):
    """Answers of a policy: `logits` [..., A], `values` [...], the recurrent `state` [N, L, H] afterwards."""

    logits: Tensor
    values: Tensor
    state: Tensor


class Net(nn.Module):
    """Everything before the two heads; a container of habitat-baselines' names."""

    def __init__(self, spec: PolicySpec):
        super().__init__()
        self.prev_action_embedding = nn.Embedding(spec.actions + 1, EMBEDDING)
        self.tgt_embeding = nn.Linear(3, EMBEDDING)
        self.visual_encoder: Encoder = build_encoder(spec.encoder)
        flat = math.prod(spec.encoder.output_shape)
        visual = spec.visual_features if flat else 0
        seen = (nn.Linear(flat, visual), nn.ReLU(inplace=True)) if flat else ()
        self.visual_fc = nn.Sequential(nn.Flatten(), *seen)
        if spec.goal_details:
            self.goal_details = nn.Linear(5, EMBEDDING)
        self.state_encoder = StateEncoder(spec, visual + (3 if spec.goal_details else 2) * EMBEDDING)


class PointNavPolicy(nn.Module):
    """Depth or colour, goal and previous action -> action logits and value (DD-PPO, Wijmans et al., 2020)."""

    def __init__(self, spec: PolicySpec):
        super().__init__()
        self.spec = spec
        self.net = Net(spec)
        self.action_distribution = nn.ModuleDict({"linear": _head(spec.hidden_size, spec.actions, gain=0.01)})
        self.critic = nn.ModuleDict({"fc": _head(spec.hidden_size, 1, gain=1.0)})

    @property
    def encoder(self) -> Encoder:
        """The visual encoder; what pruning cuts and latency measures."""
        return self.net.visual_encoder

    def initial_state(self, n: int) -> Tensor:
        """Zeros [n, layers (twice for an LSTM), hidden] on the policy's device; one more row with goal details."""
        return next(self.parameters()).new_zeros(n, self.spec.state_layers, self.spec.hidden_size)

    def encode(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Observations [B, ...] -> visual features [B, F] (F = 0 for a blind agent).

        Where the encoder is frozen, these can be computed once and handed to `forward` and `sequence`.
        """
        return self.net.visual_fc(self.encoder(self.encoder.images(observations)))

    def prepare(self, observations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of raw observations [N, ...] what the policy reads, as small as is exact enough, under the same names.

        `forward`, `sequence` and `encode` take either. A rollout that keeps these needs an eighth of the memory, and
        its images are pooled once instead of in each epoch; they are rounded to float16.
        """
        return {**self.encoder.prepare(observations), GOAL: observations[GOAL]}

    def forward(
        self,
        observations: Mapping[str, Tensor],
        state: Tensor,
        prev_actions: Tensor,
        masks: Tensor,
        features: Tensor | None = None,
    ) -> PolicyOutput:
        """One step: observations [N, ...], state [N, L, H], prev_actions int64 [N], masks bool [N].

        A False mask says that an episode begins: state and previous action are cleared before the step.
        `features` [N, F] replace the visual encoder's.
        """
        one_step = {key: value[None] for key, value in observations.items()}
        features = features if features is None else features[None]
        out = self.sequence(one_step, state, prev_actions[None], masks[None], features)
        return PolicyOutput(out.logits[0], out.values[0], out.state)

    def sequence(
        self,
        observations: Mapping[str, Tensor],
        state: Tensor,
        prev_actions: Tensor,
        masks: Tensor,
        features: Tensor | None = None,
    ) -> PolicyOutput:
        """T steps of N environments, equal to T calls of `forward`; `state` [N, L, H] is that before step 0.

        Observations [T, N, ...], prev_actions int64 and masks bool [T, N], `features` [T, N, F] or None.
        """
        shape = masks.shape
        if features is None:
            keys = self.spec.encoder.observations or (GOAL,)
            features = self.encode({key: observations[key].flatten(0, 1) for key in keys})
            features = features.unflatten(0, shape)
        previous = (prev_actions + 1) * masks  # 0 stands for none
        rho, angle = observations[GOAL].unbind(-1)
        goal = self.net.tgt_embeding(torch.stack([rho, angle.cos(), -angle.sin()], dim=-1))  # no jump at pi
        inputs = [features, goal, self.net.prev_action_embedding(previous)]
        if self.spec.goal_details:
            details, last = _goal_details(observations[GOAL], state[:, -1, :2], previous == FORWARD + 1)
            inputs.append(self.net.goal_details(details))
            state, carried = state[:, :-1], F.pad(last, (0, self.spec.hidden_size - 2))[:, None]
        outputs, state = self.net.state_encoder(torch.cat(inputs, dim=-1), state, masks)
        if self.spec.goal_details:
            state = torch.cat([state, carried], dim=1)
        # Under autocast, ratios of probabilities and the state handed on need more than bfloat16's 8 bits.
        with torch.autocast(outputs.device.type, enabled=False):
            dtype = next(self.critic.parameters()).dtype
            outputs = outputs.to(dtype)
            logits = self.action_distribution["linear"](outputs)
            return PolicyOutput(logits, self.critic["fc"](outputs).squeeze(-1), state.to(dtype))


def _goal_details(goals: Tensor, before: Tensor, forward: Tensor) -> tuple[Tensor, Tensor]:
    """How near the goal is on a fine scale and how far the last step ahead took the agent; and where the goal is now.

    `goals` [T, N, 2] as the sensor tells, `before` [N, 2] where the goal was a step before the first, in metres ahead
    and to the right, `forward` bool [T, N] whether the action before was FORWARD. Returns [T, N, 5], whose last two are
    steps ahead and to the right, 0 unless `forward`, and [N, 2]. A turn moves the goal in the agent's axes though the
    agent stays, so only steps ahead are told.
    """
    rho, angle = goals.unbind(-1)
    where = torch.stack([rho * angle.cos(), -rho * angle.sin()], dim=-1)
    moved = (torch.cat([before[None], where[:-1]]) - where) / FULL_STEP * forward[..., None]
    nearness = torch.stack([(rho + 0.1).log(), rho.clamp(max=1.0), (-rho).exp()], dim=-1)
    return torch.cat([nearness, moved], dim=-1), where[-1]


def _head(inputs: int, outputs: int, gain: float) -> nn.Linear:
    head = nn.Linear(inputs, outputs)
    orthogonal(head.weight, gain)
    nn.init.zeros_(head.bias)
    return head

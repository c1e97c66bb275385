"""The recurrent actor-critic of PointNav, with habitat-baselines' parameter names."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from navprune.models.encoders import Encoder, build_encoder
from navprune.models.spec import PolicySpec
from navprune.tasks import GOAL

P = dict(kv.split("=") for kv in os.environ.get("P", "").split(",") if kv)
EGO, SRU, NEAR, DROP = "ego" in P, "sru" in P, "near" in P, float(P.get("drop", 0))
EMBEDDING = 32  # values each for the goal and the previous action


class PolicyOutput(NamedTuple):
    """Answers of a policy: `logits` [..., A], `values` [...], the recurrent `state` [N, L, H] afterwards."""

    logits: Tensor
    values: Tensor
    state: Tensor


class StateEncoder(nn.Module):
    """A GRU or LSTM with its state in one tensor [N, L, H]; of an LSTM the hidden layers, then the cells."""

    def __init__(self, spec: PolicySpec, inputs: int):
        super().__init__()
        self.rnn = {"gru": nn.GRU, "lstm": nn.LSTM}[spec.rnn](inputs, spec.hidden_size, spec.rnn_layers)
        for name, parameter in self.rnn.named_parameters():
            _orthogonal(parameter) if "weight" in name else nn.init.zeros_(parameter)

    def forward(self, x: Tensor, state: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [T, N, F], state [N, L, H], masks bool [T, N] -> outputs [T, N, H], state [N, L, H].

        The state of an environment is cleared before a step whose mask is False. Between such steps time is
        handed to the recurrent layer whole, which is far faster than step by step. A single step asks for no values,
        so that it can be exported.
        """
        steps = len(masks)
        begins = (~masks[1:]).any(dim=1).tolist() if steps > 1 else []
        cuts = [t for t, begin in enumerate(begins, start=1) if begin]
        hidden = state.transpose(0, 1)
        outputs = []
        for start, end in zip([0, *cuts], [*cuts, steps]):
            hidden = (hidden * masks[start].to(hidden.dtype)[:, None]).contiguous()  # by 1, which is exact, or by 0
            lstm = isinstance(self.rnn, nn.LSTM)
            output, after = self.rnn(x[start:end], hidden.chunk(2) if lstm else hidden)
            outputs.append(output)
            hidden = torch.cat(after) if lstm else after
        return torch.cat(outputs), hidden.transpose(0, 1)


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
        inputs = visual + (2 + EGO) * EMBEDDING
        if EGO:
            self.ego = nn.Linear(2, EMBEDDING)
        if NEAR:
            self.near = nn.Linear(3, EMBEDDING)
        if "skip" in P:
            self.skip = nn.Linear(inputs, spec.hidden_size)
        if "ln" in P:
            self.ln = nn.LayerNorm(inputs)
        self.drop = nn.Dropout(DROP)
        if SRU:
            self.multiply = nn.Linear(inputs, inputs)
        self.state_encoder = StateEncoder(spec, inputs)


class PointNavPolicy(nn.Module):
    """Depth or colour, goal and previous action -> action logits and value (DD-PPO, Wijmans et al., 2020)."""

    def __init__(self, spec: PolicySpec):
        super().__init__()
        self.spec = spec
        self.net = Net(spec)
        self.action_distribution = nn.ModuleDict({"linear": _head(spec.hidden_size, spec.actions, gain=0.01)})
        self.critic = nn.ModuleDict({"fc": _head(spec.hidden_size, 1, gain=1.0)})
        if "aux" in P:
            self.aux = nn.Linear(spec.hidden_size, 5)

    @property
    def encoder(self) -> Encoder:
        """The visual encoder; what pruning cuts and latency measures."""
        return self.net.visual_encoder

    def initial_state(self, n: int) -> Tensor:
        """Zeros [n, layers (twice for an LSTM), hidden] on the policy's device."""
        layers = self.spec.rnn_layers * (2 if self.spec.rnn == "lstm" else 1)
        return next(self.parameters()).new_zeros(n, layers + EGO, self.spec.hidden_size)

    def encode(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Observations [B, ...] -> visual features [B, F] (F = 0 for a blind agent).

        Where the encoder is frozen, these can be computed once and handed to `forward` and `sequence`.
        """
        images = self.encoder.images(observations)
        if "logd" in P:
            images = (images * 10 + 0.1).log()
        return self.net.visual_fc(self.encoder(images))

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
        if NEAR:
            goal = goal + self.net.near(torch.stack([(rho + 0.1).log(), rho.clamp(max=1.0), (-rho).exp()], dim=-1))
        inputs = [self.net.drop(features), goal, self.net.prev_action_embedding(previous)]
        if EGO:
            where = torch.stack([rho * angle.cos(), -rho * angle.sin()], dim=-1)
            before = torch.cat([state[None, :, -1, :2].to(where.dtype), where[:-1]])
            moved = 4 * (before - where) * (previous == 2)[..., None]
            inputs.append(self.net.ego(moved))
            carried = torch.nn.functional.pad(where[-1], (0, state.shape[-1] - 2))[:, None]
            state = state[:, :-1]
        x = torch.cat(inputs, dim=-1)
        if "ln" in P:
            x = self.net.ln(x)
        if SRU:
            x = x * (1 + self.net.multiply(x))
        outputs, state = self.net.state_encoder(x, state, masks)
        if "skip" in P:
            outputs = outputs + torch.relu(self.net.skip(x))
        if EGO:
            state = torch.cat([state, carried.to(state.dtype)], dim=1)
        # Under autocast, ratios of probabilities and the state handed on need more than bfloat16's 8 bits.
        with torch.autocast(outputs.device.type, enabled=False):
            dtype = next(self.critic.parameters()).dtype
            outputs = outputs.to(dtype)
            self.kept = (features, outputs)
            logits = self.action_distribution["linear"](outputs)
            return PolicyOutput(logits, self.critic["fc"](outputs).squeeze(-1), state.to(dtype))


def _head(inputs: int, outputs: int, gain: float) -> nn.Linear:
    head = nn.Linear(inputs, outputs)
    _orthogonal(head.weight, gain)
    nn.init.zeros_(head.bias)
    return head


def _orthogonal(weight: Tensor, gain: float = 1.0) -> None:
    """Orthogonal weights, by one thread: how the decomposition rounds would depend on the number of threads."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        nn.init.orthogonal_(weight, gain)
    finally:
        torch.set_num_threads(threads)

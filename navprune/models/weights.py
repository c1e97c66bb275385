"""Weights of policies that habitat-baselines trained."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from navprune.errors import UserError
from navprune.models.spec import EXPANSION, RESNETS, EncoderSpec, PolicySpec, encoder_spec

PREFIX = "actor_critic."  # of DD-PPO's published files
ENCODER = "net.visual_encoder."


def read_foreign(path: str | Path) -> tuple[PolicySpec, dict[str, Tensor]]:
    """Spec and state dict of a habitat-baselines `.pth` with a ResNet18, a ResNet50 or no encoder.

    The spec follows from the shapes; images are taken to be square. Nothing but tensors and plain containers
    is unpickled. Raises UserError for a file that cannot be read or holds another network.
    """
    path = Path(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: holds more than tensors; save its 'state_dict' alone and load that") from error
    except (RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}); fetch it again") from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else {}
    state = {key.removeprefix(PREFIX): value for key, value in state.items() if isinstance(value, Tensor)}
    try:
        return _policy_spec(state), state
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: not a PointNav policy of habitat-baselines ({error})") from error


def _policy_spec(state: Mapping[str, Tensor]) -> PolicySpec:
    layers = [key for key in state if re.fullmatch(r"net\.state_encoder\.rnn\.weight_hh_l\d+", key)]
    gates, hidden = state["net.state_encoder.rnn.weight_hh_l0"].shape
    visual = state.get("net.visual_fc.1.weight")
    return PolicySpec(
        encoder=encoder_spec("blind") if visual is None else _encoder_spec(state, visual.shape[1]),
        visual_features=hidden if visual is None else visual.shape[0],
        hidden_size=hidden,
        rnn={3: "gru", 4: "lstm"}[gates // hidden],
        rnn_layers=len(layers),
        actions=len(state["action_distribution.linear.weight"]),
    )


def _encoder_spec(state: Mapping[str, Tensor], flat: int) -> EncoderSpec:
    stem = state[f"{ENCODER}backbone.conv1.0.weight"]
    block = "bottleneck" if f"{ENCODER}backbone.layer1.0.convs.6.weight" in state else "basic"
    pattern = re.compile(re.escape(ENCODER) + r"backbone\.layer(\d+)\.(\d+)\.convs\.0\.weight")
    places = {match.groups() for match in map(pattern.fullmatch, state) if match}
    blocks = tuple(sum(stage == str(s) for stage, _ in places) for s in range(1, 5))
    name = {structure: name for name, structure in RESNETS.items()}.get((block, blocks))
    if name is None:
        raise ValueError(f"{block} blocks {blocks} are neither ResNet18 nor ResNet50")
    planes, channels = stem.shape[:2]
    inner = state[f"{ENCODER}backbone.layer4.0.convs.0.weight"]
    if inner.shape[0] != 8 * planes or inner.shape[1] != 4 * planes * EXPANSION[block]:
        raise ValueError("its widths are not ResNet's, as in ResNeXt")
    side = 64 * math.isqrt(flat // len(state[f"{ENCODER}compression.0.weight"]))
    normalise = f"{ENCODER}running_mean_and_var._mean" in state
    return replace(encoder_spec(name, (channels, side, side), planes), normalise=normalise)

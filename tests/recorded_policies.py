"""The recorded policies of tests/data/policy_families: their specs, and weights and observations made by rule."""

import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from navprune.models.build import build
from navprune.models.spec import PolicySpec, encoder_spec
from navprune.models.weights import read_foreign

ANSWERS = Path(__file__).parent / "data" / "policy_families" / "answers.npz"
SIDE = 128
STEPS, ENVS = 3, 2
FEATURES = 16  # every 16th of the encoder's features is recorded


def _policy(encoder: str, channels: int, rnn: str, layers: int) -> PolicySpec:
    return PolicySpec(encoder_spec(encoder, (channels, SIDE, SIDE), 8), 16, 16, rnn, layers)


POLICIES = {
    "rgb_resnet18_gru2": _policy("resnet18", 3, "gru", 2),
    "rgbd_resnet50_lstm1": _policy("resnet50", 4, "lstm", 1),
    "depth_se_resnet50_gru3": _policy("se_resnet50", 1, "gru", 3),
    "rgb_resneXt50_lstm2": _policy("resneXt50", 3, "lstm", 2),
    "rgbd_se_resneXt50_lstm2": _policy("se_resneXt50", 4, "lstm", 2),
    "depth_se_resneXt101_lstm1": _policy("se_resneXt101", 1, "lstm", 1),
    "blind_lstm1": PolicySpec(encoder_spec("blind"), 16, 16, "lstm", 1),
}


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights {name: float32} of given shapes, each a function of its name: about as large as trained ones."""
    return {name: torch.from_numpy(_weight(name, shape)) for name, shape in shapes.items()}


def observations(spec: PolicySpec) -> dict[str, Tensor]:
    """[STEPS, ENVS, ...] of everything that the recorded policies were asked, masks and previous actions included."""
    rng = np.random.default_rng(7)
    rgb = rng.integers(0, 256, (STEPS, ENVS, SIDE, SIDE, 3), dtype=np.uint8)
    depth = rng.random((STEPS, ENVS, SIDE, SIDE, 1), dtype=np.float32)
    goal = rng.uniform(-3, 3, (STEPS, ENVS, 2)).astype(np.float32)
    seen = {"rgb": rgb, "depth": depth}
    return {
        **{key: torch.from_numpy(seen[key]) for key in spec.encoder.observations},
        "pointgoal_with_gps_compass": torch.from_numpy(goal),
        "prev_actions": torch.tensor([[0, 0], [1, 2], [3, 1]]),
        "masks": torch.tensor([[False, False], [True, True], [True, False]]),
    }


def _weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    noise = rng.uniform(-1, 1, shape)
    if name.endswith("_count"):
        value = np.full(shape, 100.0)
    elif name.endswith("_var"):
        value = 0.06 + 0.02 * noise
    elif name.endswith("_mean"):
        value = 0.5 + 0.1 * noise
    elif len(shape) > 1:
        value = noise * np.sqrt(3 / np.prod(shape[1:]))
    else:
        value = 0.1 * noise + name.endswith("weight")  # of a norm
    return value.astype(np.float32)


def random_policy(spec, seed=0):
    """A policy whose every tensor, running statistics included, is random."""
    policy = build(spec, seed)
    policy.load_state_dict(weights({key: tuple(v.shape) for key, v in policy.state_dict().items()}))
    return policy


def answers_of(policy, observations):
    """What habitat-baselines' policy answers to observations with "prev_actions" and "masks"."""
    features = []
    policy.net.state_encoder.register_forward_hook(lambda module, inputs, output: features.append(output[0]))
    seen = dict(observations)
    previous, masks = seen.pop("prev_actions"), seen.pop("masks")
    with torch.inference_mode():
        out = policy.eval().sequence(seen, policy.initial_state(2), previous, masks)
    return {
        "features": features[0],
        "values": out.values[..., None],
        "action_logits": out.logits.log_softmax(-1),  # recorded as normalised log-probabilities
        "recurrent_state": out.state,
    }


def assert_answers(answers, expected):
    for key, answer in answers.items():
        torch.testing.assert_close(answer, expected[key], atol=1e-4, rtol=0, msg=f"{key}: {{}}".format)


def loaded(path):
    spec, state = read_foreign(path)
    policy = build(spec)
    policy.load_state_dict(state)
    return policy

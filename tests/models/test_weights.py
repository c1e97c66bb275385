from pathlib import Path

import numpy as np
import pytest
import torch

from navprune.errors import UserError
from navprune.models.spec import PolicySpec, build, encoder_spec
from navprune.models.weights import read_foreign

POLICIES = Path(__file__).parents[1] / "data" / "reference" / "policy"
NAMES = ("depth_resnet18_gru1", "depth_resnet50_lstm2")


def _state(name=NAMES[0]):
    return torch.load(POLICIES / f"{name}.pth", weights_only=True)["state_dict"]


@pytest.mark.parametrize("name", NAMES)
def test_recorded_answers_of_habitat_baselines_are_reproduced(name):
    spec, state = read_foreign(POLICIES / f"{name}.pth")
    policy = build(spec)
    policy.load_state_dict(state)
    recorded = {key: torch.from_numpy(value) for key, value in np.load(POLICIES / f"{name}.npz").items()}
    observations = {k.removeprefix("obs_"): v for k, v in recorded.items() if k.startswith("obs_")}
    features = []
    policy.net.state_encoder.register_forward_hook(lambda module, inputs, output: features.append(output[0]))
    with torch.inference_mode():
        out = policy.sequence(
            observations,
            policy.initial_state(2),
            recorded["prev_actions"].squeeze(-1),
            recorded["masks"].squeeze(-1),
        )
    answers = {
        "features": features[0],
        "values": out.values[..., None],
        "action_logits": out.logits.log_softmax(-1),  # recorded as normalised log-probabilities
        "recurrent_state": out.state,
    }
    for key, answer in answers.items():
        torch.testing.assert_close(answer, recorded[key], atol=1e-4, rtol=0, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("prefix, wrapped", [("actor_critic.", True), ("", False)])
def test_prefix_and_wrapping_do_not_matter(tmp_path, prefix, wrapped):
    state = {prefix + key: value for key, value in _state().items()}
    torch.save({"state_dict": state} if wrapped else state, tmp_path / "a.pth")
    spec, read = read_foreign(tmp_path / "a.pth")
    assert spec == PolicySpec(encoder_spec("resnet18", (1, 128, 128), 8), visual_features=64, hidden_size=64)
    assert read.keys() == _state().keys()


@pytest.mark.parametrize(
    "spec",
    [
        PolicySpec(encoder_spec("blind"), hidden_size=24, visual_features=24),
        PolicySpec(encoder_spec("resnet50", (4, 256, 256), 4), 40, 24, "lstm", 3, actions=6),
    ],
)
def test_spec_is_inferred_from_the_shapes(tmp_path, spec):
    torch.save({"state_dict": build(spec).state_dict()}, tmp_path / "a.pth")
    assert read_foreign(tmp_path / "a.pth")[0] == spec


def _without_goal_network(path):
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, path)


def _three_blocks_in_a_stage(path):
    state = _state()
    extra = {k.replace("layer2.1", "layer2.2"): v for k, v in state.items() if "layer2.1" in k}
    torch.save(state | extra, path)


def _wider_inside(path):
    key = "net.visual_encoder.backbone.layer4.0.convs.0.weight"
    torch.save({**_state(), key: torch.zeros(128, 32, 3, 3)}, path)


def _pickled_object(path):
    torch.save({"state_dict": _state(), "config": Path("somewhere")}, path)


def _cut_off(path):
    path.write_bytes((POLICIES / f"{NAMES[0]}.pth").read_bytes()[:5000])


def _text(path):
    path.write_text("not weights")


@pytest.mark.parametrize(
    "write",
    [
        lambda path: None,
        _without_goal_network,
        _three_blocks_in_a_stage,
        _wider_inside,
        _pickled_object,
        _cut_off,
        _text,
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, write):
    path = tmp_path / "a.pth"
    write(path)
    with pytest.raises(UserError, match=r"a\.pth") as caught:
        read_foreign(path)
    assert "\n" not in str(caught.value)

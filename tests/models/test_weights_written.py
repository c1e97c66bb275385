"""Files that habitat-baselines loads: what is written is read again, and what it cannot build is refused."""

from dataclasses import replace

import pytest
import recorded_policies as recorded
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.spec import PolicySpec, encoder_spec
from navprune.models.weights import PREFIX, foreign_bytes, read_foreign
from navprune.models.widths import with_widths

dense = st.builds(
    lambda name, channels, size, hidden, rnn, layers: PolicySpec(
        encoder_spec(name, (channels, *size), 8), hidden, hidden, rnn, layers
    ),
    st.sampled_from(["resnet18", "se_resneXt50", "blind"]),
    st.sampled_from([1, 3, 4]),
    st.sampled_from([(64, 64), (128, 128)]),
    st.integers(1, 20),
    st.sampled_from(["gru", "lstm"]),
    st.integers(1, 3),
)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(dense)
def test_what_is_written_is_read_again(tmp_path_factory, spec):
    policy = recorded.random_policy(spec)
    path = tmp_path_factory.mktemp("export") / "a.pth"
    path.write_bytes(foreign_bytes(policy))
    read, state = read_foreign(path)
    assert read == spec
    assert state.keys() == policy.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in policy.state_dict().items())
    written = torch.load(path, weights_only=True)
    assert all(key.startswith(PREFIX) for key in written["state_dict"])


def test_colour_and_depth_are_written_in_habitats_order(tmp_path):
    encoder = encoder_spec("resnet18", (4, 64, 64), 8, observations=("rgb", "depth"))
    policy = recorded.random_policy(PolicySpec(encoder, 16, 16))
    (tmp_path / "a.pth").write_bytes(foreign_bytes(policy))
    read = recorded.loaded(tmp_path / "a.pth")
    assert read.spec.encoder.observations == ("depth", "rgb")
    observations = recorded.observations(recorded.POLICIES["rgbd_resnet50_lstm1"])
    observations |= {key: observations[key][:, :, :64, :64] for key in ("rgb", "depth")}
    recorded.assert_answers(recorded.answers_of(policy, observations), recorded.answers_of(read, observations))


RESNET = encoder_spec("resnet18", (1, 64, 64), 8)


@pytest.mark.parametrize(
    "spec, words",
    [
        (PolicySpec(with_widths(RESNET, {"stage2.block0.conv1": 4}), 16, 16), "stage2.block0.conv1 has 4 channels"),
        (PolicySpec(replace(RESNET, output=32), 16, 16), "32 channels instead of 2048"),
        (PolicySpec(replace(RESNET, normalise=True), 16, 16), "running mean"),
        (PolicySpec(RESNET, 16, 32), "visual_features is 16"),
        (PolicySpec(RESNET, 16, 16, goal_details=True), "goal details"),
        (PolicySpec(encoder_spec("resnet18", (1, 64, 64), 8, groups=8), 16, 16), "stem"),
        (PolicySpec(encoder_spec("simple_cnn", (1, 64, 64)), 16, 16), "simple_cnn"),
    ],
)
def test_networks_that_habitat_baselines_cannot_build_are_not_written(spec, words):
    with pytest.raises(UserError, match=rf"only a dense one: .*{words}") as caught:
        foreign_bytes(build(spec))
    assert "\n" not in str(caught.value)

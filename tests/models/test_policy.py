import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from navprune.models.build import build
from navprune.models.policy import _goal_details
from navprune.models.spec import PolicySpec, encoder_spec
from navprune.tasks.measures import goal_vectors

T, N = 7, 3
ENCODERS = {
    "resnet18": encoder_spec("resnet18", (1, 32, 32), 8, output=16),
    "simple_cnn": encoder_spec("simple_cnn", (4, 40, 40)),
    "blind": encoder_spec("blind"),
}


def _inputs(n=N, size=32):
    generator = torch.Generator().manual_seed(0)
    observations = {
        "depth": torch.rand(T, n, size, size, 1, generator=generator),
        "rgb": torch.randint(0, 256, (T, n, size, size, 3), generator=generator).to(torch.uint8),
        "pointgoal_with_gps_compass": 3 * torch.rand(T, n, 2, generator=generator),
    }
    actions = torch.randint(0, 4, (T, n), generator=generator)
    masks = torch.rand(T, n, generator=generator) > 0.3
    return observations, actions, masks


def _policy(encoder="resnet18", rnn="gru", layers=1, goal_details=False):
    core = {"visual_features": 24, "hidden_size": 16, "rnn": rnn, "rnn_layers": layers}
    return build(PolicySpec(ENCODERS[encoder], **core, goal_details=goal_details), seed=0)


def _loop(policy, observations, state, actions, masks):
    logits, values = [], []
    for t in range(T):
        out = policy({k: v[t] for k, v in observations.items()}, state, actions[t], masks[t])
        state = out.state
        logits.append(out.logits)
        values.append(out.values)
    return torch.stack(logits), torch.stack(values), state


@pytest.mark.parametrize("goal_details", [False, True])
@pytest.mark.parametrize("rnn, layers", [("gru", 1), ("gru", 2), ("lstm", 1), ("lstm", 2)])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_sequence_equals_the_plain_loop(encoder, rnn, layers, goal_details):
    policy = _policy(encoder, rnn, layers, goal_details)
    observations, actions, masks = _inputs(size=policy.spec.encoder.input[1] or 32)
    state = torch.randn_like(policy.initial_state(N))
    out = policy.sequence(observations, state, actions, masks)
    torch.testing.assert_close(tuple(out), _loop(policy, observations, state, actions, masks))


@settings(deadline=None)
@given(st.floats(-10, 10), st.floats(-10, 10), st.floats(-3, 3), st.floats(0, 1), st.booleans())
def test_goal_details_tell_how_far_a_step_ahead_took_the_agent_wherever_the_goal_is(x, z, heading, share, turned):
    ahead = 0.25 * share * np.array([[-math.sin(heading), 0, -math.cos(heading)]])
    goal = np.array([[x, 0.0, z]])
    poses = [(0 * ahead, heading), (0 * ahead, heading + 0.2) if turned else (ahead, heading)]
    seen = [torch.from_numpy(goal_vectors(place, np.array([angle]), goal)).double() for place, angle in poses]
    first, where = _goal_details(seen[0][None], torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[False]]))
    second, _ = _goal_details(seen[1][None], where, torch.tensor([[not turned]]))
    wanted = [0.0, 0.0] if turned else [share, 0.0]
    assert first[0, 0, -2:].tolist() == [0.0, 0.0]
    assert second[0, 0, -2:].tolist() == pytest.approx(wanted, abs=1e-4)


def test_goal_details_are_no_part_of_networks_that_lack_them():
    plain, more = _policy(), _policy(goal_details=True)
    added = more.state_dict().keys() - plain.state_dict().keys()
    assert added == {"net.goal_details.weight", "net.goal_details.bias"}
    written = plain.spec.to_json()
    del written["goal_details"]  # as every file before there were any
    assert PolicySpec.from_json(written) == plain.spec
    assert PolicySpec.from_json(more.spec.to_json()) == more.spec


@pytest.mark.parametrize("rnn", ["gru", "lstm"])
def test_sequence_has_the_gradients_of_the_plain_loop(rnn):
    policy = _policy("blind", rnn, 2)
    observations, actions, masks = _inputs()
    state = policy.initial_state(N)
    parameters = list(policy.parameters())

    def gradients(logits, values, *_):
        loss = logits.log_softmax(-1)[..., 0].mean() + values.square().mean()
        return torch.autograd.grad(loss, parameters)

    wanted = gradients(*_loop(policy, observations, state, actions, masks))
    torch.testing.assert_close(gradients(*policy.sequence(observations, state, actions, masks)), wanted)


def test_nothing_before_an_episode_begins_is_remembered():
    policy = _policy()
    observations, actions, masks = _inputs()
    masks[:] = True
    masks[4, 1] = False
    state = policy.initial_state(N)
    out = policy.sequence(observations, state, actions, masks)
    changed = {key: value.clone() for key, value in observations.items()}
    changed["depth"][:4] = 0
    actions = actions.clone()
    actions[:5] = (actions[:5] + 1) % 4  # the action before the first step of the episode is cleared, too
    other = policy.sequence(changed, state, actions, masks)
    torch.testing.assert_close(out.logits[4:, 1], other.logits[4:, 1])
    assert not torch.allclose(out.logits[4:, 0], other.logits[4:, 0])


@pytest.mark.parametrize("encoder", ENCODERS)
def test_features_can_be_computed_beforehand(encoder):
    policy = _policy(encoder)
    observations, actions, masks = _inputs(size=policy.spec.encoder.input[1] or 32)
    features = policy.encode({k: v.flatten(0, 1) for k, v in observations.items()}).unflatten(0, (T, N))
    state = policy.initial_state(N)
    goal = {"pointgoal_with_gps_compass": observations["pointgoal_with_gps_compass"]}
    wanted = policy.sequence(observations, state, actions, masks)
    torch.testing.assert_close(tuple(policy.sequence(goal, state, actions, masks, features)), tuple(wanted))
    one = policy({k: v[0] for k, v in goal.items()}, state, actions[0], masks[0], features[0])
    torch.testing.assert_close(one.logits, wanted.logits[0])


def test_environments_do_not_see_each_other():
    policy = _policy("blind", "lstm")
    observations, actions, masks = _inputs()
    state = torch.randn_like(policy.initial_state(N))
    together = policy.sequence(observations, state, actions, masks)
    for n in range(N):
        own = {key: value[:, n : n + 1] for key, value in observations.items()}
        alone = policy.sequence(own, state[n : n + 1], actions[:, n : n + 1], masks[:, n : n + 1])
        torch.testing.assert_close(alone.logits[:, 0], together.logits[:, n])
        torch.testing.assert_close(alone.state[0], together.state[n])


def test_untrained_actions_are_almost_equally_likely():
    policy = _policy()
    observations, actions, masks = _inputs()
    out = policy.sequence(observations, policy.initial_state(N), actions, masks)
    assert (out.logits.softmax(-1) - 0.25).abs().max() < 0.02


def test_goal_angle_does_not_jump_at_pi():
    policy = _policy("blind")
    step = {"pointgoal_with_gps_compass": torch.tensor([[2.0, 3.141592], [2.0, -3.141592]])}
    arguments = policy.initial_state(2), torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.bool)
    out = policy(step, *arguments)
    torch.testing.assert_close(out.logits[0], out.logits[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("rnn", ["gru", "lstm"])
def test_autocast_leaves_answers_in_full_precision(rnn):
    policy = _policy(rnn=rnn)
    observations, actions, masks = _inputs()
    wanted = policy.sequence(observations, policy.initial_state(N), actions, masks)
    with torch.autocast("cpu", torch.bfloat16):
        out = policy.sequence(observations, policy.initial_state(N), actions, masks)
    for answer, full in zip(out, wanted):
        assert answer.dtype == torch.float32
        torch.testing.assert_close(answer, full, atol=0.03, rtol=0.03)


class OneStep(torch.nn.Module):
    """The policy as a tuple of tensors, as a trace wants it."""

    def __init__(self, policy):
        super().__init__()
        self.policy = policy

    def forward(self, *inputs):
        return tuple(self.policy(*inputs))


def _exported(step, inputs):
    return torch.export.export(step, inputs).module()


def _traced(step, inputs):
    return torch.jit.trace(step, inputs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("export", [_exported, _traced])
@pytest.mark.parametrize("encoder", ["resnet18", "blind"])
@pytest.mark.parametrize(("rnn", "layers"), [("gru", 1), ("lstm", 2)])
def test_a_step_is_exported_with_both_answers_to_whether_an_episode_begins(export, encoder, rnn, layers):
    policy = _policy(encoder, rnn, layers).eval()
    observations, actions, _ = _inputs()
    first = {key: value[0] for key, value in observations.items()}
    state = torch.randn_like(policy.initial_state(N))
    step = OneStep(policy)
    with torch.no_grad():
        exported = export(step, (first, state, actions[0], torch.ones(N, dtype=torch.bool)))
        answers = []
        for masks in ([True] * N, [False] * N, [True, False, True]):
            inputs = first, state, actions[0], torch.tensor(masks)
            answers.append(exported(*inputs))
            torch.testing.assert_close(answers[-1], step(*inputs), atol=1e-6, rtol=0)
    assert (answers[0][2] - answers[1][2]).abs().max() > 0.1


@pytest.mark.parametrize("rnn", ["gru", "lstm"])
def test_clearing_the_state_is_exact_bit_for_bit(rnn):
    """By multiplication, where no episode begins, -0, infinity and NaN included: as if there were no mask."""
    policy = _policy("blind", rnn)
    state = torch.randn_like(policy.initial_state(N))
    state[0, 0, :4] = torch.tensor([-0.0, 1e-45, float("inf"), float("nan")])
    assert torch.equal((state * torch.ones(N, 1, 1, dtype=torch.bool)).view(torch.int32), state.view(torch.int32))
    core, x = policy.net.state_encoder, torch.randn(1, N, policy.net.state_encoder.rnn.input_size)
    hidden = state.transpose(0, 1).contiguous()
    plain, _ = core.rnn(x, hidden.chunk(2) if rnn == "lstm" else hidden)
    masked, _ = core(x, state, torch.ones(1, N, dtype=torch.bool))
    assert torch.equal(masked.view(torch.int32), plain.view(torch.int32))
    cleared, _ = core(x, state, torch.tensor([[True, False, True]]))
    assert torch.equal(cleared[:, ::2].view(torch.int32), plain[:, ::2].view(torch.int32))

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from navprune.models.build import build
from navprune.models.encoders import RunningMeanAndVar
from navprune.models.spec import PolicySpec, encoder_spec
from navprune.models.step import OUTPUTS, PolicyStep, metres_of
from navprune.sensors import SENSORS
from navprune.simulator.images import _to_depth
from navprune.tasks import GOAL

SEEING = [("resnet18", ("depth",)), ("se_resneXt50", ("depth", "rgb")), ("simple_cnn", ("rgb",)), ("blind", ())]


def sensed(metres, low, high):
    """What the simulator's depth sensor tells, float32 [N], of depths in metres."""
    out = torch.empty(1, len(metres), 1)
    _to_depth((1 / metres).numpy()[None], low, high, 1.0 / (high - low), out.numpy())
    return out[0, :, 0]


def observed(spec, batch, rng):
    """Observations of a task, the goal beside them."""
    height, width = spec.encoder.input[1:]
    shapes = {name: (batch, height, width, SENSORS[name].channels) for name in spec.encoder.observations}
    seen = {name: torch.rand(shape, generator=rng) for name, shape in shapes.items()}
    seen = {name: (x * 255).byte() if SENSORS[name].is_bytes else x for name, x in seen.items()}
    return seen | {GOAL: torch.rand(batch, 2, generator=rng) * 4 - 1e-3}


@pytest.mark.parametrize("rnn", ["gru", "lstm"])
@pytest.mark.parametrize(("encoder", "seen"), SEEING)
def test_a_step_is_the_policy_itself(encoder, seen, rnn):
    channels = sum(SENSORS[name].channels for name in seen)
    visual = encoder_spec(encoder, (channels, 48, 64), 8, observations=seen or None)
    spec = PolicySpec(visual, 16, 16, rnn, 2, goal_details=rnn == "gru")
    policy, rng = build(spec, seed=0).eval(), torch.Generator().manual_seed(0)
    step = PolicyStep(policy, 0.0, 8.0)
    state = own = policy.initial_state(3)
    for masks in torch.tensor([[0, 0, 0], [1, 1, 0], [1, 1, 1]]):
        observations, previous = observed(spec, 3, rng), torch.randint(4, (3,), generator=rng)
        raw = [
            metres_of(x, 0.0, 8.0) if x.dtype == torch.float32 else x
            for name, x in observations.items()
            if name != GOAL
        ]
        with torch.no_grad():
            wanted = policy(observations, state, previous, masks.bool())
            found = step(*raw, observations[GOAL], previous, masks.float(), own)
        torch.testing.assert_close(tuple(found), tuple(wanted), atol=1e-5, rtol=1e-5)
        state, own = wanted.state, found[2]


def test_the_example_is_what_a_step_takes():
    policy = build(PolicySpec(encoder_spec("resnet18", (4, 32, 48), 4), 16, 16), seed=0)
    step = PolicyStep(policy, 0.0, 10.0)
    assert step.inputs == ("depth", "rgb", "goal", "previous_action", "mask", "state")
    example = step.example(2)
    assert [tuple(x.shape) for x in example] == [(2, 32, 48, 1), (2, 32, 48, 3), (2, 2), (2,), (2,), (2, 1, 16)]
    assert [tuple(x.shape) for x in step(*example)] == [(2, 4), (2,), (2, 1, 16)] and len(OUTPUTS) == 3


def test_a_previous_action_at_the_start_of_an_episode_does_not_matter():
    policy = build(PolicySpec(encoder_spec("blind"), hidden_size=16, goal_details=True), seed=0)
    goal, _, mask, _ = PolicyStep(policy, 0.0, 10.0).example()
    answers = [
        PolicyStep(policy, 0.0, 10.0)(goal, torch.tensor([action]), mask, torch.full((1, 2, 16), filled))
        for action, filled in ((0, 0.0), (-7, 3.0), (99, -1.0))
    ]
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0], atol=0, rtol=0)


METRES = st.lists(st.floats(1e-3, 30), min_size=1, max_size=50)


def there_and_back(metres, low, high):
    """What a step makes of depths that the task's sensor told, and what the sensor had told."""
    told = sensed(torch.tensor(metres), low, high)
    step = PolicyStep(build(PolicySpec(encoder_spec("blind"), hidden_size=4), seed=0), low, high)
    return step._scaled("depth", metres_of(told, low, high)), told


@given(METRES)
@settings(deadline=None)
def test_depth_goes_to_metres_and_back_bit_for_bit(metres):
    found, told = there_and_back(metres, 0.0, 10.0)
    assert torch.equal(found, told)


@given(METRES, st.floats(0, 0.9), st.floats(1, 20))
@settings(deadline=None)
def test_of_other_ranges_the_last_bit_may_differ(metres, low, high):
    found, told = there_and_back(metres, low, high)
    torch.testing.assert_close(found, told, atol=2**-22, rtol=0)


def test_a_step_learns_nothing_of_its_images():
    policy = build(PolicySpec(encoder_spec("resnet18", (3, 32, 32), 4), 16, 16), seed=0).train()
    step = PolicyStep(policy, 0.0, 10.0)
    means = [module for module in policy.modules() if isinstance(module, RunningMeanAndVar)]
    step(*step.example())
    assert means and all((mean._count == 0).all() for mean in means)

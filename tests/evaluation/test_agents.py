import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from navprune.evaluation.agents import Compared, FileAgent, GoalFollower, PolicyAgent, RandomAgent, choose, margins
from navprune.evaluation.evaluate import evaluate
from navprune.models.build import build
from navprune.models.spec import PolicySpec, encoder_spec
from navprune.models.step import OUTPUTS, PolicyStep
from navprune.tasks import FORWARD, GOAL, LEFT, RIGHT, STOP
from navprune.tasks.config import TaskConfig


def act(agent, goals, draws=None):
    """Actions of an agent that sees `goals` [N, 2], in all rows."""
    goals = torch.tensor(goals)
    agent.start(len(goals))
    draws = torch.zeros(len(goals)) if draws is None else draws
    masks = torch.zeros(len(goals), dtype=torch.bool)
    return agent.act({GOAL: goals}, masks, torch.arange(len(goals)), draws.double()).tolist()


def test_greedy_takes_the_largest():
    assert choose(torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), None).tolist() == [1, 0]


def test_equally_spaced_draws_give_the_distribution_itself():
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0])
    draws = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    counts = choose(logits.expand(10_000, 4), draws).bincount(minlength=4)
    torch.testing.assert_close(counts / 10_000, logits.softmax(0), atol=2e-4, rtol=0)


@given(st.lists(st.floats(-80, 80), min_size=2, max_size=6), st.floats(0, 1, exclude_max=True))
def test_a_sample_is_always_an_action(logits, draw):
    action = choose(torch.tensor([logits]), torch.tensor([draw], dtype=torch.float64))
    assert 0 <= int(action) < len(logits)


def test_goal_follower_turns_walks_and_stops():
    degree = math.pi / 180
    goals = [[3.0, 0.0], [3.0, 14 * degree], [3.0, 16 * degree], [3.0, -90 * degree], [0.19, 2.0]]
    assert act(GoalFollower(), goals) == [FORWARD, FORWARD, LEFT, RIGHT, STOP]
    assert act(GoalFollower(TaskConfig(success_distance=4.0)), goals) == [STOP] * 5


def test_random_agent_moves_evenly_and_stops_at_the_goal():
    draws = (torch.arange(300) + 0.5) / 300
    moves = act(RandomAgent(), [[2.0, 0.0]] * 300, draws)
    assert [moves.count(action) for action in (STOP, FORWARD, LEFT, RIGHT)] == [0, 100, 100, 100]
    assert act(RandomAgent(), [[0.1, 0.0]]) == [STOP]


@pytest.fixture(scope="module")
def blind():
    return build(PolicySpec(encoder_spec("blind"), hidden_size=32), seed=0)


def test_policy_agent_follows_the_policy(blind):
    """Against the policy itself, called with the same state, previous actions and masks."""
    agent, rng = PolicyAgent(blind, greedy=False, chunk=4), torch.Generator().manual_seed(0)
    agent.start(6)
    state, previous = blind.initial_state(6), torch.zeros(6, dtype=torch.int64)
    for step in range(5):
        goals, draws = torch.rand(6, 2, generator=rng), torch.rand(6, generator=rng, dtype=torch.float64)
        masks = torch.arange(6) != step if step else torch.zeros(6, dtype=torch.bool)
        actions = agent.act({GOAL: goals}, masks, torch.arange(6), draws)
        with torch.no_grad():
            output = blind({GOAL: goals}, state, previous, masks)
        assert actions.tolist() == choose(output.logits, draws).tolist()
        torch.testing.assert_close(agent.state, output.state)
        state, previous = output.state, actions


def test_idle_environments_neither_change_nor_disturb(blind):
    agent = PolicyAgent(blind)
    agent.start(3)
    goals = torch.tensor([[1.0, 0.5], [math.nan, math.nan], [2.0, -0.5]])
    rows = torch.tensor([0, 2])
    agent.act({GOAL: goals}, torch.zeros(3, dtype=torch.bool), rows, torch.zeros(2).double())
    assert agent.state[rows].isfinite().all() and agent.state[rows].abs().sum() > 0
    assert (agent.state[1] == 0).all()


@torch.inference_mode()
def step_of(policy, bias=0.0):
    """What a file of a policy would compute; with a bias, of one that errs."""
    step = PolicyStep(policy, 0.0, 10.0)
    off = torch.tensor([0.0, 0.0, bias, 0.0])

    def run(inputs):
        outputs = dict(zip(OUTPUTS, step(*inputs.values())))
        return outputs | {"logits": outputs["logits"] + off}

    return torch.inference_mode()(run)


@pytest.fixture(scope="module")
def seeing():
    policy = build(PolicySpec(encoder_spec("resnet18", (1, 32, 32), 4), 16, 16, goal_details=True), seed=0)
    with torch.no_grad():
        policy.action_distribution["linear"].weight.mul_(100)
    return policy.eval()


@pytest.mark.parametrize("greedy", [False, True])
def test_a_file_takes_every_episode_as_its_policy_does(seeing, episodes, make_env, greedy):
    eager = evaluate(make_env(episodes, 4), PolicyAgent(seeing, greedy), episodes)
    file = FileAgent(step_of(seeing), seeing.spec, TaskConfig(), greedy)
    assert evaluate(make_env(episodes, 3), file, episodes).episodes == eager.episodes


def test_agents_that_agree_differ_nowhere(seeing, episodes, make_env):
    env = make_env(episodes, 4)
    file = FileAgent(step_of(seeing), seeing.spec, TaskConfig(), greedy=False)
    both = Compared(file, PolicyAgent(seeing, greedy=False), env)
    alone = evaluate(make_env(episodes, 4), PolicyAgent(seeing, greedy=False), episodes)
    assert evaluate(env, both, episodes).episodes == alone.episodes
    found = both.to_json()
    assert found["differing"] == [] and found["largest_deviation"] < 1e-4
    assert found["steps"] == sum(record["steps"] for record in alone.episodes)


def test_every_step_that_differs_is_told(seeing, episodes, make_env):
    """A file that likes to turn left differs near the policy's ties, for a draw is taken from all shares together."""
    env = make_env(episodes, 4)
    file = FileAgent(step_of(seeing, bias=0.3), seeing.spec, TaskConfig(), greedy=False)
    both = Compared(file, PolicyAgent(seeing, greedy=False), env)
    result = evaluate(env, both, episodes)
    lengths = {(record["scene"], record["episode_id"]): record["steps"] for record in result.episodes}
    assert both.differing and both.deviation == pytest.approx(0.3, abs=1e-4)
    for step in both.differing:
        assert step["action"] != step["reference"]
        assert 0 <= step["step"] < lengths[step["scene"], step["episode_id"]]
        assert 0 <= step["margin"] < 0.1  # a logit of 0.3 moves a share by 0.075 at most


@given(st.lists(st.floats(-5, 5), min_size=4, max_size=4), st.floats(0, 1, exclude_max=True))
def test_a_choice_changes_where_its_margin_ends(logits, draw):
    row, draws = torch.tensor([logits]), torch.tensor([draw], dtype=torch.float64)
    margin = margins(row, draws)
    assert 0 <= float(margin) <= 1
    inside = [draws - 0.99 * margin, draws + 0.99 * margin]
    assert all(int(choose(row, moved)) == int(choose(row, draws)) for moved in inside if 0 <= float(moved) < 1)
    likely = row.double().softmax(-1).sort(descending=True).values[0]
    assert float(margins(row, None)) == pytest.approx(float(likely[0] - likely[1]))

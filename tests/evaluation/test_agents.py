import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from navprune.evaluation.agents import GoalFollower, PolicyAgent, RandomAgent, choose
from navprune.models.build import build
from navprune.models.spec import PolicySpec, encoder_spec
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

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from navprune.errors import UserError
from navprune.rl.group import Group
from navprune.rl.monitor import Timers
from navprune.rl.phases import phases_of
from navprune.rl.ppo import PPOConfig
from navprune.rl.rollouts import Actor
from navprune.rl.trainer import TrainerConfig, train
from navprune.rl.warm_start import STOP, Drivers, WarmStart, WarmStartConfig, compact, discounted_returns


@pytest.fixture
def start(toys, tmp_path):
    """Builds a warm start on the corridor."""

    def build(policy=None, **options):
        policy = policy or toys.policy()
        actor = Actor(
            toys.Corridor(),
            policy,
            device=torch.device("cpu"),
            generator=torch.Generator().manual_seed(0),
            timers=Timers(),
        )
        actor.reset()
        config = WarmStartConfig(**{"steps": 8, "sequence": 4, "batch": 2, "capacity": 96, **options})
        return WarmStart(actor, tmp_path / "rounds", config)

    return build


@given(seed=st.integers(0, 1000), steps=st.integers(1, 10), gamma=st.floats(0, 1))
def test_returns_are_discounted_sums_to_the_end_of_the_episode(seed, steps, gamma):
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(steps, 1, generator=generator, dtype=torch.float64)
    done = torch.rand(steps, 1, generator=generator) < 0.3
    unknown = torch.tensor([math.nan], dtype=torch.float64)
    result = discounted_returns(rewards, done, unknown, gamma)
    for t in range(steps):
        ends = [k for k in range(t, steps) if done[k]]
        if ends:
            expected = sum(gamma ** (k - t) * rewards[k].item() for k in range(t, ends[0] + 1))
            assert result[t].item() == pytest.approx(expected, abs=1e-9)
        else:
            assert result[t].isnan()


def test_while_the_expert_drives_nothing_is_counted(start):
    warm = start(stray=0.0)
    past = warm._collect(beta=1.0)
    assert not warm.actor.ended
    assert past.data["done"].any()
    # What was done at one step is the previous action of the next.
    assert past.data["previous"][1:].equal(past.data["expert"][:-1])


def test_strays_are_the_policys_steps_and_never_stops(start):
    warm = start(stray=1.0, patience=10**9)
    past = warm._collect(beta=1.0)
    taken, wanted = past.data["previous"][1:], past.data["expert"][:-1]
    assert (taken != wanted).any()
    assert (wanted[taken == STOP] == STOP).all()


@given(st.integers(0, 1000), st.floats(0, 1), st.integers(1, 6))
def test_a_driver_changes_where_an_episode_begins_or_the_policy_is_stuck(seed, beta, patience):
    generator = torch.Generator().manual_seed(seed)
    drivers, ended = Drivers(8, patience), torch.ones(8, dtype=torch.bool)
    idle = torch.zeros(8)
    for _ in range(30):
        before = drivers.expert
        drivers.choose(ended, torch.rand(8, generator=generator), beta)
        stuck = ~ended & ~before & (idle >= patience)
        assert ((drivers.expert == before) | ended | stuck).all()
        assert (drivers.expert[stuck]).all() and (drivers.handed_over[stuck]).all()
        assert not drivers.handed_over[ended].any()
        begun = ended
        ended = torch.rand(8, generator=generator) < 0.1
        drivers.note(torch.full((8,), -0.01), ended)
        idle = torch.where(ended, 0.0, torch.where(begun, 0.0, idle) + 1)


def test_a_policy_that_makes_progress_keeps_the_wheel():
    drivers, never = Drivers(1, patience=3), torch.zeros(1, dtype=torch.bool)
    drivers.choose(~never, torch.ones(1), beta=0.5)
    for _ in range(10):
        drivers.note(torch.full((1,), 0.1), never)
        drivers.choose(never, torch.ones(1), beta=0.5)
        assert not drivers.expert
    for _ in range(3):
        assert not drivers.expert
        drivers.note(torch.full((1,), -0.01), never)
        drivers.choose(never, torch.ones(1), beta=0.5)
    assert drivers.expert


def test_an_episode_that_was_handed_over_counts_as_failed(start):
    warm = start(patience=1, stray=0.0)
    while not (warm.drivers.handed_over.any() and warm.actor.ended):
        warm._collect(beta=0.0)
    assert any(measures["success"] == 0 for *_, measures in warm.actor.ended)


def test_beta_falls_to_its_final_value(start):
    assert [start(beta_final=0.5).beta(p) for p in (0.0, 0.5, 1.0)] == [1.0, 0.75, 0.5]


def test_the_buffer_is_bounded_and_keeps_the_latest_rounds(start):
    warm = start()
    for _ in range(5):
        warm.update(0.5, 0)
    assert [past.number for past in warm.rounds] == [3, 4, 5]
    frames = sum(past.data["expert"].numel() for past in warm.rounds)
    assert frames == warm.config.capacity


def test_returns_become_known_when_the_episode_ends(start):
    warm = start()
    for _ in range(3):
        warm.rounds.append(warm._collect(beta=1.0))
        warm._revise_returns()
    rewards, done, returns = (
        torch.cat(parts) for parts in zip(*((p.data["rewards"], p.data["done"], p.returns) for p in warm.rounds))
    )
    expected = discounted_returns(rewards, done, torch.full((4,), math.nan), warm.config.gamma)
    assert torch.equal(returns.nan_to_num(-99), expected.nan_to_num(-99))
    assert returns.isfinite().any() and returns.isnan().any()


def test_batches_are_what_was_seen_at_their_places(start):
    warm = start()
    for _ in range(2):
        warm.rounds.append(warm._collect(beta=0.5))
    data, state, _ = warm._batch([(1, 1, 3), (0, 0, 2)])
    goal = "observations.pointgoal_with_gps_compass"
    assert data[goal][:, 0].equal(warm.rounds[1].data[goal][4:8, 3])
    assert data["expert"][:, 1].equal(warm.rounds[0].data["expert"][0:4, 2])
    assert state[0].equal(warm.rounds[1].states[1, 3])


def test_every_place_of_the_buffer_is_drawn(start):
    warm = start(batch=500)
    for _ in range(2):
        warm.rounds.append(warm._collect(beta=1.0))
    assert set(warm._draw()) == {(r, k, n) for r in range(2) for k in range(2) for n in range(4)}


def test_states_pass_from_a_sequence_to_the_next(start):
    warm = start()
    for _ in range(2):
        warm.rounds.append(warm._collect(beta=1.0))
    before = [past.states.clone() for past in warm.rounds]
    states = torch.arange(3.0)[:, None, None].expand(3, *warm.rounds[0].states.shape[2:])
    warm._pass_on_states([(0, 0, 1), (0, 1, 2), (1, 1, 3)], states + 1)
    assert (warm.rounds[0].states[1, 1] == 1).all() and (warm.rounds[1].states[0, 2] == 2).all()
    changed = [(past.states != old).any(dim=-1).sum() for past, old in zip(warm.rounds, before)]
    assert changed == [1, 1]


def test_images_shrink_and_goals_stay_exact():
    assert compact(torch.rand(2, 4, 4, 1)).dtype == torch.float16
    assert compact(torch.zeros(2, 4, 4, 3, dtype=torch.uint8)).dtype == torch.uint8
    goal = torch.rand(2, 2)
    assert compact(goal).equal(goal)


def test_the_inflection_weight_counts_changes_of_action_more(start):
    losses = []
    for weight in (1.0, 1e9):
        warm = start(inflection_weight=weight, lr=1e-12, epochs=20)
        losses.append((warm, warm.update(0.0, 0).losses["imitation_loss"]))
    warm, loss = losses[1]
    assert loss != pytest.approx(losses[0][1], rel=1e-6)
    past = warm.rounds[0].data
    assert ((past["expert"] != past["previous"]) | ~past["masks"]).float().mean() < 1


def test_the_expert_of_the_corridor_is_imitated(toys, tmp_path):
    frames = 6_400
    warm = WarmStartConfig(frames=frames, steps=16, sequence=16, batch=16, epochs=24.0, lr=1e-2, value_coefficient=0.5)
    config = TrainerConfig(total_frames=frames, threads=1)
    policy = toys.blind_policy()
    result = train(policy, toys.Corridor(num_envs=32), config, phases_of(PPOConfig(), warm), tmp_path)
    assert result.metrics["success"] > 0.9
    # The critic has learnt what an episode's beginning is worth: distance and success, discounted.
    env = toys.Corridor(num_envs=64)
    output = policy(env.reset(), policy.initial_state(64), torch.zeros(64).long(), torch.zeros(64).bool())
    distance = torch.as_tensor(abs(env.goal)).float()
    worth = sum(0.99**k * 0.99 * (k < distance) for k in range(4)) + 0.99**distance * 2.49
    assert (output.values - worth).abs().mean() < 0.3


@pytest.mark.parametrize(
    ("field", "message"), [({"steps": 10, "sequence": 4}, "multiple"), ({"beta_final": 2}, "beta_final")]
)
def test_values_out_of_range_are_named(field, message):
    with pytest.raises(UserError, match=message):
        WarmStartConfig(**field)


def test_a_buffer_smaller_than_a_round(start):
    with pytest.raises(UserError, match="32 frames"):
        start(capacity=31)


@pytest.mark.parametrize("leads", [False, True])
def test_a_warm_start_of_adams_goes_on_with_an_optimiser_that_begins_afresh(start, capsys, monkeypatch, leads):
    """And the first worker says so."""
    warm = start()
    warm.update(0.0, 0)
    warm.store()
    earlier = torch.optim.Adam(warm.policy.parameters()).state_dict()
    other = start()
    monkeypatch.setattr(Group, "leads", leads)
    other.load_state_dict({**warm.state_dict(), "optimiser": earlier})
    assert capsys.readouterr().err.count("\n") == leads and not other.optimiser.state
    assert other.rounds[0].data["expert"].equal(warm.rounds[0].data["expert"])

import pytest
import torch

from navprune.rl.monitor import Timers
from navprune.rl.rollouts import Actor, Rollout, collect, log_probability


def actor_of(policy, env, seed=0):
    actor = Actor(
        env,
        policy,
        device=torch.device("cpu"),
        generator=torch.Generator().manual_seed(seed),
        timers=Timers(),
    )
    actor.reset()
    return actor


@pytest.mark.parametrize("core", [{}, {"rnn": "lstm", "rnn_layers": 2}])
def test_a_recorded_rollout_replays_as_sequences(toys, core):
    policy, env = toys.policy(**core), toys.Corridor()
    actor = actor_of(policy, env)
    rollout = Rollout.like(actor, 15)
    collect(actor, rollout)  # so that the one looked at begins in mid-episode
    collect(actor, rollout)
    assert not rollout.masks.all() and rollout.state.abs().sum() > 0
    for rows in actor.minibatches(2):
        with torch.no_grad():
            output = policy.sequence(
                {name: value[:, rows] for name, value in rollout.observations.items()},
                rollout.state[rows],
                rollout.previous[:, rows],
                rollout.masks[:, rows],
            )
        torch.testing.assert_close(output.values, rollout.values[:, rows], rtol=0, atol=1e-5)
        log_probs = log_probability(output.logits, rollout.actions[:, rows])
        torch.testing.assert_close(log_probs, rollout.log_probs[:, rows], rtol=0, atol=1e-5)
        torch.testing.assert_close(output.state, actor.state[rows], rtol=0, atol=1e-5)


def test_minibatches_take_each_environment_once(toys):
    actor = actor_of(toys.policy(), toys.Corridor(num_envs=7))
    groups = list(actor.minibatches(3))
    assert sorted(torch.cat(groups).tolist()) == list(range(7))
    assert sorted(len(group) for group in groups) == [2, 2, 3]


def test_masks_and_previous_actions_follow_the_episodes(toys):
    actor = actor_of(toys.policy(), toys.Corridor())
    rollout = Rollout.like(actor, 20)
    collect(actor, rollout)
    done = rollout.terminated | rollout.truncated
    assert rollout.masks[0].logical_not().all()
    assert rollout.masks[1:].equal(~done[:-1])
    assert rollout.previous[1:].equal(rollout.actions[:-1])
    assert actor.masks.equal(~done[-1])


def test_next_values_are_those_of_the_same_episode(toys):
    policy, env = toys.policy(), toys.Corridor(limit=3)
    actor = actor_of(policy, env)
    rollout = Rollout.like(actor, 8)
    final = []
    step = env.step

    def remember(actions):
        result = step(actions)
        final.append((result.truncated, result.final_observations))
        return result

    env.step = remember
    collect(actor, rollout)
    assert rollout.truncated.any()
    going_on = ~(rollout.terminated | rollout.truncated)
    assert rollout.next_values[:-1][going_on[:-1]].equal(rollout.values[1:][going_on[:-1]])
    # Replay each stream up to the time limit and let it see the last observation.
    for t, (truncated, observations) in enumerate(final):
        observations = policy.prepare(observations) if truncated.any() else {}
        for k, n in enumerate(truncated.nonzero().squeeze(-1).tolist()):
            seen = {
                name: torch.cat([value[: t + 1, n], observations[name][k : k + 1]])[:, None]
                for name, value in rollout.observations.items()
            }
            previous = torch.cat([rollout.previous[: t + 1, n], rollout.actions[t, n : n + 1]])
            masks = torch.cat([rollout.masks[: t + 1, n], torch.tensor([True])])
            with torch.no_grad():
                output = policy.sequence(seen, rollout.state[[n]], previous[:, None], masks[:, None])
            assert rollout.next_values[t, n].item() == pytest.approx(output.values[-1, 0].item(), abs=1e-5)


def test_every_episode_that_ended_is_noted_where_it_did(toys):
    actor = actor_of(toys.policy(), toys.Corridor())
    rollout = Rollout.like(actor, 60)
    collect(actor, rollout)
    ends = (rollout.terminated | rollout.truncated).nonzero().tolist()
    assert len(ends) > 10 and [[step - 1, env] for step, env, _ in actor.ended] == ends
    assert all(measures["reward"] == rollout.rewards[t, n] for (t, n), (*_, measures) in zip(ends, actor.ended))


@pytest.mark.parametrize("enough", [1, 7])
def test_a_rollout_that_ends_early_is_the_beginning_of_the_whole_one(toys, enough):
    whole, early = (actor_of(toys.policy(), toys.Corridor(limit=3)) for _ in range(2))
    complete = collect(whole, Rollout.like(whole, 12))
    part = collect(early, Rollout.like(early, 12), lambda steps: steps >= enough)
    assert len(part.rewards) == enough and early.steps == enough
    for name, value in vars(part).items():
        if name == "observations":
            assert all(seen.equal(complete.observations[key][:enough]) for key, seen in value.items())
        else:
            expected = complete.state if name == "state" else getattr(complete, name)[:enough]
            torch.testing.assert_close(value, expected)

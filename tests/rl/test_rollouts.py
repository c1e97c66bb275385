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
    for rows in rollout.minibatches(2, actor.generator):
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
    groups = list(Rollout.like(actor, 2).minibatches(3, actor.generator))
    assert sorted(torch.cat(groups).tolist()) == list(range(7))
    assert [len(group) for group in groups] == [3, 2, 2]


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


def test_the_window_holds_the_latest_episodes(toys):
    actor = actor_of(toys.policy(), toys.Corridor())
    rollout = Rollout.like(actor, 60)
    collect(actor, rollout)
    ended = int((rollout.terminated | rollout.truncated).sum())
    assert ended > 10 and actor.window.full and len(actor.window.episodes) == 10
    mean = sum(e["reward"] for e in actor.window.episodes) / 10
    assert actor.window.mean()["reward"] == pytest.approx(mean)

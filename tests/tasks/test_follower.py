"""The greedy follower against the actions that habitat-lab's ShortestPathFollower took, and its laws."""

import math

import numpy as np
import pytest
from recorded_runs import RUNS, read_run

from navprune.tasks import FORWARD, LEFT, RIGHT, STOP, follower, motion
from navprune.tasks.follower import THRASHING, Abilities, Follower, Plans, plan

TURN, STRIDE, RADIUS = math.radians(10.0), 0.25, 0.2


@pytest.fixture(params=RUNS)
def run(request):
    return read_run(request.param)


def test_the_followers_episodes_are_taken_action_by_action(run):
    able = Abilities(RADIUS, STRIDE, TURN, run.sliding)
    for recorded in (episode for episode, mode in zip(run.episodes, run.modes) if mode == "expert"):
        guide, episode = Follower(1, able), recorded.episode
        position, rotation = (np.array([x], np.float32) for x in (episode.start_position, episode.start_rotation))
        for action in recorded.states["action"][1:]:
            (chosen,) = guide.actions(run.pathfinder, position, rotation, np.array([episode.goal_position]))
            assert chosen == action
            if action in (LEFT, RIGHT):
                rotation = motion.turn(rotation, TURN if action == LEFT else -TURN)
            elif action == FORWARD:
                target = motion.aim(position, rotation, STRIDE)
                position = motion.settle(target, run.pathfinder.step(position, target, run.sliding))


def worth(run, position, rotation, goal, side, turns):
    """The formula for one plan, one number after the other."""
    for _ in range(turns):
        rotation = motion.turn(rotation, side * TURN)
    target = motion.aim(position, rotation, STRIDE)
    reached = run.pathfinder.step(position, target, run.sliding)
    before, after = (run.pathfinder.geodesic_distance(place, goal)[0] for place in (position, reached))
    hit = bool(motion.collided(position, target, reached)[0])
    near = run.pathfinder.obstacle_distance(reached)[0] < 0.2
    return (before - after) / STRIDE - 0.0125 * turns - 0.25 * hit - 0.05 * near


def test_a_batch_chooses_for_each_the_plan_that_is_worth_most(run):
    rng, able = np.random.default_rng(3), Abilities(RADIUS, STRIDE, TURN, run.sliding)
    positions, goals = run.pathfinder.sample(40, rng).astype(np.float32), run.pathfinder.sample(40, rng)
    goals[:2] = positions[:2]
    rotations = motion.turn(np.tile(np.array([0, 0, 0, 1], np.float32), (40, 1)), rng.uniform(-3, 3, 40))
    plans = plan(run.pathfinder, able, positions, rotations, goals)
    distances = run.pathfinder.geodesic_distance(positions, goals)
    for i in range(40):
        here = positions[i : i + 1], rotations[i : i + 1], goals[i : i + 1]
        if not RADIUS <= distances[i] < np.inf:
            assert not plans.found[i]
            continue
        best, value = None, -0.25
        for n in range(19):
            for side in (1, -1):
                if (mine := worth(run, *here, side, n)) > value + 1e-6:
                    best, value = side * n, mine
            if value > 0.99:
                break
        assert plans.found[i] == (best is not None)
        assert not plans.found[i] or plans.turns[i] == best
    assert 2 < plans.found.sum() < 39


def test_after_turns_from_side_to_side_a_plan_is_followed_to_its_end(monkeypatch):
    left = iter([2, -2] * THRASHING)

    def fickle(*_):
        return Plans(np.array([next(left), 0]), np.array([True, False]))

    monkeypatch.setattr(follower, "plan", fickle)
    guide, nowhere = Follower(2, Abilities(RADIUS, STRIDE, TURN, True)), np.zeros((2, 4))
    taken = np.array([guide.actions(None, nowhere, nowhere, nowhere) for _ in range(THRASHING + 5)])
    assert taken[:, 0].tolist() == [LEFT, RIGHT] * (THRASHING // 2) + [LEFT, LEFT, FORWARD, RIGHT, LEFT]
    assert (taken[:, 1] == STOP).all()

    guide.reset(0)
    forgotten = np.array([guide.actions(None, nowhere, nowhere, nowhere)[0] for _ in range(THRASHING // 2)])
    assert set(forgotten[1:] + forgotten[:-1]) == {LEFT + RIGHT}, "a plan to follow to its end would repeat a turn"

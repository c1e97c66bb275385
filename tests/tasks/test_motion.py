"""Moves against whole episodes recorded from habitat-sim, and what must hold of any."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded_runs import RUNS, read_run

from navprune.tasks import FORWARD, LEFT, RIGHT, motion
from navprune.tasks.measures import forward_of, heading_of

TURN, STRIDE = math.radians(10.0), 0.25
angles = st.floats(-7, 7, width=32)


@pytest.mark.parametrize("name", RUNS)
def test_whole_episodes_take_habitats_positions(name):
    """From the start alone: every pose to the last digit that was recorded."""
    run = read_run(name)
    states = [episode.states for episode in run.episodes]
    length = max(len(columns["action"]) for columns in states)
    actions = np.array([np.pad(columns["action"], (0, length - len(columns["action"]))) for columns in states])
    positions = np.array([episode.episode.start_position for episode in run.episodes], np.float32)
    rotations = np.array([episode.episode.start_rotation for episode in run.episodes], np.float32)
    for t in range(1, length):
        sides = (actions[:, t] == LEFT).astype(float) - (actions[:, t] == RIGHT)
        rotations = np.where(sides[:, None] != 0, motion.turn(rotations, TURN * sides), rotations)
        targets = motion.aim(positions, rotations, STRIDE)
        reached = motion.settle(targets, run.pathfinder.step(positions, targets, run.sliding))
        positions = np.where(actions[:, t, None] == FORWARD, reached, positions)
        going = [i for i, columns in enumerate(states) if t < len(columns["action"])]
        assert np.allclose(positions[going], [states[i]["position"][t] for i in going], rtol=0, atol=2e-6)
        assert np.allclose(rotations[going], [states[i]["rotation_xyzw"][t] for i in going], rtol=0, atol=2e-6)


@given(heading=angles, by=angles)
def test_a_turn_adds_to_the_heading_and_keeps_the_length(heading, by):
    rotation = np.array([[0, math.sin(heading / 2), 0, math.cos(heading / 2)]], np.float32)
    turned = motion.turn(rotation, by)
    assert turned.dtype == np.float32
    assert np.linalg.norm(turned) == pytest.approx(1, abs=1e-6)
    assert math.remainder(heading_of(turned[0]) - heading - by, 2 * math.pi) == pytest.approx(0, abs=1e-5)


@given(heading=angles)
def test_agents_go_where_they_look_and_land_where_the_path_finder_says(heading):
    rotation = np.array([[0, math.sin(heading / 2), 0, math.cos(heading / 2)]], np.float32)
    start = np.array([[1.5, 0.25, -3]], np.float32)
    target = motion.aim(start, rotation, STRIDE)
    assert np.allclose(target - start, STRIDE * forward_of(heading), atol=1e-6)
    reached = (start + target) / 2
    assert np.allclose(motion.settle(target, reached), reached, rtol=0, atol=1e-6)
    assert motion.collided(start, target, reached).all() and not motion.collided(start, target, target).any()

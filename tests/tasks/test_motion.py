"""Moves against whole episodes recorded from habitat-sim, and what must hold of any."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from navprune.comparisons.recordings import find_answers, find_scene, read_rollouts
from navprune.scenes.files.navmesh import read_navmesh
from navprune.scenes.files.places import navmesh_path
from navprune.simulator.pathfinder import PathFinder
from navprune.tasks import FORWARD, LEFT, RIGHT, motion
from navprune.tasks.measures import forward_of, heading_of

DATA = Path(__file__).parents[1] / "data"
TURN, STRIDE = math.radians(10.0), 0.25
angles = st.floats(-7, 7, width=32)


@pytest.mark.parametrize("scene", ["apartment", "duplex"])
def test_whole_episodes_take_habitats_positions(scene):
    """From the start alone: every pose to the last digit that was recorded."""
    folder = DATA / "reference"
    finder = PathFinder(read_navmesh(navmesh_path(find_scene(folder, scene))))
    rollouts = read_rollouts(find_answers(folder)[scene]["rollouts"], folder, scene)
    length = max(len(rollout.states["action"]) for rollout in rollouts)
    actions = np.array(
        [np.pad(rollout.states["action"], (0, length - len(rollout.states["action"]))) for rollout in rollouts]
    )
    positions = np.array([rollout.episode.start_position for rollout in rollouts], np.float32)
    rotations = np.array([rollout.episode.start_rotation for rollout in rollouts], np.float32)
    for t in range(1, length):
        sides = (actions[:, t] == LEFT).astype(float) - (actions[:, t] == RIGHT)
        rotations = np.where(sides[:, None] != 0, motion.turn(rotations, TURN * sides), rotations)
        targets = motion.aim(positions, rotations, STRIDE)
        reached = motion.settle(targets, finder.step(positions, targets))
        positions = np.where(actions[:, t, None] == FORWARD, reached, positions)
        for i, rollout in enumerate(rollouts):
            if t < len(rollout.states["action"]):
                assert np.allclose(positions[i], rollout.states["position"][t], rtol=0, atol=2e-6)
                assert np.allclose(rotations[i], rollout.states["rotation_xyzw"][t], rtol=0, atol=2e-6)


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

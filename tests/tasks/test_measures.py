import math

import numpy as np
from headings import forward_of, heading_of
from hypothesis import given
from hypothesis import strategies as st

from navprune.tasks import measures

angles = st.floats(-10, 10)
lengths = st.floats(0, 100)


@given(angles)
def test_heading_and_rotation_are_inverse(angle):
    back = heading_of(measures.rotations_of(np.array([angle]))[0])
    assert math.isclose(math.cos(back), math.cos(angle), abs_tol=1e-9)
    assert math.isclose(math.sin(back), math.sin(angle), abs_tol=1e-9)


@given(angles, angles, st.floats(0.1, 50))
def test_goal_vector_is_what_the_agent_must_turn_and_walk(heading, turn, distance):
    position = np.array([1.0, 0.3, -2.0])
    goal = position + distance * forward_of(heading + turn)
    rho, angle = measures.goal_vectors(position[None], np.array([heading]), goal[None])[0]
    assert math.isclose(rho, distance, rel_tol=1e-5)
    assert math.isclose(math.cos(angle), math.cos(turn), abs_tol=1e-4)
    assert math.isclose(math.sin(angle), math.sin(turn), abs_tol=1e-4)


@given(st.booleans(), lengths, lengths, lengths)
def test_spl_is_a_share_and_never_exceeds_success(success, distance, shortest, travelled):
    assert 0 <= measures.spl(success, shortest, travelled) <= float(success)
    assert 0 <= measures.soft_spl(distance, shortest, travelled) <= 1


def test_spl_of_a_detour_of_twice_the_length_is_a_half():
    assert measures.spl(True, 3.0, 6.0) == 0.5
    assert measures.spl(True, 3.0, 1.0) == 1.0
    assert measures.soft_spl(1.5, 3.0, 3.0) == 0.5

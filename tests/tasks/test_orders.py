import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from navprune.tasks.orders import STAY, Shuffled, grouped

KINDS = st.lists(st.integers(0, 4), max_size=60).map(lambda kinds: np.array(kinds, dtype=np.int64))


@given(KINDS, st.integers(1, 9))
def test_grouping_keeps_everything_and_the_order_within_a_kind(kinds, stay):
    order = grouped(kinds, stay)
    assert sorted(order) == list(range(len(kinds)))
    for kind in range(5):
        positions = order[kinds[order] == kind]
        assert (np.diff(positions) > 0).all()
        # Only the last group of a kind may be short of `stay`.
        places = np.flatnonzero(kinds[order] == kind)
        whole = places[: len(places) // stay * stay].reshape(-1, stay)
        assert (np.diff(whole, axis=1) == 1).all()


@given(KINDS)
def test_groups_of_one_change_nothing(kinds):
    assert grouped(kinds, 1).tolist() == list(range(len(kinds)))


def test_an_environment_stays_in_a_scene_and_still_runs_every_episode_once():
    scenes = np.arange(6 * STAY) % 3
    order = Shuffled(len(scenes), 1, seed=0, scenes=scenes)
    drawn = [order.next(0) for _ in scenes]
    assert sorted(drawn) == list(range(len(scenes)))
    changes = sum(scenes[a] != scenes[b] for a, b in itertools.pairwise(drawn))
    assert changes <= 5

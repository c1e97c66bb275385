from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navprune.errors import UserError
from navprune.pruning.allocation import Factor, Problem, allocate


def brute(problem, limit):
    names = [*problem.gains, *problem.blocks]
    ranges = [range(len(gain)) for gain in problem.gains.values()] + [range(2)] * len(problem.blocks)
    choices = (dict(zip(names, levels)) for levels in product(*ranges))
    return max((problem.gain(c) for c in choices if problem.cost(c) <= limit), default=None)


@st.composite
def networks(draw):
    """A trunk of two stages; a projection between them, a block of one width, one of two that may go, a third."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    names = ("t1", "t2", "a", "b", "c", "d")
    levels = {name: draw(st.integers(1, 3)) for name in names}

    def factor(*widths, block=None):
        # Whole numbers of bins, so that nothing is rounded.
        shape = [levels[name] for name in widths]
        gain = rng.normal(size=shape) if rng.random() < 0.5 else None
        return Factor(widths, np.asarray(rng.integers(0, 12, shape), float), block, gain)

    factors = [
        factor("t1"), factor("t1", "t2"), factor("t1", "a"), factor("a", "t2"), factor(),
        factor("t2", "b", block="X"), factor("b", "c", block="X"), factor("c", "t2", block="X"),
        factor("t1", "d", block="Y"), factor("d", "t1", block="Y"), factor(block="Y"),
    ]  # fmt: skip
    gains = {name: np.sort(rng.random(count)) for name, count in levels.items()}
    return Problem(gains, factors, {"X": ("b", "c"), "Y": ("d",)}, {"X": float(rng.random())})


@settings(max_examples=60, deadline=None)
@given(networks(), st.integers(1, 120))
def test_no_other_choice_keeps_more(problem, limit):
    best = brute(problem, limit)
    if best is None:
        with pytest.raises(UserError, match="allow more"):
            allocate(problem, limit, bins=limit)
        return
    choice = allocate(problem, limit, bins=limit)
    assert problem.cost(choice) <= limit
    assert problem.gain(choice) == pytest.approx(best)


@settings(max_examples=20, deadline=None)
@given(networks(), st.floats(20, 100))
def test_rounding_costs_a_few_bins(problem, limit):
    best = brute(problem, limit)
    if best is None:
        return
    choice = allocate(problem, limit * 1.03, bins=512)
    assert problem.gain(choice) >= best - 1e-12
    assert problem.cost(choice) <= limit * 1.05

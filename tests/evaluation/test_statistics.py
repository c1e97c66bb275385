"""Laws of the resampling, and how often intervals and tests err where the truth is known."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from navprune.evaluation.statistics import (
    RUNS,
    Estimate,
    against,
    by_luck,
    draws,
    draws_in_parts,
    holm,
    improvement,
    sample,
    worst_group,
)

FEW = 300
"""Resamples where not the last digit counts."""


@st.composite
def measurements(draw, agents=1):
    """`agents` arrays [runs, episodes] in the same episodes, and the scenes of these."""
    scenes = draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = [rng.uniform(0, 1, (draw(st.integers(1, 4)), len(scenes))).round(1) for _ in range(agents)]
    return (*values, scenes)


def mean(values, scenes=None, stream=0, resamples=FEW):
    return sample(values, scenes, stream, resamples).mean()


# What is drawn ---------------------------------------------------------------------------------------


@given(measurements())
def test_the_mean_is_the_plain_one_and_resamples_stay_in_the_range(measured):
    values, scenes = measured
    found = mean(values, scenes)
    assert found.value == pytest.approx(values.mean())
    assert values.min() - 1e-9 <= found.figures.min() and found.figures.max() <= values.max() + 1e-9
    spread = found.spread()
    assert spread.low <= found.at_least() <= spread.high


@given(measurements())
def test_the_same_scenes_give_the_same_draws(measured):
    """So differences are paired: a difference of means is the mean of differences, in every resample."""
    values, scenes = measured
    other = 1 - values**2
    difference = mean(values, scenes) - mean(other, scenes)
    np.testing.assert_allclose(difference.figures, mean(values - other, scenes).figures, atol=1e-12)
    assert (mean(values, scenes).figures == mean(values, scenes).figures).all()


@given(st.floats(-1e3, 1e3), st.integers(1, 30), st.integers(1, 4))
def test_constant_data_has_no_spread(value, episodes, runs):
    spread = mean(np.full((runs, episodes), value)).spread()
    np.testing.assert_allclose(spread, value, rtol=1e-12, atol=1e-12)


@given(measurements())
def test_measures_side_by_side_are_what_each_is_alone(measured):
    values, scenes = measured
    both = sample(np.stack([values, -3 * values]), scenes, resamples=FEW).means()
    np.testing.assert_allclose(both[:, 0], mean(values, scenes).figures, atol=1e-12)
    np.testing.assert_allclose(both[:, 1], -3 * both[:, 0], atol=1e-12)


LEVELS = {
    "runs": (np.repeat([[0.0], [1.0], [5.0], [2.0]], 24, axis=1), 4),
    "scenes": (np.repeat([[0.0, 1.0, 5.0, 2.0]], 6, axis=1), 4),
    "episodes": (np.array([[0.0, 1.0, 5.0, 2.0] * 6]), 24),
}


@pytest.mark.parametrize(("values", "count"), LEVELS.values(), ids=LEVELS)
def test_every_level_is_drawn_anew_by_itself(values, count):
    """Where all variance lies in one level, that of the resampled mean is the variance over how many there are."""
    scenes = None if count == 24 else [f"{i // 6}" for i in range(24)]
    resampled = mean(values, scenes, resamples=20_000).figures[1:]
    assert resampled.var() == pytest.approx(np.var([0.0, 1.0, 5.0, 2.0]) / count, rel=0.05)


def test_a_scene_drawn_twice_has_its_episodes_drawn_anew_each_time():
    """Else the variance within scenes would count twice as much as it does."""
    values, scenes = np.array([[0.0, 1.0] * 20]), [f"{i // 4:02}" for i in range(40)]
    within = mean(values, scenes, resamples=20_000).figures[1:].var()
    assert within == pytest.approx(0.25 / 40, rel=0.05)


def test_runs_of_two_agents_are_drawn_apart():
    values = np.arange(4.0)[:, None] * np.ones((4, 5))
    apart = mean(values, stream=1, resamples=20_000) - mean(values, stream=2, resamples=20_000)
    assert apart.figures.var() == pytest.approx(2 * np.var(np.arange(4.0)) / 4, rel=0.05)


def test_the_interval_of_episodes_alone_is_the_normal_one_and_shrinks_with_their_root():
    rng = np.random.default_rng(1)
    for count in (100, 1600):
        values = rng.normal(size=(1, count))
        spread = mean(values, resamples=10_000).spread()
        half = 1.96 * values.std() / np.sqrt(count)
        np.testing.assert_allclose(spread[1:], values.mean() + np.array([-half, half]), atol=0.06 * half)


def test_many_things_are_drawn_by_the_same_law_part_by_part():
    times, count = 2500, 15_000  # more numbers than are kept
    parts = [*draws_in_parts(count, times, (5, 0))]
    assert len(parts) > 1 and sum(map(len, parts)) == times
    assert all((part.sum(1) == count).all() for part in parts)
    first = np.concatenate([part[:, :100] for part in parts])
    alike = np.random.default_rng(0).binomial(count, 1 / count, first.shape)
    for number in range(4):
        assert (first == number).mean() == pytest.approx((alike == number).mean(), abs=0.005)
    again = [*draws_in_parts(count, times, (5, 0))]
    assert all((one == other).all() for one, other in zip(parts, again))


def test_the_interval_over_many_images_is_the_normal_one_and_takes_little_memory():
    count, times = 20_000, 2000
    values = np.random.default_rng(0).binomial(1, 0.9, (1, count)).astype(float)
    tracemalloc.start()
    spread = mean(values, resamples=times).spread()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < count * times  # bytes; as one array the draws would take eight times as many
    half = 1.96 * values.std() / np.sqrt(count)
    np.testing.assert_allclose(spread[1:], values.mean() + np.array([-half, half]), atol=0.1 * half)


# Other figures ---------------------------------------------------------------------------------------


def test_the_interquartile_mean_is_of_the_middle_half_of_scores():
    scenes = ["a", "a", "b", "c", "d"]
    values = np.array([[0.0, 0.2, 0.5, 0.6, 9.0], [0.3, 0.3, 0.4, 0.8, -7.0]])
    middle = sample(values, scenes, resamples=FEW).interquartile_mean()
    assert middle.value == pytest.approx(np.mean([0.3, 0.4, 0.5, 0.6]))  # of -7, .1, | .3, .4, .5, .6, | .8, 9
    assert sample(values[:1, :1], resamples=FEW).interquartile_mean().value == 0


@given(measurements())
def test_an_interquartile_mean_over_less_than_four_scores_leaves_none_out(measured):
    values, scenes = measured
    score = [values[:, [name == scene for name in scenes]].mean(1) for scene in sorted(set(scenes))]
    middle = sample(values, scenes, resamples=FEW).interquartile_mean()
    assert np.min(score) - 1e-9 <= middle.value <= np.max(score) + 1e-9
    if np.size(score) < 4:
        assert middle.value == pytest.approx(np.mean(score))


@given(measurements(agents=2))
def test_one_of_two_agents_reaches_more(measured):
    first, second, scenes = measured
    better = improvement(first, second, scenes, (1, 2), FEW)
    worse = improvement(second, first, scenes, (2, 1), FEW)
    np.testing.assert_allclose(better.figures + worse.figures, 1)
    pairs = [(np.sign(a - b) + 1) / 2 for a in first for b in second]
    assert better.value == pytest.approx(np.mean(pairs))
    assert improvement(first, first, scenes, (1, 2), FEW).value == pytest.approx(0.5)
    assert improvement(first + 2, second, scenes, (1, 2), FEW).spread() == pytest.approx((1, 1, 1))


def test_the_improvement_of_many_runs_takes_the_memory_of_one():
    """Resamples hold all pairs of runs, which are not in memory together."""
    rng = np.random.default_rng(0)
    first, second = (rng.uniform(0, 1, (12, len(SCENES))) for _ in range(2))

    def peak(runs):
        improvement(first[:runs], second, SCENES, (1, 2), FEW)  # what is drawn is kept
        tracemalloc.start()
        improvement(first[:runs], second, SCENES, (1, 2), FEW)
        peaked = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peaked

    assert peak(12) < 1.5 * peak(1)


def test_a_resample_pairs_the_runs_that_were_drawn():
    """Where episodes are alike, so that only runs count."""
    scores = np.array([0.1, 0.4, 0.4, 0.8]), np.array([0.4, 0.2, 0.9])
    one, other = (
        np.concatenate([np.ones((1, len(each)), int), draws(len(each), FEW, (RUNS, stream))])
        for stream, each in enumerate(scores, start=1)
    )
    first, second = (each[:, None] * np.ones(5) for each in scores)
    found = improvement(first, second, streams=(1, 2), resamples=FEW).figures
    for drawn, others, figure in zip(one, other, found):
        won = np.sign(np.repeat(scores[0], drawn)[:, None] - np.repeat(scores[1], others))
        assert figure == pytest.approx((won.mean() + 1) / 2)


def test_the_worst_scene_is_that_of_the_least_mean():
    values = np.array([[0.9, 0.1, 0.4, 0.4], [0.9, 0.1, 0.4, 0.2]])
    assert worst_group(values, ["b", "b", "a", "a"]) == ("a", pytest.approx(0.35))


# Tests -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("run_effect", "bounds"), [(0.0, (0, 6)), (0.05, (1, 9)), (0.1, (9, 25))])
def test_how_often_noise_is_called_a_difference(run_effect, bounds):
    """Of 100 comparisons at 5 %. Three runs are too few to know their own effects: docs/statistics.md says more."""
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(300):
        first, second = (
            np.clip(0.5 + rng.normal(0, 0.4, (3, 120)) + rng.normal(0, run_effect, (3, 1)), 0, 1) for _ in range(2)
        )
        found += mean(first - second, resamples=10_000).p() < 0.05
    assert bounds[0] <= found / 3 <= bounds[1]


def test_an_interval_over_episodes_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    spreads = [mean(rng.binomial(1, 0.7, (1, 60)).astype(float), resamples=400).spread() for _ in range(400)]
    assert 0.90 <= np.mean([spread.low <= 0.7 <= spread.high for spread in spreads]) <= 0.99


SCENES = [f"{i // 10:02}" for i in range(120)]
MARGIN = 0.05


def two_agents(rng, runs, run_effect, loss=0.0):
    """SPL [runs, 120] of a reference and of an agent that is worse by `loss`, in episodes of 12 scenes."""
    episodes = rng.normal(0.7, 0.3, 120)
    first, second = (
        episodes
        + np.repeat(rng.normal(0, 0.05, 12), 10)
        + rng.normal(0, run_effect, (runs, 1))
        + rng.normal(0, 0.25, (runs, 120))
        for _ in range(2)
    )
    return first, second - loss


def covered(spread, truth):
    return spread.low <= truth <= spread.high


@pytest.mark.parametrize(
    ("runs", "run_effect", "of_mean", "of_difference"),
    [
        (5, 0.0, (0.94, 1), (0.97, 1)),  # too wide: both scenes and their episodes are drawn
        (5, 0.06, (0.93, 1), (0.93, 1)),
        (2, 0.06, (0.85, 0.98), (0.82, 0.96)),
        (1, 0.06, (0.75, 0.95), (0.55, 0.85)),  # one run knows nothing of others
    ],
)
def test_how_often_intervals_cover_the_truth(runs, run_effect, of_mean, of_difference):
    rng = np.random.default_rng(0)
    hits = np.zeros((200, 2))
    for hit in hits:
        first, second = two_agents(rng, runs, run_effect, loss=0.1)
        base, other = mean(first, SCENES, 0), mean(second, SCENES, 1)
        hit[:] = covered(base.spread(), 0.7), covered((other - base).spread(), -0.1)
    found = hits.mean(0)
    assert of_mean[0] <= found[0] <= of_mean[1] and of_difference[0] <= found[1] <= of_difference[1]


@pytest.mark.parametrize(("run_effect", "at_most"), [(0.0, 0.05), (0.03, 0.06)])
def test_a_loss_of_the_margin_is_seldom_called_none(run_effect, at_most):
    rng = np.random.default_rng(1)
    found = [
        against(first, {"other": second}, SCENES, MARGIN, FEW)["other"].not_inferior
        for first, second in (two_agents(rng, 3, run_effect, loss=MARGIN) for _ in range(200))
    ]
    assert np.mean(found) <= at_most


def test_what_is_there_is_shown():
    rng = np.random.default_rng(2)
    first, second = two_agents(rng, 5, 0.0)
    others = {"alike": second, "worse": second - 0.2, "better": second + 0.2}
    found = against(first, others, SCENES, margin=0.15)
    assert [found[name].not_inferior for name in others] == [True, False, True]
    assert found["worse"].p < 0.01 and found["better"].p < 0.01 and found["alike"].p > 0.05
    assert found["worse"].difference.high < 0 < found["better"].difference.low
    assert found["worse"].improvement.high < 0.5 < found["better"].improvement.low
    assert found["alike"].at_least > -0.15 > found["worse"].at_least


def test_several_agents_are_corrected_together_and_drawn_from_streams_of_their_own():
    first, second = two_agents(np.random.default_rng(3), 3, 0.03)
    others = {"a": second, "b": second - 0.03, "c": first - 0.05}
    found = against(first, others, SCENES, MARGIN, FEW)
    streams = {name: stream for stream, name in enumerate(others, start=1)}
    apart = {name: mean(others[name], SCENES, streams[name]) - mean(first, SCENES, 0) for name in others}
    assert {name: each.p for name, each in found.items()} == holm({name: each.p() for name, each in apart.items()})
    inferior = holm({name: each.p_not_above(-MARGIN) for name, each in apart.items()})
    assert {name: each.p_inferior for name, each in found.items()} == inferior
    for name, each in found.items():
        assert each.difference == apart[name].spread()
        assert each.improvement == improvement(others[name], first, SCENES, (streams[name], 0), FEW).spread()


@given(measurements(agents=2), st.floats(0, 1))
def test_a_lower_limit_above_the_margin_is_the_test_at_it(measured, margin):
    first, second, scenes = measured
    found = against(first, {"other": second}, scenes, margin, FEW)["other"]
    if found.at_least < -margin - 1e-9:
        assert not found.not_inferior
    assert found.p_inferior <= against(first, {"other": second}, scenes, 0, FEW)["other"].p_inferior


def test_a_difference_that_is_there_is_found():
    found = mean(0.15 + np.random.default_rng(0).normal(0, 0.4, (3, 120)), resamples=10_000)
    assert found.p() < 0.01 and 0 < found.spread().low < found.value < found.spread().high
    assert Estimate(np.zeros(11)).p() == 1 and Estimate(np.ones(11)).p() == pytest.approx(1 / 11)


@pytest.mark.parametrize("runs", [(1, 2), (3, 5), (4, 7)])
def test_rounding_is_no_difference(runs):
    first, second = (np.full((count, 120), 0.1) for count in runs)
    found = against(first, {"other": second}, SCENES, 0.0, FEW)["other"]
    assert found.p == 1 and found.p_inferior == 1 and found.improvement.mean == pytest.approx(0.5)


def test_a_cut_by_luck_is_called_better_than_luck_at_five_per_cent():
    rng = np.random.default_rng(0)
    p = np.array([by_luck(rng.normal(0.5, 0.07, 1), rng.normal(0.5, 0.07, 20)) for _ in range(1000)])
    assert 0.035 <= np.mean(p < 0.05) <= 0.065
    assert 0.45 <= np.mean(p < 0.5) <= 0.55
    assert by_luck(np.array([0.9]), rng.normal(0.5, 0.07, 20)) < 1e-3


@given(st.floats(-1, 1), st.floats(-1, 1), st.integers(1, 3), st.integers(1, 30))
def test_luck_takes_draws_that_differ_to_know(first, second, n, m):
    assert by_luck(np.full(n, first), np.full(m, second)) == 1.0


def test_holm_on_a_worked_example():
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert corrected == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_holm_corrects_upwards_and_keeps_the_order(p):
    named = {str(i): value for i, value in enumerate(p)}
    corrected = holm(named)
    assert all(named[name] <= value <= 1 for name, value in corrected.items())
    assert all(corrected[a] <= corrected[b] for a in named for b in named if named[a] < named[b])
    assert min(corrected.values()) == pytest.approx(min(1, len(p) * min(p)))  # Bonferroni's for the smallest

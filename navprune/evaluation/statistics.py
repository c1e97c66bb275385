"""What measurements of several trainings in the same episodes say: means with intervals, differences, tests.

**Intervals.** A measurement depends on which trainings (runs that differ in their seed), which scenes and which
episodes of these happened to be taken. Each is drawn anew, with replacement, `RESAMPLES` times: scenes; within every
scene drawn as many episodes as it has, anew for each time that it was drawn (Davison & Hinkley, Bootstrap Methods and
their Application, 1997, 3.8); and, independently of both, runs, since every run meets every episode (the pigeonhole
bootstrap: Owen, Annals of Applied Statistics 2007). Intervals are cut from the quantiles of what is so found. Of one
run, scene or episode the same is drawn every time, and the interval says nothing of others.

Images to be classified have no scenes: all count as episodes of one, and only they and the runs are drawn.

The same scenes give the same draws, so that what is computed of two encoders can be subtracted resample by resample.
docs/statistics.md says how often such intervals and tests err.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
CONFIDENCE = 0.95
LEVEL = 0.05
"""Of p-values, below which something is called shown."""
ROUNDING = 1e-12
"""Means of the same numbers in another order differ by less."""
KEPT = 2**25
"""Numbers in a set of draws that is kept for the next question: of 10,000 resamples those of 3,355 episodes a scene."""
PART = 2**16
"""Numbers of a larger set that are in memory together."""
RUNS, EPISODES, SCENES = 0, 1, 2
"""Streams of random numbers."""
Floats = NDArray[np.float64]
Name = TypeVar("Name", bound=Hashable)


class Spread(NamedTuple):
    """A mean and the interval that holds the true one with `CONFIDENCE`."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """Figures as they were measured, followed by those of every resample: [1 + R]."""

    figures: Floats

    @property
    def value(self) -> float:
        """As measured."""
        return float(self.figures[0])

    def __sub__(self, other: Estimate) -> Estimate:
        """The difference in each resample, which is paired where both come of the same draws."""
        return Estimate(self.figures - other.figures)

    def spread(self) -> Spread:
        """The value between the quantiles of the resamples."""
        limits = np.quantile(self.figures[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        low, high = np.where(np.abs(limits - self.value) < ROUNDING, self.value, limits).tolist()
        return Spread(self.value, low, high)

    def at_least(self) -> float:
        """What the true value lies above with `CONFIDENCE`: the one-sided lower limit."""
        return float(np.quantile(self.figures[1:], 1 - CONFIDENCE))

    def p(self) -> float:
        """How often resamples depart from the value by at least as much as that does from 0: two-sided."""
        return _share(np.abs(self.figures[1:] - self.value) >= abs(self.value) - ROUNDING)

    def p_not_above(self, limit: float) -> float:
        """How often resamples do not exceed a limit: the one-sided p of "the true value is at most that"."""
        return _share(self.figures[1:] <= limit + ROUNDING)


@dataclass(frozen=True)
class Sample:
    """What runs reached in scenes, as measured (first) and in every resample.

    `scores` [1 + R, K, ..., runs] are means over the episodes of the K scenes drawn, `weights` [1 + R, K] the shares of
    the episodes that these hold, `runs` [1 + R, runs] how often each run was drawn.
    """

    scores: Floats
    weights: Floats
    runs: NDArray[np.integer]

    def means(self) -> Floats:
        """Means [1 + R, ...] over runs and episodes."""
        return np.einsum("rk,rk...n,rn->r...", self.weights, self.scores, self.runs / self.runs.sum(1)[:, None])

    def mean(self) -> Estimate:
        """The mean over runs and episodes of a single measure."""
        return Estimate(self.means())

    def interquartile_mean(self) -> Estimate:
        """The mean of the middle half of the scores of a single measure, one of each run in each scene.

        Agarwal et al., Deep RL at the Edge of the Statistical Precipice, 2021, with scenes for its tasks. A quarter of
        the scores, rounded down, is left out at either end.
        """
        count = self.runs.shape[1]
        which = np.repeat(np.tile(np.arange(count), len(self.runs)), self.runs.ravel()).reshape(-1, 1, count)
        scores = np.sort(np.take_along_axis(self.scores, which, axis=2).reshape(len(self.runs), -1))
        cut = scores.shape[1] // 4
        return Estimate(scores[:, cut : scores.shape[1] - cut].mean(1))


def sample(values: Floats, scenes: Sequence[str] | None = None, stream: int = 0, resamples: int = RESAMPLES) -> Sample:
    """Draw scenes, episodes and runs anew from `values` [..., runs, episodes].

    `scenes` names the scene of each episode; without it all count as of one. Runs that were trained independently of
    each other, those of two encoders for example, take different `stream`s.
    """
    return Sample(*_scores(values, scenes, resamples), _runs(values.shape[-2], resamples, stream))


def spreads(values: Mapping[str, Floats], scenes: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """{measure: {"mean", "low", "high"}} of {measure: [runs, episodes]}, over runs, scenes and episodes."""
    means = sample(np.stack([*values.values()]), scenes).means()
    return {name: Estimate(figures).spread()._asdict() for name, figures in zip(values, means.T)}


def improvement(
    first: Floats,
    second: Floats,
    scenes: Sequence[str] | None = None,
    streams: tuple[int, int] = (0, 1),
    resamples: int = RESAMPLES,
) -> Estimate:
    """How likely a run of the `first` [n, episodes] reaches more in an episode than one of the `second` [m, episodes].

    Ties count half (Agarwal et al. 2021: the probability of improvement, with episodes for its tasks).
    """
    shares = _runs(len(first), resamples, streams[0]).T / len(first)
    # One run after the other, since all pairs together would take their number of times the memory of a sample.
    wins = ((run > second) + 0.5 * (run == second) for run in first)
    return Estimate(sum(share * sample(won, scenes, streams[1], resamples).means() for share, won in zip(shares, wins)))


class Against(NamedTuple):
    """What is found of runs held against others in the same episodes; p-values are corrected for their number."""

    difference: Spread
    p: float
    """Of no difference (two-sided)."""
    improvement: Spread
    """How likely one of these runs reaches more in an episode than one of the others."""
    at_least: float
    """What the difference lies above, with `CONFIDENCE` (one-sided, not corrected)."""
    p_inferior: float
    """Of being worse by the margin or more (one-sided)."""

    @property
    def not_inferior(self) -> bool:
        """Whether it is shown that these runs are worse by less than the margin."""
        return self.p_inferior < LEVEL


def against(
    reference: Floats,
    others: Mapping[str, Floats],
    scenes: Sequence[str] | None = None,
    margin: float = 0.02,
    resamples: int = RESAMPLES,
) -> dict[str, Against]:
    """Hold `others`, each [runs, episodes], against the `reference` [runs, episodes]; Holm's correction over all."""
    base = sample(reference, scenes, 0, resamples).mean()
    differences = {
        name: sample(values, scenes, stream, resamples).mean() - base
        for stream, (name, values) in enumerate(others.items(), start=1)
    }
    p = holm({name: difference.p() for name, difference in differences.items()})
    inferior = holm({name: difference.p_not_above(-margin) for name, difference in differences.items()})
    wins = {
        name: improvement(values, reference, scenes, (stream, 0), resamples).spread()
        for stream, (name, values) in enumerate(others.items(), start=1)
    }
    return {
        name: Against(difference.spread(), p[name], wins[name], difference.at_least(), inferior[name])
        for name, difference in differences.items()
    }


def worst_group(values: Floats, groups: Sequence[str]) -> tuple[str, float]:
    """The scene or class, named for each episode, in which `values` [runs, episodes] have the least mean, and that."""
    names, index = np.unique(groups, return_inverse=True)
    means = [float(values[:, index == number].mean()) for number in range(len(names))]
    return str(names[np.argmin(means)]), min(means)


def holm(p: Mapping[Name, float]) -> dict[Name, float]:
    """p-values corrected for their number (Holm, Scandinavian Journal of Statistics 1979)."""
    corrected, floor = dict[Name, float](), 0.0
    for rank, name in enumerate(sorted(p, key=p.__getitem__)):
        floor = max(floor, min(1.0, (len(p) - rank) * p[name]))
        corrected[name] = floor
    return corrected


def by_luck(first: Floats, second: Floats) -> float:
    """p of so large a difference between the means of two samples, [n] and [m] (Student's t-test, n may be 1).

    It is 1 where neither sample varies, as of one draw each: how far luck goes is not known then.
    """
    freedom = len(first) + len(second) - 2
    squares = sum(((each - each.mean()) ** 2).sum() for each in (first, second))
    error = np.sqrt(squares / max(freedom, 1) * (1 / len(first) + 1 / len(second)))
    if error <= ROUNDING:
        return 1.0
    return _share(_students(freedom) >= abs(first.mean() - second.mean()) / error)


@lru_cache(maxsize=128)
def draws(count: int, times: int, stream: tuple[int, ...]) -> NDArray[np.unsignedinteger]:
    """How often each of `count` things is drawn where as many are drawn, [times, count] in as few bytes as will do."""
    drawn = np.random.default_rng(stream).multinomial(count, np.full(count, 1 / count), times)
    kept = drawn.astype(np.min_scalar_type(count))  # for the next agent in the same scenes
    kept.flags.writeable = False
    return kept


def draws_in_parts(count: int, times: int, stream: tuple[int, ...]) -> Iterator[NDArray[np.integer]]:
    """The rows of `draws`, some at a time [B, count], where all together would not go into memory.

    Of more numbers than `KEPT` each thing is drawn by itself, which is ten times as fast as a multinomial and the same
    law, with other numbers.
    """
    if count * times <= KEPT:
        yield draws(count, times, stream)
        return
    rng, rows = np.random.default_rng(stream), max(1, PART // count)
    for first in range(0, times, rows):
        size = min(rows, times - first)
        drawn = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)


def _runs(count: int, resamples: int, stream: int) -> NDArray[np.integer]:
    """How often each of `count` runs is drawn, [1 + R, count]: first those measured."""
    return np.concatenate([np.ones((1, count), np.int64), draws(count, resamples, (RUNS, stream))])


def _scores(values: Floats, scenes: Sequence[str] | None, resamples: int) -> tuple[Floats, Floats]:
    """Means [1 + R, K, ...] of `values` [..., episodes] in the scenes drawn, and the shares of episodes [1 + R, K]."""
    named = np.zeros(values.shape[-1]) if scenes is None else scenes
    _, index, sizes = np.unique(named, return_inverse=True, return_counts=True)
    picked = np.random.default_rng(SCENES).integers(len(sizes), size=(resamples, len(sizes)))
    picked = np.concatenate([np.arange(len(sizes))[None], picked])  # those measured first
    scores = np.empty((*picked.shape, *values.shape[:-1]))
    for scene, size in enumerate(sizes.tolist()):
        places = picked == scene
        own = np.moveaxis(values[..., index == scene], -1, 0)
        drawn = draws_in_parts(size, int(places.sum()) - 1, (EPISODES, scene))
        means = [np.tensordot(part / size, own, 1) for part in drawn]
        scores[places] = np.concatenate([own.mean(0, keepdims=True), *means])
    weights = sizes[picked].astype(np.float64)
    return scores, weights / weights.sum(1, keepdims=True)


@cache
def _students(freedom: int) -> Floats:
    """|t| of that many degrees of freedom, drawn."""
    return np.abs(np.random.default_rng(0).standard_t(freedom, 10**6))


def _share(found: NDArray[np.bool_]) -> float:
    """Of resamples, the measured one counted among them, so that no p is 0."""
    return (1 + int(np.count_nonzero(found))) / (1 + len(found))

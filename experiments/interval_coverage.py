"""How often the intervals and tests of `navprune compare` err, by simulation: the table of docs/statistics.md.

The SPL of a run of an agent in an episode is 0.7 + an effect of the episode (standard deviation 0.3, the same for both
agents) + of the agent in the scene (0.05) + of the run + noise (0.25), all normal. One agent is worse by exactly the
margin.
"""

import argparse

import numpy as np

from navprune.evaluation.statistics import LEVEL, Estimate, sample

MARGIN, MEAN = 0.02, 0.7


def simulated(rng: np.random.Generator, scenes: np.ndarray, runs: int, effect: float) -> tuple[np.ndarray, np.ndarray]:
    """SPL [runs, episodes] of the reference and of an agent that is worse by the margin."""
    _, index = np.unique(scenes, return_inverse=True)
    episodes = rng.normal(MEAN, 0.3, len(scenes))
    first, second = (
        episodes
        + rng.normal(0, 0.05, index.max() + 1)[index]
        + rng.normal(0, effect, (runs, 1))
        + rng.normal(0, 0.25, (runs, len(scenes)))
        for _ in range(2)
    )
    return first, second - MARGIN


def rates(scenes: np.ndarray, runs: int, effect: float, repeats: int, resamples: int = 1000) -> list[float]:
    """How often the mean and the difference lie in their intervals, how often noise is a difference and a loss none."""
    rng = np.random.default_rng(0)
    found = np.zeros((repeats, 4))
    for row in found:
        reference, worse = simulated(rng, scenes, runs, effect)
        base, own = (sample(each, scenes, i, resamples).mean() for i, each in enumerate((reference, worse)))
        loss, null = own - base, Estimate((own - base).figures + MARGIN)
        covered = [
            spread.low <= true <= spread.high for spread, true in ((base.spread(), MEAN), (loss.spread(), -MARGIN))
        ]
        row[:] = [*covered, null.p() < LEVEL, loss.p_not_above(-MARGIN) < LEVEL]
    return found.mean(0).tolist()


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=400)
    repeats = parser.parse_args().repeats
    print("| episodes | runs differ by | runs | mean covered | difference covered | noise called a difference "
          "| loss of the margin called none |")  # fmt: skip
    print("|---|" + "---:|" * 6)
    for places, each in ((12, 10), (14, 70)):
        scenes = np.repeat([f"{place:02}" for place in range(places)], each)
        for effect in (0.0, 0.03, 0.06):
            for runs in (1, 2, 3, 5, 10):
                cells = (f"{100 * rate:.1f} %" for rate in rates(scenes, runs, effect, repeats))
                print(f"| {places} x {each} | {effect} | {runs} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

"""The phases of a run: what learns in each, and for how long."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from navprune.rl.callbacks import Callback
from navprune.rl.learner import Learner
from navprune.rl.ppo import PPO, PPOConfig
from navprune.rl.supervised import Reader, Supervised, SupervisedConfig
from navprune.rl.warm_start import WarmStart, WarmStartConfig


class Phase(NamedTuple):
    """A part of a run.

    `begin` makes what learns of a trainee, which may keep files in a folder of the phase's name in the run's.
    `frames` are those of all workers; None is the rest of the run. `tidy` deletes of these files what no checkpoint
    needs, of those at the given frames of the phase.
    """

    name: str
    frames: int | None
    begin: Callable[[Any, Path], Learner]
    tidy: Callable[[Path, int, Iterable[int]], None] | None = None


def phases_of(
    ppo: PPOConfig, warm_start: WarmStartConfig | None = None, callbacks: Sequence[Callback] = ()
) -> tuple[Phase, ...]:
    """Return the phases of a run: the warm start, where there is one, and PPO with its callbacks."""
    last = Phase(PPO.name, None, lambda actor, _: PPO(actor, ppo, callbacks))
    if warm_start is None:
        return (last,)
    tidy = partial(WarmStart.tidy, warm_start)
    return Phase(WarmStart.name, warm_start.frames, partial(WarmStart, config=warm_start), tidy), last


def supervised_phase(config: SupervisedConfig, callbacks: Sequence[Callback] = ()) -> tuple[Phase, ...]:
    """Return the one phase of a classifier's run."""

    def begin(reader: Reader, _: Path) -> Supervised:
        return Supervised(reader, config, callbacks)

    return (Phase(Supervised.name, None, begin),)

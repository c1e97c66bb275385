"""What a run says of itself: seconds by phase and the measures of recent episodes."""

import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Timers:
    """Wall-clock seconds spent in named phases."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the time spent in the `with` block to `phase`; blocks must not be nested."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    @property
    def total(self) -> float:
        """Seconds since the timers were made."""
        return time.perf_counter() - self.started

    def phases(self) -> dict[str, float]:
        """Return seconds by phase, with `other` for what no phase covers."""
        return {**self.seconds, "other": max(self.total - sum(self.seconds.values()), 0.0)}


class Scalars:
    """TensorBoard's scalars; where they cannot be written the run is told once and goes on without them."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        """Entries of earlier writers from `purge_step` on are forgotten."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.folder = folder
        self.writer: SummaryWriter | None = None
        self.writer = self._try(SummaryWriter, str(folder), purge_step=purge_step)

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """Write the scalars of one step."""
        for name, value in scalars.items():
            if self.writer:
                self._try(self.writer.add_scalar, name, value, step)

    def flush(self) -> None:
        """Bring what was written to disk."""
        if self.writer:
            self._try(self.writer.flush)

    def close(self) -> None:
        """Flush and stop."""
        if self.writer:
            self._try(self.writer.close)

    def _try(self, action: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return action(*arguments, **options)
        except OSError as error:
            self.writer = None
            print(f"cannot write {self.folder}: {error.strerror or error}; going on without it", file=sys.stderr)
            return None


class EpisodeWindow:
    """Measures of the last `size` episodes that the learning agent drove."""

    def __init__(self, size: int) -> None:
        self.episodes: deque[dict[str, float]] = deque(maxlen=size)

    @property
    def full(self) -> bool:
        """Whether `size` episodes have ended."""
        return len(self.episodes) == self.episodes.maxlen

    def add(self, measures: Mapping[str, float]) -> None:
        """Take in one episode; the oldest one leaves."""
        self.episodes.append({name: float(value) for name, value in measures.items()})

    def clear(self) -> None:
        """Forget all episodes."""
        self.episodes.clear()

    def mean(self) -> dict[str, float]:
        """Return the mean of each measure; empty before the first episode ends."""
        if not self.episodes:
            return {}
        return {name: sum(e[name] for e in self.episodes) / len(self.episodes) for name in self.episodes[0]}

    def state_dict(self) -> list[dict[str, float]]:
        """Return the episodes, oldest first."""
        return list(self.episodes)

    def load_state_dict(self, state: list[dict[str, float]]) -> None:
        """Take over what `state_dict` returned."""
        self.episodes = deque(state, maxlen=self.episodes.maxlen)

"""What a run shows of itself: seconds per phase, measures of recent episodes, a live progress line."""

import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO


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


class ProgressLine:
    """One line on a terminal, rewritten in place; elsewhere a new line every ten seconds."""

    def __init__(self, total: int, done: int, stream: TextIO | None = None) -> None:
        self.total, self.first = total, done
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.interval = 0.5 if self.live else 10.0
        self.started = time.perf_counter()
        self.shown = float("-inf")

    def show(self, done: int, measures: Mapping[str, float], phase: str, *, last: bool = False) -> None:
        """Show frames done, the rate, the time left and the agent's measures, at most once an interval."""
        now = time.perf_counter()
        if now - self.shown < self.interval and not last:
            return
        self.shown = now
        rate = (done - self.first) / max(now - self.started, 1e-9)
        left = clock((self.total - done) / rate) if rate > 0 else "?"
        text = f"{phase}  {done:,} of {self.total:,} frames  {rate:,.0f} frames/s  {left} left"
        for name in ("success", "spl", "reward"):
            if name in measures:
                text += f"  {name} {measures[name]:.3f}"
        self.stream.write(f"\r\x1b[2K{text}" + ("\n" if last else "") if self.live else text + "\n")
        self.stream.flush()


def clock(seconds: float) -> str:
    """Write a duration as `1:02:03` or `2:03`."""
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

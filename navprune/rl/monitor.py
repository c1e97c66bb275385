"""What a run says of itself: seconds by phase and the measures of recent episodes."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

EVENTS = "events.out.tfevents"
"""What the names of TensorBoard's files begin with; seconds, host, process and a number follow."""


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
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # slow to import
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.folder, self.event = folder, Event
        self.records: RecordWriter | None = None
        self.records = self._try(lambda: RecordWriter(self._open()))
        self._write(file_version="brain.Event:2")
        self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """Write the scalars of one step."""
        self._write(step=step, summary={"value": [{"tag": tag, "simple_value": x} for tag, x in scalars.items()]})

    def flush(self) -> None:
        """Bring what was written to disk."""
        if self.records:
            self._try(self.records.flush)

    def close(self) -> None:
        """Flush and stop."""
        if self.records:
            self._try(self.records.close)

    def _open(self) -> BinaryIO:
        """A new file that sorts behind those there are, whatever the clock says: in that order they are read."""
        self.folder.mkdir(parents=True, exist_ok=True)
        times = [name.split(".")[3] for name in os.listdir(self.folder) if name.startswith(f"{EVENTS}.")]
        time_or_later = max([int(time.time()), *(int(stamp) + 1 for stamp in times if stamp.isdecimal())])
        return (self.folder / f"{EVENTS}.{time_or_later:010}.{socket.gethostname()}.{os.getpid()}.0").open("xb")

    def _write(self, **content: Any) -> None:
        if records := self.records:
            self._try(lambda: records.write(self.event(wall_time=time.time(), **content).SerializeToString()))

    def _try(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except OSError as error:
            self.records = None
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

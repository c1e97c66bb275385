"""The live line that long work shows: how much is done, how fast, and how long it will take."""

import sys
import time
from functools import cache
from typing import TextIO


class ProgressLine:
    """One line on a terminal, rewritten in place; elsewhere a new line every ten seconds and at the end."""

    def __init__(self, title: str, total: int, unit: str, done: int = 0, stream: TextIO | None = None) -> None:
        """`total` in `unit`s, of which `done` were done before; writes to standard error by default."""
        self.title, self.total, self.unit, self.first = title, total, unit, done
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.interval = 0.5 if self.live else 10.0
        self.started = self.shown = time.perf_counter()

    def show(self, done: int, note: str = "", *, last: bool | None = None) -> None:
        """Show units done, their rate, the time left and a note, at most once an interval and at the end."""
        now = time.perf_counter()
        last = done >= self.total if last is None else last
        if now - self.shown < self.interval and not last:
            return
        self.shown = now
        rate = (done - self.first) / max(now - self.started, 1e-9)
        left = clock((self.total - done) / rate) if rate > 0 else "?"
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
        text = f"{self.title}  {done:,} of {self.total:,} {self.unit}  {speed} {self.unit}/s  {left} left"
        text += f"  {note}" if note else ""
        self.stream.write(f"\r\x1b[2K{text}" + ("\n" if last else "") if self.live else text + "\n")
        self.stream.flush()


def clock(seconds: float) -> str:
    """A duration as `1:02:03` or `2:03`."""
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@cache
def say_once(line: str) -> None:
    """Tell the user something on standard error, however often it is found."""
    print(line, file=sys.stderr)

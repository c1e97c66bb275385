"""Signals by which people and batch systems stop a run, which saves first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import Any

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Ctrl-C, and those of batch systems before time is up."""
TIME_IS_UP = getattr(signal, "SIGUSR1", None)
"""What SLURM is asked for by `--signal=USR1@120`."""


_pressed = False


def heed_ctrl_c() -> None:
    """Let Ctrl-C raise KeyboardInterrupt as ever, and be remembered till training begins.

    Where it comes while a library compiles, the exception may be lost in one of its callbacks.
    """

    def note(number: int, frame: Any) -> None:
        global _pressed
        _pressed = True
        raise KeyboardInterrupt

    global _pressed
    _pressed = False
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, note)


class Asked:
    """Within its block a signal of `STOPPING` is noted, and a second Ctrl-C stops the first worker at once.

    So is a Ctrl-C from before, which `heed_ctrl_c` noted.
    """

    def __init__(self, leads: bool) -> None:
        self.leads = leads
        self.by = 0
        """The signal that came first, 0 for none."""

    def __enter__(self) -> None:
        main = threading.current_thread() is threading.main_thread()
        self.before = {number: signal.signal(number, self._note) for number in STOPPING} if main else {}
        if _pressed and main:
            self._note(signal.SIGINT, None)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.by and number == signal.SIGINT and self.leads:
            raise KeyboardInterrupt
        if not self.by and self.leads:
            print("\nstopping after this update; Ctrl-C again stops at once", file=sys.stderr)
        self.by = self.by or number


def ask_for_another_turn() -> None:
    """Tell SLURM to run this job again; where it cannot be told, say so."""
    job = os.environ.get("SLURM_JOB_ID")
    try:
        if job is None:
            raise OSError("SLURM_JOB_ID is not set")
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
        print(f"asked SLURM for another turn of job {job}", file=sys.stderr)
    except (OSError, subprocess.CalledProcessError) as error:
        told = getattr(error, "stderr", None) or error
        print(f"no other turn was asked for: {' '.join(str(told).split())}; submit the job again", file=sys.stderr)

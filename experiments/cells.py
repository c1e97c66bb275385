"""Cells of an experiment: measured in processes of one thread each, appended as they come, read again, and told.

An experiment is stopped and gone on with whenever one likes: what its file holds is not measured again.
"""

import json
import os
import re
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from navprune.progress import ProgressLine

THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
Record = dict[str, Any]


def work(
    title: str, cells: Sequence[Any], workers: int, measure: Callable[[Any], Record], results: Path,
    told: Callable[[Record], str],
) -> None:  # fmt: skip
    """Measure `cells`, `workers` at a time, and append each record to `results`; Ctrl-C lets those at work finish.

    `measure` is a function of a module, since other processes call it; `told` is what the line of progress says of one.
    """
    os.environ.update(dict.fromkeys(THREADS, "1"))
    line, done, stopped = ProgressLine(title, len(cells), "cells"), 0, False
    waiting, running = iter(cells), set[Future[Record]]()
    with ProcessPoolExecutor(workers, get_context("spawn"), _ignore_interrupts) as pool:
        while True:
            try:
                while not stopped and len(running) < workers and (cell := next(waiting, None)) is not None:
                    running.add(pool.submit(measure, cell))
                if not running:
                    return
                finished, running = wait(running, return_when=FIRST_COMPLETED)
            except KeyboardInterrupt:
                stopped = True
                print("\nstopping after the cells at work")
                continue
            for future in finished:
                record = future.result()
                append(record, results)
                done += 1
                line.show(done, told(record))


def _ignore_interrupts() -> None:
    """Ctrl-C reaches all processes of a terminal; the first of them decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def append(record: Record, path: Path) -> None:
    """Add one line in one piece, behind whatever a crash left."""
    whole = not path.is_file() or path.read_bytes()[-1:] in (b"", b"\n")
    with path.open("ab", buffering=0) as file:
        file.write((b"" if whole else b"\n") + json.dumps(record).encode() + b"\n")
        os.fsync(file.fileno())


def read(path: Path) -> list[Record]:
    """The records written so far; a line that a crash cut off is left out."""
    records = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def renewed(text: str, table: str) -> str:
    """A text with a table in place of the one with the same head; behind the text where there is none."""
    found = re.search(rf"^{re.escape(table.splitlines()[0])}\n(\|.*\n)*", text, re.MULTILINE)
    return f"{text[: found.start()]}{table}{text[found.end() :]}" if found else f"{text}\n{table}"

"""Processes that share a run: begun here or by torchrun, what they tell one another, and what ends them.

The first worker is the process that the user began. It begins the others, which read what to do from their standard
input; with torchrun all are begun alike, on as many machines as one likes. Where one is gone or hangs the run ends, and
says which; the last checkpoint stands.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from navprune.errors import UserError
from navprune.rl.group import Group
from navprune.rl.trainer import STOPPING

T = TypeVar("T")
PATIENCE = 5.0
"""Seconds in which a worker that failed has said why or is gone."""
HERE = "127.0.0.1"
FAULT, CALLS = "fault", "calls"


class Lost(UserError):
    """Another worker of the run is gone, or does not answer."""


class Workers(Group):
    """One of several workers, over gloo and, for tensors on GPUs, NCCL."""

    def __init__(self, timeout: float, children: Sequence[subprocess.Popen[bytes]] = ()) -> None:
        """Meet the others as the environment says (RANK, WORLD_SIZE, ...); `timeout` in seconds."""
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))
        self.on_machine = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        self.timeout, self.children, self.calls = timeout, children, 0
        self.store: dist.Store | None = None
        patience = timedelta(seconds=timeout)
        with self._others():
            self.store = next(dist.rendezvous("env://", timeout=patience))[0]
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, store=self.store, rank=self.rank, world_size=self.size, timeout=patience)
            self.objects = dist.new_group(backend="gloo", timeout=patience)

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of the workers' tensors of one shape."""
        with self._others():
            value = value.clone()
            dist.all_reduce(value)
            return value

    def gather(self, value: T) -> list[T]:
        """Return what each worker gave, in their order: plain data, tensors and arrays."""
        with self._others():
            told: list[Any] = [None] * self.size
            dist.all_gather_object(told, value, group=self.objects)
            return told

    def gather_first(self, value: T) -> list[T] | None:
        """As `gather`, for the first worker alone; None for the others."""
        with self._others():
            told: list[Any] | None = [None] * self.size if self.leads else None
            dist.gather_object(value, told, group=self.objects)
            return told

    def lead(self, value: T) -> T:
        """Return what the first worker gave."""
        with self._others():
            told = [value]
            dist.broadcast_object_list(told, group=self.objects)
            return told[0]

    def count(self, name: str, add: int = 1) -> int:
        """Add to a number that the workers share, and return it; does not wait for them."""
        with self._others():
            assert self.store is not None
            return self.store.add(name, add)

    @contextmanager
    def _others(self) -> Iterator[None]:
        """Say which worker it is where the others do not answer."""
        self.calls += 1
        try:
            if self.store is not None:
                self.store.set(f"{CALLS} {self.rank}", str(self.calls))
            yield
        except (RuntimeError, OSError) as error:
            raise Lost(self._fault(error)) from error

    def tell(self, fault: str) -> None:
        """Leave the others a line that says why this worker ends."""
        if self.store is not None:
            with suppress(RuntimeError, OSError):
                self.store.set(FAULT, f"worker {self.rank}: {fault}")

    def _fault(self, error: Exception) -> str:
        """Why the others do not answer, and what to do."""
        again = "the same command goes on from the last checkpoint"
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and not (dead := self._dead()):
            time.sleep(0.1)
            with suppress(RuntimeError, OSError):
                if self.store is not None and self.store.check([FAULT]):
                    return self.store.get(FAULT).decode()
        if dead:
            return f"{dead}; {again}"
        if "timed out" in str(error).lower() and (late := self._late()):
            return f"{late} has not answered for {self.timeout:g} seconds (trainer.timeout); {again}"
        return f"worker {self.rank} lost the others ({' '.join(str(error).split())[:120]}); {again}"

    def _dead(self) -> str | None:
        for rank, child in enumerate(self.children, start=1):
            if (status := child.poll()) is not None:
                how = signal.Signals(-status).name if status < 0 else f"status {status}"
                return f"worker {rank} (process {child.pid}) has ended with {how}"
        return None

    def _late(self) -> str | None:
        """The workers that have spoken least."""
        calls = {}
        with suppress(RuntimeError, OSError):
            assert self.store is not None
            keys = {rank: f"{CALLS} {rank}" for rank in range(self.size)}
            calls = {rank: int(self.store.get(key)) if self.store.check([key]) else 0 for rank, key in keys.items()}
        late = [str(rank) for rank, number in calls.items() if number == min(calls.values()) < max(calls.values())]
        return f"worker{'s' * (len(late) > 1)} {', '.join(late)}" if late else None


@contextmanager
def workers(count: int, timeout: float, entry: str, task: Any) -> Iterator[Group]:
    """Be one of `count` workers within the block, or of those that torchrun began.

    The others are processes that call `entry`, MODULE:FUNCTION, which is to read `task` by `handed_over` and to come
    here in its turn. They end with the block, at once where it fails. Raises UserError for what another one raised.
    """
    if "WORLD_SIZE" not in os.environ and count > 1:
        with _begun(count, entry, pickle.dumps(task)) as children:
            yield from _meet(timeout, children)
    elif int(os.environ.get("WORLD_SIZE", 1)) > 1:
        yield from _meet(timeout, ())
    else:
        yield Group()


def _meet(timeout: float, children: Sequence[subprocess.Popen[bytes]]) -> Iterator[Group]:
    group = Workers(timeout, children)
    try:
        yield group
    except Lost:
        if group.leads:
            raise
        raise SystemExit(1) from None  # the first one says it
    except UserError as error:
        group.tell(str(error))
        if group.leads:
            raise
        raise SystemExit(2) from None
    finally:
        with suppress(RuntimeError):
            dist.destroy_process_group()


@contextmanager
def _begun(count: int, entry: str, task: bytes) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The workers but the first, with an environment in which they meet it."""
    with socket.socket() as listener:
        listener.bind((HERE, 0))
        port = str(listener.getsockname()[1])
    meeting = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": HERE, "MASTER_PORT": port}
    module, function = entry.split(":")
    # The first worker is asked to stop, and tells them: they ignore what reaches a whole group of processes.
    ignoring = f"import signal; [signal.signal(s, signal.SIG_IGN) for s in {[int(s) for s in STOPPING]}]"
    command = [sys.executable, "-c", f"{ignoring}; from {module} import {function}; {function}()"]
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    children = []
    before = {name: os.environ.get(name) for name in (*meeting, "RANK", "LOCAL_RANK")}
    try:
        for rank in range(1, count):
            own = {**os.environ, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": path}
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=own)
            children.append(child)
            assert child.stdin is not None
            with suppress(BrokenPipeError), child.stdin:
                child.stdin.write(task)
        os.environ.update(meeting, RANK="0", LOCAL_RANK="0")
        yield children
        for child in children:
            child.wait(PATIENCE)
    finally:
        for child in children:
            child.kill()
            child.wait()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def handed_over() -> Any:
    """What the first worker gave this one to do."""
    return pickle.load(sys.stdin.buffer)

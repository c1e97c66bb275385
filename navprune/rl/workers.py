"""Processes that share a run: begun here or by torchrun, what they tell one another, and what ends them.

The first worker is the process that the user began. It begins the others, which read what to do from their standard
input; with torchrun all are begun alike, on as many machines as one likes. Where one is gone or hangs the run ends, and
says which; the last checkpoint stands.
"""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import threading
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
from navprune.rl.stopping import STOPPING

T = TypeVar("T")
PATIENCE = 5.0
"""Seconds in which a worker that failed has said why or is gone, and one that did not has said so."""
STARTING = 120.0
"""Seconds in which workers come, where `trainer.timeout` is less: they import what they need first."""
HERE = "127.0.0.1"
HELLO, COME, FAULT, ALIVE = "hello", "come", "fault", "alive"
"""Keys of what workers tell: who they are, how many have come, why one ends, that one misses others."""
AGAIN = "the same command goes on from the last checkpoint"
LOST = 75
"""Exit status of a worker that ends because others do (`EX_TEMPFAIL`)."""


class Lost(UserError):
    """Another worker of the run is gone, or does not answer."""


class Workers(Group):
    """One of several workers, over gloo and, for tensors on GPUs, NCCL."""

    def __init__(
        self, timeout: float, children: Sequence[subprocess.Popen[bytes]] = (), store: dist.Store | None = None
    ) -> None:
        """Meet the others as the environment says (RANK, WORLD_SIZE, ...); `timeout` in seconds.

        `children` and `store` are for the first worker, where it began the others.
        """
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))
        self.on_machine = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        self.timeout, self.children = timeout, children
        self.store: dist.Store | None = None
        patience, starting = timedelta(seconds=timeout), timedelta(seconds=max(timeout, STARTING))
        with self._others():
            self._meet_all(store or next(dist.rendezvous("env://", timeout=starting))[0])
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, store=self.store, rank=self.rank, world_size=self.size, timeout=patience)
            self.objects = dist.new_group(backend="gloo", timeout=patience)

    def _meet_all(self, store: dist.Store) -> None:
        """Wait until all workers have come, and have a part of `store` that no others ever saw.

        torchrun may hand one store on from attempt to attempt, so that what is found in it can be of workers that are
        gone. Hence each worker says hello with a name that nobody had, and the first one answers to that name.
        """
        end, name = time.monotonic() + max(self.timeout, STARTING), os.urandom(8).hex()
        if self.leads:
            self.store = dist.PrefixStore(name, store)
            self.store.add(COME, 1)
        else:
            store.set(f"{HELLO} {self.rank}", name)
        while time.monotonic() < end and not self._dead():
            if not self.leads:
                if store.check([name]):
                    self.store = dist.PrefixStore(store.get(name).decode(), store)
                    self.store.add(COME, 1)
                    return
            elif self.store.add(COME, 0) == self.size:  # type: ignore[union-attr]
                return
            else:
                for key in (f"{HELLO} {rank}" for rank in range(1, self.size)):
                    if store.check([key]):
                        store.set(store.get(key).decode(), name)
            time.sleep(0.05)
        raise RuntimeError("timed out: workers have not come")

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of the workers' tensors of one shape, in the place of `value`."""
        with self._others():
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
        try:
            yield
        except (RuntimeError, OSError) as error:
            raise Lost(self._fault(error)) from error

    def tell(self, fault: str) -> None:
        """Leave the others a line that says why this worker ends."""
        if self.store is not None:
            with suppress(RuntimeError, OSError):
                self.store.set(FAULT, f"worker {self.rank}: {fault}")

    def _fault(self, error: Exception) -> str:
        """Why the others do not answer, which the first worker says; if that is the one, the first of the others."""
        if self.store is None:
            return f"the first worker does not answer; {AGAIN}"
        own = b"waited" if "timed out" in str(error).lower() else b"lost"
        found: list[str | dict[int, bytes]] = []

        def ask() -> None:
            with suppress(RuntimeError, OSError):
                found.append(self._told(own))

        # The store can lie in the first worker: where that one stands still, so does whoever asks there.
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(2 * PATIENCE)
        told = found[0] if found else {} if self.leads else {self.rank: own}
        if isinstance(told, str):
            return told
        missing = [str(rank) for rank in range(self.size) if told and rank not in told]
        who = f"worker{'s' * (len(missing) > 1)} {', '.join(missing)}" if missing else "a worker"
        if not found and not self.leads:
            who = "worker 0"  # of the rest it could not ask
        if b"waited" in told.values():  # of those that waited the first one to give up breaks the others' connections
            line = f"{who} did not answer for {self.timeout:g} seconds (trainer.timeout); {AGAIN}"
        else:
            said = re.sub(r"^\[\S*\] ", "", " ".join(str(error).split()))  # gloo begins with the place in its source
            line = f"{who} is gone ({said.partition('. ')[0][:120]}); {AGAIN}"
        if 0 not in told and not self.leads and self.rank == min(told):
            print(f"navprune: {line}", file=sys.stderr, flush=True)
        return line

    def _told(self, own: bytes) -> str | dict[int, bytes]:
        """Leave the others word that this worker lives; why one ended, if that is known, or the word of all that live.

        All wait for the first worker's word, and that one for a reason.
        """
        assert self.store is not None
        self.store.set(f"{ALIVE} {self.rank}", own.decode())
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and (self.leads or not self.store.check([f"{ALIVE} 0"])):
            dead = self._dead()  # asked before the line is looked for, which is written before the end
            if self.store.check([FAULT]):
                return self.store.get(FAULT).decode()
            if dead:
                return f"{dead}; {AGAIN}"
            time.sleep(0.1)
        keys = {rank: f"{ALIVE} {rank}" for rank in range(self.size)}
        return {rank: self.store.get(key) for rank, key in keys.items() if self.store.check([key])}

    def _dead(self) -> str | None:
        """A child that has ended, and not because others did."""
        for rank, child in enumerate(self.children, start=1):
            if (status := child.poll()) not in (None, LOST):
                how = signal.Signals(-status).name if status < 0 else f"status {status}"
                return f"worker {rank} (process {child.pid}) has ended with {how}"
        return None


@contextmanager
def workers(count: int, timeout: float, entry: str, task: Any) -> Iterator[Group]:
    """Be one of `count` workers within the block, or of those that torchrun began.

    The others are processes that call `entry`, MODULE:FUNCTION, which is to read `task` by `handed_over` and to come
    here in its turn. They end with the block, at once where it fails. Raises UserError for what another one raised.
    """
    if "WORLD_SIZE" not in os.environ and count > 1:
        with _begun(count, timeout, entry, pickle.dumps(task)) as (children, store):
            yield from _meet(timeout, children, store)
    elif int(os.environ.get("WORLD_SIZE", 1)) > 1:
        yield from _meet(timeout)
    else:
        yield Group()


def _meet(
    timeout: float, children: Sequence[subprocess.Popen[bytes]] = (), store: dist.Store | None = None
) -> Iterator[Group]:
    group, leads = None, os.environ["RANK"] == "0"
    try:
        group = Workers(timeout, children, store)
        yield group
    except UserError as error:
        if group and not isinstance(error, Lost):
            group.tell(str(error))
        if leads:
            raise
        raise SystemExit(LOST if isinstance(error, Lost) else 2) from None  # the first worker says it
    finally:
        if dist.is_initialized():
            with suppress(RuntimeError):
                dist.destroy_process_group()


@contextmanager
def _begun(
    count: int, timeout: float, entry: str, task: bytes
) -> Iterator[tuple[list[subprocess.Popen[bytes]], dist.Store]]:
    """The workers but the first, with an environment in which they meet it, and the store that it has for them."""
    store = dist.TCPStore(HERE, 0, is_master=True, timeout=timedelta(seconds=timeout), wait_for_workers=False)
    meeting = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    meeting |= {"MASTER_ADDR": HERE, "MASTER_PORT": str(store.port)}
    if sys.platform.startswith("linux"):  # whatever the host's name leads to
        meeting["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    module, function = entry.split(":")
    # The first worker is asked to stop, and tells them: they ignore what reaches a whole group of processes.
    ignoring = f"import signal; [signal.signal(s, signal.SIG_IGN) for s in {[int(s) for s in STOPPING]}]"
    command = [sys.executable, "-c", f"{ignoring}; from {module} import {function}; {function}()"]
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    children: list[subprocess.Popen[bytes]] = []
    before = {name: os.environ.get(name) for name in (*meeting, "RANK", "LOCAL_RANK")}
    try:
        for rank in range(1, count):
            own = {**os.environ, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": path}
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=own)
            children.append(child)
            assert child.stdin is not None
            with suppress(BrokenPipeError):
                child.stdin.write(len(task).to_bytes(8, "big") + task)
                child.stdin.flush()  # and left open, see `handed_over`
        os.environ.update(meeting, RANK="0", LOCAL_RANK="0")
        yield children, store
        with suppress(subprocess.TimeoutExpired):
            for child in children:
                child.wait(PATIENCE)
    finally:
        for child in children:
            child.kill()
            child.wait()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def handed_over() -> Any:
    """What the first worker gave this one to do; from then on this process ends at once when that one does."""
    stream = sys.stdin.buffer
    task = pickle.loads(stream.read(int.from_bytes(stream.read(8), "big")))

    def follow() -> None:
        os.read(stream.fileno(), 1)  # there is never more: it ends with the process that holds the other end
        os._exit(LOST)

    threading.Thread(target=follow, daemon=True).start()
    return task

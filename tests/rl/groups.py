"""Workers of a run as threads that meet at a barrier, and corridors that do not depend on who runs their neighbours."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from rl.conftest import Corridor

from navprune.rl.group import Group


class Lanes(Corridor):
    """Corridors with a random stream each; the first one is number `first`."""

    def __init__(self, num_envs=8, first=0, dtype=torch.float64, **options):
        super().__init__(num_envs, **options)
        self.rngs = [np.random.default_rng([7, first + n]) for n in range(num_envs)]
        self.dtype, self.taken = dtype, []

    def _begin(self, rows):
        for n in np.flatnonzero(rows):
            self.where[n] = self.age[n] = 0
            self.goal[n] = self.rngs[n].integers(1, 5) * self.rngs[n].choice([-1, 1])

    def _see(self, rows):
        seen = super()._see(rows)
        texture = torch.rand(seen["depth"].shape[1:], generator=torch.Generator().manual_seed(0))
        seen["depth"] = seen["depth"] / 2 + texture / 4  # norms would magnify the rounding of an even surface
        return {name: value.to(self.dtype) for name, value in seen.items()}

    def step(self, actions):
        self.taken.append(actions.clone())
        return super().step(actions)

    def state_dict(self):
        arrays = {"where": self.where.copy(), "goal": self.goal.copy(), "age": self.age.copy()}
        return {**arrays, "rngs": [rng.bit_generator.state for rng in self.rngs]}

    def load_state_dict(self, state):
        for rng, own in zip(self.rngs, state["rngs"], strict=True):
            rng.bit_generator.state = own
        return super().load_state_dict({**state, "rng": self.rng.bit_generator.state})


class Threads(Group):
    """One of `size` threads; what they tell one another lies in `told`, between two waits at a barrier."""

    def __init__(self, rank, size, barrier, told, counts):
        self.rank, self.size, self.on_machine = rank, size, size
        self.barrier, self.told, self.counts = barrier, told, counts

    def gather(self, value):
        self.told[self.rank] = value
        self.barrier.wait(60)
        told = list(self.told)
        self.barrier.wait(60)
        return told

    def sum(self, value):
        return torch.stack(self.gather(value.clone())).sum(0)

    def gather_first(self, value):
        told = self.gather(value)
        return told if self.leads else None

    def lead(self, value):
        return self.gather(value)[0]

    def count(self, name, add=1):
        self.counts[name] += add
        return self.counts[name]


def together(size, act):
    """Return what `act` returns to each of so many workers."""
    barrier, told, counts = threading.Barrier(size), [None] * size, Counter()

    def work(rank):
        try:
            return act(Threads(rank, size, barrier, told, counts))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as threads:
        futures = [threads.submit(work, rank) for rank in range(size)]
    torch.compiler.set_stance("default")  # scores set it for all threads, and back to what another one had set
    faults = [fault for future in futures if (fault := future.exception())]
    for fault in sorted(faults, key=lambda fault: isinstance(fault, threading.BrokenBarrierError)):
        raise fault
    return [future.result() for future in futures]

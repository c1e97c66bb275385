"""Times gradient steps and acting on a GPU in float32, bfloat16, channels-last, compiled and as a CUDA graph.

    .venv/bin/python experiments/learner_speed/gpu.py            # on a machine with a GPU, under five minutes

Ways take turns; prints medians of wall time, with the GPU waited for, as tables. Not yet run on a GPU:
what is faster there is to become the trainer's way.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from run import SETTINGS, Setting, Way

from navprune.models.spec import PolicySpec, encoder_spec

LARGE = "base 32, 256 x 256"
ALL = SETTINGS | {LARGE: Setting(PolicySpec(encoder_spec("resnet50", (1, 256, 256), 32)), 128, 4, 8)}
"""Those of run.py, and the published agent with Habitat's rollouts of 8 environments in two mini-batches."""


class OnDevice(Way):
    """A policy whose weights, inputs and work are on a device."""

    def __init__(self, setting: Setting, device: str, *, bf16: bool, channels_last: bool, compiled: bool) -> None:
        super().__init__(
            setting, lambda: torch.autocast(device, torch.bfloat16, enabled=bf16), prepared=True, compiled=compiled
        )
        layout: Any = torch.channels_last if channels_last else torch.contiguous_format
        self.policy.to(device, memory_format=layout)
        self.optimiser = torch.optim.Adam(self.policy.parameters(), lr=1e-4, fused=True)
        self.observations = {name: value.to(device) for name, value in self.observations.items()}
        self.actions, self.masks = self.actions.to(device), self.masks.to(device)
        n = setting.acting
        self.seen = {name: value.flatten(0, 1)[:n].clone() for name, value in self.observations.items()}
        self.state = self.policy.initial_state(n).to(device)
        self.previous = torch.zeros(n, dtype=torch.int64, device=device)
        self.alive = torch.ones(n, dtype=torch.bool, device=device)

    @torch.no_grad()
    def act(self) -> None:
        """One step of as many environments as act at once."""
        with self.context():
            self.policy(self.seen, self.state, self.previous, self.alive)


def graph_of(act: Callable[[], None]) -> Callable[[], None]:
    """The same work recorded once as a CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            act()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        act()
    return graph.replay


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only tries the script")
    parser.add_argument("--settings", nargs="+", choices=ALL, default=[*ALL])
    arguments = parser.parse_args()
    device, cuda = arguments.device, arguments.device == "cuda"
    ways = {
        "float32": {"bf16": False, "channels_last": False, "compiled": False},
        "channels-last": {"bf16": False, "channels_last": True, "compiled": False},
        "bfloat16": {"bf16": True, "channels_last": False, "compiled": False},
        "bfloat16, channels-last": {"bf16": True, "channels_last": True, "compiled": False},
    }
    if cuda:
        ways["bfloat16, channels-last, compiled"] = {"bf16": True, "channels_last": True, "compiled": True}
    for name in arguments.settings:
        calls: dict[str, Callable[[], Any]] = {}
        for way, how in ways.items():
            each = OnDevice(ALL[name], device, **how)
            calls |= {f"gradient step, {way}": each.learn, f"acting, {way}": each.act}
            if cuda and not how["compiled"]:
                calls[f"acting, {way}, CUDA graph"] = graph_of(each.act)
        times: dict[str, list[float]] = {call: [] for call in calls}
        for _ in range(arguments.repeats + 2):  # the first two are left out
            for call, work in calls.items():
                start = time.perf_counter()
                work()
                if cuda:
                    torch.cuda.synchronize()
                times[call].append(1e3 * (time.perf_counter() - start))
        print(f"\n| {name} | ms |", "|---|---|", sep="\n")
        for call, taken in sorted(times.items()):
            print(f"| {call} | {statistics.median(taken[2:]):.2f} |")


if __name__ == "__main__":
    main()

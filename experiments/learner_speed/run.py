"""Times gradient steps and acting in the two settings of README.md, in ways that take turns, and prints the tables.

Each way is the package's own with something taken away or added; `plain` is how the former commit computed. Times are
CPU time of the one thread, medians.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

from navprune.machine import kept_memory
from navprune.models import encoders, fast, recurrent
from navprune.models.build import build
from navprune.models.spec import PolicySpec, encoder_spec

GOAL = "pointgoal_with_gps_compass"


class Setting(NamedTuple):
    """A policy, the steps and environments of a gradient step, and those that act at once."""

    spec: PolicySpec
    steps: int
    environments: int
    acting: int


SETTINGS = {
    "A": Setting(PolicySpec(encoder_spec("resnet50", (1, 64, 64), 8, output=128), 128, 128), 32, 16, 64),
    "B": Setting(PolicySpec(encoder_spec("resnet18", (1, 128, 128), 32)), 128, 3, 6),
}


def split(core: recurrent.StateEncoder, x: Tensor, state: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """The former recurrent core: a call of torch's layer for each step in which an episode begins."""
    cuts = [t for t, begin in enumerate((~masks[1:]).any(dim=1).tolist(), start=1) if begin]
    hidden, outputs = state.transpose(0, 1), []
    for start, end in zip([0, *cuts], [*cuts, len(masks)]):
        output, hidden = core.rnn(x[start:end], (hidden * masks[start][:, None]).contiguous())
        outputs.append(output)
    return torch.cat(outputs), hidden.transpose(0, 1)


@contextmanager
def plain() -> Iterator[None]:
    """As the former commit computed."""
    with (
        patch.object(fast, "plain_on_cpu", lambda x: False),
        patch.object(encoders, "plain_on_cpu", lambda x: False),
        patch.object(recurrent.StateEncoder, "forward", split),
    ):
        yield


@contextmanager
def without_products() -> Iterator[None]:
    """As now, but matrices are multiplied by MKL."""
    with patch.object(fast, "_product", None):
        yield


@contextmanager
def without_norms() -> Iterator[None]:
    """As now, but with torch's GroupNorm."""
    with patch.object(fast, "_takes", lambda layer, x: False):
        yield


@contextmanager
def without_sequences() -> Iterator[None]:
    """As now, but with the former recurrent core."""
    with patch.object(recurrent.StateEncoder, "forward", split):
        yield


class Way:
    """A policy with its optimiser and inputs, and the context in which it is run."""

    def __init__(self, setting: Setting, context: Callable[[], Any], *, prepared: bool, compiled: bool) -> None:
        self.policy, self.setting, self.context = build(setting.spec, 0), setting, context
        if compiled:
            self.policy.encoder.compile()
        self.optimiser = torch.optim.Adam(self.policy.parameters(), lr=1e-4, fused=prepared)
        generator = torch.Generator().manual_seed(0)
        shape, (_, height, width) = (setting.steps, setting.environments), setting.spec.encoder.input
        images = torch.rand(*shape, height, width, 1, generator=generator)
        self.observations = {"depth": images, GOAL: torch.rand(*shape, 2, generator=generator)}
        if prepared:
            flat = self.policy.prepare({key: value.flatten(0, 1) for key, value in self.observations.items()})
            self.observations = {key: value.unflatten(0, shape) for key, value in flat.items()}
        self.actions = torch.randint(0, 4, shape, generator=generator)
        self.masks = torch.rand(shape, generator=generator) > 0.03

    def learn(self) -> Tensor:
        """One gradient step of a loss like PPO's; returns the logits before it."""
        state = self.policy.initial_state(self.setting.environments).to(self.actions.device)
        with self.context():
            out = self.policy.sequence(self.observations, state, self.actions, self.masks)
            log_probs = out.logits.float().log_softmax(-1)
            entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
            chosen = log_probs.gather(-1, self.actions[..., None]).mean()
            self.optimiser.zero_grad()
            (0.5 * out.values.float().square().mean() - chosen - 0.01 * entropy).backward()
            nn.utils.clip_grad_norm_(self.policy.parameters(), 0.5)
            self.optimiser.step()
        return out.logits.detach()

    @torch.no_grad()
    def act(self) -> None:
        """One step of as many environments as act at once."""
        n = self.setting.acting
        seen = {key: value.flatten(0, 1)[:n] for key, value in self.observations.items()}
        with self.context():
            actions, masks = torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.bool)
            self.policy(seen, self.policy.initial_state(n), actions, masks)


def bf16() -> Any:
    """Autocast to bfloat16."""
    return torch.autocast("cpu", torch.bfloat16)


def ways(setting: Setting, *, compiled: bool) -> dict[str, Way]:
    """All ways of a table; the first is the former commit's."""
    contexts: dict[str, tuple[Callable[[], Any], bool, bool]] = {
        "plain, as before": (plain, False, False),
        "now": (nullcontext, False, False),
        "now, prepared observations, fused Adam": (nullcontext, True, False),
        "the same without norm kernels": (without_norms, True, False),
        "the same without oneDNN's products": (without_products, True, False),
        "the same without written-out recurrence": (without_sequences, True, False),
        "the same in bfloat16": (bf16, True, False),
    }
    if compiled:
        contexts["the same compiled"] = (nullcontext, True, True)
    return {name: Way(setting, context, prepared=p, compiled=c) for name, (context, p, c) in contexts.items()}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=[*SETTINGS])
    parser.add_argument("--share", type=int, default=1, metavar="N", help="an Nth of the environments: a worker's part")
    parser.add_argument("--compiled", action="store_true", help="torch.compile the encoder, too (minutes)")
    parser.add_argument("--keep-memory", action="store_true", help="let glibc keep freed memory")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with kept_memory() if arguments.keep_memory else nullcontext():
        for name in arguments.settings:
            whole, n = SETTINGS[name], arguments.share
            part = whole._replace(environments=whole.environments // n, acting=whole.acting // n)
            each = ways(part, compiled=arguments.compiled)
            logits = {way: copy.deepcopy(one).learn() for way, one in each.items() if "compiled" not in way}
            times: dict[str, tuple[list[float], list[float]]] = {way: ([], []) for way in each}
            for _ in range(arguments.repeats + 1):  # the first is left out
                for way, one in each.items():
                    for taken, call in zip(times[way], (one.learn, one.act)):
                        start = time.thread_time()
                        call()
                        taken.append(1e3 * (time.thread_time() - start))
            medians = {way: [statistics.median(taken[1:]) for taken in both] for way, both in times.items()}
            first = next(iter(medians))
            print(f"\n| {name} | gradient step | times as fast | acting | times as fast | logits differ by |")
            print("|---|---|---|---|---|---|")
            for way, (learning, acting) in medians.items():
                gains = medians[first][0] / learning, medians[first][1] / acting
                error = f"{(logits[way] - logits[first]).abs().max():.0e}" if way in logits else ""
                print(f"| {way} | {learning:.1f} ms | {gains[0]:.2f} | {acting:.2f} ms | {gains[1]:.2f} | {error} |")


if __name__ == "__main__":
    main()

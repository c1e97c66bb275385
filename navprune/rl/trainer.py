"""Training runs: an optional expert warm start, then PPO, with checkpoints to go on from.

A run folder holds `checkpoints/FRAMES/`, the links `latest` and `best`, `configs/`, `tensorboard/`, and during the
warm start `warm_start/`, its buffer.
"""

from __future__ import annotations

import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

from navprune.checks import bounded, check_fields, chosen
from navprune.errors import UserError
from navprune.machine import compile_fault
from navprune.models.build import build
from navprune.models.policy import PointNavPolicy
from navprune.models.spec import PolicySpec
from navprune.progress import ProgressLine, say_once
from navprune.rl import checkpoints, runs
from navprune.rl.callbacks import Callback
from navprune.rl.imitation import WarmStart, WarmStartConfig, forget_rounds, rounds_after
from navprune.rl.monitor import EpisodeWindow, Scalars, Timers
from navprune.rl.ppo import PPO, PPOConfig
from navprune.rl.rollouts import Actor, NotFinite

if TYPE_CHECKING:
    from navprune.tasks.engine import VectorEnv

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Signals on which a run saves and stops: Ctrl-C, and those of batch systems before time is up."""
COUNTED = ("frames", "updates", "phase_start", "schedule_start", "best_spl", "best_frames")
"""What a trainer counts, and keeps in checkpoints."""


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long a run is, what it writes, and on what it runs."""

    total_frames: int = bounded(1_000_000, 1)
    """Environment steps of all agents together, the warm start's included; 1 or more."""
    start: str = chosen(runs.RESUME, runs.STARTS)
    """Where the folder holds a run: `resume` goes on with it, `restart` moves it to FOLDER.N and begins anew, `new`
    refuses."""
    seed: int = bounded(0, 0)
    """Seed of the initial weights and of every random choice of the learner; 0 or more."""
    checkpoint_seconds: float = bounded(120.0, 0)
    """Least time between two checkpoints, written between updates; 0 writes one after each; 0 or more."""
    keep_checkpoints: int = bounded(2, 1)
    """Latest checkpoints that are kept, the best one aside; 1 or more."""
    log_updates: int = bounded(1, 1)
    """Updates between two entries in TensorBoard; 1 or more."""
    window: int = bounded(100, 1)
    """Episodes that reported measures and the choice of the best checkpoint average over; 1 or more."""
    device: str = "auto"
    """`cpu`, `cuda` or another of torch's devices; `auto` is CUDA where there is some."""
    threads: int = bounded(0, 0)
    """Threads of torch on the CPU; 0 leaves torch's choice; 0 or more."""
    bf16: bool = False
    """Whether the network runs in bfloat16 where that is safe (autocast)."""
    compile: bool = False
    """Whether the visual encoder is compiled with `torch.compile`."""

    def __post_init__(self) -> None:
        check_fields("trainer", self)


class TrainingResult(NamedTuple):
    """What a run came to: frames of the whole run; rate and seconds by phase of this process alone.

    `metrics` are the means of the last episodes' measures, `latest` and `best` checkpoint folders.
    """

    frames: int
    frames_per_second: float
    seconds: dict[str, float]
    metrics: dict[str, float]
    latest: Path
    best: Path


def train(
    policy: PolicySpec | PointNavPolicy,
    env: VectorEnv,
    trainer: TrainerConfig,
    ppo: PPOConfig,
    warm_start: WarmStartConfig | None,
    run_dir: Path | str,
    config_yaml: str = "",
    callbacks: Sequence[Callback] = (),
) -> TrainingResult:
    """Train `policy` (its present weights, or seeded ones of a spec) in `env`, which the caller closes.

    `callbacks` go along with PPO. Goes on from the newest whole checkpoint in `run_dir`, unless `trainer.start` says
    otherwise. Ctrl-C, SIGTERM and SIGUSR1 end the running update, write a checkpoint and exit with status 128 + signal.
    Raises UserError for a run folder, checkpoint or configuration that cannot be used, when a checkpoint cannot be
    written, and before a step that is not finite.
    """
    with runs.taken(Path(run_dir), trainer.start):
        return Trainer(policy, env, trainer, ppo, warm_start, run_dir, config_yaml, callbacks).run()


class Trainer:
    """One run; see `train` for the arguments."""

    def __init__(
        self,
        policy: PolicySpec | PointNavPolicy,
        env: VectorEnv,
        config: TrainerConfig,
        ppo: PPOConfig,
        warm_start: WarmStartConfig | None,
        run_dir: Path | str,
        config_yaml: str = "",
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.config, self.ppo, self.warm_start, self.config_yaml = config, ppo, warm_start, config_yaml
        self.callbacks = callbacks
        self.folder = Path(run_dir)
        if config.threads:
            torch.set_num_threads(config.threads)
        device = device_of(config.device)
        if config.compile and device.type == "cpu" and (fault := compile_fault()):
            raise UserError(f"trainer.compile cannot be used here: {fault}, or leave it out")
        policy = cast(PointNavPolicy, build(policy, config.seed)) if isinstance(policy, PolicySpec) else policy
        self.initial = policy.spec
        self.generator = torch.Generator().manual_seed(config.seed)
        self.window, self.timers = EpisodeWindow(config.window), Timers()
        self.actor = Actor(
            env, policy.to(device), device=device, generator=self.generator,
            window=self.window, timers=self.timers, bf16=config.bf16,
        )  # fmt: skip
        self.frames = self.updates = self.phase_start = self.schedule_start = 0
        self.best_spl, self.best_frames = -1.0, 0
        self.changes: list[str] = []
        self.learner: PPO | WarmStart
        if written := checkpoints.numbered(self.folder):
            checkpoints.first_whole(self.folder, written, self._resume)
        else:
            self.actor.reset()
            self.learner = self._learner(WarmStart.name if warm_start else PPO.name)
        self.saved_frames, self.saved_time = self.frames, time.monotonic()
        self.stop = 0
        if config.compile:
            self.policy.encoder.compile()

    @property
    def policy(self) -> PointNavPolicy:
        """The network that acts and learns: callbacks may have replaced the one that the run began with."""
        return self.actor.policy

    def _resume(self, folder: Path) -> None:
        self.changes = runs.changed_settings(folder, self.config_yaml)
        spec = checkpoints.read_spec(folder)
        if spec != self.policy.spec:
            self.actor.policy = PointNavPolicy(spec).to(self.actor.device)
        checkpoints.load_weights(folder, self.policy)
        state = checkpoints.read_trainer(folder)
        if PolicySpec.from_json(state.get("initial", spec.to_json())) != self.initial:
            raise UserError(f"{folder} is of a run that began with another spec; use another run folder or that spec")
        state = {"schedule_start": state["phase_start"], **state}  # which checkpoints of earlier versions lack
        vars(self).update({name: state[name] for name in COUNTED})
        self.generator.set_state(state["generator"])
        self.window.load_state_dict(state["window"])
        self.actor.load_state_dict(state["actor"])
        self.learner = self._learner(state["phase"])
        self.learner.load_state_dict(state["learner"])
        for callback in self.callbacks:
            if callback.name in state.get("callbacks", {}):
                callback.load_state_dict(state["callbacks"][callback.name])
        if not self._checkpoint(self.best_frames).exists():  # a later one was better, and is lost
            self.best_spl, self.best_frames = -1.0, self.frames
        self._tidy()

    def _learner(self, phase: str) -> PPO | WarmStart:
        if phase == WarmStart.name:
            if self.warm_start is None:
                raise UserError(
                    f"{self.folder} stopped in its warm start, which this configuration does not have; "
                    "add it, or use another run folder"
                )
            return WarmStart(self.policy, self.actor, self.warm_start, self.folder / "warm_start")
        return PPO(self.policy, self.actor, self.ppo, self.callbacks)

    @property
    def warm_end(self) -> int:
        """Frames at which the warm start ends."""
        return min(self.warm_start.frames, self.config.total_frames) if self.warm_start else 0

    @property
    def progress(self) -> float:
        """Share of the running phase's schedules that is done, in [0, 1]."""
        end = self.warm_end if isinstance(self.learner, WarmStart) else self.config.total_frames
        return (self.frames - self.schedule_start) / max(end - self.schedule_start, 1)

    def run(self) -> TrainingResult:
        """Train to the end; says where it goes on, or that there is nothing to do, and which settings are new."""
        first, total = self.frames, self.config.total_frames
        if first >= total:
            more = f"trainer.total_frames={2 * first} or the like trains longer"
            print(f"{self.folder} is complete at {first:,} frames, nothing to train; {more}", file=sys.stderr)
            return self._result(first)
        if first:
            what = "".join(f"\n  {change}" for change in self.changes)
            print(f"{self.folder} goes on at {first:,} frames of {total:,}{what}", file=sys.stderr)
        runs.keep_config(self.folder, first, self.config_yaml)
        line = ProgressLine("training", total, "frames", first)
        # Entries beyond the checkpoint are from a part of the run that was lost: they are to be forgotten.
        with self._signals(), closing(Scalars(self.folder / "tensorboard", purge_step=first + 1)) as writer:
            while self.frames < total and not self.stop:
                losses = self._update()
                if self.updates % self.config.log_updates == 0:
                    self._log(writer, losses, first)
                line.show(self.frames, self._note(), last=False)
                if time.monotonic() - self.saved_time >= self.config.checkpoint_seconds:
                    writer.flush()
                    self.save()
            writer.flush()
            self.save()
        line.show(self.frames, self._note(), last=True)
        if self.stop:
            start = "" if self.config.start == runs.RESUME else f" without trainer.start={self.config.start}"
            saved = self._checkpoint(self.frames)
            print(f"stopped and saved; the same command{start} goes on from {saved}", file=sys.stderr)
            raise SystemExit(128 + self.stop)
        return self._result(first)

    def _update(self) -> dict[str, float]:
        if isinstance(self.learner, WarmStart) and self.frames >= self.warm_end:
            self.phase_start = self.schedule_start = self.frames
            self.learner = self._learner(PPO.name)
            self._forget_episodes()
        try:
            losses = self.learner.update(self.progress)
        except NotFinite as error:
            saved = f"goes on from {self._checkpoint(self.saved_frames)}" if self.saved_frames else "begins anew"
            where = f"update {self.updates + 1} ({self.learner.name}, at {self.frames:,} frames)"
            raise UserError(f"{where}: {error}; nothing of it is saved, the next run {saved}") from None
        self.frames += self.learner.frames_per_update
        self.updates += 1
        if isinstance(self.learner, PPO):
            self._call_back(self.learner)
        return losses

    def _call_back(self, learner: PPO) -> None:
        """Let the callbacks act between two updates, each on what the one before it left."""
        for callback in self.callbacks:
            with self.timers("callbacks"):
                replacement = callback.on_update(learner, self.frames)
            if replacement is not None:
                learner.replace(replacement.policy, replacement.optimiser)
                self._forget_episodes()
                if replacement.restart:
                    self.schedule_start = self.frames
                if self.config.compile:
                    self.policy.encoder.compile()

    def _forget_episodes(self) -> None:
        """What other drivers or another network achieved says little of this one."""
        self.window.clear()
        self.best_spl, self.best_frames = -1.0, 0

    def _note(self) -> str:
        means = self.window.mean()
        shown = (f"{name} {means[name]:.3f}" for name in ("success", "spl", "reward") if name in means)
        return "  ".join((self.learner.name, *shown))

    def _log(self, writer: Scalars, losses: dict[str, float], first: int) -> None:
        """Write TensorBoard's scalars under the names that habitat-baselines gives them."""
        scalars = {name if name == "reward" else f"metrics/{name}": x for name, x in self.window.mean().items()}
        scalars |= {name if name == "learning_rate" else f"learner/{name}": x for name, x in losses.items()}
        for callback in self.callbacks:
            scalars |= callback.scalars()
        scalars["perf/fps"] = (self.frames - first) / self.timers.total
        scalars |= {f"perf/{name}": seconds for name, seconds in self.timers.phases().items()}
        writer.add(scalars, self.frames)

    def save(self) -> None:
        """Write a checkpoint unless there is one of this state; `latest` and `best` follow."""
        if self.frames == self.saved_frames:
            return
        with self.timers("checkpoint"):
            spl = self.window.mean().get("spl", -1.0)
            if not self.best_frames or (self.window.full and spl >= self.best_spl):
                self.best_spl, self.best_frames = (spl if self.window.full else -1.0), self.frames
            if isinstance(self.learner, WarmStart):
                self.learner.store()
            metrics = {"frames": self.frames, "updates": self.updates, "phase": self.learner.name}
            metrics |= {checkpoints.BEST_FRAMES: self.best_frames, **self.window.mean()}
            folder, state = self._checkpoint(self.frames), self._state()
            checkpoints.save_checkpoint(folder, self.policy, config=self.config_yaml, metrics=metrics, trainer=state)
            self._tidy()
        self.saved_frames, self.saved_time = self.frames, time.monotonic()

    def _state(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in COUNTED},
            "initial": self.initial.to_json(),
            "generator": self.generator.get_state(),
            "window": self.window.state_dict(),
            "actor": self.actor.state_dict(),
            "phase": self.learner.name,
            "learner": self.learner.state_dict(),
            "callbacks": {callback.name: callback.state_dict() for callback in self.callbacks},
        }

    def _checkpoint(self, frames: int) -> Path:
        return checkpoints.checkpoint_folder(self.folder, frames)

    def _tidy(self) -> None:
        """Point `latest` and `best` at their checkpoints and delete what neither the best nor the latest need."""
        runs.point(self.folder / checkpoints.LATEST, self._checkpoint(self.frames))
        runs.point(self.folder / checkpoints.BEST, self._checkpoint(self.best_frames))
        written = checkpoints.numbered(self.folder)
        latest = [frames for frames in written if frames <= self.frames][: self.config.keep_checkpoints]
        kept = {*latest, self.best_frames}
        for folder in map(self._checkpoint, set(written) - kept):
            try:
                checkpoints.check_replaceable(folder)
                shutil.rmtree(folder)
            except UserError as error:
                say_once(f"not deleted: {str(error).partition(';')[0]}")
        needed: set[int] = set()
        if self.warm_start:
            end = self.frames if isinstance(self.learner, WarmStart) else self.phase_start
            rounds = (rounds_after(f, self.actor.env.num_envs, self.warm_start) for f in kept if f <= end)
            needed = needed.union(*rounds)
        forget_rounds(self.folder / "warm_start", needed)

    def _result(self, first: int) -> TrainingResult:
        rate = (self.frames - first) / self.timers.total
        latest, best = (self._checkpoint(frames).resolve() for frames in (self.frames, self.best_frames))
        return TrainingResult(self.frames, rate, self.timers.phases(), self.window.mean(), latest, best)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let a signal of `STOPPING` stop the run after the present update, and a second Ctrl-C at once."""

        def stop(signum: int, frame: Any) -> None:
            if self.stop and signum == signal.SIGINT:
                raise KeyboardInterrupt
            if not self.stop:
                print("\nstopping after this update; Ctrl-C again stops at once", file=sys.stderr)
            self.stop = self.stop or signum

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, stop) for number in STOPPING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def default_device() -> str:
    """Return `cuda` where there is some, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_of(name: str) -> torch.device:
    """Return the device that `trainer.device` names; raises UserError where torch cannot use it."""
    try:
        device = torch.device(default_device() if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"trainer.device is {name}, which cannot be used here ({reason}); use auto or cpu") from error
    return device

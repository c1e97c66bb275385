"""Training runs: phases one after the other, with checkpoints to go on from.

A run folder holds `checkpoints/FRAMES/`, the links `latest` and `best`, `configs/`, `tensorboard/`, and what phases
keep in folders of their names. All workers of a run go through the same code; the first of them writes and speaks.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from navprune.checks import TINY, bounded, check_fields, chosen
from navprune.errors import UserError
from navprune.machine import compile_fault, kept_memory
from navprune.models.batch_norm import BatchNorm2d
from navprune.models.build import Spec, build, spec_from_json
from navprune.models.classifiers import Classifier
from navprune.models.encoders import RunningMeanAndVar
from navprune.models.policy import PointNavPolicy
from navprune.progress import ProgressLine, say_once
from navprune.rl import checkpoints, runs
from navprune.rl.group import Group, joined
from navprune.rl.learner import Learner, Update
from navprune.rl.monitor import EpisodeWindow, Scalars, Timers
from navprune.rl.phases import Phase
from navprune.rl.rollouts import Actor
from navprune.rl.stopping import TIME_IS_UP, Asked, ask_for_another_turn
from navprune.rl.trainee import NotFinite, Trainee

COUNTED = ("frames", "updates", "starts", "schedule_start", "best_frames")
"""What a trainer counts, and keeps in checkpoints."""
BEST_SCORE = "best_spl"
"""In a checkpoint: the score of the best one by then, whatever the measure."""


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long a run is, what it writes, and on what it runs; frames are images where a classifier learns."""

    total_frames: int = bounded(1_000_000, 1)
    """Environment steps of all agents together, the warm start's included; 1 or more. A classifier trains for
    `supervised.epochs` instead."""
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
    workers: int = bounded(0, 0)
    """Processes of this machine that share the environments and learn together; 0 is one for each GPU or, without any,
    each core, as far as the environments can be shared out; under `torchrun` its number counts; 0 or more."""
    threads: int = bounded(0, 0)
    """Threads of torch in each worker on the CPU; 0 is one, or every core for the single worker of habitat-lab's
    environments, whose processes rest while it learns; 0 or more."""
    timeout: float = bounded(600.0, TINY)
    """Seconds that workers wait for one another before the run ends and says for whom; above 0."""
    requeue: bool = False
    """Whether a run that SLURM stops by SIGUSR1 (`--signal=USR1@120`) asks it for another turn."""
    bf16: bool = False
    """Whether the network runs in bfloat16 where that is safe (autocast)."""
    compile: bool = False
    """Whether the visual encoder, or the classifier, is compiled with `torch.compile`."""

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
    network: Spec | nn.Module,
    data: Any,
    trainer: TrainerConfig,
    phases: Sequence[Phase],
    run_dir: Path | str,
    config_yaml: str = "",
    group: Group | None = None,
    trainee: Callable[..., Trainee] = Actor,
) -> TrainingResult:
    """Train `network` (its present weights, or seeded ones of a spec) on `data`, which the caller closes.

    A policy acts in a vector environment; `trainee` is what else a network learns from its data by. Goes on from the
    newest whole checkpoint in `run_dir`, unless `trainer.start` says otherwise. Ctrl-C, SIGTERM and SIGUSR1 end the
    running update, write a checkpoint and exit with status 128 + signal. Each worker of `group` calls this with data of
    its own; see `group`. Raises UserError for a run folder, checkpoint or configuration that cannot be used, when a
    checkpoint cannot be written, and before a step that is not finite.
    """
    group, threads = group or Group(), torch.get_num_threads()
    with runs.taken(Path(run_dir), trainer.start) if group.leads else nullcontext(), kept_memory():
        try:
            torch.set_num_threads(trainer.threads or 1)
            return Trainer(network, data, trainer, phases, run_dir, config_yaml, group, trainee).run()
        finally:
            torch.set_num_threads(threads)


class Trainer:
    """One worker of a run; see `train` for the arguments."""

    def __init__(
        self,
        network: Spec | nn.Module,
        data: Any,
        config: TrainerConfig,
        phases: Sequence[Phase],
        run_dir: Path | str,
        config_yaml: str = "",
        group: Group | None = None,
        trainee: Callable[..., Trainee] = Actor,
    ) -> None:
        self.config, self.phases, self.config_yaml, self.group = config, phases, config_yaml, group or Group()
        self.folder = Path(run_dir)
        device = device_of(config.device, self.group.local_rank)
        if config.compile and device.type == "cpu" and (fault := compile_fault()):
            raise UserError(f"trainer.compile cannot be used here: {fault}, or leave it out")
        network = network if isinstance(network, nn.Module) else build(network, config.seed)
        self.initial = cast(Spec, network.spec)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.window, self.timers = EpisodeWindow(config.window), Timers()
        self.trainee = trainee(
            data, network.to(device), device=device, generator=self.generator,
            timers=self.timers, bf16=config.bf16, group=self.group,
        )  # fmt: skip
        self.frames = self.updates = self.schedule_start = 0
        self.starts = {phases[0].name: 0}
        """Frames at which each phase began, those to come left out."""
        self.best_score, self.best_frames = -1.0, 0
        self.changes: list[str] = []
        self.learner: Learner
        self._begin()
        self.saved_frames, self.saved_time = self.frames, time.monotonic()
        self.asked = Asked(self.group.leads)
        self.stop = 0
        """The signal on which all workers stop."""
        self._network_is_new()

    @property
    def network(self) -> PointNavPolicy | Classifier:
        """The network that learns: its learner may have replaced the one that the run began with."""
        return self.trainee.network

    def _begin(self) -> None:
        """Go on from the newest whole checkpoint, which the first worker chooses, or begin."""
        found: int | None = None
        if self.group.leads and (written := checkpoints.numbered(self.folder)):
            found = int(checkpoints.first_whole(self.folder, written, self._resume).name)
        elif self.group.leads:
            for phase in self.phases:  # what a run left that ended before its first checkpoint
                if phase.tidy:
                    phase.tidy(self.folder / phase.name, self.trainee.environments, ())
        found = self.group.lead(found)
        if found is None:
            self.trainee.reset()
            self.learner = self._learner(self.phases[0])
        elif not self.group.leads:
            self._resume(self._checkpoint(found))

    def _resume(self, folder: Path) -> None:
        self.changes = runs.changed_settings(folder, self.config_yaml)
        spec = checkpoints.read_any_spec(folder)
        if spec != self.network.spec:
            self.trainee.network = build(spec).to(self.trainee.device)
        checkpoints.load_weights(folder, self.network)
        state = checkpoints.read_trainer(folder)
        if spec_from_json(state.get("initial", spec.to_json())) != self.initial:
            raise UserError(f"{folder} is of a run that began with another spec; use another run folder or that spec")
        vars(self).update({name: state[name] for name in COUNTED})
        self.best_score = state[BEST_SCORE]
        self.generator.set_state(state["generator"])
        self.window.load_state_dict(state["window"])
        self.trainee.load_state_dict(state["actor"])
        name = [*self.starts][-1]
        phase = next((phase for phase in self.phases if phase.name == name), None)
        if phase is None:
            raise UserError(
                f"{self.folder} stopped in its {name.replace('_', ' ')}, which this configuration does not have; "
                "add it, or use another run folder"
            )
        self.learner = self._learner(phase)
        self.learner.load_state_dict(self.trainee.part_of(state["learner"]))
        if not _same(checkpoints.read_masks(folder), self.trainee.weight_masks):
            raise UserError(f"{folder} is of a run under other masks than those of init; use another run folder")
        if not self._checkpoint(self.best_frames).exists():  # a later one was better, and is lost
            self.best_score, self.best_frames = -1.0, self.frames
        if self.group.leads:
            self._tidy()

    def _learner(self, phase: Phase) -> Learner:
        self.phase = phase
        return phase.begin(self.trainee, self.folder / phase.name)

    @property
    def phase_end(self) -> int:
        """Frames at which the running phase ends."""
        total = self.config.total_frames
        return total if self.phase.frames is None else min(self.starts[self.phase.name] + self.phase.frames, total)

    @property
    def progress(self) -> float:
        """Share of the running phase's schedules that is done, in [0, 1]."""
        return (self.frames - self.schedule_start) / max(self.phase_end - self.schedule_start, 1)

    def run(self) -> TrainingResult:
        """Train to the end; says where it goes on, or that there is nothing to do, and which settings are new."""
        first, total, unit = self.frames, self.config.total_frames, self.trainee.unit
        if first >= total:
            self.group.say(f"{self.folder} is complete at {first:,} {unit}, nothing to train; {self.trainee.longer}")
            return self._result(first)
        if first:
            what = "".join(f"\n  {change}" for change in self.changes)
            self.group.say(f"{self.folder} goes on at {first:,} {unit} of {total:,}{what}")
        with ExitStack() as stack:
            stack.enter_context(self.asked)
            line = writer = None
            if self.group.leads:
                runs.keep_config(self.folder, first, self.config_yaml)
                line = ProgressLine("training", total, unit, first)
                # Entries beyond the checkpoint are from a part of the run that was lost: they are to be forgotten.
                scalars = Scalars(self.folder / "tensorboard", purge_step=first + 1)
                writer = stack.enter_context(closing(scalars))
            while self.frames < total and not self.stop:
                update = self._update()
                due = self._exchange(update)
                if writer and self.updates % self.config.log_updates == 0:
                    self._log(writer, update, first)
                if line:
                    line.show(self.frames, self._note(), last=False)
                if due:
                    self.save(writer)
            self.save(writer)
            self.group.lead(None)  # whoever began the workers may end all when the first of them has ended
            if line:
                line.show(self.frames, self._note(), last=True)
        if self.stop:
            self._say_stopped()
            raise SystemExit(128 + self.stop)
        return self._result(first)

    def _update(self) -> Update:
        if self.frames >= self.phase_end:
            self._next_phase()
        try:
            update = self.learner.update(self.progress, self.frames)
        except NotFinite as error:
            saved = f"goes on from {self._checkpoint(self.saved_frames)}" if self.saved_frames else "begins anew"
            where = f"update {self.updates + 1} ({self.phase.name}, at {self.frames:,} {self.trainee.unit})"
            raise UserError(f"{where}: {error}; nothing of it is saved, the next run {saved}") from None
        self.frames += update.frames
        self.updates += 1
        if update.restart:
            self.schedule_start = self.frames
        return update

    def _next_phase(self) -> None:
        following = self.phases[self.phases.index(self.phase) + 1]
        self.starts[following.name] = self.schedule_start = self.frames
        self.learner = self._learner(following)
        self._forget_episodes()

    def _exchange(self, update: Update) -> bool:
        """Bring together what the workers have to say between two updates; returns whether a checkpoint is due."""
        if update.renewed:
            self._forget_episodes()
            self._network_is_new()
        due = time.monotonic() - self.saved_time >= self.config.checkpoint_seconds
        told = self.group.gather((self.trainee.ended, self.asked.by, due))
        self.trainee.ended = []
        for _, _, measures in sorted((end for ended, _, _ in told for end in ended), key=lambda end: end[:2]):
            self.window.add(measures)
        self.stop = next((asked for _, asked, _ in told if asked), 0)
        return told[0][2]

    def _network_is_new(self) -> None:
        if self.group.size > 1:
            for module in self.network.modules():
                if isinstance(module, RunningMeanAndVar | BatchNorm2d):
                    module.sum = self.group.sum
        if self.config.compile:
            compiled = self.network.encoder if isinstance(self.network, PointNavPolicy) else self.network
            compiled.compile()

    def _forget_episodes(self) -> None:
        """What other drivers or another network achieved says little of this one."""
        self.window.clear()
        self.trainee.ended = []
        self.best_score, self.best_frames = -1.0, 0

    def _note(self) -> str:
        means = self.window.mean()
        shown = (f"{name} {means[name]:.3f}" for name in self.trainee.shown if name in means)
        return "  ".join((self.phase.name, *shown))

    def _log(self, writer: Scalars, update: Update, first: int) -> None:
        """Write TensorBoard's scalars under the names that habitat-baselines gives them."""
        scalars = {name if name == "reward" else f"metrics/{name}": x for name, x in self.window.mean().items()}
        scalars |= {name if name == "learning_rate" else f"learner/{name}": x for name, x in update.losses.items()}
        scalars |= update.scalars
        scalars["perf/fps"] = (self.frames - first) / self.timers.total
        scalars |= {f"perf/{name}": seconds for name, seconds in self.timers.phases().items()}
        writer.add(scalars, self.frames)

    def save(self, writer: Scalars | None = None) -> None:
        """Write a checkpoint unless there is one of this state; `latest` and `best` follow. All workers call it."""
        if writer:
            writer.flush()
        if self.frames == self.saved_frames:
            return
        with self.timers("checkpoint"):
            score = self.window.mean().get(self.trainee.score, -1.0)
            if not self.best_frames or (self.window.full and score >= self.best_score):
                self.best_score, self.best_frames = (score if self.window.full else -1.0), self.frames
            self.learner.store()
            state = self._state()
            if state is not None:
                metrics = {"frames": self.frames, "updates": self.updates, "phase": self.phase.name}
                metrics |= {checkpoints.BEST_FRAMES: self.best_frames, **self.window.mean()}
                folder, config = self._checkpoint(self.frames), self.config_yaml
                checkpoints.save_checkpoint(
                    folder, self.network, config=config, metrics=metrics, trainer=state, masks=self.trainee.weight_masks
                )
                self._tidy()
        self.saved_frames, self.saved_time = self.frames, time.monotonic()

    def _state(self) -> dict[str, Any] | None:
        """All that is needed to go on, of all workers, in the first of them; None in the others."""
        told = self.group.gather_first({"actor": self.trainee.state_dict(), "learner": self.learner.state_dict()})
        if told is None:
            return None
        return {
            **{name: getattr(self, name) for name in COUNTED},
            BEST_SCORE: self.best_score,
            "initial": self.initial.to_json(),
            "generator": self.generator.get_state(),
            "window": self.window.state_dict(),
            **(told[0] if len(told) == 1 else joined(told)),
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
        for phase in self.phases:
            if phase.tidy and phase.name in self.starts:
                begun = self.starts[phase.name]
                end = min([frames for frames in self.starts.values() if frames > begun], default=self.frames)
                frames = [each - begun for each in kept if begun <= each <= end]
                phase.tidy(self.folder / phase.name, self.trainee.environments, frames)

    def _result(self, first: int) -> TrainingResult:
        rate = (self.frames - first) / self.timers.total
        latest, best = (self._checkpoint(frames).resolve() for frames in (self.frames, self.best_frames))
        return TrainingResult(self.frames, rate, self.timers.phases(), self.window.mean(), latest, best)

    def _say_stopped(self) -> None:
        start = "" if self.config.start == runs.RESUME else f" without trainer.start={self.config.start}"
        saved = self._checkpoint(self.frames)
        self.group.say(f"stopped and saved; the same command{start} goes on from {saved}")
        if self.config.requeue and self.group.leads and self.stop == TIME_IS_UP:
            ask_for_another_turn()


def _same(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(tensor.equal(others[name]) for name, tensor in some.items())


def default_device() -> str:
    """Return `cuda` where there is some, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def gpu_count(name: str) -> int:
    """How many GPUs of this machine `trainer.device` lets workers have, one each: 0 where they are to use its cores."""
    kind, _, number = (default_device() if name == "auto" else name).partition(":")
    return (1 if number else torch.cuda.device_count()) if kind == "cuda" else 0


def device_of(name: str, worker: int = 0) -> torch.device:
    """Return the device that `trainer.device` names, of several workers on a machine each its own GPU.

    Raises UserError where torch cannot use it.
    """
    try:
        device = torch.device(default_device() if name == "auto" else name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", worker % torch.cuda.device_count())
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError, ZeroDivisionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"trainer.device is {name}, which cannot be used here ({reason}); use auto or cpu") from error
    return device

"""habitat-lab's worker processes: each runs one environment, and the main process tells it which episode.

A fault in a worker reaches the main process as one error that names worker, scene and episode.
"""

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from habitat.core.environments import RLTaskEnv
from habitat.core.vector_env import CALL_COMMAND, CLOSE_COMMAND, VectorEnv
from habitat.datasets.pointnav.pointnav_dataset import PointNavDatasetV1
from habitat.tasks.nav.nav import NavigationEpisode
from omegaconf import DictConfig

from navprune.errors import UserError
from navprune.habitat.devices import advice
from navprune.tasks import FORWARD, LEFT, RIGHT, STOP

ACTIONS = {STOP: "stop", FORWARD: "move_forward", LEFT: "turn_left", RIGHT: "turn_right"}
"""What habitat-lab calls the actions."""
CLOSING_SECONDS = 5.0
"""Time that workers have to end by themselves."""
SHOWN_CHARACTERS = 4000
"""How much of what a dead worker said last is shown."""
NOT_OURS = (signal.SIGINT, signal.SIGUSR1)
"""Signals that may reach a worker but are the main process's to answer."""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
QUIET = {"MAGNUM_LOG": "quiet", "HABITAT_SIM_LOG": "quiet"}


class WorkerReport(NamedTuple):
    """Where the agent of a worker stands (metres [3], x y z w [4]) and the measures of its episode so far."""

    position: np.ndarray
    rotation: np.ndarray
    measures: dict[str, float]


class Failure(NamedTuple):
    """What a worker sends instead of an answer when something was raised in it."""

    by_user: bool
    message: str
    traceback: str


class Worker(RLTaskEnv):
    """habitat-lab's environment in a worker: begins the episodes that it is told to and reports on them."""

    def __init__(self, config: DictConfig, episode: NavigationEpisode, log: Path) -> None:
        """The episode decides which scene is loaded first; into log goes all that this process prints."""
        # Opened for appending, so that it can be emptied while others write.
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(self._log, stream)
        faulthandler.enable()
        dataset = PointNavDatasetV1()
        dataset.episodes = [episode]
        self._opening = opening if config.habitat.simulator.type == "Sim-v0" else contextlib.nullcontext
        with self._opening():
            super().__init__(config, dataset)
        self.original_action_space = self.action_space

    def begin(self, episode: NavigationEpisode, actions: Sequence[int]) -> tuple[dict[str, np.ndarray], WorkerReport]:
        """Begin an episode, take the actions, and return what is then seen and reported."""
        os.ftruncate(self._log, 0)
        self.habitat_env.current_episode = episode
        self._return, self._steps = 0.0, 0
        with self._opening():
            observations = dict(self.reset())
        for action in actions:
            observations = self.step(action)[0]
        return observations, self._report()

    def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, WorkerReport]:
        """Take an action; returns observations, reward, whether the episode is over, and the report."""
        observations, reward, done, _ = super().step(ACTIONS[action])
        self._return += reward
        self._steps += 1
        return dict(observations), float(reward), bool(done), self._report()

    def _report(self) -> WorkerReport:
        state, found = self.habitat_env.sim.get_agent_state(), self.habitat_env.get_metrics()
        turn = state.rotation
        measures = {name: float(found[name]) for name in ("success", "spl", "soft_spl", "distance_to_goal")} | {
            "reward": self._return,
            "collisions": float(found["collisions"]["count"]),
            "steps": float(self._steps),
        }
        return WorkerReport(np.array(state.position), np.array([turn.x, turn.y, turn.z, turn.w]), measures)


@contextlib.contextmanager
def opening() -> Iterator[None]:
    """Raise UserError for a scene that habitat-sim cannot open; its C++ raises these two."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        remedy = "copy the scene again (`navprune doctor` finds files that are cut off)"
        raise UserError(advice(str(error)) or f"habitat-sim cannot open it: {error}; {remedy}") from error


class Workers(VectorEnv):
    """N of habitat-lab's worker processes that begin their episodes when told to; `close` ends them.

    Raises UserError for a user's mistake met in a worker, a worker that died and a graphics device that cannot be
    used, and RuntimeError for anything else that was raised there, whose traceback goes to stderr.
    """

    _workers: list[Any]
    _is_closed: bool

    def __init__(self, configs: Sequence[DictConfig], episodes: Sequence[NavigationEpisode]) -> None:
        """A configuration and a first episode for each worker."""
        self._folder = tempfile.TemporaryDirectory(prefix="navprune-workers-")
        self._running = [describe(episode) for episode in episodes]
        logs = [self._log(rank) for rank in range(len(configs))]
        start_server()
        try:
            super().__init__(Worker, list(zip(configs, episodes, logs, strict=True)), auto_reset_done=False)
        except BaseException:
            self.close()
            raise

    def begin(
        self, episodes: Mapping[int, tuple[NavigationEpisode, Sequence[int]]]
    ) -> dict[int, tuple[dict[str, np.ndarray], WorkerReport]]:
        """Begin {rank: (episode, actions to take at once)} side by side; returns {rank: Worker.begin's answer}."""
        for rank, (episode, actions) in episodes.items():
            self._running[rank] = describe(episode)
            self._connection_write_fns[rank]((CALL_COMMAND, ("begin", {"episode": episode, "actions": actions})))
        return {rank: self._connection_read_fns[rank]() for rank in episodes}

    def act(self, actions: Mapping[int, int]) -> dict[int, tuple[dict[str, np.ndarray], float, bool, WorkerReport]]:
        """Take {rank: action} side by side; returns {rank: Worker.step's answer}."""
        for rank, action in actions.items():
            self.async_step_at(rank, action)
        return {rank: self.wait_step_at(rank) for rank in actions}

    def close(self) -> None:
        """End the workers, by force where one is busy or does not answer."""
        if not self._is_closed:
            self._is_closed = True
            for process, read, write in zip(self._workers, self._connection_read_fns, self._connection_write_fns):
                if read.is_waiting:
                    process.kill()
                else:
                    write((CLOSE_COMMAND, None))
        deadline = time.monotonic() + CLOSING_SECONDS
        # Ctrl-C may have come before the last of them was started.
        for process in (process for process in self._workers if process.pid is not None):
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        self._workers = []
        self._folder.cleanup()

    @staticmethod
    def _worker_env(
        receive: Callable, send: Callable, make: Callable, args: tuple, reset: bool, mask: bool, pipe: Any, other: Any
    ) -> None:
        """habitat-lab's loop in the worker; being found in this module, it has habitat-lab imported by our rules."""
        for number in NOT_OURS:
            signal.signal(number, signal.SIG_IGN)
        try:
            VectorEnv._worker_env(receive, send, make, args, reset, mask, None, other)
        except Exception as error:
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            with contextlib.suppress(OSError):  # The main process may be gone.
                send(Failure(isinstance(error, UserError), " ".join(text.split()), traceback.format_exc()))

    def _spawn_workers(self, *args: Any, **kwargs: Any) -> Any:
        """habitat-lab's processes, with reading and writing that tell when one has died."""
        reads, writes = super()._spawn_workers(*args, **kwargs)
        for read, write in zip(reads, writes):
            read.read_fn = partial(self._receive, read.rank, read.read_fn)
            write.write_fn = partial(send_to_any, write.write_fn)
        return reads, writes

    def _receive(self, rank: int, receive: Callable[[], Any]) -> Any:
        try:
            answer = receive()
        except (EOFError, OSError):
            self._mourn(rank)
        if isinstance(answer, Failure):
            self._complain(rank, answer)
        return answer

    def _complain(self, rank: int, failure: Failure) -> NoReturn:
        """Raise what was raised in a worker."""
        self.close()
        if failure.by_user:
            raise UserError(f"{self._name(rank)}: {failure.message}")
        if known := advice(failure.message):
            raise UserError(f"{self._name(rank)}: {known}")
        print(failure.traceback, file=sys.stderr)
        raise RuntimeError(f"{self._name(rank)} failed: {failure.message}; its traceback stands above")

    def _mourn(self, rank: int) -> NoReturn:
        """Says of what a worker died."""
        process = self._workers[rank]
        process.join(CLOSING_SECONDS)
        code, log = process.exitcode, self._log(rank)
        said = log.read_text(errors="replace") if log.exists() else ""
        self.close()
        if known := advice(said):
            raise UserError(f"{self._name(rank)}: {known}")
        if said:
            print(said[-SHOWN_CHARACTERS:], file=sys.stderr)
        raise UserError(f"{self._name(rank)} {cause_of_death(code)}")

    def _name(self, rank: int) -> str:
        return f"worker {rank} ({self._running[rank]})"

    def _log(self, rank: int) -> Path:
        return Path(self._folder.name) / f"{rank}.log"


def describe(episode: NavigationEpisode) -> str:
    """The scene and the episode, for messages."""
    return f"scene {Path(episode.scene_id).stem}, episode {episode.episode_id}"


def cause_of_death(code: int | None) -> str:
    """What the exit code of a worker tells, and what to do about it."""
    if code is None:
        return "closed its connection without a word; please report this"
    if code >= 0:
        return f"ended with exit code {code}; what it said last stands above"
    name = signal.Signals(-code).name
    if code == -signal.SIGKILL:
        return f"was killed ({name}), most often for want of memory; try fewer environments or smaller images"
    if code == -signal.SIGTERM:
        return f"was ended from outside ({name}); start again, a run goes on from its last checkpoint"
    return f"crashed ({name}); what it said last stands above; simulator=embedded needs no graphics driver"


def send_to_any(send: Callable[[Any], None], message: Any) -> None:
    """Send to a worker that may be dead: then no answer comes, and reading tells of it."""
    with contextlib.suppress(OSError):
        send(message)


def start_server() -> None:
    """Start the server that imports everything once, and whose forks the workers are.

    They inherit what it has: one thread each, quiet libraries, and no Ctrl-C, which is the main process's to answer, as
    is SIGUSR1, which batch systems send to all.
    """
    multiprocessing.set_forkserver_preload(["__main__", __name__])
    environment, on_main_thread = dict(os.environ), threading.current_thread() is threading.main_thread()
    os.environ.update({**QUIET, **environment, **ONE_THREAD})
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in NOT_OURS if on_main_thread}
    try:
        forkserver.ensure_running()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for name in (*QUIET, *ONE_THREAD):
            os.environ.pop(name)
        os.environ.update(environment)

"""A run of several workers in lanes, as a program: `python -m rl.program JSON`; see `be_a_worker`."""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import torch
from rl.conftest import tiny_spec
from rl.groups import Lanes

from navprune.cli import agents, main
from navprune.errors import UserError
from navprune.models.build import build
from navprune.rl.phases import phases_of
from navprune.rl.ppo import PPOConfig
from navprune.rl.trainer import TrainerConfig, train
from navprune.rl.warm_start import WarmStartConfig
from navprune.rl.workers import handed_over, workers

WARM = WarmStartConfig(frames=192, steps=12, sequence=6, batch=4, capacity=192, lr=1e-2)


def be_a_worker(task):
    """Train; `task` says where, how, and `rank` does `what` at step `at`, once where `once` names a file."""
    policy = build(tiny_spec(), 1)
    config = TrainerConfig(**{"total_frames": 384, "checkpoint_seconds": 0, **task.get("trainer", {})})
    phases = phases_of(PPOConfig(steps=12, epochs=1, minibatches=2, **task.get("ppo", {})), WARM)
    with workers(task.get("workers", 2), config.timeout, "rl.program:work", task) as group:
        notes = Path(f"{task['run']}.{group.rank}")
        notes.write_text(json.dumps({"pid": os.getpid()}))
        count = 8 // group.size
        env = Lanes(count, group.rank * count, torch.float32, limit=5)
        if group.rank == task.get("rank"):
            trouble(env, task)
        result = train(policy, env, config, phases, task["run"], group=group)
        notes.write_text(json.dumps({"frames": result.frames, "own": env.steps_taken * count}))


def trouble(env, task):
    what, at = task["what"], task.get("at", 30)
    if what == "disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (task["bytes"], resource.RLIM_INFINITY))
    elif what == "write":
        sync, left = os.fsync, iter(range(at))
        os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL) if next(left, None) is None else sync(fd)
    elif what == "slow":
        step = env.step
        env.step = lambda actions: time.sleep(0.03) or step(actions)
    elif what == "reward":
        step = env.step

        def spoilt(actions):
            done = step(actions)
            return done._replace(reward=done.reward / 0) if env.steps_taken == at else done

        env.step = spoilt
    else:
        env.fail_at = (at, lambda: fail(what, task.get("once")))


def fail(what, once):
    if once and Path(once).exists():
        return
    if once:
        Path(once).touch()
    if what == "scene":
        raise UserError("data/scene.glb is cut off; fetch it again")
    if what == "error":
        raise ZeroDivisionError
    if what == "sleep":
        time.sleep(60)
    *where, name = what.split()
    number = getattr(signal, name)
    if "machine" in where:
        os.kill(os.getppid(), number)
    for _ in range(2 if "twice" in where else 1):
        os.killpg(os.getpgid(0), number) if "group" in where else os.kill(os.getpid(), number)


def work():
    be_a_worker(handed_over())


if __name__ == "__main__":
    agents._train = lambda options: be_a_worker(json.loads(sys.argv[1]))
    sys.exit(main(["train"]))

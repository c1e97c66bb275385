"""`navprune train`: a training run as configured."""

import os
from dataclasses import replace
from pathlib import Path

from navprune.commands.environments import check_sees, training_env
from navprune.commands.prune import with_costs, write_pruning
from navprune.config import Config, to_yaml
from navprune.errors import UserError
from navprune.machine import cores
from navprune.models.build import build
from navprune.models.policy import PointNavPolicy
from navprune.models.spec import PolicySpec
from navprune.pruning.gradual import TAYLOR, GradualPruning
from navprune.pruning.recover import Distillation, rewound_checkpoint
from navprune.rl.callbacks import Callback
from navprune.rl.checkpoints import read_spec
from navprune.rl.group import Group
from navprune.rl.phases import phases_of
from navprune.rl.trainer import TrainerConfig, TrainingResult, gpu_count, train
from navprune.rl.workers import handed_over, workers
from navprune.source import FOLDER, Source, agent_spec


def initial_policy(config: Config) -> PointNavPolicy:
    """The policy that a training run begins with."""
    pruning, seed = config.pruning, config.trainer.seed
    init = None if config.init is None else Source.parse(config.init)
    if pruning and pruning.rewind and pruning.budget is None:
        if init is None or init.kind != FOLDER:
            raise UserError("pruning.rewind goes with cuts or a pruned init; set pruning.budget or init=CHECKPOINT")
        return rewound_checkpoint(init.folder, pruning.rewind)
    given = init and init.policy(config, seed)
    if given and config.init_weights:
        return given
    return build(given.spec if given else agent_spec(config), seed)  # type: ignore[return-value]


def run_training(config: Config) -> TrainingResult:
    """Train as configured into `config.run`; what it does where that holds a run is up to `trainer.start`.

    Begins further workers, or is one itself where torchrun began it; the result is then that of the whole run.
    """
    policy = initial_policy(config)
    check_sees(policy.spec.encoder, config)
    count = worker_count(config)
    with workers(count, config.trainer.timeout, "navprune.commands.train:work", config) as group:
        return _train(config, policy, group)


def work() -> None:
    """Be a worker of a run that another process began."""
    run_training(handed_over())


def worker_count(config: Config) -> int:
    """How many workers `trainer.workers` asks for, or torchrun began; UserError where they cannot share the work."""
    begun, parts, fits = int(os.environ.get("WORLD_SIZE", 0)), config.ppo.minibatches, fitting(config)
    asked = begun or config.trainer.workers
    gpus = gpu_count(config.trainer.device)
    if not asked:
        # habitat-lab's environments are processes of their own, which keep the cores busy.
        there = gpus or (cores() if config.env == "embedded" else 1)
        return max(count for count in fits if count <= there)
    what = f"torchrun began {begun} workers" if begun else f"trainer.workers is {asked}"
    if asked not in fits:
        batch = f" and {config.warm_start.batch} sequences (warm_start.batch)" if config.warm_start else ""
        more = f" and of {asked} sequences" if config.warm_start and config.warm_start.batch % asked else ""
        raise UserError(
            f"{what}, which cannot share out {config.environments} environments in {parts} mini-batches{batch}; "
            f"use {' or '.join(map(str, fits))}, or a multiple of {asked * parts} environments{more}"
        )
    if gpus and (here := int(os.environ.get("LOCAL_WORLD_SIZE", asked))) > gpus:
        raise UserError(f"{what}, and {here} on this machine have {gpus} of its GPUs; begin {gpus} here, one for each")
    return asked


def fitting(config: Config) -> list[int]:
    """The numbers of workers that can share the environments, mini-batches and sequences of a configuration."""
    parts, batch = config.ppo.minibatches, config.warm_start.batch if config.warm_start else 0
    counts = range(2, config.environments + 1)
    return [1, *(count for count in counts if config.environments % (count * parts) == 0 and batch % count == 0)]


def _train(config: Config, policy: PointNavPolicy, group: Group) -> TrainingResult:
    cuts, lessons = gradual_pruning(config, policy), distillation(config, policy.spec)
    callbacks: list[Callback] = [callback for callback in (cuts, lessons) if callback]
    # What is written down is for going on, or for other runs: it must not move this one aside.
    pruning = config.pruning and replace(config.pruning, method=config.pruning.method or TAYLOR)
    written = to_yaml(replace(config, pruning=pruning, trainer=replace(config.trainer, start=TrainerConfig.start)))
    phases = phases_of(config.ppo, config.warm_start, callbacks)
    alone = config.env == "habitat" and group.on_machine == 1
    threads = config.trainer.threads or (cores() if alone else 1)
    env = training_env(config, group)
    try:
        trainer = replace(config.trainer, threads=threads)
        result = train(policy, env, trainer, phases, Path(config.run), written, group)
    finally:
        env.close()
    if cuts and group.leads:
        write_pruning(result.latest, with_costs(cuts.to_json(), cuts.dense, read_spec(result.latest)))
    return result


def gradual_pruning(config: Config, policy: PointNavPolicy) -> GradualPruning | None:
    """What cuts `policy`, the one that the run begins with, while it trains; None where nothing does."""
    pruning, trainer = config.pruning, config.trainer
    if pruning is None or pruning.budget is None:
        return None
    early = Source.parse(pruning.rewind).policy(config) if pruning.rewind else None
    begin = min(config.warm_start.frames, trainer.total_frames) if config.warm_start else 0
    frames, update = (begin, trainer.total_frames), config.ppo.steps * config.environments
    return GradualPruning(pruning, policy, frames=frames, update=update, seed=trainer.seed, early=early)


def distillation(config: Config, student: PolicySpec) -> Distillation | None:
    """The distillation from `pruning.teacher` for a network of spec `student`; None where there is no teacher."""
    pruning = config.pruning
    if pruning is None or pruning.teacher is None:
        return None
    teacher = Source.parse(pruning.teacher).policy(config)
    check_sees(teacher.spec.encoder, config)
    return Distillation(teacher, student, policy=pruning.teach_policy, features=pruning.teach_features)

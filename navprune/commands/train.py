"""`navprune train`: a training run as configured."""

import os
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from navprune.commands.classification import check_fits, classifier_of, training_images
from navprune.commands.environments import check_sees, training_env
from navprune.commands.prune import with_costs, write_pruning
from navprune.config import Config, to_yaml
from navprune.errors import UserError
from navprune.images.splits import Images
from navprune.machine import cores
from navprune.models.build import Network, Spec, build
from navprune.models.classifiers import Classifier
from navprune.models.policy import PointNavPolicy
from navprune.pruning.config import GROWING
from navprune.pruning.gradual import TAYLOR, GradualPruning
from navprune.pruning.masked import Masking
from navprune.pruning.masks import apply_masks
from navprune.pruning.penalties import Penalty
from navprune.pruning.recover import Distillation, LogitDistillation, rewound_checkpoint
from navprune.rl.callbacks import Callback
from navprune.rl.checkpoints import load_network, read_any_spec, read_facts, read_masks
from navprune.rl.devices import gpu_count
from navprune.rl.group import Group
from navprune.rl.phases import phases_of, supervised_phase
from navprune.rl.supervised import Reader
from navprune.rl.trainer import TrainerConfig, TrainingResult, train
from navprune.rl.workers import handed_over, workers
from navprune.source import FOLDER, Source, agent_spec


def initial_network(config: Config, dense: Spec | None = None) -> Network:
    """The network that a training run begins with; `dense` is what is built where nothing is taken from `init`."""
    pruning, seed = config.pruning, config.trainer.seed
    init = None if config.init is None else Source.parse(config.init)
    if pruning and pruning.rewind and pruning.budget is None:
        if init is None or init.kind != FOLDER:
            raise UserError("pruning.rewind goes with cuts or a pruned init; set pruning.budget or init=CHECKPOINT")
        if read_masks(init.folder):
            return load_network(pruning.rewind)
        return rewound_checkpoint(init.folder, pruning.rewind)
    given = init and (init.load(config, seed) if config.images else init.policy(config, seed))
    if given and config.init_weights:
        return given  # type: ignore[return-value]
    return build(given.spec if given else dense or agent_spec(config), seed)  # type: ignore[return-value]


def run_training(config: Config) -> TrainingResult:
    """Train as configured into `config.run`; what it does where that holds a run is up to `trainer.start`.

    Begins further workers, or is one itself where torchrun began it; the result is then that of the whole run.
    """
    if config.images:
        images = training_images(config)
        title = config.init or config.classifier.family
        classifier = check_fits(initial_network(config, classifier_of(config, images[0])), images[0], title)
        with _workers(config) as group:
            _tell_idle(config, group)
            return _train_classifier(config, classifier, images, group)
    policy = initial_network(config)
    assert isinstance(policy, PointNavPolicy)
    check_sees(policy.spec.encoder, config)
    with _workers(config) as group:
        _tell_idle(config, group)
        return _train_agent(config, policy, group)


def work() -> None:
    """Be a worker of a run that another process began."""
    run_training(handed_over())


def worker_count(config: Config) -> int:
    """How many workers `trainer.workers` asks for, or torchrun began; UserError where they cannot share the work."""
    begun, fits = int(os.environ.get("WORLD_SIZE", 0)), fitting(config)
    asked = begun or config.trainer.workers
    gpus = gpu_count(config.trainer.device)
    if not asked:
        # habitat-lab's environments are processes of their own, which keep the cores busy.
        there = gpus or (cores() if config.env == "embedded" else 1)
        return max(count for count in fits if count <= there)
    what = f"torchrun began {begun} workers" if begun else f"trainer.workers is {asked}"
    if asked not in fits:
        raise UserError(f"{what}, which cannot share out {_shared(config, asked)}")
    if gpus and (here := int(os.environ.get("LOCAL_WORLD_SIZE", asked))) > gpus:
        raise UserError(f"{what}, and {here} on this machine have {gpus} of its GPUs; begin {gpus} here, one for each")
    return asked


def fitting(config: Config) -> list[int]:
    """The numbers of workers that can share the batches, or the environments, mini-batches and sequences."""
    if config.images:
        return [count for count in range(1, config.supervised.batch + 1) if config.supervised.batch % count == 0]
    parts, batch = config.ppo.minibatches, config.warm_start.batch if config.warm_start else 0
    counts = range(2, config.environments + 1)
    return [1, *(count for count in counts if config.environments % (count * parts) == 0 and batch % count == 0)]


def _shared(config: Config, asked: int) -> str:
    """What `asked` workers cannot share out, and what to do."""
    *fewer, most = map(str, fitting(config))
    few = [*fewer[:3], *(["..."] if len(fewer) > 3 else [])]
    fits = f"{', '.join(few)} or {most}" if few else most
    if config.images:
        return f"batches of {config.supervised.batch} images (supervised.batch); use {fits} workers"
    parts, warm_start = config.ppo.minibatches, config.warm_start
    batch = f" and {warm_start.batch} sequences (warm_start.batch)" if warm_start else ""
    more = f" and of {asked} sequences" if warm_start and warm_start.batch % asked else ""
    return (
        f"{config.environments} environments in {parts} mini-batches{batch}; "
        f"use {fits}, or a multiple of {asked * parts} environments{more}"
    )


def _workers(config: Config) -> AbstractContextManager[Group]:
    return workers(worker_count(config), config.trainer.timeout, "navprune.commands.train:work", config)


def _train_agent(config: Config, policy: PointNavPolicy, group: Group) -> TrainingResult:
    begin = min(config.warm_start.frames, config.trainer.total_frames) if config.warm_start else 0
    frames, update = (begin, config.trainer.total_frames), config.ppo.steps * config.environments
    masks, cuts = masking(config, policy), gradual_pruning(config, policy, frames, update)
    callbacks = _callbacks(penalty(config, frames), cuts, distillation(config, policy), masks)
    phases = phases_of(config.ppo, config.warm_start, callbacks)
    alone = config.env == "habitat" and group.on_machine == 1
    threads = config.trainer.threads or (cores() if alone else 1)
    env = training_env(config, group)
    try:
        trainer = replace(config.trainer, threads=threads)
        result = train(policy, env, trainer, phases, Path(config.run), _written(config), group)
    finally:
        env.close()
    _tell_cuts(cuts, result, group)
    return result


def _train_classifier(
    config: Config, classifier: Classifier, images: tuple[Images, Images | None], group: Group
) -> TrainingResult:
    own, total = config.supervised, config.supervised.frames(len(images[0]))
    frames = (0, total)
    masks, cuts = masking(config, classifier), gradual_pruning(config, classifier, frames, own.steps * own.batch)
    callbacks = _callbacks(penalty(config, frames), cuts, distillation(config, classifier), masks)
    phases = supervised_phase(own, callbacks)
    held = len(images[1]) if images[1] else 0
    size = sum(parameter.numel() for parameter in classifier.parameters())
    group.say(
        f"{classifier.spec.family}, {size:,} parameters: {len(images[0]):,} images {list(images[0].shape)} in "
        f"{len(images[0].classes)} classes to learn from, {held:,} held out to measure"
    )
    # Each pass over the images that are held out says what the network is worth by itself.
    trainer = replace(config.trainer, total_frames=total, window=1)
    result = train(classifier, images, trainer, phases, Path(config.run), _written(config), group, Reader)
    _tell_cuts(cuts, result, group)
    return result


def _callbacks(*wanted: Callback | None) -> list[Callback]:
    """Those that there are; masks come last, so that nothing moves what they hold at zero."""
    return [callback for callback in wanted if callback]


def _written(config: Config) -> str:
    """The configuration as it is kept: for going on, or for other runs, so that it must not move this one aside."""
    pruning = config.pruning and replace(config.pruning, method=config.pruning.method or TAYLOR)
    return to_yaml(replace(config, pruning=pruning, trainer=replace(config.trainer, start=TrainerConfig.start)))


def _tell_cuts(cuts: GradualPruning | None, result: TrainingResult, group: Group) -> None:
    """Write what was cut beside the network that is left."""
    if cuts and group.leads:
        write_pruning(result.latest, with_costs(cuts.to_json(), cuts.dense, read_any_spec(result.latest)))


def gradual_pruning(config: Config, network: Network, frames: tuple[int, int], update: int) -> GradualPruning | None:
    """What cuts `network`, the one that the run begins with, from the first of `frames` to the second.

    An `update` takes so many. None where nothing cuts.
    """
    pruning, seed = config.pruning, config.trainer.seed
    if pruning is None or pruning.budget is None:
        return None
    early = Source.parse(pruning.rewind).load(config) if pruning.rewind else None
    return GradualPruning(pruning, network, frames=frames, update=update, seed=seed, early=early)  # type: ignore[arg-type]


def masking(config: Config, network: Network) -> Masking | None:
    """What holds the masks of the checkpoint in `init`, on new weights too; None where it has none.

    Raises UserError where they are of another network than the one that the run begins with, or the run cuts it or
    warms it up.
    """
    init = None if config.init is None else Source.parse(config.init)
    masks = read_masks(init.folder) if init and init.kind == FOLDER else {}
    if not masks:
        return None
    if config.pruning and config.pruning.budget:
        raise UserError(f"{config.init} has masks, under which nothing is cut; leave pruning.budget out")
    if config.warm_start:
        raise UserError(f"{config.init} has masks, which the warm start does not hold; set warm_start=null")
    apply_masks(network, masks)
    return Masking(masks)


def _tell_idle(config: Config, group: Group) -> None:
    """Say so where a section `pruning` does nothing while a network trains."""
    pruning = config.pruning
    if pruning and not (pruning.budget or pruning.penalty or pruning.rewind or pruning.teacher):
        group.say("pruning does nothing here: set pruning.budget, pruning.penalty or pruning.teacher, or pruning=null")


def penalty(config: Config, frames: tuple[int, int]) -> Penalty | None:
    """The penalty on all units, in a phase that begins and ends at `frames`; None without one."""
    pruning = config.pruning
    return Penalty(pruning, frames) if pruning and pruning.penalty not in (None, GROWING) else None


def distillation(config: Config, student: Network) -> Callback | None:
    """The distillation from `pruning.teacher` for the network that the run begins with; None without a teacher."""
    pruning = config.pruning
    if pruning is None or pruning.teacher is None:
        return None
    source = Source.parse(pruning.teacher)
    if isinstance(student, Classifier):
        facts = read_facts(source.folder) if source.kind == FOLDER else {}
        return LogitDistillation(source.classifier(), student.spec, weight=pruning.teach_policy, facts=facts)
    teacher = source.policy(config)
    check_sees(teacher.spec.encoder, config)
    return Distillation(teacher, student.spec, policy=pruning.teach_policy, features=pruning.teach_features)

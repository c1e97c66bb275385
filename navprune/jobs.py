"""What the commands do, as functions: the command line, the demo and the benchmarks call these."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from navprune.config import Config, load_config, to_yaml
from navprune.errors import UserError
from navprune.evaluation.agents import Agent, GoalFollower, PolicyAgent, RandomAgent, ShortestPathAgent
from navprune.evaluation.cost import cost
from navprune.evaluation.evaluate import Evaluation, Recorder, Recording, evaluate, key_of
from navprune.evaluation.latency import device_name, measure
from navprune.models.classifiers import NAMES as CLASSIFIERS
from navprune.models.classifiers import Classifier, ClassifierSpec
from navprune.models.policy import PointNavPolicy
from navprune.models.spec import NAMES, EncoderSpec, PolicySpec, build, encoder_spec
from navprune.models.weights import read_foreign
from navprune.progress import ProgressLine
from navprune.pruning.gradual import GradualPruning
from navprune.pruning.methods import NEEDS_BATCHES
from navprune.pruning.prune import PruningResult, prune
from navprune.pruning.recover import Distillation, rewound_checkpoint
from navprune.pruning.slim import Spec
from navprune.pruning_jobs import (
    Material,
    PruningOptions,
    count_cost,
    latency_costs,
    material,
    pruning_json,
    unpruned_classifier,
    with_costs,
    write_pruning,
)
from navprune.reports import maps, video
from navprune.reports.page import Picture, Report, write_report
from navprune.reports.plots import Curve, read_curve
from navprune.reports.tables import EncoderRow, Table, describe, encoder_table
from navprune.rl.callbacks import Callback
from navprune.rl.checkpoints import (
    LATEST,
    PRUNED_FROM,
    PRUNING,
    check_replaceable,
    find_checkpoint,
    load_network,
    load_policy,
    read_spec,
    save_checkpoint,
    was_pruned,
    write_file,
)
from navprune.rl.trainer import TrainingResult, default_device, device_of, train
from navprune.scenes.episodes import Episode, EpisodeTable, read_episodes
from navprune.simulator.scene import SceneLibrary
from navprune.tasks.pointnav import EpisodeOrder, Once, PointNavEnv, Shuffled, VectorEnv

CONTROLS = ("random", "goal-follower", "shortest-path")
DEFAULT_RECIPE = "pointnav"


def policy_spec(config: Config) -> PolicySpec:
    """The architecture that a configuration asks for; raises UserError where `init` gives none."""
    if config.init is not None:
        return spec_of(config.init, config)
    agent, task = config.agent, config.task
    channels = {"depth": 1, "rgb": 3}
    shape = (sum(channels[sensor] for sensor in task.sensors), task.height, task.width)
    return PolicySpec(
        encoder=encoder_spec(agent.encoder, shape, agent.base_planes, output=agent.compression),
        visual_features=agent.visual_features,
        hidden_size=agent.hidden_size,
        rnn=agent.rnn,
        rnn_layers=agent.rnn_layers,
    )


def spec_of(source: str, config: Config | None = None) -> PolicySpec:
    """The spec of an encoder's name, a spec.json, a .pth of habitat-baselines, a checkpoint or a run folder."""
    path = Path(source)
    if source in NAMES:
        config = config or Config()
        return policy_spec(replace(config, init=None, agent=replace(config.agent, encoder=source)))
    if path.suffix == ".json":
        return _read_spec_file(path)
    if path.suffix == ".pth":
        return read_foreign(path)[0]
    if not path.exists():
        raise UserError(f"{source} is neither an encoder ({', '.join(NAMES)}) nor an existing spec or checkpoint")
    return read_spec(find_checkpoint(path))


def _read_spec_file(path: Path) -> PolicySpec:
    try:
        return PolicySpec.from_json(json.loads(path.read_text()))
    except FileNotFoundError:
        raise UserError(f"spec {path} does not exist; `navprune prune` writes one beside its weights") from None
    except json.JSONDecodeError as error:
        raise UserError(f"spec {path} is no JSON: {error}; write it again with `navprune prune`") from None


def policy_of(source: str, config: Config | None = None, seed: int = 0) -> PointNavPolicy:
    """The policy of anything `spec_of` takes, with its weights; random ones from `seed` where it has none."""
    path = Path(source)
    if source in NAMES or path.suffix == ".json":
        return build(spec_of(source, config), seed)  # type: ignore[return-value]
    if path.suffix == ".pth":
        spec, weights = read_foreign(path)
        policy = build(spec, seed)
        try:
            policy.load_state_dict(weights)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise UserError(f"{path} does not fit the network that its shapes describe: {reason}") from None
        return policy  # type: ignore[return-value]
    return load_policy(find_checkpoint(path)).policy


def initial_policy(config: Config) -> PointNavPolicy:
    """The policy that a training run begins with."""
    pruning = config.pruning
    if pruning and pruning.rewind and pruning.budget is None:
        if config.init is None or not Path(config.init).is_dir():
            raise UserError("pruning.rewind goes with cuts or a pruned init; set pruning.budget or init=CHECKPOINT")
        return rewound_checkpoint(find_checkpoint(config.init), pruning.rewind)
    if config.init is not None and config.init_weights:
        return policy_of(config.init, config, config.trainer.seed)
    return build(policy_spec(config), config.trainer.seed)  # type: ignore[return-value]


def check_sees(spec: EncoderSpec, config: Config) -> None:
    """Raises UserError where the encoder does not fit the images of the task."""
    task = config.task
    missing = [key for key in spec.observations if key not in task.sensors]
    if missing:
        wanted = ",".join(spec.observations)
        raise UserError(f"the encoder reads {missing[0]}, which task.sensors lacks; set task.sensors=[{wanted}]")
    if spec.observations and spec.input[1:] != (task.height, task.width):
        height, width = spec.input[1:]
        raise UserError(
            f"the encoder is made for {width} x {height} pixels and the task shows {task.width} x {task.height}; "
            f"set task.width={width} task.height={height}"
        )


def split_episodes(config: Config, split: str) -> EpisodeTable:
    """The episodes of a split of the configured data set."""
    data = config.data
    return read_episodes(data.folder, data.name, split, data.version, data.scenes)


def environment(
    config: Config,
    split: str,
    episodes: Sequence[Episode],
    order: EpisodeOrder,
    count: int,
    library: SceneLibrary | None = None,
) -> VectorEnv:
    """The kind of environment that a configuration asks for, over episodes of a split."""
    if config.env == "habitat":
        from navprune.habitat.vector import HabitatEnv  # habitat-lab is an extra

        return HabitatEnv(
            episodes,
            config.data,
            split,
            order,
            count,
            config.task,
            simulator=config.simulator,
            gpu=config.gpu,
            seed=config.trainer.seed,
        )
    return PointNavEnv(episodes, Path(config.data.folder), order, count, config.task, library=library)


def training_env(config: Config) -> VectorEnv:
    """The environments that a configuration trains in."""
    episodes = split_episodes(config, config.data.train)
    # A worker holds one scene, and loading takes it as long as many steps.
    scenes = episodes.scene_numbers if config.env == "habitat" else None
    order = Shuffled(len(episodes), config.environments, config.trainer.seed, scenes)
    return environment(config, config.data.train, episodes, order, config.environments)


def run_training(config: Config) -> TrainingResult:
    """Trains as configured into `config.run`; goes on where the folder holds a checkpoint of the same spec."""
    policy = initial_policy(config)
    check_sees(policy.spec.encoder, config)
    cuts, lessons = gradual_pruning(config, policy), distillation(config, policy.spec)
    callbacks: list[Callback] = [callback for callback in (cuts, lessons) if callback]
    env = training_env(config)
    try:
        result = train(
            policy, env, config.trainer, config.ppo, config.warm_start, Path(config.run), to_yaml(config), callbacks
        )
    finally:
        env.close()
    if cuts:
        write_pruning(result.latest, with_costs(cuts.to_json(), cuts.dense))
    return result


def gradual_pruning(config: Config, policy: PointNavPolicy) -> GradualPruning | None:
    """What cuts `policy`, the one that the run begins with, while it trains; None where nothing does."""
    pruning, trainer = config.pruning, config.trainer
    if pruning is None or pruning.budget is None:
        return None
    early = load_policy(pruning.rewind).policy if pruning.rewind else None
    begin = min(config.warm_start.frames, trainer.total_frames) if config.warm_start else 0
    frames, update = (begin, trainer.total_frames), config.ppo.steps * config.environments
    return GradualPruning(pruning, policy, count_cost, frames=frames, update=update, seed=trainer.seed, early=early)


def distillation(config: Config, student: PolicySpec) -> Distillation | None:
    """The lessons of `pruning.teacher` for a network of spec `student`; None where there is no teacher."""
    pruning = config.pruning
    if pruning is None or pruning.teacher is None:
        return None
    teacher = policy_of(pruning.teacher, config)
    check_sees(teacher.spec.encoder, config)
    return Distillation(teacher, student, policy=pruning.teach_policy, features=pruning.teach_features)


@dataclass(frozen=True)
class Shown:
    """Pictures of one episode: its map and its video."""

    name: str
    map: Path
    video: Path


def agent_of(source: str, config: Config, env: VectorEnv, greedy: bool) -> Agent:
    """A control agent by name, or the policy of a checkpoint."""
    if source == "random":
        return RandomAgent(config.task)
    if source == "goal-follower":
        return GoalFollower(config.task)
    if source == "shortest-path":
        return ShortestPathAgent(env)
    return PolicyAgent(policy_of(source, config).to(default_device()), greedy)


def config_of(source: str, recipe: str | None, overrides: Sequence[str] = ()) -> Config:
    """The configuration that goes with a source: the named recipe, else the checkpoint's own, else the default."""
    if recipe is None and source not in (*CONTROLS, *NAMES) and Path(source).is_dir():
        return load_config(str(find_checkpoint(source) / "config.yaml"), overrides)
    return load_config(recipe or DEFAULT_RECIPE, overrides)


def run_evaluation(
    source: str,
    config: Config,
    *,
    split: str | None = None,
    limit: int | None = None,
    environments: int = 16,
    greedy: bool = False,
    seed: int = 0,
    out: Path | None = None,
    pictures: str = "0",
    library: SceneLibrary | None = None,
) -> tuple[Evaluation, list[Shown]]:
    """Runs an agent over every episode of a split (or the first `limit`).

    With `out` it writes summary.json, episodes.jsonl and, for the episodes that `pictures` chooses, a map and a video.
    """
    if source not in CONTROLS:
        check_sees(spec_of(source, config).encoder, config)
    split = split or config.data.val
    episodes = split_episodes(config, split)[:limit]
    if config.env == "habitat":  # Each is a process with its own copy of the scene.
        environments = min(environments, config.environments, len(episodes))
    env = environment(config, split, episodes, Once(len(episodes)), environments, library)
    recorder = Recorder([key_of(episode) for episode in chosen_episodes(episodes, pictures)])
    try:
        agent = agent_of(source, config, env, greedy)
        line = ProgressLine(f"evaluating {Path(source).name}", len(episodes), "episodes")
        result = evaluate(env, agent, episodes, seed, recorder, line)
    finally:
        env.close()
    if out is None:
        return result, []
    out.mkdir(parents=True, exist_ok=True)
    summary = result.to_json(split) | {"agent": source, "greedy": greedy, "seed": seed}
    write_file(out / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    result.write_episodes(out / "episodes.jsonl")
    return result, [show(recording, out) for recording in recorder.recordings.values()]


def chosen_episodes(episodes: Sequence[Episode], pictures: str) -> list[Episode]:
    """So many episodes spread over the split ("3"), or those named SCENE:ID ("duplex:4,duplex:7"); UserError else."""
    if pictures.isdecimal():
        count = min(int(pictures), len(episodes))
        return [episodes[i] for i in np.linspace(0, len(episodes) - 1, count).round().astype(int)]
    named = {f"{Path(episode.scene_id).stem}:{episode.episode_id}": episode for episode in episodes}
    for name in pictures.split(","):
        if name not in named:
            raise UserError(
                f"--pictures: no episode is called {name}; give a number or SCENE:ID, such as {next(iter(named))}"
            )
    return [named[name] for name in pictures.split(",")]


def show(recording: Recording, folder: Path) -> Shown:
    """Writes the top-down map and the video of one recorded episode into a folder."""
    name = f"{Path(recording.episode.scene_id).stem}_{recording.episode.episode_id}"
    map_file = folder / f"{name}_map.png"
    maps.episode_map(recording).save(map_file)
    return Shown(name, map_file, video.write_video(folder / f"{name}.mp4", recording))


def run_pruning(
    source: str, method: str, budget: Mapping[str, float], out: Path, config: Config, **options: Any
) -> PruningResult:
    """Prunes a spec or checkpoint to a budget; writes a slim checkpoint, pruning.json and widths.png to `out`.

    `options` are the fields of `PruningOptions`. What scores and gates look at comes from the configured training
    environments, of classifiers from labelled images.
    """
    how = PruningOptions(**options)
    _check_out(out, [source, *filter(None, [how.teacher])])
    network = unpruned(source, config, how)
    spec = cast(Spec, network.spec) if isinstance(network, torch.nn.Module) else network
    device = device_of(config.trainer.device)
    if how.images and not isinstance(spec, ClassifierSpec):
        raise UserError(f"{how.images}: labelled images are for classifiers, which {source} is not; leave them out")

    def training() -> VectorEnv:
        assert isinstance(spec, PolicySpec)
        check_sees(spec.encoder, config)
        return training_env(config)

    with ExitStack() as closing:
        seen = material(method, spec, how, training, config.ppo, closing) if method in NEEDS_BATCHES else Material()
        result = prune(
            network,
            method,
            budget,
            count_cost,
            seed=how.seed,
            batches=seen.shown(method),
            loss=seen.loss,
            gates=how.gates,
            config=how.search,
            costs=latency_costs(budget, spec, how, device),
            blocks=how.blocks,
            device=device if method in NEEDS_BATCHES else "cpu",
        )
    model = cast(PointNavPolicy | Classifier, result.model)
    save_checkpoint(out, model, config=to_yaml(config), metrics={PRUNED_FROM: source})
    write_pruning(out, pruning_json(result, config.trainer.total_frames, how.frames_per_second))
    return result


def _check_out(out: Path, sources: Sequence[str]) -> None:
    """Raises UserError where a slim checkpoint in `out` would take the place of anything but another one."""
    check_replaceable(out)
    if out.is_dir() and any(out.iterdir()) and not was_pruned(out):
        raise UserError(f"{out} is a checkpoint that was not made by pruning; choose another folder")
    for source in sources:
        if source in NAMES or source in CLASSIFIERS or not Path(source).exists():
            continue
        given = find_checkpoint(source) if Path(source).is_dir() else Path(source)
        if out.resolve() in (given.resolve(), given.resolve().parent):
            raise UserError(f"{out} holds the network {source}, which is asked for; choose another folder")


def unpruned(source: str, config: Config, options: PruningOptions) -> torch.nn.Module | Spec:
    """What `source` names: a spec where it has no weights, else the policy or classifier with them."""
    if source in CLASSIFIERS:
        return unpruned_classifier(source, options)
    if source in NAMES or Path(source).suffix == ".json":
        return spec_of(source, config)
    if Path(source).is_dir():
        return load_network(source)
    return policy_of(source, config, options.seed)


def run_latency(
    sources: Sequence[str],
    batch_sizes: Sequence[int],
    runtimes: Sequence[str],
    device: str | None = None,
    runs: int = 30,
    config: Config | None = None,
) -> dict[str, Any]:
    """Measures the encoders of `sources` interleaved; savings are against the first."""
    if not sources:
        return {"device": device_name(device or default_device()), "rows": []}
    encoders = {
        name: policy_of(source, config).encoder for name, source in zip(display_names(sources), sources, strict=True)
    }
    device = device or default_device()
    line = ProgressLine("measuring latency", len(runtimes) * len(batch_sizes), "settings")
    rows = measure(encoders, batch_sizes, runtimes, device, runs, progress=lambda done, total: line.show(done))
    return {"device": device_name(device), "rows": [row.to_json() for row in rows]}


def display_names(sources: Sequence[str]) -> list[str]:
    """What a table calls sources: as many last parts of their paths as tell them apart; UserError for a repetition."""
    parts = [Path(source).parts for source in sources]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["-".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"{max(sources, key=list(sources).count)} is named twice; name each run once")


def run_comparison(
    runs: Sequence[str],
    out: Path,
    *,
    split: str | None = None,
    batch_sizes: Sequence[int] = (1, 8),
    runtimes: Sequence[str] = ("eager",),
    pictures: str = "1",
    controls: Sequence[str] = (),
    library: SceneLibrary | None = None,
    texts: Mapping[str, Any] | None = None,
) -> tuple[Table, Path, dict[str, Any]]:
    """Evaluates run folders (and control agents) on a split, measures their latency and writes table and page.

    `texts` holds further fields of `reports.page.Report`. Returns the table, the page and the JSON form.
    """
    library = library or SceneLibrary()
    sources = (*runs, *controls)
    names = dict(zip(sources, display_names(sources), strict=True))
    configs = {run: config_of(run, None) for run in runs}
    evaluations, shown = {}, []
    for source in sources:
        config, folder = configs.get(source, configs[runs[0]]), out / "evaluation" / names[source]
        result, new = run_evaluation(source, config, split=split, out=folder, pictures=pictures, library=library)
        evaluations[source] = result.to_json(split or config.data.val)
        shown += [Picture(file, f"{names[source]}, {s.name}") for s in new for file in (s.map, s.video)]
    seeing = [run for run in runs if spec_of(run).encoder.observations]
    latency = run_latency(seeing, batch_sizes, runtimes)["rows"]
    timed = dict(zip(seeing, display_names(seeing), strict=True)) if seeing else {}
    rows = [
        EncoderRow(
            names[source],
            cost(spec_of(source)).to_json() if source in seeing else None,
            evaluations[source],
            [{**row, "model": names[source]} for row in latency if row["model"] == timed.get(source)],
        )
        for source in sources
    ]
    report = Report(
        rows=rows,
        curves={names[run]: curve for run in runs if (curve := training_curve(Path(run))) is not None},
        prunings={names[run]: found for run in runs if (found := pruning_of(run, configs[run])) is not None},
        episodes=shown,
        **{"title": "Comparison of encoders", "lead": describe(rows), **(texts or {})},
    )
    page = write_report(out, report)
    answer = {
        "rows": [{"name": r.name, "cost": r.cost, "evaluation": r.evaluation, "latency": r.latency} for r in rows]
    }
    return encoder_table(rows), page, answer


def training_curve(run: Path) -> Curve | None:
    """SPL over the training of a run folder; None for a checkpoint without one."""
    try:
        return read_curve(run / "tensorboard", "metrics/spl") if (run / "tensorboard").is_dir() else None
    except UserError:
        return None


def run_folder(source: Path) -> Path | None:
    """The run folder that a source is, or that its checkpoint lies in; None for anything else."""
    return next((path for path in (source, *source.parents[:2]) if (path / LATEST).is_symlink()), None)


def pruning_of(run: str, config: Config) -> dict[str, Any] | None:
    """What pruning.json says of the network that a run led to or, if none was cut there, began with."""
    folders = [Path(run), Path(run) / LATEST, *([Path(config.init)] if config.init else [])]
    path = next((folder / PRUNING for folder in folders if (folder / PRUNING).is_file()), None)
    return json.loads(path.read_text()) if path else None

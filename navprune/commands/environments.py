"""The environments and episodes that a configuration asks for."""

from collections.abc import Sequence
from pathlib import Path

from navprune.config import Config
from navprune.errors import UserError
from navprune.machine import cores, place
from navprune.models.spec import EncoderSpec
from navprune.rl.group import Group
from navprune.scenes.files.episodes import Episode, EpisodeTable, read_episodes
from navprune.simulator.scene import SceneLibrary
from navprune.tasks.engine import VectorEnv
from navprune.tasks.orders import EpisodeOrder, Shuffled
from navprune.tasks.pointnav import PointNavEnv


def check_sees(spec: EncoderSpec, config: Config) -> None:
    """Raise UserError where the encoder does not fit the images of the task."""
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
    threads: int | None = None,
    first: int = 0,
) -> VectorEnv:
    """The kind of environment that a configuration asks for, over episodes of a split; None draws on all cores.

    `first` is what the first of its environments is counted as, where others run elsewhere.
    """
    if config.env == "habitat":
        from navprune.habitat.vector import HabitatEnv  # habitat-lab is an extra

        data, task, seed = config.data, config.task, config.trainer.seed
        return HabitatEnv(
            episodes, data, split, order, count, task,
            simulator=config.simulator, gpu=config.gpu, seed=seed, first=first,
        )  # fmt: skip
    library = library or SceneLibrary(config.data.scene_memory)
    folder = Path(config.data.folder)
    return PointNavEnv(episodes, folder, order, count, config.task, library=library, threads=threads)


def training_env(config: Config, group: Group | None = None) -> VectorEnv:
    """The environments that a configuration trains in; of a group of workers this one's part of them."""
    group = group or Group()
    episodes = split_episodes(config, config.data.train)
    # A worker holds one scene, and loading takes it as long as many steps.
    scenes = episodes.scene_numbers if config.env == "habitat" else None
    count = config.environments // group.size
    first = group.rank * count
    order = Shuffled(len(episodes), count, config.trainer.seed, scenes, first)
    library = SceneLibrary(config.data.scene_memory, share=1 / group.on_machine)
    sharing = min(group.on_machine, group.gather(place()).count(place()))  # a batch system may bind each to its own
    threads = max(1, cores() // sharing)
    return environment(config, config.data.train, episodes, order, count, library, threads, first)

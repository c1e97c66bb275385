"""The schema of habitat_configs/, composed from each package's own dataclasses, and checked when it is read."""

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, get_args

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from navprune.errors import UserError
from navprune.pruning.gradual import PruningScheduleConfig
from navprune.rl.imitation import WarmStartConfig
from navprune.rl.ppo import PPOConfig
from navprune.rl.trainer import TrainerConfig
from navprune.tasks.pointnav import TaskConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which episodes of which data set."""

    folder: str = "data"
    """Folder that holds scene_datasets/ and datasets/, as Habitat lays them out."""
    name: str = "homes"
    """Data set: datasets/pointnav/NAME."""
    version: str = "v1"
    """Version folder of the episodes."""
    train: str = "train"
    """Split to train on."""
    val: str = "val"
    """Split to evaluate on."""
    scenes: tuple[str, ...] | None = None
    """Scenes that are used, by name; null for all of the split."""

    def __post_init__(self) -> None:
        if self.scenes is not None:
            object.__setattr__(self, "scenes", tuple(self.scenes))


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """The network, where it is not taken from `init`."""

    encoder: str = "resnet18"
    """resnet18, resnet50, resneXt50, se_resnet50, se_resneXt50, se_resneXt101, simple_cnn or blind."""
    base_planes: int = 32
    """Width of the stem; Habitat's is 32."""
    compression: int | None = None
    """Channels that leave the encoder; null is Habitat's rule, about 2048 values whatever the image's size."""
    visual_features: int = 512
    """Width of the layer between encoder and recurrent core."""
    hidden_size: int = 512
    """Width of the recurrent core."""
    rnn: str = "gru"
    """gru or lstm."""
    rnn_layers: int = 1
    """Layers of the recurrent core."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that a training run needs to know."""

    run: str = "runs/pointnav"
    """Folder of the run; an existing one is resumed."""
    environments: int = 6
    """Environments in lockstep."""
    env: str = "embedded"
    """Where they run: embedded (in this process) or habitat (in habitat-lab's worker processes)."""
    simulator: str = "embedded"
    """What moves and draws: embedded or habitat_sim, which implies env=habitat."""
    gpu: int | None = None
    """GPU that habitat_sim draws on; null takes those that are visible in turn, -1 none."""
    init: str | None = None
    """What gives the architecture and the initial weights: checkpoint or run, file of weights, spec.json or name."""
    init_weights: bool = True
    """False takes only the architecture from `init` and trains it from scratch."""
    data: DataConfig = field(default_factory=DataConfig)
    """Which episodes."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """What the agent sees and does."""
    agent: AgentConfig = field(default_factory=AgentConfig)
    """The network."""
    warm_start: WarmStartConfig | None = None
    """Imitation of the shortest path before PPO; null for PPO alone."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """PPO."""
    pruning: PruningScheduleConfig | None = None
    """What is cut while PPO trains, and from what teacher it learns; null for nothing of the kind."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Frames, seeds, checkpoints, logging."""

    def __post_init__(self) -> None:
        for key, known in (("env", ("embedded", "habitat")), ("simulator", ("embedded", "habitat_sim"))):
            if getattr(self, key) not in known:
                raise UserError(f"{key} is {' or '.join(known)}, not {getattr(self, key)}")
        if self.gpu is not None and self.gpu < -1:
            raise UserError(f"gpu is the number of a GPU, -1 for none or null for those there are, not {self.gpu}")
        if self.simulator == "habitat_sim":
            object.__setattr__(self, "env", "habitat")
        if self.task.alpha_masks and self.env == "habitat":
            raise UserError("task.alpha_masks needs env=embedded: habitat-lab's simulators draw masked materials whole")


def recipes() -> list[str]:
    """Names of the recipes in habitat_configs/."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def load_config(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """Composes a recipe of habitat_configs/ (by name) or a YAML file (by path) with key=value overrides.

    Raises UserError for an unknown recipe, an unknown key (with the nearest known one) or a value that does not fit.
    """
    path = Path(recipe)
    if path.suffix == ".yaml":
        if not path.is_file():
            raise UserError(f"configuration file {recipe} does not exist; `--config NAME` takes {', '.join(recipes())}")
        folder, name = path.resolve().parent, path.stem
    else:
        folder, name = _folder(), recipe
        if recipe not in recipes():
            raise UserError(f"no recipe is called {recipe}; {_nearest(recipe, recipes())}")
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            search = f"hydra.searchpath=[file://{_folder()}]"  # so that a user's own recipe finds the groups
            composed = compose(name, [search, *(_override(text) for text in overrides)])
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"configuration {recipe} cannot be read: {_first_line(error)}") from None
    return config_from(composed, recipe)


def config_from(values: DictConfig | dict[str, Any], where: str) -> Config:
    """Checks plain values against the schema; `where` names their origin in errors (UserError)."""
    optional = {"warm_start": WarmStartConfig, "pruning": PruningScheduleConfig}
    present = {name: kind() for name, kind in optional.items() if values.get(name) is not None}
    schema = OmegaConf.structured(Config(**present))
    _unlock(schema)
    try:
        return OmegaConf.to_object(OmegaConf.merge(schema, values))  # type: ignore[return-value]
    except ConfigKeyError as error:
        key = str(error.full_key)
        raise UserError(f"{where}: unknown key {key}; {_nearest(key, list(_keys(Config)))}") from None
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {error.full_key}: {_first_line(error)}") from None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def to_yaml(config: Config) -> str:
    """The configuration as YAML that `--config FILE` reads again."""
    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))


def _folder() -> Path:
    """Beside the package, in a checkout as in an installation."""
    return Path(__file__).resolve().parents[1] / "habitat_configs"


def _override(text: str) -> str:
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"{text} is no setting; write key=value, for example task.width=128")
    if "=" in value and value[0] not in "'\"[{":  # a budget, which Hydra would not read as it stands
        value = f"'{value}'"
    is_group = (_folder() / key).is_dir()
    return f"{key}={value}" if is_group or key.startswith(("+", "~")) else f"++{key}={value}"


def _unlock(node: DictConfig) -> None:
    """Frozen dataclasses become read-only nodes, which cannot be merged into."""
    OmegaConf.set_readonly(node, False)
    for value in node.values():
        if isinstance(value, DictConfig):
            _unlock(value)


def _keys(schema: Any, prefix: str = "") -> Iterator[str]:
    for item in dataclasses.fields(schema):
        yield prefix + item.name
        for kind in (item.type, *get_args(item.type)):
            if is_dataclass(kind):
                yield from _keys(kind, f"{prefix}{item.name}.")


def _nearest(name: str, known: Sequence[str]) -> str:
    leaf = name.rpartition(".")[2]
    moved = [key for key in known if key.rpartition(".")[2] == leaf]
    close = difflib.get_close_matches(name, moved or known, n=1, cutoff=0.0)
    return f"did you mean {close[0]}?"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]

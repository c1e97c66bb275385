"""The schema of habitat_configs/, composed from each package's own dataclasses, and checked when it is read."""

import contextlib
import dataclasses
import difflib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints

import yaml

from navprune.checks import TINY, bounded, check_fields, chosen
from navprune.errors import UserError
from navprune.images.config import ImagesConfig
from navprune.pruning.config import PruningScheduleConfig, parse_shares
from navprune.rl.ppo import PPOConfig
from navprune.rl.supervised import SupervisedConfig
from navprune.rl.trainer import TrainerConfig
from navprune.rl.warm_start import WarmStartConfig
from navprune.tasks.config import TaskConfig

ENDS = (".yaml", ".yml")
FOLDER = next(
    path / "habitat_configs" for path in Path(__file__).resolve().parents if (path / "habitat_configs").is_dir()
)
"""Of the recipes: inside the package where that is installed, beside it in a checkout."""
PATHS = (
    "run", "init", "data.folder", "images.source", "pruning.rewind", "pruning.teacher", "pruning.evidence.teacher",
    "pruning.evidence.images",
)  # fmt: skip
"""Settings in which a leading ~ stands for the user's home."""
OF_AGENTS = ("environments", "env", "simulator", "gpu", "data", "task", "agent", "warm_start", "ppo")
OF_CLASSIFIERS = ("classifier", "supervised")
"""Settings that the one or the other makes no use of."""
NULLS = ("null", "~", "")
"""What stands for none where there may be none; elsewhere it is text."""
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
SCALARS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    str: ("text", str),
    bool: ("true or false", lambda text: BOOLEANS[text.lower()]),
    int: ("a whole number", lambda text: int(text) if text.lstrip("+-").isdigit() else _whole(float(text))),
    float: ("a number", lambda text: float(text.replace(".inf", "inf"))),  # as YAML spells it
}
"""What the schema's scalars are called, and how they are read."""


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
    scene_memory: float | None = bounded(None, TINY)
    """GiB for scenes that no agent is in; null is a quarter of what this machine or container has; above 0."""

    def __post_init__(self) -> None:
        if self.scenes is not None:
            object.__setattr__(self, "scenes", tuple(self.scenes))
        check_fields("data", self)


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
    goal_details: bool = False
    """Whether the core is also told how near the goal is on a fine scale and how far the last step ahead took the
    agent, which the goal sensor says; habitat-baselines' networks have no such input."""


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """The classifier, where it is not taken from `init`; inputs and classes are those of the images."""

    family: str = "cifar_resnet56"
    """One of the classifiers that `navprune cost --help` lists."""
    width: float = bounded(1.0, TINY, 8)
    """Times which every layer is as wide as published; above 0."""

    def __post_init__(self) -> None:
        check_fields("classifier", self)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that a training run needs to know: of an agent or, where there are `images`, of a classifier."""

    run: str = "runs/pointnav"
    """Folder of the run; an existing one is resumed."""
    environments: int = 8
    """Environments in lockstep, of all workers together."""
    env: str = chosen("embedded", ("embedded", "habitat"))
    """Where they run: embedded (in this process) or habitat (in habitat-lab's worker processes)."""
    simulator: str = chosen("embedded", ("embedded", "habitat_sim"))
    """What moves and draws: embedded or habitat_sim, which implies env=habitat."""
    gpu: int | None = bounded(None, -1)
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
    images: ImagesConfig | None = None
    """Labelled images that a classifier learns; null where an agent learns to navigate."""
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    """The classifier's network."""
    supervised: SupervisedConfig = field(default_factory=SupervisedConfig)
    """How a classifier learns."""
    pruning: PruningScheduleConfig | None = None
    """What `navprune prune` cuts, or what is cut in training and from what teacher it learns; null for nothing."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Frames, seeds, checkpoints, logging."""

    def __post_init__(self) -> None:
        check_fields("", self)
        if empty := [key for key, folder in (("run", self.run), ("data.folder", self.data.folder)) if not folder]:
            raise UserError(f"{empty[0]} is empty; name a folder")
        for name in OF_AGENTS if self.images else OF_CLASSIFIERS:
            if getattr(self, name) != _usual(name):
                whose = "agents, and images make this a classifier's" if self.images else "classifiers, without images"
                raise UserError(f"{name} is for {whose}; leave it out, or give another --config")
        if self.images and self.trainer.total_frames != TrainerConfig.total_frames:
            raise UserError("trainer.total_frames is for agents; a classifier trains for supervised.epochs")
        if self.simulator == "habitat_sim":
            object.__setattr__(self, "env", "habitat")
        if self.task.alpha_masks and self.env == "habitat":
            raise UserError("task.alpha_masks needs env=embedded: habitat-lab's simulators draw masked materials whole")


def recipes() -> list[str]:
    """Names of the recipes in habitat_configs/."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_config(recipe: str | Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Compose a recipe of habitat_configs/ (by name) or a YAML file (by path) with key=value overrides.

    A mapping is a configuration as `dataclasses.asdict` and JSON give it back.

    A value is taken as it is typed, and the schema says what it means. A name for a whole section (agent=resnet50) is a
    file in the folder of that name, which is taken in place of the one that the recipe's `defaults` name.
    Raises UserError for an unknown recipe, an unknown key (with the nearest known one) or a value that does not fit.
    """
    if wrong := [text for text in overrides if "=" not in text]:
        raise UserError(f"{wrong[0]} is no setting; write key=value, for example task.width=128")
    settings = [text.split("=", 1) for text in overrides]
    sections = {key: name for key, name in settings if is_dataclass(SCHEMA.get(key, (None, False))[0])}
    choices = {key: name for key, name in sections.items() if name not in NULLS}
    used = set[str]()
    if isinstance(recipe, str):
        title, path = recipe, _find(recipe)
        values = _compose(path, choices, used)
    else:
        title, path = "the configuration", FOLDER
        values = yaml.load(json.dumps(recipe, ensure_ascii=False), _Text)  # JSON is YAML
    layers: list[tuple[str, Any]] = [(key, value) for key, value in settings if key not in choices]
    for key in choices.keys() - used:  # the recipe has no place for it, so it goes on top
        layers.insert(0, (key, _compose(_find(f"{key}/{choices[key]}", (path,)), {}, set())))
    for key, layer in layers:
        for name in reversed(key.split(".")):
            layer = {name: layer}
        values = _merged(values, layer)
    try:
        return _fit(Config, False, values, "")
    except UserError as error:
        raise UserError(f"{title}: {error}") from None


def to_yaml(config: Config) -> str:
    """The configuration as YAML, in ASCII, that `--config FILE` reads again."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, width=float("inf"))


def _compose(path: Path, choices: dict[str, str], used: set[str], above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's values over those of its `defaults`, with choices in the place of theirs.

    used: takes the sections that they name; above: the files that asked for this one, the user's first.
    """
    own, above, values = _read(path), (*above, path), dict[str, Any]()
    defaults = own.pop("defaults", [])
    defaults = defaults if isinstance(defaults, list) else [defaults]
    for entry in defaults if "_self_" in defaults else [*defaults, "_self_"]:
        for section, name in entry.items() if isinstance(entry, dict) else [("", entry)]:
            used.add(section)
            if (name := choices.get(section, name)) in NULLS:
                continue
            file = f"{section}/{name}".removeprefix("/")
            found = own if entry == "_self_" else _compose(_find(file, above), choices, used, above)
            values = _merged(values, {section: found} if section else found)
    return values


def _find(name: str, above: tuple[Path, ...] = ()) -> Path:
    """The file of a recipe, by its path or by its name beside the user's and in habitat_configs/.

    above: the files that ask for it, the user's first; a recipe of the same name as ours may build upon ours.
    """
    path, here = Path(os.path.expanduser(name)), above[0].parent if above else Path()
    by_path = path.suffix in ENDS or (not above and path.name != name)
    folders = (here, FOLDER) if above else (FOLDER,)
    files = [here / path] if by_path else [folder / f"{name}{end}" for folder in folders for end in ENDS]
    for file in files:
        if file.is_file() and file not in above:
            return file.absolute()
    if by_path:
        raise UserError(f"there is no file {name}; a recipe is a YAML file or one of {', '.join(recipes())}")
    known = sorted({other.stem for file in files for other in file.parent.glob("*.y*ml")})
    known += [f"{name}{end}" for end in ENDS if (here / f"{name}{end}").is_file()]
    raise UserError(f"there is no recipe {name}; {_nearest(name, known) if known else 'write it'}")


class _Text(yaml.BaseLoader):
    """YAML whose scalars are text as it stands."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that stands twice, of which YAML would drop one."""
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.MarkedYAMLError(problem=f"{twice[0]} stands twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_bytes(), _Text) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line} is no YAML: {' '.join(str(problem).split())}; correct it") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no settings; write such lines as `run: runs/mine`")
    return values


def _merged(base: dict[str, Any], layer: dict[str, Any]) -> dict[str, Any]:
    """Both, section by section; `layer` decides where they meet."""
    met = (key for key, value in layer.items() if isinstance(value, dict) and isinstance(base.get(key), dict))
    return {**base, **layer, **{key: _merged(base[key], layer[key]) for key in met}}


def _fit(kind: Any, optional: bool, value: Any, key: str) -> Any:
    """A value as what the schema has at this key; UserError where it is no such thing."""
    if optional and value in NULLS:
        return None
    if is_dataclass(kind) and isinstance(value, dict):
        inner = {name: f"{key}.{name}".removeprefix(".") for name in value}
        if unknown := [one for one in inner.values() if one not in SCHEMA]:
            raise UserError(f"unknown key {unknown[0]}; {_nearest(unknown[0], list(SCHEMA))}")
        made = {name: _fit(*SCHEMA[one], value[name], one) for name, one in inner.items()}
        return cast(Any, kind)(**made)
    if get_origin(kind) is tuple and isinstance(value, str | list):
        parts = _listed(value) if isinstance(value, str) else value
        return tuple(_fit(get_args(kind)[0], False, part, key) for part in parts)
    if get_origin(kind) is Mapping and isinstance(value, str | dict):
        shares = parse_shares(key, value) if isinstance(value, str) else value
        return {name: _fit(get_args(kind)[1], False, str(share), f"{key}.{name}") for name, share in shares.items()}
    name, read = SCALARS.get(kind, ("a list" if get_origin(kind) is tuple else "a group of settings", None))
    if read and isinstance(value, str):
        with contextlib.suppress(KeyError, ValueError):
            return read(os.path.expanduser(value) if key in PATHS else value)
    raise UserError(f"{key or 'it'} is {value!r}; it must be {name}{' or null' if optional else ''}")


def _whole(number: float) -> int:
    if not number.is_integer():
        raise ValueError
    return int(number)


def _listed(text: str) -> list[str]:
    """The names in a text: in brackets they are YAML's, else parted by commas."""
    with contextlib.suppress(yaml.YAMLError):
        if text.startswith("["):
            return yaml.load(text, _Text)
    return [name.strip() for name in text.split(",")]


def _keys(schema: Any, prefix: str = "") -> Iterator[tuple[str, tuple[Any, bool]]]:
    """The key of each setting with its type and whether it may be null."""
    for name, kind in get_type_hints(schema).items():
        kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
        yield prefix + name, (kinds[0], NoneType in kinds)
        if is_dataclass(kinds[0]):
            yield from _keys(kinds[0], f"{prefix}{name}.")


def _usual(name: str) -> Any:
    """What a configuration has where nothing is said."""
    item = next(item for item in dataclasses.fields(Config) if item.name == name)
    return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()


SCHEMA = dict(_keys(Config))


def _nearest(name: str, known: Sequence[str]) -> str:
    leaf = name.rpartition(".")[2]
    moved = [key for key in known if key.rpartition(".")[2] == leaf]
    close = difflib.get_close_matches(name, moved or known, n=4 if moved else 1, cutoff=0.0)
    return f"did you mean {' or '.join(close)}?"

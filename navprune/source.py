"""What a command is given as a network: a name, a spec, a file of weights, a checkpoint or a run."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from navprune.config import Config, load_config, recipes
from navprune.errors import UserError
from navprune.evaluation.exported import FORMATS, read_exported
from navprune.models.build import Spec, build, read_spec_file
from navprune.models.classifiers import CLASSIFIERS, Classifier, classifier_spec
from navprune.models.encoders import Encoder
from navprune.models.policy import PointNavPolicy
from navprune.models.spec import NAMES, PolicySpec, encoder_spec
from navprune.models.weights import read_foreign
from navprune.rl import checkpoints
from navprune.rl.checkpoints import LATEST, SPEC, numbered
from navprune.sensors import channels_of

CONTROLS = ("random", "goal-follower", "shortest-path")
DEFAULT_RECIPE = "pointnav"
CONTROL, ENCODER, CLASSIFIER = "control agent", "encoder", "classifier"
SPEC_FILE, WEIGHTS_FILE, FOLDER = "spec.json", "file of weights", "checkpoint or run folder"
EXPORTED = "exported policy"
NAMED = {ENCODER: NAMES, CLASSIFIER: CLASSIFIERS, CONTROL: CONTROLS}
NAME = re.compile(r"\w[\w.+-]*")
"""What a user may call several runs; it names a folder, too."""
SUFFIXES = {
    ".json": SPEC_FILE,
    **dict.fromkeys((".pth", ".pt", ".ckpt", ".safetensors"), WEIGHTS_FILE),
    **dict.fromkeys(FORMATS.values(), EXPORTED),
}


@dataclass(frozen=True)
class Source:
    """What a user names as a network, and what kind of thing that is; a new kind of file is one more kind here."""

    text: str
    kind: str

    @classmethod
    def parse(cls, text: str) -> Source:
        """Tell the kind from the text and from what lies there; raises UserError, with what may be given, for none.

        A name goes before a path: a folder called resnet18 is ./resnet18.
        """
        path = Path(text).expanduser()
        if path.name == checkpoints.WEIGHTS and (path.parent / SPEC).is_file():
            return cls(str(path.parent), FOLDER)
        kind = next((kind for kind, names in NAMED.items() if text in names), None)
        if not kind and path.is_file():
            kind = SUFFIXES.get(path.suffix.lower())
        if not kind and checkpoints.holds_checkpoint(path):
            kind = FOLDER
        if not kind:
            raise UserError(_unknown(text, path))
        return cls(text, kind)

    @property
    def path(self) -> Path:
        """Where it lies, unless it is a name."""
        return Path(self.text).expanduser()

    @property
    def place(self) -> Path:
        """The same from the root on, which has a name and what is above it for "." and ".." too; links stay."""
        return Path(os.path.abspath(self.path))

    @cached_property
    def folder(self) -> Path:
        """The checkpoint of a checkpoint or run folder, looked up once; raises UserError where there is none."""
        return checkpoints.find_checkpoint(self.path)

    @property
    def run(self) -> Path | None:
        """The run folder that it is, or that its checkpoint lies in; None for anything else."""
        above = (path for place in (self.place, self.place.resolve()) for path in (place, *place.parents[:2]))
        found = next((path for path in above if numbered(path) or (path / LATEST / SPEC).is_file()), None)
        return found.relative_to(Path.cwd()) if found and found.is_relative_to(Path.cwd()) else found

    def spec(self, config: Config | None = None) -> Spec:
        """Its architecture; an encoder's name stands for the agent of `config` with that encoder."""
        if self.kind == ENCODER:
            config = config or Config()
            return agent_spec(replace(config, agent=replace(config.agent, encoder=self.text)))
        if self.kind == CLASSIFIER:
            return classifier_spec(self.text)
        if self.kind == SPEC_FILE:
            return read_spec_file(self.path)
        if self.kind == WEIGHTS_FILE:
            return read_foreign(self.path)[0]
        if self.kind == EXPORTED:
            raise UserError(f"{self.text} is an {EXPORTED}, which only runs; give the checkpoint that it was made of")
        if self.kind == FOLDER:
            return checkpoints.read_any_spec(self.folder)
        raise UserError(f"{self.text} is a {CONTROL}, which has no network; give one of {', '.join(NAMES)} or a run")

    def load(self, config: Config | None = None, seed: int = 0) -> PointNavPolicy | Classifier | Encoder:
        """Its network with its weights; random ones from `seed` where it has none."""
        if self.kind == FOLDER:
            return checkpoints.load_network(self.folder)
        if self.kind != WEIGHTS_FILE:
            return build(self.spec(config), seed)  # type: ignore[return-value]
        spec, weights = read_foreign(self.path)
        model = build(spec, seed)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise UserError(f"{self.text} does not fit the network that it is said to hold: {reason}") from None
        return model  # type: ignore[return-value]

    def policy(self, config: Config | None = None, seed: int = 0) -> PointNavPolicy:
        """As `load`; raises UserError for anything but an agent's network."""
        network = self.load(config, seed)
        if not isinstance(network, PointNavPolicy):
            raise UserError(f"{self.text} is no policy but a {network.spec.family} alone; give an agent's network")
        return network

    def classifier(self, config: Config | None = None, seed: int = 0) -> Classifier:
        """As `load`; raises UserError for anything but a classifier."""
        network = self.load(config, seed)
        if not isinstance(network, Classifier):
            raise UserError(f"{self.text} is no classifier; give one of {', '.join(CLASSIFIERS)} or a run of one")
        return network

    def config(self, recipe: str | None = None, overrides: Sequence[str] = ()) -> Config:
        """The configuration that goes with it: the named recipe, else its own, else the default.

        A checkpoint has its own, and so has an exported policy: that of the checkpoint.
        """
        if recipe is None and self.kind == EXPORTED:
            return load_config(read_exported(self.path).contract["config"], overrides)
        if recipe is None and self.kind == FOLDER:
            recipe = str(self.folder / checkpoints.CONFIG)
        return load_config(recipe or DEFAULT_RECIPE, overrides)


def agent_spec(config: Config) -> PolicySpec:
    """The architecture that a configuration's task and agent ask for."""
    agent, task = config.agent, config.task
    shape, seen = (channels_of(task.sensors), task.height, task.width), tuple(sorted(task.sensors))
    encoder = encoder_spec(agent.encoder, shape, agent.base_planes, output=agent.compression, observations=seen)
    core = agent.visual_features, agent.hidden_size, agent.rnn, agent.rnn_layers
    return PolicySpec(encoder, *core, goal_details=agent.goal_details)


def _unknown(text: str, path: Path) -> str:
    """What to say of a text that names nothing: what may be given, and what is spelt nearly so."""
    names = [name for names in NAMED.values() for name in names]
    beside = [str(other) for other in path.parent.iterdir()] if path.parent.is_dir() else []
    longer = [name for name in names if name.endswith(f"_{text}")]
    close = longer or difflib.get_close_matches(text, [*names, *beside], n=1, cutoff=0.75)
    hint = f"; did you mean {close[0]}?" if close else ""
    if text in recipes():
        return f"{text} is a recipe and no network; give a network, and --config {text}"
    if not path.exists() and (path.suffix or path.name != text):
        return f"there is no file or folder {text}{hint or '; give one that exists'}"
    ends = {kind: ", ".join(end for end, of in SUFFIXES.items() if of == kind) for kind in (WEIGHTS_FILE, EXPORTED)}
    files = f"{SPEC_FILE}, {', '.join(f'{kind} ({all})' for kind, all in ends.items())}, {FOLDER}"
    return f"{text} is neither a name ({', '.join(names)}) nor an existing {files}{hint}"


def named(texts: Sequence[str]) -> dict[str, Source]:
    """Sources by what a table calls them: as many last parts of their paths as tell them apart.

    Raises UserError for a repetition.
    """
    sources = [Source.parse(text) for text in texts]
    parts = [source.place.parts[1:] for source in sources]
    for depth in range(1, max(map(len, parts)) + 1):
        names = dict(zip(["-".join(part[-depth:]) for part in parts], sources))
        if len(names) == len(sources):
            return names
    raise UserError(f"{max(texts, key=list(texts).count)} is named twice; name each run once")


def grouped(texts: Sequence[str]) -> dict[str, dict[str, Source]]:
    """Sources by the name that NAME=PATTERN gives them, each under what tells it from the others of that name.

    A pattern is a path, perhaps with *, ? and [...]; the same NAME may be given several times. A text without NAME
    stands for itself, under the name that `named` finds. Raises UserError for a repetition, and where nothing matches.
    """
    split = [_name_and_pattern(text) for text in texts]
    lone = [pattern for name, pattern in split if not name]
    alone = named(lone) if lone else {}
    left = iter(alone.items())
    groups: dict[str, dict[str, Source]] = {}
    several: dict[str, list[str]] = {}
    for name, pattern in split:
        if name:
            several.setdefault(name, []).extend(_matching(pattern))
        label, source = (name, None) if name else next(left)
        groups[label] = {label: source} if source else {}
    if twice := several.keys() & alone.keys():
        raise UserError(f"two things are called {min(twice)}; give one of them another name: NAME=RUN")
    return groups | {name: named(paths) for name, paths in several.items()}


def _name_and_pattern(text: str) -> tuple[str, str]:
    """NAME and what stands behind its sign; no name where there is none, or where the text is a path that is there."""
    name, sign, pattern = text.partition("=")
    named = sign and pattern and NAME.fullmatch(name) and not Path(text).expanduser().exists()
    return (name, pattern) if named else ("", text)


def _matching(pattern: str) -> list[str]:
    """The paths that a pattern stands for, without files beside runs and without RUN.1, which a restart moved aside."""
    if not glob.has_magic(pattern) or Path(pattern).expanduser().exists():
        return [pattern]
    found = sorted(glob.glob(os.path.expanduser(pattern)))
    paths = [path for path in found if Path(path).is_dir() or Path(path).suffix.lower() in SUFFIXES]
    kept = [path for path in paths if not (re.search(r"\.\d+$", path) and path.rpartition(".")[0] in paths)]
    if not kept:
        raise UserError(f"no run matches {pattern}; give the folders of runs that exist")
    return kept

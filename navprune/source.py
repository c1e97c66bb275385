"""What a command is given as a network: a name, a spec, a file of weights, a checkpoint or a run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from navprune.config import Config, load_config
from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.policy import PointNavPolicy
from navprune.models.spec import NAMES, PolicySpec, encoder_spec
from navprune.models.weights import read_foreign
from navprune.rl.checkpoints import (
    LATEST,
    SPEC,
    find_checkpoint,
    holds_checkpoint,
    load_policy,
    numbered,
    read_spec,
    read_spec_file,
)

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
    if not path.exists() and not holds_checkpoint(path):
        raise UserError(f"{source} is neither an encoder ({', '.join(NAMES)}) nor an existing spec or checkpoint")
    return read_spec(find_checkpoint(path))


def _read_spec_file(path: Path) -> PolicySpec:
    if not path.exists():
        raise UserError(f"spec {path} does not exist; `navprune prune` writes one beside its weights")
    spec = read_spec_file(path)
    if not isinstance(spec, PolicySpec):
        raise UserError(f"spec {path} is not a policy's, but that of a {spec.family} alone; give one of a policy")
    return spec


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


def config_of(source: str, recipe: str | None, overrides: Sequence[str] = ()) -> Config:
    """The configuration that goes with a source: the named recipe, else the checkpoint's own, else the default."""
    if recipe is None and source not in (*CONTROLS, *NAMES) and holds_checkpoint(source):
        return load_config(str(find_checkpoint(source) / "config.yaml"), overrides)
    return load_config(recipe or DEFAULT_RECIPE, overrides)


def display_names(sources: Sequence[str]) -> list[str]:
    """What a table calls sources: as many last parts of their paths as tell them apart; UserError for a repetition."""
    parts = [Path(source).parts for source in sources]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["-".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"{max(sources, key=list(sources).count)} is named twice; name each run once")


def run_folder(source: Path) -> Path | None:
    """The run folder that a source is, or that its checkpoint lies in; None for anything else."""
    folders = (source, *source.parents[:2])
    return next((path for path in folders if numbered(path) or (path / LATEST / SPEC).is_file()), None)

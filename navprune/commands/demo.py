"""The main job in miniature: homes, four agents trained alike, one of them pruned, and the table that compares them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from navprune.commands.compare import run_comparison
from navprune.commands.prune import run_pruning
from navprune.commands.train import run_training
from navprune.config import Config, to_yaml
from navprune.errors import UserError
from navprune.files import write_file
from navprune.progress import ProgressLine
from navprune.pruning.config import EvidenceConfig, GateConfig, PruningConfig
from navprune.rl.checkpoints import PRUNING
from navprune.scenes.homes.dataset import generate_dataset
from navprune.source import CONTROLS

HOMES: dict[str, Any] = {
    "train": 60,
    "val": 40,
    "seed": 7,
    "area": (40.0, 50.0),
    "episodes_per_scene": 100,
    "val_episodes_per_scene": 6,
}
"""Many homes to evaluate in, for homes differ more than episodes in one."""
GATE_STEPS = 100
GATES = GateConfig(expansion=1.0, stable=1.0)
"""A network of base 8 has too few units for the usual expansion of 1.25: its uncut trunks would eat the budget."""
BUDGET = {"macs": 0.488}
"""Table 1's reduction: 51.2 % of the multiply-accumulates."""


def run_demo(out: Path, config: Config, note: Callable[[str], None]) -> tuple[str, Path, dict[str, Any]]:
    """Generate, prune, train, evaluate and report below `out`; a part that is done already is not done again."""
    data = out / "data"
    config = replace(config, data=replace(config.data, folder=str(data)))
    _check_recipe(out / "recipe.yaml", to_yaml(config) + f"# {HOMES} {BUDGET} {GATE_STEPS} {GATES}\n")
    if not has_homes(data, config.data.name):
        note("1/4  generating homes")
    draw_homes(data, config.data.name)
    slim = out / "slim"
    if not (slim / PRUNING).is_file():
        note("2/4  pruning ResNet50 from random weights")
        budget, evidence = f"macs={BUDGET['macs']}", EvidenceConfig(steps=GATE_STEPS)
        asked = PruningConfig(method="gates", budget=budget, evidence=evidence, gates=GATES)
        run_pruning("resnet50", asked, slim, config)
    pruned = replace(config, init=str(slim), init_weights=False)
    resnet50, resnet18, blind = (
        replace(config, agent=replace(config.agent, encoder=encoder)) for encoder in ("resnet50", "resnet18", "blind")
    )
    agents = {"resnet50": resnet50, "resnet50-pruned": pruned, "resnet18": resnet18, "blind": blind}
    runs = []
    for name, own in agents.items():
        note(f"3/4  training {name}")
        runs.append(str(out / name))
        run_training(replace(own, run=runs[-1]))
    note("4/4  evaluating and measuring")
    title = "PointNav with a pruned encoder, in miniature"
    texts = {"title": title, "commands": ["make demo"], "limits": limits(config)}
    return run_comparison(runs, out, pictures="3", controls=CONTROLS, texts=texts)


def has_homes(data: Path, name: str) -> bool:
    """Whether a data folder holds the demo's data set, whole."""
    return (data / "datasets" / "pointnav" / name / "v1" / "statistics.json").is_file()


def draw_homes(data: Path, name: str) -> None:
    """Write the demo's data set to a data folder, unless it is there."""
    if not has_homes(data, name):
        line = ProgressLine("drawing", HOMES["train"] + HOMES["val"], "homes")
        generate_dataset(data, name=name, progress=line.show, **HOMES)


def _check_recipe(path: Path, recipe: str) -> None:
    """Parts made by another recipe must not be mixed with new ones."""
    if path.is_file() and path.read_text() != recipe:
        raise UserError(f"{path.parent} was made by another recipe than this one; give another --out, or delete it")
    write_file(path, recipe.encode())


def limits(config: Config) -> list[str]:
    """What a reader must know before drawing conclusions from the demo's table."""
    task, frames = config.task, config.trainer.total_frames
    return [
        f"The encoders have {config.agent.base_planes} base planes and see {task.width} x {task.height} pixels; the "
        "published ones have 32 and see 256 x 256. Only the shares saved can be held against the published table.",
        "Each agent was trained once; what another seed would give is in no interval (README.md: for ResNet18).",
        f"Each agent saw {frames:,} frames; published agents see 75 million and more.",
    ]

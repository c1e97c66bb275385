"""`navprune prune`: what makes encoders smaller."""

import argparse
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_type_hints

from navprune.cli.parsers import add_overrides, command, field_texts, natural, note
from navprune.errors import UserError
from navprune.pruning.config import MASKS, PAPERS, PruningConfig
from navprune.pruning.methods import METHODS

if TYPE_CHECKING:
    from navprune.config import Config
    from navprune.pruning.masks import Strategy
    from navprune.pruning.methods.base import Method
    from navprune.source import Source

TITLES = {
    "": "what may be cut",
    "evidence": "what methods that need batches look at",
    "gates": "how gates are learned",
    "probe": "how layers are timed, and what is worth keeping",
    "clock": "how latency is measured",
}
"""Sections of `PruningConfig` -> what their flags are called together; others have their name."""
PREFIXES = {"clock": "latency_"}
"""What is set before the names of a section's flags."""
METAVARS = {"budget": "NAME=SHARE,...", "limits": "LAYER=SHARE,...", "teacher": "RUN", "images": "SOURCE"}
LEADING = ("method", "budget")
FOR_CUTS = ("paper", "equal_compute", "frames_per_second")
"""Flags beside those of `PruningConfig` that masks make no use of."""


class Flag(NamedTuple):
    """A flag that stands for a setting of `PruningConfig`."""

    section: str
    name: str
    kind: Any
    default: Any
    text: str

    @property
    def key(self) -> str:
        """The setting's name below `pruning`."""
        return f"{self.section}.{self.name}".lstrip(".")

    @property
    def option(self) -> str:
        """The flag as argparse calls its value."""
        return PREFIXES.get(self.section, "") + self.name

    @property
    def typed(self) -> str:
        """The flag as a user types it."""
        return f"--{self.option.replace('_', '-')}"


def flags(config: Any = PruningConfig, section: str = "") -> Iterator[Flag]:
    """The flags that the fields of a configuration make, section by section."""
    kinds, texts = get_type_hints(config), field_texts(config)
    for item in fields(config):
        if is_dataclass(kinds[item.name]):
            yield from flags(kinds[item.name], item.name)
        else:
            yield Flag(section, item.name, kinds[item.name], item.default, texts[item.name])


def add_commands(commands: Any) -> None:
    """Add the parser of this command."""
    example = "navprune prune resnet50 --method l1 --budget macs=0.488,parameters=0.435 --out runs/slim"
    parser = command(commands, "prune", _prune, example)
    parser.late = _methods
    parser.add_argument("source", metavar="SOURCE")
    add_overrides(parser, None)
    groups: dict[str, Any] = dict.fromkeys(LEADING, parser)
    for flag in flags():
        if flag.name not in groups and flag.section not in groups:
            groups[flag.section] = parser.add_argument_group(TITLES.get(flag.section, flag.section))
        _add(groups.get(flag.name) or groups[flag.section], flag)
    parser.add_argument("--out", type=Path, required=True, help="folder of the slim checkpoint")
    parser.add_argument("--seed", type=natural, default=0, help="of random weights and draws (default: 0)")
    groups["gates"].add_argument("--paper", choices=[*PAPERS], help="the published settings for classification")
    masks = parser.add_argument_group("masks: single weights at zero in place of cuts, as ShrinkBench prunes")
    masks.add_argument("--masks", metavar="STRATEGY", help="which weights stay: one of those below")
    masks.add_argument("--compression", metavar="X,...", help="all parameters over those left, a checkpoint for each")
    after = parser.add_argument_group("what follows")
    after.add_argument("--scratch", action="store_true", help="print the command that trains from new weights")
    after.add_argument("--equal-compute", action="store_true", help="the same, for as much compute as the dense one's")
    after.add_argument(
        "--frames-per-second", type=float, metavar="X",
        help="of training, by `navprune benchmark training`: tells the search's share of the training it saves",
    )  # fmt: skip


def _add(group: Any, flag: Flag) -> None:
    text = flag.text.replace("%", "%%").replace("null:", "default:")
    if flag.kind is bool:
        text = text.removeprefix("Whether ").removeprefix("to ")
        group.add_argument(flag.typed, action="store_const", const="true", help=text[0].upper() + text[1:])
        return
    usual = f" (default: {flag.default})" if isinstance(flag.default, str | int | float) else ""
    kinds = get_args(flag.kind) if isinstance(flag.kind, UnionType) else (flag.kind,)
    metavar = METAVARS.get(flag.name) or {int: "N", float: "X"}.get(kinds[0], "NAME")
    group.add_argument(flag.typed, metavar=metavar, help=text + usual)


def _methods() -> str:
    tables = {"methods": (METHODS, 20), "masks": (MASKS, 28)}
    return "\n".join(
        f"{title}:\n" + "\n".join(f"  {name:{width}} {text}" for name, text in table.items())
        for title, (table, width) in tables.items()
    )


def _prune(options: argparse.Namespace) -> dict[str, Any]:
    """Prune a network to a budget and write a slim checkpoint, or masked ones.
    SOURCE is an encoder's or classifier's name, a spec.json, a checkpoint or run folder, or a file of weights
    (.pth, .pt, .ckpt, .safetensors). Flags of the first groups stand for settings below `pruning` in a configuration.
    pruning.json and widths.png in the new folder say what was cut where. --masks and --compression set single weights
    to zero instead and leave the network's size; of several ratios each has a folder in --out. docs/pruning.md has
    the formulas.
    """
    from navprune.commands.prune import next_step, run_pruning
    from navprune.pruning.config import KNOWN, budget_of
    from navprune.pruning.methods import method_for
    from navprune.pruning.search import shortfall
    from navprune.reports.tables import probe_table, pruning_table
    from navprune.rl.checkpoints import PRUNING
    from navprune.source import FOLDER, WEIGHTS_FILE, Source

    given = {flag: value for flag in flags() if (value := getattr(options, flag.option)) is not None}
    paper = [f"pruning.{key}={value}" for key, value in PAPERS.get(options.paper, {}).items()]
    source = Source.parse(options.source)
    # What a checkpoint was trained with asks nothing of this command; a recipe that is named does.
    before = ["pruning=null"] if options.config is None else []
    asked = _asked(source, options.config, [*before, *paper, *options.settings], given)
    config = source.config(options.config, options.settings)
    config = replace(config, pruning=None)  # the training that follows begins with what is cut or masked
    if options.masks is not None or options.compression is not None:
        return _mask(options, asked, config, [*given])
    method, budget = method_for(asked), budget_of(asked, KNOWN)
    labelled = asked.evidence.images is not None or config.images is not None
    check_used(method, asked, budget, [flag for flag in given if flag.name not in LEADING], labelled)
    if options.paper and (method.options != "gates" or not labelled):
        raise UserError("--paper is for gates that learn from labelled --images; leave it out")
    pace = options.frames_per_second
    result = run_pruning(options.source, asked, options.out, config, seed=options.seed, frames_per_second=pace)
    answer = json.loads((options.out / PRUNING).read_text())
    print(pruning_table(answer).text())
    for line in result.report.get("notes", ()):
        note(line)
    if result.report:
        print(f"\n{probe_table(answer[result.method]).text()}")
    tolerance = asked.tolerance if method.tolerance is None else method.tolerance
    if result.method == "gates" and source.kind in (FOLDER, WEIGHTS_FILE):
        note(f"gates are learned on random weights: of {source.text} the architecture alone counts")
    elif config.images:
        note("BatchNorm's statistics are those of the whole network, so that accuracy is low until it is trained on")
    if line := shortfall(budget, result.reached, tolerance, method.slack):
        note(line)
    if len({score for scores in result.scores.values() for score in scores.tolist()}) == 1:
        note(f"all {method.name} scores are equal, as before training norms' scales are: the order of units decided")
    print("\n" + next_step(options.out, answer, config, scratch=options.scratch, equal_compute=options.equal_compute))
    return answer


def _asked(source: "Source", recipe: str | None, settings: list[str], given: Mapping[Flag, str]) -> PruningConfig:
    """What a recipe, settings and flags ask for; raises UserError that names a flag by itself where one is wrong."""
    own = [f"pruning.{flag.key}={value}" for flag, value in given.items()]
    try:
        return source.config(recipe, [*settings, *own]).pruning or PruningConfig()
    except UserError as error:
        for flag in given:
            if wrong := re.search(rf"(?:^|: )(?:pruning\.)?{re.escape(flag.key)}(?=:? )", str(error)):
                raise UserError(f"{flag.typed}{str(error)[wrong.end() :]}") from None
        raise


def _mask(options: argparse.Namespace, asked: PruningConfig, config: "Config", given: list[Flag]) -> dict[str, Any]:
    """What `navprune prune --masks` does."""
    from navprune.commands.masks import next_step, run_masks
    from navprune.pruning.masks import strategy_of
    from navprune.reports.tables import masks_table

    if options.masks is None or options.compression is None:
        raise UserError(
            "--masks and --compression go together: give both, as in --masks global-magnitude --compression 4"
        )
    if asked.method or asked.budget:
        raise UserError("--masks goes by --compression alone; leave --method and --budget out")
    for name in FOR_CUTS:
        if getattr(options, name) not in (None, False):
            raise UserError(f"--{name.replace('_', '-')} is for cuts, not for masks; leave it out")
    labelled = asked.evidence.images is not None or config.images is not None
    check_used(strategy_of(options.masks), asked, (), given, labelled)
    ratios, evidence = _ratios(options.compression), asked.evidence
    found = run_masks(options.source, options.masks, ratios, evidence, options.out, config, seed=options.seed)
    print(masks_table(found).text())
    for checkpoint in found:
        print("\n" + next_step(Path(checkpoint["folder"]), config, options.scratch))
    return {"masks": options.masks, "checkpoints": found}


def _ratios(text: str) -> list[float]:
    try:
        return [float(ratio) for ratio in text.split(",")]
    except ValueError:
        raise UserError(f"--compression takes ratios such as 2,4,8, not {text}") from None


def check_used(
    method: "Method | Strategy",
    asked: PruningConfig,
    budget: Collection[str],
    given: Collection[Flag],
    labelled: bool,
) -> None:
    """Raise UserError for a flag that the method makes no use of, by what it declares.

    `labelled` says whether what it looks at are labelled images.
    """
    from navprune.pruning.config import LATENCY, LATENCY_MS, PPO
    from navprune.pruning.methods import lender_for, method_of
    from navprune.pruning.methods.base import BATCHES, CLOCK, LOSS, PASSES, SEARCHED

    def those(true_of: Any) -> str:
        return ", ".join(name for name in METHODS if true_of(method_of(name)))

    evidence = asked.evidence
    looks, learns = BATCHES in method.needs, PASSES in method.needs
    rollouts = not labelled and LOSS in method.needs and (evidence.loss or method.loss) == PPO
    options = {one.options for one in (method, lender_for(asked)) if one}
    timed = LATENCY in budget or LATENCY_MS in budget or CLOCK in method.needs
    used = {
        **{name: (name in method.heeds, "methods that search along a ranking") for name in SEARCHED},
        "evidence.loss": (looks, "methods that need batches"),
        "evidence.steps": (looks and not labelled, "methods that need batches, where the agent collects them"),
        "evidence.batch_size": (
            looks and not rollouts, "methods that need batches, unless PPO draws its own mini-batches",
        ),
        "evidence.epochs": (
            learns and not rollouts, f"{those(lambda m: PASSES in m.needs)}, unless PPO makes its own passes",
        ),
    }  # fmt: skip
    for flag in given:
        matters, users = used.get(flag.key, (True, ""))
        if flag.section == "clock":
            matters, users = timed, f"a budget of latency, and {those(lambda m: CLOCK in m.needs)}"
        elif flag.section not in ("", "evidence"):
            matters, users = flag.section in options, those(lambda m, own=flag.section: m.options == own)
        if not matters:
            raise UserError(f"{flag.typed} is for {users}; leave it out")

"""`navprune compare`: costs, SPL or accuracy, and latency of networks, of one or more trainings each, in one page."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from navprune.commands.evaluate import Opened, default_split, opened_any, run_evaluation
from navprune.commands.evaluate_classifier import OpenedClassifier, run_classification
from navprune.commands.latency import run_latency
from navprune.config import Config, load_config
from navprune.costs.counting import cost_json
from navprune.errors import UserError
from navprune.evaluation.classification import Classification
from navprune.evaluation.evaluate import Evaluation
from navprune.evaluation.statistics import against, sample, worst_group
from navprune.files import check_writable
from navprune.reports.kinds import AGENT, CLASSIFIER, Kind
from navprune.reports.page import Picture, Report, write_report
from navprune.reports.plots import Curve, read_curve
from navprune.reports.tables import Row, comparison_tables, describe, few_classes, few_runs
from navprune.rl.checkpoints import PRUNING, read_masks
from navprune.simulator.scene import SceneLibrary
from navprune.source import CONTROL, DEFAULT_RECIPE, FOLDER, Source, grouped

Given = Opened | OpenedClassifier
DIGESTS = ("episodes", "images")
"""Conditions that say nothing to a reader."""
Results = Sequence[Evaluation | Classification]
"""Of the runs of one name, on the same episodes or images."""


@dataclass(frozen=True)
class Entrant:
    """What stands in one row: a network's trainings, which differ in their seed, or a control."""

    name: str
    runs: dict[str, tuple[Given, Config]]

    @property
    def first(self) -> tuple[Given, Config]:
        """The run that stands for all where one is enough: in latency, curve and pictures."""
        return next(iter(self.runs.values()))

    @property
    def is_control(self) -> bool:
        """Whether nothing was trained."""
        return self.first[0].source.kind == CONTROL

    def called(self, run: str) -> str:
        """A run in words."""
        return f"{run} of {self.name}" if len(self.runs) > 1 else self.name

    def named(self) -> dict[str, tuple[Given, Config]]:
        """All runs by what they are called."""
        return {self.called(run): given for run, given in self.runs.items()}

    def trained(self) -> dict[str, tuple[Given, Config]]:
        """The same of what was trained."""
        return {} if self.is_control else self.named()


def run_comparison(
    runs: Sequence[str],
    out: Path,
    *,
    split: str | None = None,
    batch_sizes: Sequence[int] = (1, 8),
    pictures: str | None = None,
    controls: Sequence[str] = (),
    each_its_own: bool = False,
    margin: float = 0.02,
    texts: Mapping[str, Any] | None = None,
) -> tuple[str, Path, dict[str, Any]]:
    """Evaluate runs (and control agents) on a split, measure their latency and write table and page.

    `runs` are what `source.grouped` takes; those of one name are trainings of one architecture. All must be measured
    alike (`evaluate.conditions`), or UserError says in what they differ; with `each_its_own` table and page say so
    instead, and those are held against no other. The first is the reference, `margin` what may be lost against it.
    Controls are measured as the first of the others. `pictures` are of episodes, by default one; classifiers have none.
    `texts` holds further fields of `reports.page.Report`. Returns the tables and remarks as text, the page and the JSON
    form.
    """
    entrants = read_all(grouped((*runs, *controls)), split)
    kind = kind_of(entrants)
    if kind is not AGENT and pictures:
        raise UserError("--pictures are of episodes, which classifiers have none of; leave it out")
    differing = check_conditions(entrants, split, each_its_own)
    check_writable(out)
    library, found, shown = SceneLibrary(entrants[0].first[1].data.scene_memory), {}, []
    for entrant in entrants:
        found[entrant.name], pictured = measured(
            entrant, out / "evaluation" / entrant.name, split, pictures or "1", library
        )
        shown += pictured
    timed = {each.name: part for each in entrants if (part := each.first[0].timed)}
    latency = run_latency(timed, batch_sizes, ["eager"])["rows"] if timed else []
    rows = [row_of(each, found[each.name], split, latency, starred=each.name in differing) for each in entrants]
    trained = [entrant.name for entrant in entrants if not entrant.is_control]
    compared = comparisons({name: found[name] for name in trained if name not in differing}, kind, margin)
    remarks = [*few_runs(rows), *few_classes(rows[0].evaluation), *masked(entrants)]
    remarks += [f"* {line}." for line in differing.values()]
    texts = {"title": f"Comparison of {kind.network}s", "lead": describe(rows), **(texts or {})}
    report = Report(
        rows=rows,
        comparisons=compared,
        curves=dict(curves(entrants)),
        prunings={each.name: told for each in entrants if (told := pruning_of(each.first[0].source, each.first[1]))},
        episodes=shown,
        **{**texts, "limits": [*texts.get("limits", ()), *remarks]},
    )
    answer = {"rows": [row.to_json() for row in rows], "differences": differing, "comparisons": compared}
    text = "\n".join(["\n\n".join(table.text() for table in comparison_tables(rows, compared)), "", *remarks])
    return text.rstrip(), write_report(out, report), answer


def masked(entrants: Sequence[Entrant]) -> list[str]:
    """A line for each network whose weights masks hold at zero, which no cost and no time shows."""
    lines = []
    for entrant in entrants:
        source = entrant.first[0].source
        masks = read_masks(source.folder) if source.kind == FOLDER else {}
        if gone := sum(int((~mask).sum()) for mask in masks.values()):
            told = "it is counted and timed as the whole network that it runs as"
            lines.append(f"{entrant.name}: masks hold {gone:,} weights at zero; {told}.")
    return lines


def read_all(groups: Mapping[str, Mapping[str, Source]], split: str | None) -> list[Entrant]:
    """Read every network; raises UserError where those of one name are not several trainings of one architecture."""
    trained = (source for group in groups.values() for source in group.values() if source.kind != CONTROL)
    first = next((source.config() for source in trained), None) or load_config(DEFAULT_RECIPE)
    entrants = []
    for name, group in groups.items():
        configs = {run: first if source.kind == CONTROL else source.config() for run, source in group.items()}
        given = {run: (opened_any(source, configs[run], split), configs[run]) for run, source in group.items()}
        entrants.append(Entrant(name, given))
        check_trainings(entrants[-1])
    return entrants


def kind_of(entrants: Sequence[Entrant]) -> Kind:
    """What all that is compared is; raises UserError for agents beside classifiers."""
    kinds = {called: given.kind for each in entrants for called, (given, _) in each.named().items()}
    if len({*kinds.values()}) > 1:
        one, other = (next(called for called, of in kinds.items() if of is kind) for kind in (AGENT, CLASSIFIER))
        raise UserError(f"{one} is an agent and {other} a classifier; compare networks of one kind")
    return next(iter(kinds.values()))


def check_trainings(entrant: Entrant) -> None:
    """Raise UserError where two runs of one name are of two architectures, or the same network twice."""
    for (one, (first, _)), (other, (second, _)) in combinations(entrant.runs.items(), 2):
        if first.network is None or second.network is None or first.network.spec != second.network.spec:
            raise UserError(f"{one} and {other} differ in architecture; give them other names than {entrant.name} both")
        weights = zip(first.network.state_dict().values(), second.network.state_dict().values())
        if all(torch.equal(a, b) for a, b in weights):
            raise UserError(f"{one} and {other} of {entrant.name} are the same network; give trainings of other seeds")


def check_conditions(entrants: Sequence[Entrant], split: str | None, each_its_own: bool) -> dict[str, str]:
    """{name: how it is measured otherwise than the first} where `each_its_own` allows it; else UserError."""
    trained = [entrant.trained() for entrant in entrants]
    for own in trained:
        if each_its_own and (told := differences(own, split)):
            raise UserError(f"{next(iter(told.values()))}; runs of one name must be measured alike")
    differing = differences({called: given for own in trained for called, given in own.items()}, split)
    if differing and not each_its_own:
        advice = "set the same for all in `navprune evaluate`, or compare with --each-its-own"
        raise UserError(f"{next(iter(differing.values()))}; {advice}")
    lines = {entrant.name: [differing.get(called) for called in own] for entrant, own in zip(entrants, trained)}
    return {name: told[0] for name, told in lines.items() if told and told[0]}


def differences(given: Mapping[str, tuple[Given, Config]], split: str | None) -> dict[str, str]:
    """{name: how it is measured otherwise than the first} of those that are."""
    lines, usual = {}, None
    for name, (network, config) in given.items():
        own = network.conditions(config, split)
        usual = usual or own
        others = [(key, f"{key} {own[key]} instead of {value}") for key, value in usual.items() if own[key] != value]
        told = [f"other {key}" if key in DIGESTS else text for key, text in others]
        if told:
            lines[name] = f"{name} is measured with {' and '.join(told)}, unlike {next(iter(given))}"
    return lines


def measured(
    entrant: Entrant, folder: Path, split: str | None, pictures: str, library: SceneLibrary
) -> tuple[Results, list[Picture]]:
    """Evaluate all runs of a name, several in folders of their own; pictures are of the first."""
    found: list[Evaluation | Classification] = []
    shown: list[Picture] = []
    for run, (given, config) in entrant.runs.items():
        own = folder / run if len(entrant.runs) > 1 else folder
        if isinstance(given, OpenedClassifier):
            found.append(run_classification(given, own))
            continue
        chosen = "0" if found else pictures
        result, new = run_evaluation(given, config, split=split, out=own, pictures=chosen, library=library)
        found.append(result)
        shown += [
            Picture(file, f"{entrant.called(run)}, {each.name}") for each in new for file in (each.map, each.video)
        ]
    return found, shown


def row_of(entrant: Entrant, found: Results, split: str | None, latency: Sequence[dict], *, starred: bool) -> Row:
    """The row of a network, whose cost and milliseconds are those of its first run; `starred` ones have a remark."""
    given, config = entrant.first
    return Row(
        f"{entrant.name}*" if starred else entrant.name,
        cost_json(given.timed.spec) if given.timed else None,
        found[0].over(found).to_json(split or default_split(config)),
        [row for row in latency if row["model"] == entrant.name],
        [] if entrant.is_control else [network.source.text for network, _ in entrant.runs.values()],
        spread_out(found, given.kind),
        given.kind,
    )


def spread_out(found: Results, kind: Kind) -> dict[str, Any]:
    """How many scenes (or classes) there are, and of every measure its interquartile mean and the worst of them."""
    one, several = kind.groups
    groups = found[0].groups
    told: dict[str, Any] = {several: len(set(groups))}
    for measure in kind.compared:
        values = values_of(found, measure)
        worst, mean = worst_group(values, groups)
        middle = sample(values, found[0].strata).interquartile_mean().spread()
        told[measure] = {"iqm": middle._asdict(), f"worst_{one}": {one: worst, "mean": mean}}
    return told


def comparisons(found: Mapping[str, Results], kind: Kind, margin: float) -> dict[str, Any]:
    """Every network against the first, in every measure; empty where there is none to compare."""
    if len(found) < 2:
        return {}
    reference, *others = found
    strata = found[reference][0].strata
    measures = {}
    for measure in kind.compared:
        values = {name: values_of(found[name], measure) for name in found}
        held = against(values[reference], {name: values[name] for name in others}, strata, margin)
        measures[measure] = [
            {
                "name": name,
                "difference": {**each.difference._asdict(), "p": each.p},
                "improvement": each.improvement._asdict(),
                "non_inferiority": {"at_least": each.at_least, "p": each.p_inferior, "shown": each.not_inferior},
            }
            for name, each in held.items()
        ]
    return {"reference": reference, "margin": margin, "measures": measures}


def values_of(found: Results, measure: str) -> np.ndarray:
    """A measure [runs, episodes], or [runs, images]."""
    return np.stack([result.values(measure) for result in found])


def curves(entrants: Sequence[Entrant]) -> Iterable[tuple[str, Curve]]:
    """What reports are about over the training of the first run of each name, where there is a record of it."""
    for entrant in entrants:
        given, run = entrant.first[0], next(iter(entrant.runs))
        if not entrant.is_control and (curve := training_curve(given.source.path, given.kind.score)):
            yield entrant.called(run), curve


def training_curve(run: Path, measure: str) -> Curve | None:
    """A measure over the training of a run folder; None for a checkpoint without one."""
    try:
        return read_curve(run / "tensorboard", f"metrics/{measure}") if (run / "tensorboard").is_dir() else None
    except UserError:
        return None


def pruning_of(source: Source, config: Config) -> dict[str, Any] | None:
    """What pruning.json says of the network that a run led to or, if none was cut there, began with."""
    if source.kind == CONTROL:
        return None
    folders = [source.folder] if source.kind == FOLDER else []
    folders += [Path(config.init)] if config.init else []
    path = next((folder / PRUNING for folder in folders if (folder / PRUNING).is_file()), None)
    found = json.loads(path.read_text()) if path else {}
    return found if "widths" in found else None  # masks leave every width as it is

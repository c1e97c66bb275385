"""`navprune compare`: costs, SPL and latency of agents, of one or more trainings each, in one table and page."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from navprune.commands.environments import split_episodes
from navprune.commands.evaluate import Opened, conditions, opened, run_evaluation
from navprune.commands.latency import run_latency
from navprune.config import Config, load_config
from navprune.costs.counting import cost
from navprune.errors import UserError
from navprune.evaluation.evaluate import Evaluation, in_order, summarise
from navprune.evaluation.statistics import against, sample, worst_scene
from navprune.files import check_writable
from navprune.reports.page import Picture, Report, write_report
from navprune.reports.plots import Curve, read_curve
from navprune.reports.tables import EncoderRow, comparison_tables, describe, few_runs
from navprune.rl.checkpoints import PRUNING
from navprune.simulator.scene import SceneLibrary
from navprune.source import CONTROL, DEFAULT_RECIPE, FOLDER, Source, grouped

MEASURES = ("spl", "success")
"""What agents are compared by; the margin is one of SPL and of the share of successes alike."""
Records = list[list[dict]]
"""Of the runs of one name: the records of all episodes, in the same order."""


@dataclass(frozen=True)
class Entrant:
    """What stands in one row: an agent's trainings, which differ in their seed, or a control."""

    name: str
    runs: dict[str, tuple[Opened, Config]]

    @property
    def first(self) -> tuple[Opened, Config]:
        """The run that stands for all where one is enough: in latency, curve and pictures."""
        return next(iter(self.runs.values()))

    @property
    def is_control(self) -> bool:
        """Whether nothing was trained."""
        return self.first[0].source.kind == CONTROL

    def called(self, run: str) -> str:
        """A run in words."""
        return f"{run} of {self.name}" if len(self.runs) > 1 else self.name

    def configs(self) -> dict[str, Config]:
        """The configurations of all that was trained, by what the runs are called."""
        runs = {} if self.is_control else self.runs
        return {self.called(run): config for run, (_, config) in runs.items()}


def run_comparison(
    runs: Sequence[str],
    out: Path,
    *,
    split: str | None = None,
    batch_sizes: Sequence[int] = (1, 8),
    pictures: str = "1",
    controls: Sequence[str] = (),
    each_its_own: bool = False,
    margin: float = 0.02,
    texts: Mapping[str, Any] | None = None,
) -> tuple[str, Path, dict[str, Any]]:
    """Evaluate runs (and control agents) on a split, measure their latency and write table and page.

    `runs` are what `source.grouped` takes; those of one name are trainings of one architecture. All must be measured
    alike (`evaluate.conditions`), or UserError says in what they differ; with `each_its_own` table and page say so
    instead, and those are held against no other. The first is the reference, `margin` what may be lost against it.
    Controls are measured as the first of the others. `texts` holds further fields of `reports.page.Report`. Returns the
    tables and remarks as text, the page and the JSON form.
    """
    entrants = read_all(grouped((*runs, *controls)))
    differing = check_conditions(entrants, split, each_its_own)
    check_writable(out)
    library, found, shown = SceneLibrary(entrants[0].first[1].data.scene_memory), {}, []
    for entrant in entrants:
        found[entrant.name], pictured = measured(entrant, out / "evaluation" / entrant.name, split, pictures, library)
        shown += pictured
    records: dict[str, Records] = {name: [in_order(run.episodes) for run in runs] for name, runs in found.items()}
    encoders = {each.name: each.first[0].policy.encoder for each in entrants if each.first[0].policy}
    seeing = {name: encoder for name, encoder in encoders.items() if encoder.spec.observations}
    latency = run_latency(seeing, batch_sizes, ["eager"])["rows"] if seeing else []
    rows = [
        EncoderRow(
            entrant.name + ("*" if entrant.name in differing else ""),
            cost(seeing[entrant.name].spec).to_json() if entrant.name in seeing else None,
            pooled(found[entrant.name], records[entrant.name], split or entrant.first[1].data.val),
            [row for row in latency if row["model"] == entrant.name],
            [] if entrant.is_control else [agent.source.text for agent, _ in entrant.runs.values()],
            spread_out(records[entrant.name]),
        )
        for entrant in entrants
    ]
    trained = [entrant.name for entrant in entrants if not entrant.is_control]
    compared = comparisons({name: records[name] for name in trained if name not in differing}, margin)
    remarks = [*few_runs(rows), *(f"* {line}." for line in differing.values())]
    texts = {"title": "Comparison of encoders", "lead": describe(rows), **(texts or {})}
    report = Report(
        rows=rows,
        comparisons=compared,
        curves=dict(curves(entrants)),
        prunings={each.name: told for each in entrants if (told := pruning_of(each.first[0].source, each.first[1]))},
        episodes=shown,
        **{**texts, "limits": [*texts.get("limits", ()), *remarks]},
    )
    answer = {"rows": [asdict(row) for row in rows], "differences": differing, "comparisons": compared}
    text = "\n".join(["\n\n".join(table.text() for table in comparison_tables(rows, compared)), "", *remarks])
    return text.rstrip(), write_report(out, report), answer


def read_all(groups: Mapping[str, Mapping[str, Source]]) -> list[Entrant]:
    """Read every agent; raises UserError where those of one name are not several trainings of one architecture."""
    trained = (source for group in groups.values() for source in group.values() if source.kind != CONTROL)
    first = next((source.config() for source in trained), None) or load_config(DEFAULT_RECIPE)
    entrants = []
    for name, group in groups.items():
        configs = {run: first if source.kind == CONTROL else source.config() for run, source in group.items()}
        agents = {run: (opened(source, configs[run]), configs[run]) for run, source in group.items()}
        entrants.append(Entrant(name, agents))
        check_trainings(entrants[-1])
    return entrants


def check_trainings(entrant: Entrant) -> None:
    """Raise UserError where two runs of one name are of two architectures, or the same network twice."""
    for (one, (first, _)), (other, (second, _)) in combinations(entrant.runs.items(), 2):
        if first.policy is None or second.policy is None or first.policy.spec != second.policy.spec:
            raise UserError(f"{one} and {other} differ in architecture; give them other names than {entrant.name} both")
        weights = zip(first.policy.state_dict().values(), second.policy.state_dict().values())
        if all(torch.equal(a, b) for a, b in weights):
            raise UserError(f"{one} and {other} of {entrant.name} are the same network; give trainings of other seeds")


def check_conditions(entrants: Sequence[Entrant], split: str | None, each_its_own: bool) -> dict[str, str]:
    """{name: how it is measured otherwise than the first} where `each_its_own` allows it; else UserError."""
    configs = [entrant.configs() for entrant in entrants]
    for own in configs:
        if each_its_own and (told := differences(own, split)):
            raise UserError(f"{next(iter(told.values()))}; runs of one name must be measured alike")
    differing = differences({called: config for own in configs for called, config in own.items()}, split)
    if differing and not each_its_own:
        advice = "set the same for all in `navprune evaluate`, or compare with --each-its-own"
        raise UserError(f"{next(iter(differing.values()))}; {advice}")
    lines = {entrant.name: [differing.get(called) for called in entrant.configs()] for entrant in entrants}
    return {name: told[0] for name, told in lines.items() if told and told[0]}


def differences(configs: Mapping[str, Config], split: str | None) -> dict[str, str]:
    """{name: how it is measured otherwise than the first} of those that are."""
    lines, usual = {}, None
    for name, config in configs.items():
        own = conditions(config, split_episodes(config, split or config.data.val))
        usual = usual or own
        others = [f"{key} {own[key]} instead of {value}" for key, value in usual.items() if own[key] != value]
        told = ["other episodes" if text.startswith("episodes") else text for text in others]
        if told:
            lines[name] = f"{name} is measured with {' and '.join(told)}, unlike {next(iter(configs))}"
    return lines


def measured(
    entrant: Entrant, folder: Path, split: str | None, pictures: str, library: SceneLibrary
) -> tuple[list[Evaluation], list[Picture]]:
    """Evaluate all runs of a name, several in folders of their own; pictures are of the first."""
    found: list[Evaluation] = []
    shown: list[Picture] = []
    for run, (agent, config) in entrant.runs.items():
        own = folder / run if len(entrant.runs) > 1 else folder
        chosen = "0" if found else pictures
        result, new = run_evaluation(agent, config, split=split, out=own, pictures=chosen, library=library)
        found.append(result)
        shown += [
            Picture(file, f"{entrant.called(run)}, {each.name}") for each in new for file in (each.map, each.video)
        ]
    return found, shown


def pooled(results: Sequence[Evaluation], records: Records, split: str) -> dict[str, Any]:
    """The evaluations of all runs of a name as one, in the form of `navprune evaluate --json`."""
    rate = sum(result.frames_per_second for result in results) / len(results)
    return Evaluation(records[0], summarise(records), rate).to_json(split)


def spread_out(records: Records) -> dict[str, Any]:
    """How many scenes there are, and of every measure its interquartile mean and the scene with the least."""
    scenes = [record["scene"] for record in records[0]]
    told: dict[str, Any] = {"scenes": len(set(scenes))}
    for measure in MEASURES:
        values = values_of(records, measure)
        worst, mean = worst_scene(values, scenes)
        middle = sample(values, scenes).interquartile_mean().spread()
        told[measure] = {"iqm": middle._asdict(), "worst_scene": {"scene": worst, "mean": mean}}
    return told


def comparisons(records: Mapping[str, Records], margin: float) -> dict[str, Any]:
    """Every agent against the first, in every measure; empty where there is none to compare."""
    if len(records) < 2:
        return {}
    reference, *others = records
    scenes = [record["scene"] for record in records[reference][0]]
    measures = {}
    for measure in MEASURES:
        values = {name: values_of(records[name], measure) for name in records}
        found = against(values[reference], {name: values[name] for name in others}, scenes, margin)
        measures[measure] = [
            {
                "name": name,
                "difference": {**each.difference._asdict(), "p": each.p},
                "improvement": each.improvement._asdict(),
                "non_inferiority": {"at_least": each.at_least, "p": each.p_inferior, "shown": each.not_inferior},
            }
            for name, each in found.items()
        ]
    return {"reference": reference, "margin": margin, "measures": measures}


def values_of(records: Records, measure: str) -> np.ndarray:
    """A measure [runs, episodes]."""
    return np.array([[record[measure] for record in run] for run in records])


def curves(entrants: Sequence[Entrant]) -> Iterable[tuple[str, Curve]]:
    """SPL over the training of the first run of each name, where there is a record of it."""
    for entrant in entrants:
        agent, run = entrant.first[0], next(iter(entrant.runs))
        if not entrant.is_control and (curve := training_curve(agent.source.path)):
            yield entrant.called(run), curve


def training_curve(run: Path) -> Curve | None:
    """SPL over the training of a run folder; None for a checkpoint without one."""
    try:
        return read_curve(run / "tensorboard", "metrics/spl") if (run / "tensorboard").is_dir() else None
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

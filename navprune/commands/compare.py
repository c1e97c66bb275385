"""`navprune compare`: costs, SPL and latency of several runs in one table and page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from navprune.commands.environments import split_episodes
from navprune.commands.evaluate import conditions, opened, run_evaluation
from navprune.commands.latency import run_latency
from navprune.config import Config, load_config
from navprune.errors import UserError
from navprune.evaluation.cost import cost
from navprune.files import check_writable
from navprune.reports.page import Picture, Report, write_report
from navprune.reports.plots import Curve, read_curve
from navprune.reports.tables import EncoderRow, Table, describe, encoder_table
from navprune.rl.checkpoints import PRUNING
from navprune.simulator.scene import SceneLibrary
from navprune.source import CONTROL, DEFAULT_RECIPE, FOLDER, Source, named


def run_comparison(
    runs: Sequence[str],
    out: Path,
    *,
    split: str | None = None,
    batch_sizes: Sequence[int] = (1, 8),
    pictures: str = "1",
    controls: Sequence[str] = (),
    each_its_own: bool = False,
    texts: Mapping[str, Any] | None = None,
) -> tuple[Table, Path, dict[str, Any]]:
    """Evaluate run folders (and control agents) on a split, measure their latency and write table and page.

    All must be measured alike (`evaluate.conditions`), or UserError says in what they differ; with `each_its_own` table
    and page say so instead. Controls are measured as the first of the others. `texts` holds further fields of
    `reports.page.Report`. Returns the table, the page and the JSON form.
    """
    sources = named((*runs, *controls))
    own = {name: source.config() for name, source in sources.items() if source.kind != CONTROL}
    first = next(iter(own.values()), None) or load_config(DEFAULT_RECIPE)
    library, configs = SceneLibrary(first.data.scene_memory), {name: own.get(name, first) for name in sources}
    agents = {name: opened(source, configs[name]) for name, source in sources.items()}
    encoders = {name: agent.policy.encoder for name, agent in agents.items() if agent.policy}
    differing = differences(own, split)
    if differing and not each_its_own:
        advice = "set the same for all in `navprune evaluate`, or compare with --each-its-own"
        raise UserError(f"{next(iter(differing.values()))}; {advice}")
    check_writable(out)
    evaluations, shown = {}, []
    for name, agent in agents.items():
        config, folder = configs[name], out / "evaluation" / name
        result, new = run_evaluation(agent, config, split=split, out=folder, pictures=pictures, library=library)
        evaluations[name] = result.to_json(split or config.data.val)
        shown += [Picture(file, f"{name}, {s.name}") for s in new for file in (s.map, s.video)]
    seeing = {name: encoder for name, encoder in encoders.items() if encoder.spec.observations}
    latency = run_latency(seeing, batch_sizes, ["eager"])["rows"] if seeing else []
    rows = [
        EncoderRow(
            name + ("*" if name in differing else ""),
            cost(seeing[name].spec).to_json() if name in seeing else None,
            evaluations[name],
            [row for row in latency if row["model"] == name],
        )
        for name in sources
    ]
    limits = [f"* {line}." for line in differing.values()]
    report = Report(
        rows=rows,
        curves={name: curve for name in encoders if (curve := training_curve(sources[name].path))},
        prunings={name: found for name in encoders if (found := pruning_of(sources[name], configs[name]))},
        episodes=shown,
        **{"title": "Comparison of encoders", "lead": describe(rows), "limits": limits, **(texts or {})},
    )
    answer = {"rows": [asdict(row) for row in rows], "differences": differing}
    return encoder_table(rows), write_report(out, report), answer


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


def training_curve(run: Path) -> Curve | None:
    """SPL over the training of a run folder; None for a checkpoint without one."""
    try:
        return read_curve(run / "tensorboard", "metrics/spl") if (run / "tensorboard").is_dir() else None
    except UserError:
        return None


def pruning_of(source: Source, config: Config) -> dict[str, Any] | None:
    """What pruning.json says of the network that a run led to or, if none was cut there, began with."""
    folders = [source.folder] if source.kind == FOLDER else []
    folders += [Path(config.init)] if config.init else []
    path = next((folder / PRUNING for folder in folders if (folder / PRUNING).is_file()), None)
    return json.loads(path.read_text()) if path else None

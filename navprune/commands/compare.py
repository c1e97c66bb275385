"""`navprune compare`: costs, SPL and latency of several runs in one table and page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from navprune.commands.evaluate import run_evaluation
from navprune.commands.latency import run_latency
from navprune.config import Config
from navprune.errors import UserError
from navprune.evaluation.cost import cost
from navprune.reports.page import Picture, Report, write_report
from navprune.reports.plots import Curve, read_curve
from navprune.reports.tables import EncoderRow, Table, describe, encoder_table
from navprune.rl.checkpoints import PRUNING, find_checkpoint, holds_checkpoint
from navprune.simulator.scene import SceneLibrary
from navprune.source import config_of, display_names, spec_of


def run_comparison(
    runs: Sequence[str],
    out: Path,
    *,
    split: str | None = None,
    batch_sizes: Sequence[int] = (1, 8),
    runtimes: Sequence[str] = ("eager",),
    pictures: str = "1",
    controls: Sequence[str] = (),
    library: SceneLibrary | None = None,
    texts: Mapping[str, Any] | None = None,
) -> tuple[Table, Path, dict[str, Any]]:
    """Evaluates run folders (and control agents) on a split, measures their latency and writes table and page.

    `texts` holds further fields of `reports.page.Report`. Returns the table, the page and the JSON form.
    """
    sources = (*runs, *controls)
    names = dict(zip(sources, display_names(sources), strict=True))
    configs = {run: config_of(run, None) for run in runs}
    library = library or SceneLibrary(configs[runs[0]].data.scene_memory)
    evaluations, shown = {}, []
    for source in sources:
        config, folder = configs.get(source, configs[runs[0]]), out / "evaluation" / names[source]
        result, new = run_evaluation(source, config, split=split, out=folder, pictures=pictures, library=library)
        evaluations[source] = result.to_json(split or config.data.val)
        shown += [Picture(file, f"{names[source]}, {s.name}") for s in new for file in (s.map, s.video)]
    seeing = [run for run in runs if spec_of(run).encoder.observations]
    latency = run_latency(seeing, batch_sizes, runtimes)["rows"]
    timed = dict(zip(seeing, display_names(seeing), strict=True)) if seeing else {}
    rows = [
        EncoderRow(
            names[source],
            cost(spec_of(source)).to_json() if source in seeing else None,
            evaluations[source],
            [{**row, "model": names[source]} for row in latency if row["model"] == timed.get(source)],
        )
        for source in sources
    ]
    report = Report(
        rows=rows,
        curves={names[run]: curve for run in runs if (curve := training_curve(Path(run))) is not None},
        prunings={names[run]: found for run in runs if (found := pruning_of(run, configs[run])) is not None},
        episodes=shown,
        **{"title": "Comparison of encoders", "lead": describe(rows), **(texts or {})},
    )
    page = write_report(out, report)
    answer = {
        "rows": [{"name": r.name, "cost": r.cost, "evaluation": r.evaluation, "latency": r.latency} for r in rows]
    }
    return encoder_table(rows), page, answer


def training_curve(run: Path) -> Curve | None:
    """SPL over the training of a run folder; None for a checkpoint without one."""
    try:
        return read_curve(run / "tensorboard", "metrics/spl") if (run / "tensorboard").is_dir() else None
    except UserError:
        return None


def pruning_of(run: str, config: Config) -> dict[str, Any] | None:
    """What pruning.json says of the network that a run led to or, if none was cut there, began with."""
    folders = [find_checkpoint(run)] if holds_checkpoint(run) else []
    folders += [Path(config.init)] if config.init else []
    path = next((folder / PRUNING for folder in folders if (folder / PRUNING).is_file()), None)
    return json.loads(path.read_text()) if path else None

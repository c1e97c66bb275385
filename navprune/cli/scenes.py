"""`navprune scenes`: makes scenes and navmeshes."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from navprune.cli.parsers import command, given, natural, note, positive
from navprune.errors import UserError

AGENT = {
    "agent_radius": "metres kept from walls (default: 0.1)",
    "agent_height": "metres of headroom (default: 1.5)",
    "agent_max_climb": "metres of a step (default: 0.2)",
    "agent_max_slope": "degrees of a ramp (default: 45)",
    "cell_size": "metres of a voxel's sides (default: 0.05)",
    "cell_height": "metres of a voxel's height (default: 0.2)",
}
"""Settings of a navmesh; Habitat's defaults."""


def add_commands(commands: Any) -> None:
    """Add the parsers of these commands."""
    scenes = commands.add_parser("scenes", help="make scenes and navmeshes").add_subparsers(
        metavar="COMMAND", required=True
    )
    _add_generate(scenes)
    _add_navmesh(scenes)


def _add_generate(commands: Any) -> None:
    parser = command(
        commands,
        "generate",
        _generate,
        "Writes a procedural data set of furnished homes in Habitat's layout: .glb, .navmesh and PointNav episodes.",
        "navprune scenes generate --out data --train 40 --val 10 --seed 1",
    )
    parser.add_argument("--out", type=Path, default=Path("data"), help="data folder (default: data)")
    parser.add_argument("--name", default="homes", help="name of the data set (default: homes)")
    parser.add_argument("--train", type=positive, default=40, metavar="N", help="training scenes (default: 40)")
    parser.add_argument("--val", type=positive, default=10, metavar="M", help="validation scenes (default: 10)")
    parser.add_argument("--seed", type=natural, default=0, help="the same seed gives the same bytes (default: 0)")
    parser.add_argument(
        "--area", type=float, nargs=2, metavar=("MIN", "MAX"), default=(40.0, 200.0),
        help="floor area of a home in m2 (default: 40 200)",
    )  # fmt: skip
    parser.add_argument("--train-episodes", type=positive, default=200, metavar="N", help="episodes a training scene")
    parser.add_argument("--val-episodes", type=positive, default=20, metavar="N", help="episodes a validation scene")


def _generate(options: argparse.Namespace) -> dict[str, Any]:
    from navprune.progress import ProgressLine
    from navprune.reports.tables import rows_table
    from navprune.scenes.homes.dataset import generate_dataset

    line = ProgressLine("drawing", options.train + options.val, "homes")
    statistics = generate_dataset(
        options.out,
        area=tuple(options.area),
        episodes_per_scene=options.train_episodes,
        val_episodes_per_scene=options.val_episodes,
        progress=line.show,
        **given(options, "name", "train", "val", "seed"),
    )
    answer = dataclasses.asdict(statistics)
    print(rows_table([{"split": split, **_spreads(values)} for split, values in answer["splits"].items()]).text())
    return answer


def _spreads(values: dict[str, Any]) -> dict[str, Any]:
    """A split's statistics with each spread as one cell."""
    return {
        name: f"{value['mean']:,.3g} ({value['low']:,.3g} to {value['high']:,.3g})"
        if isinstance(value, dict)
        else value
        for name, value in values.items()
    }


def _add_navmesh(commands: Any) -> None:
    parser = command(
        commands,
        "navmesh",
        _navmesh,
        "Builds the navigation meshes of scenes that have none, as Recast does in habitat-sim.\n"
        "NAME.navmesh is written beside NAME.glb, in Detour's format, which habitat-sim loads, too. Scenes that\n"
        "fail are told at the end, with exit status 2.",
        "navprune scenes navmesh data/scene_datasets/gibson/*.glb",
    )
    parser.add_argument("scenes", nargs="+", type=Path, metavar="SCENE.glb")
    parser.add_argument("--overwrite", action="store_true", help="replace navmeshes that exist")
    for name, meaning in AGENT.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=float, default=argparse.SUPPRESS, metavar="X", help=meaning
        )


def _navmesh(options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from navprune.progress import ProgressLine
    from navprune.reports.tables import rows_table
    from navprune.scenes.files.navmesh import NavMeshSettings
    from navprune.scenes.recast.build import build_for

    settings = NavMeshSettings(**{name: getattr(options, name) for name in AGENT if hasattr(options, name)})
    rows, failed = [], []
    for scene in options.scenes:
        line = ProgressLine(scene.name, 100, "%")
        try:
            row = build_for(
                scene,
                settings=settings,
                overwrite=options.overwrite,
                progress=lambda stage, share, line=line: line.show(round(100 * share), stage),  # type: ignore[misc]
            )
        except UserError as error:
            failed.append({"path": str(scene), "reason": str(error)})
        else:
            rows.append(row)
    if rows:
        print(rows_table(rows).text())
    for failure in failed:
        note(f"navprune: {failure['reason']}")
    return {"scenes": rows, "failed": failed}, 2 if failed else 0

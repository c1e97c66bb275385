"""`navprune scenes`: makes scenes and navmeshes, and looks after what is derived from scenes."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from navprune.cli.parsers import command, given, natural, note, positive
from navprune.errors import UserError

AGENT = {
    "agent-radius": "metres kept from walls (default: 0.1)",
    "agent-height": "metres of headroom (default: 1.5)",
    "agent-max-climb": "metres of a step (default: 0.2)",
    "agent-max-slope": "degrees of a ramp (default: 45)",
    "cell-size": "metres of a voxel's sides (default: 0.05)",
    "cell-height": "metres of a voxel's height (default: 0.2)",
}
"""Settings of a navmesh; Habitat's defaults."""


def add_commands(commands: Any) -> None:
    """Add the parsers of these commands."""
    scenes = commands.add_parser("scenes", help="make scenes and navmeshes, show the scene cache")
    kinds = scenes.add_subparsers(metavar="COMMAND", required=True)
    parser = command(kinds, "generate", _generate, "navprune scenes generate --out data --train 40 --val 10 --seed 1")
    parser.add_argument("--out", type=Path, default=Path("data"), help="data folder (default: data)")
    style = "plain, or scan: homes as scanners leave them (default: plain)"
    parser.add_argument("--style", choices=("plain", "scan"), default="plain", help=style)
    density = "triangles of a scan for each m2 of floor, from 2000 to 40000 (default: 10000)"
    parser.add_argument("--density", type=positive, metavar="N", help=density)
    parser.add_argument("--name", help="name of the data set (default: homes, or scans)")
    parser.add_argument("--train", type=positive, default=40, metavar="N", help="training scenes (default: 40)")
    parser.add_argument("--val", type=positive, default=10, metavar="M", help="validation scenes (default: 10)")
    parser.add_argument("--seed", type=natural, default=0, help="the same seed gives the same bytes (default: 0)")
    parser.add_argument(
        "--area", type=float, nargs=2, metavar=("MIN", "MAX"), default=(40.0, 200.0),
        help="floor area of a home in m2 (default: 40 200)",
    )  # fmt: skip
    parser.add_argument(
        "--train-episodes", type=positive, default=200, metavar="N", help="episodes a training scene (default: 200)"
    )
    parser.add_argument(
        "--val-episodes", type=positive, default=20, metavar="N", help="episodes a validation scene (default: 20)"
    )

    parser = command(kinds, "navmesh", _navmesh, "navprune scenes navmesh data/scene_datasets/gibson/*.glb")
    parser.add_argument("scenes", nargs="+", type=Path, metavar="SCENE.glb")
    parser.add_argument("--overwrite", action="store_true", help="replace navmeshes that exist")
    for name, meaning in AGENT.items():
        parser.add_argument(f"--{name}", type=float, metavar="X", help=meaning)

    parser = command(kinds, "cache", _cache, "navprune scenes cache --empty")
    parser.add_argument("--empty", action="store_true", help="take away all that is kept")


def _generate(options: argparse.Namespace) -> dict[str, Any]:
    """Write a procedural data set of furnished homes in Habitat's layout: .glb, .navmesh and PointNav episodes."""
    from navprune.progress import ProgressLine
    from navprune.reports.tables import rows_table
    from navprune.scenes.homes.dataset import generate_dataset

    line = ProgressLine("drawing", options.train + options.val, "homes")
    episodes = {"episodes_per_scene": options.train_episodes, "val_episodes_per_scene": options.val_episodes}
    passed = given(options, generate_dataset, area=tuple(options.area), progress=line.show, **episodes)
    answer = dataclasses.asdict(generate_dataset(**passed))
    print(rows_table([{"split": split, **_spreads(values)} for split, values in answer["splits"].items()]).text())
    return answer


def _spreads(values: dict[str, Any]) -> dict[str, Any]:
    """A split's statistics with each spread as one cell."""
    spreads = {name: value for name, value in values.items() if isinstance(value, dict)}
    return values | {
        name: f"{spread['mean']:,.3g} ({spread['low']:,.3g} to {spread['high']:,.3g})"
        for name, spread in spreads.items()
    }


def _navmesh(options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """Build the navigation meshes of scenes that have none, as Recast does in habitat-sim.
    NAME.navmesh is written beside NAME.glb, in Detour's format, which habitat-sim loads, too. Scenes that
    fail are told at the end, with exit status 2.
    """
    from navprune.progress import ProgressLine
    from navprune.reports.tables import rows_table
    from navprune.scenes.files.navmesh import NavMeshSettings
    from navprune.scenes.recast.build import build_for

    settings = NavMeshSettings(**given(options, NavMeshSettings))
    rows, failed = [], []
    for scene in options.scenes:
        line = ProgressLine(scene.name, 100, "%")

        def show(stage: str, share: float, line: ProgressLine = line) -> None:
            line.show(round(100 * share), stage)

        try:
            rows.append(build_for(scene, settings=settings, overwrite=options.overwrite, progress=show))
        except UserError as error:
            failed.append({"path": str(scene), "reason": str(error)})
    if rows:
        print(rows_table(rows).text())
    for failure in failed:
        note(f"navprune: {failure['reason']}")
    return {"scenes": rows, "failed": failed}, 2 if failed else 0


def _cache(options: argparse.Namespace) -> dict[str, Any]:
    """Show what is kept of scenes that were loaded: their trees, colours and holes, ready to be mapped.
    What is missing or no longer fits is built when a scene is loaded, so the cache may be emptied at any time, also
    while others use it. The environment says where it is, NAVPRUNE_SCENE_CACHE=FOLDER (~/.cache/navprune/scenes
    without), and how large it may grow, NAVPRUNE_SCENE_CACHE_GIB=N (20 without; 0 keeps nothing); what was used longest
    ago makes room.
    """
    import time

    from navprune.reports.tables import rows_table
    from navprune.simulator.cache import scene_cache

    cache = scene_cache()
    entries = cache.entries()
    rows = [entry._asdict() | {"path": str(entry.path)} for entry in entries]
    answer = {"folder": str(cache.folder), "limit": cache.limit, "entries": rows}
    if options.empty:
        cache.empty()
    elif rows:
        when = (time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used)) for entry in entries)
        print(rows_table([
            {"scene": entry.scene, "part": entry.part, "MiB": entry.bytes / 2**20, "used": used}
            for entry, used in zip(entries, when)
        ]).text())  # fmt: skip
    done = "taken away from" if options.empty else f"of {cache.limit / 2**30:g} GiB in"
    print(f"{sum(entry.bytes for entry in entries) / 2**30:.2f} GiB {done} {cache.folder}")
    return answer

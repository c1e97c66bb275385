"""Episodes that habitat-lab ran, with the path finders of their scenes."""

import gzip
import json
from pathlib import Path
from typing import NamedTuple

from navprune.comparisons.recordings import RecordedEpisode, find_scene, read_rollouts
from navprune.scenes.files.navmesh import read_navmesh
from navprune.scenes.files.places import navmesh_path
from navprune.simulator.pathfinder import PathFinder

DATA = Path(__file__).parent / "data"
RUNS = {
    "apartment": ("reference/expected/apartment_rollouts.json.gz", True),
    "duplex": ("reference/expected/duplex_rollouts.json.gz", True),
    "tower": ("tower/expected/tower_rollouts.json.gz", True),
    "tower without sliding": ("tower/no_sliding_rollouts.json.gz", False),
}
"""Where runs are recorded, and whether agents slid along walls in them."""


class Run(NamedTuple):
    """Episodes of a scene, how the actions of each were chosen, and whether agents slid along walls."""

    pathfinder: PathFinder
    episodes: list[RecordedEpisode]
    modes: list[str]
    sliding: bool


def read_run(name: str) -> Run:
    """A run of `RUNS`."""
    file, sliding = RUNS[name]
    folder, scene = DATA / file.split("/")[0], name.split()[0]
    modes = [entry["mode"] for entry in json.loads(gzip.decompress((DATA / file).read_bytes()))]
    pathfinder = PathFinder(read_navmesh(navmesh_path(find_scene(folder, scene))))
    return Run(pathfinder, read_rollouts(DATA / file, folder, scene), modes, sliding)

"""Scenes in memory: what is seen and where one can walk, each file loaded once and shared."""

import threading
from dataclasses import dataclass
from pathlib import Path

from navprune.errors import UserError
from navprune.scenes.mesh import load_glb
from navprune.scenes.navmesh import read_navmesh
from navprune.simulator.bvh import Bvh
from navprune.simulator.pathfinder import PathFinder


@dataclass(frozen=True)
class Scene:
    """One world: its triangles in a tree for the renderer and its navigation mesh for the path finder."""

    name: str
    bvh: Bvh
    pathfinder: PathFinder


def check_files(path: Path) -> None:
    """Raises UserError where NAME.glb or the NAME.navmesh beside it does not exist."""
    for file in (path, path.with_suffix(".navmesh")):
        if not file.is_file():
            raise UserError(
                f"scene file {file} does not exist; check the data folder, "
                "or make scenes with `navprune scenes generate`"
            )


def load_scene(path: Path, alpha_masks: bool = False) -> Scene:
    """Loads NAME.glb and the NAME.navmesh beside it; raises UserError where either is missing or broken.

    alpha_masks: see load_glb.
    """
    check_files(path)
    return Scene(path.stem, Bvh(load_glb(path, alpha_masks)), PathFinder(read_navmesh(path.with_suffix(".navmesh"))))


class SceneLibrary:
    """Loads each scene once, whichever thread asks first, and shares it among all environments."""

    def __init__(self, alpha_masks: bool = False) -> None:
        """alpha_masks: whether masked materials get holes, which habitat-sim does not draw; see load_glb."""
        self._alpha_masks = alpha_masks
        self._scenes: dict[Path, Scene] = {}
        self._lock = threading.Lock()

    def get(self, path: Path) -> Scene:
        """The scene at this path, loaded on first use."""
        with self._lock:
            if path not in self._scenes:
                self._scenes[path] = load_scene(path, self._alpha_masks)
            return self._scenes[path]

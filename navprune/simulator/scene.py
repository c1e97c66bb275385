"""Scenes in memory: what is seen and where one can walk, each file loaded once and shared."""

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from navprune.errors import UserError
from navprune.scenes.files.mesh import load_glb
from navprune.scenes.files.navmesh import read_navmesh
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
    """Loads scenes on first use, whichever thread asks, and shares them among all environments.

    A scene stays as long as anyone uses it; of the others, those used last, within a quarter of the memory.
    """

    def __init__(self, limit: int | None = None) -> None:
        """limit: bytes of scenes to keep, by default a quarter of this machine's memory."""
        self._limit = limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
        self._used: WeakValueDictionary[tuple[Path, bool], Scene] = WeakValueDictionary()
        self._kept: OrderedDict[tuple[Path, bool], Scene] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: Path, alpha_masks: bool = False) -> Scene:
        """The scene at this path; alpha_masks: whether its masked materials have holes, see load_glb."""
        key = path, alpha_masks
        with self._lock:
            scene = self._used.get(key)
            if scene is None:
                scene = self._used[key] = load_scene(path, alpha_masks)
            self._kept[key] = scene
            self._kept.move_to_end(key)
            while len(self._kept) > 1 and sum(kept.bvh.nbytes for kept in self._kept.values()) > self._limit:
                self._kept.popitem(last=False)
            return scene

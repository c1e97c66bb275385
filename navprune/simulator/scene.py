"""Scenes in memory: what is seen and where one can walk, each file loaded once and shared."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakValueDictionary

from navprune.machine import memory
from navprune.scenes.files.places import check_files, existing
from navprune.scenes.recast.bodies import Body, navmesh_for
from navprune.simulator.asset import load_asset
from navprune.simulator.pathfinder import PathFinder

if TYPE_CHECKING:  # so that whoever only loads scenes needs no torch
    from navprune.simulator.renderer import Handle, Prepare

HABITATS = Body()
Key: TypeAlias = "tuple[Path, bool, Body, Prepare]"


@dataclass(frozen=True)
class Scene:
    """One world: as its renderer holds it, and its navigation mesh for the path finder."""

    name: str
    asset: Handle
    pathfinder: PathFinder


def load_scene(path: Path, alpha_masks: bool = False, body: Body = HABITATS, prepare: Prepare = load_asset) -> Scene:
    """Load NAME.glb and its navmesh; raises UserError where either is missing or broken.

    alpha_masks: see load_glb. body: whom the navmesh is for, see navmesh_for. prepare: of the renderer that draws it.
    """
    path = existing(path)
    check_files(path)
    return Scene(path.stem, prepare(path, alpha_masks), PathFinder(navmesh_for(path, body)))


class SceneLibrary:
    """Loads scenes on first use, whichever thread asks, and shares them among all environments.

    A scene stays as long as anyone uses it; of the others, those used last, within a limit.
    """

    def __init__(self, limit: float | None = None, share: float = 1.0) -> None:
        """limit: GiB of scenes to keep, by default a quarter of the memory that this process may fill.

        share: of that, this library's part, where several processes have one each.
        """
        self._limit = share * (memory() / 4 if limit is None else limit * 2**30)
        self._used: WeakValueDictionary[Key, Scene] = WeakValueDictionary()
        self._kept: OrderedDict[Key, Scene] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: Path, alpha_masks: bool = False, body: Body = HABITATS, prepare: Prepare = load_asset) -> Scene:
        """The scene at this path; the rest as load_scene takes it."""
        key = path, alpha_masks, body, prepare
        with self._lock:
            scene = self._used.get(key)
            if scene is None:
                scene = self._used[key] = load_scene(*key)
            new = key not in self._kept
            self._kept[key] = scene
            self._kept.move_to_end(key)
            if new:  # else there is nothing to make room for, and to count hundreds of scenes takes its time
                self._make_room()
            return scene

    def _make_room(self) -> None:
        while len(self._kept) > 1 and sum(kept.asset.nbytes for kept in self._kept.values()) > self._limit:
            self._kept.popitem(last=False)

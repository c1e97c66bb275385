"""The navigation mesh of a scene for an agent's body: the published one, or one that is built once and kept."""

import hashlib
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from navprune.errors import UserError
from navprune.files import user_cache
from navprune.progress import say_once
from navprune.scenes.files.navmesh import NavMesh, NavMeshSettings, read_navmesh, write_navmesh
from navprune.scenes.files.places import check_files, navmesh_path
from navprune.scenes.recast.build import build_from

CLOSE = 1e-5
"""Metres within which bodies are the same, as in habitat-sim."""
ROUNDING = 0.01
"""Seconds within which times of files are the same; file systems round them."""


class Body(NamedTuple):
    """Radius and height of an agent in metres; Habitat's where nothing is said."""

    radius: float = NavMeshSettings.agent_radius
    height: float = NavMeshSettings.agent_height

    def fits(self, navmesh: NavMesh) -> bool:
        """Whether a navmesh was made for this body."""
        made_for = navmesh.settings.agent_radius, navmesh.settings.agent_height
        return all(abs(mine - its) < CLOSE for mine, its in zip(self, made_for))


def navmesh_for(glb: Path, body: Body) -> NavMesh:
    """The navmesh beside a scene where it was made for this body; else one that Recast builds, once.

    So does habitat-sim. What is built is kept beside the scene as `NAME.r0.18_h0.88.navmesh` or, where that folder
    cannot be written, in the user's cache, with the scene's time of change, by which it is known to be the scene's; the
    published file stays as it is. Raises UserError where the published navmesh is missing or broken and where none
    can be built.
    """
    published = read_navmesh(navmesh_path(glb))
    if body.fits(published):
        return published
    check_files(glb)
    places, changed = list(_places(glb, body)), glb.stat().st_mtime
    for place in places:
        if place.is_file() and abs(place.stat().st_mtime - changed) < ROUNDING:
            with suppress(UserError):
                if body.fits(kept := read_navmesh(place)):
                    return kept
    return _build(glb, body, places, changed)


def _places(glb: Path, body: Body) -> Iterator[Path]:
    """Where the navmesh for a body may be kept."""
    name = f"{glb.stem}.r{body.radius:g}_h{body.height:g}.navmesh"
    yield glb.with_name(name)
    if cache_folder := user_cache():
        digest = hashlib.sha256(str(glb.resolve()).encode()).hexdigest()[:12]
        yield cache_folder / "navmesh" / f"{digest}-{name}"


def _build(glb: Path, body: Body, places: list[Path], changed: float) -> NavMesh:
    """Build the navmesh of a scene that was changed then and keep it in the first place that can be written."""
    size = f"radius {body.radius:g} m and height {body.height:g} m"
    print(f"building the navmesh of {glb} for a body of {size}", file=sys.stderr)
    navmesh, _ = build_from(glb, NavMeshSettings(agent_radius=body.radius, agent_height=body.height))
    for place in places:
        # Other processes may build the same: each writes a file of its own and puts it there in one piece.
        own = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
        try:
            write_navmesh(own, navmesh)
            os.utime(own, (changed, changed))
            own.replace(place)
            return navmesh
        except (OSError, UserError):
            own.unlink(missing_ok=True)
    say_once("navmeshes cannot be kept beside the scenes nor in ~/.cache, and are built anew by each process")
    return navmesh

"""Where the files of a scene lie, and whether they are whole as far as their headers tell."""

from pathlib import Path

from navprune.errors import UserError
from navprune.scenes.files.navmesh import check_navmesh
from navprune.scenes.files.resources import check_scene

BASIS = ".basis"
SCENES = (".glb", ".gltf")
"""How the names of scene files end."""


def existing(path: Path) -> Path:
    """The file itself or, where it is absent, its twin if that is there.

    HM3D has ID.glb and ID.basis.glb; of any scene, NAME.gltf stands for NAME.glb and the other way round.
    """
    stem = path.stem.removesuffix(BASIS) if path.stem.endswith(BASIS) else path.stem + BASIS
    twins = [path.with_name(stem + path.suffix)]
    twins += [path.with_suffix(suffix) for suffix in SCENES if path.suffix in SCENES]
    return next((place for place in (path, *twins) if place.is_file()), path)


def navmesh_path(glb: Path) -> Path:
    """The navmesh beside a scene file, by either of its names."""
    return existing(glb.with_suffix(".navmesh"))


def check_files(glb: Path) -> None:
    """Raise UserError where a scene or its navmesh is missing, cut off or of another kind; reads headers alone."""
    for file in (glb, navmesh_path(glb)):
        if not file.is_file():
            remedy = "check the data folder, or make scenes with `navprune scenes generate`"
            raise UserError(f"scene file {file} does not exist; {remedy}")
    try:
        check_scene(glb)
        check_navmesh(navmesh_path(glb))
    except OSError as error:
        raise UserError(f"cannot read {error.filename or glb}: {error.strerror or error}; check the disk") from None

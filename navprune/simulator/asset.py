"""A scene as the renderer holds it."""

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from navprune.errors import UserError
from navprune.progress import say_once
from navprune.scenes.files.materials import Sampler
from navprune.scenes.files.mesh import SceneMesh, Strokes, load_glb
from navprune.simulator.cache import Arrays, read_only, scene_cache
from navprune.simulator.surface import Cutout, Surface, texture_levels
from navprune.simulator.tree import Tree, make_tree

Keep = Callable[[str, Callable[[], Arrays]], Arrays]
"""Takes the name of a part and what makes its arrays, and gives them, made before or now, read-only."""


def load_asset(path: Path, alpha_masks: bool = False) -> "RenderAsset":
    """Load a scene as the renderer holds it, from the user's cache where it was derived before.

    alpha_masks: see load_glb. Raises UserError as load_glb does, and where the file changes meanwhile.
    """
    cache = scene_cache()
    digest = cache.digest(path)

    def keep(part: str, make: Callable[[], Arrays]) -> Arrays:
        def make_of_the_same() -> Arrays:
            try:
                return make()
            finally:
                if cache.digest(path) != digest:
                    raise UserError(f"{path} has changed since it was first read; run again")

        return cache.get(path, digest, part, make_of_the_same)

    return RenderAsset(partial(load_glb, path, alpha_masks), alpha_masks, keep)


class RenderAsset:
    """A scene to draw: `tree` and `strokes` are its shape, `surface` its colours. Read-only, so that all share it."""

    def __init__(
        self,
        mesh: SceneMesh | Callable[[], SceneMesh],
        alpha_masks: bool = True,
        keep: Keep = lambda part, make: read_only(make()),
    ):
        """mesh: or what loads it. alpha_masks: whether the mesh's count. keep: where its parts are kept."""
        self._load = (lambda: mesh) if isinstance(mesh, SceneMesh) else mesh
        self._alpha_masks, self._keep = alpha_masks, keep
        self._made = dict[str, Arrays]()
        shape = self._part("shape", self._make_shape)
        self.tree, self._order = _record(Tree, shape), shape["order"]
        self.strokes = _record(Strokes, shape) if "ends" in shape else None

    @cached_property
    def surface(self) -> Surface:
        """The colours, made when first asked for; UserError where an image of the file cannot be decoded."""
        arrays = self._part("surface", self._make_surface)
        for line in arrays["faults"].tobytes().decode().splitlines():
            say_once(line)
        return _record(Surface, arrays)

    @cached_property
    def cutout(self) -> Cutout | None:
        """What tells where triangles have holes; None where all are whole."""
        masks = self._part("masks", self._make_masks) if self._alpha_masks else {}
        return Cutout(**masks, surface=self.surface) if masks else None

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that are there now, in memory or mapped; those of the colours count once made."""
        return sum(array.nbytes for part in self._made.values() for array in part.values())

    @property
    def triangles(self) -> int:
        """How many triangles the scene has."""
        return len(self._order)

    def _part(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        self._made[name] = self._keep(name, make)
        return self._made[name]

    def _make_shape(self) -> Arrays:
        mesh = self._load()
        vertices, strokes = mesh.vertices, {} if mesh.strokes is None else _arrays(mesh.strokes)
        del mesh  # the rest of it goes
        return _arrays(make_tree(vertices)) | strokes

    def _make_surface(self) -> Arrays:
        mesh, order = self._load(), self._order
        samplers = mesh.samplers or (Sampler(),) * len(mesh.textures)
        texels, levels = texture_levels(mesh.textures, samplers)
        corners = mesh.colours[order], mesh.uv[order], mesh.texture[order]
        surface = Surface(*corners, texels, levels, np.array(samplers, np.int32).reshape(-1, len(Sampler())))
        faults = "\n".join(getattr(mesh.textures, "faults", ()))
        return _arrays(surface) | {"faults": np.frombuffer(faults.encode(), np.uint8)}

    def _make_masks(self) -> Arrays:
        masks = self._load().masks
        return {} if masks is None else {"alpha": masks.alpha[self._order], "cutoff": masks.cutoff[self._order]}


def _arrays(record: Any) -> dict[str, Any]:
    """The fields of a NamedTuple that are there; arrays, all of them."""
    return {name: value for name, value in record._asdict().items() if value is not None}


def _record(kind: Any, arrays: Arrays) -> Any:
    """The NamedTuple of such arrays; None where there is none of a name."""
    return kind(**{name: arrays.get(name) for name in kind._fields})

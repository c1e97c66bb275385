"""A scene as the renderer holds it."""

from functools import cached_property

import numpy as np

from navprune.scenes.files.mesh import Sampler, SceneMesh
from navprune.simulator.surface import Cutout, Surface, texture_levels
from navprune.simulator.tree import make_tree


class RenderAsset:
    """A scene to draw: `tree` is its shape, `surface` its colours. Read-only, so threads share it."""

    def __init__(self, mesh: SceneMesh):
        self.tree, order = make_tree(mesh.vertices)
        self._corners = mesh.colours[order], mesh.uv[order], mesh.texture[order]
        self._textures = mesh.textures
        self._samplers = mesh.samplers or (Sampler(),) * len(mesh.textures)
        self._masks = None if mesh.masks is None else (mesh.masks.alpha[order], mesh.masks.cutoff[order])

    @cached_property
    def surface(self) -> Surface:
        """The colours, made when first asked for; UserError where an image of the file cannot be decoded."""
        texels, levels = texture_levels(self._textures, self._samplers)
        return Surface(*self._corners, texels, levels, np.array(self._samplers, np.int32).reshape(-1, len(Sampler())))

    @cached_property
    def cutout(self) -> Cutout | None:
        """What tells where triangles have holes; None where all are whole."""
        return None if self._masks is None else Cutout(*self._masks, self.surface)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that stand in memory now; those of the colours count once they are made."""
        made = self.__dict__.get("surface", self._corners)
        return sum(array.nbytes for array in (*self.tree, *made))

    @property
    def triangles(self) -> int:
        """How many triangles the scene has."""
        return len(self.tree.order)

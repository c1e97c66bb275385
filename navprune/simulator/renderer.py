"""What draws: the one thing that environments, habitat-lab's adapter and parity know of a renderer.

A renderer draws into tensors of its caller on a device of its own, so that nothing is copied between the drawing and
the rollout. Whoever needs one is given a `MakeRenderer`; the CPU's is `rasterizer.Rasterizer`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from navprune.sensors import SENSORS


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: size in pixels, horizontal field of view in degrees, and the sensors that look through it.

    Depth comes clipped to [min_depth, max_depth] metres and scaled to [0, 1], 0 where nothing is; without max_depth it
    comes in metres.
    """

    width: int
    height: int
    hfov: float = 90.0
    sensors: tuple[str, ...] = ("depth",)
    min_depth: float = 0.0
    max_depth: float | None = None

    def shape(self, sensor: str) -> tuple[int, int, int]:
        """Height, width and channels of a sensor's image."""
        return self.height, self.width, SENSORS[sensor].channels

    def images(self, count: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Tensors [count, H, W, channels] of every sensor, to draw into; what they hold is left to chance."""
        return {
            name: torch.empty((count, *self.shape(name)), dtype=getattr(torch, SENSORS[name].dtype), device=device)
            for name in self.sensors
        }


class Handle(Protocol):
    """A scene as the renderer that prepared it holds it."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes."""

    @property
    def triangles(self) -> int:
        """How many triangles it has."""


Prepare = Callable[[Path, bool], Any]
"""Makes a handle of the scene in a .glb file; True: masked materials have holes."""


class Renderer(Protocol):
    """Draws many cameras at once. One call at a time."""

    device: torch.device
    """Where the tensors lie that it draws into."""

    @property
    def prepare(self) -> Prepare:
        """Make a handle of a scene. Renderers that give the same function share its handles.

        Raises UserError where the file is missing or broken.
        """

    def draw(self, handles: Sequence[Any], eyes: Tensor, rotations: Tensor, out: Mapping[str, Tensor]) -> None:
        """Draw camera i, in the scene handles[i], into out[sensor][i] for every sensor of the camera.

        eyes: float64 [N, 3], metres; rotations: float64 [N, 4], x y z w, a camera looks along its -z, y up; both on the
        CPU or on the device. out: as `Camera.images` makes it, on the device. Where nothing is, images are 0. Raises
        UserError where a scene cannot be shown, and ValueError where `out` is not as it should be.
        """

    def close(self) -> None:
        """Free what the renderer holds; handles stay whole."""


MakeRenderer = Callable[[Camera], Renderer]
"""Makes a renderer for a camera. Raises UserError where it cannot draw one of its sensors."""

"""Depth and colour of many cameras at once, on the CPU."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from navprune.machine import cores
from navprune.simulator.asset import RenderAsset
from navprune.simulator.drawing import draw, make_scratch


class Renderer:
    """Draws batches of pinhole cameras; back faces are culled, colours are unlit.

    One batch at a time; the result does not depend on the number of threads.
    """

    def __init__(
        self,
        width: int,
        height: int,
        hfov: float = 90.0,
        colour: bool = False,
        threads: int | None = None,
        far: float | None = None,
    ):
        """Size in pixels, horizontal field of view in degrees; threads: None for every core that this process may use.

        far: when given, depth comes clipped to [0, far] metres and divided by far.
        """
        self.width, self.height, self.colour = width, height, colour
        self.threads = threads or cores()
        self._focal = 0.5 * width / np.tan(np.radians(hfov) / 2)
        self._far = float(np.finfo(np.float32).max) if far is None else float(far)
        self._scale = 1.0 if far is None else 1.0 / far
        # The calling thread draws too, so that one thread needs no pool.
        self._pool = ThreadPoolExecutor(self.threads - 1) if self.threads > 1 else None
        self._scratch = [make_scratch(height, width) for _ in range(self.threads)]
        self._triangles = [np.empty((height, width), np.int32) if colour else None for _ in range(self.threads)]

    def render(
        self,
        assets: Sequence[RenderAsset],
        eyes: NDArray,
        rotations: NDArray,
        depth: NDArray[np.float32],
        rgb: NDArray[np.uint8] | None = None,
    ) -> None:
        """Draw camera i, at eyes[i] in scene assets[i], into depth[i], and into rgb[i] if made with colour.

        eyes: [N, 3], metres. rotations: [N, 4], x y z w; a camera looks along its -z, y up.
        depth: float32 [N, H, W], z-depth in metres (or clipped and scaled, see far), 0 where nothing is.
        rgb: uint8 [N, H, W, 3], black where nothing is.
        UserError: colours are wanted of a scene with textures that cannot be decoded.
        """
        shape = (len(assets), self.height, self.width)
        if (rgb is not None) != self.colour:
            raise ValueError("rgb goes with a renderer made with colour=True, and only with that")
        _check_output("depth", depth, shape, np.float32)
        if rgb is not None:
            _check_output("rgb", rgb, (*shape, 3), np.uint8)
        eyes = np.ascontiguousarray(eyes, dtype=np.float64)
        rotations = np.ascontiguousarray(rotations, dtype=np.float64)
        for asset in {id(asset): asset for asset in assets}.values():  # once here, not at once in every thread
            _ = asset.cutout if rgb is None else (asset.cutout, asset.surface)
        cameras = iter(
            range(len(assets))
        )  # for all threads: whoever is free takes the next, since views differ in cost

        def draw_some(thread: int) -> None:
            for i in cameras:
                asset, surface = assets[i], None if rgb is None else assets[i].surface
                view = i, eyes, rotations, self._focal, self._far, self._scale
                working = self._triangles[thread], self._scratch[thread]
                draw(asset.tree, asset.cutout, surface, *view, depth, rgb, *working)

        helpers = []
        if self._pool is not None:
            helpers = [self._pool.submit(draw_some, 1 + i) for i in range(min(self.threads, len(assets)) - 1)]
        draw_some(0)
        for helper in helpers:
            helper.result()

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def _check_output(name: str, array: NDArray, shape: tuple[int, ...], dtype: type) -> None:
    # Compiled code writes without looking, so a wrong shape would corrupt memory.
    if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
        raise ValueError(f"{name} must be contiguous {dtype.__name__} {shape}, not {array.dtype} {array.shape}")

"""The renderer of the CPU: many cameras at once, on threads."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from navprune.errors import UserError
from navprune.machine import cores
from navprune.sensors import SENSORS
from navprune.simulator.asset import RenderAsset, load_asset
from navprune.simulator.drawing import Scratch, make_scratch, show
from navprune.simulator.images import IMAGES, Shown
from navprune.simulator.renderer import Camera


class Rasterizer:
    """Draws batches of cameras; back faces are culled, colours are unlit. Implements Renderer.

    The result does not depend on the number of threads.
    """

    device = torch.device("cpu")
    prepare = staticmethod(load_asset)

    def __init__(self, camera: Camera, threads: int | None = None) -> None:
        """threads: None for every core that this process may use. Raises UserError for a sensor it cannot draw."""
        unknown = [name for name in camera.sensors if name not in IMAGES]
        if unknown:
            raise UserError(f"the CPU draws no {unknown[0]}; it draws {', '.join(sorted(IMAGES))}")
        self.camera, self.threads = camera, threads or cores()
        self._focal = 0.5 * camera.width / np.tan(np.radians(camera.hfov) / 2)
        self._images = [(name, IMAGES[name]) for name in camera.sensors]
        self._surface = any(SENSORS[name].surface for name in camera.sensors)
        # The calling thread draws too, so that one thread needs no pool.
        self._pool = ThreadPoolExecutor(self.threads - 1) if self.threads > 1 else None
        self._rooms = [self._room() for _ in range(self.threads)]

    def _room(self) -> tuple[NDArray[np.float32], NDArray[np.int32] | None, Scratch]:
        """The working memory of one thread: closeness, triangles, scratch."""
        shape = self.camera.height, self.camera.width
        return np.empty(shape, np.float32), np.empty(shape, np.int32) if self._surface else None, make_scratch(*shape)

    def draw(self, handles: Sequence[RenderAsset], eyes: Tensor, rotations: Tensor, out: Mapping[str, Tensor]) -> None:
        """Draw as `Renderer.draw` says.

        UserError: a surface is wanted of a scene with textures that cannot be decoded.
        """
        drawn = [(draw, self._pixels(name, out, len(handles))) for name, draw in self._images]
        where, turned = _poses("eyes", eyes, (len(handles), 3)), _poses("rotations", rotations, (len(handles), 4))
        for asset in {id(asset): asset for asset in handles}.values():  # once here, not at once in every thread
            _ = (asset.cutout, asset.surface) if self._surface else asset.cutout
        cameras = iter(range(len(handles)))  # for all threads: whoever is free takes the next, since views differ

        def draw_some(thread: int) -> None:
            closeness, triangles, scratch = self._rooms[thread]
            for i in cameras:
                asset, pose = handles[i], (i, where, turned, self._focal)
                show(asset.tree, asset.cutout, asset.strokes, *pose, closeness, triangles, scratch)
                shown = Shown(self.camera, asset, *pose, closeness, triangles)
                for draw, images in drawn:
                    draw(shown, images[i])

        helpers = []
        if self._pool is not None:
            helpers = [self._pool.submit(draw_some, 1 + i) for i in range(min(self.threads, len(handles)) - 1)]
        try:
            draw_some(0)
        finally:  # whatever happens here, they write into the caller's tensors
            for helper in helpers:
                helper.result()

    def _pixels(self, name: str, out: Mapping[str, Tensor], count: int) -> NDArray:
        """The caller's tensor as an array; compiled code writes without looking, so a wrong shape is refused."""
        if name not in out:
            raise ValueError(f"out lacks {name}")
        tensor, shape = out[name], (count, *self.camera.shape(name))
        dtype = getattr(torch, SENSORS[name].dtype)
        if tensor.shape != shape or tensor.dtype != dtype or tensor.device != self.device or not tensor.is_contiguous():
            told = f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            raise ValueError(f"{name} must be contiguous {dtype} {shape} on the CPU, not {told}")
        return tensor.numpy()

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def _poses(name: str, poses: Tensor, shape: tuple[int, int]) -> NDArray[np.float64]:
    if tuple(poses.shape) != shape:
        raise ValueError(f"{name} have shape {shape}, not {tuple(poses.shape)}")
    return np.ascontiguousarray(poses.numpy(), dtype=np.float64)

"""Images as arrays: what the CPU's renderer draws of scenes."""

import numpy as np
import torch

from navprune.simulator.rasterizer import Rasterizer
from navprune.simulator.renderer import Camera

DEPTH, BOTH = ("depth",), ("depth", "rgb")


def photograph(assets, eyes, rotations, width=128, height=128, *, sensors=DEPTH, threads=1, **view):
    """Images {sensor: [N, H, W, channels]} of cameras, each in its own of the scenes, or all in the one given."""
    assets = assets if isinstance(assets, list) else [assets] * len(eyes)
    camera = Camera(width, height, sensors=sensors, **view)
    renderer, out = Rasterizer(camera, threads), camera.images(len(eyes))
    for image in out.values():
        image.fill_(77)  # what is not written shows
    renderer.draw(
        assets, torch.from_numpy(np.asarray(eyes, float)), torch.from_numpy(np.asarray(rotations, float)), out
    )
    renderer.close()
    return {name: image.numpy() for name, image in out.items()}


def depth_of(assets, eyes, rotations, width=128, height=128, **how):
    """Depth [N, H, W], in metres unless max_depth is given."""
    return photograph(assets, eyes, rotations, width, height, **how)["depth"][..., 0]

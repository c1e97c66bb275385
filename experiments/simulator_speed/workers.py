"""One process that draws a scene and tells what each image takes; started by run.py.

    workers.py (navprune | former | embree) SCENE.npz

reads lines "size first count" and answers each with a list of milliseconds of CPU time, one an image.
`former` is the package as it was before its renderer walked a tree of eight children a node.
"""

import json
import sys
import time
from collections.abc import Callable

import numpy as np

Arrays = dict[str, np.ndarray]
WARM = 2


def navprune_drawer(scene: Arrays) -> Callable[[int, int], Callable[[], object]]:
    """What prepares an image of navprune: (size, pose) -> a function that draws it."""
    import torch

    from navprune.scenes.files.mesh import SceneMesh
    from navprune.simulator.asset import RenderAsset
    from navprune.simulator.rasterizer import Rasterizer
    from navprune.simulator.renderer import Camera

    asset = RenderAsset(SceneMesh.from_vertices(scene["vertices"]))
    eyes, rotations = torch.from_numpy(scene["eyes"]), torch.from_numpy(scene["rotations"])
    renderers: dict[int, Rasterizer] = {}

    def prepare(size: int, pose: int) -> Callable[[], object]:
        camera = Camera(size, size, sensors=("depth",))
        renderer = renderers.setdefault(size, Rasterizer(camera, threads=1))
        out, one = camera.images(1), slice(pose, pose + 1)
        return lambda: renderer.draw([asset], eyes[one], rotations[one], out)

    return prepare


def former_drawer(scene: Arrays) -> Callable[[int, int], Callable[[], object]]:
    """The same of the former package, which has other names."""
    from navprune.scenes.files.mesh import SceneMesh
    from navprune.simulator import rasterizer
    from navprune.simulator.asset import RenderAsset

    asset, former = RenderAsset(SceneMesh.from_vertices(scene["vertices"])), vars(rasterizer)["Renderer"]
    eyes, rotations, renderers = scene["eyes"], scene["rotations"], {}

    def prepare(size: int, pose: int) -> Callable[[], object]:
        renderer = renderers.setdefault(size, former(size, size, threads=1))
        out, one = np.empty((1, size, size), np.float32), slice(pose, pose + 1)
        return lambda: renderer.render([asset], eyes[one], rotations[one], out)

    return prepare


def embree_drawer(scene: Arrays) -> Callable[[int, int], Callable[[], object]]:
    """The same of Embree, by embreex: one ray a pixel; rays are made before the time is taken."""
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene

    embree, eyes, rotations = EmbreeScene(), scene["eyes"], scene["rotations"]
    TriangleMesh(embree, scene["vertices"])

    def prepare(size: int, pose: int) -> Callable[[], object]:
        _, y, _, w = rotations[pose]  # about the vertical axis
        sine, cosine = 2 * y * w, 1 - 2 * y * y
        across, down = np.meshgrid(*[(np.arange(size) + 0.5) / (size / 2) - 1] * 2)
        rays = np.stack([across * cosine - sine, -down, -across * sine - cosine], axis=-1).reshape(-1, 3)
        directions = np.ascontiguousarray(rays, np.float32)
        origins = np.ascontiguousarray(np.broadcast_to(eyes[pose], rays.shape), np.float32)
        return lambda: embree.run(origins, directions, query="DISTANCE")

    return prepare


def main() -> None:
    """Answer lines until there are no more."""
    drawers = {"navprune": navprune_drawer, "former": former_drawer, "embree": embree_drawer}
    with np.load(sys.argv[2]) as scene:
        arrays = {name: scene[name] for name in scene.files}
    prepare = drawers[sys.argv[1]](arrays)
    for pose in range(WARM):
        prepare(64, pose)()
    print("ready", flush=True)
    for line in sys.stdin:
        size, first, count = map(int, line.split())
        taken = []
        for pose in range(first, first + count):
            draw = prepare(size, pose)
            begin = time.thread_time()
            draw()
            taken.append(1000 * (time.thread_time() - begin))
        print(json.dumps(taken), flush=True)


if __name__ == "__main__":
    main()

"""What habitat-sim shows of small scenes, each with one peculiarity of glTF or of drawing, and what this package shows.

tests/data/probes/README.md says what they are.
"""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from cameras import BOTH, photograph

from navprune.scenes.files.mesh import load_glb
from navprune.scenes.files.navmesh import NavMeshSettings, read_navmesh
from navprune.scenes.recast.build import build_from
from navprune.simulator.asset import RenderAsset

PROBES = Path(__file__).parents[2] / "data/probes/probes.tar.xz"
EYE, AHEAD = np.array([[0.0, 1.2, 2.2]]), np.array([[0.0, 0.0, 0.0, 1.0]])
SHARES = 0.999, 0.995  # of depths within 2 mm and of colours within 2 of 255
FEWER = {  # what the renderer does otherwise, in the shares that it reaches
    "geo_big_triangle_behind": (0.81, 0.995),  # a triangle of a kilometre, whose rounding shows
    "geo_far_plane": (
        0.95,
        0.995,
    ),  # at 302 m a step of a 24-bit depth buffer is half a metre
}


@pytest.fixture(scope="module")
def probes(tmp_path_factory):
    """The folder with the scenes, and depth and colours by name."""
    folder = tmp_path_factory.mktemp("probes")
    with tarfile.open(PROBES) as archive:
        archive.extractall(folder, filter="data")
    return folder, np.load(folder / "depth.npy"), np.load(folder / "rgb.npy")


@pytest.mark.parametrize("number", range(109))
def test_a_probe_looks_as_in_habitat_sim(probes, number):
    folder, depths, colours = probes
    path = sorted(folder.glob("*.glb"))[number]
    images = photograph(RenderAsset(load_glb(path)), EYE, AHEAD, 160, 128, sensors=BOTH)
    right_depth = np.mean(np.abs(images["depth"][0, ..., 0] - depths[number]) <= 2e-3)
    right_colour = np.mean(np.abs(images["rgb"][0].astype(int) - colours[number]).max(axis=-1) <= 2)
    enough = FEWER.get(path.stem, SHARES)
    assert right_depth >= enough[0] and right_colour >= enough[1], f"{path.stem}: {right_depth:.4f} {right_colour:.4f}"


def test_a_probe_is_walked_on_as_in_habitat_sim(probes):
    recorded = sorted(probes[0].glob("*.navmesh"))
    assert len(recorded) == 11
    for path in recorded:
        expected = read_navmesh(path).tiles[0]
        built = build_from(path.with_suffix(".glb"), NavMeshSettings())[0].tiles[0]
        np.testing.assert_allclose(built.vertices, expected.vertices, atol=1e-4, err_msg=path.stem)

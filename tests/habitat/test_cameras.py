"""habitat-lab's cameras draw through the same seam as all others."""

import pytest
import torch

from navprune.errors import UserError
from navprune.sensors import SENSORS, Sensor
from navprune.tasks.config import TaskConfig

pytest.importorskip("quaternion", reason="habitat-lab, which brings numpy-quaternion, is not installed")

from navprune.habitat import EmbeddedSimulator, lab_config


def test_cameras_draw_by_what_they_are_given(make_lab, monkeypatch):
    drawn, closed = [], []

    class Constant:
        device, prepare = torch.device("cpu"), staticmethod(lambda path, alpha_masks=False: path.stem)

        def __init__(self, camera):
            drawn.append(camera)

        def draw(self, handles, eyes, rotations, out):
            assert eyes.shape == (1, 3) and rotations.shape == (1, 4) and handles[0] in ("apartment", "duplex")
            out["depth"].fill_(2.5), out["rgb"].fill_(7)

        def close(self):
            closed.append(self)

    monkeypatch.setattr(EmbeddedSimulator, "make_renderer", Constant)
    task = TaskConfig(width=64, height=64, sensors=("depth", "rgb"), min_depth=0.5, max_depth=4.5)
    lab = make_lab(task)
    seen = lab.reset()
    lab.close()
    assert len(closed) == 1
    assert [(camera.width, camera.sensors, camera.max_depth) for camera in drawn] == [(64, ("rgb", "depth"), None)]
    assert seen["depth"].shape == (64, 64, 1) and (seen["depth"] == 0.5).all() and (seen["rgb"] == 7).all()


def test_a_sensor_that_habitat_lab_lacks_is_refused(reference, monkeypatch):
    monkeypatch.setitem(SENSORS, "nearness", Sensor("nearness", 1, "float32", 0, 1, surface=False))
    with pytest.raises(UserError, match="habitat-lab has no sensor nearness; use env=embedded"):
        lab_config(TaskConfig(sensors=("nearness",)), reference, "val")

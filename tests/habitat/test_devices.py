"""What habitat-sim says when it cannot draw becomes advice; messages as users met them in its issues."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from navprune.commands.environments import training_env
from navprune.config import load_config
from navprune.errors import UserError
from navprune.rl.group import Group

pytest.importorskip("quaternion", reason="habitat-lab, which brings numpy-quaternion, is not installed")

from navprune.habitat import devices
from navprune.habitat.placeholders import is_installed
from navprune.habitat.vector import HabitatEnv

REFERENCE = Path(__file__).parents[1] / "data" / "reference"
NO_EGL_DEVICE = """\
PluginManager::Manager: duplicate static plugin GltfImporter, ignoring
Platform::WindowlessEglApplication::tryCreateContext(): unable to find CUDA device 0 among 2 EGL devices in total
WindowlessContext: Unable to create windowless context
"""


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        (NO_EGL_DEVICE, "gpu=-1"),
        (
            "Platform::WindowlessEglApplication::tryCreateContext(): unable to find EGL device for CUDA device 4\n",
            "NVIDIA_DRIVER_CAPABILITIES",
        ),
        (
            "Platform::WindowlessEglApplication::tryCreateContext(): cannot initialize EGL: EGL_NOT_INITIALIZED\n"
            "WindowlessContext: Unable to create windowless context\n",
            "libegl1",
        ),
        ("GL::Context: cannot retrieve OpenGL version: GL::Renderer::Error::InvalidValue\n", "conda's"),
        ("DISPLAY not detected. For headless systems, compile with --headless for EGL support\n", "headless build"),
        (
            "GLX context does not support multiple GPUs. Please compile with --headless for multi-gpu support via EGL",
            "headless build",
        ),
        ("Platform::WindowlessGlxApplication::tryCreateContext(): cannot open default X display\n", "headless build"),
        ("ImportError: libEGL.so.1: cannot open shared object file: No such file or directory", "libegl1"),
        ("ImportError: libstdc++.so.6: version `GLIBCXX_3.4.32' not found (required by _magnum.so)", "libstdcxx-ng"),
        ("CUDA driver version is insufficient for CUDA runtime version", "nvidia-smi"),
    ],
)
def test_failures_of_graphics_become_one_line_of_advice(said, remedy):
    told = devices.advice(said)
    assert remedy in told and "simulator=embedded" in told
    assert "\n" not in told and "duplicate static plugin" not in told


def test_other_words_are_no_failure_of_graphics():
    assert devices.advice("2025-08-10 10:21:12,603 initializing sim Sim-v0\nValueError: no such scene\n") is None


def test_environments_share_the_visible_gpus_and_do_without(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [devices.gpu_of(env) for env in range(4)] == [0, 1, 0, 1]
    assert [devices.gpu_of(env, wanted=1) for env in range(2)] == [1, 1]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert devices.gpu_of(3) == devices.NO_CUDA


@pytest.mark.parametrize("size", [1, 2, 3])
def test_environments_of_several_workers_share_them_as_those_of_one(monkeypatch, size):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    settings = [f"data.folder={REFERENCE}", "data.name=reference", "data.train=val", "env=habitat", "environments=6"]
    config, gpus = load_config("pointnav", settings), []
    for rank in range(size):
        group = Group()
        group.rank, group.size = rank, size
        env = training_env(config, group)
        assert isinstance(env, HabitatEnv)
        gpus += [lab.habitat.simulator.habitat_sim_v0.gpu_device_id for lab in env._configs]
        env.close()
    assert gpus == [0, 1, 2, 3, 0, 1]


@pytest.mark.skipif(is_installed("habitat_sim"), reason="habitat-sim is installed")
def test_a_missing_habitat_sim_says_what_to_install():
    with pytest.raises(UserError, match=r"Python 3\.9.*simulator=embedded") as error:
        devices.check_habitat_sim()
    assert "\n" not in str(error.value)


def test_a_habitat_sim_that_does_not_load_says_why(tmp_path, monkeypatch):
    words = "libOpenGL.so.0: cannot open shared object file: No such file or directory"
    (tmp_path / "habitat_sim.py").write_text(f"raise ImportError({words!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "habitat_sim", raising=False)
    with pytest.raises(UserError, match="libopengl0"):
        devices.check_habitat_sim()


FAKE = """
import os
import sys


class Anything(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Fake


class Fake(metaclass=Anything):
    def __init__(self, *args, **kwargs):
        pass

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Fake


class Simulator(Fake):
    def __init__(self, *args, **kwargs):
        {end}


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Fake


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        from importlib.machinery import ModuleSpec

        return ModuleSpec(name, Finder, is_package=True) if name.startswith(__name__ + ".") else None

    @staticmethod
    def create_module(spec):
        return None

    @staticmethod
    def exec_module(module):
        module.__getattr__ = __getattr__


sys.meta_path.append(Finder)
"""
SCRIPT = """
from navprune.config import DataConfig
from navprune.errors import UserError
from navprune.scenes.files.episodes import read_episodes
from navprune.tasks.pointnav import Once, TaskConfig

if __name__ == "__main__":
    from navprune.habitat.vector import HabitatEnv

    data = DataConfig(folder={folder!r}, name="reference")
    episodes = read_episodes(data.folder, "reference", "val")
    try:
        env = HabitatEnv(episodes, data, "val", Once(len(episodes)), 1, TaskConfig(), simulator="habitat_sim")
        env.reset()
    except UserError as error:
        print(error)
"""


def run_fake(folder, end, data=REFERENCE):
    """What a script prints whose habitat-sim ends as it is told where a simulator is made."""
    for name in ("habitat_sim", "magnum"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(FAKE.replace("{end}", end))
    (folder / "script.py").write_text(SCRIPT.format(folder=str(data)))
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(folder / "script.py")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr and done.stdout.count("\n") == 1, done.stderr
    return done.stdout


def test_a_simulator_that_ends_its_process_is_explained(tmp_path):
    said = run_fake(tmp_path, f"os.write(2, {NO_EGL_DEVICE.encode()!r}), os._exit(1)")
    assert said.startswith("worker 0 (scene apartment, episode 0): Platform::Windowless") and "gpu=-1" in said


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (
            "raise RuntimeError('Could not load scene:\\nfile too short')",
            "cannot open it: Could not load scene: file too",
        ),
        ("raise AssertionError('no scene')", "cannot open it: no scene"),
        (f"raise RuntimeError({NO_EGL_DEVICE!r})", "gpu=-1"),
    ],
)
def test_a_scene_that_habitat_sim_cannot_open_is_one_line(tmp_path, end, words):
    said = run_fake(tmp_path, end)
    assert said.startswith("worker 0 (scene apartment, episode 0): ") and words in said


def test_a_scene_that_is_cut_off_is_told_before_habitat_sim_meets_it(tmp_path):
    data = tmp_path / "data"
    shutil.copytree(REFERENCE, data, ignore=shutil.ignore_patterns("expected", "policy"))
    scene = data / "scene_datasets" / "reference" / "duplex.glb"
    scene.write_bytes(scene.read_bytes()[:-1000])
    assert f"{scene}: glTF file is damaged or cut off" in run_fake(tmp_path, "os.abort()", data)

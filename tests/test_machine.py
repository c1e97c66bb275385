import mmap
import os
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from navprune import machine
from navprune.cli import main
from navprune.commands.environments import environment, split_episodes
from navprune.config import load_config
from navprune.simulator.rasterizer import Rasterizer
from navprune.simulator.renderer import Camera
from navprune.simulator.scene import SceneLibrary
from navprune.tasks.pointnav import Once, PointNavEnv

GIB = 2**30
REFERENCE = Path(__file__).parent / "data" / "reference"


@pytest.fixture
def container(tmp_path, monkeypatch):
    """Puts files where the kernel shows its own: {path below /sys/fs/cgroup: text}, and this process's groups."""
    monkeypatch.setattr(machine, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine, "PROCESS", tmp_path / "process")
    monkeypatch.setattr(machine, "_bound", lambda: 64)

    def put(groups, files):
        (tmp_path / "process").mkdir()
        (tmp_path / "process" / "cgroup").write_text(groups)
        for name, text in files.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")

    return put


FIRST = "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n0::/docker/x\n"


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "200000 100000"}, 2),
        ("0::/\n", {"cpu.max": "250000 100000"}, 3),
        ("0::/\n", {"cpu.max": "1000 100000"}, 1),
        ("0::/\n", {"cpu.max": "max 100000"}, 64),
        ("0::/a/b\n", {"cpu.max": "max 100000", "a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        (FIRST, {"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        (FIRST, {"cpu/docker/x/cpu.cfs_quota_us": "50000", "cpu/docker/x/cpu.cfs_period_us": "50000"}, 1),
        (FIRST, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ("", {}, 64),
    ],
)
def test_cores_are_what_the_container_grants(container, groups, files, cores):
    container(groups, files)
    assert machine.cores() == cores


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/\n", {"memory.max": 1 << 28}, 1 << 28),
        ("0::/a/b\n", {"a/memory.max": 1 << 28, "a/b/memory.max": "max"}, 1 << 28),
        (FIRST, {"memory/memory.limit_in_bytes": 1 << 27}, 1 << 27),
        ("0::/\n", {"memory.max": "max"}, None),
        (FIRST, {"memory/memory.limit_in_bytes": 9223372036854771712}, None),
        ("", {}, None),
    ],
)
def test_memory_is_what_the_container_grants(container, groups, files, limit):
    container(groups, files)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine.memory() == (physical if limit is None else limit)
    assert SceneLibrary()._limit == machine.memory() / 4


def test_numerical_libraries_heed_a_quota_unless_told_otherwise(container, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    machine.heed_quota()
    assert "OMP_NUM_THREADS" not in os.environ
    container("0::/\n", {"cpu.max": "200000 100000"})
    machine.heed_quota()
    assert os.environ.pop("OMP_NUM_THREADS") == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    machine.heed_quota()
    assert os.environ["OMP_NUM_THREADS"] == "7"


@pytest.fixture
def mac(tmp_path, monkeypatch):
    """What Linux has and macOS lacks is gone."""
    monkeypatch.delattr(os, "sched_getaffinity")
    for name in ("GROUPS", "PROCESS"):
        monkeypatch.setattr(machine, name, tmp_path / "nowhere")
    monkeypatch.setattr(sys, "platform", "darwin")


def test_a_mac_draws(mac):
    camera = Camera(4, 3)
    renderer = Rasterizer(camera)
    assert renderer.threads == machine.cores() == os.cpu_count()
    renderer.draw([], torch.empty(0, 3), torch.empty(0, 4), camera.images(0))
    renderer.close()


def test_a_mac_is_examined(mac, capsys, tmp_path):
    assert main(["doctor", "--data", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"cores                    {os.cpu_count()}\n" in said and f"{machine.memory() / GIB:.1f} GiB" in said


def test_peak_memory_comes_in_bytes_on_a_mac_and_in_kibibytes_elsewhere(mac, monkeypatch):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak <= machine.resident() < 2 * peak
    monkeypatch.setattr(sys, "platform", "linux")
    assert 1024 * peak <= machine.resident() < 2048 * peak


def test_resident_memory_is_that_of_now():
    before = machine.resident()
    with mmap.mmap(-1, 1 << 27, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:  # pages that nobody used before
        for place in range(0, len(block), mmap.PAGESIZE):
            block[place] = 1
        assert 0.9 * len(block) < machine.resident() - before < 1.5 * len(block)
    assert machine.resident() - before < 1 << 26


def test_the_memory_of_scenes_is_a_setting():
    settings = [f"data.folder={REFERENCE}", "data.name=reference", "task.width=8", "task.height=8"]
    for memory, limit in (("0.5", GIB / 2), ("null", machine.memory() / 4)):
        config = load_config("pointnav", [*settings, f"data.scene_memory={memory}"])
        episodes = split_episodes(config, "val")
        env = environment(config, "val", episodes, Once(len(episodes)), 1)
        assert isinstance(env, PointNavEnv) and env._library._limit == limit
        env.close()


def test_why_torch_cannot_compile_is_told(monkeypatch):
    assert machine.compile_fault() is None or ";" in machine.compile_fault()
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "needs a C++ compiler; install one" in machine.compile_fault()
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    for folder, fine in (("/Ünï_a=b", True), ("/my code (v2)", False), ("/a b", False)):
        spec = SimpleNamespace(origin=f"{folder}/torch/__init__.py")
        monkeypatch.setattr("importlib.util.find_spec", lambda name, spec=spec: spec)
        assert (machine.compile_fault() is None) == fine

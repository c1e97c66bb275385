"""Where a navmesh was made for another body, one is built for the agent's, once; what was published stays."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from navprune.errors import UserError
from navprune.scenes.files.navmesh import NavMeshSettings, read_navmesh, write_navmesh
from navprune.scenes.recast import bodies
from navprune.scenes.recast.bodies import Body, navmesh_for
from navprune.scenes.recast.build import build_for
from navprune.simulator.pathfinder import PathFinder

SCENES = Path(__file__).parents[2] / "data" / "reference" / "scene_datasets" / "reference"
LOCOBOT = Body(0.18, 0.88)


@pytest.fixture
def glb(tmp_path, monkeypatch):
    """A scene of one room, with a navmesh for Habitat's body; the user's cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bodies.say_once.cache_clear()
    (tmp_path / "scenes").mkdir()
    for suffix in (".glb", ".navmesh"):
        shutil.copy(SCENES / f"duplex{suffix}", tmp_path / "scenes" / f"room{suffix}")
    return tmp_path / "scenes" / "room.glb"


@pytest.fixture
def builds(monkeypatch):
    """The bodies that navmeshes were built for."""
    built, build = [], bodies.build_from

    def noted(glb, settings):
        built.append(Body(settings.agent_radius, settings.agent_height))
        return build(glb, settings)

    monkeypatch.setattr(bodies, "build_from", noted)
    return built


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("version", [1, 2])
def test_the_published_navmesh_serves_the_body_it_was_made_for(glb, builds, version):
    path = glb.with_suffix(".navmesh")
    if version == 1:  # without settings, which then are Habitat's
        data = path.read_bytes()
        path.write_bytes(data[:4] + (1).to_bytes(4, "little") + data[8:40] + data[96:])
    navmesh = navmesh_for(glb, Body())
    assert PathFinder(navmesh).navigable_area == PathFinder(read_navmesh(path)).navigable_area
    assert not builds and files(glb.parent) == ["room.glb", "room.navmesh"]


@pytest.mark.parametrize("body", [LOCOBOT, Body(0.25, 1.5), Body(0.1, 0.5)])
def test_another_body_has_a_navmesh_of_its_own_built_once(glb, builds, body, tmp_path):
    published = glb.with_suffix(".navmesh").read_bytes()
    first, second = navmesh_for(glb, body), navmesh_for(glb, body)
    assert builds == [body]
    assert glb.with_suffix(".navmesh").read_bytes() == published
    name = f"room.r{body.radius:g}_h{body.height:g}.navmesh"
    assert files(glb.parent) == sorted(["room.glb", "room.navmesh", name])
    out = tmp_path / "by_hand.navmesh"
    build_for(glb, out, NavMeshSettings(agent_radius=body.radius, agent_height=body.height))
    assert out.read_bytes() == (glb.parent / name).read_bytes()
    areas = [PathFinder(navmesh).navigable_area for navmesh in (first, second, read_navmesh(out))]
    assert areas[0] == areas[1] == areas[2]
    if body.radius > 0.1:
        assert areas[0] < PathFinder(read_navmesh(glb.with_suffix(".navmesh"))).navigable_area


def test_a_navmesh_that_was_published_for_the_body_is_taken(glb, builds):
    build_for(glb, settings=NavMeshSettings(agent_radius=0.18, agent_height=0.88), overwrite=True)
    navmesh_for(glb, LOCOBOT)
    assert not builds
    navmesh_for(glb, Body())
    assert builds == [Body()]


@pytest.mark.parametrize("fault", ["cut off", "older than the scene", "for another body"])
def test_a_kept_navmesh_that_is_no_good_is_built_anew(glb, builds, fault):
    navmesh_for(glb, LOCOBOT)
    kept = glb.with_name("room.r0.18_h0.88.navmesh")
    whole = kept.read_bytes()
    if fault == "cut off":
        kept.write_bytes(whole[:-100])
    elif fault == "for another body":
        shutil.copy(glb.with_suffix(".navmesh"), kept)
    else:
        os.utime(kept, (1e9, 1e9))
    navmesh_for(glb, LOCOBOT)
    assert builds == [LOCOBOT] * 2 and kept.read_bytes() == whole


@pytest.mark.parametrize("hours", [-24, 24, 10_000])
@pytest.mark.parametrize("beside", [True, False])
def test_a_scene_of_any_time_has_its_navmesh_built_once_for_each_change(glb, builds, monkeypatch, hours, beside):
    """Its time may lie ahead of the clock, as after unpacking an archive from another machine."""
    if not beside:
        refuse(monkeypatch, glb.parent)
    changed = time.time() + 3600 * hours
    os.utime(glb, (changed, changed))
    for _ in range(3):
        navmesh_for(glb, LOCOBOT)
    assert builds == [LOCOBOT]
    os.utime(glb, (changed - 60, changed - 60))
    navmesh_for(glb, LOCOBOT), navmesh_for(glb, LOCOBOT)
    assert builds == [LOCOBOT] * 2


def refuse(monkeypatch, *folders):
    """Lets nothing be written below these folders, whoever runs the tests."""

    def write(path, navmesh):
        if any(folder in path.parents for folder in folders):
            raise UserError(f"cannot write {path}: Read-only file system")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_navmesh(path, navmesh)

    monkeypatch.setattr(bodies, "write_navmesh", write)


def test_beside_scenes_that_cannot_be_written_the_users_cache_serves(glb, builds, monkeypatch, tmp_path):
    refuse(monkeypatch, glb.parent)
    navmesh_for(glb, LOCOBOT), navmesh_for(glb, LOCOBOT)
    assert builds == [LOCOBOT] and files(glb.parent) == ["room.glb", "room.navmesh"]
    (kept,) = (tmp_path / "cache").rglob("*.navmesh")
    assert kept.name.endswith("room.r0.18_h0.88.navmesh")


def test_where_nothing_can_be_kept_it_is_said_once(glb, monkeypatch, tmp_path, capsys):
    refuse(monkeypatch, tmp_path)
    for body in (LOCOBOT, Body(0.2, 1.0)):
        assert body.fits(navmesh_for(glb, body))
    said = capsys.readouterr().err
    assert said.count("cannot be kept") == 1 and said.count("building the navmesh") == 2


@pytest.mark.parametrize("suffix", [".glb", ".navmesh"])
def test_scenes_that_are_missing_or_have_no_room_are_refused(glb, suffix):
    with pytest.raises(UserError, match=r"room\.glb: no floor .* 5 m radius"):
        navmesh_for(glb, Body(5.0, 1.5))
    glb.with_suffix(suffix).unlink()
    with pytest.raises(UserError, match=rf"room\{suffix}"):
        navmesh_for(glb, LOCOBOT)


def test_two_processes_may_build_the_same(glb):
    script = (
        "import sys; from pathlib import Path; from navprune.scenes.recast.bodies import Body, navmesh_for\n"
        "print(len(navmesh_for(Path(sys.argv[1]), Body(0.18, 0.88)).tiles[0].polygons))"
    )
    command = [sys.executable, "-c", script, str(glb)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=120)[0] for process in both]
    assert answers[0] == answers[1] and [process.returncode for process in both] == [0, 0]
    assert files(glb.parent) == ["room.glb", "room.navmesh", "room.r0.18_h0.88.navmesh"]


@pytest.mark.parametrize(("body", "area"), [(Body(), 76.6), (LOCOBOT, 61.2)])
def test_areas_are_habitat_sims(glb, body, area):
    """habitat-sim's of the apartment, for its default body and for that of Gibson's version 2."""
    for suffix in (".glb", ".navmesh"):
        shutil.copy(SCENES / f"apartment{suffix}", glb.with_suffix(suffix))
    assert PathFinder(navmesh_for(glb, body)).navigable_area == pytest.approx(area, abs=0.05)


def test_distances_are_those_of_the_body(glb):
    """A wider body goes round corners in wider turns: no way is shorter, and some are longer."""
    finders = [PathFinder(navmesh_for(glb, body)) for body in (Body(), Body(0.3, 1.5))]
    points = finders[1].sample(200, np.random.default_rng(0))
    thin, wide = (finder.geodesic_distance(points[:100], points[100:]) for finder in finders)
    both = np.isfinite(thin) & np.isfinite(wide)
    assert both.sum() > 50 and (wide[both] - thin[both] > -0.05).all() and np.mean(wide[both] - thin[both]) > 0.01

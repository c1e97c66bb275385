"""habitat-lab imports without habitat-sim, and nobody is led to believe that habitat-sim is there."""

import importlib
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from navprune import installing
from navprune.errors import UserError

pytest.importorskip("quaternion", reason="habitat-lab, which brings numpy-quaternion, is not installed")

from navprune.habitat import placeholders

CODE = """
import typing, dataclasses
import magnum as mn
import habitat_sim.utils.common as common
from habitat_sim.physics import MotionType, VelocityControl
import corrade as cr

MANAGER = mn.trade.ImporterManager()
IDENTITY: typing.Optional[mn.Matrix4] = mn.Matrix4.identity()

class Derived(habitat_sim.Simulator if False else common.Base, dict):
    kinds: typing.Dict[str, typing.Union[MotionType, mn.Vector3]] = {}

@common.decorator
def decorated(a: mn.Vector3 = mn.Vector3(0, 0, 0)) -> "mn.Vector3":
    return a

@dataclasses.dataclass
class Record:
    at: mn.Vector3 = mn.Vector3.zero()

def use():
    return mn.Vector3(1, 2, 3)

def use_imported():
    return VelocityControl()
"""


@pytest.fixture
def absent():
    if any(placeholders.is_installed(root) for root in placeholders.ROOTS):
        pytest.skip("habitat-sim is installed")


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module where imports find it, and forgets it afterwards."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, code=""):
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
        monkeypatch.setitem(sys.modules, name, None)  # so that its import is undone
        monkeypatch.delitem(sys.modules, name)
        importlib.invalidate_caches()
        return path

    return write


def test_modules_that_name_habitat_sim_import_and_fail_when_they_use_it(absent, module):
    module("uses_habitat_sim", CODE)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("uses_habitat_sim")
    with placeholders.placeholders():
        uses = importlib.import_module("uses_habitat_sim")
    assert uses.Derived.__mro__[1:] == (dict, object)
    assert not uses.MotionType, "code that asks `if profiling_utils:` must see that it is absent"
    for use, name in ((uses.use, "magnum.Vector3"), (uses.use_imported, "habitat_sim.physics.VelocityControl")):
        with pytest.raises(UserError, match=f"habitat-sim is not installed.*{name}.*simulator=embedded"):
            use()


def test_habitat_sim_is_still_absent_for_everyone_else(absent):
    importlib.import_module("navprune.habitat")
    for root in placeholders.ROOTS:
        assert find_spec(root) is None
        assert not placeholders.is_installed(root)
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(root)


def test_an_error_inside_leaves_nothing_behind(absent):
    with pytest.raises(RuntimeError), placeholders.placeholders():
        import habitat_sim.nav

        assert isinstance(habitat_sim.nav, placeholders.Placeholder)
        raise RuntimeError
    assert find_spec("habitat_sim") is None


def test_real_modules_are_never_replaced(absent, module):
    path = module("habitat_sim.__init__", "VERSION = 'real'\n")
    module("habitat_sim.nav", "NAME = 'real'\n")
    module("habitat_sim")
    assert placeholders.is_installed("habitat_sim")
    with placeholders.placeholders():
        import habitat_sim
        import habitat_sim.nav
        import magnum

        with pytest.raises(ModuleNotFoundError):
            import habitat_sim.missing
        with pytest.raises(AttributeError):
            _ = habitat_sim.missing
    assert habitat_sim.__file__ == str(path) and habitat_sim.nav.NAME == "real"
    assert isinstance(magnum, placeholders.Placeholder)
    assert sys.modules["habitat_sim"] is habitat_sim and "magnum" not in sys.modules


def test_the_placeholders_of_an_import_are_not_installed_modules(absent):
    with placeholders.placeholders():
        import habitat_sim  # noqa: F401

        assert not placeholders.is_installed("habitat_sim")


def import_after(code):
    """What `import navprune.habitat` says last in a process that has run some code."""
    command = [sys.executable, "-c", f"{code}\nimport navprune.habitat"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return run.stderr.strip().splitlines()[-1]


def test_without_habitat_lab_one_line_says_how_to_install_it():
    said = import_after("import sys; sys.modules['habitat'] = None")
    assert said == f"navprune.errors.UserError: habitat-lab is not installed; {installing.HABITAT_LAB}"


def test_an_opencv_that_does_not_load_gives_the_way_out():
    said = import_after("import sys; sys.modules['cv2'] = None")
    assert said.startswith("navprune.errors.UserError: habitat-lab needs OpenCV, which does not load")
    assert said.endswith(installing.OPENCV)


OPENCV_5 = """
import cv2, numpy
cv2.__version__ = "5.0.0"
cv2.applyColorMap = lambda values, colours: numpy.zeros((len(values), 3), numpy.uint8)
"""


def test_an_opencv_that_is_too_new_gives_the_way_out():
    said = import_after(OPENCV_5)
    assert said.startswith("navprune.errors.UserError: habitat-lab does not work with OpenCV 5.0.0")
    assert said.endswith(installing.OPENCV)


def test_the_documents_install_what_the_errors_advise():
    root = Path(__file__).parents[2]
    habitat, project = (root / "docs" / "habitat.md").read_text(), (root / "pyproject.toml").read_text()
    assert installing.OPENCV in habitat and "pip install '.[habitat]'" in habitat
    bound = installing.OPENCV.partition("opencv-python-headless")[2].rstrip("'")
    wanted = tomllib.loads(project)["project"]["optional-dependencies"]["habitat"]
    for package in ("opencv-python", "opencv-python-headless"):
        assert [bound in one for one in wanted if re.match(rf"{package}[<>=]", one)] == [True]

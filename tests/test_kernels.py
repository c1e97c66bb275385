import os
import subprocess
import sys
from pathlib import Path

import numba
import pytest
from numba.core import event
from numba.core.caching import CacheImpl, UserProvidedCacheLocator

import navprune
from navprune import kernels
from navprune.commands import doctor

PACKAGE = Path(navprune.__file__).parent


@pytest.fixture
def read_only(monkeypatch, tmp_path):
    """Neither the package nor the home can be written, as numba sees it."""
    monkeypatch.setattr(CacheImpl, "_locator_classes", [UserProvidedCacheLocator])
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setattr(kernels.tempfile, "gettempdir", lambda: str(tmp_path))
    for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    return tmp_path


def test_kernels_are_kept_among_temporary_files_where_nothing_else_can_be_written(read_only, capfd):
    with pytest.raises(RuntimeError, match="cannot cache"):
        kernels.njit(cache=True)(lambda: 0)
    folder = kernels.settle_cache()
    assert folder.parent == read_only and folder.stat().st_mode & 0o777 == 0o700
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("navprune: ") and str(folder) in line
    assert os.environ["NUMBA_CACHE_DIR"].startswith(str(folder))  # which processes to come inherit
    assert kernels.settle_cache() is None and not capfd.readouterr().err


def test_the_same_folder_is_found_again_but_not_somebody_elses(read_only, monkeypatch):
    mine = kernels._temporary()
    assert kernels._temporary() == mine
    mine.chmod(0o777)
    assert kernels._temporary() != mine
    mine.rmdir()
    mine.symlink_to(read_only)
    assert kernels._temporary() != mine


def test_doctor_tells_where_kernels_go(tmp_path, monkeypatch):
    def finding():
        return next(one for one in doctor.examine(tmp_path) if one.name == "compiled kernels")

    monkeypatch.setattr(kernels, "FALLBACK", None)
    assert finding().ok
    monkeypatch.setattr(kernels, "FALLBACK", tmp_path)
    assert not finding().ok and str(tmp_path) in finding().found and "NUMBA_CACHE_DIR" in finding().advice


def test_a_writable_place_is_left_alone(capfd):
    assert kernels.settle_cache() is None and not capfd.readouterr().err


def test_kernels_are_compiled_by_that_compiler_alone():
    files = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if "import numba" in path.read_text()}
    files |= {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if "from numba" in path.read_text()}
    assert files == {"kernels.py", "simulator/lanes.py"}


def test_a_change_in_a_kernel_that_is_called_compiles_its_callers_anew(tmp_path):
    (tmp_path / "callee.py").write_text("from navprune.kernels import njit\n@njit(cache=True)\ndef f(): return 1\n")
    (tmp_path / "caller.py").write_text(
        "from navprune.kernels import njit\nfrom callee import f\n@njit(cache=True)\ndef g(): return f()\nprint(g())"
    )

    def run():
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{PACKAGE.parent}"}
        return subprocess.run([sys.executable, tmp_path / "caller.py"], env=environment, capture_output=True, text=True)

    assert run().stdout == "1\n"
    (tmp_path / "callee.py").write_text("from navprune.kernels import njit\n@njit(cache=True)\ndef f(): return 10\n")
    assert run().stdout == "10\n"
    for index in tmp_path.rglob("*.nbi"):
        index.write_bytes(index.read_bytes()[:-30])  # cut off, or of names that are no more: unpickling fails
    assert run().stdout == "10\n"


def test_help_needs_no_compiler():
    program = "import sys, navprune.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: print('numba' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.endswith("False\n")


def test_whoever_waits_for_kernels_is_told_why_once(capsys):
    with event.install_listener("numba:compile", kernels.SayCompiling()):
        for number in range(2):
            assert numba.njit(lambda number=number: number)() == number
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("navprune: compiling kernels, once")

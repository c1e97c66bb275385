import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
COMPILED = {"njit", "entry", "inner"}  # detour.py names two kinds of njit


def kernel_files():
    """The files of `disallow_untyped_defs = false`."""
    left_out = [each for each in PROJECT["tool"]["mypy"]["overrides"] if each.get("disallow_untyped_defs") is False]
    return [ROOT / f"{name.replace('.', '/')}.py" for each in left_out for name in each["module"]]


@pytest.mark.parametrize("path", kernel_files(), ids=lambda path: path.stem)
def test_only_kernels_go_without_annotations(path):
    functions = [each for each in ast.walk(ast.parse(path.read_text())) if isinstance(each, ast.FunctionDef)]
    bare = [each for each in functions if each.returns is None and each.name != "__init__"]
    assert bare and [each.name for each in bare if not COMPILED & {*map(decorator, each.decorator_list)}] == []


def decorator(node):
    return ast.unparse(node.func if isinstance(node, ast.Call) else node)


def test_mypy_checks_package_and_tests():
    mypy = PROJECT["tool"]["mypy"]
    assert {"navprune", "tests"} <= set(mypy["files"]) and mypy["check_untyped_defs"]

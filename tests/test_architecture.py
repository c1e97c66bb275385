"""What the package's shape promises: data flows downwards."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import navprune

PACKAGE = Path(navprune.__file__).parent
ORDER = (
    "scenes",
    "images",
    "simulator",
    "tasks",
    "habitat",
    "models",
    "costs",
    "rl",
    "pruning",
    "evaluation",
    "comparisons",
    "reports",
    "config",
    "source",
    "commands",
    "cli",
)
"""As docs/architecture.md lists them."""
EXCEPTIONS = {
    ("scenes/homes/dataset.py", "simulator"),  # the episodes of a generated home are sampled with the path finder
}
"""File and package it imports from against the order, each with the reason why."""


def imported(tree: ast.AST) -> Iterator[str]:
    """The modules that a piece of code imports, in functions too, but not where they serve type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from imported(node)


def used(path: Path) -> set[str]:
    """The packages and modules of navprune that a file imports from."""
    names = (name.split(".") for name in imported(ast.parse(path.read_text())))
    return {parts[1] for parts in names if parts[0] == "navprune" and len(parts) > 1}


LEAVES = {path.stem for path in PACKAGE.glob("*.py") if not used(path) - {"errors"}} | {"__version__"}
"""Modules beside the packages that anyone may use, for they use nothing themselves."""


@pytest.mark.parametrize("package", ORDER)
def test_packages_import_from_those_above_alone(package):
    allowed = {*ORDER[: ORDER.index(package) + 1], *LEAVES}
    files = [*(PACKAGE / package).rglob("*.py"), *PACKAGE.glob(f"{package}.py")]
    against = {(str(path.relative_to(PACKAGE)), name) for path in files for name in used(path) - allowed}
    assert against == {pair for pair in EXCEPTIONS if pair[0].startswith(f"{package}/")}


@pytest.mark.parametrize("room", ["navprune", "tests", "examples", "experiments"])
def test_files_and_functions_stay_short(room):
    """At most 450 lines a file and 60 a function."""
    texts = {path: path.read_text(encoding="utf-8") for path in (PACKAGE.parent / room).rglob("*.py")}
    long = {path.name for path, text in texts.items() if text.count("\n") > 450}
    assert long == set()
    nodes = [node for text in texts.values() for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    assert [node.name for node in nodes if (node.end_lineno or 0) - node.lineno + 1 > 60] == []


def test_the_order_is_that_of_the_folder():
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages == set(ORDER) - {"config", "source"}
    text = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    places = [re.search(rf"\n  {package}(/|\.py)", text) for package in ORDER]
    assert None not in places
    assert (starts := [place.start() for place in places if place]) == sorted(starts)

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import navprune

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
COMPILED = {"njit", "entry", "inner"}  # kernels.py names two kinds of njit


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
    assert {"navprune", "tests", "examples"} <= set(mypy["files"]) and mypy["check_untyped_defs"]


# The hosted workflow -----------------------------------------------------------------------------

WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))
JOB = WORKFLOW["jobs"]["test"]
VERSIONS = [str(version) for version in JOB["strategy"]["matrix"]["python"]]


def test_the_workflow_runs_what_runs_at_home():
    assert [step["run"] for step in JOB["steps"] if "run" in step] == ["make test"]
    assert {"push", "pull_request"} <= set(WORKFLOW[True])  # YAML reads the key `on` as a truth value
    python = next(step["with"] for step in JOB["steps"] if "setup-python" in step.get("uses", ""))
    assert python["python-version"] == "${{ matrix.python }}"
    for path in python["cache-dependency-path"].split():
        assert (ROOT / path).is_file()


def test_the_workflow_runs_on_the_versions_that_the_package_names():
    prefix = "Programming Language :: Python :: "
    named = [each.removeprefix(prefix) for each in PROJECT["project"]["classifiers"] if each.startswith(prefix)]
    assert named == VERSIONS == sorted(VERSIONS, key=lambda version: [*map(int, version.split("."))])
    assert (
        PROJECT["project"]["requires-python"] == f">={VERSIONS[0]}" == f">={PROJECT['tool']['mypy']['python_version']}"
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_make_test_leaves_out_habitat_lab_only_where_its_numpy_ends(version, tmp_path):
    python = tmp_path / "python"
    major, minor = version.split(".")
    python.write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c "import sys; sys.version_info = ({major}, {minor}); $2"\n'
    )
    python.chmod(0o755)
    steps = subprocess.run(
        ["make", "--dry-run", "test", f"PYTHON={python}"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert any(step.endswith("-m pytest") for step in steps) and any(step.endswith("-m mypy") for step in steps)
    assert any("-m pytest tests/habitat" in step for step in steps) == (version != "3.13")


# What stands in several places --------------------------------------------------------------------


def test_versions_and_dates_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\S+)$", changelog, re.MULTILINE)
    version = PROJECT["project"]["version"]
    assert version == navprune.__version__ == citation["version"]
    assert released[0] == (version, str(citation["date-released"]))
    assert changelog.count("## [Unreleased]") == 1 and released == sorted(released, reverse=True)


def test_addresses_lead_to_files_and_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    home = PROJECT["project"]["urls"]["Homepage"]
    assert home == citation["repository-code"]
    for address in PROJECT["project"]["urls"].values():
        assert (ROOT / address.removeprefix(home).lstrip("/")).exists()


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/*.md")), ids=lambda page: page.name)
def test_links_and_names_of_files_exist(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    named = re.findall(r"`((?:navprune|tests|experiments|docs)/[\w/.-]+\.\w+)`", text)
    assert [path for path in links if not (page.parent / path).exists()] == []
    assert [path for path in named if not (ROOT / path).exists()] == []


# One voice ----------------------------------------------------------------------------------------

VERBS = """
act add begin build check choose close collect compose compute convert copy correct count create cut decide delete
draw end evaluate fill find follow forget free generate get give go hold import join keep lay learn let list load look
lower make mark measure merge move note open parse prune put raise read refuse register remove reset restore return
run save say search seed send set show shrink sort split start stop take tell train try turn update use wait warn
write yield
""".split()
PLURAL = {"of", "by", "from", "between", "at", "for", "in", "over", "left", "on", "behind"}
"""A word in -s before one of these is no verb: "Cuts of"."""


def test_docstrings_of_functions_are_imperative():
    wrong = {f"{verb}s": verb for verb in VERBS} | {
        "copies": "copy",
        "goes": "go",
        "searches": "search",
        "tries": "try",
    }
    for path in sorted((ROOT / "navprune").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            first, second, *_ = [*(ast.get_docstring(node) or "").lower().split(), "", ""]
            if first in wrong and second not in PLURAL:
                pytest.fail(f"{path.relative_to(ROOT)}: {node.name} says {first!r} instead of {wrong[first]!r}")

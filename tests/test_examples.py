"""The scripts of examples/ do what their first lines say."""

import ast
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for all, so that homes are generated once."""
    return tmp_path_factory.mktemp("examples")


def test_an_agent_is_trained_and_measured_beside_a_control(folder):
    measures = example("train_and_evaluate").main(folder)
    assert list(measures) == [str(folder / "run"), "goal-follower"]
    assert all(np.isfinite(list(each.values())).all() and 0 <= each["spl"] <= 1 for each in measures.values())
    assert (folder / "run" / "latest" / "weights.safetensors").exists()


def test_agents_walk_to_their_goals_and_their_views_are_drawn(folder):
    ended = example("step_the_simulator").main(folder)
    assert ended and all(measures["success"] == 1 for measures in ended)
    depth = np.asarray(Image.open(folder / "depth.png"))
    assert depth.shape == (4 * 96, 6 * 96) and np.ptp(depth) > 100


def test_a_module_is_pruned_and_stays_what_it_was(capsys):
    module = example("prune_your_own_module")
    whole, small = (sum(p.numel() for p in model.parameters()) for model in (module.TwoBranches(), module.main()))
    assert small < whole
    assert "kept 5" in capsys.readouterr().out  # 50 to 60 %


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_says_how_to_run_it_and_is_linked(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 50
    assert f"python examples/{path.name}" in (ast.get_docstring(ast.parse(text)) or "")
    assert f"(examples/{path.name})" in (ROOT / "README.md").read_text(encoding="utf-8")

"""What is written of experiments is what was measured."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "experiments" / "pruning_methods"


@pytest.fixture(scope="module")
def experiment():
    """The modules figure and grid, which lie in no package."""
    sys.path.insert(0, str(FOLDER))
    try:
        import figure
        import grid

        yield figure, grid
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("figure", "grid"):
            sys.modules.pop(name, None)


def test_comparisons_are_of_the_same_seeds(experiment):
    figure, _ = experiment
    first, second = {0: np.array([1.0, 0.5]), 2: np.array([0.5, 0.5])}, {1: np.zeros(2), 2: np.array([0.25, 0.5])}
    assert figure.paired(first, second).tolist() == [[0.25, 0.0]]
    assert figure.paired(first, {1: np.zeros(2)}) is None


def test_every_record_is_of_a_cell_and_of_the_same_episodes(experiment):
    _, grid = experiment
    records, cells = grid.read_results(), set(grid.grid())
    assert records.keys() <= cells and len(grid.grid()) == len(cells)
    assert {len(record["spl"]) for record in records.values() if "spl" in record} == {120}
    for record in records.values():
        if same := record.get("same_as"):
            twin = records[grid.Cell(**same)]
            assert (twin["spl"], twin["weights"]) == (record["spl"], record["weights"])


def test_the_readme_says_what_was_measured(experiment):
    figure, grid = experiment
    written, records = (FOLDER / "README.md").read_text(), grid.read_results()
    for protocol in grid.PROTOCOLS:
        if found := figure.measured(records, protocol):
            spreads = {network: figure.spread_of(seeds) for network, seeds in found.items()}
            assert figure.table(found, spreads, records, protocol) in written


def test_a_table_takes_the_place_of_the_one_before(experiment):
    figure, _ = experiment
    text = "Before.\n\n| cut | 25 % |\n|---|---|\n| l1 | old |\n\nBehind.\n"
    new = "| cut | 25 % |\n|---|---|\n| l1 | new |\n| l2 | new |\n"
    assert figure.renewed(text, new) == f"Before.\n\n{new}\nBehind.\n"
    assert figure.renewed(figure.renewed(text, new), new) == figure.renewed(text, new)


# What an image takes --------------------------------------------------------------------------------

SPEED = FOLDER.parent / "simulator_speed"


def speed(name):
    """A module of that experiment, under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"simulator_speed_{name}", SPEED / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_of_images_says_what_was_measured():
    assert speed("figure").table(json.loads((SPEED / "results.json").read_text())) in (SPEED / "README.md").read_text()


def test_a_home_and_its_scan_are_looked_at_from_the_same_places():
    scenes = speed("scenes")
    plan = scenes.make_plan(40.0)
    places = scenes.look_from(plan, 5)
    plain, scan = scenes.triangles_of(plan, None), scenes.triangles_of(plan, 2000)
    assert len(scan) > 2 * len(plain)
    for triangles in (plain, scan):
        low, high = triangles.min(axis=(0, 1)), triangles.max(axis=(0, 1))
        assert ((low < places.eyes) & (places.eyes < high)).all()
    assert np.allclose(np.linalg.norm(places.rotations, axis=1), 1)

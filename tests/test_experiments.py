"""The statistics behind experiments/pruning_methods, and that what is written there is what was measured."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.parametrize(("seed_effect", "bounds"), [(0.0, (0, 6)), (0.05, (1, 9)), (0.1, (9, 25))])
def test_how_often_noise_is_called_a_difference(experiment, seed_effect, bounds):
    """Of 100 comparisons at 5 %. Three seeds are too few to know their own effects: README.md says what that means."""
    figure, _ = experiment
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(300):
        first, second = (
            np.clip(0.5 + rng.normal(0, 0.4, (3, 120)) + rng.normal(0, seed_effect, (3, 1)), 0, 1) for _ in range(2)
        )
        found += figure.bootstrap(first - second).p < 0.05
    assert bounds[0] <= found / 3 <= bounds[1]


def test_a_cut_by_luck_is_called_better_than_luck_at_five_per_cent(experiment):
    figure, _ = experiment
    rng = np.random.default_rng(0)
    p = np.array([figure.by_luck(rng.normal(0.5, 0.07, 1), rng.normal(0.5, 0.07, 20)) for _ in range(1000)])
    assert 0.035 <= np.mean(p < 0.05) <= 0.065
    assert 0.45 <= np.mean(p < 0.5) <= 0.55
    assert figure.by_luck(np.array([0.9]), rng.normal(0.5, 0.07, 20)) < 1e-3


def test_luck_takes_more_than_one_draw_to_know(experiment):
    figure, _ = experiment
    assert figure.by_luck(np.array([0.9]), np.array([0.1])) == 1.0


def test_a_difference_that_is_there_is_found(experiment):
    figure, _ = experiment
    spread = figure.bootstrap(0.15 + np.random.default_rng(0).normal(0, 0.4, (3, 120)))
    assert spread.p < 0.01 and 0 < spread.low < spread.mean < spread.high
    same = figure.bootstrap(np.full((3, 4), 0.25))
    assert (same.mean, same.low, same.high) == pytest.approx((0.25, 0.25, 0.25))


def test_holm_on_a_worked_example(experiment):
    figure, _ = experiment
    corrected = figure.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert corrected == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_holm_corrects_upwards_and_keeps_the_order(experiment, p):
    figure, _ = experiment
    named = {str(i): value for i, value in enumerate(p)}
    corrected = figure.holm(named)
    assert all(named[name] <= value <= 1 for name, value in corrected.items())
    assert all(corrected[a] <= corrected[b] for a in named for b in named if named[a] < named[b])
    assert min(corrected.values()) == pytest.approx(min(1, len(p) * min(p)))  # Bonferroni's for the smallest


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

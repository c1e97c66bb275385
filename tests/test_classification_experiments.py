"""The experiments with classifiers: their commands work, and what is written of them is what was measured."""

from pathlib import Path

import numpy as np
import pytest

from experiments.classifiers import DIGITS, packed, unpacked
from experiments.pruning_from_scratch import figure, run

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SMALL = ("classifier.family=cifar_resnet20", "classifier.width=0.25", "supervised.epochs=1", "supervised.batch=256")


def test_what_was_right_is_packed_and_unpacked():
    for count in (1, 8, 9, 360):
        right = np.random.default_rng(count).random(count) < 0.5
        assert (unpacked(packed(right), count) == right).all()


def test_every_search_from_scratch_is_measured_and_told(tmp_path):
    task = run.Task(DIGITS, SMALL, (1, 2))
    records = [run.measure(task, run.Cell(arm, seed)) for arm in run.ARMS for seed in (0, 1)]
    dense = next(record for record in records if record["arm"] == run.DENSE)
    for record in records:
        if record["arm"] != run.DENSE:
            assert 0.4 < record["reached"]["macs"] <= 0.5 and record["widths"].keys() == dense["widths"].keys()
            assert record["search_seconds"] > 0 and {"equal epochs", "equal compute"} <= record["trainings"].keys()
    same = [record["initial"] for record in records if record["arm"] in (run.DENSE, run.UNIFORM, run.SLIMMED)]
    assert len({*same}) == 2  # one for each seed
    told = [table(records) for table in figure.TABLES]
    assert all(arm in told[0] and arm in told[1] for arm in run.ARMS if arm != run.DENSE)
    figure.draw(records, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_the_readme_of_pruning_from_scratch_says_what_was_measured():
    records = figure.read(run.RESULTS)
    if not records:
        pytest.skip("nothing is measured yet")
    assert {run.Cell(record["arm"], record["seed"]) for record in records} <= {*run.grid(run.Task(DIGITS, (), (1, 2)))}
    written = (EXPERIMENTS / "pruning_from_scratch" / "README.md").read_text()
    assert all(table(records) in written for table in figure.TABLES)

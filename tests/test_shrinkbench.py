"""What is written of experiments/shrinkbench is what was measured, and its cells can be."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from labelled_images import npz

from experiments.cells import append
from experiments.shrinkbench import figure, grid, run
from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.spec import PolicySpec, encoder_spec
from navprune.pruning.prune import weights_hash
from navprune.rl.checkpoints import save_checkpoint
from navprune.scenes.files.episodes import read_episodes
from navprune.tasks.config import TaskConfig

REFERENCE = Path(__file__).parent / "data" / "reference"
HOMES = "homes x ResNet50"


def test_a_part_of_the_grid_is_already_a_comparison():
    cells = grid.grid()
    assert len(set(cells)) == len(cells)
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    first = [cell for cell in cells if cell.seed == grid.SEEDS[0]]
    for pair in grid.PAIRS:
        assert {cell.strategy for cell in first if cell.pair == pair} == {*grid.TRIED, grid.DENSE}


def test_every_record_is_of_a_cell_and_of_the_same_weights():
    records, weights, images = grid.read_results(), {}, {}
    assert records.keys() <= set(grid.grid())
    for cell, record in records.items():
        assert weights.setdefault(cell[:2], record["initial_weights"]) == record["initial_weights"]
        if (values := figure.scores(record, figure.TOP1)) is not None:
            assert images.setdefault(cell.pair, len(values)) == len(values)
            assert record["compression"] == pytest.approx(cell.ratio, rel=0.011)
            assert "spl" in record or values.mean() == pytest.approx(record["top1"], abs=1e-4)


def test_the_readme_says_what_was_measured():
    written = (grid.HERE / "README.md").read_text()
    for table in figure.tables(grid.read_results(), list(grid.PAIRS)):
        assert table in written


# What is computed of the records ------------------------------------------------------------------


def curve(**reached):
    """A curve of one seed and one image, from ratio=(speed-up, right)."""
    places = {int(ratio[1:]): value for ratio, value in reached.items()}
    seeds = {ratio: {0: np.array([right])} for ratio, (_, right) in places.items()}
    return figure.Curve(seeds, {ratio: {0: faster} for ratio, (faster, _) in places.items()})


def test_what_is_reached_at_a_speed_up_lies_between_the_networks_beside_it():
    found = curve(r1=(1.0, 1.0), r2=(4.0, 0.5), r4=(8.0, 0.0))
    reached = {place: found.at(place, figure.SPEEDUP) for place in (2, 4, 8, 16)}
    assert [float(reached[place][0][0]) for place in (2, 4, 8)] == pytest.approx([0.75, 0.5, 0.0])
    assert reached[16] == {} and found.at(2)[0] == 0.5


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=12), st.randoms(use_true_random=False))
def test_rank_correlations_are_of_ranks_alone(values, random):
    first = {str(place): value for place, value in enumerate(values)}
    shuffled = dict(zip(first, random.sample(values, len(values))))
    result = figure.correlated(first, shuffled)
    if len(set(values)) == 1:
        assert result is None
        return
    # Steps and signs that keep, or turn round, the order of the numbers.
    stretched = {name: 3 * sorted(values).index(value) for name, value in shuffled.items()}
    assert figure.correlated(first, stretched) == pytest.approx(result)
    turned = figure.correlated(first, {name: -value for name, value in shuffled.items()})
    assert turned is not None and turned.rho == pytest.approx(-result.rho)
    assert figure.correlated(first, first).rho == pytest.approx(1)
    assert -1 - 1e-9 <= result.rho <= 1 + 1e-9 and 0 < result.p <= 1


def record(cell, right, speedup):
    bits = np.packbits(right).tobytes().hex()
    own = {"images": len(right), "top1_hits": bits, "top5_hits": bits, "speedup": speedup}
    return cell._asdict() | {"initial_weights": "same"} | own


def invented(pair, seeds=grid.SEEDS):
    """Records in which the importances of all strategies but the random ones are right of more images."""
    rng, records = np.random.default_rng(0), {}
    for cell in grid.grid([grid.Pair(pair, "some")]):
        if cell.seed in seeds:
            share = 0.4 if cell.strategy.endswith(figure.RANDOM) else 0.9
            records[cell] = record(cell, rng.random(200) < share, float(cell.ratio))
    return records


def test_what_is_better_than_luck_is_marked_and_what_is_not_is_not():
    curves = figure.curves_of(invented("some"))
    *_, counts = figure.finding(curves, ["some"], "better than random?").splitlines()
    assert counts == "| shown above 0, below 0 | 18, 0 of 18 | 18, 0 of 18 |"
    *_, counts = figure.finding(curves, ["some"], "do gradients help?").splitlines()
    assert counts == "| shown above 0, below 0 | 0, 0 of 3 | 0, 0 of 3 |"


def test_a_single_seed_does_not_tell_luck_from_merit():
    curves = figure.curves_of(invented("some", seeds=(0,)))
    *_, counts = figure.finding(curves, ["some"], "better than random?").splitlines()
    assert counts == "| shown above 0, below 0 | 0, 0 of 18 | 0, 0 of 18 |"


def test_results_of_other_images_get_a_page_of_their_own(tmp_path, monkeypatch):
    records = invented("some")
    for each in records.values():
        append(each, tmp_path / grid.RESULTS)
    monkeypatch.setattr("sys.argv", ["figure", str(tmp_path)])
    figure.main()
    page = (tmp_path / "README.md").read_text()
    assert "| some: strategy |" in page and (tmp_path / "some.png").stat().st_size
    assert all(table in page for table in figure.tables(records, ["some"]))


# Cells --------------------------------------------------------------------------------------------

TINY = "classifier.width=0.25", "supervised.batch=8", "supervised.epochs=0.5"


@pytest.fixture
def inline(monkeypatch):
    """Cells are measured here and not by other processes."""

    def work(title, cells, workers, measure, results, told):
        for cell in cells:
            found = json.loads(json.dumps(measure(cell)))
            assert told(found)
            append(found, results)

    monkeypatch.setattr(run, "work", work)


def test_classifiers_are_pruned_tuned_and_told_apart_and_only_once(inline, tmp_path, monkeypatch):
    images = npz(tmp_path / "images.npz", count=30, tests=11)
    pair = replace(run.with_images(str(images), "digits_resnet20"), tuning=("supervised.epochs=0.5",))
    pair = replace(pair, settings=(*pair.settings, *TINY))
    asked = ("dense", 1), ("global-magnitude-gradient", 2), ("layer-random", 4), ("structured-taylor", 2)
    unmet = "global-random", 999
    cells = [grid.Cell(pair.name, grid.FIRST, name, ratio, 0) for name, ratio in (*asked, unmet)]
    monkeypatch.setattr(run, "grid", lambda _: cells)
    for count in (2, None, None):
        run.measure_all([pair], tmp_path / "runs", tmp_path / "results", 1, count)
    records = grid.read_results(tmp_path / "results")
    assert [*records] == cells
    begun = weights_hash(run.trained(pair, grid.FIRST, tmp_path / "runs"))
    assert {found["initial_weights"] for found in records.values()} == {begun}
    assert "out of reach" in records[cells[-1]]["refused"]
    for cell in cells[:-1]:
        found = records[cell]
        assert found["compression"] == pytest.approx(cell.ratio, rel=0.011) and found["speedup"] >= 1
        assert figure.scores(found, figure.TOP1).mean() == pytest.approx(found["top1"], abs=1e-4)
        assert len(figure.scores(found, figure.TOP5)) == 11

    append({**records[cells[0]], "initial_weights": "another's", "seed": 1}, tmp_path / "results" / grid.RESULTS)
    cells.append(cells[0]._replace(seed=2))
    with pytest.raises(UserError, match=r"is of other weights .*: move it away"):
        run.measure_all([pair], tmp_path / "runs", tmp_path / "results", 1)


def test_agents_are_pruned_in_their_encoders_and_tuned_under_masks(tmp_path, monkeypatch):
    homes = run.homes
    spec = PolicySpec(encoder_spec("resnet18", (1, 32, 32), 4), visual_features=16, hidden_size=16)
    save_checkpoint(tmp_path / "agent", build(spec, 0))
    task = TaskConfig(width=32, height=32, max_steps=8)
    ppo = replace(homes.DEMO.ppo, steps=4, epochs=1, minibatches=1)
    monkeypatch.setattr(homes, "AGENT", tmp_path / "agent")
    monkeypatch.setattr(homes, "DATA", REFERENCE)
    monkeypatch.setattr(homes, "DEMO", replace(homes.DEMO, task=task, ppo=ppo, environments=2))
    monkeypatch.setattr(homes, "TUNING", ppo)
    monkeypatch.setattr(homes, "FRAMES", {homes.TUNED: 16})
    monkeypatch.setattr(homes, "EVALUATED", 2)
    episodes = read_episodes(REFERENCE, "reference", "val", scenes=["apartment"])[:2]
    monkeypatch.setattr(homes, "split", lambda _: episodes)
    ends, train = [], homes.train
    monkeypatch.setattr(homes, "train", lambda policy, *given: (train(policy, *given), ends.append(policy)))
    for strategy in ("global-magnitude-gradient", "structured-activation"):
        cell = grid.Cell(HOMES, grid.FIRST, strategy, 2, 0)
        found = run.measure({HOMES: grid.PAIRS[HOMES]}, tmp_path, cell)
        assert found["compression"] == pytest.approx(2, rel=0.05) and len(found["spl"]) == 2
        encoder = ends[-1].encoder
        left = sum(int(weight.count_nonzero()) for weight in encoder.parameters())
        # Biases of GroupNorm begin at zero and learn.
        assert left == pytest.approx(sum(p.numel() for p in encoder.parameters()) / found["compression"], rel=0.02)

"""The experiment on structured sparsity: its command works, and what is written of it is what was measured."""

import json
from pathlib import Path

import pytest
import torch

from experiments.structured_sparsity import figure, run
from navprune.errors import UserError

README = Path(__file__).parents[1] / "experiments" / "structured_sparsity" / "README.md"


class Stripes:
    """48 labelled images of 4 classes, bright in a quarter each."""

    classes, shape, labels = tuple("abcd"), (1, 32, 32), torch.arange(48) % 4
    mean, deviation, digest = torch.zeros(1, 1, 1), torch.ones(1, 1, 1), "stripes"

    def __len__(self):
        return 48

    def views(self, rows, draws=None):
        images = torch.zeros(len(rows), *self.shape)
        for image, label in zip(images, self.labels[rows].tolist()):
            image[:, 8 * label : 8 * label + 8] = 1 + label
        return images


@pytest.fixture
def course(monkeypatch):
    """A course of one epoch for tiny networks."""
    for name in ("experiments.classifiers", "navprune.commands.classification"):
        monkeypatch.setattr(f"{name}.open_images", lambda config, split: Stripes())
    settings = "classifier.family=cifar_vgg16_bn", "classifier.width=0.125", "supervised.epochs=1"
    return run.Course(settings=(*settings, "supervised.batch=24"), tuning=("supervised.lr=0.001",), strength=1.0)


def test_the_readme_says_what_was_measured():
    written = README.read_text()
    assert figure.page(written, run.read_results()) == written


def test_every_record_is_of_the_same_course_and_its_seeds_of_the_same_weights():
    records = run.read_results()
    assert all(record["course"] == run.Course().said() for record in records.values())
    weights = {(cell.seed, record["weights"]) for cell, record in records.items()}
    assert len(weights) == len({cell.seed for cell in records})


@pytest.mark.parametrize("penalty", ["sum-squares", "group-lasso-both"])
def test_a_whole_course_ends_in_the_tables(course, penalty, monkeypatch, tmp_path):
    some = run.cuts(penalty)[:2]
    monkeypatch.setattr(run, "cuts", lambda _: some)
    cell = run.Cell(penalty, 3)
    record = json.loads(json.dumps(run.measure(course, cell)))
    assert record["strength"] == (1e-5 if penalty == "sum-squares" else 0.5)
    assert (record["zeros"] > 0) == (penalty != "sum-squares")
    first, other = record["cuts"]
    assert first["cut"]["right"] == record["trained"]["right"]
    assert ("scratch" in other) == (penalty == "sum-squares")
    for row in record["cuts"]:
        network = figure.Network(penalty, run.Cut(row["over"], row["score"], row["share"]), "tuned")
        (right,) = figure.right({cell: record}, network).values()
        assert right.mean() == pytest.approx(row["tuned"]["top1"], abs=1e-4) and right.shape == (48,)
    assert other["operations"] < first["operations"] and 0 < other["ratio"] < 1
    figure.draw({cell: record}, tmp_path / "accuracy.png")
    assert (tmp_path / "accuracy.png").stat().st_size
    tables = figure.page("", {cell: record})
    assert f"| {100 * other['ratio']:.1f} % |" in tables and f"{100 * other['tuned']['top1']:.2f} (" in tables


def test_results_of_another_course_are_kept_apart(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(run, "work", lambda *given: asked.append(given))
    monkeypatch.chdir(tmp_path)
    run.main(["--only", "none", "--seeds", "100"])
    run.main(
        ["--images", "elsewhere", "--only", "none", "--seeds", "7", "8", "--cells", "1", "--set", "trainer.seed=1"]
    )
    (_, cells, _, _, own, _), (_, others, _, _, out, _) = asked
    assert own == run.RESULTS and cells == [run.Cell("none", 100)]
    assert out == run.OTHERS and others == [run.Cell("none", 7)]
    out.write_text(json.dumps({"penalty": "none", "seed": 7, "course": run.Course().said()}) + "\n")
    with pytest.raises(UserError, match=r"another course.*move it away"):
        run.main(["--images", "elsewhere"])
    with pytest.raises(UserError, match="unknown key"):
        run.main(["--set", "supervised.epoch=1"])

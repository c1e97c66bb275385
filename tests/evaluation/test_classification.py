"""Laws of accuracy over labelled images."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from navprune.evaluation.classification import classify
from navprune.models.batch_norm import BatchNorm2d

CLASSES = 7


class Shown:
    """Images [C, 1, 1] that show their label, beside noise."""

    def __init__(self, labels, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.labels, self.classes = torch.tensor(labels), tuple("abcdefg")
        self.pixels = torch.cat(
            [nn.functional.one_hot(self.labels, CLASSES), torch.rand(len(labels), 3, generator=generator)], dim=1
        )[:, :, None, None]

    def __len__(self):
        return len(self.labels)

    def views(self, rows):
        return self.pixels[rows]


def network(weight):
    """Logits are `weight` [CLASSES, CLASSES + 3] times the pixels."""
    made = nn.Sequential(nn.Flatten(), nn.Linear(CLASSES + 3, CLASSES, bias=False))
    made[1].weight.data = weight
    return made


def knowing():
    """What tells each label."""
    return network(torch.eye(CLASSES, CLASSES + 3))


def guessing(seed):
    """What mixes labels and noise up."""
    return network(torch.randn(CLASSES, CLASSES + 3, generator=torch.Generator().manual_seed(seed)))


labels = st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=30)


@given(labels)
@settings(max_examples=20)
def test_who_knows_the_labels_is_always_right_and_who_denies_them_never(shown):
    right, wrong = (classify(network(sign * torch.eye(CLASSES, CLASSES + 3)), Shown(shown)) for sign in (1, -1))
    assert (right.predictions == shown).all() and (wrong.predictions != shown).all()
    for measure in ("top1", "top5"):
        assert right.measures[measure]["mean"] == 1 and wrong.measures[measure]["mean"] == 0
    others = np.log(CLASSES - 1 + np.e)
    assert right.measures["cross_entropy"]["mean"] == pytest.approx(others - 1)
    assert wrong.measures["cross_entropy"]["mean"] == pytest.approx(np.log((CLASSES - 1) * np.e + 1))


@given(labels, st.integers(0, 2**32), st.integers(1, 31))
@settings(max_examples=20)
def test_the_result_does_not_depend_on_the_batch(shown, seed, batch):
    whole, parts = (classify(guessing(seed), Shown(shown, seed), size) for size in (len(shown), batch))
    assert (whole.predictions == parts.predictions).all()
    for name, values in whole.figures.items():
        np.testing.assert_allclose(parts.figures[name], values, rtol=1e-5, atol=1e-6)


@given(labels, st.integers(0, 2**32))
@settings(max_examples=20)
def test_measures_are_means_of_the_figures_within_their_intervals(shown, seed):
    found = classify(guessing(seed), Shown(shown, seed))
    assert (found.figures["top1"] == (found.predictions == shown)).all()
    assert (found.figures["top1"] <= found.figures["top5"]).all()
    for name, told in found.measures.items():
        assert told["mean"] == pytest.approx(found.values(name).mean())
        assert told["low"] - 1e-9 <= told["mean"] <= told["high"] + 1e-9


@given(labels, st.lists(st.integers(0, 2**32), min_size=1, max_size=3))
@settings(max_examples=15)
def test_several_runs_are_one_with_the_mean_of_theirs(shown, seeds):
    runs = [classify(guessing(seed), Shown(shown)) for seed in seeds]
    pooled = runs[0].over(runs)
    for name, told in pooled.measures.items():
        assert told["mean"] == pytest.approx(np.mean([run.measures[name]["mean"] for run in runs]))
    assert runs[0].over(runs[:1]).measures == runs[0].measures
    assert pooled.to_json("test")["images"] == len(shown)


def test_what_is_evaluated_stays_as_it_was():
    shown = Shown([0, 3, 6, 3] * 5)
    model = nn.Sequential(BatchNorm2d(CLASSES + 3), nn.Dropout(0.9), knowing()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert classify(model, shown).measures["top1"]["mean"] == 1
    assert model.training and all(part.training for part in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_image_has_a_line(tmp_path):
    shown = Shown([0, 3, 6])
    classify(knowing(), shown).write_images(tmp_path / "images.jsonl")
    records = [json.loads(line) for line in (tmp_path / "images.jsonl").read_text().splitlines()]
    assert [(each["index"], each["label"], each["prediction"]) for each in records] == [
        (0, "a", "a"), (1, "d", "d"), (2, "g", "g"),
    ]  # fmt: skip
    assert records[0].keys() == {"index", "label", "prediction", "top1", "top5", "cross_entropy"}
    assert {each["top1"] for each in records} == {1.0}

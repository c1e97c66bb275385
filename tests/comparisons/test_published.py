"""The public code's rules, and its table recomputed from the widths it recorded."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from navprune.comparisons.published import pruned_ratio, rounded_up, select
from navprune.costs.counting import count
from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.classifiers import classifier_spec
from navprune.models.spec import encoder_spec
from navprune.models.widths import widths, with_widths
from navprune.pruning.groups import unit_weights
from navprune.pruning.structure import structure_of

TABLE = json.loads(
    (Path(__file__).parents[2] / "experiments" / "structured_sparsity" / "published.json").read_text(encoding="utf-8")
)
VGG = classifier_spec("vgg16_bn", 100)
LAW = settings(max_examples=30, deadline=None, derandomize=True)
WAYS = [(row["over"], row["score"]) for row in TABLE["rows"]]


def cost(spec):
    with torch.device("meta"):
        return count(build(spec), torch.zeros(1, *spec.input))


def network(seed=0):
    return build(classifier_spec("cifar_vgg16_bn", 5, width=0.25), seed)


def chosen(model, over="filters", score="mean-abs", share=0.2, seed=0):
    return select(model, over, score, share, torch.Generator().manual_seed(seed))


def test_the_unpruned_network_in_thops_counting():
    assert cost(VGG).parameters == TABLE["unpruned"]["parameters"] == 134_678_692
    assert cost(VGG).thop == TABLE["unpruned"]["operations"] == 15_507_270_656


@pytest.mark.parametrize("row", TABLE["rows"], ids=lambda row: f"{row['over']}-{row['score']}")
def test_published_rows_follow_from_their_widths(row):
    names = [name for name in widths(VGG) if name.startswith("features.")]
    pruned = cost(with_widths(VGG, dict(zip(names, row["widths"], strict=True))))
    assert pruned.thop == row["operations"]
    assert pruned.parameters == row["parameters"]
    dense = [widths(VGG)[name] for name in names]
    assert pruned_ratio(dense, row["widths"], row["over"]) == pytest.approx(row["ratio"], abs=1e-12)
    total = {"filters": sum(dense), "channels": 3 + sum(dense[:-1])}
    if row["over"] in total:  # of the union of two selections, the threshold does not tell the number
        exact = total[row["over"]] - int(0.2 * total[row["over"]]) - 1
        kept = total[row["over"]] * (1 - row["ratio"])
        assert exact <= round(kept) <= exact + 7 * 13  # rounded up to multiples of 8 in each of 13 layers


@LAW
@given(st.lists(st.booleans(), min_size=1, max_size=70), st.integers(0, 100))
def test_rounding_adds_the_fewest_units_to_a_multiple_of_8(above, seed):
    above = torch.tensor(above)
    mask = rounded_up(above, torch.Generator().manual_seed(seed))
    kept = int(mask.sum())
    assert mask[above].all()
    assert kept == len(above) or (kept % 8 == 0 and kept > 0 and kept - 8 < max(1, int(above.sum())))
    assert torch.equal(mask, rounded_up(above, torch.Generator().manual_seed(seed)))


def test_units_are_added_at_random():
    above = torch.arange(64) < 20
    masks = [rounded_up(above, torch.Generator().manual_seed(seed)) for seed in range(20)]
    assert len({tuple(mask.tolist()) for mask in masks}) > 10


@pytest.mark.parametrize(("over", "score"), WAYS)
def test_what_is_above_the_threshold_stays(over, score):
    model = network()
    found = chosen(model, over, score)
    groups = {group.name: group for group in structure_of(model).groups}

    def scores(name, which):
        weights = unit_weights(model, groups[name], which)[0].detach()
        return weights.square().sum(1) if score == "sum-squares" else weights.abs().mean(1)

    names = list(found.keep)
    for name, kept in found.keep.items():
        above = torch.zeros_like(kept)
        if over != "channels":
            above |= scores(name, "filters") > found.threshold * (1 + 1e-5)  # sums in another order
        if over != "filters":
            above |= scores(name, "channels") > found.threshold * (1 + 1e-5) if name != names[-1] else True
        assert kept[above].all()
        assert int(kept.sum()) % 8 == 0


def test_the_share_asked_for_lies_at_or_below_the_threshold():
    model = network()
    scores = torch.cat(
        [
            m.weight.detach().abs().mean((1, 2, 3))
            for m in model.features
            if hasattr(m, "stride") and hasattr(m, "weight")
        ]
    )
    found = chosen(model, share=0.3)
    assert int((scores <= found.threshold).sum()) == int(0.3 * len(scores)) + 1


def test_over_both_more_stays_than_over_either_and_what_is_pooled_stays_whole():
    model = network()
    found = chosen(model, "both", share=0.5)
    for name in ("features.3", "features.10", "features.20", "features.30", "features.40"):
        assert found.keep[name].all()
    assert not all(kept.all() for kept in found.keep.values())
    assert found.ratio < 0.5
    assert chosen(model, "channels", share=0.5).keep["features.40"].all()
    assert not chosen(model, "filters", share=0.5).keep["features.40"].all()


def test_the_selection_slims():
    model = network().eval()
    found = chosen(model, "both", share=0.5)
    small = structure_of(model).slim(found.keep)
    assert widths(small.spec) == {name: int(kept.sum()) for name, kept in found.keep.items()}
    assert small(torch.rand(1, 3, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize(
    ("model", "settings", "complaint"),
    [
        (lambda: build(encoder_spec("simple_cnn", (1, 40, 40)), 0), {}, "prune VGG networks"),
        (network, {"over": "depth"}, "give filters, channels or both"),
        (network, {"score": "l2"}, "a score of sum-squares, mean-abs"),
        (network, {"share": 1.0}, "a share between 0 and 1"),
    ],
)
def test_anything_else_is_refused(model, settings, complaint):
    with pytest.raises(UserError, match=complaint):
        chosen(model(), **settings)

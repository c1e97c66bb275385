"""Budgets are met from below with whole units, deterministically, or refused with the nearest there is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from navprune.errors import UserError
from navprune.models.encoders import ChannelGroup
from navprune.pruning.search import parse_budget, search


def group(name, count, unit=1):
    return ChannelGroup(name, count * unit, unit, (), (), ())


def channel_share(groups):
    """Both measures are the share of channels kept."""
    whole = sum(g.channels for g in groups)

    def cost(widths):
        share = sum(widths.values()) / whole
        return {"macs": share, "parameters": share}

    return cost


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_the_kept_units_are_those_above_one_threshold(data):
    """With units of one size and a cost that counts them: the best k units, k as large as it can be."""
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    groups = [group(f"g{i}", n) for i, n in enumerate(sizes)]
    few = st.integers(0, 3).map(float)  # many ties
    scores = {g.name: torch.tensor(data.draw(st.lists(few, min_size=n, max_size=n))) for g, n in zip(groups, sizes)}
    total = sum(sizes)
    count = data.draw(st.integers(len(groups), total))
    keep = search(groups, scores, channel_share(groups), {"macs": (count + 0.5) / (total + 0.5)}, tolerance=1.0)
    flags = torch.cat([keep[g.name] for g in groups]).tolist()
    assert all(keep[g.name].any() for g in groups)
    assert sum(flags) == max(len(groups), int((count + 0.5) / (total + 0.5) * total + 1e-9))
    best = {(g.name, int(scores[g.name].argmax())) for g in groups}
    order = sorted(
        (
            (-float(scores[g.name][u]), i, u)
            for i, g in enumerate(groups)
            for u in range(g.channels)
            if (g.name, u) not in best
        )
    )
    expected = best | {(groups[i].name, u) for _, i, u in order[: sum(flags) - len(best)]}
    assert {(g.name, u) for g in groups for u in range(g.channels) if keep[g.name][u]} == expected


def test_ties_go_to_the_earlier_group_then_to_the_lower_unit():
    groups = [group("late", 4), group("early", 4)]
    scores = {"early": torch.zeros(4), "late": torch.zeros(4)}
    keep = search(groups, scores, channel_share(groups), {"macs": 0.5})
    assert keep["late"].tolist() == [True, True, True, False]
    assert keep["early"].tolist() == [True, False, False, False]


def test_room_is_filled_with_smaller_units():
    """The threshold alone would stop before the large unit, at 60 of 90 channels."""
    groups = [group("large", 2, unit=30), group("small", 30)]
    scores = {"large": torch.tensor([9.0, 5.0]), "small": torch.arange(30) / 30}
    keep = search(groups, scores, channel_share(groups), {"parameters": 0.6})
    assert keep["large"].tolist() == [True, False]
    assert keep["small"].tolist() == [False] * 6 + [True] * 24


def test_a_unit_above_the_threshold_gives_way_where_the_rest_does_not_fit():
    """Of 14 channels 12 may stay: 9 always do, 3 more fill the budget, the 2 of the better unit do not."""
    groups = [group("a", 1, unit=4), group("b", 2, unit=2), group("c", 2, unit=3)]
    scores = {"b": torch.tensor([9.0, 8.0]), "c": torch.tensor([9.0, 1.0])}
    share = channel_share(groups)
    keep = search(groups, scores, share, {"macs": 12 / 14}, tolerance=0.01)
    assert [int(keep[g.name].sum()) for g in groups] == [1, 1, 2]


@pytest.mark.parametrize("minimum", [1, 2, 3, 9])
def test_the_minimum_stays_whatever_the_scores(minimum):
    groups = [group("poor", 5), group("rich", 200)]
    scores = {"poor": torch.zeros(5), "rich": torch.ones(200)}
    keep = search(groups, scores, channel_share(groups), {"macs": 0.5}, minimum)
    assert keep["poor"].sum() == min(minimum, 5)


def test_groups_without_scores_stay_whole():
    groups = [group("trunk", 10), group("inner", 10)]
    keep = search(groups, {"inner": torch.arange(10.0)}, channel_share(groups), {"macs": 0.7})
    assert keep["trunk"].all()
    assert keep["inner"].tolist() == [False] * 6 + [True] * 4


def test_a_budget_out_of_reach_names_the_nearest():
    groups = [group("trunk", 10), group("inner", 10)]
    with pytest.raises(UserError, match=r"budget macs=0.5 .* nearest is macs=0.55"):
        search(groups, {"inner": torch.arange(10.0)}, channel_share(groups), {"macs": 0.5})
    with pytest.raises(UserError, match=r"budget macs=0.58 .* nearest is macs=0.55"):
        search(groups, {"inner": torch.arange(10.0)}, channel_share(groups), {"macs": 0.58})
    for budget, tolerance in [(0.58, 0.1), (0.55, 0.01)]:
        keep = search(groups, {"inner": torch.arange(10.0)}, channel_share(groups), {"macs": budget}, 1, tolerance)
        assert keep["inner"].sum() == 1


def test_the_nearest_can_be_asked_for():
    groups = [group("g", 3, unit=7)]
    scores = {"g": torch.arange(3.0)}
    with pytest.raises(UserError, match=r"nearest is macs=0\.6667; ask for that") as refusal:
        search(groups, scores, channel_share(groups), {"macs": 0.9})
    nearest = parse_budget(str(refusal.value).split("nearest is ")[1].split(";")[0])
    assert search(groups, scores, channel_share(groups), nearest)["g"].tolist() == [False, True, True]


@pytest.mark.parametrize("scores", [torch.tensor([1.0, float("nan")]), torch.ones(3)])
def test_scores_must_be_finite_and_fit(scores):
    groups = [group("g", 2)]
    with pytest.raises(UserError, match="scores of 'g' must be 2 finite numbers"):
        search(groups, {"g": scores}, channel_share(groups), {"macs": 0.5})


def test_the_answer_does_not_depend_on_the_order_of_the_scores():
    groups = [group(name, 12, unit) for name, unit in [("a", 2), ("b", 3), ("c", 5)]]
    generator = torch.Generator().manual_seed(3)
    scores = {g.name: torch.randint(3, (12,), generator=generator).double() for g in groups}
    first = search(groups, scores, channel_share(groups), {"macs": 0.5})
    second = search(groups, dict(reversed(scores.items())), channel_share(groups), {"macs": 0.5})
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_budgets_are_read():
    assert parse_budget("macs=0.5") == {"macs": 0.5}
    assert parse_budget(" parameters=0.45, macs=1") == {"parameters": 0.45, "macs": 1.0}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "cannot read ''"),
        ("0.5", "cannot read '0.5'"),
        ("flops=0.5", "cannot read 'flops=0.5'"),
        ("macs=0.5,macs=0.4", "each once"),
        ("macs=half", "'half' is not a number"),
        ("macs=0", "0 < macs <= 1"),
        ("macs=1.5", "macs=1.5 is not a share"),
        ("parameters=-0.1", "0 < parameters <= 1"),
        ("macs=nan", "0 < macs <= 1"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(text, complaint):
    with pytest.raises(UserError, match=complaint):
        parse_budget(text)

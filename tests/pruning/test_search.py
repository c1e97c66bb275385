"""Budgets are met from below with whole units, deterministically, or refused with the nearest there is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from navprune.errors import UserError
from navprune.models.encoders import ChannelGroup
from navprune.pruning.config import SearchConfig, parse_budget
from navprune.pruning.search import MEASURED_TOLERANCE, search, shortfall

LOOSE = SearchConfig(tolerance=1.0)


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
    keep = search(groups, scores, channel_share(groups), {"macs": (count + 0.5) / (total + 0.5)}, LOOSE)
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
    keep = search(groups, scores, share, {"macs": 12 / 14})
    assert [int(keep[g.name].sum()) for g in groups] == [1, 1, 2]


@pytest.mark.parametrize("minimum", [1, 2, 3, 9])
def test_the_minimum_stays_whatever_the_scores(minimum):
    groups = [group("poor", 5), group("rich", 200)]
    scores = {"poor": torch.zeros(5), "rich": torch.ones(200)}
    keep = search(groups, scores, channel_share(groups), {"macs": 0.5}, SearchConfig(minimum=minimum))
    assert keep["poor"].sum() == min(minimum, 5)


def test_groups_without_scores_stay_whole():
    groups = [group("trunk", 10), group("inner", 10)]
    keep = search(groups, {"inner": torch.arange(10.0)}, channel_share(groups), {"macs": 0.7})
    assert keep["trunk"].all()
    assert keep["inner"].tolist() == [False] * 6 + [True] * 4


def test_a_budget_out_of_reach_names_the_nearest():
    groups = [group("trunk", 10), group("inner", 10)]
    with pytest.raises(UserError, match=r"budget macs=0.5 .* nearest found is macs=0.55"):
        search(groups, {"inner": torch.arange(10.0)}, channel_share(groups), {"macs": 0.5})
    with pytest.raises(UserError, match=r"budget macs=0.58 .* nearest found is macs=0.55"):
        search(groups, {"inner": torch.arange(10.0)}, channel_share(groups), {"macs": 0.58})
    for budget, tolerance in [(0.58, 0.1), (0.55, 0.01)]:
        config = SearchConfig(tolerance=tolerance)
        keep = search(groups, {"inner": torch.arange(10.0)}, channel_share(groups), {"macs": budget}, config)
        assert keep["inner"].sum() == 1


def test_the_nearest_can_be_asked_for():
    groups = [group("g", 3, unit=7)]
    scores = {"g": torch.arange(3.0)}
    with pytest.raises(UserError, match=r"nearest found is macs=0\.6667; ask for that") as refusal:
        search(groups, scores, channel_share(groups), {"macs": 0.9})
    nearest = parse_budget(str(refusal.value).split("nearest found is ")[1].split(";")[0])
    assert search(groups, scores, channel_share(groups), nearest)["g"].tolist() == [False, True, True]


@pytest.mark.parametrize("percent", range(5, 100, 5))
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_exists_within_the_tolerance_is_found(percent, seed):
    """Of two layers in a row, whose cost is a product, some widths are within 1 % of most budgets; try all."""
    groups = [group("first", 32), group("second", 64)]

    def cost(widths):
        first, second = widths["first"], widths["second"]
        share = (5292 * first + 1296 * first * second + 5 * second) / (5292 * 32 + 1296 * 32 * 64 + 5 * 64)
        return {"macs": share, "parameters": share}

    budget = percent / 100
    shares = [cost({"first": a, "second": b})["macs"] for a in range(1, 33) for b in range(1, 65)]
    assert any(0.99 * budget <= share <= budget for share in shares)
    generator = torch.Generator().manual_seed(seed)
    scores = {g.name: torch.rand(g.channels, generator=generator) for g in groups}
    first, second = (search(groups, scores, cost, {"macs": budget}) for _ in range(2))
    assert 0.99 * budget <= cost({name: int(kept.sum()) for name, kept in first.items()})["macs"] <= budget
    for name, kept in first.items():
        assert torch.equal(kept, second[name])
        assert kept.all() or scores[name][kept].min() > scores[name][~kept].max()


def test_scores_of_unknown_groups_are_refused():
    groups = [group("g", 2)]
    with pytest.raises(UserError, match="scores of 'h': no such group; there are g"):
        search(groups, {"h": torch.ones(2)}, channel_share(groups), {"macs": 0.5})


@pytest.mark.parametrize(
    "scores", [torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("inf")]), torch.ones(3)]
)
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


# Two budgets at once -----------------------------------------------------------------------------


def two_layers(units=40):
    """Early layers cost multiply-accumulates, late ones parameters; both shares of their own."""
    groups = [group(name, units) for name in ("early", "middle", "late")]
    weights = {"macs": (0.6, 0.3, 0.1), "parameters": (0.1, 0.3, 0.6)}

    def cost(widths):
        return {name: sum(w * widths[g.name] / units for w, g in zip(each, groups)) for name, each in weights.items()}

    return groups, cost


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.sampled_from([(0.5, 0.45), (0.45, 0.5), (0.5, 0.5), (0.6, 0.5)]))
def test_both_budgets_are_reached_where_the_widths_allow(seed, shares):
    groups, cost = two_layers()
    generator = torch.Generator().manual_seed(seed)
    scores = {g.name: torch.rand(40, generator=generator) for g in groups}
    budget = dict(zip(("macs", "parameters"), shares))
    keep = search(groups, scores, cost, budget, SearchConfig(tolerance=0.03))
    reached = cost({name: int(kept.sum()) for name, kept in keep.items()})
    assert all(0.97 * limit <= reached[name] <= limit for name, limit in budget.items())
    for name, kept in keep.items():  # the tilt favours layers, never a unit over a better one of its layer
        assert scores[name][kept].min() > scores[name][~kept].max()


def test_the_ranking_is_left_alone_where_one_threshold_reaches_both():
    groups, cost = two_layers()
    scores = {g.name: torch.arange(40.0) for g in groups}
    both = search(groups, scores, cost, {"macs": 0.5, "parameters": 0.5})
    one = search(groups, scores, cost, {"macs": 0.5})
    assert all(torch.equal(both[name], one[name]) for name in one)


def test_the_tightest_binds_where_both_cannot():
    groups, cost = two_layers()
    scores = {g.name: torch.arange(40.0) for g in groups}
    keep = search(groups, scores, cost, {"macs": 0.95, "parameters": 0.2})
    reached = cost({name: int(kept.sum()) for name, kept in keep.items()})
    assert 0.99 * 0.2 <= reached["parameters"] <= 0.2 and reached["macs"] < 0.9
    alone = search(groups, scores, cost, {"parameters": 0.2})
    assert all(torch.equal(keep[name], alone[name]) for name in keep)


@pytest.mark.parametrize(
    ("reached", "line"),
    [
        ({"macs": 0.5, "parameters": 0.4}, None),
        ({"macs": 0.496, "parameters": 0.397}, None),
        (
            {"macs": 0.498, "parameters": 0.1},
            "parameters ended at 0.1, 75.0% below its budget of 0.4: macs binds first, and in whole units along this "
            "ranking they cannot bind together",
        ),
        (
            {"macs": 0.45, "parameters": 0.2},
            "macs ended at 0.45, 10.0% below its budget of 0.5, parameters ended at 0.2, 50.0% below its budget of "
            "0.4: the units are too coarse to come nearer",
        ),
    ],
)
def test_a_budget_that_was_missed_is_told_in_one_line(reached, line):
    assert shortfall({"macs": 0.5, "parameters": 0.4}, reached, 0.01) == line


def test_a_measured_budget_has_a_tolerance_of_its_own():
    assert shortfall({"latency": 0.5}, {"latency": 0.48}, 0.01) is None
    assert shortfall({"latency": 0.5}, {"latency": 0.47}, 0.01).startswith("latency ended at 0.47, 6.0% below")


# What a search may cut ---------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_limits_minima_and_multiples_hold(data):
    sizes = data.draw(st.lists(st.integers(4, 30), min_size=2, max_size=4))
    unit, multiple = data.draw(st.sampled_from([1, 2, 3])), data.draw(st.sampled_from([1, 2, 8]))
    groups = [group(f"g{i}", count, unit) for i, count in enumerate(sizes)]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    scores = {g.name: torch.rand(g.channels // unit, generator=generator) for g in groups}
    config = SearchConfig(tolerance=1, multiple=multiple, minimum=2, minimum_share=0.25)
    try:
        keep = search(groups, scores, channel_share(groups), {"macs": 0.6}, config)
    except UserError as error:
        assert "nearest" in str(error)
        return
    assert sum(int(keep[g.name].sum()) * unit for g in groups) <= 0.6 * sum(g.channels for g in groups)
    for g in groups:
        kept = int(keep[g.name].sum()) * unit
        assert kept % multiple == 0 or kept == g.channels
        assert kept >= min(g.channels, max(2 * unit, 0.25 * g.channels, multiple))


def test_a_limit_caps_the_layers_it_names():
    groups = [group("stage1.a", 20), group("stage4.a", 20), group("stage4.b", 20)]
    scores = {g.name: torch.ones(20) * i for i, g in enumerate(groups)}
    config = SearchConfig(limits={"stage4.*": 0.3, "stage4.b": 0.1})
    keep = search(groups, scores, channel_share(groups), {"macs": 28 / 60}, config)
    assert [int(keep[g.name].sum()) for g in groups] == [20, 6, 2]
    with pytest.raises(UserError, match=r"nearest found is macs=0.4667"):
        search(groups, scores, channel_share(groups), {"macs": 0.9}, config)


def test_by_layer_every_layer_keeps_the_same_share():
    groups = [group("a", 10), group("b", 40), group("c", 100)]
    scores = {g.name: torch.arange(float(g.channels)) * 10**i for i, g in enumerate(groups)}
    keep = search(groups, scores, channel_share(groups), {"macs": 0.5}, SearchConfig(scope="layer"))
    assert [int(keep[g.name].sum()) for g in groups] == [5, 20, 50]
    assert keep["b"].tolist() == [False] * 20 + [True] * 20


def test_whole_blocks_are_units_of_their_own():
    blocks = [ChannelGroup(f"block{i}", 1, 1, (), ("norm",), (), block=True) for i in range(4)]
    groups = [group("inner", 10), *blocks]
    scores = {"inner": torch.ones(10), **{f"block{i}": torch.tensor([float(i)]) for i in range(3)}}

    def cost(widths):
        share = (widths["inner"] / 5 + 2 * sum(widths[block.name] for block in blocks)) / 10
        return {"macs": share, "parameters": share}

    keep = search(groups, scores, cost, {"macs": 0.6})
    assert [bool(keep[block.name]) for block in blocks] == [False, False, True, True]  # the last has no score
    assert keep["inner"].all()


# Costs that are measured -------------------------------------------------------------------------


def test_a_measured_cost_is_bisected_and_asked_seldom():
    groups = [group("g", 600)]
    asked = []

    def milliseconds(widths):
        asked.append(widths["g"])
        return 0.3 + 0.7 * widths["g"] / 600

    scores, cost = {"g": torch.arange(600.0)}, channel_share(groups)
    keep = search(groups, scores, cost, {"latency": 0.7}, measured={"latency": milliseconds})
    kept = int(keep["g"].sum())
    assert 0.7 * (1 - MEASURED_TOLERANCE) <= milliseconds({"g": kept}) <= 0.7
    assert len(asked) < 15
    keep = search(groups, scores, cost, {"latency": 0.7, "macs": 0.3}, measured={"latency": milliseconds})
    assert int(keep["g"].sum()) == 180  # the other budget binds
    with pytest.raises(UserError, match=r"latency=0.2 cannot be met in whole units: nearest found is latency=0.30"):
        search(groups, scores, cost, {"latency": 0.2}, measured={"latency": milliseconds})


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"scope": "block"}, "pruning.scope is block; known are global, layer"),
        ({"minimum": 0}, "pruning.minimum is 0; it must be a whole number of at least 1"),
        ({"multiple": 0}, "pruning.multiple is 0"),
        ({"minimum_share": 1.5}, "minimum_share is 1.5; it must be a number from 0 to 1"),
        ({"limits": {"stem": 0.0}}, "stem=0.0 is not a share"),
        ({"limits": {"stem": float("nan")}}, "stem=nan is not a share"),
        ({"limits": {"stage9.*": 0.5}}, "no layer that this method cuts is called 'stage9.[*]'; it cuts a, b"),
        ({"limits": {"a": 0.2}, "minimum_share": 0.5}, "at most 0.2 of a's 10 channels"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, complaint):
    groups = [group("a", 10), group("b", 10)]
    scores = {g.name: torch.arange(10.0) for g in groups}
    with pytest.raises(UserError, match=complaint):
        search(groups, scores, channel_share(groups), {"macs": 0.5}, SearchConfig(**settings))

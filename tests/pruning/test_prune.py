"""Pruning end to end, on the published network and on small ones."""

import json

import pytest
import torch

from navprune.errors import UserError
from navprune.evaluation.cost import cost as full_cost
from navprune.models.spec import PolicySpec, build, encoder_spec, widths, with_widths
from navprune.pruning.gates import EXPERT, GateConfig
from navprune.pruning.groups import groups_of, is_inner, units
from navprune.pruning.methods import GATES
from navprune.pruning.prune import expanded, prune, weights_hash
from navprune.pruning.scores import SCORES
from navprune.pruning.slim import encoder_of, slim
from navprune.tasks import GOAL

PUBLISHED = {"macs": 0.488, "parameters": 0.435}  # 0.60 of 1.23 Gi and 2.43 of 5.59 Mi


def table1(spec):
    counted = full_cost(spec)
    return {"macs": counted.table1_macs, "parameters": counted.table1_parameters}


def batches(side, count=4):
    """Noise with noise for an expert: enough to turn gates away from 1."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "depth": torch.rand(4, side, side, 1, generator=generator),
            GOAL: torch.rand(4, 2, generator=generator),
            EXPERT: torch.randint(4, (4,), generator=generator),
        }
        for _ in range(count)
    ]


@pytest.mark.parametrize("method", [*SCORES, GATES])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("budget", [PUBLISHED, {"macs": 0.25}, {"parameters": 0.75}], ids=str)
def test_budgets_are_met_from_below_within_one_per_cent(name, method, budget):
    spec = encoder_spec(name, (1, 64, 64), 32)
    result = prune(spec, method, budget, table1, batches=batches(64, 1))
    dense, slimmed = table1(spec), table1(result.spec)
    loads = {measure: slimmed[measure] / dense[measure] / limit for measure, limit in budget.items()}
    assert 0.99 <= max(loads.values()) <= 1
    assert result.reached == {measure: slimmed[measure] / dense[measure] for measure in dense}
    assert widths(result.spec) == {width: after for width, (_, after) in result.widths.items()}
    assert widths(spec) == {width: before for width, (before, _) in result.widths.items()}
    assert min(after for _, after in result.widths.values()) >= 1


@pytest.mark.parametrize("method", ["magnitude", GATES])
def test_excited_and_grouped_networks_meet_their_budget(method):
    spec = encoder_spec("se_resneXt50", (1, 64, 64), 8)
    result = prune(spec, method, {"macs": 0.5}, table1, batches=batches(64, 1), tolerance=0.05)
    assert 0.475 <= result.reached["macs"] <= 0.5
    assert all(after % spec.units[name] == 0 for name, (_, after) in result.widths.items())
    assert any(name.endswith(".se") and after < before for name, (before, after) in result.widths.items())


@pytest.mark.parametrize("method", [*SCORES, GATES])
def test_the_same_seed_gives_the_same_network(method):
    spec = encoder_spec("resnet18", (1, 32, 32), 8)

    def pruned(seed):
        return prune(spec, method, {"macs": 0.5}, table1, seed=seed, batches=batches(32), tolerance=0.1)

    first, second, other = pruned(0), pruned(0), pruned(1)
    assert weights_hash(first.model) == weights_hash(second.model) != weights_hash(other.model)
    assert first.initial_weights == second.initial_weights != other.initial_weights


def test_a_trained_policy_keeps_its_weights():
    policy = build(PolicySpec(encoder_spec("resnet18", (1, 32, 32), 8), 16, 16), seed=7)
    before = weights_hash(policy)
    result = prune(policy, "magnitude", {"macs": 0.5}, table1, tolerance=0.1)
    assert weights_hash(policy) == before == result.initial_weights
    assert weights_hash(result.model) == weights_hash(slim(policy, result.keep))
    for name, tensor in result.model.state_dict().items():
        if "visual_encoder" not in name:
            assert torch.equal(tensor, policy.state_dict()[name])


def test_fresh_weights_belong_to_the_slim_spec():
    result = prune(encoder_spec("simple_cnn", (1, 64, 64)), "uniform", {"parameters": 0.5}, table1, tolerance=0.1)
    fresh = result.fresh(3)
    assert fresh.spec == result.spec
    assert weights_hash(fresh) == weights_hash(result.fresh(3)) != weights_hash(result.fresh(4))
    assert weights_hash(fresh) != weights_hash(result.model)


def test_gates_search_a_wider_network_and_cut_only_inside_blocks():
    spec = encoder_spec("resnet50", (1, 32, 32), 8)
    policy = PolicySpec(spec, 16, 16)
    wide = encoder_of(expanded(policy, 1.25))
    result = prune(policy, GATES, {"macs": 0.5}, table1, batches=batches(32), tolerance=0.1)
    for group in groups_of(build(wide, 0)):
        before, after = result.widths[group.name]
        assert (before, group.channels) == (widths(spec)[group.name], round(1.25 * before))
        assert len(result.keep[group.name]) == units(group)
        if not is_inner(group):
            assert after == group.channels
    assert isinstance(result.spec, PolicySpec)


def test_gates_ignore_the_weights_they_are_given():
    spec = encoder_spec("resnet18", (1, 32, 32), 8)
    options = dict(batches=batches(32), gates=GateConfig(expansion=1), tolerance=0.1)
    first = prune(build(spec, 1), GATES, {"macs": 0.5}, table1, **options)
    second = prune(build(spec, 2), GATES, {"macs": 0.5}, table1, **options)
    assert first.initial_weights == second.initial_weights == weights_hash(build(spec, 0))


def test_expansion_rounds_to_whole_units():
    spec = encoder_spec("resnet18", (1, 32, 32), 8, groups=2)
    wide = expanded(spec, 1.25)
    assert wide.by_name["stem"].channels == 8  # 2.5 units of 4 round to 2
    assert wide == with_widths(spec, {layer.name: layer.channels for layer in wide.layers})
    assert {(a.group, b.group) for a, b in zip(spec.layers, wide.layers) if a.group != b.group} == set()


def test_the_minimum_stays():
    spec = encoder_spec("resnet50", (1, 32, 32), 16)
    result = prune(spec, "random", {"parameters": 0.4}, table1, minimum=4)
    assert min(int(kept.sum()) for kept in result.keep.values()) >= 4


def test_the_report_is_json():
    spec = encoder_spec("resnet18", (1, 32, 32), 8)
    result = prune(spec, "random", {"macs": 0.5}, table1, tolerance=0.1, seed=5)
    data = json.loads(json.dumps(result.to_json()))
    assert data["method"] == "random" and data["seed"] == 5 and data["budget"] == {"macs": 0.5}
    assert data["initial_weights"] == weights_hash(build(spec, 5))
    for layer in spec.layers:
        before, after = data["widths"][layer.name]
        assert before == layer.channels and after == layer.group * sum(data["keep"][layer.name])
        assert len(data["scores"][layer.name]) == len(data["keep"][layer.name])


@pytest.mark.parametrize(
    ("method", "budget", "complaint"),
    [
        ("magnitudes", {"macs": 0.5}, "unknown pruning method 'magnitudes'"),
        ("random", {"macs": 1.5}, "macs=1.5 is not a share"),
        ("random", {}, "budget is empty"),
        ("random", {"milliseconds": 0.5}, "unknown measure 'milliseconds'"),
        ("random", {"macs": 0.0001}, "nearest is macs="),
        (GATES, {"macs": 0.5}, "give batches"),
    ],
)
def test_what_cannot_be_done_is_refused(method, budget, complaint):
    with pytest.raises(UserError, match=complaint):
        prune(encoder_spec("resnet18", (1, 32, 32), 8), method, budget, table1)


def test_a_blind_agent_cannot_be_pruned():
    with pytest.raises(UserError, match="no channels to prune"):
        prune(PolicySpec(encoder_spec("blind"), 16, 16), "random", {"macs": 0.5}, table1)

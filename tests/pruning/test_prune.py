"""Pruning end to end, on the published network and on small ones."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from navprune.costs.counting import GI, MI
from navprune.costs.counting import cost as full_cost
from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.classifiers import classifier_spec
from navprune.models.spec import PolicySpec, encoder_spec
from navprune.models.widths import widths, with_widths
from navprune.pruning.config import GateConfig, PruningConfig
from navprune.pruning.groups import is_inner, units
from navprune.pruning.losses import EXPERT, Imitation, classification_loss, labelled_batches
from navprune.pruning.methods import GATES, METHODS, PROBE, TORCH_PRUNING
from navprune.pruning.methods.gates import expanded
from navprune.pruning.methods.scores import SCORES
from navprune.pruning.prune import prune, weights_hash
from navprune.pruning.slim import encoder_of
from navprune.pruning.structure import structure_of
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


USUAL = PruningConfig()
LOOSE = PruningConfig(tolerance=0.1)


def pruned(network, method, budget, asked=USUAL, **evidence):
    """`prune` to shares by name."""
    text = ",".join(f"{name}={share!r}" for name, share in budget.items())
    return prune(network, replace(asked, method=method, budget=text), **evidence)


def loss_for(method, spec):
    """Imitation by an untrained readout: a slope, and no more is asked here."""
    return Imitation(build(spec, 0), torch.Generator().manual_seed(0)) if method == "taylor" else None


@pytest.mark.parametrize("method", [method for method in METHODS if method not in (TORCH_PRUNING, PROBE)])
def test_every_method_reaches_both_reductions_of_table_1(method):
    spec = encoder_spec("resnet50", (1, 64, 64))
    result = pruned(spec, method, PUBLISHED, batches=batches(64, 1), loss=loss_for(method, spec))
    assert all(0.99 * limit <= result.reached[name] <= limit for name, limit in PUBLISHED.items())
    assert table1(result.spec)["macs"] / GI == pytest.approx(0.60, abs=0.006)
    assert table1(result.spec)["parameters"] / MI == pytest.approx(2.43, abs=0.024)


@pytest.mark.parametrize("method", ["l1", "random", "uniform", GATES])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("budget", [{"macs": 0.25}, {"parameters": 0.75}], ids=str)
def test_budgets_are_met_from_below_within_one_per_cent(name, method, budget):
    spec = encoder_spec(name, (1, 64, 64), 32)
    result = pruned(spec, method, budget, batches=batches(64, 1))
    dense, slimmed = table1(spec), table1(result.spec)
    loads = {measure: slimmed[measure] / dense[measure] / limit for measure, limit in budget.items()}
    assert 0.99 <= max(loads.values()) <= 1
    assert result.reached == {measure: slimmed[measure] / dense[measure] for measure in dense}
    assert result.equal_compute == pytest.approx(dense["macs"] / slimmed["macs"])
    assert widths(result.spec) == {width: after for width, (_, after) in result.widths.items()}
    assert widths(spec) == {width: before for width, (before, _) in result.widths.items()}
    assert min(after for _, after in result.widths.values()) >= 1


@pytest.mark.parametrize("method", ["magnitude", GATES])
def test_excited_and_grouped_networks_meet_their_budget(method):
    spec = encoder_spec("se_resneXt50", (1, 64, 64), 8)
    asked = PruningConfig(tolerance=0.05)
    result = pruned(spec, method, {"macs": 0.5}, batches=batches(64, 1), asked=asked)
    assert 0.475 <= result.reached["macs"] <= 0.5
    assert all(after % spec.unit_channels[name] == 0 for name, (_, after) in result.widths.items())
    assert any(name.endswith(".se") and after < before for name, (before, after) in result.widths.items())


@pytest.mark.parametrize("method", [*SCORES, GATES])
def test_the_same_seed_gives_the_same_network(method):
    spec = encoder_spec("resnet18", (1, 32, 32), 8)

    def of(seed):
        loss = loss_for(method, spec)
        return pruned(spec, method, {"macs": 0.5}, seed=seed, batches=batches(32), loss=loss, asked=LOOSE)

    first, second, other = of(0), of(0), of(1)
    assert weights_hash(first.model) == weights_hash(second.model) != weights_hash(other.model)
    assert first.initial_weights == second.initial_weights != other.initial_weights


def test_a_trained_policy_keeps_its_weights():
    policy = build(PolicySpec(encoder_spec("resnet18", (1, 32, 32), 8), 16, 16), seed=7)
    before = weights_hash(policy)
    result = pruned(policy, "magnitude", {"macs": 0.5}, asked=LOOSE)
    assert weights_hash(policy) == before == result.initial_weights
    assert weights_hash(result.model) == weights_hash(structure_of(policy).slim(result.keep))
    for name, tensor in result.model.state_dict().items():
        if "visual_encoder" not in name:
            assert torch.equal(tensor, policy.state_dict()[name])


def test_fresh_weights_belong_to_the_slim_spec():
    result = pruned(encoder_spec("simple_cnn", (1, 64, 64)), "uniform", {"parameters": 0.5}, asked=LOOSE)
    fresh = result.fresh(3)
    assert fresh.spec == result.spec
    assert weights_hash(fresh) == weights_hash(result.fresh(3)) != weights_hash(result.fresh(4))
    assert weights_hash(fresh) != weights_hash(result.model)


def test_gates_search_a_wider_network_and_cut_only_inside_blocks():
    spec = encoder_spec("resnet50", (1, 32, 32), 8)
    policy = PolicySpec(spec, 16, 16)
    wide = encoder_of(expanded(policy, 1.25))
    result = pruned(policy, GATES, {"macs": 0.5}, batches=batches(32), asked=LOOSE)
    for group in structure_of(build(wide, 0)).groups:
        before, after = result.widths[group.name]
        assert (before, group.channels) == (widths(spec)[group.name], round(1.25 * before))
        assert len(result.keep[group.name]) == units(group)
        if not is_inner(group):
            assert after == group.channels
    assert isinstance(result.spec, PolicySpec)


def test_limits_are_shares_of_the_dense_network_with_gates_too():
    spec = encoder_spec("resnet18", (1, 32, 32), 32)
    asked = PruningConfig(limits={"stage4.*": 0.5}, tolerance=0.1)
    result = pruned(spec, GATES, {"macs": 0.5}, batches=batches(32, 2), asked=asked)
    kept = [after / before for name, (before, after) in result.widths.items() if name.startswith("stage4.block1")]
    assert kept and max(kept) <= 0.5


@pytest.mark.parametrize(
    ("budget", "limits", "complaint"),
    [({"macs": 0.01}, {}, "nearest found"), ({"macs": 0.5}, {"stage9.*": 0.5}, "no layer that this method cuts")],
)
def test_what_cannot_be_met_is_refused_before_anything_is_looked_at(budget, limits, complaint):
    def unreachable(model):
        raise AssertionError("a batch was drawn")
        yield

    with pytest.raises(UserError, match=complaint):
        pruned(encoder_spec("resnet18", (1, 32, 32), 32), GATES, budget, batches=unreachable,
              asked=PruningConfig(limits=limits))  # fmt: skip


def test_gates_ignore_the_weights_they_are_given():
    spec = encoder_spec("resnet18", (1, 32, 32), 8)
    options = dict(batches=batches(32), asked=replace(LOOSE, gates=GateConfig(expansion=1)))
    first = pruned(build(spec, 1), GATES, {"macs": 0.5}, **options)
    second = pruned(build(spec, 2), GATES, {"macs": 0.5}, **options)
    assert first.initial_weights == second.initial_weights == weights_hash(build(spec, 0))


def test_an_encoder_of_ours_in_a_module_of_ones_own_is_cut():
    class Agent(nn.Module):
        def __init__(self):
            super().__init__()
            self.eyes = build(encoder_spec("resnet18", (1, 32, 32), 8), 0)
            self.memory = nn.GRU(4, 4)

        def forward(self, images):
            return self.eyes(images)

    result = pruned(Agent(), "l1", {"macs": 0.5}, asked=LOOSE, example=torch.rand(1, 1, 32, 32))
    assert 0.45 <= result.reached["macs"] <= 0.5
    assert table1(result.model.eyes.spec)["macs"] < table1(encoder_spec("resnet18", (1, 32, 32), 8))["macs"]
    assert pruned(Agent(), "l1", {"macs": 0.5}, asked=LOOSE).reached == result.reached  # it needs no example


@pytest.mark.parametrize("network", ["resnet50", None])
def test_what_is_no_network_is_refused(network):
    with pytest.raises(UserError, match="a network or a spec, not"):
        pruned(network, "l1", {"macs": 0.5})


def test_any_precision_has_a_hash():
    model = build(encoder_spec("resnet18", (1, 32, 32), 8), 0)
    before = weights_hash(model)
    assert weights_hash(model.bfloat16()) != before


def test_gates_of_a_module_need_a_loss():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    images = torch.rand(4, 1, 8, 8)
    model(images)
    with pytest.raises(UserError, match="gates follow a loss"):
        pruned(model, GATES, {"macs": 0.5}, batches=[images], example=images)


def test_expansion_rounds_to_whole_units():
    spec = encoder_spec("resnet18", (1, 32, 32), 8, groups=2)
    wide = expanded(spec, 1.25)
    assert wide.by_name["stem"].channels == 8  # 2.5 units of 4 round to 2
    assert wide == with_widths(spec, {layer.name: layer.channels for layer in wide.layers})
    assert {(a.group, b.group) for a, b in zip(spec.layers, wide.layers) if a.group != b.group} == set()


def test_the_minimum_stays():
    spec = encoder_spec("resnet50", (1, 32, 32), 16)
    result = pruned(spec, "random", {"parameters": 0.4}, asked=PruningConfig(minimum=4))
    assert min(int(kept.sum()) for kept in result.keep.values()) >= 4


def test_the_report_is_json():
    spec = encoder_spec("resnet18", (1, 32, 32), 8)
    result = pruned(spec, "random", {"macs": 0.5}, asked=LOOSE, seed=5)
    data = json.loads(json.dumps(result.to_json()))
    assert data["method"] == "random" and data["seed"] == 5 and data["budget"] == {"macs": 0.5}
    assert data["initial_weights"] == weights_hash(build(spec, 5))
    assert data["settings"]["search"]["tolerance"] == 0.1 and data["blocks_removed"] == []
    assert 0 < data["search_seconds"] <= data["seconds"]
    assert data["equal_compute"] == pytest.approx(1 / data["reached"]["macs"])
    for layer in spec.layers:
        before, after = data["widths"][layer.name]
        assert before == layer.channels and after == layer.group * sum(data["keep"][layer.name])
        assert len(data["scores"][layer.name]) == len(data["keep"][layer.name])


@pytest.mark.parametrize(
    ("method", "budget", "complaint"),
    [
        ("magnitudes", {"macs": 0.5}, "pruning.method is magnitudes; known are null, gates, probe, l1"),
        ("random", {"macs": 1.5}, "macs=1.5 is not a share"),
        ("random", {}, "budget is empty"),
        ("random", {"milliseconds": 0.5}, "unknown measure 'milliseconds'"),
        ("random", {"macs": 0.0001}, "nearest found is macs="),
        (GATES, {"macs": 0.5}, "give batches"),
    ],
)
def test_what_cannot_be_done_is_refused(method, budget, complaint):
    with pytest.raises(UserError, match=complaint):
        pruned(encoder_spec("resnet18", (1, 32, 32), 8), method, budget)


def test_a_blind_agent_cannot_be_pruned():
    with pytest.raises(UserError, match="no channels to prune"):
        pruned(PolicySpec(encoder_spec("blind"), 16, 16), "random", {"macs": 0.5})


# Everything that can be cut ----------------------------------------------------------------------


def labelled(count=8):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, 32, 32, generator=generator)
    return labelled_batches(images, torch.randint(4, (count,), generator=generator), count // 2, 1, generator)


@pytest.mark.parametrize("method", ["l1", GATES])
@pytest.mark.parametrize("name", ["cifar_resnet56", "cifar_vgg16_bn"])
def test_classifiers_are_pruned(name, method):
    spec = classifier_spec(name, 4)
    result = pruned(spec, method, {"macs": 0.5}, batches=labelled())
    assert 0.495 <= result.reached["macs"] <= 0.5
    assert result.spec.widths == {width: after for width, (_, after) in result.widths.items()}
    assert result.model(torch.zeros(2, 3, 32, 32)).shape == (2, 4)
    assert weights_hash(result.fresh(1)) != weights_hash(result.model)


def sequence():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 40, 3), nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 60, 3), nn.GroupNorm(20, 60), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(60, 4),
    )  # fmt: skip


@pytest.mark.parametrize("method", ["l1", "taylor", GATES])
def test_modules_from_elsewhere_are_pruned(method):
    example = torch.zeros(1, 3, 32, 32)
    model = sequence()
    before = weights_hash(model)
    options = dict(batches=labelled(), loss=classification_loss, example=example)
    result = pruned(model, method, {"parameters": 0.5}, asked=PruningConfig(tolerance=0.05), **options)
    assert weights_hash(model) == before == result.initial_weights
    kept = sum(parameter.numel() for parameter in result.model.parameters())
    whole = sum(parameter.numel() for parameter in model.parameters())
    assert result.reached["parameters"] == pytest.approx(kept / whole)
    assert result.model(torch.zeros(2, 3, 32, 32)).shape == (2, 4)
    with pytest.raises(UserError, match="comes from no spec"):
        result.fresh(0)


def test_whole_blocks_may_go():
    policy = build(PolicySpec(encoder_spec("resnet50", (1, 32, 32), 8), 16, 16), 0)
    with torch.no_grad():  # two blocks that say little
        for block in (policy.encoder.backbone.layer2[2], policy.encoder.backbone.layer3[4]):
            for layer in block.convs:
                if hasattr(layer, "weight"):
                    layer.weight.mul_(1e-3)
    result = pruned(policy, "l1", {"macs": 0.8}, asked=replace(LOOSE, blocks=True))
    assert {"stage2.block2", "stage3.block4"} <= set(result.blocks)
    removed = tuple(f"{block}." for block in result.blocks)
    assert all((after == 0) == name.startswith(removed) for name, (_, after) in result.widths.items())
    assert sum(result.spec.encoder.blocks) == 16 - len(result.blocks)
    slimmed, dense = table1(result.spec.encoder), table1(policy.spec.encoder)
    assert result.reached["macs"] == slimmed["macs"] / dense["macs"] <= 0.8
    assert result.to_json()["blocks_removed"] == list(result.blocks)


def test_a_cost_of_ones_own_is_a_budget():
    spec = encoder_spec("resnet18", (1, 32, 32), 16)
    asked = []

    def stem(widths):
        asked.append(dict(widths))
        return widths["stem"] / 16

    scores = pruned(spec, "random", {"stem": 0.5}, costs={"stem": stem})
    assert scores.reached["stem"] == 0.5
    assert len(asked) == len({tuple(each.items()) for each in asked})  # a measurement is not repeated


# What does not fit -------------------------------------------------------------------------------


def test_a_network_that_is_not_what_its_spec_says_is_refused():
    model = build(encoder_spec("resnet18", (1, 32, 32), 8), 0)
    model.spec = with_widths(model.spec, {"stem": 4})
    with pytest.raises(UserError, match="does not fit its spec"):
        pruned(model, "l1", {"macs": 0.5})


def test_what_is_missing_is_named():
    with pytest.raises(UserError, match="an example of its input"):
        pruned(sequence(), "l1", {"macs": 0.5})
    with pytest.raises(UserError, match=r"images of \[1, 36, 36\]"):
        pruned(encoder_spec("resnet18", (1, 32, 32), 8), GATES, {"macs": 0.5}, batches=batches(36))

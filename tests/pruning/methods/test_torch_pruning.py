"""The control: cut by Torch-Pruning to the same budget, expressed in our spec, and how inexact it is."""

import copy
import json
import sys
from dataclasses import replace

import pytest
import torch

from navprune.commands.prune import pruning_json
from navprune.costs.counting import cost as full_cost
from navprune.errors import UserError
from navprune.models.build import build, spec_from_json
from navprune.models.classifiers import classifier_spec
from navprune.models.spec import EncoderSpec, PolicySpec, encoder_spec
from navprune.pruning.config import PruningConfig
from navprune.pruning.groups import encoder_in, units
from navprune.pruning.methods import torch_pruning as control
from navprune.pruning.prune import prune, weights_hash
from navprune.pruning.structure import structure_of
from navprune.tasks import GOAL

library = pytest.importorskip("torch_pruning")

ASKED = PruningConfig(method="torch-pruning", budget="macs=0.5")
NAMES = ["resnet18", "resnet50", "se_resnet50", "resneXt50"]


def table1(spec):
    counted = full_cost(spec)
    return {"macs": counted.table1_macs, "parameters": counted.table1_parameters}


def halves(encoder):
    """A keep of our units that cuts every width to about a half."""
    return {group.name: torch.arange(units(group)) % 2 == 0 for group in encoder.groups()}


@pytest.mark.parametrize("name", NAMES)
def test_our_spec_builds_the_network_that_torch_pruning_left(name, monkeypatch):
    encoder = build(encoder_spec(name, (1, 64, 64), 8), 0).double().eval()
    left = []
    deepcopy = copy.deepcopy
    monkeypatch.setattr(control.copy, "deepcopy", lambda module: left.append(deepcopy(module)) or left[-1])
    small, keep = control._cut_by(library, encoder, 0.5)
    images = torch.rand(2, 1, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(small(images), left[-1](images), rtol=1e-10, atol=1e-10)
    assert EncoderSpec.from_json(small.spec.to_json()) == small.spec
    for group, after in zip(encoder.groups(), small.groups()):
        assert after.channels == keep[group.name].sum()
        norms = [(encoder.get_submodule(n).num_groups, small.get_submodule(n).num_groups) for n in group.norms]
        assert all(before == here for before, here in norms)
    cut = [name for name, kept in keep.items() if not kept.all()]
    assert len(cut) > len(keep) / 2
    if name == "resneXt50":
        assert keep["stage2.block0.conv1"].all()  # no thinner groups of a grouped convolution in our spec


@pytest.mark.parametrize("name", NAMES)
def test_ours_is_exact_and_theirs_is_not_under_group_norm(name):
    encoder = build(encoder_spec(name, (1, 64, 64), 8), 0).eval()
    images = torch.rand(4, 1, 64, 64)
    ours = halves(encoder)
    assert control.departure(encoder, structure_of(encoder).slim(ours), ours, images) < 1e-5
    small, theirs = control.cut(structure_of(encoder), {"macs": 0.5})
    assert control.departure(encoder, small, theirs, images) > 0.01


def test_without_norms_theirs_is_exact_too():
    encoder = build(encoder_spec("simple_cnn", (1, 64, 64)), 0).eval()
    small, keep = control.cut(structure_of(encoder), {"macs": 0.5})
    assert control.departure(encoder, small, keep, torch.rand(4, 1, 64, 64)) < 1e-5
    assert not keep["conv1"].all()


@pytest.mark.parametrize("budget", [{"macs": 0.3}, {"parameters": 0.75}, {"macs": 0.488, "parameters": 0.435}], ids=str)
def test_budgets_are_met_from_below(budget):
    encoder = build(encoder_spec("resnet18", (1, 64, 64), 16), 0)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    small, _ = control.cut(structure_of(encoder), budget)
    dense, slimmed = table1(encoder.spec), table1(small.spec)
    assert 0.95 <= max(slimmed[name] / dense[name] / share for name, share in budget.items()) <= 1
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_a_whole_policy_keeps_its_core():
    policy = build(PolicySpec(encoder_spec("resnet18", (1, 64, 64), 8), 16, 16, "lstm", 2), 0)
    small, keep = control.cut(structure_of(policy), {"macs": 0.5}, tolerance=0.1)
    assert small.spec.encoder == encoder_in(small)[1].spec != policy.spec.encoder
    state, after = policy.state_dict(), small.state_dict()
    assert all(torch.equal(after[name], state[name]) for name in state if "visual_encoder" not in name)
    stem = "net.visual_encoder.backbone.conv1.0.weight"
    assert torch.equal(after[stem], state[stem][keep["stem"]])
    observations = {"depth": torch.rand(3, 64, 64, 1), GOAL: torch.rand(3, 2)}
    rest = small.initial_state(3), torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.bool)
    assert small(observations, *rest).logits.shape == (3, 4)


def test_the_same_network_comes_again():
    encoder = build(encoder_spec("resnet18", (1, 64, 64), 8), 0)
    first, second = (control.cut(structure_of(encoder), {"macs": 0.5}, tolerance=0.1) for _ in range(2))
    assert first.model.spec == second.model.spec
    assert all(torch.equal(first.keep[name], second.keep[name]) for name in first.keep)


def test_it_is_a_method_like_any_other():
    spec = PolicySpec(encoder_spec("resnet18", (1, 64, 64), 16), 16, 16)
    result = prune(spec, ASKED, seed=3)
    assert 0.95 * 0.5 <= result.reached["macs"] <= 0.5
    assert weights_hash(build(spec, 3)) == result.initial_weights
    assert {name: int(kept.sum()) for name, kept in result.keep.items()} == {
        name: after for name, (_, after) in result.widths.items()
    }
    data = json.loads(json.dumps(pruning_json(result, 1000)))
    assert data["after"] == full_cost(result.spec).to_json() and data["before"] == full_cost(spec).to_json()
    assert spec_from_json(result.spec.to_json()) == result.spec
    with pytest.raises(UserError, match="torch-pruning knows no limits"):
        prune(spec, replace(ASKED, limits={"stem": 0.5}))
    with pytest.raises(UserError, match="for encoders and policies alone"):
        prune(classifier_spec("cifar_resnet56", 10), ASKED)


def test_what_cannot_be_done_is_refused(monkeypatch):
    encoder = build(encoder_spec("resnet18", (1, 64, 64), 8), 0)
    with pytest.raises(UserError, match=r"cannot meet the budget macs=0\.001"):
        control.cut(structure_of(encoder), {"macs": 0.001})
    with pytest.raises(UserError, match=r"macs=2\.0 is not a share"):
        control.cut(structure_of(encoder), {"macs": 2.0})
    with pytest.raises(UserError, match="no channels to prune"):
        control.cut(structure_of(torch.nn.Linear(2, 2)), {"macs": 0.5})
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(UserError, match=r"pip install 'torch-pruning>=1.6'"):
        control.cut(structure_of(encoder), {"macs": 0.5})

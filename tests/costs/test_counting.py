from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from navprune.costs.counting import GI, MI, breakdown, cost, cost_json, cost_rows, count
from navprune.models.build import build
from navprune.models.classifiers import CLASSIFIERS, classifier_spec
from navprune.models.spec import PolicySpec, encoder_spec
from navprune.models.widths import with_widths

PUBLISHED = {"resnet50": (1.2310, 5.5913), "resnet18": (0.5396, 2.6617)}


def _counted(module: nn.Module, images: torch.Tensor) -> int:
    """Multiply-accumulates of the convolutions and linear layers that run, from the shapes that they meet."""
    macs = []

    def count(conv, inputs, output):
        macs.append(output[0].numel() * conv.weight[0].numel())

    hooks = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.inference_mode():
        module(images)
    for hook in hooks:
        hook.remove()
    return sum(macs)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_table_to_the_last_digit(name):
    table1 = cost(encoder_spec(name)).to_json()["table1"]
    assert (table1["macs_gi"], table1["parameters_mi"]) == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_table_counts_the_backbone_alone_on_an_unpooled_image(name):
    spec = encoder_spec(name)
    backbone: Any = build(spec).backbone
    weights = sum(m.weight.numel() for m in backbone.modules() if isinstance(m, nn.Conv2d))
    assert cost(spec).table1_macs == _counted(backbone, torch.rand(1, 1, 256, 256))
    assert cost(spec).table1_parameters == weights


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(["resnet18", "resnet50", "resneXt50", "se_resneXt50", "simple_cnn"]),
    st.sampled_from([1, 3, 4]),
    st.tuples(st.integers(36, 100), st.integers(36, 100)),
    st.floats(0.1, 1.2),
)
def test_deployed_cost_is_that_of_the_module(name, channels, size, width):
    spec = encoder_spec(name, (channels, *size), base_planes=8, width=width)
    encoder = build(spec)
    assert cost(spec).macs == _counted(encoder, torch.rand(1, *spec.input))
    assert cost(spec).parameters == sum(p.numel() for p in encoder.parameters())


def test_breakdown_adds_up():
    spec = encoder_spec("se_resneXt50", width=0.7)
    rows = breakdown(spec)
    assert sum(row.macs for row in rows) == cost(spec).macs
    assert sum(row.parameters for row in rows) == cost(spec).parameters
    assert all(torch.Size(row.shape).numel() * row.output[0] * row.output[1] == row.macs for row in rows)


@given(st.data())
def test_a_narrower_width_never_costs_more(data):
    spec = encoder_spec(data.draw(st.sampled_from(["resnet18", "resnet50", "se_resneXt50"])))
    layer = data.draw(st.sampled_from(spec.layers))
    slim = with_widths(spec, {layer.name: layer.channels - spec.unit_channels[layer.name]})
    assert cost(slim).macs < cost(spec).macs and cost(slim).parameters < cost(spec).parameters
    assert cost(slim).table1_macs < cost(spec).table1_macs


def test_keys_and_units_of_the_json():
    spec = encoder_spec("resnet18", (1, 128, 128))
    result = cost(spec).to_json()
    assert result.keys() == {"table1", "deployed", "input"} and result["input"] == [1, 128, 128]
    assert result["table1"]["macs_gi"] == pytest.approx(cost(spec).table1_macs / GI, abs=5e-5)
    assert result["table1"]["parameters_mi"] == pytest.approx(cost(spec).table1_parameters / MI, abs=5e-5)
    assert result["deployed"] == {"macs": cost(spec).macs, "parameters": cost(spec).parameters}


def test_the_table_does_not_depend_on_the_deployed_image():
    small, large = cost(encoder_spec("resnet18", (1, 64, 64))), cost(encoder_spec("resnet18"))
    assert small.table1_macs == large.table1_macs and small.macs < large.macs


def test_a_policy_costs_what_its_encoder_costs():
    spec = encoder_spec("resnet18")
    assert cost(PolicySpec(spec)) == cost(spec)
    blind = cost(encoder_spec("blind"))
    assert blind.macs == blind.parameters == blind.table1_macs == 0


def test_vgg_costs_what_thop_counts():
    with torch.device("meta"):
        model = build(classifier_spec("vgg16_bn", 100))
        counted = count(model.train(), torch.empty(2, 3, 224, 224))
    assert counted == (15_466_577_920, 134_678_692, 15_507_270_656)
    assert all(module.training and not module._forward_hooks for module in model.modules())


def test_counting_a_module_agrees_with_the_spec():
    spec = encoder_spec("se_resneXt50", (1, 64, 64), 8)
    counted = count(build(spec, 0), torch.rand(1, 1, 64, 64))
    assert counted.parameters == cost(spec).parameters


def test_the_json_of_vgg_has_the_published_figures():
    found = cost_json(classifier_spec("vgg16_bn"))
    assert found["thop"] == {"operations": 15_507_270_656, "parameters": 134_678_692}
    assert found["deployed"] == {"macs": 15_466_577_920, "parameters": 134_678_692}
    assert found["input"] == [3, 224, 224]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_rows_of_a_classifier_add_up(name):
    spec = classifier_spec(name, 7, (3, 32, 40), width=0.1)
    rows, whole = cost_rows(spec), cost_json(spec)
    assert (
        sum(row["macs"] for row in rows) == whole["deployed"]["macs"] == _counted(build(spec), torch.rand(1, 3, 32, 40))
    )
    assert sum(row["parameters"] for row in rows) == whole["thop"]["parameters"]
    assert sum(row["thop"] for row in rows) == whole["thop"]["operations"]


def test_rows_of_an_encoder_are_its_breakdown():
    spec = PolicySpec(encoder_spec("resnet18"))
    assert cost_json(spec) == cost(spec).to_json()
    assert [row["macs"] for row in cost_rows(spec)] == [row.macs for row in breakdown(spec)]

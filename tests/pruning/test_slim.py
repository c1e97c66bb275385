"""The law of the package: a slimmed model computes what the masked one computes."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from navprune.errors import UserError
from navprune.models.spec import EncoderSpec, Layer, PolicySpec, build, convolutions, encoder_spec, widths, with_widths
from navprune.pruning.groups import groups_of, mask, scaled, units
from navprune.pruning.slim import encoder_of, slim
from navprune.tasks import GOAL

LAW = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def encoder_specs(draw, family):
    """Small encoders of a family with random widths, in random group sizes."""
    channels = draw(st.sampled_from([1, 3, 4]))
    if family == "simple_cnn":
        spec = encoder_spec(family, (channels, 40, 36))
        return with_widths(spec, {name: draw(st.integers(1, 7)) for name in widths(spec)})
    spec = encoder_spec(family, (channels, 32, 36), base_planes=4)
    layers = []
    for layer in spec.layers:
        group = draw(st.integers(1, 3))
        per_group = max([1, *(conv.per_group for conv in convolutions(spec) if conv.target == layer.name)])
        layers.append(Layer(layer.name, draw(st.integers(1, 4)) * math.lcm(group, per_group), group))
    return replace(spec, layers=tuple(layers), output=6)


@st.composite
def keeps(draw, spec: EncoderSpec):
    """A keep mask for every width, with at least one unit left."""
    keep = {}
    for layer in spec.layers:
        count = layer.channels // spec.units[layer.name]
        flags = draw(st.lists(st.booleans(), min_size=count, max_size=count))
        flags[draw(st.integers(0, count - 1))] = True
        keep[layer.name] = torch.tensor(flags)
    return keep


def shaken(spec, seed=0):
    """A network in float64 and evaluation mode; its norms and running statistics are random too."""
    model = build(spec, seed).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.dim() <= 1 or tensor.shape[2:] == (1, 1):
                tensor.add_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.mark.parametrize("family", ["resnet18", "resnet50", "se_resnet50", "resneXt50", "se_resneXt50", "simple_cnn"])
def test_slim_equals_mask(family):
    @LAW
    @given(st.data())
    def law(data):
        spec = data.draw(encoder_specs(family))
        keep = data.draw(keeps(spec))
        model = shaken(spec)
        images = torch.rand(2, *spec.input, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            with mask(model, keep):
                masked = model(images)
            small = slim(model, keep)
            assert (small(images) - masked).abs().max() < 1e-10
            # In single precision norms of few values magnify the rounding of either network.
            assert (slim(model.float(), keep)(images.float()) - masked).abs().max() < 1e-2
        assert widths(small.spec) == {name: int(keep[name].sum()) * unit for name, unit in spec.units.items()}
        assert not any(module._forward_hooks for module in [*model.modules(), *small.modules()])

    law()


@pytest.mark.parametrize(("family", "rnn", "layers"), [("resnet18", "gru", 1), ("se_resneXt50", "lstm", 2)])
def test_a_whole_policy_is_slimmed_in_place(family, rnn, layers):
    spec = PolicySpec(encoder_spec(family, (4, 32, 32), 8), 16, 12, rnn, layers)
    model = shaken(spec)
    keep = {g.name: torch.arange(units(g)) % 3 != 1 for g in groups_of(model)}
    observations = {
        "depth": torch.rand(3, 2, 32, 32, 1, dtype=torch.float64),
        "rgb": torch.randint(256, (3, 2, 32, 32, 3), dtype=torch.uint8),
        GOAL: torch.rand(3, 2, 2, dtype=torch.float64),
    }
    rest = (model.initial_state(2), torch.tensor([[0, 1]] * 3), torch.tensor([[False, True]] * 3))
    with torch.no_grad():
        with mask(model, keep):
            masked = model.sequence(observations, *rest)
        slimmed = slim(model, keep).sequence(observations, *rest)
        dense = model.sequence(observations, *rest)
    for answer, expected in zip(slimmed, masked):
        assert (answer - expected).abs().max() < 1e-10
    assert (dense.logits - masked.logits).abs().max() > 1e-6  # the masked channels mattered
    for name, tensor in slim(model, keep).state_dict().items():
        if "visual_encoder" not in name:
            assert torch.equal(tensor, model.state_dict()[name])


def test_keeping_everything_changes_nothing():
    spec = encoder_spec("resnet50", (1, 32, 32), 4)
    model = shaken(spec)
    same = slim(model, {})
    assert same.spec == spec
    assert all(torch.equal(a, b) for a, b in zip(same.state_dict().values(), model.state_dict().values()))


def test_slimming_leaves_the_model_and_the_global_generator_alone():
    model = shaken(encoder_spec("resnet18", (1, 32, 32), 4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    slim(model.train(), {"stem": torch.tensor([True, False])})
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_every_convolution_of_a_width_is_in_its_group():
    model = build(PolicySpec(encoder_spec("resnet50", (1, 64, 64), 8), 16, 16), 0)
    groups = groups_of(model)
    assert len(groups) == 37  # stem, four trunks, 32 inner widths
    for group in groups:
        assert len(group.norms) == len(group.producers)
        for name in group.producers:
            assert model.get_submodule(name).out_channels == group.channels
        for name in group.readers:
            assert model.get_submodule(name).in_channels == group.channels
        assert {model.get_submodule(n).num_groups for n in group.norms} == {units(group)}
    assert encoder_of(model.spec) == model.encoder.spec


def test_units_of_a_grouped_convolution_are_whole_groups_of_it_and_of_its_norms():
    spec = encoder_spec("se_resneXt50", (1, 32, 32), 8, groups=8)
    group = next(g for g in build(spec, 0).groups() if g.name == "stage1.block0.conv1")
    assert group.producers == ("backbone.layer1.0.convs.0", "backbone.layer1.0.convs.3")
    assert group.readers == ("backbone.layer1.0.convs.6",)
    assert spec.by_name[group.name].group == 2 and group.unit == 4
    small = slim(build(spec, 0), {group.name: torch.tensor([True, False, True, False])})
    grouped, norm = small.get_submodule(group.producers[1]), small.get_submodule(group.norms[1])
    assert (grouped.groups, norm.num_groups, grouped.weight.shape[1]) == (2, 4, 4)


def test_factors_scale_and_carry_gradients():
    model = shaken(encoder_spec("simple_cnn", (1, 36, 36)))
    factors = {g.name: torch.full((units(g),), 0.5, requires_grad=True) for g in groups_of(model)}
    images = torch.rand(2, 1, 36, 36, dtype=torch.float64)
    with scaled(model, factors):
        model(images).sum().backward()
    assert all(factor.grad.abs().sum() > 0 for factor in factors.values())


@pytest.mark.parametrize(
    ("keep", "complaint"),
    [
        ({"stem2": torch.ones(2, dtype=torch.bool)}, "no channel group 'stem2'"),
        ({"stem": torch.ones(3, dtype=torch.bool)}, r"give bool \[2\]"),
        ({"stem": torch.ones(2)}, r"give bool \[2\]"),
        ({"stem": torch.zeros(2, dtype=torch.bool)}, "removes every channel"),
    ],
)
def test_keeps_that_do_not_fit_are_refused(keep, complaint):
    model = build(encoder_spec("resnet18", (1, 32, 32), 4), 0)
    with pytest.raises(UserError, match=complaint):
        slim(model, keep)
    with pytest.raises(UserError, match=complaint), mask(model, keep):
        pass


def test_a_blind_policy_has_nothing_to_prune():
    with pytest.raises(UserError, match="no channels to prune"):
        slim(build(PolicySpec(encoder_spec("blind"), 16, 16), 0), {})

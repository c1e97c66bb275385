"""The law of the package: a slimmed model computes what the masked one computes."""

import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.classifiers import CLASSIFIERS, classifier_spec
from navprune.models.spec import Layer, PolicySpec, convolutions, encoder_spec
from navprune.models.widths import widths, with_widths
from navprune.pruning.groups import is_inner, units
from navprune.pruning.slim import encoder_of
from navprune.pruning.structure import structure_of
from navprune.rl.ppo import gradient_step
from navprune.tasks import GOAL

FUZZ = os.environ.get("NAVPRUNE_FUZZ")
LAW = settings(
    max_examples=int(FUZZ or 8),  # the same ones always, unless NAVPRUNE_FUZZ=1000 asks for others
    deadline=None,
    derandomize=not FUZZ,
    suppress_health_check=[HealthCheck.too_slow],
)
ENCODERS = ("resnet18", "resnet50", "se_resnet50", "resneXt50", "se_resneXt50", "simple_cnn")
SEEDS = st.integers(0, 10**6)


def random_encoder(family, rng):
    """A small encoder of a family with random widths, in random group sizes."""
    channels = int(rng.choice([1, 3, 4]))
    if family == "simple_cnn":
        spec = encoder_spec(family, (channels, 40, 36))
        return with_widths(spec, {name: int(rng.integers(1, 8)) for name in widths(spec)})
    spec = encoder_spec(family, (channels, 64, 36), base_planes=4)
    spare = [name for name in spec.removable_blocks() if rng.random() < 0.5]
    spec = spec.without_blocks(spare)  # fewer are faster
    layers = []
    for layer in spec.layers:
        group = int(rng.integers(1, 4))
        per_group = max([1, *(conv.per_group for conv in convolutions(spec) if conv.target == layer.name)])
        layers.append(Layer(layer.name, int(rng.integers(1, 5)) * math.lcm(group, per_group), group))
    return replace(spec, layers=tuple(layers), output=6)


def random_classifier(family, rng):
    """A small classifier of a family with random widths and numbers of blocks."""
    spec = classifier_spec(family, 5, (int(rng.integers(1, 4)), 40, 32))
    stages = range(1, len(spec.blocks) + 1)
    some = {f"layer{s}.{i}" for s in stages for i in range(int(rng.integers(0, 3)), spec.blocks[s - 1])}
    spec = spec.without_blocks(some & spec.removable_blocks().keys())
    return with_widths(spec, {name: int(rng.integers(1, 6)) for name in spec.widths})


def random_keep(model, rng):
    """A keep mask for every width, with at least one unit left, and for every block that can be removed."""
    keep = {}
    for group in structure_of(model, blocks=True).groups:
        flags = torch.from_numpy(rng.random(units(group)) < 0.6)
        flags[rng.integers(units(group))] |= not group.block
        keep[group.name] = flags
    return keep


def shaken(spec, seed=0):
    """A network in float64 and evaluation mode; its norms and running statistics are random too."""
    model = build(spec, seed).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point() and (tensor.dim() <= 1 or tensor.shape[2:] == (1, 1)):
                tensor.add_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.mark.parametrize("family", [*ENCODERS, *CLASSIFIERS])
def test_slim_equals_mask(family):
    @LAW
    @given(SEEDS)
    def law(seed):
        rng = np.random.default_rng(seed)
        spec = random_encoder(family, rng) if family in ENCODERS else random_classifier(family, rng)
        model = shaken(spec)
        keep = random_keep(model, rng)
        images = torch.from_numpy(rng.random((2, *spec.input)))
        structure = structure_of(model, blocks=True)
        with torch.no_grad():
            with structure.mask(keep):
                masked = model(images)
            small = structure.slim(keep)
            assert (small(images) - masked).abs().max() < 1e-10
            model.float()
            with structure.mask(keep):
                rounded = model(images.float())
            # Norms of nearly equal values magnify rounding, of the masked network's as of the slim one's.
            rounding = (rounded - masked).abs().max()
            assert (structure.slim(keep)(images.float()) - masked).abs().max() < 1e-4 + 10 * rounding
        removed = [group.name for group in structure.blocks if not keep[group.name]]
        left = {group.name: int(keep[group.name].sum()) * group.unit for group in structure.channels}
        assert small.spec == with_widths(spec, left).without_blocks(removed)
        assert sum(small.spec.blocks) == sum(spec.blocks) - len(removed)
        assert not any(module._forward_hooks for module in [*model.modules(), *small.modules()])

    law()


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_batch_norm_in_training_keeps_the_law_and_its_statistics(family):
    rng = np.random.default_rng(0)
    model = shaken(random_classifier(family, rng)).train()
    keep = random_keep(model, rng)
    small = structure_of(model).slim(keep)
    for module in [*model.modules(), *small.modules()]:
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # it would draw other numbers for another width
    images = torch.from_numpy(rng.random((4, *model.spec.input)))
    with torch.no_grad():
        with structure_of(model).mask(keep):
            masked = model(images)
        assert (small(images) - masked).abs().max() < 1e-8
    again, state = structure_of(model).slim(keep).state_dict(), small.state_dict()
    assert all((state[name] - again[name]).abs().max() < 1e-10 for name in state)


def test_our_networks_in_a_users_module_keep_their_specs_true():
    wrapped = torch.nn.Sequential(torch.nn.Identity(), shaken(encoder_spec("resnet18", (1, 32, 32), 4)))
    keep = {"stage2.block1": torch.tensor([False]), "stem": torch.tensor([False, True])}
    images = torch.rand(2, 1, 32, 32, dtype=torch.float64)
    small = structure_of(wrapped).slim(keep)
    with torch.no_grad(), structure_of(wrapped).mask(keep):
        assert (small(images) - wrapped(images)).abs().max() < 1e-10
    assert small[1].spec == structure_of(wrapped[1]).slim(keep).spec
    classifier = build(classifier_spec("cifar_resnet56", 3, (1, 8, 8), 0.1), 0)
    keep = {group.name: torch.arange(units(group)) % 2 == 0 for group in structure_of(classifier).groups}
    inside = {f"1.{name}": kept for name, kept in keep.items()}
    small = structure_of(torch.nn.Sequential(torch.nn.ReLU(), classifier), torch.rand(1, 1, 8, 8)).slim(inside)
    assert small[1].spec == structure_of(classifier).slim(keep).spec != classifier.spec


def test_blocks_that_lead_from_trunk_to_trunk_can_be_removed():
    offered = {
        "resnet18": [f"stage{s}.block{b}" for s, b in ((1, 0), (1, 1), (2, 1), (3, 1), (4, 1))],
        "se_resneXt50": [f"stage{s}.block{b}" for s, n in ((1, 3), (2, 4), (3, 6), (4, 3)) for b in range(1, n)],
        "simple_cnn": [],
    }
    for name, blocks in offered.items():
        groups = structure_of(build(encoder_spec(name, (1, 64, 64), 8), 0), blocks=True).groups
        assert [group.name for group in groups if group.block] == blocks
        assert not any(is_inner(group) for group in groups if group.block)
    model = build(encoder_spec("resnet18", (1, 64, 64), 8), 0)
    small = structure_of(model).slim({name: torch.tensor([False]) for name in offered["resnet18"]})
    assert small.spec.blocks == (0, 1, 1, 1)
    assert torch.equal(small.backbone.layer3[0].convs[0].weight, model.backbone.layer3[0].convs[0].weight)
    with pytest.raises(UserError, match=r"no channel group 'stage2\.block0'"):
        structure_of(model).slim({"stage2.block0": torch.tensor([False])})


@pytest.mark.parametrize(("family", "rnn", "layers"), [("resnet18", "gru", 1), ("se_resneXt50", "lstm", 2)])
def test_a_whole_policy_is_slimmed_in_place(family, rnn, layers):
    spec = PolicySpec(encoder_spec(family, (4, 32, 32), 8), 16, 12, rnn, layers)
    model = shaken(spec)
    keep = {g.name: torch.arange(units(g)) % 3 != 1 for g in structure_of(model).groups}
    keep[list(spec.encoder.removable_blocks())[1]] = torch.tensor([False])
    observations = {
        "depth": torch.rand(3, 2, 32, 32, 1, dtype=torch.float64),
        "rgb": torch.randint(256, (3, 2, 32, 32, 3), dtype=torch.uint8),
        GOAL: torch.rand(3, 2, 2, dtype=torch.float64),
    }
    rest = (model.initial_state(2), torch.tensor([[0, 1]] * 3), torch.tensor([[False, True]] * 3))
    with torch.no_grad():
        with structure_of(model).mask(keep):
            masked = model.sequence(observations, *rest)
        slimmed = structure_of(model).slim(keep).sequence(observations, *rest)
        dense = model.sequence(observations, *rest)
    for answer, expected in zip(slimmed, masked):
        assert (answer - expected).abs().max() < 1e-10
    assert (dense.logits - masked.logits).abs().max() > 1e-6  # the masked channels mattered
    assert sum(structure_of(model).slim(keep).spec.encoder.blocks) == sum(spec.encoder.blocks) - 1
    for name, tensor in structure_of(model).slim(keep).state_dict().items():
        if "visual_encoder" not in name:
            assert torch.equal(tensor, model.state_dict()[name])


def test_keeping_everything_changes_nothing():
    spec = encoder_spec("resnet50", (1, 32, 32), 4)
    model = shaken(spec)
    same = structure_of(model).slim({})
    assert same.spec == spec
    assert all(torch.equal(a, b) for a, b in zip(same.state_dict().values(), model.state_dict().values()))


def test_slimming_leaves_the_model_and_the_global_generator_alone():
    model = shaken(encoder_spec("resnet18", (1, 32, 32), 4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    structure_of(model.train()).slim({"stem": torch.tensor([True, False])})
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_every_convolution_of_a_width_is_in_its_group():
    model = build(PolicySpec(encoder_spec("resnet50", (1, 64, 64), 8), 16, 16), 0)
    groups = structure_of(model).groups
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
    small = structure_of(build(spec, 0)).slim({group.name: torch.tensor([True, False, True, False])})
    grouped, norm = small.get_submodule(group.producers[1]), small.get_submodule(group.norms[1])
    assert (grouped.groups, norm.num_groups, grouped.weight.shape[1]) == (2, 4, 4)


def test_factors_scale_and_carry_gradients():
    model = shaken(encoder_spec("simple_cnn", (1, 36, 36)))
    factors = {g.name: torch.full((units(g),), 0.5, requires_grad=True) for g in structure_of(model).groups}
    images = torch.rand(2, 1, 36, 36, dtype=torch.float64)
    with structure_of(model).scaled(factors):
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
        structure_of(model).slim(keep)
    with pytest.raises(UserError, match=complaint), structure_of(model).mask(keep):
        pass


def test_a_blind_policy_has_nothing_to_prune():
    with pytest.raises(UserError, match="no channels to prune"):
        structure_of(build(PolicySpec(encoder_spec("blind"), 16, 16), 0)).slim({})


# The state of an optimiser -----------------------------------------------------------------------

SIDE = 32
SPEC = PolicySpec(encoder_spec("resnet18", (1, SIDE, SIDE), 4, output=4, groups=2), visual_features=8, hidden_size=16)


def observed(seed, steps=3, agents=2):
    generator = torch.Generator().manual_seed(seed)
    observations = {
        "depth": torch.rand(steps, agents, SIDE, SIDE, 1, generator=generator, dtype=torch.float64),
        GOAL: torch.rand(steps, agents, 2, generator=generator, dtype=torch.float64),
    }
    previous = torch.randint(4, (steps, agents), generator=generator)
    return observations, previous, torch.rand(steps, agents, generator=generator) > 0.3


def learn(policy, optimiser, seed):
    observations, previous, masks = observed(seed)
    output = policy.sequence(observations, policy.initial_state(masks.shape[1]), previous, masks)
    gradient_step(policy, optimiser, output.logits.square().sum() + output.values.sum(), max_norm=0.5)


OPTIMISERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
}


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(sorted(OPTIMISERS)), st.sampled_from(["resnet18", "resnet50"]))
def test_the_next_step_of_the_slim_network_is_that_of_the_masked_one(seed, kind, encoder):
    spec = replace(SPEC, encoder=encoder_spec(encoder, (1, SIDE, SIDE), 4, output=4, groups=2))
    policy = build(spec, seed).double()
    optimiser = OPTIMISERS[kind](policy.parameters())
    for step in range(3):
        learn(policy, optimiser, step)
    generator = torch.Generator().manual_seed(seed)
    keep = {group.name: torch.rand(units(group), generator=generator) > 0.4 for group in structure_of(policy).groups}
    for kept in keep.values():
        kept[torch.randint(len(kept), (), generator=generator)] = True

    small = structure_of(policy).slim(keep)
    sliced = OPTIMISERS[kind](small.parameters())
    sliced.load_state_dict(structure_of(policy).slim_optimiser(optimiser, keep))
    for step in range(3, 5):
        learn(small, sliced, step)
    with structure_of(policy).mask(keep):
        for step in range(3, 5):
            learn(policy, optimiser, step)
    for name, value in structure_of(policy).slim(keep).state_dict().items():
        torch.testing.assert_close(small.state_dict()[name], value, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop])
def test_the_optimiser_of_a_module_of_ones_own_is_cut_likewise(kind):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    images, keep = torch.rand(2, 3, 4, 4, dtype=torch.float64), {"0": torch.tensor([True, False, True, True])}

    def step(network, optimiser):
        optimiser.zero_grad()
        network(images).square().mean().backward()
        optimiser.step()

    def optimiser_of(network):
        return kind(network.parameters(), lr=0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))

    step(model, optimiser := optimiser_of(model))
    small = structure_of(model, images).slim(keep)
    cut = optimiser_of(small)
    cut.load_state_dict(structure_of(model, images).slim_optimiser(optimiser, keep))
    step(small, cut)
    with structure_of(model, images).mask(keep):
        step(model, optimiser)
        torch.testing.assert_close(small(images), model(images), rtol=0, atol=1e-10)


def test_plain_numbers_in_an_optimisers_state_stay():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.rand(2, 3, 4, 4)).sum().backward()
    optimiser.step()
    for state in optimiser.state.values():
        state["step"], state["age"] = 1, 7
    cut = structure_of(model, torch.rand(2, 3, 4, 4)).slim_optimiser(
        optimiser, {"0": torch.tensor([True, False, True, True])}
    )
    assert all((entry["step"], entry["age"]) == (1, 7) for entry in cut["state"].values())
    assert cut["state"][0]["exp_avg"].shape == (3, 3, 1, 1)


def test_an_optimiser_of_something_else_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    images, keep = torch.rand(2, 3, 4, 4), {"0": torch.tensor([True, False, True, True])}
    with pytest.raises(UserError, match="not the model's"):
        structure_of(model, images).slim_optimiser(torch.optim.Adam(nn.Linear(2, 2).parameters()), keep)
    for kind in (torch.optim.Adafactor, torch.optim.LBFGS):
        optimiser = kind(model.parameters())
        model(images).sum().backward()
        optimiser.step(lambda: model(images).square().sum())
        with pytest.raises(UserError, match="begin a fresh one"):
            structure_of(model, images).slim_optimiser(optimiser, keep)


def test_the_optimiser_that_was_cut_is_left_as_it_was():
    policy = build(SPEC, 0).double()
    optimiser = torch.optim.Adam(policy.parameters())
    learn(policy, optimiser, 0)
    shapes = [optimiser.state[p]["exp_avg"].shape for p in policy.parameters()]
    keep = {group.name: torch.arange(units(group)) < 1 for group in structure_of(policy).groups}
    structure_of(policy).slim_optimiser(optimiser, keep)
    assert [optimiser.state[p]["exp_avg"].shape for p in policy.parameters()] == shapes

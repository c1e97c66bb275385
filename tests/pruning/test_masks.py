"""Masks of weights and units: exact sizes, fair ties, and the metrics they are compared by."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from navprune.costs.counting import count
from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.classifiers import classifier_spec
from navprune.models.spec import PolicySpec, encoder_spec
from navprune.pruning.groups import units
from navprune.pruning.losses import Evidence, classification_loss
from navprune.pruning.masks import (
    STRATEGIES,
    accuracy,
    apply_masks,
    apportioned,
    compression_ratio,
    largest,
    magnitude_activation,
    prunable,
    structured_masks,
    theoretical_speedup,
)
from navprune.pruning.prune import weights_hash
from navprune.pruning.structure import structure_of

LAW = settings(max_examples=20, deadline=None, derandomize=True)
UNSTRUCTURED = [name for name in STRATEGIES if not name.startswith("structured-")]
STRUCTURED = [name for name in STRATEGIES if name.startswith("structured-")]


def model(seed=0, classes=4):
    return build(classifier_spec("cifar_resnet56", classes, width=0.5), seed)


@pytest.mark.parametrize("masks", [{"7.weight": torch.ones(1)}, {"0.weight": torch.ones(2, dtype=torch.bool)}])
def test_masks_of_another_model_are_refused(masks):
    with pytest.raises(UserError, match="masks of another model"):
        apply_masks(tiny(), masks)


def test_masks_of_numbers_are_refused():
    with pytest.raises(UserError, match=r"the mask of '4.bias' is torch.float32: give bool"):
        apply_masks(tiny(), {"4.bias": torch.ones(3)})


def test_the_heads_of_a_policy_stay_whole():
    policy = build(PolicySpec(encoder_spec("simple_cnn", (1, 64, 64)), 16, 16), 0)
    spared = {name for name, _ in policy.named_parameters()} - set(prunable(policy))
    assert {name for name in spared if "rnn" not in name and "embed" not in name} == {
        f"{head}.{own}" for head in ("action_distribution.linear", "critic.fc") for own in ("weight", "bias")
    }
    assert set(prunable(policy, classifier=True)) > set(prunable(policy))


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def evidence(seed=0, **changes):
    batch = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed)), torch.tensor([0, 1, 2, 3])
    rest = {"batches": [batch], "loss": classification_loss}
    return Evidence(**{"generator": torch.Generator().manual_seed(seed), **rest, **changes})


def size(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", UNSTRUCTURED)
@pytest.mark.parametrize("ratio", [1, 2, 4, 7.3, 16, 32])
def test_single_weights_meet_the_ratio_to_the_weight_and_spare_the_output(name, ratio):
    network = model()
    before = weights_hash(network)
    masks = STRATEGIES[name](network, evidence(), ratio)
    left = size(network) - sum(int((~mask).sum()) for mask in masks.values())
    assert left == int(size(network) / ratio)
    assert compression_ratio(network, masks) == pytest.approx(size(network) / left)
    assert not any(key.startswith("fc.") for key in masks)
    assert weights_hash(network) == before


@pytest.mark.parametrize("name", ["global-random", "layer-magnitude-gradient", "structured-l1"])
def test_several_ratios_have_the_masks_of_each_alone(name):
    strategy, network, ratios = STRATEGIES[name], model(), [2, 8]
    together = strategy.choose(network, evidence(), ratios)
    for ratio, masks in zip(ratios, together, strict=True):
        alone = strategy(network, evidence(), ratio)
        assert masks.keys() == alone.keys() and all(mask.equal(alone[key]) for key, mask in masks.items())


@pytest.mark.parametrize("name", UNSTRUCTURED)
def test_the_output_layer_is_pruned_on_request(name):
    network = model()
    masks = STRATEGIES[name](network, evidence(), 4, classifier=True)
    assert {"fc.weight", "fc.bias"} <= masks.keys()
    assert not masks["fc.weight"].all()
    assert compression_ratio(network, masks) == pytest.approx(4, rel=1e-4)


@pytest.mark.parametrize("name", STRUCTURED)
def test_units_meet_the_ratio_within_a_per_cent(name):
    network = model()
    masks = STRATEGIES[name](network, evidence(), 2)
    assert 2 <= compression_ratio(network, masks) <= 2.03
    assert masks["fc.bias"].all()


@LAW
@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.data())
def test_the_largest_are_kept_and_ties_go_to_the_earlier(values, data):
    kept = data.draw(st.integers(0, len(values)))
    mask = largest(torch.tensor(values, dtype=torch.float32), kept)
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert mask.nonzero().flatten().tolist() == sorted(order[:kept])


@LAW
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=12), st.floats(0, 1))
def test_shares_add_up_and_differ_by_less_than_one(sizes, share):
    kept = int(share * sum(sizes))
    shares = apportioned(kept, sizes)
    assert sum(shares) == kept
    assert all(abs(a - kept * b / sum(sizes)) < 1 and 0 <= a <= b for a, b in zip(shares, sizes))


def test_global_magnitude_keeps_the_largest_of_all_and_layerwise_of_each():
    network = model()
    masks = STRATEGIES["global-magnitude"](network, evidence(), 4)
    chosen = prunable(network)
    kept = torch.cat([chosen[name].detach().abs()[mask] for name, mask in masks.items()])
    gone = torch.cat([chosen[name].detach().abs()[~mask] for name, mask in masks.items()])
    assert kept.min() >= gone.max()
    masks = STRATEGIES["layer-magnitude"](network, evidence(), 4)
    share = sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
    for name, mask in masks.items():
        assert abs(int(mask.sum()) - share * mask.numel()) < 1
        if 0 < mask.sum() < mask.numel():
            weights = chosen[name].detach().abs()
            assert weights[mask].min() >= weights[~mask].max()


def test_magnitude_times_gradient_follows_one_batch():
    network = tiny()
    images, labels = torch.rand(5, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1])
    never = iter([(images, labels), None])
    masks = STRATEGIES["global-magnitude-gradient"](network, evidence(batches=never, loss=classification_loss), 1.4)
    network.eval()
    F.cross_entropy(network(images), labels).backward()
    products = torch.cat([(p * p.grad).detach().abs().flatten() for p in network[0].parameters()])
    found = torch.cat([masks["0.weight"].flatten(), masks["0.bias"]])
    assert torch.equal(found, largest(products, int(found.sum()))) and 0 < found.sum() < len(found)
    with pytest.raises(UserError, match="give at least one"):
        STRATEGIES["layer-magnitude-gradient"](network, evidence(batches=None), 1.2)


@pytest.mark.parametrize("groups", [1, 2])
def test_magnitude_times_activation_follows_what_each_weight_reads_on_one_batch(groups):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 6, 3, groups=groups), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)).eval()
    images = torch.rand(5, 4, 4, 4) - 0.5
    chosen = prunable(network, classifier=True)
    found = magnitude_activation(network, chosen, evidence(batches=iter([images, None]), loss=None))
    for o in range(6):
        for i in range(4 // groups):
            channel = i + (o // 3 * 2 if groups == 2 else 0)
            expected = network[0].weight[o, i].abs() * images[:, channel].abs().mean()
            torch.testing.assert_close(found["0.weight"][o, i].float(), expected.detach())
    hidden = network[:3](images).abs().mean(0)
    torch.testing.assert_close(found["3.weight"].float(), (network[3].weight.abs() * hidden).detach())
    torch.testing.assert_close(found["3.bias"].float(), (network[3].bias.abs() * hidden.mean()).detach())
    with pytest.raises(UserError, match="'magnitude x activation' scores need batches"):
        STRATEGIES["layer-magnitude-activation"](network, evidence(batches=None), 1.2)


def test_batches_that_do_not_fit_are_refused():
    network, wrong = tiny(), (torch.rand(2, 3, 4, 4), torch.tensor([0, 1]))
    with pytest.raises(UserError, match=r"^magnitude x gradient: a batch does not fit the network"):
        STRATEGIES["global-magnitude-gradient"](network, evidence(batches=[wrong]), 1.4)
    with pytest.raises(UserError, match=r"^accuracy: a batch does not fit the network"):
        accuracy(network, [wrong])
    with pytest.raises(UserError, match=r"^theoretical speedup: a batch does not fit the network"):
        theoretical_speedup(network, {}, wrong[0])


def test_chance_follows_the_generator_alone():
    masks = [STRATEGIES["global-random"](model(), evidence(seed), 4)["conv1.weight"] for seed in (0, 0, 1)]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize(
    ("ratio", "complaint"),
    [(0.5, "not a ratio of at least 1"), (float("nan"), "not a ratio of at least 1"), (1e5, "out of reach")],
)
@pytest.mark.parametrize("name", ["global-magnitude", "layer-random", "structured-l1"])
def test_ratios_that_cannot_be_met_are_refused(name, ratio, complaint):
    with pytest.raises(UserError, match="cannot be met" if ratio > 1 and "structured" in name else complaint):
        STRATEGIES[name](model(), evidence(), ratio)


def test_nan_is_refused_by_name():
    network = model()
    with torch.no_grad():
        network.layer2[0].conv1.weight[0] = float("nan")
    with pytest.raises(UserError, match=r"'layer2.0.conv1.weight' is not finite"):
        STRATEGIES["global-magnitude"](network, evidence(), 2)


@pytest.mark.parametrize("name", ["cifar_resnet56", "se_resnet50"])
@LAW
@given(seed=st.integers(0, 1000))
def test_masks_of_units_are_what_slim_takes_away(name, seed):
    spec = model().spec if name == "cifar_resnet56" else encoder_spec(name, (1, 32, 32), 4, groups=2)
    network = build(spec, 0).double().eval()
    groups = structure_of(network, blocks=True).groups
    chance = torch.Generator().manual_seed(seed)
    keep = {group.name: torch.rand(units(group), generator=chance) < 0.7 for group in groups}
    for group in groups:
        keep[group.name][0] |= not group.block
    structure = structure_of(network)
    small = structure.slim(keep)
    masks = structured_masks(structure, keep)
    assert sum(int(mask.sum()) for mask in masks.values()) == size(small)
    apply_masks(network, masks)
    images = torch.rand(2, *spec.input, dtype=torch.float64, generator=chance)
    torch.testing.assert_close(network(images), small(images), rtol=0, atol=1e-10)


def test_masks_of_units_save_what_slim_saves():
    network = model()
    structure = structure_of(network)
    groups = structure.groups
    keep = {group.name: torch.arange(units(group)) % 2 == 0 for group in groups}
    example = torch.zeros(1, 3, 32, 32)
    dense, slimmed = count(network, example), count(structure.slim(keep), example)
    masks = structured_masks(structure, keep)
    assert compression_ratio(network, masks) == pytest.approx(dense.parameters / slimmed.parameters)
    assert theoretical_speedup(network, masks, example) == pytest.approx(dense.macs / slimmed.macs)


def test_speedup_counts_the_weights_that_are_left():
    network = tiny()
    masks = {"0.weight": torch.zeros(4, 1, 3, 3, dtype=torch.bool)}
    masks["0.weight"][0] = True
    # The convolution takes 4 x 9 multiply-adds at each of 4 places, the linear layer 16 x 3.
    assert theoretical_speedup(network, masks, torch.zeros(2, 1, 4, 4)) == (4 * 36 + 48) / (4 * 9 + 48)
    assert theoretical_speedup(network, {}, torch.zeros(2, 1, 4, 4)) == 1
    assert not any(module._forward_hooks for module in network.modules())


def test_accuracy_weighs_images_not_batches():
    network = nn.Linear(6, 6, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.eye(6))
    logits = torch.eye(6)
    labels = torch.tensor([0, 1, 2, 3, 0, 0])
    whole = accuracy(network, [(logits, labels)])
    split = accuracy(network, zip(logits.split(4), labels.split(4)))
    assert whole == split == {"top1": 4 / 6, "top5": 6 / 6}
    with pytest.raises(UserError, match="at least one batch"):
        accuracy(network, [])


def test_accuracy_with_few_classes_and_in_evaluation_mode():
    network = tiny().train()
    before = copy.deepcopy(network.state_dict())
    found = accuracy(network, [(torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 2]))])
    assert found["top5"] == 1 and network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_masked_weights_stay_zero_behind_a_step():
    network = model()
    masks = STRATEGIES["global-magnitude"](network, evidence(), 8)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for images, labels in evidence().batches:
        classification_loss(network, (images, labels)).backward()
        optimiser.step()
        apply_masks(network, masks)
    for name, mask in masks.items():
        assert not network.get_parameter(name)[~mask].any()

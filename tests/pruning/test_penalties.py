"""The group lasso: its value, its proximal step, and what both say of slimmed networks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.classifiers import classifier_spec
from navprune.models.spec import encoder_spec
from navprune.pruning.groups import unit_weights, units
from navprune.pruning.masks import apply_masks, structured_masks
from navprune.pruning.methods.scores import group_size
from navprune.pruning.penalties import group_lasso, proximal_step, survivors
from navprune.pruning.structure import structure_of

LAW = settings(max_examples=10, deadline=None, derandomize=True)
OVER = ("filters", "channels", "both")


def encoder(name="resnet50", seed=0):
    return build(encoder_spec(name, (1, 32, 32), base_planes=4, groups=2), seed).double().eval()


def classifier(name="cifar_resnet56", seed=0):
    return build(classifier_spec(name, 3, (3, 32, 32), width=0.25), seed).double().eval()


NETWORKS = {
    "resnet18": lambda: encoder("resnet18"),
    "se_resneXt50": lambda: encoder("se_resneXt50"),
    "simple_cnn": lambda: build(encoder_spec("simple_cnn", (1, 40, 40)), 0).double().eval(),
    "cifar_resnet56": classifier,
    "cifar_vgg16_bn": lambda: classifier("cifar_vgg16_bn"),
}


def image(model):
    return torch.rand(2, *model.spec.input, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def random_keep(groups, seed):
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in groups:
        keep[group.name] = torch.rand(units(group), generator=generator) < 0.6
        if not group.block and not keep[group.name].any():
            keep[group.name][0] = True
    return keep


def pair():
    """Two convolutions of which the second reads what the first writes, and their only group."""
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1)).double()
    groups = structure_of(model, torch.zeros(1, 2, 5, 5, dtype=torch.float64)).groups
    assert [group.producers for group in groups] == [("0",)]
    return model, groups


def test_the_value_is_the_formula():
    model, groups = pair()
    first, second = model[0].weight.detach(), model[3].weight.detach()
    filters = sum(18**0.5 * first[n].norm() for n in range(3))
    channels = sum(4**0.5 * second[:, c].norm() for c in range(3))
    both = sum(22**0.5 * torch.cat([first[u].flatten(), second[:, u].flatten()]).norm() for u in range(3))
    for over, expected in zip(OVER, (filters, channels, both)):
        torch.testing.assert_close(group_lasso(model, groups, over).detach(), expected)


def test_blocks_are_penalised_whole():
    model = classifier("cifar_resnet56")
    blocks = [group for group in structure_of(model, blocks=True).groups if group.block]
    assert len(blocks) == 25  # 27 less the two that change the resolution
    block = model.layer1[3]
    weights = torch.cat([block.conv1.weight.flatten(), block.conv2.weight.flatten()]).detach()
    of_one = [group for group in blocks if group.norms[0].startswith("layer1.3.")]
    torch.testing.assert_close(group_lasso(model, of_one).detach(), len(weights) ** 0.5 * weights.norm())


@pytest.mark.parametrize("over", OVER)
def test_its_gradient_is_that_of_the_formula_and_zero_at_zero(over):
    model, groups = pair()
    with torch.no_grad():
        model[0].weight[1] = 0
        model[3].weight[:, 1] = 0
    group_lasso(model, groups, over).backward()
    if over == "filters":
        w = model[0].weight.detach()
        torch.testing.assert_close(model[0].weight.grad[0], 18**0.5 * w[0] / w[0].norm())
        assert not model[0].weight.grad[1].any()
    for parameter in model.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()


@LAW
@given(st.floats(0, 2), st.sampled_from(["filters", "channels"]), st.integers(0, 100))
def test_a_step_is_the_proximal_operator(threshold, over, seed):
    """Closed form, and no other point is better for |X - W|^2 / 2 + threshold * penalty(X)."""
    torch.manual_seed(seed)
    model, groups = pair()
    before = unit_weights(model, groups[0], over)[0].detach().clone()
    size = before.shape[1]
    proximal_step(model, groups, threshold, over)
    after = unit_weights(model, groups[0], over)[0].detach()
    norms = before.norm(dim=1, keepdim=True)
    torch.testing.assert_close(after, (1 - threshold * size**0.5 / norms).clamp_min(0) * before)

    def objective(x):
        return 0.5 * (x - before).square().sum() + threshold * size**0.5 * x.norm(dim=1).sum()

    for _ in range(5):
        assert objective(after) <= objective(after + 0.1 * torch.randn_like(after)) + 1e-12


def test_a_step_over_both_shrinks_rows_and_columns_by_their_own_factors():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1)).double()
    groups = structure_of(model, torch.zeros(1, 1, 2, 2, dtype=torch.float64)).groups
    norms = [torch.cat(unit_weights(model, g, "both"), dim=1).norm(dim=1).detach() for g in groups]
    factors = [(1 - 0.1 * group_size(model, g, "both").sqrt() / n).clamp_min(0) for g, n in zip(groups, norms)]
    middle = model[2].weight.detach().clone()
    proximal_step(model, groups, 0.1, "both")
    expected = factors[1][:, None, None, None] * factors[0][None, :, None, None] * middle
    torch.testing.assert_close(model[2].weight.detach(), expected)


@pytest.mark.parametrize("over", OVER)
def test_proximal_gradient_descent_ends_in_exact_zeros(over):
    """A target that needs one of three units: the others vanish, the one stays, and slimming is exact."""
    torch.manual_seed(0)
    model, groups = pair()
    model.eval()
    images = torch.randn(64, 2, 3, 3, dtype=torch.float64)
    target = torch.relu(images.sum((1, 2, 3)))[:, None, None, None].expand(-1, 4, 1, 1)
    for _ in range(1500):
        loss = (model(images) - target).square().mean()
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.01 * parameter.grad
        proximal_step(model, groups, 0.01 * 0.02, over)
    keep = survivors(model, groups, over)
    assert 0 < keep["0"].sum() < 3
    assert loss < 0.6 * target.var()
    weights = torch.cat(unit_weights(model, groups[0], over), dim=1)
    assert not weights[~keep["0"]].any()
    small = structure_of(model, torch.zeros(1, 2, 5, 5, dtype=torch.float64)).slim(keep)
    torch.testing.assert_close(small(images), model(images), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("over", [*OVER, "depth"])
def test_slimming_what_the_step_zeroed_changes_nothing(name, over):
    model = NETWORKS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1  # norms and biases that would show
    groups = [group for group in structure_of(model, blocks=True).groups if group.block == (over == "depth")]
    if not groups:
        pytest.skip("no blocks")
    over = "filters" if over == "depth" else over
    norms = [torch.cat(unit_weights(model, group, over), dim=1).norm(dim=1) for group in groups]
    strengths = [norm / group_size(model, group, over).sqrt() for norm, group in zip(norms, groups)]
    proximal_step(model, groups, torch.cat(strengths).median().item(), over)
    keep = survivors(model, groups, over)
    assert 0 < sum(int(kept.sum()) for kept in keep.values()) < sum(len(kept) for kept in keep.values())
    torch.testing.assert_close(structure_of(model).slim(keep)(image(model)), model(image(model)), rtol=0, atol=1e-10)


def test_what_a_penalty_cannot_silence_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Conv2d(4, 2, 1))
    groups = structure_of(model, torch.rand(1, 3, 4, 4)).groups
    with pytest.raises(UserError, match="1 has no scale to set to zero"):
        proximal_step(model, groups, 0.1)
    with pytest.raises(UserError, match="1 has no scale to set to zero"):
        survivors(model, groups)
    proximal_step(model, groups, 0.1, "channels")
    with pytest.raises(UserError, match="over filters, channels or both, not 'filter'"):
        proximal_step(model, groups, 0.1, "filter")
    with pytest.raises(UserError, match="threshold is nan"):
        proximal_step(model, groups, float("nan"), "channels")


def test_a_unit_at_zero_stays_silent_when_gradients_move_its_norm():
    model, groups = pair()
    with torch.no_grad():
        model[0].weight[1] = 0
    for _ in range(2):
        proximal_step(model, groups, 1e-3)
        assert model[1].bias[1] == model[1].weight[1] == model[0].bias[1] == 0
        with torch.no_grad():
            model[1].bias += 1
    assert survivors(model, groups)["0"].tolist() == [True, False, True]


@pytest.mark.parametrize("name", NETWORKS)
@LAW
@given(seed=st.integers(0, 1000), over=st.sampled_from(OVER))
def test_a_slimmed_network_pays_what_the_masked_one_pays(name, seed, over):
    model = NETWORKS[name]()
    groups = structure_of(model, blocks=True).groups
    keep = random_keep(groups, seed)
    structure = structure_of(model)
    small = structure.slim(keep)
    apply_masks(model, structured_masks(structure, keep))
    torch.testing.assert_close(
        group_lasso(model, groups, over),
        group_lasso(small, structure_of(small, blocks=True).groups, over),
    )

"""Penalties: their values and proximal steps, what they say of slimmed networks, and training with them."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rl import patterns
from rl.conftest import Corridor, tiny_spec
from rl.groups import together
from torch import nn

from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.classifiers import classifier_spec
from navprune.models.spec import encoder_spec
from navprune.pruning.config import PENALTIES, PruningScheduleConfig
from navprune.pruning.groups import unit_weights, units
from navprune.pruning.masks import apply_masks, structured_masks
from navprune.pruning.methods.scores import group_size
from navprune.pruning.penalties import Penalty, group_lasso, proximal_step, soft_threshold, sum_squares, survivors
from navprune.pruning.structure import structure_of
from navprune.rl.phases import phases_of
from navprune.rl.ppo import PPOConfig
from navprune.rl.trainer import Trainer, TrainerConfig

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


# Scales of norms ----------------------------------------------------------------------------------------


def scaled(seed=0):
    """`pair` with scales of both signs, and a shift."""
    model, groups = pair()
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
        model[1].bias.fill_(0.7)
    return model, groups


@LAW
@given(st.floats(0, 2), st.integers(0, 1000))
def test_scales_shrink_by_the_threshold_and_no_further_than_to_zero(threshold, seed):
    """And no other point is better for |x - gamma|^2 / 2 + threshold * |x|."""
    model, groups = scaled(seed)
    before, others = model[1].weight.detach().clone(), [model[0].weight.clone(), model[3].weight.clone()]
    soft_threshold(model, groups, threshold)
    after = model[1].weight.detach()
    assert all((after * before >= 0).tolist())
    torch.testing.assert_close(after.abs(), (before.abs() - threshold).clamp_min(0))
    assert model[1].bias.ne(0).equal(after.ne(0)) and model[1].bias[after.ne(0)].eq(0.7).all()
    assert all(weight.equal(other) for weight, other in zip((model[0].weight, model[3].weight), others))
    for step in (-0.1, 0.1):
        other = after + step
        assert (0.5 * (after - before) ** 2 + threshold * after.abs()).sum() <= (
            0.5 * (other - before) ** 2 + threshold * other.abs()
        ).sum() + 1e-12


def test_scales_of_zero_stay_zero():
    model, groups = scaled()
    with torch.no_grad():
        model[1].weight[1] = 0
    for _ in range(3):
        soft_threshold(model, groups, 1e-3)
        assert model[1].weight[1] == model[1].bias[1] == 0
    assert survivors(model, groups, "scales")["0"].tolist() == [True, False, True]


@pytest.mark.parametrize("name", ["resnet18", "se_resneXt50", "cifar_resnet56", "cifar_vgg16_bn"])
def test_slimming_to_the_scales_that_are_left_changes_nothing(name):
    model = NETWORKS[name]()
    structure, generator = structure_of(model, blocks=True), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for group in structure.channels:
            small = torch.rand(units(group), generator=generator) < 0.3
            for norm in (model.get_submodule(each) for each in group.norms):
                norm.weight.copy_(torch.randn(len(norm.weight), generator=generator) + 2)
                norm.weight[small.repeat_interleave(len(norm.weight) // len(small))] *= 0.01
                norm.bias.fill_(0.3)
    soft_threshold(model, structure.groups, 0.1)
    keep = survivors(model, structure.groups, "scales")
    assert 0 < sum(int(kept.sum()) for kept in keep.values()) < sum(len(kept) for kept in keep.values())
    torch.testing.assert_close(structure.slim(keep)(image(model)), model(image(model)), rtol=1e-10, atol=1e-10)


def test_a_unit_of_several_norms_is_gone_when_all_its_scales_are():
    model = classifier("cifar_resnet20")
    (trunk,) = [group for group in structure_of(model).groups if group.name == "conv1"]
    assert len(trunk.norms) > 1
    norms = [model.get_submodule(name) for name in trunk.norms]
    with torch.no_grad():
        norms[0].bias.fill_(0.3)
        for norm in norms[1:]:
            norm.weight[0] = 0
    soft_threshold(model, [trunk], 0.1)
    assert survivors(model, [trunk], "scales")["conv1"].all() and norms[0].bias[0] == 0.3
    soft_threshold(model, [trunk], 10.0)
    assert not any(norm.weight.any() or norm.bias.any() for norm in norms)


def test_where_no_norm_has_scales_there_is_nothing_to_shrink():
    for model in (
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Conv2d(4, 2, 1)),
    ):
        with pytest.raises(UserError, match="has no norms with scales"):
            soft_threshold(model, structure_of(model, torch.rand(1, 3, 4, 4)).groups, 0.1)


@LAW
@given(st.integers(0, 1000))
def test_the_sum_of_squares_is_weight_decay_on_convolutions(seed):
    model = classifier("cifar_resnet20", seed)
    value = sum_squares(model)
    value.backward()
    kernels = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert value.item() == pytest.approx(sum(layer.weight.detach().square().sum().item() for layer in kernels))
    assert all(layer.weight.grad.equal(2 * layer.weight) for layer in kernels)
    assert {p for p in model.parameters() if p.grad is not None} == {layer.weight for layer in kernels}


# Training with them -------------------------------------------------------------------------------------

PAID = [name for name in PENALTIES if name not in (None, "growing")]
CONFIG = replace(patterns.CONFIG, epochs=2, schedule="constant", lr=0.05, momentum=0.0)
FRAMES = patterns.total(CONFIG)


def learning(kind, folder, callbacks):
    """A trainer of a classifier or of an agent."""
    if kind == "classifier":
        return patterns.begin(folder, config=CONFIG, callbacks=callbacks)
    run = TrainerConfig(total_frames=72, threads=1, checkpoint_seconds=0)
    phases = phases_of(PPOConfig(steps=6, epochs=1, lr=0.005, max_grad_norm=math.inf), None, callbacks)
    return Trainer(tiny_spec(), Corridor(), run, phases, folder)


def penalised(name, strength=None, frames=(0, FRAMES), **options):
    return Penalty(PruningScheduleConfig(penalty=name, strength=strength, **options), frames)


def test_strengths_are_the_published_ones_where_none_is_given():
    assert penalised("norm-scale").strength == 1e-4 and penalised("sum-squares").strength == 1e-5
    assert penalised("group-lasso").strength == 0.01 and penalised("sum-squares", 3.0).strength == 3.0


@pytest.mark.parametrize("kind", ["classifier", "agent"])
@pytest.mark.parametrize("name", PAID)
def test_a_penalty_without_cuts_acts_in_every_step_and_leaves_all_widths(tmp_path, name, kind):
    def left(strength):
        trainer = learning(kind, tmp_path / str(strength), [penalised(name, strength)])
        groups = structure_of(trainer.network).groups
        paid = {"norm-scale": scale_sizes, "sum-squares": lambda model, _: sum_squares(model).item()}
        before = trainer.network.spec
        trainer.run()
        assert trainer.network.spec == before
        with torch.no_grad():
            return float(paid.get(name, group_lasso)(trainer.network, groups))

    assert left({"sum-squares": 1.0, "norm-scale": 2.0}.get(name, 0.5)) < 0.95 * left(1e-12)


def scale_sizes(model, groups):
    return sum(model.get_submodule(name).weight.abs().sum().item() for group in groups for name in group.norms)


def test_a_classifiers_scales_shrink_by_rate_and_strength_in_each_step(tmp_path):
    """Where the loss says nothing."""
    config = replace(CONFIG, weight_decay=0.0)
    trainer = patterns.begin(tmp_path, config=config, callbacks=[penalised("norm-scale", 0.1)])
    for parameter in trainer.network.parameters():
        parameter.register_hook(torch.zeros_like)
    before = [module.weight.clone() for module in trainer.network.modules() if isinstance(module, nn.BatchNorm2d)]
    trainer._update()
    after = [module.weight for module in trainer.network.modules() if isinstance(module, nn.BatchNorm2d)]
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old - CONFIG.steps * CONFIG.lr * 0.1)


def test_with_cuts_it_ends_with_the_last_one(tmp_path):
    paying = penalised("norm-scale", budget="macs=0.5", begin=0.3, end=0.8)
    trainer = learning("classifier", tmp_path, [paying])
    due = []
    while trainer.frames < FRAMES:
        frames = trainer.frames
        trainer._update()
        due.append((frames, paying.due))
    assert due == [(frames, 0.3 * FRAMES <= frames < 0.8 * FRAMES) for frames, _ in due]
    assert {paid for _, paid in due} == {True, False}


@pytest.mark.parametrize("name", ["group-lasso-both", "norm-scale", "sum-squares"])
def test_it_goes_on_where_it_stopped(tmp_path, name):
    def trained(folder, **options):
        callbacks = [penalised(name, 0.01)]
        patterns.run(tmp_path / folder, patterns.splits(**options), CONFIG, callbacks)
        return callbacks[0].learner.network.state_dict()

    expected = trained("whole")
    with pytest.raises(patterns.Lost):
        trained("lost", lose_at=5)
    assert all(value.equal(expected[each]) for each, value in trained("lost").items())


def test_workers_pay_it_once(tmp_path):
    config = replace(CONFIG, batch=12, lr=1e-3)

    def learnt(size):
        networks = [build(patterns.SPEC, 1) for _ in range(size)]

        def act(group):
            callbacks = [penalised("sum-squares", 1.0)]
            patterns.begin(tmp_path / str(size), None, config, callbacks, networks[group.rank], group).run()

        together(size, act)
        return networks[0]

    alone, shared = (learnt(size).state_dict() for size in (1, 2))
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-4, atol=1e-5)


def test_a_strong_group_lasso_empties_all_units(tmp_path):
    trainer = learning("agent", tmp_path, [penalised("group-lasso", 1e4)])
    trainer._update()
    groups = structure_of(trainer.network).groups
    assert not any(trainer.network.get_parameter(f"{group.producers[0]}.weight").any() for group in groups)

"""Scores of units: what every one keeps to, and what each says."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.classifiers import classifier_spec
from navprune.models.spec import PolicySpec, encoder_spec
from navprune.pruning.groups import unit_weights, units
from navprune.pruning.losses import Evidence, classification_loss, distillation_loss, outputs
from navprune.pruning.methods import GATES, METHODS, method_of
from navprune.pruning.methods.base import BATCHES
from navprune.pruning.methods.scores import SCORES, geometric_median
from navprune.pruning.penalties import proximal_step
from navprune.pruning.prune import weights_hash
from navprune.pruning.structure import structure_of

LAW = settings(max_examples=5, deadline=None, derandomize=True)
OF_WEIGHTS = sorted(name for name in SCORES if not method_of(name).needs and name != "random")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def encoder(seed=0, name="resnet50"):
    model = build(encoder_spec(name, (1, 32, 32), base_planes=8), seed).double()
    shake(model, seed)
    return model


def shake(model, seed=0):
    """Makes norms random, too."""
    chance = generator(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.rand(parameter.shape, generator=chance, dtype=parameter.dtype))


def images(count=3, seed=0):
    return torch.rand(count, 1, 32, 32, generator=generator(seed), dtype=torch.float64)


def mean_square(model, batch):
    return outputs(model, batch).square().mean()


def evidence(**changes):
    return Evidence(**{"generator": generator(), "batches": [images()], "loss": mean_square} | changes)


def test_every_method_has_a_line_of_help_with_its_source():
    assert set(METHODS) >= {*SCORES, GATES}
    for name, line in METHODS.items():
        assert "\n" not in line and len(line) < 110
        assert ("needs batches" in line) == (BATCHES in method_of(name).needs)


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("name", SCORES)
def test_every_score_is_finite_repeats_and_leaves_no_trace(name, blocks):
    model = encoder().train()
    model.backbone.layer1.eval()
    before, modes = weights_hash(model), [module.training for module in model.modules()]
    structure = structure_of(model, blocks=blocks)
    if blocks and name == "geometric-median":
        with pytest.raises(UserError, match="does not compare residual blocks"):
            SCORES[name](structure, evidence())
        return
    scores, again = (SCORES[name](structure, evidence()) for _ in range(2))
    groups = structure.groups
    assert scores.keys() == {group.name for group in groups}
    for group in groups:
        assert scores[group.name].shape == (units(group),) and scores[group.name].dtype == torch.float64
        assert scores[group.name].isfinite().all()
        assert torch.equal(scores[group.name], again[group.name])
    assert weights_hash(model) == before
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def reordered(model, name, order):
    """The same network with the units of one group in another order."""
    group = next(group for group in structure_of(model).groups if group.name == name)
    index = torch.arange(group.channels).view(-1, group.unit)[order].flatten()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for layer in (*group.producers, *group.norms):
            for parameter in other.get_submodule(layer).parameters():
                parameter.copy_(parameter[index])
        for layer in group.readers:
            weight = other.get_submodule(layer).weight
            weight.copy_(weight[:, index])
    return other


@pytest.mark.parametrize("method", [*OF_WEIGHTS, "taylor", "activation"])
@LAW
@given(seed=st.integers(0, 100), name=st.sampled_from(["stem", "stage2.block1.conv1", "stage2.trunk"]))
def test_a_score_follows_its_unit_wherever_it_stands(method, seed, name):
    model = encoder(seed, "resnet18")
    before = SCORES[method](structure_of(model), evidence())
    order = torch.randperm(len(before[name]), generator=generator(seed))
    after = SCORES[method](structure_of(reordered(model, name, order)), evidence())
    for group, scores in after.items():
        torch.testing.assert_close(scores, before[group][order] if group == name else before[group])


@LAW
@given(st.floats(0.1, 10), st.integers(0, 100))
def test_scaling_laws(factor, seed):
    model = encoder(seed, "resnet18")
    name = "stage2.block0.conv1"
    structure = structure_of(model)
    before = {method: SCORES[method](structure, evidence())[name] for method in (*OF_WEIGHTS, "activation")}
    with torch.no_grad():
        model.backbone.layer2[0].convs[0].weight.mul_(factor)
        model.backbone.layer2[0].convs[1].weight.mul_(factor)
        model.backbone.layer2[0].convs[1].bias.mul_(factor)
    for method, scores in before.items():
        after = SCORES[method](structure, evidence())[name]
        if method in ("mean-abs", "group-lasso", "norm-scale"):
            torch.testing.assert_close(after, factor * scores)
        elif method == "sum-squares":
            torch.testing.assert_close(after, factor**2 * scores)
        elif method != "group-lasso-both":
            torch.testing.assert_close(after, scores, rtol=1e-3, atol=1e-3)  # a norm's epsilon


@pytest.mark.parametrize(("method", "order"), [("l1", 1), ("magnitude", 1), ("l2", 2)])
def test_magnitude_is_the_norm_over_coupled_filters(method, order):
    model = encoder()
    structure = structure_of(model)
    group = next(g for g in structure.groups if g.name == "stage2.trunk")
    filters = [model.get_submodule(name).weight for name in group.producers]
    norms = torch.linalg.vector_norm(torch.cat([w.reshape(units(group), -1) for w in filters], dim=1), ord=order, dim=1)
    assert len(filters) == 5  # four blocks and the shortcut
    torch.testing.assert_close(SCORES[method](structure, evidence())["stage2.trunk"], (norms / norms.mean()).detach())


def test_what_reads_a_unit_is_found_behind_a_flatten_too():
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5))
    group = structure_of(model, torch.zeros(1, 1, 3, 3)).groups[0]
    (columns,) = unit_weights(model, group, "channels")
    assert torch.equal(columns[1], model[3].weight[:, 4:8].flatten())
    both = unit_weights(model, group, "both")
    assert [weight.shape for weight in both] == [(3, 4), (3, 20)]


@pytest.mark.parametrize("method", ["group-lasso", "group-lasso-channel", "group-lasso-both"])
def test_group_lasso_is_the_strength_that_sets_a_unit_to_zero(method):
    over = {"group-lasso": "filters", "group-lasso-channel": "channels", "group-lasso-both": "both"}[method]
    scores = SCORES[method](structure_of(encoder()), evidence())["stage1.block0.conv1"]
    strength = scores.median().item() * (1 + 1e-9)
    model = encoder()
    group = [g for g in structure_of(model).groups if g.name == "stage1.block0.conv1"]
    proximal_step(model, group, strength, over)
    alive = torch.cat(unit_weights(model, group[0], over), dim=1).any(dim=1)
    assert torch.equal(alive, scores > strength) and 0 < alive.sum() < len(alive)


def test_geometric_median_is_the_sum_of_distances():
    model = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.ReLU(), nn.Conv2d(3, 1, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([0.0, 1.0, 5.0])[:, None, None, None])
    group = structure_of(model, torch.zeros(1, 1, 2, 2)).groups[0]
    assert geometric_median(model, group).tolist() == [6, 5, 9]


def test_norm_scale_reads_the_norms_and_leaves_groups_without_norm_alone():
    model = encoder(name="se_resnet50")
    scores = SCORES["norm-scale"](structure_of(model), evidence())
    scale = model.backbone.layer1[0].convs[1].weight.detach().abs()
    torch.testing.assert_close(
        scores["stage1.block0.conv1"], scale.view(len(scores["stage1.block0.conv1"]), -1).mean(1)
    )
    assert "stage1.block0.se" not in scores and "stage1.trunk" in scores


def test_taylor_is_the_slope_of_the_loss_along_each_unit():
    model = encoder().eval()
    structure = structure_of(model)
    scores = SCORES["taylor"](structure, evidence())
    for name in ("stage1.block1.conv2", "stage3.trunk", "stage2.block1"):
        size = len(scores[name]) if name in scores else 1
        step = torch.ones(size, dtype=torch.float64)
        step[0] += 1e-5
        with structure.scaled({name: step}):
            more = mean_square(model, images())
        slope = (more - mean_square(model, images())) / 1e-5
        found = SCORES["taylor"](structure_of(model, blocks=True), evidence())[name][0]
        torch.testing.assert_close(found, slope.detach().abs(), rtol=1e-3, atol=1e-7)


def test_weight_times_gradient_of_filters_before_a_norm_would_say_nothing():
    """Why `taylor` looks behind the norm: there, scale and shift times their gradients are the same slope."""
    model = encoder().eval()
    conv, norm = model.backbone.layer1[0].convs[:2]
    mean_square(model, images()).backward()
    score = SCORES["taylor"](structure_of(model), evidence())["stage1.block0.conv1"]

    def products(parameter):
        return (parameter * parameter.grad).reshape(len(score), -1).sum(1).detach()

    torch.testing.assert_close(score, (products(norm.weight) + products(norm.bias)).abs())
    assert (products(conv.weight).abs() < 1e-3 * score).all()  # not quite zero: a norm's epsilon


def test_taylor_is_the_mean_over_batches():
    structure = structure_of(encoder())
    parts = [SCORES["taylor"](structure, evidence(batches=[images(seed=seed)])) for seed in (0, 1)]
    both = SCORES["taylor"](structure, evidence(batches=[images(seed=0), images(seed=1)]))
    for name, scores in both.items():
        torch.testing.assert_close(scores, (parts[0][name] + parts[1][name]) / 2)


def test_activation_weighs_a_small_last_batch_by_its_size():
    structure = structure_of(encoder())
    whole = SCORES["activation"](structure, evidence(batches=[images(5)], loss=None))
    split = SCORES["activation"](structure, evidence(batches=images(5).split(4), loss=None))
    for name, scores in whole.items():
        torch.testing.assert_close(split[name], scores)


def test_activation_is_measured_behind_the_nonlinearity_and_a_flatten():
    """A channel that ReLU silences is worth nothing, however large it is before."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.GELU(), nn.Flatten(), nn.Linear(96, 2)
    )
    with torch.no_grad():
        model[1].bias[0] = -50
    batch = torch.rand(3, 3, 8, 8)
    scores = SCORES["activation"](structure_of(model, batch), Evidence(generator(), [batch]))
    assert scores["0"][0] == 0 and (scores["0"][1:] > 0).all()
    with torch.no_grad():
        means = model.eval()[:5](batch).abs().mean((0, 2, 3)).double()
    torch.testing.assert_close(scores["3"], means / means.mean(), rtol=1e-5, atol=0)


def test_activation_of_a_trunk_is_the_mean_over_what_reads_it():
    model = encoder(name="resnet18")
    structure = structure_of(model)
    group = next(g for g in structure.groups if g.name == "stage2.trunk")
    seen = []
    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for name in group.readers
    ]
    with torch.no_grad():
        model.eval()(images())
    for handle in handles:
        handle.remove()
    assert len(seen) == len(group.readers) > 1
    means = [x.abs().movedim(1, 0).reshape(units(group), -1).mean(1) for x in seen]
    total = torch.stack(means).mean(0)
    torch.testing.assert_close(SCORES["activation"](structure, evidence())["stage2.trunk"], total / total.mean())


def test_a_silent_unit_scores_zero_where_the_norm_or_the_activation_is_asked():
    model = encoder()
    norm = model.backbone.layer2[1].convs[1]
    with torch.no_grad():
        norm.weight[:4] = 0  # a norm group
        norm.bias[:4] = 0
    for method in ("norm-scale", "taylor", "activation"):
        scores = SCORES[method](structure_of(model), evidence())["stage2.block1.conv1"]
        assert scores[0] == 0 and (scores[1:] > 0).all()


def test_blocks_compare_with_each_other():
    model = encoder()
    with torch.no_grad():
        for parameter in model.backbone.layer3[2].parameters():
            parameter.mul_(0.01)
    for method in ("l1", "l2", "mean-abs", "group-lasso", "norm-scale", "activation", "uniform"):
        structure = structure_of(model, blocks=True)
        scores = SCORES[method](structure, evidence())
        blocks = {group.name: float(scores[group.name]) for group in structure.groups if group.block}
        assert min(blocks, key=blocks.get) == "stage3.block2", method
        assert len(blocks) == 12


def test_uniform_cuts_the_same_share_of_every_group_and_keeps_its_largest_filters():
    model = encoder()
    structure = structure_of(model)
    shares, magnitudes = (
        SCORES["uniform"](structure, evidence()),
        SCORES["l1"](structure, evidence()),
    )
    for group in structure.groups:
        kept = shares[group.name] > 0.5
        assert kept.sum() == units(group) // 2
        assert magnitudes[group.name][kept].min() >= magnitudes[group.name][~kept].max()


def test_random_scores_follow_the_generator():
    first, second = (
        SCORES["random"](structure_of(encoder()), evidence(generator=generator(seed)))["stem"] for seed in (0, 1)
    )
    assert not torch.equal(first, second)


@pytest.mark.parametrize("method", SCORES)
def test_scores_serve_policies_classifiers_and_other_networks(method):
    policy = build(PolicySpec(encoder_spec("resnet18", (1, 32, 32), 8), 16, 16), 0)
    seen = [{"depth": torch.rand(2, 32, 32, 1)}]
    classifier = build(classifier_spec("cifar_resnet56", 4, width=0.25), 0)
    labelled = [(torch.rand(2, 3, 32, 32), torch.tensor([0, 3]))]
    own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    small = [(torch.rand(2, 3, 8, 8), torch.tensor([0, 3]))]
    for structure, given_evidence in (
        (structure_of(policy), evidence(batches=seen)),
        (structure_of(classifier), evidence(batches=labelled, loss=classification_loss)),
        (structure_of(own, torch.zeros(1, 3, 8, 8)), evidence(batches=small, loss=classification_loss)),
    ):
        scores = SCORES[method](structure, given_evidence)
        assert {len(values) for values in scores.values()} <= {units(group) for group in structure.groups}
        assert scores


@pytest.mark.parametrize("batches", [torch.rand(2, 1, 32, 32), 3])
def test_batches_are_a_list_of_batches(batches):
    with pytest.raises(UserError, match="give a list of them"):
        SCORES["activation"](structure_of(encoder()), evidence(batches=batches))


def test_distillation_has_a_slope_only_away_from_the_teacher():
    teacher = encoder(0)
    student = encoder(1)
    assert SCORES["taylor"](structure_of(student), evidence(loss=distillation_loss(teacher)))["stem"].any()
    with pytest.raises(UserError, match="copy of its own teacher"):
        SCORES["taylor"](structure_of(copy.deepcopy(teacher)), evidence(loss=distillation_loss(teacher)))
    with pytest.raises(UserError, match="give the network that this one was cut from"):
        distillation_loss(build(replace(teacher.spec, output=2 * teacher.spec.output)).double())(student, images())
    torch.testing.assert_close(
        distillation_loss(teacher)(student, images()),
        (outputs(student, images()) - outputs(teacher, images())).square().mean(),
    )


def broken():
    model = encoder()
    with torch.no_grad():
        model.backbone.layer2[0].convs[1].weight[0] = float("nan")
        model.backbone.layer2[0].convs[0].weight[0] = float("inf")
    return model


@pytest.mark.parametrize("method", sorted(set(SCORES) - {"random"}))
def test_scores_that_are_not_finite_are_refused_by_name(method):
    with pytest.raises(UserError, match=r"scores of '[a-z0-9.]+' are not finite") as refusal:
        SCORES[method](structure_of(broken()), evidence())
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("method", "changes", "complaint"),
    [
        ("taylor", {"batches": None}, "'taylor' scores need batches"),
        ("taylor", {"batches": []}, "'taylor' scores need batches"),
        ("taylor", {"loss": None}, "'taylor' scores follow a loss"),
        ("activation", {"batches": None}, "'activation' scores need batches"),
    ],
)
def test_what_a_score_needs_is_asked_for(method, changes, complaint):
    with pytest.raises(UserError, match=complaint):
        SCORES[method](structure_of(encoder()), evidence(**changes))


@pytest.mark.parametrize(
    ("batch", "complaint"),
    [
        (
            (torch.rand(2, 3, 30, 32), torch.tensor([0, 1])),
            r"images of \[3, 30, 32\] and the network sees \[3, 32, 32\]",
        ),
        ((torch.rand(2, 3, 32, 32), torch.tensor([0])), "a batch of 2 images needs 2 labels from 0 to 3"),
        ((torch.rand(2, 3, 32, 32), torch.tensor([0, 4])), "a batch of 2 images needs 2 labels from 0 to 3"),
    ],
)
def test_batches_that_do_not_fit_are_refused(batch, complaint):
    classifier = build(classifier_spec("cifar_resnet56", 4, width=0.25), 0)
    with pytest.raises(UserError, match=complaint):
        SCORES["taylor"](structure_of(classifier), evidence(batches=[batch], loss=classification_loss))


@pytest.mark.parametrize("method", ["taylor", "activation"])
@pytest.mark.parametrize(
    "batch",
    [
        (torch.rand(2, 1, 16, 16), torch.tensor([0, 1])),
        (torch.rand(2, 3, 2, 2), torch.tensor([0, 1])),
        (torch.rand(3, 16, 16), torch.tensor([0, 1, 1])),
        (torch.rand(2, 3, 16, 16), torch.tensor([0.0, 1.0])),
        5,
    ],
)
def test_batches_that_do_not_fit_a_module_are_refused_in_one_line(method, batch):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(784, 2))
    given_evidence = Evidence(generator(), [batch], classification_loss)
    structure = structure_of(model, torch.rand(1, 3, 16, 16))
    with pytest.raises(UserError, match=f"^{method}: a batch does not fit the network") as refusal:
        SCORES[method](structure, given_evidence)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("loss", "found"),
    [
        (outputs, r"a tensor of \[3, "),
        (lambda *_: torch.tensor(1.0), r"a tensor of \[\]"),
        (lambda *_: 1.0, "float"),
    ],
)
def test_losses_that_are_no_number_with_a_slope_are_refused(loss, found):
    with pytest.raises(UserError, match=f"taylor: the loss of a batch is {found}.*give one number"):
        SCORES["taylor"](structure_of(encoder()), evidence(loss=loss))


def test_observations_that_do_not_fit_are_refused():
    model = encoder()
    with pytest.raises(UserError, match="a batch lacks 'depth', which the network sees; it holds rgb"):
        outputs(model, {"rgb": torch.zeros(1, 32, 32, 3)})
    with pytest.raises(UserError, match=r"images of \[1, 32, 16\]"):
        outputs(model, {"depth": torch.zeros(1, 32, 16, 1)})


def test_a_network_without_norms_has_no_norm_scales():
    with pytest.raises(UserError, match="'norm-scale' finds nothing to score"):
        SCORES["norm-scale"](structure_of(build(encoder_spec("simple_cnn", (1, 40, 40)), 0)), evidence())

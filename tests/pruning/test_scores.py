import pytest
import torch

from navprune.models.spec import build, encoder_spec
from navprune.pruning.groups import groups_of, units
from navprune.pruning.methods import GATES, METHODS
from navprune.pruning.scores import SCORES, magnitude, random, uniform


@pytest.fixture
def model():
    return build(encoder_spec("resnet50", (1, 64, 64), 8), 0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_score_has_a_line_of_help():
    assert set(METHODS) == {*SCORES, GATES}


@pytest.mark.parametrize("name", SCORES)
def test_every_score_is_finite_for_each_unit_and_repeats(name, model):
    scores = SCORES[name](model, generator())
    again = SCORES[name](model, generator())
    for group in groups_of(model):
        assert scores[group.name].shape == (units(group),)
        assert scores[group.name].isfinite().all()
        assert torch.equal(scores[group.name], again[group.name])


def test_random_scores_follow_the_generator(model):
    assert not torch.equal(random(model, generator(0))["stem"], random(model, generator(1))["stem"])


@pytest.mark.parametrize("order", [1, 2])
def test_magnitude_is_the_norm_over_coupled_filters(model, order):
    group = next(g for g in groups_of(model) if g.name == "stage2.trunk")
    filters = [model.get_submodule(name).weight for name in group.producers]
    together = torch.cat([w.reshape(units(group), -1) for w in filters], dim=1).double()
    norms = torch.linalg.vector_norm(together, ord=order, dim=1)
    assert len(filters) == 5  # four blocks and the shortcut
    torch.testing.assert_close(magnitude(model, generator(), order)["stage2.trunk"], norms / norms.mean())


def test_magnitude_does_not_see_the_scale_of_a_layer(model):
    before = magnitude(model, generator())["stage1.block0.conv1"]
    with torch.no_grad():
        model.backbone.layer1[0].convs[0].weight.mul_(100)
    torch.testing.assert_close(magnitude(model, generator())["stage1.block0.conv1"], before)


def test_uniform_cuts_the_same_share_of_every_group_and_keeps_its_largest_filters(model):
    shares, magnitudes = uniform(model, generator()), magnitude(model, generator())
    for group in groups_of(model):
        kept = shares[group.name] > 0.5
        assert kept.sum() == units(group) // 2
        assert magnitudes[group.name][kept].min() >= magnitudes[group.name][~kept].max()

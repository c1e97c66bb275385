"""The classifiers' sizes are torchvision's; their specs survive JSON and refuse what cannot be."""

import json

import pytest
import torch

from navprune.errors import UserError
from navprune.models.build import build, spec_from_json
from navprune.models.classifiers import CLASSIFIERS, ClassifierSpec, classifier_spec, dense_widths
from navprune.models.spec import encoder_spec
from navprune.models.widths import widths, with_widths


def parameters(spec):
    with torch.device("meta"):
        return sum(p.numel() for p in build(spec).parameters())


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        ("imagenet_resnet18", 1000, 11_689_512),
        ("imagenet_resnet50", 1000, 25_557_032),
        ("vgg16_bn", 1000, 138_365_992),
        ("vgg16_bn", 100, 134_678_692),
    ],
)
def test_parameters_are_torchvisions(name, classes, count):
    assert parameters(classifier_spec(name, classes)) == count


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.73)])
def test_cifar_resnets_have_the_papers_parameters_and_two_projections(depth, millions):
    """The paper's millions count shortcuts without weights; here two projections with norms come on top."""
    projections = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    spec = classifier_spec(f"cifar_resnet{depth}")
    assert round((parameters(spec) - projections) / 1e6, 2) == millions
    assert 2 + 2 * sum(spec.blocks) == depth


def test_classes_are_those_of_the_data_that_a_family_is_known_for():
    known = {name: classifier_spec(name).classes for name in CLASSIFIERS}
    assert known.pop("vgg16_bn") == 100
    assert known == {name: 10 if name.startswith("cifar") else 1000 for name in known}


def test_names_are_torchvisions():
    with torch.device("meta"):
        vgg = build(classifier_spec("vgg16_bn", 1000)).state_dict()
        resnet = build(classifier_spec("imagenet_resnet50", 1000)).state_dict()
    assert vgg["features.40.weight"].shape == (512, 512, 3, 3) and vgg["classifier.6.bias"].shape == (1000,)
    assert vgg["features.41.running_mean"].shape == (512,) and len(vgg) == 13 * 7 + 3 * 2
    assert resnet["layer3.0.downsample.0.weight"].shape == (1024, 512, 1, 1)
    assert resnet["layer4.2.conv3.weight"].shape == (2048, 512, 1, 1) and len(resnet) == 320


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_narrow_classifier_computes_and_survives_json(name):
    spec = classifier_spec(name, 7, (3, 32, 40), width=0.05)
    model = build(spec, 0)
    assert model.spec == spec
    assert model(torch.rand(2, 3, 32, 40)).shape == (2, 7)
    shuffled = json.loads(json.dumps(spec.to_json(), sort_keys=True))
    assert spec_from_json(shuffled) == spec
    assert list(spec_from_json(shuffled).widths) == list(spec.widths)
    assert (
        widths(spec)
        == dict(spec.widths)
        == {n: max(1, round(c / 20)) for n, c in dense_widths(name, spec.blocks).items()}
    )
    wider = with_widths(spec, {"conv1" if "resnet" in name else "features.0": 11})
    assert build(wider, 0)(torch.rand(2, 3, 32, 40)).shape == (2, 7)
    assert wider.to_json() != spec.to_json()


def test_equal_seeds_give_equal_weights():
    spec = classifier_spec("cifar_vgg16_bn", 3, width=0.02)
    first, second = (build(spec, 5).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_blocks_behind_a_removed_one_move_up():
    spec = classifier_spec("cifar_resnet56", 10)
    fewer = with_widths(spec, {"layer1.3.conv1": 5, "layer2.0.conv2": 7})
    fewer = fewer.without_blocks({"layer1.0", "layer1.2", "layer3.8"})
    assert fewer.blocks == (7, 9, 8)
    assert fewer.widths["layer1.1.conv1"] == 5 and fewer.widths["layer2.0.conv2"] == 7
    assert build(fewer, 0)(torch.rand(1, 3, 32, 32)).shape == (1, 10)
    none = spec.without_blocks([f"layer1.{index}" for index in range(9)])
    assert none.blocks == (0, 9, 9) and build(none, 0)(torch.rand(1, 3, 32, 32)).shape == (1, 10)
    with pytest.raises(UserError, match=r"'layer2\.0\.conv2' is missing"):
        spec.without_blocks({"layer2.0"})  # which changes the width


def test_kinds_of_specs_are_told_apart():
    encoder = encoder_spec("resnet18")
    assert spec_from_json(encoder.to_json()) == encoder
    with pytest.raises(UserError, match="not a spec"):
        spec_from_json([1])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"family": "alexnet"}, "unknown classifier 'alexnet'"),
        ({"classes": 0}, "classes is 0"),
        ({"input": (3, 32)}, "input is .channels, height, width."),
        ({"input": (3, 0, 32)}, "height is 0"),
        ({"blocks": (2, 2)}, "each of its 4 stages"),
        ({"blocks": (2, 0, 2, 2)}, "stage 2 has 0 blocks"),
        ({"widths": {"conv1": 4}}, "'layer1.0.conv1' is missing"),
        ({"widths": {**dense_widths("imagenet_resnet18", (2, 2, 2, 2)), "conv9": 4}}, "'conv9' does not exist"),
        ({"widths": {**dense_widths("imagenet_resnet18", (2, 2, 2, 2)), "conv1": 0}}, "width of conv1 is 0"),
    ],
)
def test_specs_that_cannot_be_are_refused(change, complaint):
    good = classifier_spec("imagenet_resnet18", 10).to_json()
    with pytest.raises(UserError, match=complaint):
        ClassifierSpec.from_json({**good, **change})


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="unknown classifier"):
        classifier_spec("resnet", 10)
    with pytest.raises(UserError, match="has no width 'stem'"):
        with_widths(classifier_spec("cifar_resnet56", 10), {"stem": 4})
    with pytest.raises(UserError, match="too small"):
        classifier_spec("cifar_vgg16_bn", 10, (3, 16, 16))

import pytest
import torch
from torch import nn

from navprune.models.build import build
from navprune.models.encoders import Conv2d, RunningMeanAndVar
from navprune.models.spec import convolutions, encoder_spec

SPECS = {
    "resnet18": encoder_spec("resnet18", (1, 96, 128), 8),
    "resnet50": encoder_spec("resnet50", (4, 64, 64), 8, width=0.6),
    "se_resnet50": encoder_spec("se_resnet50", (1, 64, 64), 8, width=0.6),
    "se_resneXt50": encoder_spec("se_resneXt50", (1, 64, 64), 8, width=0.6),
    "simple_cnn": encoder_spec("simple_cnn", (3, 64, 80)),
}


@pytest.fixture(scope="module", params=SPECS)
def encoder(request):
    return build(SPECS[request.param], seed=0)


def test_features_have_the_shape_that_the_spec_says(encoder):
    assert encoder(torch.rand(2, *encoder.spec.input)).shape == (2, *encoder.output_shape)


def _counts(module):
    """Input and output channels of a convolution or linear layer."""
    return tuple(module.weight.shape[1::-1])


def _layers(encoder):
    modules = dict(encoder.named_modules())
    return {name: module for name, module in modules.items() if isinstance(module, nn.Conv2d | nn.Linear)}


def test_the_specs_convolutions_are_the_modules(encoder):
    modules = dict(encoder.named_modules())
    shapes: dict[str, torch.Size] = {}
    for name, module in _layers(encoder).items():
        module.register_forward_hook(lambda m, i, out, name=name: shapes.update({name: out.shape[1:]}))
    encoder(torch.rand(1, *encoder.spec.input))
    convs = convolutions(encoder.spec)
    assert list(shapes) == [conv.module for conv in convs]  # in order of execution
    for conv in convs:
        channels = encoder.spec.channels
        assert shapes[conv.module] in [(channels[conv.target], conv.height, conv.width), (channels[conv.target],)]
        assert _counts(modules[conv.module]) == (conv.per_group or channels[conv.source], channels[conv.target])
        if conv.norm:
            assert modules[conv.norm].num_channels == channels[conv.target]


def test_groups_name_every_convolution_and_norm_once(encoder):
    groups = encoder.groups()
    modules = dict(encoder.named_modules())
    layers = list(_layers(encoder))
    grouped = [name for name in layers if getattr(modules[name], "groups", 1) > 1]
    norms = [name for name, module in modules.items() if isinstance(module, nn.GroupNorm)]
    produced = [name for group in groups for name in (*group.producers, *group.multipliers)]
    read = [name for group in groups for name in group.readers]
    last, first = convolutions(encoder.spec)[-1], convolutions(encoder.spec)[0]
    assert sorted([*produced, last.module]) == sorted(layers)
    assert sorted([*read, first.module, *grouped]) == sorted(layers)
    assert set(grouped) == {conv.module for conv in convolutions(encoder.spec) if conv.per_group}
    assert sorted([name for group in groups for name in group.norms] + [last.norm] * bool(norms)) == sorted(norms)
    for group in groups:
        assert {_counts(modules[name])[1] for name in (*group.producers, *group.multipliers)} == {group.channels}
        assert {_counts(modules[name])[0] for name in group.readers} == {group.channels}
        assert {modules[name].num_channels // modules[name].num_groups for name in group.norms} <= {group.unit}


def test_a_channel_of_a_group_reaches_nothing_but_its_readers(encoder):
    """Where a unit is silenced behind its norms, the weights that read and multiply it do not matter."""
    x = torch.rand(2, *encoder.spec.input)
    modules = dict(encoder.named_modules())
    encoder.eval()
    for group in encoder.groups():
        dead = slice(0, group.unit)

        def silence(module, inputs, output, dead=dead):
            output = output.clone()
            output[:, dead] = 0
            return output

        hooks = [modules[name].register_forward_hook(silence) for name in group.norms or group.producers]
        with torch.no_grad():
            expected = encoder(x)
            kept = {name: modules[name].weight.clone() for name in (*group.readers, *group.multipliers)}
            for name in group.readers:
                modules[name].weight[:, dead] = 7.0
            for name in group.multipliers:
                modules[name].weight[dead] = 7.0
            assert torch.equal(encoder(x), expected), group.name
            for name, weight in kept.items():
                modules[name].weight.copy_(weight)
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("kernel, stride", [(1, 1), (3, 1), (3, 2)])
def test_convolution_of_a_single_pixel_equals_the_plain_one(kernel, stride):
    torch.manual_seed(0)
    conv = Conv2d(6, 10, kernel, stride)
    x = torch.randn(4, 6, 1, 1, requires_grad=True)
    expected = nn.functional.conv2d(x, conv.weight, stride=stride, padding=kernel // 2)
    torch.testing.assert_close(conv(x), expected)
    wanted = torch.autograd.grad(expected.square().sum(), [x, conv.weight])
    torch.testing.assert_close(torch.autograd.grad(conv(x).square().sum(), [x, conv.weight]), wanted)


def test_images_join_the_observations_and_scale_bytes():
    encoder = build(encoder_spec("resnet18", (4, 32, 64), 8))
    rgb = torch.randint(0, 256, (2, 32, 64, 3), dtype=torch.uint8)
    depth = torch.rand(2, 32, 64, 1)
    images = encoder.images({"depth": depth, "rgb": rgb})
    torch.testing.assert_close(images[:, 1:], rgb.permute(0, 3, 1, 2) / 255)
    assert torch.equal(images[:, 0], depth[..., 0])


def test_running_statistics_are_those_of_all_images_seen():
    torch.manual_seed(0)
    norm = RunningMeanAndVar(3)
    batches = [torch.randn(n, 3, 5, 4) * 2 + n for n in (1, 4, 7)]
    for batch in batches:
        norm(batch)
    seen = torch.cat(batches)
    var, mean = torch.var_mean(seen, dim=(0, 2, 3), correction=0)
    norm.eval()
    torch.testing.assert_close(norm(seen), (seen - mean[:, None, None]) / var[:, None, None].sqrt())


def test_blind_encoder_gives_nothing_for_each_observation():
    encoder = build(encoder_spec("blind"))
    images = encoder.images({"pointgoal_with_gps_compass": torch.zeros(5, 2)})
    assert encoder(images).flatten(1).shape == (5, 0)
    assert encoder.groups() == [] and encoder.output_shape == (0, 0, 0)

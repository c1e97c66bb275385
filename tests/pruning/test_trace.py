"""Networks that are not ours: their groups by tracing, the law for them, their costs, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from navprune.costs.counting import cost, count, total
from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.classifiers import classifier_spec
from navprune.models.spec import encoder_spec
from navprune.models.widths import with_widths
from navprune.pruning.groups import units
from navprune.pruning.structure import structure_of
from navprune.pruning.trace import trace

LAW = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


class Net(nn.Module):
    """Layers by name, and a forward given as a function of them and the input."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.compute = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.compute(self, x)


def norm(kind, channels, rng):
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(channels // int(rng.choice([s for s in (1, 2, 3, 4) if channels % s == 0])), channels)
    return nn.InstanceNorm2d(channels, affine=True) if kind == "instance" else nn.Identity()


class Residual(nn.Module):
    """conv, norm, activation, grouped or depthwise conv, norm, added to the input in one of several ways."""

    def __init__(self, channels, rng):
        super().__init__()
        inner = int(rng.choice([4, 6]))
        groups = int(rng.choice([1, 2, inner]))
        kinds = rng.choice(["batch", "group", "instance", "none"], 3)
        self.before = norm(kinds[0], channels, rng) if rng.random() < 0.3 else None
        self.first, self.norm1 = (
            nn.Conv2d(channels, inner, 1, bias=bool(rng.random() < 0.5)),
            norm(kinds[1], inner, rng),
        )
        self.middle = nn.Conv2d(inner, inner, 3, padding=1, groups=groups)
        self.last, self.norm2 = nn.Conv2d(inner, channels, 3, padding=1), norm(kinds[2], channels, rng)
        self.excite = nn.Conv2d(channels, channels, 1) if rng.random() < 0.4 else None
        self.way = rng.choice(["plus", "in place", "torch"])

    def forward(self, x):
        y = x if self.before is None else F.relu(self.before(x))
        y = self.norm2(self.last(F.silu(self.middle(torch.relu(self.norm1(self.first(y)))))))
        if self.excite is not None:
            y = y * torch.sigmoid(self.excite(F.adaptive_avg_pool2d(y, 1)))
        if self.way == "in place":
            y += x
            return y
        return torch.add(y, x) if self.way == "torch" else y + x


def random_net(rng):
    """A chain of convolutions, residual blocks and pools, ended by linear layers behind one of several flattenings."""
    layers, channels = [], 2
    for _ in range(rng.integers(1, 4)):
        wider = int(rng.choice([4, 6, 8]))
        layers += [nn.Conv2d(channels, wider, 3, padding=1), norm(rng.choice(["batch", "group", "none"]), wider, rng)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)] if rng.random() < 0.4 else [nn.LeakyReLU(0.1, inplace=True)]
        layers += [Residual(wider, rng) for _ in range(rng.integers(0, 3))]
        channels = wider
    layers.append(nn.AdaptiveAvgPool2d(int(rng.choice([1, 2]))))
    cells = layers[-1].output_size ** 2
    features = nn.Sequential(*layers)
    head = nn.Sequential(nn.Linear(channels * cells, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    ways = [
        lambda m, x: m.head(m.features(x).flatten(1)),
        lambda m, x: m.head(torch.flatten(m.features(x), 1)),
        lambda m, x: m.head((y := m.features(x)).view(y.size(0), -1)),
        lambda m, x: m.head((y := m.features(x)).reshape(y.shape[0], y.shape[1] * y.shape[2] * y.shape[3])),
    ]
    if cells == 1:
        ways += [lambda m, x: m.head(m.features(x).mean((2, 3))), lambda m, x: m.head(m.features(x)[:, :, 0, 0])]
    return Net(ways[rng.integers(len(ways))], features=features, head=head)


def shaken(model, rng):
    """The model in float64 and evaluation mode, with random norms and statistics."""
    model = model.double().eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() <= 1:
            tensor.add_(torch.from_numpy(rng.random(tensor.shape)))
    return model


def random_keep(groups, rng):
    keep = {group.name: torch.from_numpy(rng.random(units(group)) < 0.6) for group in groups}
    for flags in keep.values():
        flags[rng.integers(len(flags))] = True
    return keep


@LAW
@given(st.integers(0, 10**6))
def test_slim_equals_mask_and_costs_are_those_of_the_slim_module(seed):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model, example = shaken(random_net(rng), rng), torch.rand(2, 2, 9, 8)
    structure = structure_of(model, example)
    groups = structure.groups
    keep = random_keep(groups, rng)
    images = torch.rand(3, 2, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        with structure.mask(keep):
            masked = model(images)
        small = structure.slim(keep)
        assert (small(images) - masked).abs().max() < 1e-10
        assert torch.equal(model(images), structure.slim({})(images))
    widths = {group.name: int(keep[group.name].sum()) * group.unit for group in groups}
    counted = count(small, images)
    assert structure.cost(widths) == {"macs": counted.macs, "parameters": counted.parameters}
    # A grouped convolution with one group left is a plain one, which has a width of its own.
    assert all(
        group.channels == widths.get(group.name, group.channels) for group in structure_of(small, example).groups
    )
    model.train(), small.train()
    with structure.mask(keep):
        masked = model(images)
    assert (small(images) - masked).abs().max() < 1e-6  # small batches magnify rounding


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "se_resnet50", "resneXt50", "se_resneXt50", "simple_cnn"])
@pytest.mark.parametrize("channels", [1, 4])
def test_the_trace_finds_the_groups_that_our_encoders_declare(name, channels):
    def facts(group):
        layers = (group.producers, group.norms, group.readers, group.multipliers, group.ends)
        return group.channels, group.unit, group.trunk, group.block, *map(frozenset, layers)

    spec = encoder_spec(name, (channels, 64, 48), 8)
    model = build(spec, 0)
    traced = trace(model, torch.empty(1, channels, 64, 48))
    assert {facts(group) for group in traced.groups} == {facts(group) for group in structure_of(model).groups}
    counted = total(traced.layers, {group.name: group.channels for group in traced.groups})
    assert counted == {"macs": cost(spec).macs, "parameters": cost(spec).parameters}


@pytest.mark.parametrize("name", ["cifar_resnet56", "imagenet_resnet50", "vgg16_bn"])
def test_costs_of_classifiers_follow_widths_and_blocks(name):
    spec = classifier_spec(name, 10, (3, 64, 64), width=0.1)
    widths = {layer: max(1, channels // 2) for layer, channels in spec.widths.items()}
    removed = list(spec.removable_blocks())[1::2]
    with torch.device("meta"):
        estimate = structure_of(build(spec), torch.empty(1, 3, 64, 64)).cost
        for blocks in ([], removed):
            smaller = build(with_widths(spec, widths).without_blocks(blocks))
            counted = count(smaller, torch.empty(1, 3, 64, 64))
            cut = estimate({**widths, **dict.fromkeys(blocks, 0)})
            assert cut == {"macs": counted.macs, "parameters": counted.parameters}


def test_widths_of_a_slim_module_are_told_by_its_layers():
    model = nn.Sequential(
        nn.Conv2d(2, 6, 1), nn.Conv2d(6, 6, 3, groups=3), nn.GroupNorm(2, 6), nn.Flatten(), nn.Linear(6 * 4, 3)
    )
    group = structure_of(model, torch.rand(1, 2, 4, 4)).groups[0]
    assert (group.name, group.unit, group.producers) == ("0", 6, ("0", "1"))  # groups of 2 and of 3
    model[2] = nn.GroupNorm(3, 6)
    model[4].requires_grad_(False)
    small = structure_of(model.train(), torch.rand(1, 2, 4, 4)).slim({"0": torch.tensor([True, False, True])})
    assert str(small[1]) == "Conv2d(4, 4, kernel_size=(3, 3), stride=(1, 1), groups=2)"
    assert (small[2].num_groups, small[2].num_channels) == (2, 4)
    assert str(small[4]) == "Linear(in_features=16, out_features=3, bias=True)"
    assert small.training and not small[4].weight.requires_grad
    assert torch.equal(small[4].weight, model[4].weight.view(3, 6, 4)[:, [0, 1, 4, 5]].flatten(1))
    assert model[0].out_channels == 6 and model[0].weight.shape[0] == 6


def test_a_layer_that_is_used_twice_couples_its_inputs_and_outputs():
    model = Net(
        lambda m, x: m.out(m.twice(m.twice(m.stem(x)).relu())),
        stem=nn.Conv2d(2, 4, 1), twice=nn.Conv2d(4, 4, 3, padding=1), out=nn.Conv2d(4, 1, 1),
    )  # fmt: skip
    example = torch.rand(2, 2, 5, 5)
    structure = structure_of(model, example)
    (group,) = structure.groups
    assert (group.producers, group.readers) == (("stem", "twice"), ("twice", "out"))
    keep = {"stem": torch.tensor([True, False, True, True])}
    with structure.mask(keep):
        masked = model(example)
    small = structure.slim(keep)
    torch.testing.assert_close(small(example), masked)
    assert structure.cost({"stem": 3})["macs"] == count(small, example).macs


def test_inputs_outputs_and_grouped_convolutions_of_two_widths_stay():
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 8, 1, groups=2), nn.Conv2d(8, 3, 1), nn.Conv2d(3, 3, 1))
    assert [group.name for group in structure_of(model, torch.rand(1, 2, 4, 4)).groups] == ["2"]
    with pytest.raises(UserError, match="no channels to prune"):
        structure_of(nn.Conv2d(3, 3, 1), torch.rand(1, 3, 4, 4))


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: (m.c(m.a(x).mean((2, 3))), F.conv2d(x, m.a.weight)),
        lambda m, x: (m.c(m.a(x).mean((2, 3))), (m.a.weight**2).sum()),
        lambda m, x: (m.c((y := m.a(x)).mean((2, 3))), x * y.shape[1]),
        lambda m, x: (m.c(m.a(x).mean((2, 3))), m.c(x.flatten(2).mean(1)[:, None, :4])),
        lambda m, x: (m.c(x.flatten(2).mean(1)[:, None, :4]), m.c(m.a(x).mean((2, 3)))),
    ],
)
def test_layers_that_are_read_otherwise_stay_whole(forward):
    """Their weights in forward, or a linear layer along the last of several dimensions."""
    model = net(lambda m, x: (*forward(m, x), m.d(m.b(x))), c=nn.Linear(4, 2))
    example = torch.rand(2, 3, 6, 6)
    structure = structure_of(model, example)
    assert [group.name for group in structure.groups] == ["b"]
    keep = {"b": torch.tensor([True, False, False, True])}
    with structure.mask(keep):
        masked = model(example)
    for mine, theirs in zip(masked, structure.slim(keep)(example)):
        torch.testing.assert_close(mine, theirs)


def test_a_thousand_residual_sums_are_followed():
    def forward(m, x):
        y = m.a(x)
        for _ in range(1200):
            y = y + m.b(x)
        return m.c(y)

    (group,) = structure_of(net(forward), torch.rand(1, 3, 4, 4)).groups
    assert group.producers == ("a", "b")


def test_what_is_given_is_looked_at_first():
    model = net(lambda m, x: m.c(m.a(x)))
    example = torch.rand(1, 3, 4, 4)
    for wrong in ({"rgb": example}, 3, (example, 3)):
        with pytest.raises(UserError, match="an example is a tensor"):
            structure_of(model, wrong)
    structure = structure_of(model, example)
    with pytest.raises(UserError, match="keep is NoneType"):
        structure.slim(None)
    with (
        pytest.raises(UserError, match="no channel group 'z'"),
        structure.scaled({"z": torch.ones(4)}),
    ):
        pass
    with (
        structure.mask({"a": torch.tensor([True, False, False, True])}),
        pytest.raises(UserError, match="in batches, not in"),
    ):
        model(example[0])


def test_what_only_fixed_channels_meet_is_left_alone():
    """Such as preprocessing, which costs all the same."""
    model = Net(
        lambda m, x: m.b(m.a(torch.cat([m.colours(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), x], 1) * m.gain)),
        colours=nn.Linear(3, 2), gain=nn.Parameter(torch.rand(5, 1, 1)), a=nn.Conv2d(5, 4, 3), b=nn.Conv2d(4, 5, 1),
    )  # fmt: skip
    example = torch.rand(2, 3, 6, 6)
    structure = structure_of(model, example)
    assert [group.name for group in structure.groups] == ["a"]
    counted = count(model, example)
    assert structure.cost({}) == {"macs": counted.macs, "parameters": counted.parameters}


def conv(source=3, target=4):
    return nn.Conv2d(source, target, 3, padding=1)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = conv(3, 3), conv(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


def net(forward, **layers):
    """Layers in pairs: of 3 to 4 channels where the name says `a` or `b`, of 4 to 2 where it says `c` or `d`."""
    ends = {name: conv(3, 4) if name in "ab" else conv(4, 2) for name in "abcd"}
    return Net(forward, **{**ends, **layers})


@pytest.mark.parametrize(
    ("model", "ends", "multipliers"),
    [
        (net(lambda m, x: m.c((y := m.n(m.a(x))) * torch.sigmoid(y)), n=nn.BatchNorm2d(4)), {"n"}, set()),
        (net(lambda m, x: m.c(m.a(x) * torch.sigmoid(m.b(x)))), {"a"}, {"b"}),
        (net(lambda m, x: m.c(m.a(x) * m.n(m.b(x)).sigmoid()), n=nn.BatchNorm2d(4)), {"a"}, {"b", "n"}),
        (net(lambda m, x: m.c(m.a(x) * torch.sigmoid(y := m.b(x))) + m.d(y)), {"a", "b"}, set()),
        (net(lambda m, x: m.c(m.b(x) * (1 - m.a(x)))), {"b"}, {"a"}),
        (net(lambda m, x: m.c(m.n(torch.sigmoid(m.a(x)))), n=nn.BatchNorm2d(4)), {"n"}, set()),
        (net(lambda m, x: m.c(m.n(torch.sigmoid(m.a(x)))), n=nn.Conv2d(4, 4, 1, groups=4)), {"n"}, set()),
        (net(lambda m, x: m.c(m.n(m.a(x).relu())), n=nn.BatchNorm2d(4)), {"n"}, set()),
        (net(lambda m, x: m.c(m.n(y := m.a(x))) + m.d(y), n=nn.BatchNorm2d(4)), {"n", "a"}, set()),
        (net(lambda m, x: m.c(m.n(m.a(x))) + m.d(m.n(m.b(x))), n=nn.BatchNorm2d(4)), {"n"}, set()),
        (net(lambda m, x: m.c(m.n(m.a(x))) + m.c(m.a(2 * x)), n=nn.BatchNorm2d(4)), {"n", "a"}, set()),
        (net(lambda m, x: m.c(torch.maximum(m.a(x), m.b(x)))), {"a", "b"}, set()),
        (net(lambda m, x: m.c(torch.maximum(y := m.a(x), y))), {"a"}, set()),
        (net(lambda m, x: m.c(m.n(m.a(x).flatten(1))), n=nn.BatchNorm1d(144), c=nn.Linear(144, 2)), {"n"}, set()),
        (net(lambda m, x: m.c(m.a(x).flatten(1).view(x.size(0), -1, 6, 6))), {"a"}, set()),
        (net(lambda m, x: m.c(m.a(x).flatten(2).mean(-1)), c=nn.Linear(4, 2)), {"a"}, set()),
        (net(lambda m, x: m.c(F.interpolate(F.max_pool2d(m.a(x), 2), size=x.shape[2:]))), {"a"}, set()),
        (net(lambda m, x: (m.h(y := m.a(x)), m.c(y))[1], h=nn.ReLU(inplace=True)), {"a"}, set()),
        (net(lambda m, x: m.c(2 * torch.tanh(m.a(x)).clamp(min=0) / 3)), {"a"}, set()),
        (net(lambda m, x: m.c((y := m.a(x)) * m.b(x).mean((2, 3), True).sigmoid().expand_as(y))), {"a"}, {"b"}),
        (net(lambda m, x: m.c(m.n(m.a(x))), n=nn.PReLU()), {"a"}, set()),
        (net(lambda m, x: m.c(m.a(x).mean((2, 3), True).expand(-1, -1, 6, 6))), {"a"}, set()),
        (net(lambda m, x: m.c((y := m.a(x)).view(y.size(0), y.size(1), -1).view(y.shape))), {"a"}, set()),
        (net(lambda m, x: m.c(F.interpolate(F.max_pool2d(y := m.a(x), 2), size=y.shape[1:][1:]))), {"a"}, set()),
        (net(lambda m, x: torch.cat([y := m.c(m.a(x)), y.permute(1, 0, 2, 3)], 1).log_softmax(1)), {"a"}, set()),
        (net(lambda m, x: m.c(m.a(x).mean((2, 3))).squeeze(), c=nn.Linear(4, 1)), {"a"}, set()),
        (net(lambda m, x: m.c(m.n(m.a(x))), n=nn.Sigmoid()), {"n"}, set()),
        (net(lambda m, x: m.c(F.pad(m.n(m.a(x)).relu(), (1, 1))), n=nn.Hardsigmoid()), {"n"}, set()),
        (net(lambda m, x: m.c(m.a(x) / x.shape[1])), {"a"}, set()),
        (net(lambda m, x: m.c(y := m.a(x)) + m.d(m.b(x).view(y.shape))), {"a", "b"}, set()),
        (net(lambda m, x: m.c(y := m.a(x)) + m.d(m.b(x).view(-1, y.shape[1:][0], 6, 6))), {"a", "b"}, set()),
        (net(lambda m, x: m.c(m.a(x) * m.g), g=nn.Parameter(torch.ones(1, 4, 1, 1))), {"a"}, set()),
        (net(lambda m, x: m.c(m.a(x) / (m.g[:, None, None] + 2)), g=nn.Parameter(torch.ones(4))), {"a"}, set()),
        (net(lambda m, x: m.c(m.a(x)[..., None][:, :, :-1].squeeze(4))), {"a"}, set()),
        (net(lambda m, x: m.c(m.a(x) * m.a(x).amin((2, 3))[..., None, None])), {"a"}, set()),
    ],
)  # fmt: skip
def test_cut_channels_are_silenced_wherever_they_would_speak(model, ends, multipliers):
    rng = np.random.default_rng(0)
    shaken(model, rng)
    images = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    structure = structure_of(model, images)
    (group,) = structure.groups
    assert (set(group.ends), set(group.multipliers)) == (ends, multipliers)
    keep = {group.name: torch.tensor([True, False, False, True])}
    for training in (False, True):
        model.train(training)
        with structure.mask(keep):
            masked = model(images)
        assert (structure.slim(keep)(images) - masked).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (Net(lambda m, x: m.b(torch.cat([m.a(x), x], 1)), a=conv(), b=conv(7)), "through cat in forward"),
        (nn.Sequential(conv(), nn.Sequential(nn.PixelShuffle(2)), conv(1)), "through PixelShuffle at 1.0"),
        (nn.Sequential(conv(), nn.LayerNorm([4, 6, 6]), conv(4)), "through LayerNorm at 1"),
        (nn.Sequential(conv(), nn.ConvTranspose2d(4, 4, 1), conv(4)), "through ConvTranspose2d at 1"),
        (Net(lambda m, x: m.b(m.a(x).sigmoid()), a=conv(), b=conv(4)), "b reads channels that are not 0"),
        (Net(lambda m, x: m.b(m.n(m.n(m.a(x)))), a=conv(), b=conv(4), n=nn.Sigmoid()), "b reads channels that are not"),
        (Net(lambda m, x: m.b(m.a(x) + 1), a=conv(), b=conv(4)), "b reads channels that are not 0"),
        (Net(lambda m, x: (m.h(y := m.a(x)), m.b(y))[1], a=conv(), b=conv(4), h=nn.Hardsigmoid(inplace=True)), "not 0"),
        (Net(lambda m, x: (F.hardtanh(y := m.a(x), 0.5, 1.0, True), m.b(y))[1], a=conv(), b=conv(4)), "not 0"),
        (Net(lambda m, x: ((y := m.a(x)).flatten(1).add_(1), m.b(y))[1], a=conv(), b=conv(4)), "not 0"),
        (Net(lambda m, x: (m.h(y := m.a(x)).add_(1), m.b(y))[1], a=conv(), b=conv(4), h=nn.ReLU(True)), "not 0"),
        (Net(lambda m, x: (torch.clamp(y := m.a(x), min=0.5, out=y), m.b(y))[1], a=conv(), b=conv(4)), "with out="),
        (Net(lambda m, x: m.b(m.a(x).view(-1, 144)), a=conv(), b=nn.Linear(144, 2)), r"view\(..., 144, ...\).*-1"),
        (Net(lambda m, x: m.b(torch.reshape(m.a(x), shape=(-1, 144))), a=conv(), b=nn.Linear(144, 2)), "144"),
        (Net(lambda m, x: m.b(m.a(x).unflatten(1, (2, 2)).flatten(1, 2)), a=conv(), b=conv(4)), "through unflatten"),
        (Net(lambda m, x: m.b(m.a(x) + x.shape[1]), a=conv(), b=conv(4)), "add with a number computed"),
        (Net(lambda m, x: m.b(x.mean((1, 2, 3), True) / m.a(x)), a=conv(), b=conv(4)), "div in forward"),
        (net(lambda m, x: m.c(y := m.a(x)) + m.d(m.b(x) * y.shape[1])), "mul with a number of channels"),
        (net(lambda m, x: m.c(m.a(x).mean((2, 3), True).expand(-1, 4, 6, 6))), r"expand\(..., 4, ...\).*-1"),
        (net(lambda m, x: (m.c(y := m.a(x)), m.d(m.b(x).view(-1, 36 * y.size(1)))), d=nn.Linear(144, 2)), "view with"),
        (net(lambda m, x: m.c(y := m.a(x)) + m.d(m.b(x) * y.size(y.dim() - 3))), "mul with a number of channels"),
        (net(lambda m, x: m.d(m.a(x).mean((2, 3)).squeeze()), d=nn.Linear(4, 1)), "squeeze of every dimension"),
        (net(lambda m, x: m.d(F.max_pool2d(m.a(x).flatten(2), 2).flatten(1)), d=nn.Linear(36, 1)), "max_pool2d"),
        (net(lambda m, x: m.d(m.n(m.a(x).flatten(2))), n=nn.MaxPool2d(2), d=nn.Linear(18, 1)), "MaxPool2d at n"),
        (net(lambda m, x: m.c(m.n(m.a(x))), n=nn.PReLU(4)), "PReLU with a slope for each channel"),
        (net(lambda m, x: m.c(m.a(x) * m.b(x).abs() ** -0.5)), "pow, which is not finite"),
        (net(lambda m, x: m.c(m.a(x) * (1 / m.b(x)))), "not finite where cut channels are 0"),
        (
            net(lambda m, x: m.d(m.c(m.a(x).flatten(1)[:, :, None, None])), c=nn.Conv2d(144, 144, 1, groups=144),
                d=nn.Conv2d(144, 1, 1)), "grouped Conv2d behind flatten",
        ),
        (Net(lambda m, x: m.b(m.a(x).transpose(1, 2)), a=conv(), b=conv(6)), "through transpose"),
        (Net(lambda m, x: m.b(m.a(x).mean(1, keepdim=True)), a=conv(), b=conv(1)), "through mean"),
        (Net(lambda m, x: m.b(m.a(x).chunk(2, 1)[0]), a=conv(), b=conv(2)), "through chunk"),
        (Net(lambda m, x: m.b(m.a(x)[:, [1, 0, 2, 3]]), a=conv(), b=conv(4)), "through getitem"),
        (Net(lambda m, x: m.b(m.a(x)[:, :2]), a=conv(), b=conv(2)), "through getitem"),
        (Net(lambda m, x: m.b(m.a(x) if x.sum() > 0 else x), a=conv(3, 3), b=conv()), "cannot be traced"),
        (nn.Sequential(conv(), conv(5)), "does not take an example"),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(conv()), conv(4)), "weights of 0 are computed"),
        (Net(lambda m, x: F.conv2d(m.a(x), m.b.weight), a=conv(), b=conv(4)), "through conv2d in forward"),
        (Tied(), "a and b share a parameter"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_named(model, complaint):
    with pytest.raises(UserError, match=complaint) as error:
        structure_of(model, torch.rand(2, 3, 6, 6))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "obstacle"),
    [
        (Net(lambda m, x: m.b(m.a(x.flatten(2))), a=nn.Conv1d(3, 8, 3), b=nn.Conv1d(8, 4, 1)), "Conv1d at a"),
        (nn.Sequential(nn.ConvTranspose2d(3, 8, 3), nn.Conv2d(8, 4, 1)), "ConvTranspose2d at 0"),
        (nn.Sequential(nn.Conv2d(3, 6, 1, groups=3), nn.Conv2d(6, 4, 1)), "grouped Conv2d of two widths at 0"),
        (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), "Linear at 0"),
    ],
)
def test_where_nothing_can_be_cut_the_operation_that_fixed_channels_is_named(model, obstacle):
    with pytest.raises(UserError, match=f"has no channels to prune: .* stay, and .* through {obstacle}") as error:
        structure_of(model, torch.rand(2, 3, 6, 6))
    assert "\n" not in str(error.value)


def test_a_single_layer_has_inputs_and_outputs_alone():
    with pytest.raises(UserError, match=r"inputs and outputs stay$"):
        structure_of(nn.Sequential(conv()), torch.rand(2, 3, 6, 6))


def test_without_an_example_nothing_can_be_traced():
    with pytest.raises(UserError, match="an example of its input"):
        structure_of(nn.Sequential(conv(), conv(4)))


def test_only_shapes_of_the_example_matter_and_the_model_is_left_alone():
    model = nn.Sequential(conv(), nn.BatchNorm2d(4), conv(4)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert (
        structure_of(model, torch.full((1, 3, 6, 6), float("nan"))).groups
        == structure_of(model, torch.empty(5, 3, 6, 6)).groups
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training

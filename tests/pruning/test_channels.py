"""The law for modules as others publish them: slim equals mask, in evaluation and in training; the rest is named."""

import pytest
import torch
from published_modules import (
    Affine,
    BatchNormAct2d,
    ConvExcitation,
    Detectron2FrozenBatchNorm2d,
    DropPath,
    EfficientAttention,
    FrozenBatchNorm2d,
    GroupNormAct,
    InheritedNormAct2d,
    LayerScale,
    SameConv2d,
    Shuffle,
    SqueezeExcitation,
    StochasticDepth,
    Tokens,
)
from torch import nn
from torch.nn import functional as F

from navprune.costs.counting import count
from navprune.errors import UserError
from navprune.pruning.groups import units
from navprune.pruning.structure import structure_of
from navprune.pruning.trace import trace

CHANNELS, SIDE = 6, 7


class Function(nn.Module):
    """A function as a module of its own."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Around(nn.Module):
    """A stem, something in a residual branch between two convolutions, and a linear head."""

    def __init__(self, middle):
        super().__init__()
        self.stem, self.first = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, CHANNELS, 3, padding=1)
        self.middle, self.last = middle, nn.Conv2d(CHANNELS, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x).relu()
        x = x.mean((2, 3)) + self.last(self.middle(self.first(x))).mean((2, 3))
        return self.head(x)


def shaken(model):
    """The model in float64 with random norms and statistics."""
    torch.manual_seed(1)
    for tensor in model.double().state_dict().values():
        if tensor.is_floating_point() and tensor.dim() <= 1:
            tensor.add_(torch.rand_like(tensor))
    return model


def law(model, example, keep=None):
    """Checks it in both modes, and costs; returns the smaller network."""
    shaken(model)
    structure = structure_of(model, example)
    groups = structure.groups
    keep = keep or {g.name: torch.arange(units(g)) % 3 != 1 for g in groups}
    for training in (False, True):
        model.train(training)
        small = structure.slim(keep)
        torch.manual_seed(2)
        with torch.no_grad(), structure.mask(keep):
            masked = model(example)
        torch.manual_seed(2)
        with torch.no_grad():
            assert (small(example) - masked).abs().max() < 1e-10
    widths = {g.name: int(keep.get(g.name, torch.ones(units(g))).sum()) * g.unit for g in groups}
    assert structure.cost(widths)["parameters"] == sum(p.numel() for p in small.parameters())
    return small


def example():
    return torch.rand(3, 2, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


FOLLOWED = {
    "batch norm with activation": lambda: BatchNormAct2d(CHANNELS, act=nn.ReLU),
    "batch norm by super": lambda: InheritedNormAct2d(CHANNELS, act=nn.SiLU),
    "its activation is not 0 at 0": lambda: BatchNormAct2d(CHANNELS, act=nn.Sigmoid),
    "batch norm without parameters": lambda: BatchNormAct2d(CHANNELS, affine=False, act=nn.ReLU),
    "batch norm without statistics": lambda: BatchNormAct2d(CHANNELS, track_running_stats=False, act=nn.ReLU),
    "group norm with activation": lambda: GroupNormAct(3, CHANNELS, act=nn.ReLU),
    "group norm by channel": lambda: GroupNormAct(CHANNELS, CHANNELS, act=nn.Hardswish),
    "frozen": lambda: nn.Sequential(FrozenBatchNorm2d(CHANNELS), nn.ReLU()),
    "frozen, detectron2": lambda: nn.Sequential(Detectron2FrozenBatchNorm2d(CHANNELS), nn.ReLU()),
    "affine": lambda: Affine(CHANNELS),
    "drop path": lambda: DropPath(),
    "stochastic depth by row": lambda: StochasticDepth(),
    "stochastic depth by batch": lambda: nn.Sequential(nn.BatchNorm2d(CHANNELS), StochasticDepth(mode="batch")),
    "excitation by view": lambda: SqueezeExcitation(CHANNELS, "view"),
    "excitation by axis": lambda: SqueezeExcitation(CHANNELS, "axis"),
    "excitation by mean of a view": lambda: SqueezeExcitation(CHANNELS, "flat"),
    "excitation in place": lambda: nn.Sequential(nn.BatchNorm2d(CHANNELS), SqueezeExcitation(CHANNELS, "list")),
    "excitation by convolution": lambda: ConvExcitation(CHANNELS, nn.Sigmoid),
    "excitation by hard sigmoid": lambda: ConvExcitation(CHANNELS, nn.Hardsigmoid),
    "excitation by ReLU": lambda: ConvExcitation(CHANNELS, nn.ReLU),
    "excited frozen norm": lambda: nn.Sequential(FrozenBatchNorm2d(CHANNELS), ConvExcitation(CHANNELS, nn.Sigmoid)),
    "pad": lambda: Function(lambda x: F.pad(x, (1, 2, 0, 1))),
    "pad by reflection": lambda: Function(lambda x: F.pad(x, (1, 1, 2, 2), mode="reflect")),
    "pad with a number": lambda: Function(lambda x: F.pad(x, [1, 1], value=0.5)),
    "pads": lambda: nn.Sequential(nn.ZeroPad2d(1), nn.ReflectionPad2d((1, 0, 2, 0)), nn.ReplicationPad2d(1)),
    "padding with a number": lambda: nn.ConstantPad2d(1, 0.5),
    "circular padding": lambda: nn.Sequential(nn.Sigmoid(), nn.CircularPad2d(1)),
    "crop": lambda: Function(lambda x: F.pad(x, (-1, -1, 0, 0, 0, 0))),
    "layer scale": lambda: LayerScale(CHANNELS, (1, -1, 1, 1)),
    "layer scale, torchvision": lambda: LayerScale((CHANNELS, 1, 1)),
    "layer scale of four dimensions": lambda: LayerScale((1, CHANNELS, 1, 1)),
    "scalar scale": lambda: LayerScale(1),
    "scale without dimensions": lambda: LayerScale(()),
    "scale of an image": lambda: LayerScale((SIDE, SIDE)),
    "scale of as many columns": lambda: nn.Sequential(nn.ZeroPad2d((0, -1, 0, 0)), LayerScale(CHANNELS)),
    "hard swish": lambda: Function(lambda x: x * F.relu6(x + 3) / 6),
    "hard swish in place": lambda: Function(lambda x: x.mul_(F.relu6(x + 3.0).div_(6.0))),
    "hard swish by name": lambda: Function(F.hardswish),
    "hard sigmoid": lambda: Function(lambda x: F.relu6(x + 3) / 6),
    "hard mish": lambda: Function(lambda x: 0.5 * x * (x + 2).clamp(min=0, max=2)),
    "swish": lambda: Function(lambda x: x.mul(x.sigmoid())),
    "same padding": lambda: SameConv2d(CHANNELS, CHANNELS, 3, 2),
    "same padding, depthwise": lambda: SameConv2d(CHANNELS, CHANNELS, 3, 2, groups=CHANNELS),
    "sigmoid": lambda: nn.Sigmoid(),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLLOWED)
def test_published_modules_are_followed(name):
    model = Around(FOLLOWED[name]())
    names = [group.name for group in structure_of(model, example()).groups]
    assert names[:2] == ["stem", "first"]
    small = law(model, example())
    assert small.first.out_channels < CHANNELS


class Standardised(nn.Conv2d):
    """timm's StdConv2d: its weights are standardised at each call."""

    def forward(self, x):
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, padding=self.padding)


class Blur(nn.Module):
    """timm's BlurPool2d."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels
        self.register_buffer("filter", torch.rand(channels, 1, 3, 3))

    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), self.filter, stride=2, groups=self.channels)


def checked(x):
    assert x.shape[1] == CHANNELS
    return x


def asserted(x):
    torch._assert(x.shape[1] == CHANNELS, "of another width")
    return x


KEPT = {
    "a convolution over channels": (EfficientAttention, "transpose at middle"),
    "shuffled channels": (lambda: Shuffle(CHANNELS), "chunk at middle"),
    "layer norm": (lambda: nn.LayerNorm([CHANNELS, SIDE, SIDE]), "LayerNorm at middle"),
    "group norm behind flatten": (
        lambda: nn.Sequential(nn.Flatten(), nn.GroupNorm(3, 6 * 49), nn.Unflatten(1, (6, 7, 7))),
        "GroupNorm behind flatten at middle.1",
    ),
    "padded channels": (lambda: Function(lambda x: F.pad(x, (0, 0, 0, 0, -1, 1))), "pad of channels at middle"),
    "padded and cropped channels": (lambda: Function(lambda x: F.pad(x, [0] * 5 + [2])[:, 2:]), "pad of channels"),
    "a mean over channels": (lambda: Function(lambda x: x * x.mean(1, keepdim=True).sigmoid()), "mean at middle"),
    "halves": (lambda: Function(lambda x: torch.cat([x[:, 3:], x[:, :3]], 1)), "getitem at middle"),
    "a gated linear unit": (lambda: Function(lambda x: F.glu(torch.cat([x, x], 1), 1)), "cat at middle"),
    "standardised weights": (lambda: Standardised(CHANNELS, CHANNELS, 3, padding=1), "conv2d at middle"),
    "blur": (lambda: Blur(CHANNELS), "conv2d at middle"),
    "an assertion": (lambda: Function(checked), "a branch on a number of channels at middle"),
    "an assertion by torch": (lambda: Function(asserted), "an assertion about a number of channels at middle"),
    "a loop over channels": (
        lambda: Function(lambda x: torch.stack([x[:, i] for i in range(x.shape[1])], 1)), "a branch on a number"
    ),
    "a width as a number": (lambda: Function(lambda x: x.view(-1, CHANNELS, SIDE, SIDE)), r"view(..., 6, ...), where"),
    "half a width": (lambda: Function(lambda x: x.view(-1, x.size(1) // 2 * 2, 7, 7)), "view with a number"),
    "squared width": (lambda: Function(lambda x: x.view(-1, x.size(1) ** 2 // 6, 7, 7)), "view with a number"),
    "channels into the batch": (
        lambda: Function(lambda x: x.view(3 * x.size(1), 1, 7, 7).relu().view(x.shape)), "view with a number"
    ),
    "a number added": (lambda: Function(lambda x: x + x.shape[2]), "add with a number computed at middle"),
    "slopes of a module": (lambda: nn.PReLU(CHANNELS), "PReLU with a slope for each channel at middle"),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_what_is_not_followed_stays_whole_and_the_rest_is_pruned(name):
    make, obstacle = KEPT[name]
    model = Around(make())
    names = [group.name for group in structure_of(model, example()).groups]
    assert "stem" in names and "first" not in names
    assert any(obstacle in met for met in trace(model, example()).obstacles)
    assert law(model, example()).stem.out_channels == 3


@pytest.mark.parametrize("kind", ["lstm", "attention", "transformer"])
def test_heads_over_tokens_keep_their_inputs(kind):
    stem = [nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3, 2), nn.BatchNorm2d(4)]
    model = nn.Sequential(*stem, Tokens(4, kind))
    assert [group.name for group in structure_of(model, example()).groups] == ["0"]
    assert trace(model, example()).obstacles[:2] == ("permute at 5", "LayerNorm at 5.norm")
    law(model, example())


def test_shuffled_units_are_pruned_inside():
    model = nn.Sequential(nn.Conv2d(2, 4, 1), Shuffle(4), Shuffle(4), nn.Conv2d(4, 2, 1))
    assert [group.name for group in structure_of(model, example()).groups] == ["1.branch.0", "2.branch.0"]
    law(model, example())


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Conv2d(2, 4, 2, 2), Tokens(4, "transformer")), "through permute at 1"),
        (nn.Sequential(nn.Conv2d(2, 4, 2, 2), Tokens(4, "attention")), "through permute at 1"),
        (nn.Sequential(nn.Conv2d(2, 4, 1), EfficientAttention(), nn.Conv2d(4, 2, 1)), "through transpose at 1"),
        (nn.Sequential(nn.Conv2d(2, 4, 1), nn.LayerNorm(SIDE), nn.Conv2d(4, 2, 1)), "through LayerNorm at 1"),
        (nn.Sequential(nn.Conv2d(2, 6, 1), Shuffle(6), nn.Conv2d(6, 6, 1)), None),
    ],
)
def test_where_everything_stays_the_operation_is_named(model, reason):
    if reason is None:
        assert [group.name for group in structure_of(model, example()).groups] == ["1.branch.0"]
        return
    with pytest.raises(UserError, match=f"no channels to prune: .* stay, and .* followed {reason}") as error:
        structure_of(model, example())
    assert "\n" not in str(error.value)


def test_parameters_by_channel_are_counted_and_cut():
    model = shaken(Around(nn.Sequential(LayerScale((1, CHANNELS, 1, 1)), FrozenBatchNorm2d(CHANNELS))))
    structure = structure_of(model, example())
    (group,) = [g for g in structure.groups if g.name == "first"]
    assert set(group.vectors) == {
        "middle.0.gamma",
        *(f"middle.1.{n}" for n in ("weight", "bias", "running_mean", "running_var")),
    }
    assert group.ends == ("middle.1",)
    model.middle[0].gamma.requires_grad_(False)
    small = structure.slim({"first": torch.arange(6) < 2})
    assert (small.middle[0].gamma.shape, small.middle[1].weight.shape) == ((1, 2, 1, 1), (2,))
    assert torch.equal(small.middle[0].gamma, model.middle[0].gamma[:, :2]) and not small.middle[0].gamma.requires_grad
    assert structure.cost({"first": 2})["macs"] == count(small, example()).macs


def test_functional_layers_say_their_widths():
    model = Around(nn.Sequential(SameConv2d(CHANNELS, CHANNELS, 3, groups=3), GroupNormAct(3, CHANNELS, act=nn.ReLU)))
    structure = structure_of(model, example())
    small = structure.slim({"first": torch.tensor([True, False, True])})
    assert (small.middle[0].groups, small.middle[0].in_channels, small.middle[1].num_groups) == (2, 4, 2)
    assert structure.groups[1].norms == ("middle.1",)

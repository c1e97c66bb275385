"""What a trace does not see is refused by its name: hooks, computed weights, wrappers; copies hold no features."""

import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.spec import encoder_spec
from navprune.pruning.structure import structure_of

EXAMPLE = torch.rand(2, 3, 6, 6)


def conv(source=3, target=4):
    return nn.Conv2d(source, target, 3, padding=1)


def chain(*changed):
    """Three convolutions, the middle one of which is changed."""
    model = nn.Sequential(conv(), conv(4), conv(4))
    for change in changed:
        change(model[1])
    return model


def replaced(layer):
    layer.forward = lambda x: x


def with_module(kind):
    return lambda layer: layer.add_module("part", kind)


REFUSED = {
    "forward hook": (lambda m: m.register_forward_hook(lambda m, x, y: 2 * y + 1), "1 has a forward hook"),
    "hook that looks on": (lambda m: m.register_forward_hook(lambda *_: None), "1 has a forward hook"),
    "pre-hook": (lambda m: m.register_forward_pre_hook(lambda m, x: (x[0] + 1,)), "1 has a forward hook"),
    "hook with keywords": (
        lambda m: m.register_forward_hook(lambda m, x, k, y: y.relu(), with_kwargs=True), "1 has a forward hook"
    ),
    "old weight norm": (nn.utils.weight_norm, r"weights of 1 are computed \(WeightNorm\).*remove_weight_norm$"),
    "old spectral norm": (nn.utils.spectral_norm, r"weights of 1 are computed \(SpectralNorm\).*remove_spectral_norm$"),
    "pruned weights": (
        lambda m: prune.l1_unstructured(m, "weight", 0.5), r"weights of 1 are computed \(L1U.*prune.remove$"
    ),
    "pruned filters": (
        lambda m: prune.ln_structured(m, "weight", 0.5, 2, 0), r"weights of 1 are computed \(LnS.*prune.remove$"
    ),
    "pruned bias": (
        lambda m: prune.random_unstructured(m, "bias", 0.5), r"weights of 1 are computed \(RandomUnstructured\)"
    ),
    "weight norm": (parametrizations.weight_norm, r"weights of 1 are computed \(parametrised\).*parametrizations$"),
    "spectral norm": (parametrizations.spectral_norm, r"weights of 1 are computed \(parametrised\)"),
    "orthogonal": (parametrizations.orthogonal, r"weights of 1 are computed \(parametrised\)"),
    "forward from outside": (replaced, "Conv2d at 1 has a forward from outside"),
    "lazy": (with_module(nn.LazyConv2d(3, 1)), "LazyConv2d at 1.part has no weights before its first call"),
    "not to be copied": (lambda m: setattr(m, "lock", threading.Lock()), r"Sequential cannot be copied \(.*lock"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_no_trace_sees_is_refused_by_the_layers_name(name):
    change, complaint = REFUSED[name]
    model = chain(change)
    for attempt in (structure_of, lambda m, x: structure_of(m, x).slim({})):
        with pytest.raises(UserError, match=complaint) as error:
            attempt(model, EXAMPLE)
        assert "\n" not in str(error.value)


class Part(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    ("wrap", "complaint"),
    [
        (nn.DataParallel, "DataParallel.* is a wrapper for several devices: give its .module"),
        (torch.compile, "OptimizedModule.* is compiled by torch.compile: give its ._orig_mod"),
        (torch.jit.script, "RecursiveScriptModule.* is compiled by torch.jit: give the module it was made of"),
        (lambda m: torch.jit.trace(m, EXAMPLE), "TopLevelTracedModule.* is compiled by torch.jit"),
    ],
)
def test_wrapped_networks_are_refused_with_what_to_give_instead(wrap, complaint, inside):
    model = Part(wrap(chain())) if inside else wrap(chain())
    with pytest.raises(UserError, match=complaint) as error:
        structure_of(model, EXAMPLE)
    assert (" at part" in str(error.value)) == inside


def test_distributed_networks_are_refused_alike(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        with pytest.raises(UserError, match="DistributedDataParallel is a wrapper for several devices"):
            structure_of(nn.parallel.DistributedDataParallel(chain()), EXAMPLE)
    finally:
        torch.distributed.destroy_process_group()


def test_a_network_compiled_in_place_is_followed():
    model = chain()
    model.compile()
    assert [group.name for group in structure_of(model, EXAMPLE).groups] == ["0", "1"]


def test_hooks_on_our_own_networks_are_refused_too():
    encoder = build(encoder_spec("resnet18", (1, 32, 32), 4), 0)
    handle = encoder.compression[0].register_forward_hook(lambda m, x, y: y + 1)
    with pytest.raises(UserError, match=r"compression\.0 has a forward hook"):
        structure_of(encoder)
    handle.remove()
    structure_of(encoder).slim({})


def test_masks_within_masks_are_no_hooks_of_the_user():
    model = chain()
    factors = {"0": torch.tensor([1.0, 0.0, 1.0, 1.0])}
    structure = structure_of(model, EXAMPLE)
    with structure.scaled(factors), structure.mask({"1": factors["0"].bool()}):
        inner = model(EXAMPLE)
    small = structure.slim({name: factors["0"].bool() for name in "01"})
    torch.testing.assert_close(small(EXAMPLE), inner)


class Keeping(nn.Module):
    """A network that keeps its features in one of several ways."""

    def __init__(self, way):
        super().__init__()
        self.a, self.b, self.way = conv(), conv(4), way
        self.seen, self.found, self.last = [], {}, None
        self.constant = torch.rand(1, 1, 6, 6)

    def forward(self, x):
        y = self.a(x).relu()
        if self.way == "attribute":
            self.last = self.new = y
        elif self.way == "list":
            self.seen = [y, (y + 1, x)]
        elif self.way == "appended":
            self.seen.append(y)
        elif self.way == "dict":
            self.found["features"] = {"y": y}
        else:
            self.last = y.detach()
        return self.b(y * self.constant)


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("way", ["attribute", "list", "appended", "dict", "detached"])
def test_features_that_a_network_keeps_are_not_copied(way, gradient):
    model = Keeping(way)
    with torch.set_grad_enabled(gradient):
        model(EXAMPLE)
    kept = {"a": torch.tensor([True, False, True, True])}
    structure = structure_of(model, EXAMPLE)
    small = structure.slim(kept)
    assert (small.seen, small.found, small.last, getattr(small, "new", None)) == ([], {}, None, None)
    assert torch.equal(small.constant, model.constant) and (model.seen or model.found or model.last is not None)
    with structure.mask(kept):
        masked = model(EXAMPLE)
    torch.testing.assert_close(small(EXAMPLE), masked)


def test_an_encoder_in_a_network_that_keeps_features_is_slimmed():
    model = Part(build(encoder_spec("resnet18", (1, 32, 32), 4), 0))
    vars(model)["features"] = [model(torch.rand(1, 1, 32, 32))]
    assert structure_of(model).slim({}).features == [None]


class Shaped(nn.Module):
    """Branches on shapes, and inputs with defaults."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv(), conv(4, 2)

    def forward(self, x, scale=None, twice: bool = False):
        if x.dim() != 4 or len(x.shape) != 4 or not x.shape[2] % 2 == 0:
            raise ValueError("images of even height")
        y = self.a(x)
        for _ in range(x.size(-1) // 3):
            y = y.relu()
        y = y if scale is None else y * scale
        return self.b(y + y if twice else y)


def test_branches_on_shapes_go_as_the_example_does():
    model = Shaped()
    assert [group.name for group in structure_of(model, EXAMPLE).groups] == ["a"]
    assert [group.name for group in structure_of(model, (EXAMPLE, torch.rand(2, 1, 6, 6))).groups] == ["a"]
    with pytest.raises(UserError, match=r"cannot be traced \(images of even height\)"):
        structure_of(model, torch.rand(1, 3, 5, 6))


class Asking(nn.Module):
    def __init__(self, ask):
        super().__init__()
        self.a, self.b, self.ask = conv(), conv(4, 2), ask

    def forward(self, x):
        return self.b(self.a(x) * self.ask(x))


@pytest.mark.parametrize(
    "ask", [lambda x: x.max().item(), lambda x: float(x.mean()), lambda x: 1 if x.sum() > 0 else 2,
            lambda x: len(x.sum((1, 2, 3)).tolist()), lambda x: 1 if x.isnan().any() else 2],
)  # fmt: skip
def test_questions_about_values_are_refused(ask):
    with pytest.raises(UserError, match=r"Asking cannot be traced .*must not branch on values"):
        structure_of(Asking(ask), EXAMPLE)


MADE = {
    "plain": lambda m, x: x * torch.linspace(0, 1, x.shape[3]),
    "of a number": lambda m, x: x * torch.linspace(0, 1, 6)[None, None],
    "on the device of the input": lambda m, x: x * torch.linspace(0, 1, x.shape[3], device=x.device),
    "with its dtype": lambda m, x: x * torch.arange(x.size(3), dtype=x.dtype),
    "with both": lambda m, x: x * torch.linspace(0, 1, x.shape[3], device=x.device, dtype=x.dtype),
    "on a device by name": lambda m, x: x * torch.ones((x.shape[2], 1), device="cpu"),
    "moved": lambda m, x: x * torch.eye(x.shape[2], x.shape[3]).to(x.device),
    "written on": lambda m, x: x.mul_(torch.meshgrid(*[torch.arange(x.shape[3])] * 2, indexing="ij")[1]),
    "read for its value": lambda m, x: x * torch.linspace(0, 1, x.shape[3])[2].item(),
    "kept as a buffer": lambda m, x: x * m.steps[: x.shape[3]],
    "kept as a tensor": lambda m, x: x * m.constant,
}


class Making(nn.Module):
    """Two convolutions, and between them a tensor that is made in `forward`."""

    def __init__(self, way):
        super().__init__()
        self.a, self.b, self.c, self.way = conv(), conv(4), conv(4), MADE[way]
        self.register_buffer("steps", torch.linspace(0, 1, 8))
        self.constant = torch.rand(6)

    def forward(self, x):
        return self.c(self.b(self.way(self, self.a(x).relu())).relu())


@pytest.mark.parametrize("way", MADE)
def test_forward_may_make_tensors_and_slim_equals_mask(way):
    model = Making(way).eval()
    structure = structure_of(model, EXAMPLE)
    assert [group.name for group in structure.groups] == ["a", "b"]
    kept = {name: torch.tensor([True, False, True, True]) for name in "ab"}
    with structure.mask(kept):
        masked = model(EXAMPLE)
    torch.testing.assert_close(structure.slim(kept)(EXAMPLE), masked)


def test_what_made_tensors_become_is_not_decided_by_values_they_had():
    class Filling(Making):
        def forward(self, x):
            y, rows = self.a(x), torch.zeros((x.shape[3],))
            rows[:] = y.mean((0, 1, 2))
            return self.b(y) if rows.sum() == 0 else self.c(y)

    with pytest.raises(UserError, match="must not branch on values"):
        structure_of(Filling("plain"), EXAMPLE)

"""What holds of every runtime; those that this machine lacks are skipped under their names."""

import copy
import random
import sys

import pytest
import torch
from torch import nn

from navprune.cli import main
from navprune.costs.latency import images_of
from navprune.costs.runtimes import RUNTIMES, runtime_of
from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.classifiers import classifier_spec
from navprune.models.spec import encoder_spec
from navprune.models.widths import with_widths

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
EXACT = ("eager", "compiled", "cuda-graphs", "onnxruntime", "tensorrt", "openvino")
FAMILIES = ("resnet18", "resnet50", "resneXt50", "se_resnet50", "simple_cnn", "blind")
SOME = ("resnet18", "simple_cnn", "blind")
"""Of the others, which take longer to prepare."""


def cell(name, device, *more):
    missing = RUNTIMES[name].missing(torch.device(device))
    return pytest.param(name, device, *more, marks=pytest.mark.skipif(missing is not None, reason=f"{name}: {missing}"))


def families(name):
    return FAMILIES if name in EXACT else SOME


CELLS = [cell(name, device) for device in DEVICES for name in RUNTIMES]
QUICK = [cell(name, device) for device in DEVICES for name in RUNTIMES if name != "compiled"]
NETWORKS = [
    *(cell(name, device, family, pruned) for device in DEVICES for name in RUNTIMES if name != "compiled"
      for family in families(name) for pruned in (False, True)),
    *(cell("compiled", device, "simple_cnn", True) for device in DEVICES),
]  # fmt: skip


def network(family, pruned=False):
    """With every width another one where it is pruned."""
    spec = encoder_spec(family, (1, 48, 48), 4)
    if pruned:
        draw = random.Random(0)
        counts = {layer.name: draw.randint(1, layer.channels // layer.group) * layer.group for layer in spec.layers}
        spec = with_widths(spec, counts)
    return build(spec, seed=1)


def answers(name, device, module, batch_size=2):
    """Those of a runtime and those of the module as it is, on the CPU."""
    images = tuple(x.to(device) for x in images_of(module, batch_size))
    with torch.inference_mode():
        wanted = copy.deepcopy(module).to(device).eval()(*images)
    (given,) = RUNTIMES[name].prepare(module, images)(*images)
    assert given.device.type == device and given.dtype == wanted.dtype and given.shape == wanted.shape
    return given.cpu(), wanted.cpu()


def assert_alike(name, given, wanted):
    if name in EXACT:
        torch.testing.assert_close(given, wanted, atol=1e-4, rtol=1e-4)
    elif wanted.numel():
        assert torch.corrcoef(torch.stack([given.flatten(), wanted.flatten()]))[0, 1] > 0.99


@pytest.mark.parametrize(("name", "device", "family", "pruned"), NETWORKS)
def test_a_runtime_computes_what_the_module_computes(name, device, family, pruned):
    assert_alike(name, *answers(name, device, network(family, pruned)))


@pytest.mark.parametrize(("name", "device"), QUICK)
def test_norms_over_single_values(name, device):
    """As an encoder pruned to one channel a group has them on its last maps."""
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(4, 4), nn.ReLU())
    nn.init.uniform_(module[1].bias, generator=torch.Generator().manual_seed(0))
    images = torch.rand(2, 1, 3, 3).to(device)
    (given,) = RUNTIMES[name].prepare(module, (images,))(images)
    wanted = module[1].bias.detach().view(1, 4, 1, 1).expand(2, 4, 1, 1)
    torch.testing.assert_close(given.cpu(), wanted, atol=1e-4 if name in EXACT else 0.05, rtol=0)


@pytest.mark.parametrize(("name", "device"), QUICK)
def test_classifiers_run_too(name, device):
    spec = classifier_spec("cifar_vgg16_bn", 10, width=0.125)
    assert_alike(name, *answers(name, device, build(spec, seed=0)))


class Sums(nn.Module):
    """Three inputs, one of them of truth values and one that is not read, and two outputs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x, unread, keep):
        y = self.linear(x)
        return y * keep[:, None], y.sum(dim=1)


@pytest.mark.parametrize(("name", "device"), CELLS)
def test_several_inputs_and_outputs_in_their_order(name, device):
    torch.manual_seed(0)
    module = Sums()
    masks = torch.tensor([[True, False], [False, True]])
    given = [tuple(x.to(device) for x in (torch.rand(2, 3), torch.rand(5), mask)) for mask in masks]
    run = RUNTIMES[name].prepare(module, given[0])
    answered = [run(*inputs) for inputs in given]  # of which no later pass may change an earlier one
    tolerance = 1e-4 if name in EXACT else 0.2
    with torch.inference_mode():
        for inputs, outputs in zip(given, answered):
            for output, wanted in zip(outputs, copy.deepcopy(module).to(device)(*inputs), strict=True):
                torch.testing.assert_close(output, wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("name", "device"), CELLS)
def test_the_module_stays_as_it_was(name, device):
    module = network("simple_cnn")
    before = copy.deepcopy(module.state_dict())
    strides = {key: value.stride() for key, value in before.items()}
    answers(name, device, module)
    assert module.training and not module.cnn[0]._forward_hooks
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]) and value.stride() == strides[key] and value.device.type == "cpu"


@pytest.mark.parametrize(("name", "device"), CELLS)
def test_nothing_is_said_and_no_file_is_left(name, device, tmp_path, monkeypatch, capfd, recwarn):
    monkeypatch.chdir(tmp_path)
    answers(name, device, network("resnet18" if name != "compiled" else "simple_cnn"))
    assert capfd.readouterr() == ("", "") and not [*tmp_path.iterdir()]
    assert [str(warning.message) for warning in recwarn] == []


def test_unknown_runtime():
    with pytest.raises(UserError, match=r"unknown runtime 'tvm'; known are eager, compiled"):
        runtime_of("tvm")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "openvino"])
def test_without_a_package_its_runtimes_alone_are_missing_and_say_how_to_get_it(package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    needing = {
        "onnx": {"onnxruntime", "onnxruntime-int8", "openvino", "openvino-bf16", "openvino-int8"},
        "onnxruntime": {"onnxruntime", "onnxruntime-int8", "openvino-int8"},
        "openvino": {"openvino", "openvino-bf16", "openvino-int8"},
    }[package]
    chosen = RUNTIMES.keys() - {"compiled"}
    options = ["--device", "cpu", "--batch-sizes", "1", "--runs", "1", "--runtime", ",".join(chosen)]
    assert main(["latency", "simple_cnn", *options]) == 0
    told = dict(line.split(": ", 1) for line in capsys.readouterr().err.splitlines() if ": " in line)
    lacking = {name for name, note in told.items() if note.startswith(f"{package} is not installed: pip install ")}
    assert lacking == needing
    assert all(package in told[name].split(" install ")[1].split() for name in needing)
    assert "eager" not in told


def test_a_package_that_is_there_and_broken_is_told(monkeypatch, tmp_path):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libfoo.so.1: cannot open\\nshared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    missing = RUNTIMES["onnxruntime"].missing(torch.device("cpu"))
    reason = "libfoo.so.1: cannot open shared object file"
    assert missing.startswith(f"onnxruntime cannot be imported ({reason}): pip install")


@pytest.mark.parametrize("name", ["cuda-graphs", "tensorrt"])
def test_what_needs_a_gpu_says_so_on_a_cpu(name):
    assert "a GPU: give --device cuda" in RUNTIMES[name].missing(torch.device("cpu"))

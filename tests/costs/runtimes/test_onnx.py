import copy
import logging
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from navprune.costs.runtimes.onnx import AFFINE, MOMENTS, PLAIN, MomentsForm, onnx_bytes, quantised, with_norms
from navprune.errors import UserError
from navprune.source import Source

CHECKPOINTS = Path(__file__).parents[3] / "checkpoints"

FORMS = {"plain": PLAIN, "affine": AFFINE, "moments": MOMENTS}


class Always(MomentsForm):
    """Pools, however small the images are."""

    LEAST = 0


def norm(groups, size, affine=True):
    layer = nn.GroupNorm(groups, groups * size, affine=affine)
    if affine:
        nn.init.uniform_(layer.weight, -2, 2, generator=torch.Generator().manual_seed(1))
        nn.init.uniform_(layer.bias, -2, 2, generator=torch.Generator().manual_seed(2))
    return layer


@pytest.mark.parametrize("form", [PLAIN, AFFINE, MOMENTS, Always])
@settings(max_examples=40, deadline=None)
@given(
    groups=st.integers(1, 6),
    size=st.integers(1, 6),
    shape=st.sampled_from([(), (5,), (1, 1), (2, 2), (3, 5), (8, 8)]),
    batch=st.sampled_from([1, 3]),
    mean=st.sampled_from([0.0, 1.0, -30.0, 1000.0]),
    deviation=st.sampled_from([0.0, 1e-3, 1.0, 50.0]),
    affine=st.booleans(),
    seed=st.integers(0, 9),
)
def test_every_form_is_a_group_norm(form, groups, size, shape, batch, mean, deviation, affine, seed):
    assume(batch * size * math.prod(shape) > 1)  # torch refuses to normalise single values
    x = torch.randn(batch, groups * size, *shape, generator=torch.Generator().manual_seed(seed)) * deviation + mean
    layer = norm(groups, size, affine)
    wanted = norm(groups, size, affine).double()(x.double())
    # A mean is rounded in the last digits of the largest value; that counts in units of the group's deviation.
    together = x.double().view(batch, groups, -1)
    error = 1e-6 * together.abs().amax(2) / (together.var(2, correction=0) + layer.eps).sqrt()
    tolerance = (1e-5 + 4 * error).repeat_interleave(size, dim=1).view(batch, groups * size, *[1] * len(shape))
    with torch.no_grad():
        assert ((form(layer)(x) - wanted).abs() <= tolerance).all()


@pytest.mark.parametrize("form", [AFFINE, MOMENTS, Always])
@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, 100.0])
def test_even_images_give_the_bias(form, value):
    layer, x = norm(3, 4), torch.full((2, 12, 64, 64), value)
    torch.testing.assert_close(
        form(layer)(x), layer.bias.view(1, -1, 1, 1).expand_as(x), atol=1e-5 + 2e-4 * value, rtol=0
    )


@pytest.mark.parametrize("form", [AFFINE, Always])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_trained_encoder_sees_even_images_as_it_should(form, value):
    """Whose channels vary by what convolutions pad with alone, far less than they lie from 0."""
    encoder = Source.parse(str(CHECKPOINTS / "resnet50-pruned")).load().encoder.eval()
    images = torch.full((1, *map(int, encoder.spec.input)), value)
    with torch.inference_mode():
        given, exact = with_norms(encoder, form)(images), copy.deepcopy(encoder).double()(images.double())
    torch.testing.assert_close(given, exact.float(), atol=1e-5, rtol=0)


class NormAndMore(nn.GroupNorm):
    """As timm has it: an activation behind the norm."""

    def forward(self, input):
        return super().forward(input).relu()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_norms_of_other_classes_keep_what_they_do(form):
    module = nn.Sequential(nn.GroupNorm(2, 4), NormAndMore(2, 4), nn.Sequential(nn.GroupNorm(1, 4)))
    x = torch.randn(2, 4, 3, 3)
    changed = with_norms(module, form)
    assert [type(part).__name__ for part in changed[:2]] == [form.__name__, "NormAndMore"]
    assert type(changed[2][0]) is form and type(module[0]) is nn.GroupNorm and module.training
    torch.testing.assert_close(changed(x), module(x), atol=1e-5, rtol=1e-5)


def convolutions():
    layers = nn.Conv2d(2, 8, 3), nn.GroupNorm(4, 8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 3))


def observed(shape=(2, 2, 6, 6), count=3):
    rng = np.random.default_rng(0)
    return [{"images": rng.random(shape, np.float32)} for _ in range(count)]


def operations(graph):
    onnx = pytest.importorskip("onnx")
    return [node.op_type for node in onnx.load_from_string(graph).graph.node]


def test_quantised_are_convolutions_and_products_but_not_the_scales_of_norms():
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    example = (torch.rand(2, 2, 6, 6),)
    graph = onnx_bytes(convolutions(), example, inputs=["images"], outputs=["scores"], form=AFFINE)
    small = quantised(graph, observed())
    assert "InstanceNormalization" in operations(small)
    proto = onnx.load_from_string(small).graph
    stored = {tensor.name for tensor in proto.initializer if tensor.data_type == onnx.TensorProto.INT8}
    sources = {node.output[0]: node.input[0] for node in proto.node if node.op_type == "DequantizeLinear"}
    in_int8 = [sources.get(node.input[1]) in stored for node in proto.node if node.op_type in ("Conv", "Gemm")]
    assert sorted(in_int8) == [False, True, True, True]  # the norm's scale is the one in float32
    assert [value.name for value in (*proto.input, *proto.output)] == ["images", "scores"]


def test_what_is_quantised_computes_nearly_the_same():
    pytest.importorskip("onnxruntime")
    from navprune.costs.runtimes.onnx_runtime import session_of

    module = convolutions().eval()
    graph = onnx_bytes(module, (torch.rand(2, 2, 6, 6),), inputs=["images"])
    inputs = observed(count=20)
    given = np.concatenate([session_of(quantised(graph, inputs)).run(None, each)[0].ravel() for each in inputs[:5]])
    with torch.no_grad():
        wanted = np.concatenate([module(torch.from_numpy(each["images"])).numpy().ravel() for each in inputs[:5]])
    assert np.corrcoef(given, wanted)[0, 1] > 0.99


def test_only_what_lies_within_a_name_is_quantised():
    pytest.importorskip("onnxruntime")
    graph = onnx_bytes(convolutions(), (torch.rand(2, 2, 6, 6),), inputs=["images"], form=PLAIN)
    counts = [
        operations(quantised(graph, observed(), within)).count("DequantizeLinear") for within in ("", "/0/", "no")
    ]
    assert counts[0] > counts[1] > counts[2] == 0


def test_without_convolutions_and_products_nothing_is_quantised():
    pytest.importorskip("onnxruntime")
    graph = onnx_bytes(nn.Sequential(nn.GroupNorm(2, 4)), (torch.rand(1, 4, 3, 3),), inputs=["images"], form=PLAIN)
    assert quantised(graph, observed((1, 4, 3, 3))) == graph


def test_logging_is_left_as_it_was():
    pytest.importorskip("onnxruntime")
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    quantised(onnx_bytes(convolutions(), (torch.rand(2, 2, 6, 6),), inputs=["images"]), observed())
    assert (root.level, list(root.handlers)) == before


def test_int8_without_its_packages_says_how_to_get_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="onnxruntime is not installed: pip install onnx onnxruntime"):
        quantised(b"", [])

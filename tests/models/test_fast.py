"""What `models.fast` and `models.recurrent` compute is what torch computes, gradients included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from navprune.models import encoders, fast
from navprune.models.build import build
from navprune.models.encoders import Conv2d
from navprune.models.spec import PolicySpec, encoder_spec


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _images(shape, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last)


def _norm(groups, channels):
    norm = nn.GroupNorm(groups, channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def _gradients(y, inputs):
    slopes = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(y.dtype)
    return torch.autograd.grad(y, inputs, slopes)


GROUPS = st.sampled_from([1, 2, 4, 8, 16, 24])


@settings(max_examples=40, deadline=None)
@given(GROUPS, st.integers(1, 9), st.integers(1, 5), st.integers(1, 5), st.booleans(), st.booleans(), st.floats(-4, 4))
def test_a_norm_with_what_follows_it_is_torchs(group, groups, height, width, added, relu, level):
    channels = group * groups
    norm = _norm(groups, channels)
    images = max(fast.FEWEST, -(-fast.SMALLEST // (channels * height * width)))
    x = (_images((images, channels, height, width)) + level).requires_grad_()
    other = _images(x.shape, 1).requires_grad_()
    layers = nn.Sequential(norm, nn.ReLU()) if relu and not added else nn.Sequential(norm)
    y = fast.stack(layers, x, (lambda: other) if added else None)
    assert fast._takes(norm, x) == (channels >= 8)
    if channels < 8:
        return
    gradients = _gradients(y, [x, *norm.parameters()])
    layers.double()
    expected = layers(x.double())
    expected = F.relu(expected + other) if added else expected
    torch.testing.assert_close(y, expected.float(), atol=1e-3, rtol=1e-4)
    if not (added or relu):  # elsewhere a rounding may pass or stop a whole gradient
        for got, wanted in zip(gradients, _gradients(expected, [x, *norm.parameters()])):
            torch.testing.assert_close(got, wanted.float(), atol=5e-3 + 2e-4 * float(wanted.abs().max()), rtol=1e-3)


@pytest.mark.parametrize("added", [False, True])
def test_the_gradients_behind_a_relu_are_torchs(added):
    norm = _norm(5, 10).double()
    x, other = _images((500, 10, 2, 3)).requires_grad_(), _images((500, 10, 2, 3), 1).requires_grad_()
    inputs = [x, *norm.parameters()] + [other] * added
    wanted = norm(x.double()) + (other.double() if added else 0)
    clear = (wanted.abs() > 1e-4).float()  # where rounding cannot change whether the ReLU passes it on
    wanted = _gradients(F.relu(wanted) * clear, inputs)
    norm.float()
    layers = nn.Sequential(norm) if added else nn.Sequential(norm, nn.ReLU())
    y = fast.stack(layers, x, (lambda: other) if added else None)
    assert y.grad_fn.name() == "_NormBackward"
    got = _gradients(y * clear, [x, *norm.parameters()] + [other] * added)
    for one, two in zip(got, wanted):
        torch.testing.assert_close(one, two.float(), atol=2e-3, rtol=1e-3)


def test_who_listens_to_a_norm_hears_it_and_may_change_it():
    layers = nn.Sequential(_norm(4, 8), nn.ReLU())
    x = _images((64, 8, 8, 8))
    hook = layers[0].register_forward_hook(lambda module, inputs, output: output * 0 + 3)
    assert torch.equal(fast.stack(layers, x), torch.full_like(x, 3))
    hook.remove()
    hook = layers[1].register_forward_hook(lambda module, inputs, output: output * 0 + 4)
    assert torch.equal(fast.stack(layers, x), torch.full_like(x, 4))
    hook.remove()
    hook = layers.register_forward_hook(lambda module, inputs, output: output * 0 + 5)
    assert torch.equal(fast.stack(layers, x), torch.full_like(x, 5))
    hook.remove()
    torch.testing.assert_close(fast.stack(layers, x), layers(x))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)]),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([1, 31, 33]),
)
def test_a_convolution_of_any_map_is_torchs(kind, height, width, images):
    conv = Conv2d(3, 4, *kind)
    x = _images((images, 3, height, width)).requires_grad_()
    expected = F.conv2d(x, conv.weight, stride=kind[1], padding=kind[0] // 2)
    y = conv(x)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    inputs = [x, conv.weight]
    torch.testing.assert_close(_gradients(y, inputs), _gradients(expected, inputs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rows, inputs, outputs, bias", [(1, 5, 3, True), (40, 24, 8, False), (7, 1, 1, True)])
def test_a_product_is_torchs(rows, inputs, outputs, bias):
    torch.manual_seed(0)
    x, weight = torch.randn(rows, inputs, requires_grad=True), torch.randn(outputs, inputs, requires_grad=True)
    values = [x, weight] + [torch.randn(outputs, requires_grad=True)] * bias
    y, expected = fast.linear(*values), F.linear(*values)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(_gradients(y, values), _gradients(expected, values))
    gaps = weight[:, ::2], torch.randn(4, inputs)[:, ::2]
    torch.testing.assert_close(fast.product(*gaps), gaps[0] @ gaps[1].t())


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["gru", "lstm"]),
    st.integers(1, 3),
    st.integers(2, 9),
    st.integers(1, 4),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_a_sequence_is_its_steps_one_by_one(rnn, layers, steps, environments, begins, seed):
    """Answers and the gradients of weights, inputs and first state; each step is torch's own layer."""
    core = build(PolicySpec(encoder_spec("blind"), hidden_size=6, rnn=rnn, rnn_layers=layers), 0).net.state_encoder
    generator = torch.Generator().manual_seed(seed)
    for parameter in core.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    x = torch.randn(steps, environments, 64, generator=generator, requires_grad=True)
    first = torch.randn(environments, layers * (2 if rnn == "lstm" else 1), 6, generator=generator, requires_grad=True)
    masks = torch.rand(steps, environments, generator=generator) >= begins
    outputs, state = [], first
    for t in range(steps):
        output, state = core(x[t : t + 1], state, masks[t : t + 1])
        outputs.append(output)
    wanted = torch.cat(outputs).flatten(), state.flatten()
    got = tuple(answer.flatten() for answer in core(x, first, masks))
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
    inputs = [*core.parameters(), x, first]
    gradients = _gradients(torch.cat(got), inputs), _gradients(torch.cat(wanted), inputs)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name, input", [("resnet50", (1, 64, 64)), ("resnet18", (4, 64, 96)), ("se_resneXt50", (1, 64, 64))]
)
def test_a_whole_encoder_is_as_near_to_the_exact_one_as_the_plain_one_is(name, input, monkeypatch):
    """A ReLU at 0 opens or closes by rounding, so that gradients differ; both differ from float64's as much."""
    encoder = build(encoder_spec(name, input, 8), 0).eval()
    images = torch.rand(40, *input, generator=torch.Generator().manual_seed(0))

    def answer():
        features = encoder(images.to(next(encoder.parameters()).dtype))
        gradients = torch.cat([each.flatten() for each in _gradients(features, [*encoder.parameters()])])
        return features.detach().double(), gradients.double()

    quick = answer()
    for module in (fast, encoders):
        monkeypatch.setattr(module, "plain_on_cpu", lambda x: False)
    plain = answer()
    encoder.double()
    for one, two, exact in zip(quick, plain, answer()):
        assert (one - exact).norm() <= 2 * (two - exact).norm() + 1e-3 * exact.norm()
        assert not torch.equal(one, two)  # else the plain one was compared with itself

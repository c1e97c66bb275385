"""BatchNorm over several workers is that of one with all their images; alone it is torch's."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rl.groups import together
from torch import nn

from navprune.models.batch_norm import BatchNorm2d
from navprune.models.build import build
from navprune.models.classifiers import classifier_spec

CHANNELS = 3


def shaken(norm, seed=0):
    """A norm whose parameters and running statistics are not those of a fresh one."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            values.copy_(torch.rand(CHANNELS, generator=rng) + 0.5)
    return norm


def images(count, seed, mean=0.0, size=(CHANNELS, 4, 5)):
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(seed)) + mean


def learned(norm, x, slopes):
    """What a norm answers to images, the gradients of its images, scale and shift, and its statistics."""
    x = x.clone().requires_grad_()
    output = norm(x)
    output.backward(slopes)
    found = {"output": output.detach(), "input": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    return found | {name: buffer.clone() for name, buffer in norm.named_buffers()}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 99), st.floats(-100, 100))
def test_workers_compute_what_one_with_all_images_does(counts, seed, mean):
    x, slopes = images(sum(counts), seed, mean), images(sum(counts), seed + 1)
    whole = learned(shaken(nn.BatchNorm2d(CHANNELS), seed), x, slopes)
    parts, calls = list(zip(x.split(counts), slopes.split(counts))), []

    def work(group):
        norm = shaken(BatchNorm2d(CHANNELS), seed)
        norm.sum = lambda value: (calls.append(value.shape), value.copy_(group.sum(value)))[1]
        return learned(norm, *parts[group.rank])

    found = together(len(counts), work)
    assert len(calls) == 2 * len(counts)
    for name, wanted in whole.items():
        shares = [each[name] for each in found]
        if name in ("output", "input"):
            shares = [torch.cat(shares)]
        elif name in ("weight", "bias"):
            shares = [sum(shares)]
        # torch's own errs by the digits of float32 that a mean takes
        for share in shares:
            torch.testing.assert_close(share, wanted, rtol=1e-5, atol=1e-5 * max(1, abs(mean)))


def test_a_large_mean_costs_the_variance_no_digits():
    """Of two workers whose images are around 1000, against float64."""
    x, slopes = images(8, 0, 1000.0), images(8, 1)
    exact = shaken(nn.BatchNorm2d(CHANNELS)).double()
    exact(x.double())

    def work(group):
        norm = shaken(BatchNorm2d(CHANNELS))
        norm.sum = group.sum
        return learned(norm, x.split(4)[group.rank], slopes.split(4)[group.rank])["running_var"]

    for variance in together(2, work):
        torch.testing.assert_close(variance.double(), exact.running_var, rtol=1e-5, atol=0)


def test_of_bfloat16_moments_and_gradients_are_those_of_float32():
    """A count of 1,029 pixels, which bfloat16 has no digits for."""
    x, slopes = (images(49, seed, 1.0, (CHANNELS, 3, 7)).bfloat16() for seed in (0, 1))
    exact = learned(shaken(nn.BatchNorm2d(CHANNELS)), x.float(), slopes.float())

    def work(group):
        norm = shaken(BatchNorm2d(CHANNELS))
        norm.sum = group.sum
        rows = slice(0, 20) if group.rank else slice(20, 49)
        return learned(norm, x[rows], slopes[rows])

    second, first = together(2, work)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(first[name], exact[name], rtol=1e-5, atol=1e-6)
    for name in ("output", "input"):
        found = torch.cat([first[name], second[name]])
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, exact[name].bfloat16(), rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(first["weight"] + second["weight"], exact["weight"], rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_the_function():
    norm = shaken(BatchNorm2d(CHANNELS)).double()
    norm.sum = lambda value: value
    assert torch.autograd.gradcheck(norm, images(3, 0, size=(CHANNELS, 2, 2)).double().requires_grad_())


@pytest.mark.parametrize("training", [True, False])
def test_alone_and_in_evaluation_it_is_torchs(training):
    def refuse(value):
        raise AssertionError("nothing is to be summed")

    x, slopes = images(4, 0), images(4, 1)
    norm, torchs = (shaken(kind(CHANNELS)).train(training) for kind in (BatchNorm2d, nn.BatchNorm2d))
    norm.sum = None if training else refuse
    found, wanted = learned(norm, x, slopes), learned(torchs, x, slopes)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert norm.state_dict().keys() == torchs.state_dict().keys()


def test_a_classifier_learns_alike_on_any_number_of_workers():
    x, labels = images(6, 0, size=(3, 32, 32)), torch.arange(6) % 4
    built = build(classifier_spec("cifar_resnet20", 4, width=0.25), 0).double()

    def work(group):
        model = copy.deepcopy(built)
        for module in model.modules():
            if isinstance(module, BatchNorm2d) and group.size > 1:
                module.sum = group.sum
        rows = slice(6 // group.size * group.rank, 6 // group.size * (group.rank + 1))
        nn.functional.cross_entropy(model(x[rows].double()), labels[rows], reduction="sum").backward()
        group.sum_gradients(model, torch.zeros(1))
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        return gradients | dict(model.named_buffers())

    (alone,), several = together(1, work), together(2, work)
    for found in several:
        for name, wanted in alone.items():
            torch.testing.assert_close(found[name], wanted, rtol=1e-8, atol=1e-10)

import pytest
import torch
from torch import nn

from navprune.costs.runtimes.pytorch import Compiled, Eager
from navprune.machine import compile_fault


@pytest.mark.skipif(compile_fault() is not None, reason=f"torch.compile: {compile_fault()}")
def test_modules_that_were_compiled_stay_so_while_others_are():
    """More of one class than torch keeps results of a function."""
    example, modules = (torch.rand(2, 3),), [nn.Linear(3, width) for width in range(1, 5)]
    with torch._dynamo.config.patch(recompile_limit=2):
        runs = [Compiled().prepare(module, example) for module in modules]
    with torch.compiler.set_stance("fail_on_recompile"), torch.inference_mode():
        for run, module in zip(runs, modules):
            torch.testing.assert_close(run(*example)[0], module(*example))


@pytest.mark.skipif(compile_fault() is not None, reason=f"torch.compile: {compile_fault()}")
@pytest.mark.parametrize("core", [nn.GRU, nn.LSTM])
def test_recurrent_layers_are_compiled(core):
    class Outputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.core = core(3, 4)

        def forward(self, x):
            return self.core(x)[0]

    module, x = Outputs(), torch.rand(1, 2, 3)
    torch.testing.assert_close(Compiled().prepare(module, (x,))(x), (module(x).detach(),))


@pytest.mark.skipif(compile_fault() is not None, reason=f"torch.compile: {compile_fault()}")
def test_what_cannot_be_compiled_whole_does_not_run_eagerly_in_its_name():
    class Printing(nn.Module):
        def forward(self, x):
            torch._dynamo.graph_break()
            return x + 1

    with pytest.raises(Exception, match=r"(?i)graph.break"):
        Compiled().prepare(Printing(), (torch.rand(2),))


def test_convolutions_run_in_channels_last_order():
    seen = {}

    class Watched(nn.Conv2d):
        def forward(self, input):
            seen["weight"] = self.weight.is_contiguous(memory_format=torch.channels_last)
            seen["contiguous"] = self.weight.is_contiguous()
            return super().forward(input)

    images = torch.rand(1, 2, 5, 5)
    Eager().prepare(Watched(2, 3, 3), (images,))(images)
    assert seen == {"weight": True, "contiguous": False}

"""What methods declare, and that a new one is one file."""

import re
from pathlib import Path

import pytest
import torch

from navprune.models.build import build
from navprune.models.spec import encoder_spec
from navprune.pruning.config import PruningConfig
from navprune.pruning.losses import Evidence
from navprune.pruning.methods import METHODS, method_of
from navprune.pruning.methods.base import BATCHES, CLOCK, LOSS, PASSES, Context
from navprune.pruning.structure import structure_of


@pytest.mark.parametrize("name", METHODS)
def test_every_method_declares_what_there_is(name):
    method = method_of(name)
    assert method.name == name
    assert method.needs <= {BATCHES, LOSS, PASSES, CLOCK}
    assert method.options is None or hasattr(PruningConfig(), method.options)


def test_the_page_on_adding_a_method_works():
    page = Path(__file__).parents[3].joinpath("docs/pruning.md").read_text()
    section = page.partition("## Adding a method")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names: dict = {}
    exec(code, names)
    (method,) = names["METHODS"].values()
    structure = structure_of(build(encoder_spec("resnet18", (1, 32, 32), 16), 0))
    outcome = method.run(structure, {"macs": 0.5}, Context(PruningConfig(), Evidence(torch.Generator())))
    assert 0.4 < structure.shares(structure.widths_of(outcome.keep))["macs"] <= 0.5
    assert structure.slim(outcome.keep)(torch.rand(1, 1, 32, 32)).isfinite().all()

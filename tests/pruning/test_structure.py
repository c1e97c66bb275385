"""What is worked out of a network once: its groups, what it costs at any widths, and how it is slimmed."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from navprune.costs.counting import DEPLOYED, TABLE1, cost
from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.classifiers import classifier_spec
from navprune.models.spec import PolicySpec, encoder_spec
from navprune.pruning.groups import units
from navprune.pruning.structure import structure_of

ENCODERS = ("resnet18", "resnet50", "se_resneXt50", "simple_cnn")


def random_keep(structure, seed):
    """Some units of every width and some blocks."""
    rng = np.random.default_rng(seed)
    keep = {group.name: torch.from_numpy(rng.random(units(group)) < 0.6) for group in structure.everything}
    for group in structure.channels:
        keep[group.name][rng.integers(units(group))] = True
    return keep


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.sampled_from(ENCODERS), st.integers(0, 2**32 - 1))
def test_costs_at_any_widths_are_those_of_the_slim_network(name, seed):
    policy = build(PolicySpec(encoder_spec(name, (1, 64, 64), 8), 16, 16), 0)
    structure = structure_of(policy, blocks=True)
    keep = random_keep(structure, seed)
    left, small = structure.widths_of(keep), structure.slim(keep)
    counted, whole = cost(small.spec), cost(policy.spec)
    assert structure.convention == TABLE1
    assert structure.cost(left) == {"macs": counted.table1_macs, "parameters": counted.table1_parameters}
    assert structure.shares(left)["macs"] == counted.table1_macs / whole.table1_macs
    assert structure.parameters(left) == sum(parameter.numel() for parameter in small.parameters())


@pytest.mark.parametrize("blocks", [False, True])
def test_blocks_may_go_whether_they_are_offered_or_not(blocks):
    structure = structure_of(build(classifier_spec("cifar_resnet56", 4, width=0.25), 0), blocks=blocks)
    assert structure.convention == DEPLOYED
    assert any(group.block for group in structure.groups) == blocks
    name = structure.blocks[0].name
    small = structure.slim({name: torch.tensor([False])})
    assert structure.cost({name: 0})["parameters"] == sum(parameter.numel() for parameter in small.parameters())


def test_costs_are_of_groups_that_exist():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1))
    price = structure_of(model, torch.rand(1, 3, 4, 4)).cost
    for widths, complaint in (({"typo": 3}, "no channel group 'typo': there are 0"), ({"0": -1}, "0 or more")):
        with pytest.raises(UserError, match=complaint):
            price(widths)


def test_the_page_on_adding_a_family_works(capsys):
    page = Path(__file__).parents[2].joinpath("docs/pruning.md").read_text()
    (code,) = re.findall(
        r"```python\n(.*?)```", page.partition("## Adding a family")[2].partition("\n## ")[0], re.DOTALL
    )
    exec(code, {})
    printed = capsys.readouterr().out.splitlines()
    assert [f"# {line}" for line in printed[:2]] == [
        line.partition("  ")[0] for line in code.splitlines() if re.match(r"# \S+ \d+ ", line)
    ]

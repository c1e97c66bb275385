"""What pruning can be asked for, and how it is written."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from navprune.config import load_config, to_yaml
from navprune.errors import UserError
from navprune.pruning.config import (
    LATENCY_MS,
    MEASURES,
    ClockConfig,
    EvidenceConfig,
    GateConfig,
    PruningScheduleConfig,
    check_budget,
    parse_budget,
    parse_shares,
)  # fmt: skip


def test_budgets_are_read():
    assert parse_budget("macs=0.5") == {"macs": 0.5}
    assert parse_budget(" parameters=0.45, macs=1") == {"parameters": 0.45, "macs": 1.0}
    assert parse_budget("latency=0.7") == {"latency": 0.7}
    assert parse_shares("limits", "stage4.*=0.3,stem=0.5") == {"stage4.*": 0.3, "stem": 0.5}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "budget is empty"),
        ("0.5", "cannot read '0.5'"),
        ("macs=0.5,macs=0.4", "each name once"),
        ("macs=half", "'half' is not a number"),
        ("macs=0", "0 < macs <= 1"),
        ("macs=1.5", "macs=1.5 is not a share"),
        ("parameters=-0.1", "0 < parameters <= 1"),
        ("macs=nan", "0 < macs <= 1"),
        ("latency=2", "0 < latency <= 1"),
        ("latency=0ms", "0 ms is no time"),
        ("latency=x ms", "'x' is not a number"),
        ("macs=4ms", "'4ms' is not a number"),
        ("latency=0.5,latency=4ms", "two limits of latency"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(text, complaint):
    with pytest.raises(UserError, match=complaint):
        parse_budget(text)


@pytest.mark.parametrize("share", ["a", None, float("nan"), -1, 0, 1.01])
def test_a_budget_is_a_share(share):
    with pytest.raises(UserError, match=r"give 0 < macs <= 1"):
        check_budget({"macs": share})
    check_budget({"macs": np.float32(0.5)})


@pytest.mark.parametrize("budget", [0.5, "macs=0.5", [0.5], None])
def test_a_budget_has_names(budget):
    with pytest.raises(UserError, match="give shares by name"):
        check_budget(budget)


def test_a_measure_that_nobody_takes_is_refused():
    with pytest.raises(UserError, match="unknown measure 'flops'; there are macs, parameters"):
        check_budget(parse_budget("flops=0.5"))


@given(st.dictionaries(st.sampled_from([*MEASURES, "latency"]), st.floats(1e-6, 1), min_size=1))
def test_budgets_are_read_as_they_are_written(budget):
    assert parse_budget(",".join(f"{name}={share!r}" for name, share in budget.items())) == budget


@pytest.mark.parametrize("text", ["latency=4ms", "latency = 4 ms", "macs=0.5,latency=4ms", f"{LATENCY_MS}=4"])
def test_latency_may_be_milliseconds(text):
    assert parse_budget(text)[LATENCY_MS] == 4.0


def test_all_of_it_comes_back_from_yaml(tmp_path):
    settings = [
        "pruning.method=taylor", "pruning.budget=macs=0.5,latency=4ms", "pruning.limits=stage4.*=0.3,stem=0.5",
        "pruning.scope=layer", "pruning.blocks=true", "pruning.evidence.steps=7", "pruning.gates.expansion=1",
        "pruning.clock.batch=8", "pruning.cuts=3",
    ]  # fmt: skip
    config = load_config("pointnav", settings)
    assert config.pruning == PruningScheduleConfig(
        method="taylor", budget="macs=0.5,latency=4ms", limits={"stage4.*": 0.3, "stem": 0.5}, scope="layer",
        blocks=True, evidence=EvidenceConfig(steps=7), gates=GateConfig(expansion=1.0),
        clock=ClockConfig(batch=8), cuts=3,
    )  # fmt: skip
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(str(tmp_path / "config.yaml")) == config


def test_help_needs_no_torch():
    code = "import sys, navprune.pruning.config, navprune.cli.pruning; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

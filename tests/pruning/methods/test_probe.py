import json

import numpy as np
import pytest
import torch
from clocks import machine, seconds
from torch import nn

from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.classifiers import classifier_spec
from navprune.models.spec import PolicySpec, encoder_spec
from navprune.pruning.choosing import EFFICIENCY, importances
from navprune.pruning.config import ProbeConfig, PruningConfig
from navprune.pruning.losses import Evidence
from navprune.pruning.methods import method_for
from navprune.pruning.methods.scores import SCORES
from navprune.pruning.prune import prune
from navprune.pruning.structure import structure_of

RESNET50 = encoder_spec("resnet50", (1, 128, 128), 8)
CIFAR = classifier_spec("cifar_resnet56", 10)
CLASSIFIER = CIFAR.without_blocks([name for name in CIFAR.removable_blocks() if int(name[-1]) > 2])  # shorter
SPECS = {
    "resnet50": RESNET50,
    "resnet18": encoder_spec("resnet18", (1, 128, 128), 8),
    "policy": PolicySpec(RESNET50, visual_features=16, hidden_size=16),
    "cifar_resnet": CLASSIFIER,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def probed(network, budget, timer=None, **options):
    config = PruningConfig(method="probe", budget=budget, probe=ProbeConfig(networks=12, **options))
    return prune(network, config, clock=timer or machine())


def true_share(result):
    dense = getattr(result.dense, "encoder", result.dense)
    small = getattr(result.spec, "encoder", result.spec)
    example = torch.rand(1, *dense.input)
    return seconds(build(small, 0), example) / seconds(build(dense, 0), example)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_milliseconds_are_met_from_below(spec):
    result = probed(spec, "latency=0.6")
    assert result.reached["latency"] == pytest.approx(true_share(result))
    assert 0.95 * 0.6 <= result.reached["latency"] <= 0.6
    report = result.report
    assert report["predicted_ms"] == pytest.approx(report["measured_ms"], rel=0.05)
    assert report["measured_ms"] == pytest.approx(report["dense_ms"] * result.reached["latency"])
    assert 0 < report["importance_kept"] < 1


def test_what_stays_computes_what_the_mask_computes():
    model = build(RESNET50, 0).eval()
    result = probed(model, "latency=0.5", machine(constant=10.0))
    images = torch.rand(2, *RESNET50.input)
    with torch.no_grad(), structure_of(model).mask(result.keep):
        torch.testing.assert_close(result.model(images), model(images), rtol=1e-4, atol=1e-5)
    assert result.blocks  # what layers take whatever their width goes with them alone


def test_operations_that_are_saved_are_saved_in_time():
    result = probed(RESNET50, "macs=0.5")
    saved = 1 - result.reached["latency"]
    assert 0.49 <= result.reached["macs"] <= 0.5
    assert saved >= 0.9 * EFFICIENCY * (1 - result.reached["macs"])
    uniform = prune(RESNET50, PruningConfig(method="uniform", budget="macs=0.5"))
    assert saved > 1 - true_share(uniform)


def test_milliseconds_may_be_given_and_several_measures_bind():
    dense = 1e3 * seconds(build(RESNET50, 0), torch.rand(1, *RESNET50.input))
    result = probed(RESNET50, f"latency={0.7 * dense}ms,macs=0.6,parameters=0.5")
    assert result.reached["latency_ms"] <= 0.7 * dense
    assert result.reached["macs"] <= 0.6 and result.reached["parameters"] <= 0.5
    with pytest.raises(UserError, match=r"a call alone takes|narrowest network has"):
        probed(RESNET50, "latency=0.001ms")
    with pytest.raises(UserError, match=r"budget macs=0.01 cannot be met: the narrowest"):
        probed(RESNET50, "macs=0.01")
    with pytest.raises(UserError, match=r"within .* already"):
        probed(RESNET50, f"latency={2 * dense}ms")
    with pytest.raises(UserError, match=r"allow more|ask for more"):
        probed(RESNET50, "latency=0.02")


def test_choosing_both_keeps_more_than_scaling_widths_or_dropping_blocks_alone():
    free = probed(RESNET50, "latency=0.8").report["importance_kept"]
    blocks_alone = probed(RESNET50, "latency=0.8", least=1.0).report["importance_kept"]
    assert free > blocks_alone

    structure = structure_of(build(RESNET50, 0), blocks=True)
    gains = importances(structure, SCORES["l1"](structure, Evidence(torch.Generator())), "l1")
    total = sum(float(gain[-1]) for gain in gains.values())
    example, dense = torch.rand(1, *RESNET50.input), build(RESNET50, 0)
    for share in np.arange(0.25, 1, 0.0625):  # the same share of all widths, as near to the limit as it comes
        small = encoder_spec("resnet50", (1, 128, 128), 8, width=float(share))
        if seconds(build(small, 0), example) > 0.8 * seconds(dense, example):
            break
        names = {group.name: small.channels[group.name] // group.unit for group in structure.channels}
        kept = sum(gain[names.get(name, -1)] for name, gain in gains.items()) / total
        assert kept < free


def test_importance_grows_ever_less_and_trunks_count_for_all_that_write_them():
    structure = structure_of(build(RESNET50, 0), blocks=True)
    scores = SCORES["l1"](structure, Evidence(torch.Generator()))
    gains = importances(structure, scores, "l1")
    for name, gain in gains.items():
        steps = np.diff(gain)
        assert gain[0] == 0 and (steps >= 0).all() and (np.diff(steps) <= 1e-9).all(), name
    inner, trunk = "stage3.block1.conv1", "stage3.trunk"
    assert gains[inner][-1] == pytest.approx(float(scores[inner].sum()))
    assert gains[trunk][-1] == pytest.approx(7 * float(scores[trunk].sum()))  # six blocks and a projection
    absolute = importances(structure, scores, "taylor")
    assert absolute[trunk][-1] == pytest.approx(float(scores[trunk].sum()))


def test_a_module_from_elsewhere_can_be_probed():
    module = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    config = PruningConfig(method="probe", budget="latency=0.7", probe=ProbeConfig(networks=12))
    result = prune(module, config, clock=machine(), example=torch.rand(1, 3, 16, 16))
    assert 0.5 < result.reached["latency"] <= 0.7


def test_it_needs_what_its_importance_needs():
    def needs(importance):
        return method_for(PruningConfig(method="probe", probe=ProbeConfig(importance=importance))).needs

    assert needs("l1") == {"clock"} and needs("taylor") == {"clock", "batches", "loss"} and "passes" in needs("gates")
    with pytest.raises(UserError, match="give a clock"):
        prune(RESNET50, PruningConfig(method="probe", budget="macs=0.5"))


def test_limits_and_least_shares_are_kept():
    config = PruningConfig(
        method="probe", budget="latency=0.7", limits={"stage4.*": 0.5}, minimum_share=0.4,
        probe=ProbeConfig(networks=12),
    )  # fmt: skip
    result = prune(RESNET50, config, clock=machine())
    for name, (before, after) in result.widths.items():
        assert after == 0 or after >= 0.4 * before
        if name.startswith("stage4."):
            assert after <= 0.5 * before


def test_parameters_alone_limit_no_time():
    timer = machine()
    result = probed(RESNET50, "parameters=0.5", timer)
    assert 0.45 < result.reached["parameters"] <= 0.5
    assert len(result.report["candidates"]) == 1


def test_a_saving_in_operations_that_cannot_be_had_in_time_is_told():
    spec = encoder_spec("simple_cnn", (1, 64, 64))  # of which no block can go
    result = probed(spec, "macs=0.5", machine(constant=300.0))  # almost all is in the calls
    assert result.reached["macs"] <= 0.5 and result.reached["latency"] > 0.55
    assert any("is saved in time" in line for line in result.report["notes"])


def test_options_that_a_probe_does_not_heed_are_refused():
    for options, message in (
        ({"scope": "layer"}, "probe knows no scope"),
        ({"blocks": True}, "no blocks"),
        ({"limits": {"nosuch": 0.3}}, "no layer that this method cuts is called 'nosuch'"),
    ):
        with pytest.raises(UserError, match=message):
            prune(RESNET50, PruningConfig(method="probe", budget="latency=0.7", **options), clock=machine())


def test_noise_does_not_lead_above_the_budget():
    for seed in range(3):
        timer = machine(noise=0.02)
        timer.rng.seed(seed)
        try:
            assert probed(RESNET50, "latency=0.7", timer).reached["latency"] <= 0.7
        except UserError as error:
            assert "not quiet" in str(error) or "nearest is" in str(error)


def test_what_is_written_is_strict_json():
    json.loads(json.dumps(probed(RESNET50, "latency=0.7").to_json(), allow_nan=False))

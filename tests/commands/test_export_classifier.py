"""Exported classifiers compute what the network does, for any number of images, and say how to call them."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from navprune.cli import main
from navprune.commands import export_classifier as module
from navprune.commands.export import TOLERANCE, ExportOptions
from navprune.commands.export_classifier import CHECKED_BATCHES, LOGITS, checked_classifier, export_classifier
from navprune.errors import UserError
from navprune.evaluation.exported import CLASSIFIER_CONTRACT, FORMATS, contract_of, sha256, step_of
from navprune.models.build import build
from navprune.models.classifiers import classifier_spec
from navprune.rl.checkpoints import load_classifier, save_checkpoint
from navprune.source import Source

MEAN, DEVIATION = [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]
SMALL = classifier_spec("cifar_resnet20", 7, (3, 16, 20), width=0.25).without_blocks({"layer1.1"})


def trained(spec=SMALL):
    """A classifier whose running statistics are those of some images."""
    model = build(spec, 0).train()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(4, *spec.input, generator=rng))
    return model.eval()


@pytest.fixture
def source(tmp_path):
    metrics = {"mean": MEAN, "deviation": DEVIATION}
    return Source.parse(str(save_checkpoint(tmp_path / "net", trained(), metrics=metrics)))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("family", ["cifar_resnet20", "cifar_vgg16_bn"])
def test_a_file_computes_what_the_classifier_does(tmp_path, family, format):
    model = trained(classifier_spec(family, 5, (3, 32, 32), width=0.1))
    source = Source.parse(str(save_checkpoint(tmp_path / "net", model)))
    out = tmp_path / f"a{FORMATS[format]}"
    check = export_classifier(source, out, ExportOptions(format=format))["check"]
    assert check["images"] == check["same_class"] == sum(CHECKED_BATCHES) and check["deviation"] < TOLERANCE / 10
    again = checked_classifier(model, step_of(out, [LOGITS]), batches=(3, 1, 12), seed=7)
    assert again.images == again.same_class == 16 and again.deviation < TOLERANCE / 10


@settings(max_examples=20, deadline=None)
@given(st.floats(-8, 8), st.sampled_from([0.0, 1.0]))
def test_the_check_measures_what_is_added(shift, scale):
    model = trained()
    with torch.no_grad():
        model.fc.weight.mul_(scale)  # all logits alike, or not

    def off(inputs):
        with torch.inference_mode():
            return {LOGITS: model(inputs["images"]) + shift}

    found = checked_classifier(model, off, batches=(2,))
    assert found.logits == pytest.approx(abs(shift), abs=1e-5) and found.deviation <= found.logits
    assert scale == 0.0 or found.same_class == 2
    lost = checked_classifier(model, lambda inputs: {LOGITS: torch.full((2, 7), torch.nan)}, batches=(2,))
    assert lost.deviation == lost.logits == float("inf")


def test_a_file_that_errs_is_not_written(tmp_path, source, monkeypatch):
    monkeypatch.setattr(module, "step_of", lambda *_: lambda inputs: {LOGITS: torch.zeros(len(inputs["images"]), 7)})
    with pytest.raises(UserError, match=r"was not written: it is .* away from the classifier"):
        export_classifier(source, tmp_path / "a.onnx", ExportOptions())
    assert not list(tmp_path.glob("a.onnx*"))


def test_the_contract_says_what_the_file_takes(tmp_path, source):
    import onnxruntime

    out = tmp_path / "a.onnx"
    export_classifier(source, out, ExportOptions())
    contract = json.loads((tmp_path / f"a.onnx{CLASSIFIER_CONTRACT}").read_text())
    assert contract["kind"] == "classifier" and contract["files"] == {"a.onnx": sha256(out.read_bytes())}
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    for told, found in ((contract["inputs"], session.get_inputs()), (contract["outputs"], session.get_outputs())):
        assert [(each["name"], each["shape"]) for each in told] == [(each.name, each.shape) for each in found]
    assert (contract["classes"], contract["mean"], contract["deviation"]) == (7, MEAN, DEVIATION)
    assert contract["spec"] == SMALL.to_json() == load_classifier(source.folder).spec.to_json()


def test_what_images_are_normalised_by_may_be_unknown(tmp_path):
    source = Source.parse(str(save_checkpoint(tmp_path / "net", trained())))
    contract = export_classifier(source, tmp_path / "a.onnx", ExportOptions())
    assert contract["mean"] is contract["deviation"] is None


def test_the_command_exports_it_and_says_where_it_does_not_serve(tmp_path, source, capsys, monkeypatch):
    out = tmp_path / "a.onnx"

    def mistake(*words):
        assert main([*map(str, words)]) == 2
        (said,) = capsys.readouterr().err.strip().splitlines()
        return said

    asked = "export", source.text, "--format", "onnx", "--out", out
    assert main([*map(str, asked), "--json", str(tmp_path / "answer.json")]) == 0
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["spec"] == SMALL.to_json() and answer["check"]["images"] == sum(CHECKED_BATCHES)
    capsys.readouterr()
    said = mistake("evaluate", out)
    assert "is an exported classifier, which only runs; give the checkpoint that it was made of" in said
    assert mistake("evaluate", out, "--config", "digits_resnet20", "images.size=32") == said
    assert "which habitat-baselines has none of" in mistake("export", source.text, "--out", tmp_path / "a.pth")
    assert "int8 takes its ranges from" in mistake(*asked, "--int8")
    assert "leave out --calibration-steps, --config and settings" in mistake(*asked, "task.width=32")
    assert "has no weights" in mistake("export", "cifar_resnet20", *asked[2:])
    assert "--step times an agent" in mistake("latency", source.text, "--step")
    robot = Path(__file__).parents[2] / "examples" / "robot.py"
    monkeypatch.setattr(sys, "argv", [str(robot), str(out)])
    with pytest.raises(SystemExit, match=r"^no policy: .*a\.onnx\.policy_contract\.json is missing$"):
        runpy.run_path(str(robot), run_name="__main__")
    assert not contract_of(out).exists()


def test_a_network_that_onnx_has_no_words_for(tmp_path):
    """ONNX averages an image to 7 x 7 cells where these divide it."""
    spec = classifier_spec("vgg16_bn", 2, (3, 64, 64), width=0.01)
    source = Source.parse(str(save_checkpoint(tmp_path / "net", build(spec, 0))))
    with pytest.raises(UserError, match=r"onnx cannot hold this classifier \(.*\); try --format torch") as caught:
        export_classifier(source, tmp_path / "a.onnx", ExportOptions())
    assert "\n" not in str(caught.value)
    assert export_classifier(source, tmp_path / "a.pt2", ExportOptions(format="torch"))["check"]["same_class"]

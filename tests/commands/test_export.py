"""Exported files compute what the policy does, and their contracts say how to call them."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from navprune.commands import export
from navprune.commands.evaluate import run_evaluation
from navprune.commands.export import (
    CHECKED_STEPS,
    TOLERANCE,
    ExportOptions,
    checked,
    export_for_habitat_baselines,
    run_export,
)
from navprune.config import load_config
from navprune.errors import UserError
from navprune.evaluation.exported import CONTRACT, FORMATS, OUTPUTS, contract_of, read_exported, sha256, step_of
from navprune.installing import DEPLOY
from navprune.models.build import build
from navprune.models.spec import PolicySpec, encoder_spec
from navprune.models.step import PolicyStep
from navprune.rl.checkpoints import save_checkpoint
from navprune.sensors import with_channels
from navprune.source import Source
from navprune.tasks.config import TaskConfig

REFERENCE = Path(__file__).resolve().parents[1] / "data" / "reference"
SIDE = 40
SETTINGS = [f"task.width={SIDE}", f"task.height={SIDE}", "task.max_steps=40", "data.name=reference", "data.train=val",
            f"data.folder={REFERENCE}", "environments=2"]  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def policy_of(encoder="resnet18", channels=1, rnn="gru", layers=1, width=1.0, details=False):
    """A random policy whose recurrent weights are large enough to remember, and whose choices differ."""
    planes = {"se_resneXt50": 8, "se_resneXt101": 8}.get(encoder, 4)
    visual = encoder_spec(encoder, (channels, SIDE, SIDE), planes, width=width) if channels else encoder_spec(encoder)
    policy = build(PolicySpec(visual, 16, 16, rnn, layers, goal_details=details), seed=1).eval()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "rnn.bias" in name:
                parameter.uniform_(-1, 1, generator=torch.Generator().manual_seed(len(name)))
        policy.action_distribution["linear"].weight.mul_(100)
    return policy


@pytest.fixture
def config():
    return load_config("pointnav", SETTINGS)


@pytest.fixture
def source(tmp_path):
    return Source.parse(str(save_checkpoint(tmp_path / "agent", policy_of(details=True))))


NETWORKS = {
    "resnet18": policy_of(),
    "resnet18-lstm": policy_of(rnn="lstm"),
    "resnet18-gru2-details": policy_of(layers=2, details=True),
    "resnet50-slim-lstm2": policy_of("resnet50", rnn="lstm", layers=2, width=0.5),
    "rgbd-se_resneXt50": policy_of("se_resneXt50", 4),
    "rgb-simple_cnn": policy_of("simple_cnn", 3),
    "blind": policy_of("blind", 0, details=True),
}


OTHERS = "resnet18-gru2-details", "resnet50-slim-lstm2", "blind"
"""Enough for the formats that are made in the same way, or by torch itself."""


@pytest.mark.parametrize(
    ("network", "format"),
    [(name, "onnx") for name in NETWORKS] + [(name, form) for name in OTHERS for form in ("openvino", "torch")],
)
def test_a_file_computes_what_the_policy_does(tmp_path, config, network, format):
    policy = NETWORKS[network]
    seen = with_channels(policy.spec.encoder.input[0])
    config = replace(config, task=replace(config.task, sensors=seen or ("depth",)))
    agent = Source.parse(str(save_checkpoint(tmp_path / "agent", policy)))
    out = tmp_path / f"file{FORMATS[format]}"
    check = run_export(agent, config, out, ExportOptions(format=format))["check"]
    assert check["steps"] == CHECKED_STEPS and check["episodes"] > 5
    assert check["deviation"] <= TOLERANCE / 10 and check["logits"] <= 1e-4
    exported = read_exported(out)
    again = checked(policy, exported.step(), config.task, steps=5, seed=7)
    assert again.deviation <= TOLERANCE


def test_a_recurrent_core_that_errs_is_found():
    policy = policy_of()
    step = PolicyStep(policy, 0.0, 10.0)

    @torch.inference_mode()
    def right(inputs):
        return dict(zip(OUTPUTS, step(*inputs.values())))

    assert checked(policy, right, TaskConfig(), steps=60).deviation < 1e-5

    def wrong(inputs):
        """With a GRU whose reset gate acts before the recurrent product."""
        rnn, outputs = policy.net.state_encoder.rnn, right(inputs)
        with torch.inference_mode():
            erring = 0.02 * torch.tanh(inputs["state"] @ rnn.weight_hh_l0[:16].t())
        return outputs | {"next_state": outputs["next_state"] + erring}

    found = checked(policy, wrong, TaskConfig(), steps=60)
    assert found.deviation > 5 * TOLERANCE and found.logits > TOLERANCE and 0 <= found.step < 60


def test_an_answer_that_is_no_number_is_as_wrong_as_can_be():
    policy = policy_of("blind", 0)
    answer = {"logits": torch.full((1, 4), torch.nan), "value": torch.zeros(1), "next_state": torch.zeros(1, 1, 16)}
    assert checked(policy, lambda inputs: answer, TaskConfig(), steps=3).deviation == float("inf")


def test_a_file_that_errs_is_not_written(tmp_path, config, source, monkeypatch):
    step_of = export.step_of

    def off(path):
        step = step_of(path)
        return lambda inputs: {name: x + 0.01 for name, x in step(inputs).items()}

    monkeypatch.setattr(export, "step_of", off)
    with pytest.raises(UserError, match=r"was not written: at step \d+ of 500 it is 0\.\d+ away"):
        run_export(source, config, tmp_path / "a.onnx", ExportOptions())
    assert not (tmp_path / "a.onnx").exists() and not contract_of(tmp_path / "a.onnx").exists()


def test_the_contract_says_what_the_file_takes(tmp_path, config, source):
    out = tmp_path / "a.onnx"
    run_export(source, config, out, ExportOptions())
    contract = json.loads((tmp_path / f"a.onnx{CONTRACT}").read_text())
    assert contract["files"] == {"a.onnx": sha256(out.read_bytes())}
    assert contract["camera"]["width"] == SIDE and contract["camera"]["hfov_degrees"] == config.task.hfov
    import onnxruntime

    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    for told, found in ((contract["inputs"], session.get_inputs()), (contract["outputs"], session.get_outputs())):
        assert [(each["name"], each["shape"]) for each in told] == [(each.name, each.shape) for each in found]
    assert [action["name"] for action in contract["actions"]] == ["stop", "forward", "left", "right"]
    assert contract["precision"] == "float32" and contract["calibration"] is None


def test_a_torch_file_runs_where_navprune_is_not(tmp_path, config, source):
    out = tmp_path / "a.pt2"
    run_export(source, config, out, ExportOptions(format="torch"))
    step = PolicyStep(source.policy(), config.task.min_depth, config.task.max_depth)
    with torch.no_grad():
        torch.save((step.example(), tuple(step(*step.example()))), tmp_path / "both.pt")
    program = """
import sys
sys.modules["navprune"] = None
import torch
inputs, wanted = torch.load(sys.argv[2])
torch.testing.assert_close(torch.export.load(sys.argv[1]).module()(*inputs), wanted, atol=1e-4, rtol=1e-4)
"""
    subprocess.run([sys.executable, "-c", program, out, tmp_path / "both.pt"], check=True, cwd=tmp_path)


def test_an_exported_file_acts_as_the_policy_does(tmp_path, config, source):
    out = tmp_path / "a.onnx"
    run_export(source, config, out, ExportOptions())
    exported = Source.parse(str(out))
    assert exported.config() == config and read_exported(out).spec == source.spec()
    eager, _ = run_evaluation(source.text, config, limit=6)
    found, _ = run_evaluation(str(out), exported.config(), limit=6, environments=4)
    assert found.episodes == eager.episodes
    with pytest.raises(UserError, match="only runs"):
        exported.load()


def test_int8_calibrates_where_the_policy_acts_and_leaves_the_core_alone(tmp_path, config, source):
    import onnx

    out = tmp_path / "a.onnx"
    contract = run_export(source, config, out, ExportOptions(int8=True, calibration_steps=21))
    assert contract["precision"] == "int8" and contract["calibration"] == {"split": "val", "steps": 21}
    assert contract["check"]["deviation"] > TOLERANCE  # told, not refused
    nodes = onnx.load(out).graph.node
    rounded = {node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}
    assert rounded and not any("linear" in name or "rnn" in name for name in rounded)
    result, _ = run_evaluation(str(out), config, limit=2)
    assert len(result.episodes) == 2


class TestMistakes:
    @pytest.fixture
    def out(self, tmp_path, config, source):
        run_export(source, config, tmp_path / "a.onnx", ExportOptions())
        return tmp_path / "a.onnx"

    def test_a_file_that_was_changed(self, out):
        out.write_bytes(out.read_bytes() + b"0")
        with pytest.raises(UserError, match="is not the file that"):
            read_exported(out)

    def test_a_file_without_its_contract(self, out, tmp_path):
        shutil.copy(out, tmp_path / "b.onnx")
        with pytest.raises(UserError, match=r"there is no b\.onnx"):
            read_exported(tmp_path / "b.onnx")
        shutil.copy(contract_of(out), contract_of(tmp_path / "b.onnx"))
        with pytest.raises(UserError, match=r"is not the contract of b\.onnx"):
            read_exported(tmp_path / "b.onnx")

    @pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', '{"format": 99}', "null"])
    def test_a_contract_that_is_damaged(self, out, text):
        contract_of(out).write_text(text)
        with pytest.raises(UserError):
            read_exported(out)

    def test_another_suffix(self, tmp_path, config, source):
        with pytest.raises(UserError, match=r"openvino ends in \.xml"):
            run_export(source, config, tmp_path / "a.onnx", ExportOptions(format="openvino"))

    def test_int8_of_torch(self):
        with pytest.raises(UserError, match="not as torch"):
            ExportOptions(format="torch", int8=True)

    def test_int8_of_a_blind_policy(self, tmp_path, config):
        blind = Source.parse(str(save_checkpoint(tmp_path / "agent", NETWORKS["blind"])))
        with pytest.raises(UserError, match="no encoder to quantise"):
            run_export(blind, config, tmp_path / "a.onnx", ExportOptions(int8=True))

    @pytest.mark.parametrize("kind", ["name", "spec.json"])
    def test_a_source_without_weights(self, tmp_path, config, source, kind):
        none = Source.parse("resnet18" if kind == "name" else str(source.folder / kind))
        with pytest.raises(UserError, match="has no weights; give a checkpoint"):
            run_export(none, config, tmp_path / "a.onnx", ExportOptions())
        with pytest.raises(UserError, match="has no weights; give a checkpoint"):
            export_for_habitat_baselines(none, tmp_path / "a.pth")
        assert not [*tmp_path.glob("a.*")]

    def test_a_package_that_is_missing(self, tmp_path, config, source, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(UserError, match=f"onnx: onnxruntime is not installed: {DEPLOY}"):
            run_export(source, config, tmp_path / "a.onnx", ExportOptions())
        (tmp_path / "a.onnx").write_bytes(b"")
        with pytest.raises(UserError, match=rf"a\.onnx needs onnxruntime, which is not installed: {DEPLOY}"):
            step_of(tmp_path / "a.onnx")

    def test_another_camera(self, tmp_path, config, source):
        with pytest.raises(UserError, match=r"set task\.width"):
            run_export(source, load_config("pointnav"), tmp_path / "a.onnx", ExportOptions())

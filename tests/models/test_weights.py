import argparse
import json
import math
import pickle
import sys
import types
import zipfile
from collections import defaultdict
from dataclasses import make_dataclass, replace
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest
import recorded_policies as recorded
import safetensors.torch
import torch
from omegaconf import OmegaConf

from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.classifiers import classifier_spec
from navprune.models.spec import RESNETS, PolicySpec, encoder_spec
from navprune.models.weights import ENCODER, PREFIX, foreign_bytes, foreign_hints, hints_file, read_foreign
from navprune.models.widths import with_widths
from navprune.tasks import GOAL

POLICIES = Path(__file__).parents[1] / "data" / "reference" / "policy"
NAMES = ("depth_resnet18_gru1", "depth_resnet50_lstm2")
RNN_INPUT = "net.state_encoder.rnn.weight_ih_l0"


def _state(name=NAMES[0]):
    return torch.load(POLICIES / f"{name}.pth", weights_only=True)["state_dict"]


@pytest.mark.parametrize("name", NAMES)
def test_recorded_answers_of_habitat_baselines_are_reproduced(name):
    expected = {key: torch.from_numpy(value) for key, value in np.load(POLICIES / f"{name}.npz").items()}
    observations = {k.removeprefix("obs_"): v for k, v in expected.items() if k.startswith("obs_")}
    observations |= {key: expected[key].squeeze(-1) for key in ("prev_actions", "masks")}
    recorded.assert_answers(recorded.answers_of(recorded.loaded(POLICIES / f"{name}.pth"), observations), expected)


@pytest.mark.parametrize("name", recorded.POLICIES)
def test_recorded_answers_of_every_family_are_reproduced(tmp_path, name):
    spec = recorded.POLICIES[name]
    torch.save(
        {"state_dict": {PREFIX + k: v for k, v in recorded.random_policy(spec).state_dict().items()}},
        tmp_path / "a.pth",
    )
    policy = recorded.loaded(tmp_path / "a.pth")
    assert policy.spec == spec
    expected = {k.split("/")[1]: torch.from_numpy(v) for k, v in np.load(recorded.ANSWERS).items() if name in k}
    observations = recorded.observations(spec)
    answers = recorded.answers_of(policy, observations)
    if spec.encoder.observations:
        with torch.inference_mode():
            images = policy.encoder.images({key: observations[key][0] for key in spec.encoder.observations})
            answers["encoder"] = policy.encoder(images).flatten(1)[:, :: recorded.FEATURES]
    assert answers.keys() == expected.keys()
    recorded.assert_answers(answers, expected)


def _middle(prefix):
    """Puts `prefix` before the second part of every name, as a wrapper of a part of the network does."""
    return lambda key: key.replace(".", f".{prefix}", 1)


NAMINGS = {
    "bare": lambda key: key,
    "actor_critic": lambda key: f"actor_critic.{key}",
    "DataParallel": lambda key: f"module.{key}",
    "compiled": lambda key: f"_orig_mod.{key}",
    "compiled, then DataParallel": lambda key: f"module._orig_mod.actor_critic.{key}",
    "DataParallel, then compiled": lambda key: f"_orig_mod.module.{key}",
    "actor_critic compiled": lambda key: f"actor_critic._orig_mod.{key}",
    "a part compiled": _middle("_orig_mod."),
    "a part in DataParallel": _middle("module."),
    "FSDP": _middle("_fsdp_wrapped_module."),
    "of somebody's trainer": lambda key: f"agent.policy.{key}",
}
CONTAINERS = {
    "none": lambda state: state,
    "habitat-baselines": lambda state: {"state_dict": state, "extra_state": {"step": 3}},
    "a training": lambda state: {"model": state, "optimizer": {"state": {0: {"exp_avg": torch.rand(3)}}}, "epoch": 3},
    "Lightning": lambda state: {"state_dict": state, "hyper_parameters": {"lr": 1e-3}, "loops": [{"steps": 1}]},
    "agents": lambda state: {0: {"state_dict": state, "mean": torch.zeros(2, dtype=torch.int64)}},
    "deep": lambda state: {"checkpoint": {"agent": {"policy_state_dict": state}}},
}


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_dictionaries_and_wrappers_do_not_matter(tmp_path, naming, container):
    state = {NAMINGS[naming](key): value for key, value in _state().items()}
    torch.save(CONTAINERS[container](state), tmp_path / "a.ckpt")
    spec, read = read_foreign(tmp_path / "a.ckpt")
    assert spec == PolicySpec(encoder_spec("resnet18", (1, 128, 128), 8), visual_features=64, hidden_size=64)
    assert read.keys() == _state().keys() and all(read[key].equal(value) for key, value in _state().items())


@pytest.mark.parametrize("naming", NAMINGS)
def test_safetensors_alone_are_read_by_their_shapes(tmp_path, naming):
    safetensors.torch.save_file(
        {NAMINGS[naming](key): value for key, value in _state().items()}, tmp_path / "a.safetensors"
    )
    spec, read = read_foreign(tmp_path / "a.safetensors")
    assert spec.encoder == encoder_spec("resnet18", (1, 128, 128), 8) and read.keys() == _state().keys()


@pytest.mark.parametrize(
    "spec",
    [
        PolicySpec(with_widths(encoder_spec("resnet18", (1, 64, 64), 8), {"stage2.block0.conv1": 4}), 8, 8),
        PolicySpec(encoder_spec("simple_cnn", (1, 64, 64)), 8, 8),
        classifier_spec("cifar_resnet56", 4),
    ],
)
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_safetensors_are_of_the_spec_beside_them(tmp_path, spec, prefix):
    """Pruned networks and classifiers, too, whose shapes would not tell what they are."""
    model = build(spec, seed=1)
    state = {prefix + key: value.contiguous() for key, value in model.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_json()))
    read, weights = read_foreign(tmp_path / "a.safetensors")
    assert read == spec and all(weights[key].equal(value) for key, value in model.state_dict().items())


def test_a_dictionary_may_hold_itself(tmp_path):
    deep, holder = {}, {"state_dict": _state()}
    holder["self"] = holder
    for _ in range(90):
        deep = {"a" * 20: deep, "b": deep}
    torch.save({**holder, "deep": deep}, tmp_path / "a.pt")
    assert read_foreign(tmp_path / "a.pt")[1].keys() == _state().keys()


@pytest.mark.parametrize("name", RESNETS)
@pytest.mark.parametrize("rnn, layers", [("gru", 1), ("lstm", 3)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_spec_is_inferred_from_the_shapes(tmp_path, name, rnn, layers, channels):
    spec = PolicySpec(encoder_spec(name, (channels, 256, 256), 4), 40, 24, rnn, layers, actions=6)
    torch.save({"state_dict": build(spec).state_dict()}, tmp_path / "a.pth")
    assert read_foreign(tmp_path / "a.pth")[0] == spec


def test_a_blind_agent_and_running_statistics_of_depth_are_seen(tmp_path):
    blind = PolicySpec(encoder_spec("blind"), hidden_size=24, visual_features=24)
    depth = PolicySpec(replace(encoder_spec("resnet18", (1, 64, 64), 8), normalise=True), 16, 16)
    for spec in (blind, depth):
        torch.save(build(spec).state_dict(), tmp_path / "a.pth")
        assert read_foreign(tmp_path / "a.pth")[0] == spec


# Configurations that files of every time hold


def _install(cls):
    """Puts a class into a module that is not installed, so that pickle finds it there."""
    parts = cls.__module__.split(".")
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        sys.modules.setdefault(name, types.ModuleType(name))
    setattr(sys.modules[cls.__module__], cls.__name__, cls)


def _omegaconf():
    sensor = make_dataclass("SensorConfig", [("width", int, 256), ("uuid", Optional[str], None)])  # noqa: UP045
    sensor.__module__ = "habitat.config.default_structured_configs"  # where 0.3.3 has them
    _install(sensor)
    return OmegaConf.create({"sensors": ["depth"], "sensor": OmegaConf.structured(sensor), "seed": 7, "split": "???"})


def _yacs():
    node = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    config = type("Config", (node,), {"__module__": "habitat.config.default"})
    _install(node)
    _install(config)
    written = config(RL=node(hidden_size=512), SENSORS=["RGB_SENSOR"])
    written.__dict__["__immutable__"] = True
    return written


CONFIGS = {
    "omegaconf": ("config", _omegaconf, False),
    "yacs": ("config", _yacs, True),
    "namespace": ("model_args", lambda: argparse.Namespace(backbone="resnet50", hidden=512), True),
    "typing": ("extra_state", lambda: {"step": 3, "kind": Any, "count": defaultdict(int, a=1)}, False),
    "plain": ("config", lambda: {"rl": {"hidden_size": 512}}, False),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", CONFIGS)
def test_configurations_beside_the_weights_are_let_in_without_their_libraries(tmp_path, kind, zipped):
    key, make, rgb_first = CONFIGS[kind]
    installed = dict(sys.modules)
    for name in [name for name in installed if name.split(".")[0] in ("habitat", "yacs")]:
        del sys.modules[name]
    policy = recorded.random_policy(PolicySpec(encoder_spec("resnet18", (4, 64, 64), 8), 16, 16))
    state = {PREFIX + name: value for name, value in policy.state_dict().items()}
    torch.save({"state_dict": state, key: make()}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    for name in [name for name in sys.modules if name.split(".")[0] in ("habitat", "yacs")]:
        del sys.modules[name]
    sys.modules.update(installed)
    spec, read = read_foreign(tmp_path / "a.pth")
    assert spec.encoder.observations == (("rgb", "depth") if rgb_first else ("depth", "rgb"))
    assert replace(spec, encoder=policy.spec.encoder) == policy.spec
    assert all(torch.equal(read[name], value) for name, value in policy.state_dict().items())


@pytest.mark.parametrize(
    "said, size",
    [({"input": [1, 96, 160]}, (1, 96, 160)), ({"observations": ["depth"], "input": [1, 70, 130]}, (1, 70, 130))],
)
def test_images_that_are_not_square_are_told_beside_the_file(tmp_path, said, size):
    spec = PolicySpec(encoder_spec("resnet18", size, 8), 16, 16)
    torch.save(build(spec).state_dict(), tmp_path / "a.pth")
    with pytest.raises(UserError, match=r'not square; write their size into .*a\.pth\.json, as in {"input": \[1, '):
        read_foreign(tmp_path / "a.pth")
    (tmp_path / "a.pth.json").write_text(json.dumps(said))
    assert read_foreign(tmp_path / "a.pth")[0] == spec


def test_the_order_of_colour_and_depth_can_be_told_beside_the_file(tmp_path):
    spec = PolicySpec(encoder_spec("resnet18", (4, 64, 64), 8, observations=("rgb", "depth")), 16, 16)
    torch.save(build(spec).state_dict(), tmp_path / "a.pth")
    (tmp_path / "a.pth.json").write_text('{"observations": ["rgb", "depth"]}')
    assert read_foreign(tmp_path / "a.pth")[0] == spec


@pytest.mark.parametrize("size", [(1, 64, 64), (1, 96, 160), (1, 100, 100), (4, 64, 64)])
def test_what_is_written_is_read_with_its_hints(tmp_path, size):
    observations = ("rgb", "depth") if size[0] == 4 else None
    policy = recorded.random_policy(PolicySpec(encoder_spec("resnet18", size, 8, observations=observations), 16, 16))
    (tmp_path / "a.pth").write_bytes(foreign_bytes(policy))
    hints_file(tmp_path / "a.pth").write_text(json.dumps(foreign_hints(policy)))
    read = read_foreign(tmp_path / "a.pth")[0]
    ordered = tuple(sorted(policy.spec.encoder.observations))
    assert read == replace(policy.spec, encoder=replace(policy.spec.encoder, observations=ordered))


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"width": 3}', '{"input": [1, "2", 3]}', '{"input": 3}', '{"input": [1]}']
)
def test_wrong_words_beside_the_file_are_told_in_one_line(tmp_path, text):
    torch.save(_state(), tmp_path / "a.pth")
    (tmp_path / "a.pth.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.pth: ") as caught:
        read_foreign(tmp_path / "a.pth")
    assert "\n" not in str(caught.value)


# What is refused


class _Harmful:
    def __reduce__(self):
        return exec, ("raise SystemExit",)


def _changed(**tensors):
    return lambda path: torch.save(_state() | {key.replace("__", "."): value for key, value in tensors.items()}, path)


def _without(*keys):
    return lambda path: torch.save({k: v for k, v in _state().items() if k not in keys}, path)


def _rows(key, count):
    """One tensor with more columns."""
    tensor = _state()[key]
    return lambda path: torch.save(_state() | {key: torch.zeros(len(tensor), tensor.shape[1] + count)}, path)


def _pickled(thing):
    return lambda path: torch.save({"state_dict": _state(), "config": thing}, path)


def _three_blocks_in_a_stage(path):
    state = _state()
    extra = {k.replace("layer2.1", "layer2.2"): v for k, v in state.items() if "layer2.1" in k}
    torch.save(state | extra, path)


def _wider_inside(path):
    torch.save({**_state(), ENCODER + "backbone.layer4.0.convs.0.weight": torch.zeros(128, 32, 3, 3)}, path)


def _compressed(path):
    with (
        zipfile.ZipFile(POLICIES / f"{NAMES[0]}.pth") as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in plain.namelist():
            new.writestr(name, plain.read(name))


def _declared_huge(path):
    state = _state()
    state["net.visual_fc.1.weight"] = torch.zeros(1).expand(10**6, 10**6)
    torch.save(state, path)


def _declared_huge_between_lines(path):
    """Shapes that fit each other as little as they fit into memory."""
    state = _state()
    state[ENCODER + "backbone.conv1.0.weight"] = torch.zeros(200_000, 1, 1, 1)
    torch.save(state, path)


@pytest.mark.parametrize("zipped", [True, False])
def test_storages_declared_larger_than_the_file_are_not_set_aside(tmp_path, zipped):
    """7 x 11 numbers claim to be 2^30, as an old file would have torch allocate."""
    path = tmp_path / "a.pth"
    torch.save({"critic.fc.weight": torch.rand(7, 11)}, path, _use_new_zipfile_serialization=zipped)

    def enlarged(data):
        assert data.count(b"K\x4d") == 1  # BININT1 77
        return data.replace(b"K\x4d", b"J" + (2**30).to_bytes(4, "little"))

    if zipped:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, enlarged(data) if name.endswith("data.pkl") else data)
    else:
        path.write_bytes(enlarged(path.read_bytes()))
    with pytest.raises(UserError, match="a damaged one") as caught:
        read_foreign(path)
    assert str(2**30) in str(caught.value.__cause__)


def _scripted(path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


def _twice(first, second):
    """Two policies, the names of one and of the other changed."""
    return lambda path: torch.save(
        {first + k: v for k, v in _state().items()} | {second + k: v for k, v in _state().items()}, path
    )


@pytest.mark.parametrize(
    "write, words",
    [
        (_scripted, r"TorchScript module, with code; save its state_dict\(\)"),
        (_twice("model.", "ema."), r"holds 2 policies, in ema\. and model\."),
        (_twice("", "teacher."), r"holds 2 policies, in  and teacher\."),
        (_twice("", "module."), "two networks, one of them wrapped"),
        (_twice("module.", "_orig_mod."), "two networks, one of them wrapped"),
        (lambda path: None, "cannot be read .No such file"),
        (lambda path: path.mkdir(), "cannot be read .Is a directory"),
        (lambda path: torch.save({"state_dict": {"weight": torch.zeros(3)}}, path), "not a PointNav policy"),
        (lambda path: torch.save({"state_dict": [torch.zeros(3)]}, path), "not a PointNav policy"),
        (lambda path: torch.save([1, 2], path), "not a PointNav policy"),
        (_three_blocks_in_a_stage, r"basic blocks \(2, 3, 2, 2\)"),
        (_wider_inside, "layer4.0.convs.0.weight"),
        (_pickled(Path("somewhere")), r"an object of pathlib\.\S+; save its 'state_dict' alone"),
        (_pickled(_Harmful()), "an object of .*exec"),
        (_pickled(torch.nn.Linear(2, 2)), "an object of torch.nn.modules.linear.Linear"),
        (lambda path: path.write_bytes((POLICIES / f"{NAMES[0]}.pth").read_bytes()[:5000]), "fetch it again"),
        (lambda path: path.write_text("not weights"), "no file of torch.save"),
        (lambda path: path.write_bytes(b""), "no file of torch.save"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "no file of torch.save"),
        (_compressed, "compressed"),
        (_declared_huge, "claims the shape"),
        (_declared_huge_between_lines, "other shapes ask for"),
        (_changed(critic__fc__bias=torch.tensor([float("nan")])), "not finite"),
        (_changed(critic__fc__bias=torch.zeros(1, dtype=torch.int64)), "real numbers"),
        (_changed(**{"critic.\n": torch.zeros(1)}), r"named 'critic\.\\n'"),
        (_changed(critic__fc__bias=torch.zeros(0)), "claims the shape"),
        (_changed(net__gps_embedding__weight=torch.zeros(32, 2)), f"net.gps_embedding.weight.*{GOAL} and nothing else"),
        (_changed(net__tgt_embeding__weight=torch.zeros(32, 4)), r"tgt_embeding.weight is \[32, 4\]"),
        (_without("net.tgt_embeding.weight", "net.tgt_embeding.bias"), "it has no net.tgt_embeding"),
        (_without("action_distribution.linear.weight"), "it has no action_distribution.linear.weight"),
        (_rows(RNN_INPUT, 5), "reads 5 values beside"),
        (_changed(net__state_encoder__rnn__weight_hh_l0=torch.zeros(64, 64)), "neither GRU nor LSTM"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, write, words):
    path = tmp_path / "a.pth"
    write(path)
    with pytest.raises(UserError, match=rf"a\.pth: .*{words}") as caught:
        read_foreign(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "write, words",
    [
        (lambda path: path.write_text("{}"), "or a damaged one"),
        (lambda path: path.write_bytes((POLICIES / f"{NAMES[0]}.pth").read_bytes()), "as its name says"),
        (lambda path: safetensors.torch.save_file({"a": torch.zeros(2)}, path), "not a PointNav policy"),
        (
            lambda path: safetensors.torch.save_file(_state() | {"critic.fc.bias": torch.tensor([math.inf])}, path),
            "not finite",
        ),
    ],
)
def test_other_safetensors_are_refused_in_one_line(tmp_path, write, words):
    path = tmp_path / "a.safetensors"
    write(path)
    with pytest.raises(UserError, match=rf"a\.safetensors: .*{words}") as caught:
        read_foreign(path)
    assert "\n" not in str(caught.value)

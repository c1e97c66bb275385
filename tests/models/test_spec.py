import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from navprune.errors import UserError
from navprune.models.build import build, known_format
from navprune.models.spec import NAMES, RESNETS, EncoderSpec, Layer, PolicySpec, convolutions, encoder_spec
from navprune.models.widths import widths, with_widths

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"

resnets = st.builds(
    encoder_spec,
    st.sampled_from(list(RESNETS)),
    st.tuples(st.sampled_from([1, 3, 4]), st.integers(16, 300), st.integers(16, 300)),
    st.sampled_from([8, 16, 32]),
    width=st.floats(0.05, 1.3),
)
encoders = st.one_of(resnets, st.sampled_from([encoder_spec("simple_cnn"), encoder_spec("blind")]))


@given(encoders)
def test_encoder_round_trips_through_json_text(spec):
    again = EncoderSpec.from_json(json.loads(json.dumps(spec.to_json(), sort_keys=True)))
    assert again == spec
    assert hash(again) == hash(spec)


@given(encoders, st.sampled_from(["gru", "lstm"]), st.integers(1, 3))
def test_policy_round_trips_through_json_text(encoder, rnn, layers):
    spec = PolicySpec(encoder, hidden_size=64, rnn=rnn, rnn_layers=layers)
    assert PolicySpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_json_tells_every_change():
    spec = encoder_spec("resnet18")
    others = [
        with_widths(spec, {"stem": 16}),
        replace(spec, normalise=True),
        replace(spec, output=64),
        encoder_spec("resnet18", groups=8),
        encoder_spec("resnet18", (1, 256, 255)),
    ]
    assert len({json.dumps(each.to_json()) for each in (spec, *others)}) == 6


def test_resnet50_has_habitats_37_free_widths():
    spec = encoder_spec("resnet50")
    assert len(widths(spec)) == 37
    assert [widths(spec)[f"stage{stage}.trunk"] for stage in range(1, 5)] == [128, 256, 512, 1024]
    assert {layer.channels // layer.group for layer in spec.layers} == {16}


def test_widths_of_resnext_are_habitats():
    spec = encoder_spec("se_resneXt50")
    assert [widths(spec)[f"stage{stage}.trunk"] for stage in range(1, 5)] == [128, 256, 512, 1024]
    assert [widths(spec)[f"stage{stage}.block0.conv1"] for stage in range(1, 5)] == [64, 128, 256, 512]
    assert [widths(spec)[f"stage{stage}.block1.se"] for stage in range(1, 5)] == [8, 16, 32, 64]
    assert "stage1.block0.conv2" not in widths(spec) and "stage1.block1.conv2" in widths(spec)
    assert {spec.unit_channels[layer.name] for layer in spec.layers} == {1, 2, 4, 8, 16, 32, 64}


def test_rgb_and_depth_stand_in_habitats_order():
    assert encoder_spec("resnet18", (4, 64, 64)).observations == ("depth", "rgb")


@pytest.mark.parametrize("path", sorted(CHECKPOINTS.glob("*/spec.json")), ids=lambda path: path.parent.name)
def test_specs_of_published_checkpoints_still_load(path):
    text = known_format(path, json.loads(path.read_text()))
    spec = PolicySpec.from_json(text)
    assert spec.to_json() == {"goal_details": False, **text}
    shapes = {key: tensor.shape for key, tensor in load_file(path.with_name("weights.safetensors")).items()}
    with torch.device("meta"):
        assert {key: tensor.shape for key, tensor in build(spec).state_dict().items()} == shapes


def test_stage_without_shortcut_convolution_shares_the_stem():
    assert "stage1.trunk" not in widths(encoder_spec("resnet18"))
    assert "stage1.trunk" in widths(encoder_spec("resnet50"))


@pytest.mark.parametrize("side, channels", [(256, 128), (128, 512), (64, 2048)])
def test_compression_keeps_about_2048_values(side, channels):
    assert encoder_spec("resnet18", (1, side, side)).output_shape[0] == channels


@given(resnets, st.data())
def test_with_widths_changes_those_widths_alone(spec, data):
    layer = data.draw(st.sampled_from(spec.layers))
    channels = spec.unit_channels[layer.name] * data.draw(st.integers(1, 20))
    slim = with_widths(spec, {layer.name: channels})
    assert widths(slim) == {**widths(spec), layer.name: channels}
    assert [a.group for a in slim.layers] == [a.group for a in spec.layers]
    assert replace(slim, layers=spec.layers) == spec


@given(st.floats(0.01, 2))
def test_uniform_narrowing_keeps_whole_groups_and_never_empties_a_width(width):
    full, narrow = encoder_spec("resnet50"), encoder_spec("resnet50", width=width)
    for a, b in zip(full.layers, narrow.layers):
        assert b.group == a.group
        assert b.channels == max(1, round(width * 16)) * a.group
    assert narrow.output == full.output


def test_a_block_less_is_the_same_network_without_that_block():
    full = encoder_spec("resnet50")
    layers = tuple(layer for layer in full.layers if not layer.name.startswith("stage3.block5"))
    shallow = replace(full, blocks=(3, 4, 5, 3), layers=layers)
    modules = {conv.module for conv in convolutions(full)} - {conv.module for conv in convolutions(shallow)}
    assert modules == {f"backbone.layer3.5.convs.{i}" for i in (0, 3, 6)}


@pytest.mark.parametrize("name", NAMES)
def test_build_with_a_seed_repeats_itself_and_leaves_the_global_generator_alone(name):
    spec = PolicySpec(encoder_spec(name, (1, 64, 64), 8), hidden_size=128)
    torch.manual_seed(1)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    one, other = (build(spec, seed).state_dict() for seed in (3, 4))
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        two = build(spec, 3).state_dict()
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: encoder_spec("resnet51"), "resnet51"),
        (lambda: encoder_spec("resneXt50", base_planes=9, groups=3), "even number"),
        (lambda: encoder_spec("resnet18", base_planes=24, groups=16), "24 base planes"),
        (lambda: encoder_spec("resnet18", (99, 64, 64)), "observations"),
        (lambda: encoder_spec("resnet18", (3, 64, 64), observations=("depth",)), "3 channels"),
        (lambda: encoder_spec("simple_cnn", (1, 8, 8)), "too small"),
        (lambda: encoder_spec("resnet18", (1, 0, 64)), "height"),
        (lambda: encoder_spec("resnet18", (1, 64)), "height, width"),
        (lambda: with_widths(encoder_spec("resnet18"), {"stage1.trunk": 16}), "stage1.trunk"),
        (lambda: with_widths(encoder_spec("resnet18"), {"stem": 15}), "group size 2"),
        (lambda: with_widths(encoder_spec("resnet18"), {"stem": 0}), "at least 1"),
        (lambda: with_widths(encoder_spec("resneXt50", groups=32), {"stage1.block0.conv1": 62}), "group size 4"),
        (lambda: replace(encoder_spec("resnet50"), blocks=(3, 0, 6, 3)), "stage 2"),
        (lambda: replace(encoder_spec("resnet50"), blocks=(3, 4, 5, 3)), "layers must be"),
        (lambda: replace(encoder_spec("resnet50"), layers=(Layer("stem", 32, 2),)), "layers must be"),
        (lambda: replace(encoder_spec("resnet50"), family="vgg"), "vgg"),
        (lambda: replace(encoder_spec("resnet50"), block="wide"), "wide"),
        (lambda: PolicySpec(encoder_spec("blind"), rnn="rnn"), "gru"),
        (lambda: PolicySpec(encoder_spec("blind"), hidden_size=0), "hidden_size"),
        (lambda: EncoderSpec.from_json({"family": "resnet", "depth": 3}), "'depth'"),
        (lambda: EncoderSpec.from_json({"family": "resnet"}), "block"),
        (lambda: EncoderSpec.from_json({**encoder_spec("resnet18").to_json(), "layers": [1]}), "spec"),
        (lambda: EncoderSpec.from_json({**encoder_spec("resnet18").to_json(), "input": "256"}), "input"),
        (lambda: PolicySpec.from_json({}), "'encoder'"),
        (lambda: PolicySpec.from_json([]), "list"),
    ],
)
def test_contradictions_are_told_in_one_line(make, words):
    with pytest.raises(UserError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)

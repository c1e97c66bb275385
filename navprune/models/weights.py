"""Policies in others' files: read what any version of habitat-baselines wrote, bare or wrapped; write what it loads."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from navprune.errors import UserError
from navprune.models.build import Spec, build, read_spec_file
from navprune.models.policy import EMBEDDING, PointNavPolicy
from navprune.models.pth import SAFETENSORS, checked, read_tensors
from navprune.models.spec import RESNETS, EncoderSpec, PolicySpec, encoder_spec
from navprune.sensors import SENSORS
from navprune.tasks import GOAL

PREFIX = "actor_critic."  # of files from DD-PPO's time, the published ones among them
CORE = "net.state_encoder.rnn.weight_hh_l0"  # every policy has it, and it alone
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What DataParallel, torch.compile, FSDP and activation checkpointing put into names."""
PARTS = ("net.", "action_distribution.", "critic.")  # what else a file holds is for training alone
ENCODER = "net.visual_encoder."
OLD_CONFIGS = ("yacs.", "argparse.", "habitat.config.default.Config")


def read_foreign(path: str | Path) -> tuple[Spec, dict[str, Tensor]]:
    """Spec and state dict of a file of weights: a PointNav policy of habitat-baselines' shapes, or what a spec says.

    A .safetensors file is of the spec.json beside it, where there is one. Else the spec follows from the shapes, of
    a ResNet of habitat-baselines, or blind. What they do not tell is taken to be as usual: square images, and of agents
    that see colour and depth the order of 0.3.3 (depth, rgb), or of DD-PPO's time (rgb, depth) where the file holds
    a configuration of then. F.pth.json beside F.pth says otherwise: {"input": [C, H, W], "observations": [...]},
    either or both. Dictionaries around the weights and names that wrappers put into theirs do not matter. Nothing in
    the file is executed. Raises UserError for a file that cannot be read or holds another network.
    """
    path = Path(path)
    everything, classes = read_tensors(path)
    room, beside = path.stat().st_size, path.with_name("spec.json")
    try:
        tensors = _unwrapped(everything)
        if path.suffix.lower() == SAFETENSORS and beside.is_file():
            real = {key: value for key, value in tensors.items() if value.is_floating_point()}  # counts are not
            return read_spec_file(beside), tensors | checked(real, room)
        state = checked(_one_policy(tensors), room)
        order = ("rgb", "depth") if any(name.startswith(OLD_CONFIGS) for name in classes) else ("depth", "rgb")
        spec = _policy_spec(state, hints_file(path), order)
        _check_fits(spec, state)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return spec, state


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same under names without the parts that wrappers insert, at any depth."""
    state = {".".join(part for part in key.split(".") if part not in WRAPPERS): value for key, value in tensors.items()}
    if len(state) < len(tensors):
        raise UserError("holds two networks, one of them wrapped; save one of them alone")
    return state


def _one_policy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the one policy among these, under habitat-baselines' names."""
    prefixes = sorted({name.removesuffix(CORE) for name in tensors if f".{name}".endswith(f".{CORE}")}) or [""]
    if len(prefixes) > 1:
        raise UserError(f"holds {len(prefixes)} policies, in {' and '.join(prefixes)}; save one of them alone")
    state = {key.removeprefix(prefixes[0]): value for key, value in tensors.items() if key.startswith(prefixes[0])}
    return {key: value for key, value in state.items() if key.startswith(PARTS)}


def foreign_bytes(policy: PointNavPolicy) -> bytes:
    """A policy as a file of habitat-baselines.

    Names carry the prefix that `rl.ddppo.pretrained_weights` expects in every version. Channels stand in the
    order of 0.3.3: depth before rgb. `read_foreign` gives the same policy, with `foreign_hints` beside it. Raises
    UserError for a network that habitat-baselines cannot build, such as a pruned one.
    """
    _check_dense(policy.spec)
    state = {key: value.detach().cpu() for key, value in policy.state_dict().items()}
    owners = [key for key in policy.spec.encoder.observations for _ in range(SENSORS[key].channels)]  # of each channel
    order = sorted(range(len(owners)), key=owners.__getitem__)
    if owners != sorted(owners):
        for key in ("backbone.conv1.0.weight", "running_mean_and_var._mean", "running_mean_and_var._var"):
            if ENCODER + key in state:
                state[ENCODER + key] = state[ENCODER + key][:, order]
    buffer = io.BytesIO()
    torch.save({"state_dict": {PREFIX + key: value.contiguous() for key, value in state.items()}}, buffer)
    return buffer.getvalue()


def hints_file(path: Path) -> Path:
    """Where stands what the shapes in a file of habitat-baselines do not tell."""
    return path.parent / f"{path.name}.json"


def foreign_hints(policy: PointNavPolicy) -> dict[str, list]:
    """What is to stand there of a policy that `foreign_bytes` writes; most shapes tell it, too."""
    encoder = policy.spec.encoder
    return {"input": list(encoder.input), "observations": sorted(encoder.observations)}


def _check_dense(spec: PolicySpec) -> None:
    encoder = spec.encoder
    if encoder.family == "blind":
        return
    refusal = "habitat-baselines cannot build this network, only a dense one"
    name = _resnet_name(encoder.block, encoder.blocks)
    if name is None:
        raise UserError(f"{refusal}: {encoder.family} {encoder.block} {encoder.blocks} is none of {', '.join(RESNETS)}")
    dense = encoder_spec(name, encoder.input, encoder.by_name["stem"].channels, observations=encoder.observations)
    for layer, full in zip(encoder.layers, dense.layers):
        if layer != full:
            sizes = f"{layer.channels} channels in groups of {layer.group}, not {full.channels} of {full.group}"
            raise UserError(f"{refusal}: {layer.name} has {sizes}")
    if encoder.output != dense.output:
        raise UserError(f"{refusal}: its compression has {encoder.output} channels instead of {dense.output}")
    if encoder.normalise != dense.normalise:
        raise UserError(f"{refusal}: running mean and variance go with rgb, and with rgb alone")
    if spec.goal_details:
        raise UserError(f"{refusal}: its agents have no goal details")
    if spec.visual_features != spec.hidden_size:
        raise UserError(f"{refusal}: visual_features is {spec.visual_features} and hidden_size {spec.hidden_size}")


def _policy_spec(state: Mapping[str, Tensor], hints: Path, order: tuple[str, ...]) -> PolicySpec:
    layers = [key for key in state if re.fullmatch(r"net\.state_encoder\.rnn\.weight_hh_l\d+", key)]
    gates, hidden = _shape(state, "net.state_encoder.rnn.weight_hh_l0", 2)
    rnn = {3 * hidden: "gru", 4 * hidden: "lstm"}.get(gates)
    if rnn is None:
        raise UserError(f"its recurrent layer has {gates} rows for {hidden} units, as neither GRU nor LSTM")
    encoder, visual = encoder_spec("blind"), hidden
    if "net.visual_fc.1.weight" in state:
        visual, flat = _shape(state, "net.visual_fc.1.weight", 2)
        encoder = _encoder_spec(state, flat, hints, order)
    actions, _ = _shape(state, "action_distribution.linear.weight", 2)
    return PolicySpec(encoder, visual, hidden, rnn, rnn_layers=len(layers), actions=actions)


def _encoder_spec(state: Mapping[str, Tensor], flat: int, hints: Path, order: tuple[str, ...]) -> EncoderSpec:
    backbone = f"{ENCODER}backbone."
    planes, channels = _shape(state, f"{backbone}conv1.0.weight", 4)[:2]
    first = _shape(state, f"{backbone}layer1.0.convs.0.weight", 4)[0]
    block = "basic"
    if f"{backbone}layer1.0.convs.6.weight" in state:
        block = "resnext" if first == 2 * planes else "bottleneck"
    if f"{backbone}layer1.0.se.excite.0.weight" in state:
        block = f"se_{block}"
    pattern = re.compile(re.escape(backbone) + r"layer(\d+)\.(\d+)\.convs\.0\.weight")
    places = {match.groups() for match in map(pattern.fullmatch, state) if match}
    blocks = tuple(sum(stage == str(s) for stage, _ in places) for s in range(1, 5))
    name = _resnet_name(block, blocks)
    if name is None:
        raise UserError(f"its encoder of {block} blocks {blocks} is none of {', '.join(RESNETS)}")
    output = _shape(state, f"{ENCODER}compression.0.weight", 4)[0]
    cells = flat // output
    side = 64 * math.isqrt(cells)  # images are halved once and then five times more
    said = _read_hints(hints)
    if "input" not in said and (side // 64) ** 2 != cells:
        example = json.dumps({"input": [channels, 192, 256]})
        raise UserError(f"its images are not square; write their size into {hints}, as in {example}")
    observations = said.get("observations") or (order if channels == 4 else None)
    input = said.get("input") or (channels, side, side)
    spec = encoder_spec(name, input, planes, output=output, observations=observations)
    return replace(spec, normalise=f"{ENCODER}running_mean_and_var._mean" in state)


def _resnet_name(block: str, blocks: tuple[int, ...]) -> str | None:
    return next((name for name, structure in RESNETS.items() if structure == (block, blocks)), None)


def _check_fits(spec: PolicySpec, state: Mapping[str, Tensor]) -> None:
    """Raise UserError where the tensors are not those of the spec; shapes that clash cost no memory."""
    with torch.device("meta"):
        expected = {key: list(value.shape) for key, value in build(spec, seed=0).state_dict().items()}
    for key in state:
        if key not in expected:
            raise UserError(f"holds {key}, which no agent has that is told {GOAL} and nothing else")
    width = spec.encoder.family != "blind" and spec.visual_features
    inputs = _shape(state, "net.state_encoder.rnn.weight_ih_l0", 2)[1] - width - 2 * EMBEDDING
    if inputs > 0 and "net.tgt_embeding.weight" in state:
        raise UserError(f"its recurrent layer reads {inputs} values beside images, {GOAL} and previous action")
    for key, shape in expected.items():
        if _shape(state, key) != tuple(shape):
            raise UserError(f"{key} is {list(state[key].shape)} where its other shapes ask for {shape}")


def _shape(state: Mapping[str, Tensor], key: str, dimensions: int | None = None) -> tuple[int, ...]:
    if key not in state:
        raise UserError(f"not a PointNav policy of habitat-baselines (it has no {key}); give the weights of one")
    shape = tuple(state[key].shape)
    if dimensions is not None and len(shape) != dimensions:
        raise UserError(f"{key} is {list(shape)}; {dimensions} dimensions are needed")
    return shape


def _read_hints(file: Path) -> dict[str, tuple]:
    """What F.pth.json, the file beside its weights, says: "input" and "observations", neither, one or both."""
    if not file.exists():
        return {}
    try:
        said = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} beside it cannot be read: {error}") from error
    known = {"input": int, "observations": str}
    fits = isinstance(said, dict) and said.keys() <= known.keys()
    if not fits or not all(isinstance(v, list) and {*map(type, v)} <= {known[key]} for key, v in said.items()):
        raise UserError(f'{file} beside it must hold {{"input": [C, H, W], "observations": [...]}}, either or both')
    return {key: tuple(value) for key, value in said.items()}

"""`navprune export`: a policy as a file that runs without navprune, with the contract that says how to call it."""

import importlib.metadata
import json
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import navprune
from navprune.checks import bounded, check_fields, chosen
from navprune.commands.environments import check_sees, training_env
from navprune.config import Config
from navprune.costs.latency import threads_of
from navprune.costs.runtimes.base import absent
from navprune.costs.runtimes.onnx import AFFINE, MOMENTS, OPSET, PLAIN, onnx_bytes, quantised
from navprune.errors import UserError
from navprune.evaluation.agents import FileAgent, PolicyAgent
from navprune.evaluation.exported import FORMATS, Step, contract_of, sha256, step_of
from navprune.files import json_bytes, write_file
from navprune.installing import DEPLOY
from navprune.models.build import FORMAT
from navprune.models.policy import PointNavPolicy
from navprune.models.step import DEPTH, OUTPUTS, PolicyStep
from navprune.models.weights import foreign_bytes, foreign_hints, hints_file
from navprune.progress import ProgressLine
from navprune.rl.checkpoints import read_metrics
from navprune.sensors import SENSORS
from navprune.source import CLASSIFIER, ENCODER, FOLDER, SPEC_FILE, Source
from navprune.tasks import GOAL
from navprune.tasks.config import TaskConfig

TOLERANCE = 1e-3
"""By which what a float32 file computes may differ from eager, as a share of what is greater than 1.

Ten times what sharply trained policies have; a GRU of the wrong form is a hundred times farther off.
"""
CHECKED_STEPS, EPISODE = 500, 25
"""Steps that every file is run over beside eager, and of how many one begins an episode on average."""
SMALL = 128 * 128
"""Pixels up to which OpenVINO is quicker with plain norms: at 64 x 64 by a third; at 256 x 256 slower by a half."""
ACTORS = 8
"""Environments at most that observations for int8 come from."""
PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino", "onnx"), "torch": ()}
"""What writes and runs a format, beside torch."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What file `run_export` or `export_classifier` writes."""

    format: str = chosen("onnx", FORMATS)
    """Format of the file."""
    int8: bool = False
    """Whether the encoder computes in int8; heads and recurrent core stay in float32."""
    calibration_steps: int = bounded(512, 1, 1e6)
    """Observations of the training split, as the policy meets them, that int8 takes its ranges from."""

    def __post_init__(self) -> None:
        check_fields("", self)
        if self.int8 and self.format == "torch":
            raise UserError("int8 is written as onnx or openvino, not as torch; choose one of those")


@dataclass(frozen=True)
class Check:
    """How far a file was from eager over `steps` steps with `episodes` beginnings: at most, and where that was.

    `deviation` is of all outputs, as a share of what is greater than 1; `logits` is the largest of the logits alone.
    """

    steps: int
    episodes: int
    deviation: float
    step: int
    logits: float


def run_export(source: Source, config: Config, out: Path, options: ExportOptions) -> dict[str, Any]:
    """Write a policy as one file (OpenVINO: two), checked beside eager, and its contract; returns the contract.

    Raises UserError for a source without weights, where the policy does not fit the task of `config`, where a package
    is missing, and where a float32 file does not compute what eager does: then nothing is written.
    """
    check_asked(source, out, options)
    policy = source.policy().eval()
    check_sees(policy.spec.encoder, config)
    if options.int8 and not policy.spec.encoder.observations:
        raise UserError(f"{source.text} is blind and has no encoder to quantise; leave out --int8")
    step = PolicyStep(policy, config.task.min_depth, config.task.max_depth)
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / out.name
        _write(step, trial, options, config)
        files = {path.name: path.read_bytes() for path in sorted(trial.parent.iterdir())}
        with threads_of(1):  # two threads on single images wait for one another, a hundred times as long
            check = checked(policy, step_of(trial), config.task)
    if not options.int8 and check.deviation > TOLERANCE:
        raise UserError(
            f"{out} was not written: at step {check.step} of {check.steps} it is {check.deviation:.2g} away from the "
            f"policy, more than {TOLERANCE:g}; try another format, or other versions of {', '.join(packages(options))}"
        )
    frames = read_metrics(source.folder).get("frames") if source.kind == FOLDER else None
    contract = {
        **told_of_files(files, options),
        "agent": {"source": source.text, "frames": frames},
        **told_of_task(step, config.task),
        "check": asdict(check),
        "calibration": {"split": config.data.train, "steps": options.calibration_steps} if options.int8 else None,
        "spec": policy.spec.to_json(),
        "config": asdict(config),
    }
    keep(out, files, contract_of(out), contract)
    return contract


def check_asked(source: Source, out: Path, options: ExportOptions) -> None:
    """Raise UserError for another suffix, for a package that is missing, and for a source without weights."""
    if out.suffix != FORMATS[options.format]:
        raise UserError(f"a file of {options.format} ends in {FORMATS[options.format]}, unlike {out}; rename it")
    if fault := absent(DEPLOY, *packages(options)):
        raise UserError(f"{options.format}: {fault}")
    check_weights(source)


def check_weights(source: Source) -> None:
    """Raise UserError for what has no weights, of which random ones would be written."""
    if source.kind in (ENCODER, CLASSIFIER, SPEC_FILE):
        raise UserError(f"{source.text} has no weights; give a checkpoint, a run or a file of weights")


def told_of_files(files: Mapping[str, bytes], options: ExportOptions) -> dict[str, Any]:
    """The part of a contract that says what the files are."""
    return {
        "format": FORMAT,
        "runtime": options.format,
        "precision": "int8" if options.int8 else "float32",
        "files": {name: sha256(data) for name, data in files.items()},
        "versions": {
            "navprune": navprune.__version__,
            **{name: importlib.metadata.version(name) for name in packages(options)},
            "opset": OPSET,
        },
    }


def keep(out: Path, files: Mapping[str, bytes], place: Path, contract: Mapping[str, Any]) -> None:
    """Write the files, and last the contract at its place."""
    for name, data in files.items():
        write_file(out.with_name(name), data)
    write_file(place, json_bytes(contract))


def packages(options: ExportOptions) -> list[str]:
    """What writes and runs the file that is asked for."""
    return list(dict.fromkeys(["torch", *PACKAGES[options.format], *["onnxruntime"] * options.int8]))


def _write(step: PolicyStep, file: Path, options: ExportOptions, config: Config) -> None:
    """Write a step in a folder of its own."""
    if options.format == "torch":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how it keeps recurrent weights, which `checked` looks after
            torch.export.save(torch.export.export(step, step.example()), file)
        return
    graph = onnx_bytes(step, step.example(), step.inputs, OUTPUTS, _form(options, step))
    if options.int8:
        numpy = ({name: tensor.numpy() for name, tensor in seen.items()} for seen in calibration(step, options, config))
        graph = quantised(graph, numpy, within="/visual_encoder/")
    write_graph(graph, file, options)


def write_graph(graph: bytes, file: Path, options: ExportOptions) -> None:
    """Write an ONNX graph as such or as OpenVINO's files."""
    if options.format == "onnx":
        file.write_bytes(graph)
        return
    import openvino

    openvino.save_model(openvino.Core().read_model(graph), file, compress_to_fp16=False)


def _form(options: ExportOptions, step: PolicyStep) -> Callable[[nn.GroupNorm], nn.Module]:
    """The form of GroupNorm that the runtime is quickest with; the plain one for int8, which the quantiser knows."""
    if options.int8:
        return PLAIN
    if options.format == "onnx":
        return AFFINE
    return MOMENTS if math.prod(step.policy.spec.encoder.input[1:]) > SMALL else PLAIN


def calibration(step: PolicyStep, options: ExportOptions, config: Config) -> Iterator[dict[str, Tensor]]:
    """Inputs of a step by name, as the policy meets them where it acts in the training split."""
    env = training_env(replace(config, environments=min(config.environments, ACTORS, options.calibration_steps)))
    try:
        agent, rng = PolicyAgent(step.policy, greedy=False), np.random.default_rng(config.trainer.seed)
        given = FileAgent(lambda inputs: {}, step.policy.spec, config.task)
        rows, masks = torch.arange(env.num_envs), torch.zeros(env.num_envs, dtype=torch.bool)
        agent.start(env.num_envs)
        observations, left = env.reset(), options.calibration_steps
        line = ProgressLine("calibrating", left, "observations")
        while left:
            given.state, given.previous = agent.state.clone(), agent.previous.clone()
            inputs = given.inputs(observations, masks)
            for row in rows[:left].tolist():
                yield {name: inputs[name][row : row + 1] for name in step.inputs}
            left -= min(left, env.num_envs)
            line.show(options.calibration_steps - left)
            moved = env.step(agent.act(observations, masks, rows, torch.from_numpy(rng.random(env.num_envs))))
            observations, masks = moved.observations, ~(moved.terminated | moved.truncated).cpu()
    finally:
        env.close()


def checked(policy: PointNavPolicy, step: Step, task: TaskConfig, steps: int = CHECKED_STEPS, seed: int = 0) -> Check:
    """Run a file's step beside the eager policy over random observations, in which episodes begin by chance.

    Each hands its own state on, so that what errs in the recurrent core adds up.
    """
    rng = torch.Generator().manual_seed(seed)
    agent, state = FileAgent(step, policy.spec, task), policy.initial_state(1)
    agent.start(1)
    found = Check(steps, 0, 0.0, 0, 0.0)
    for number in range(steps):
        goes_on = bool(number and torch.rand((), generator=rng) >= 1 / EPISODE)
        observations, mask = _imagined(policy, rng), torch.tensor([goes_on])
        agent.previous = torch.randint(policy.spec.actions, (1,), generator=rng)
        with torch.inference_mode():
            output = policy(observations, state, agent.previous, mask)
        outputs = step(agent.inputs(observations, mask))
        state, agent.state = output.state, outputs["next_state"]
        away = {name: _away(outputs[name], wanted) for name, wanted in zip(OUTPUTS, output)}
        worst = max(away.values())
        found = replace(found, episodes=found.episodes + (not goes_on))
        found = replace(found, logits=max(found.logits, float((outputs["logits"] - output.logits).abs().max())))
        if not worst <= found.deviation:  # so that NaN counts
            found = replace(found, deviation=worst, step=number)
    return found


def _away(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, as a share of what is greater than 1; infinite for what is no number."""
    away = float(((found - wanted).abs() / wanted.abs().clamp(min=1)).max())
    return away if away == away else float("inf")


def _imagined(policy: PointNavPolicy, rng: torch.Generator) -> dict[str, Tensor]:
    """Random observations as a task's sensors tell them: smooth images, a goal within ten metres."""
    height, width = policy.spec.encoder.input[1:]
    seen = {}
    for name in policy.spec.encoder.observations:
        coarse = torch.rand(1, SENSORS[name].channels, 4, 4, generator=rng) * 1.4 - 0.2
        image = F.interpolate(coarse, (height, width), mode="bilinear").clamp(0, 1).permute(0, 2, 3, 1)
        seen[name] = (image * 255).to(torch.uint8) if SENSORS[name].is_bytes else image
    rho, angle = torch.rand(2, generator=rng)
    return {**seen, GOAL: torch.stack([10 * rho, (2 * angle - 1) * torch.pi])[None]}


def told_of_task(step: PolicyStep, task: TaskConfig) -> dict[str, Any]:
    """The part of a contract that a robot must fulfil: camera, inputs and outputs, actions, how an episode begins."""
    example = dict(zip(step.inputs, step.example()))
    with torch.inference_mode():
        answer = dict(zip(OUTPUTS, step(*example.values())))
    meant = {
        "rgb": "colours, red green blue, row by row from the top left",
        DEPTH: "metres along the camera's axis (not along the ray), row by row from the top left; 0 for not measured",
        "goal": "distance to the goal in metres and its angle in radians: 0 ahead, positive to the left, -pi to pi",
        "previous_action": "the action before this step; not read where mask is 0",
        "mask": "0 at the first step of an episode, 1 at all others",
        "state": "next_state of the step before; zeros at the first step of an episode",
        "logits": "of the actions; softmax makes probabilities of them, from which the agent samples",
        "value": "the return that the critic expects",
        "next_state": "state for the next step",
    }

    def described(tensors: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        kinds = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
        return [
            {"name": name, "dtype": kinds[name], "shape": list(tensor.shape), "meaning": meant.get(name, name)}
            for name, tensor in tensors.items()
        ]

    return {
        "camera": {
            "width": task.width,
            "height": task.height,
            "hfov_degrees": task.hfov,
            "height_metres": task.camera_height,
            "min_depth_metres": task.min_depth,
            "max_depth_metres": task.max_depth,
            "sensors": list(step.sensors),
        },
        "body": {"radius_metres": task.agent_radius, "height_metres": task.agent_height},
        "inputs": described(example),
        "outputs": described(answer),
        "actions": [
            {"action": 0, "name": "stop", "meaning": "the agent holds that it is at its goal; ends the episode"},
            {"action": 1, "name": "forward", "metres": task.forward_step},
            {"action": 2, "name": "left", "degrees": task.turn_angle},
            {"action": 3, "name": "right", "degrees": task.turn_angle},
        ],
        "success_distance_metres": task.success_distance,
        "max_steps": task.max_steps,
        "episode_start": {"mask": 0, "previous_action": 0, "state": 0},
    }


def export_for_habitat_baselines(source: Source, out: Path, answer: Path | None = None) -> PointNavPolicy:
    """Write a dense policy as habitat-baselines loads it, and beside it what the shapes do not tell.

    Raises UserError for a pruned one and for a source without weights, and where `answer`, another file, would be that
    beside it.
    """
    beside = hints_file(out)
    if answer == beside:
        raise UserError(f"{beside} is where navprune looks for the images' size; give --json another name")
    check_weights(source)
    policy = source.policy()
    write_file(out, foreign_bytes(policy))
    write_file(beside, (json.dumps(foreign_hints(policy)) + "\n").encode())
    return policy

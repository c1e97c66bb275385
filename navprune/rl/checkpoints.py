"""Checkpoints: folders that are either whole or not there.

A folder holds `weights.safetensors`, `spec.json`, `config.yaml`, `metrics.json`, and `trainer.pt` where
training can go on from it; under masks `masks.safetensors`. A run folder holds `checkpoints/FRAMES/`; the highest
number is the latest, and its metrics name the best. The links `latest` and `best` are a courtesy to people: nothing
here follows them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from navprune.errors import UserError, plain
from navprune.files import json_bytes, write_folder
from navprune.models.build import FORMAT, build, known_format, spec_from_json
from navprune.models.classifiers import Classifier, ClassifierSpec
from navprune.models.policy import PointNavPolicy
from navprune.models.spec import EncoderSpec, PolicySpec
from navprune.progress import say_once
from navprune.rl.group import ENVIRONMENTS

FILES = ("weights.safetensors", "spec.json", "config.yaml", "metrics.json", "trainer.pt")
WEIGHTS, SPEC, CONFIG, METRICS, TRAINER = FILES
MASKS = "masks.safetensors"
"""Beside them where masks hold weights at zero."""
PRUNED_FROM = "pruned_from"
"""In the metrics of a checkpoint that pruning wrote: the source."""
FACTS = ("mean", "deviation", "classes")
"""In the metrics of a classifier: what images are normalised by, and what its classes are called."""
PRUNING, WIDTHS, MILLISECONDS = "pruning.json", "widths.png", "milliseconds.png"  # beside these of a pruned network
CHECKPOINTS, LATEST, BEST = "checkpoints", "latest", "best"
BEST_FRAMES = "best_frames"
"""In the metrics of a run's checkpoint: the frames of the best one by then."""
ARRAY = "__ndarray__"
TRAINER_FORMAT = 2
"""Version of `trainer.pt`; 1 had the state of one worker's environments beside everything else."""


class DamagedCheckpoint(UserError):
    """A file of a checkpoint is missing, cut off or otherwise unreadable, or its weights are not finite."""


class LoadedPolicy(NamedTuple):
    """A policy read from a checkpoint, with the metrics and the configuration (YAML) written beside it."""

    policy: PointNavPolicy
    metrics: dict[str, Any]
    config: str
    folder: Path


def save_checkpoint(
    folder: Path | str,
    policy: PointNavPolicy | Classifier,
    *,
    config: str = "",
    metrics: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    masks: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a checkpoint to `folder` in one piece, replacing the one that is there; returns the folder.

    `config` is YAML text, `metrics` JSON data, `trainer` what is needed to go on: nested dicts and lists of
    numbers, strings, tensors and arrays, `masks` {parameter name: bool, of its shape}. Raises UserError when it cannot
    be written (a full disk, say), the weights are not finite, or the folder holds anything but a checkpoint; then
    nothing is left behind and what was there before is intact.
    """
    folder = Path(folder)
    weights = {name: value.detach().cpu().contiguous() for name, value in policy.state_dict().items()}
    if name := _not_finite(weights):
        raise UserError(f"{folder} is not written: {name} of the network has values that are not finite")
    files = {
        WEIGHTS: safetensors.torch.save(weights),
        SPEC: json_bytes({"format": FORMAT, **policy.spec.to_json()}),
        CONFIG: config.encode(),
        METRICS: json_bytes(dict(metrics or {})),
    }
    if trainer is not None:
        stream = io.BytesIO()
        torch.save(pack({"format": TRAINER_FORMAT, **trainer}), stream)
        files[TRAINER] = stream.getvalue()
    if masks:
        files[MASKS] = safetensors.torch.save({name: mask.cpu().contiguous() for name, mask in masks.items()})
    check_replaceable(folder)
    write_folder(folder, files)
    return folder


def load_policy(path: Path | str, device: torch.device | str = "cpu") -> LoadedPolicy:
    """Read the policy of a checkpoint folder, or of a run folder's newest whole checkpoint.

    Raises UserError when there is none, or a file in it is missing, cut off, or does not fit its spec.
    """
    folder = find_checkpoint(path)
    read_spec(folder)
    policy = cast(PointNavPolicy, load_network(folder, device))
    return LoadedPolicy(policy, read_metrics(folder), read_config(folder), folder)


def load_classifier(path: Path | str, device: torch.device | str = "cpu") -> Classifier:
    """Read the classifier of a checkpoint folder, in evaluation mode; raises UserError as `load_policy`."""
    network = load_network(path, device)
    if not isinstance(network, Classifier):
        raise UserError(f"{path} holds no classifier; give a checkpoint of one")
    return network


def load_network(path: Path | str, device: torch.device | str = "cpu") -> PointNavPolicy | Classifier:
    """Read the policy or classifier of a checkpoint or run folder; raises UserError as `load_policy`."""
    folder = find_checkpoint(path)
    network = cast(PointNavPolicy | Classifier, build(read_any_spec(folder)))
    load_weights(folder, network)
    return network.to(device).eval()


def find_checkpoint(path: Path | str) -> Path:
    """Return the checkpoint folder that `path` is or, of a run folder, its newest whole one.

    The latest comes first, so that runs of equal length are compared at equal frames. `RUN/best` and `RUN/latest` name
    checkpoints of a run whatever stands there: a link, a copy, a text file or nothing. What is damaged is skipped,
    with a line that says so. Raises UserError where nothing is left.
    """
    path = Path(path)
    run, wanted = _run_and_name(path)
    if not numbered(run):
        for folder in (path, path / LATEST, path / BEST):
            if (folder / SPEC).is_file() or (folder / WEIGHTS).is_file():
                return folder.resolve()
        if not path.exists():
            raise UserError(f"no checkpoint at {path}: there is no such folder; give a run or a checkpoint folder")
        if numbered(parent := path.parent if path.name else path.resolve().parent):
            raise UserError(f"no checkpoint in {path}, which is a part of a run; give {parent}")
        raise UserError(f"no checkpoint in {path}: neither {SPEC} nor {CHECKPOINTS}/ with one; train one first")
    latest = first_whole(run, numbered(run), _read_all)
    if wanted == LATEST:
        return latest
    best = read_metrics(latest).get(BEST_FRAMES) or read_trainer(latest)[BEST_FRAMES]
    return first_whole(run, [best, *numbered(run)], _read_all)


def holds_checkpoint(path: Path | str) -> bool:
    """Whether `find_checkpoint` is to be asked about a path: a folder, or a run's `latest` or `best`."""
    return Path(path).is_dir() or _run_and_name(Path(path))[0] != Path(path)


def _run_and_name(path: Path) -> tuple[Path, str]:
    """The folder that `path` would be a run or part of a run by, and which of its checkpoints is meant."""
    inside = path.name in (LATEST, BEST) and bool(numbered(path.parent))
    return (path.parent, path.name) if inside else (path, LATEST)


def first_whole(run: Path, numbers: Sequence[int], read: Callable[[Path], Any]) -> Path:
    """The first of a run's checkpoints, by their frames, that can be read, with a line for each that cannot.

    `read` raises DamagedCheckpoint for those. Raises UserError where there is none.
    """
    for frames in numbers:
        folder = checkpoint_folder(run, frames)
        try:
            read(folder)
            return folder.resolve()
        except DamagedCheckpoint as error:
            if frames not in (left := numbered(run)):  # training has gone on meanwhile, and deleted it
                return first_whole(run, left, read)
            say_once(f"skipped: {error}")
    raise UserError(f"no checkpoint in {run / CHECKPOINTS} is whole; use another run")


def _read_all(folder: Path) -> None:
    read_any_spec(folder), read_metrics(folder), read_config(folder), _read_weights(folder), read_masks(folder)


def read_spec(folder: Path) -> PolicySpec:
    """Read the architecture of a checkpoint; raises UserError when it is missing, cut off or no policy's."""
    spec = read_any_spec(folder)
    if not isinstance(spec, PolicySpec):
        raise UserError(f"{folder} holds no policy but a {spec.family} alone; give a checkpoint of a policy")
    return spec


def read_any_spec(folder: Path) -> EncoderSpec | PolicySpec | ClassifierSpec:
    """Read the architecture of a checkpoint of any kind; raises UserError when it is missing or cut off."""
    return spec_from_json(known_format(folder / SPEC, _read(folder / SPEC, json.loads)))


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read what a checkpoint says of itself; raises UserError when it is missing or cut off."""
    return _read(folder / METRICS, lambda data: dict(json.loads(data)))


def read_facts(folder: Path) -> dict[str, Any]:
    """Read those of `FACTS` that a checkpoint tells; raises UserError as `read_metrics`."""
    metrics = read_metrics(folder)
    return {name: metrics[name] for name in FACTS if name in metrics}


def read_config(folder: Path) -> str:
    """Read the configuration of a checkpoint, YAML text; raises UserError when it is missing or cut off."""
    return _read(folder / CONFIG, lambda data: data.decode())


def read_masks(folder: Path) -> dict[str, Tensor]:
    """Read the masks of a checkpoint, {parameter name: bool}, none where it has none.

    Raises UserError when they are cut off or not bool.
    """
    masks = _read(folder / MASKS, safetensors.torch.load) if (folder / MASKS).exists() else {}
    if name := next((name for name, mask in masks.items() if mask.dtype != torch.bool), None):
        fault = f"that of {name} is {masks[name].dtype}"
        raise DamagedCheckpoint(f"{folder / MASKS} holds no masks: {fault}; write bool, True where a weight stays")
    return masks


def was_pruned(folder: Path) -> bool:
    """Whether a checkpoint is what pruning wrote, and not what a training made of it."""
    try:
        return PRUNED_FROM in json.loads((folder / METRICS).read_text()) and not (folder / TRAINER).exists()
    except (OSError, ValueError, TypeError):
        return False


def load_weights(folder: Path, policy: PointNavPolicy | Classifier) -> None:
    """Load a checkpoint's weights into `policy`; raises UserError when they are cut off, not finite or do not fit."""
    weights = _read_weights(folder)
    own = {name: tuple(value.shape) for name, value in policy.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in weights.items()}
    if own != theirs:
        name = next(n for n in sorted({*own, *theirs}) if own.get(n) != theirs.get(n))
        raise UserError(
            f"{folder / WEIGHTS} is of another architecture: {name} is {theirs.get(name, 'absent')} there, "
            f"{own.get(name, 'absent')} in the policy; use the {SPEC} that was written with it"
        )
    policy.load_state_dict(weights)


def read_trainer(folder: Path) -> dict[str, Any]:
    """Read the trainer's state as it was given to `save_checkpoint`; raises UserError when it is missing or cut off."""
    path, load = folder / TRAINER, partial(torch.load, map_location="cpu", weights_only=True)
    state = known_format(path, _read(path, lambda data: unpack(load(io.BytesIO(data)))), TRAINER_FORMAT)
    return state if "starts" in state else _of_format_1(state)


def _of_format_1(state: dict[str, Any]) -> dict[str, Any]:
    """The state of a trainer of format 1 as one of format 2."""
    old = state["learner"]
    if state["phase"] == "warm_start":
        own = {name: torch.stack(old[name]).movedim(2, 0) for name in ("states", "returns")}
        learner = {name: old[name] for name in ("optimiser", "collected")}
        learner[ENVIRONMENTS] = {**own, "drivers": old["drivers"]}
        starts = {"warm_start": 0}
    else:
        learner = {**old, "callbacks": state.get("callbacks", {})}
        if taught := learner["callbacks"].get("distillation"):
            learner["callbacks"] = {**learner["callbacks"], "distillation": {ENVIRONMENTS: taught}}
        starts = ({"warm_start": 0} if state["phase_start"] else {}) | {"ppo": state["phase_start"]}
    later = {"schedule_start": state["phase_start"], **state}
    return {**later, "starts": starts, "actor": {ENVIRONMENTS: state["actor"]}, "learner": learner}


def numbered(run: Path) -> list[int]:
    """Return the frames of the checkpoints in a run folder, the newest first."""
    names = (path.name for path in run.glob(f"{CHECKPOINTS}/*"))
    return sorted((int(name) for name in names if len(name) == 12 and name.isdecimal()), reverse=True)


def checkpoint_folder(run: Path, frames: int) -> Path:
    """Return where a run's checkpoint of so many frames stands."""
    return run / CHECKPOINTS / f"{frames:012}"


def check_replaceable(folder: Path) -> None:
    """Raise UserError where writing a checkpoint to `folder` would take anything else with it."""
    if Path.cwd().is_relative_to(folder.resolve()):
        raise UserError(f"{folder} is the folder we are in; choose another folder")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another folder")
    if folder.exists() and {path.name for path in folder.iterdir()} - {*FILES, MASKS, PRUNING, WIDTHS, MILLISECONDS}:
        raise UserError(f"{folder} holds other files; choose another folder")


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of tensors; raises UserError when the file is missing or cut off."""
    return _read(path, safetensors.torch.load)


def pack(value: Any, place: str = "trainer") -> Any:
    """Return nested plain data with arrays turned into tensors, so that it loads without unpickling code.

    Raises TypeError for anything else, naming its place.
    """
    if isinstance(value, np.ndarray):
        return {ARRAY: torch.from_numpy(np.ascontiguousarray(value)).reshape(value.shape)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: pack(item, f"{place}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(pack(item, f"{place}[{i}]") for i, item in enumerate(value))
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()  # a view would bring all of its storage along
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{place} is a {type(value).__name__}; a checkpoint holds plain data, tensors and arrays only")


def unpack(value: Any) -> Any:
    """Undo `pack`."""
    if isinstance(value, dict):
        return value[ARRAY].numpy() if value.keys() == {ARRAY} else {k: unpack(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(unpack(item) for item in value)
    return value


def _not_finite(weights: Mapping[str, Tensor]) -> str | None:
    return next((name for name, value in weights.items() if not value.isfinite().all()), None)


def _read_weights(folder: Path) -> dict[str, Tensor]:
    weights = _read(folder / WEIGHTS, safetensors.torch.load)
    if name := _not_finite(weights):
        raise DamagedCheckpoint(f"{folder / WEIGHTS} is of no use: {name} is not finite; use another checkpoint")
    return weights


def _read(path: Path, parse: Any) -> Any:
    try:
        return parse(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DamagedCheckpoint(f"{path} is missing; the checkpoint is not complete, use another one") from error
    except OSError as error:  # it may be whole all the same: it must not be passed over
        raise UserError(f"{path} cannot be read: {error.strerror or error}; mend that, or use another one") from error
    except UserError:
        raise
    except Exception as error:  # parsers raise what they like on damaged bytes
        raise DamagedCheckpoint(f"{path} is damaged or cut off ({plain(error)}); use another checkpoint") from error

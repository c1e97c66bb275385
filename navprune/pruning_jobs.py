"""What `navprune prune` needs beside pruning itself: what scores look at, milliseconds as a budget, and the files."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch

from navprune.errors import UserError
from navprune.evaluation.cost import cost
from navprune.evaluation.latency import RUNTIMES, measure
from navprune.models.classifiers import ClassifierSpec, classifier_spec
from navprune.models.encoders import Encoder
from navprune.models.spec import EncoderSpec, build, widths, with_widths
from navprune.progress import ProgressLine
from navprune.pruning.gates import GateConfig
from navprune.pruning.losses import (
    Batch,
    PPOTask,
    collect_observations,
    labelled_batches,
    read_labelled,
    shuffled_batches,
)
from navprune.pruning.methods import GATES
from navprune.pruning.prune import Batches, PruningResult, resized
from navprune.pruning.scores import Loss, distillation_loss
from navprune.pruning.search import LATENCY, SearchConfig, Widths
from navprune.pruning.slim import Spec, encoder_of
from navprune.pruning.trace import module_cost
from navprune.reports.plots import widths_figure
from navprune.rl.checkpoints import PRUNING, WIDTHS, load_network, write_file
from navprune.rl.ppo import PPOConfig
from navprune.tasks.pointnav import VectorEnv

DISTILLATION = "distillation"
LOSSES = ("imitation", "ppo", "classification", DISTILLATION)


@dataclass(frozen=True, kw_only=True)
class PruningOptions:
    """How `run_pruning` goes about it."""

    seed: int = 0
    """Of initial weights, of chance in scores, and of the order of observations."""
    steps: int = 400
    """Observations of each of the configured training environments that scores and gates look at; 1 or more."""
    epochs: int = 3
    """Passes of gates through them or through labelled images; of PPO the configured ones instead."""
    batch_size: int = 100
    """Observations or images of each batch; of PPO a mini-batch instead."""
    gates: GateConfig | None = None
    """How gates are learned; None for the defaults."""
    loss: str | None = None
    """imitation, ppo, classification or distillation; None is imitation for gates and ppo for other scores, of
    classifiers classification."""
    teacher: str | None = None
    """Checkpoint or run of the network that distillation compares with: the dense one, of which some is cut already."""
    images: Path | None = None
    """An .npz file of labelled images, for classification."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """What may be cut."""
    blocks: bool = False
    """Whether residual blocks may go whole."""
    latency_batch: int = 1
    """Batch size at which a budget of latency is measured."""
    latency_runtime: str = "eager"
    """Runtime in which it is."""
    frames_per_second: float | None = None
    """Of training the dense network, as `navprune benchmark training` measures it: says what the search costs."""

    def __post_init__(self) -> None:
        if self.loss not in (None, *LOSSES):
            raise UserError(f"the loss is {self.loss!r}; use {', '.join(LOSSES)}")
        if (self.loss == DISTILLATION) != bool(self.teacher):
            raise UserError("distillation and a teacher go together: give both, a checkpoint or run for the teacher")
        if self.frames_per_second is not None and not self.frames_per_second > 0:
            raise UserError(f"training runs at more than 0 frames per second, not at {self.frames_per_second:g}")
        if self.latency_runtime not in RUNTIMES:
            raise UserError(f"unknown runtime {self.latency_runtime!r}; known are {', '.join(RUNTIMES)}")


class Material(NamedTuple):
    """What a method looks at: at most so many batches and a loss, where it needs them."""

    batches: Batches | None = None
    loss: Loss | None = None
    total: int = 0

    def shown(self, title: str) -> Batches | None:
        """The batches, with a line of progress while they are looked at."""
        if self.batches is None:
            return None
        source = self.batches

        def draw(model: torch.nn.Module) -> Iterator[Any]:
            line, done = ProgressLine(title, self.total, "batches"), 0
            try:
                for batch in source(model) if callable(source) else source:
                    line.show(done, last=False)
                    done += 1
                    yield batch
            finally:
                line.show(done, last=True)

        return draw


def unpruned_classifier(name: str, options: PruningOptions) -> ClassifierSpec:
    """A dense classifier by name, for the labelled images where there are some, else for CIFAR-10 or ImageNet."""
    if options.images is None:
        return classifier_spec(name, 10 if name.startswith("cifar") else 1000)
    images, labels = read_labelled(options.images)
    _, channels, height, width = images.shape
    return classifier_spec(name, int(labels.max()) + 1, (channels, height, width))


def material(
    method: str,
    spec: Spec,
    options: PruningOptions,
    environment: Callable[[], VectorEnv],
    ppo: PPOConfig,
    closing: ExitStack,
) -> Material:
    """Draws what `method` looks at; an environment that it goes on to act in is closed with `closing`.

    Raises UserError where the kind of network and the loss do not fit together.
    """
    loss = options.loss or ("imitation" if method == GATES else "ppo")
    if loss == DISTILLATION and method != "taylor":
        raise UserError(f"distillation is a loss of taylor scores, not of {method!r}: leave it out")
    taught = distillation_loss(load_network(options.teacher)) if options.teacher else None
    epochs = options.epochs if method == GATES else 1
    generator = torch.Generator().manual_seed(options.seed)
    if isinstance(spec, ClassifierSpec) or loss == "classification":
        images, labels = _labelled(spec, options)
        batches = labelled_batches(images, labels, options.batch_size, epochs, generator)
        return Material(batches, taught, epochs * (len(images) // options.batch_size))
    if method == "activation" and options.loss:
        raise UserError(f"activation follows no loss, of {options.loss} neither: leave it out")
    if loss == "ppo" and method != "activation":
        env = environment()
        closing.callback(env.close)
        rollouts = max(1, options.steps // ppo.steps)
        if method != GATES:  # while nothing learns, a second pass says what the first one said
            ppo = replace(ppo, epochs=1)
        task = PPOTask(env, ppo, rollouts, options.seed)
        return Material(task.batches, task.loss, rollouts * ppo.epochs * ppo.minibatches)
    if method != GATES and loss == "imitation" and options.loss:
        raise UserError(
            f"imitation learns a readout along with gates; {method!r} scores follow ppo's loss: leave it out"
        )
    env = environment()
    closing.callback(env.close)

    def observed(_model: torch.nn.Module) -> Iterator[Batch]:
        data = collect_observations(env, options.steps, np.random.default_rng(options.seed))
        return shuffled_batches(data, options.batch_size, epochs, generator)

    return Material(observed, taught, epochs * (options.steps * env.num_envs // options.batch_size))


def _labelled(spec: Spec, options: PruningOptions) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels that fit the classifier."""
    if not isinstance(spec, ClassifierSpec):
        raise UserError("classification needs a classifier, such as cifar_resnet56; encoders use imitation or ppo")
    if options.loss not in (None, "classification", DISTILLATION):
        known = f"classification or {DISTILLATION}"
        raise UserError(f"{spec.family} classifies images: its loss is {known}, not {options.loss}")
    if options.images is None:
        raise UserError("classification looks at labelled images: give an .npz file with images and labels")
    images, labels = read_labelled(options.images)
    if tuple(images.shape[1:]) != spec.input or labels.max() >= spec.classes:
        found = f"{list(images.shape[1:])} with {int(labels.max()) + 1} classes"
        wanted = f"{list(spec.input)} with {spec.classes}"
        raise UserError(f"{options.images} holds images of {found}, and {spec.family} takes {wanted}")
    return images, labels


def latency_costs(
    budget: Mapping[str, float], spec: Spec, options: PruningOptions, device: torch.device
) -> dict[str, Callable[[Widths], float]]:
    """{"latency": widths -> share of the dense encoder's milliseconds} where the budget names it."""
    if LATENCY not in budget:
        return {}
    encoder = encoder_of(spec)
    if not isinstance(encoder, EncoderSpec):
        raise UserError(f"latency is measured of visual encoders, not of {encoder.family}; budget macs and parameters")
    share = latency_share(encoder, options.latency_batch, options.latency_runtime, device)
    units = sum(channels // encoder.units[name] for name, channels in widths(encoder).items())
    line, asked = ProgressLine("latency", 1 + units.bit_length(), "networks"), count(1)  # as many as a bisection asks

    def shown(channels: Widths) -> float:
        answer = share(channels)
        line.show(next(asked), f"{answer:.0%} of the dense encoder's time", last=True)
        return answer

    return {LATENCY: shown}


def latency_share(
    dense: EncoderSpec,
    batch_size: int = 1,
    runtime: str = "eager",
    device: str | torch.device = "cpu",
    repeats: int = 40,
) -> Callable[[Widths], float]:
    """Widths -> share of the dense encoder's forward time: builds the encoder and measures it.

    Each answer is the ratio of two medians of `repeats` passes; the two encoders take turns, so that a machine that
    slows down slows both. It still varies by some per cent from one asking to the next.
    """
    whole = build(dense, 0)

    def share(channels: Widths) -> float:
        small = build(resized(dense, channels), 0)
        assert isinstance(whole, Encoder) and isinstance(small, Encoder)
        rows = measure({"dense": whole, "slim": small}, [batch_size], [runtime], device, repeats)
        saved = rows[1].saving_realised
        if saved is None:
            raise UserError(f"latency cannot be measured in {runtime}: {rows[1].note or rows[0].note}; use eager")
        return 1 - saved

    return share


def count_cost(spec: EncoderSpec) -> dict[str, float]:
    """What budgets refer to: multiply-accumulates and parameters in the convention of table 1."""
    counted = cost(spec)
    return {"macs": counted.table1_macs, "parameters": counted.table1_parameters}


def pruning_json(
    result: PruningResult, total_frames: int | None = None, frames_per_second: float | None = None
) -> dict[str, Any]:
    """The JSON form of a pruning: what was asked, what it cost before and after, and every width.

    With the `total_frames` of the training that follows, it also has the frames that cost as much as the dense
    network's; with its `frames_per_second`, the share that the search takes of the dense network's training, which
    is what pruning from scratch saves.
    """
    assert result.dense is not None
    before, after = (_cost_json(encoder_of(spec)) for spec in (result.dense, result.spec))
    answer = result.to_json() | {"before": before, "after": after}
    if total_frames:
        training: dict[str, float] = {
            "frames": total_frames,
            "equal_compute_frames": round(total_frames * result.equal_compute),
        }
        if frames_per_second:
            dense = total_frames / frames_per_second
            training |= {"frames_per_second": frames_per_second, "search_share": result.search_seconds / dense}
        answer["training"] = training
    return answer


def with_costs(pruning: dict[str, Any], dense: Spec) -> dict[str, Any]:
    """The JSON form of a pruning of `dense` (of its encoder) with its costs "before" and "after"."""
    encoder = encoder_of(dense)
    left = {name: after for name, (_, after) in pruning["widths"].items() if after}
    small = with_widths(encoder, left).without_blocks(pruning.get("blocks_removed", []))
    return pruning | {"before": _cost_json(encoder), "after": _cost_json(small)}


def _cost_json(spec: EncoderSpec | ClassifierSpec) -> dict[str, Any]:
    if isinstance(spec, EncoderSpec):
        return cost(spec).to_json()
    with torch.device("meta"):
        model = build(spec)
    return {"deployed": module_cost(model, torch.empty(1, *spec.input))({}), "input": list(spec.input)}


def write_pruning(folder: Path, answer: Mapping[str, Any]) -> None:
    """Writes pruning.json and the picture of the widths beside a slim checkpoint."""
    write_file(folder / PRUNING, (json.dumps(answer, indent=2) + "\n").encode())
    with TemporaryDirectory() as temporary:
        picture = Path(temporary) / WIDTHS
        widths_figure(picture, answer)
        write_file(folder / WIDTHS, picture.read_bytes())


def next_step(
    out: Path, result: PruningResult, answer: Mapping[str, Any], *, scratch: bool = False, equal_compute: bool = False
) -> str:
    """What to do with a slim checkpoint: the command that trains an agent, or how a classifier is loaded."""
    if isinstance(result.dense, ClassifierSpec):
        code = f"navprune.rl.checkpoints.load_classifier({str(out)!r})"
        if scratch or equal_compute:
            code = f"navprune.models.spec.build({code}.spec, seed)  # new weights"
        return f"slim checkpoint in {out}; load it in Python with\n  {code}"
    command = training_command(out, answer, scratch=scratch, equal_compute=equal_compute)
    return f"slim checkpoint in {out}; train it with\n  {command}"


def training_command(
    out: Path, answer: Mapping[str, Any], *, scratch: bool = False, equal_compute: bool = False
) -> str:
    """The command that trains a slim agent: from `scratch`, then also for as much compute as the dense network's."""
    parts = [f"navprune train --config {out}/config.yaml init={out} run={out}_run"]
    if scratch or equal_compute:
        parts.append("init_weights=false")
    if equal_compute:
        parts.append(f"trainer.total_frames={answer['training']['equal_compute_frames']}")
    return " ".join(parts)

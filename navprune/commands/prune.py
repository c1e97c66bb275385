"""`navprune prune`: a network, a method and a budget to a slim checkpoint."""

import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch

from navprune.commands.classification import classifier_of, images_to_look_at
from navprune.commands.evidence import material
from navprune.config import Config, to_yaml
from navprune.costs.counting import cost_json
from navprune.costs.probing import Timer
from navprune.costs.runtimes import runtime_of
from navprune.errors import UserError
from navprune.files import check_writable, json_bytes, write_file
from navprune.images.splits import TRAIN, open_images
from navprune.models.build import Spec
from navprune.models.classifiers import Classifier, ClassifierSpec
from navprune.models.policy import PointNavPolicy
from navprune.progress import say_once
from navprune.pruning.config import (
    KNOWN,
    LATENCY,
    LATENCY_MS,
    ClockConfig,
    EvidenceConfig,
    PruningConfig,
    budget_of,
)
from navprune.pruning.methods import PROBE, method_for
from navprune.pruning.methods.base import BATCHES, CLOCK
from navprune.pruning.prune import PruningResult, prune
from navprune.reports.plots import milliseconds_figure, widths_figure
from navprune.rl.checkpoints import (
    MILLISECONDS,
    PRUNED_FROM,
    PRUNING,
    WIDTHS,
    check_replaceable,
    read_facts,
    read_masks,
    save_checkpoint,
    was_pruned,
)
from navprune.rl.devices import device_of
from navprune.source import CLASSIFIER, FOLDER, NAMED, WEIGHTS_FILE, Source


def run_pruning(
    text: str, asked: PruningConfig, out: Path, config: Config, *, seed: int = 0, frames_per_second: float | None = None
) -> PruningResult:
    """Prune what is named (see `Source`) as `asked`; writes a slim checkpoint, pruning.json and widths.png to `out`.

    What methods look at comes from the configured training environments, of classifiers from labelled images. `seed`
    is that of initial weights, of chance in scores and of the order of observations. `frames_per_second` of training
    the dense network, as `navprune benchmark training` measures it, say what the search costs.
    """
    if frames_per_second is not None and not frames_per_second > 0:
        raise UserError(f"training runs at more than 0 frames per second, not at {frames_per_second:g}")
    method, budget, source = method_for(asked), budget_of(asked, KNOWN), Source.parse(text)
    evidence = asked.evidence
    check_out(out, source, evidence)
    network, spec = network_of(source, config, evidence, seed)
    if source.kind == FOLDER and read_masks(source.folder):
        say_once(f"masks of {text} are left behind: what they hold at zero and is not cut may learn again")
    with ExitStack() as closing:
        device = device_of(config.trainer.device)
        timed = CLOCK in method.needs or budget.keys() & {LATENCY, LATENCY_MS}
        clock = timer_of(asked.clock, device) if timed else None
        batches, loss = material(method, spec, evidence, config, seed, closing)
        where = device if BATCHES in method.needs else "cpu"
        cut = prune(network, asked, seed=seed, batches=batches, loss=loss, clock=clock, device=where)
    model = cast(PointNavPolicy | Classifier, cut.model)
    save_checkpoint(out, model, config=to_yaml(config), metrics=told_of_pruned(source))
    write_pruning(out, pruning_json(cut, training_frames(config), frames_per_second))
    return cut


def told_of_pruned(source: Source) -> dict[str, Any]:
    """The metrics of a checkpoint that was made of a source: its name, and what its images were normalised by."""
    return {PRUNED_FROM: source.text, **(read_facts(source.folder) if source.kind == FOLDER else {})}


def network_of(
    source: Source, config: Config, evidence: EvidenceConfig, seed: int
) -> tuple[torch.nn.Module | Spec, Spec]:
    """What is to be pruned, with its weights where it has some, and its spec.

    Raises UserError where labelled images go with anything but a classifier.
    """
    weights = source.kind in (WEIGHTS_FILE, FOLDER)
    network = source.load(config, seed) if weights else unpruned(source, config, evidence.images)
    spec = network.spec if isinstance(network, torch.nn.Module) else network
    if evidence.images and not isinstance(spec, ClassifierSpec):
        raise UserError(
            f"{evidence.images}: labelled images are for classifiers, which {source.text} is not; leave them out"
        )
    return network, spec


def check_out(out: Path, source: Source, evidence: EvidenceConfig) -> None:
    """Raise UserError where `out` cannot be written, or would take the place of anything but a slim checkpoint."""
    check_replaceable(out)
    if out.is_dir() and any(out.iterdir()) and not was_pruned(out):
        raise UserError(f"{out} is a checkpoint that was not made by pruning; choose another folder")
    for asked in [source, *([Source.parse(evidence.teacher)] if evidence.teacher else [])]:
        given = asked.folder if asked.kind == FOLDER else asked.path
        if asked.kind not in NAMED and out.resolve() in (given.resolve(), given.resolve().parent):
            raise UserError(f"{out} holds the network {asked.text}, which is asked for; choose another folder")
    check_writable(out.resolve().parent)


def timer_of(clock: ClockConfig, device: torch.device) -> Timer:
    """What measures milliseconds; raises UserError for a runtime that is unknown or does not run here."""
    runtime = runtime_of(clock.runtime)
    if fault := runtime.missing(device):
        raise UserError(f"latency cannot be measured in {runtime.name}: {fault}")
    return Timer(runtime, device, clock.threads, clock.batch)


def training_frames(config: Config) -> int:
    """Environment steps, or images, that the training of a configuration takes in."""
    if config.images is None:
        return config.trainer.total_frames
    return config.supervised.frames(len(open_images(config.images, TRAIN)))


def pruning_json(result: PruningResult, total_frames: int, frames_per_second: float | None = None) -> dict[str, Any]:
    """The JSON form of a pruning: what was asked, what it cost before and after, and every width.

    Of the training that follows it has the `total_frames`, and those that cost as much as the dense network's; with
    its `frames_per_second` the share that the search takes of the dense network's training, which is what pruning
    from scratch saves.
    """
    assert result.dense is not None
    equal = round(total_frames * result.equal_compute)
    training: dict[str, float] = {"frames": total_frames, "equal_compute_frames": equal}
    if frames_per_second:
        share = result.search_seconds * frames_per_second / total_frames
        training |= {"frames_per_second": frames_per_second, "search_share": share}
    return with_costs(result.to_json(), result.dense, result.spec) | {"training": training}


def with_costs(pruning: dict[str, Any], dense: Spec, small: Spec) -> dict[str, Any]:
    """The JSON form of a pruning of `dense` to `small` with the costs of their encoders, "before" and "after"."""
    return pruning | {"before": cost_json(dense), "after": cost_json(small)}


def write_pruning(folder: Path, answer: Mapping[str, Any]) -> None:
    """Write pruning.json beside a slim checkpoint, and pictures of its widths and, after a probe, of milliseconds."""
    write_file(folder / PRUNING, json_bytes(answer))
    with TemporaryDirectory() as temporary:
        pictures = [Path(temporary) / WIDTHS]
        widths_figure(pictures[0], answer)
        if PROBE in answer:
            pictures.append(Path(temporary) / MILLISECONDS)
            milliseconds_figure(pictures[1], answer[PROBE])
        for picture in pictures:
            write_file(folder / picture.name, picture.read_bytes())


def next_step(
    out: Path, answer: Mapping[str, Any], config: Config, *, scratch: bool = False, equal_compute: bool = False
) -> str:
    """What to do with a slim checkpoint: the command that trains it, or code that loads a classifier without images.

    From `scratch` it begins with new weights; so it does for as much compute as the dense network's.
    """
    new = scratch or equal_compute
    classifies = "table1" not in answer["before"]
    if classifies and config.images is None:
        code = f"navprune.rl.checkpoints.load_classifier({str(out)!r})"
        step = f"navprune.models.build.build({code}.spec, seed)  # new weights" if new else code
        return f"slim checkpoint in {out}; load it in Python with\n  {step}"
    words = ["navprune", "train", "--config", f"{out}/config.yaml", f"init={out}", f"run={out}_run"]
    words += ["init_weights=false"] if new else []
    epochs = f"supervised.epochs={config.supervised.epochs * answer['equal_compute']:g}"
    frames = f"trainer.total_frames={answer['training']['equal_compute_frames']}"
    words += [epochs if classifies else frames] if equal_compute else []
    return f"slim checkpoint in {out}; train it with\n  {shlex.join(words)}"


def unpruned(source: Source, config: Config, images: str | None) -> Spec:
    """The spec that has no weights yet.

    A classifier's name stands for one of labelled `images`, where given, or of those that the configuration names.
    """
    named = images_to_look_at(images, config)
    if source.kind != CLASSIFIER or named is None:
        return source.spec(config)
    return classifier_of(config, open_images(named, TRAIN), source.text)

"""`navprune prune`: a network, a method and a budget to a slim checkpoint."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch

from navprune.commands.evidence import PruningOptions, material
from navprune.comparisons import torch_pruning
from navprune.config import Config, to_yaml
from navprune.costs.counting import cost
from navprune.costs.latency import measure
from navprune.errors import UserError
from navprune.files import check_writable, json_bytes, write_file
from navprune.models.build import build
from navprune.models.classifiers import Classifier, ClassifierSpec, classifier_spec
from navprune.models.encoders import Encoder
from navprune.models.policy import PointNavPolicy
from navprune.models.spec import EncoderSpec
from navprune.models.widths import widths
from navprune.progress import ProgressLine
from navprune.pruning.losses import read_labelled
from navprune.pruning.methods import NEEDS_BATCHES
from navprune.pruning.prune import PruningResult, prune, resized
from navprune.pruning.search import LATENCY, Widths
from navprune.pruning.slim import Spec, encoder_of
from navprune.pruning.trace import module_cost
from navprune.reports.plots import widths_figure
from navprune.rl.checkpoints import PRUNED_FROM, PRUNING, WIDTHS, check_replaceable, save_checkpoint, was_pruned
from navprune.rl.trainer import device_of
from navprune.source import CLASSIFIER, FOLDER, NAMED, WEIGHTS_FILE, Source


def run_pruning(
    text: str, method: str, budget: Mapping[str, float], out: Path, config: Config, **options: Any
) -> PruningResult:
    """Prune what is named (see `Source`) to a budget; writes a slim checkpoint, pruning.json and widths.png to `out`.

    `options` are the fields of `PruningOptions`. What scores and gates look at comes from the configured training
    environments, of classifiers from labelled images.
    """
    how, source = PruningOptions(**options), Source.parse(text)
    _check_out(out, [source, *([Source.parse(how.teacher)] if how.teacher else [])])
    weights = source.kind in (WEIGHTS_FILE, FOLDER)
    network = source.load(config, how.seed) if weights else unpruned(source, config, how.images)
    spec = network.spec if isinstance(network, torch.nn.Module) else network
    if how.images and not isinstance(spec, ClassifierSpec):
        raise UserError(f"{how.images}: labelled images are for classifiers, which {text} is not; leave them out")
    asked: dict[str, Any] = {"seed": how.seed, "config": how.search, "blocks": how.blocks}
    if method == torch_pruning.TORCH_PRUNING:
        cut = torch_pruning.prune(network, budget, count_cost, **asked)
    else:
        with ExitStack() as closing:
            batches, loss = material(method, spec, how, config, closing)
            device = device_of(config.trainer.device)
            if LATENCY in budget:
                share = latency_share(encoder_of(spec), how.latency_batch, how.latency_runtime, device)
                asked["costs"] = {LATENCY: share}
            asked |= {"batches": batches, "loss": loss, "gates": how.gates}
            asked["device"] = device if method in NEEDS_BATCHES else "cpu"
            cut = prune(network, method, budget, count_cost, **asked)
    model = cast(PointNavPolicy | Classifier, cut.model)
    save_checkpoint(out, model, config=to_yaml(config), metrics={PRUNED_FROM: text})
    write_pruning(out, pruning_json(cut, config.trainer.total_frames, how.frames_per_second))
    return cut


def _check_out(out: Path, sources: Sequence[Source]) -> None:
    """Raise UserError where `out` cannot be written, or would take the place of anything but a slim checkpoint."""
    check_replaceable(out)
    if out.is_dir() and any(out.iterdir()) and not was_pruned(out):
        raise UserError(f"{out} is a checkpoint that was not made by pruning; choose another folder")
    for source in sources:
        given = source.folder if source.kind == FOLDER else source.path
        if source.kind not in NAMED and out.resolve() in (given.resolve(), given.resolve().parent):
            raise UserError(f"{out} holds the network {source.text}, which is asked for; choose another folder")
    check_writable(out.resolve().parent)


def latency_share(
    dense: EncoderSpec | ClassifierSpec,
    batch_size: int = 1,
    runtime: str = "eager",
    device: str | torch.device = "cpu",
    repeats: int = 40,
) -> Callable[[Widths], float]:
    """Widths -> share of the dense encoder's forward time: builds the encoder and measures it.

    Each answer is the ratio of two medians of `repeats` passes; the two encoders take turns, so that a machine that
    slows down slows both. It still varies by some per cent from one asking to the next. Raises UserError for a
    classifier.
    """
    if not isinstance(dense, EncoderSpec):
        raise UserError(f"latency is measured of visual encoders, not of {dense.family}; budget macs and parameters")
    whole = build(dense, 0)
    units = sum(channels // dense.unit_channels[name] for name, channels in widths(dense).items())
    line, asked = ProgressLine("latency", 1 + units.bit_length(), "networks"), count(1)  # as many as a bisection asks

    def share(channels: Widths) -> float:
        small = build(resized(dense, channels), 0)
        assert isinstance(whole, Encoder) and isinstance(small, Encoder)
        rows = measure({"dense": whole, "slim": small}, [batch_size], [runtime], device, repeats)
        saved = rows[1].saving_realised
        if saved is None:
            raise UserError(f"latency cannot be measured in {runtime}: {rows[1].note or rows[0].note}; use eager")
        line.show(next(asked), f"{1 - saved:.0%} of the dense encoder's time", last=True)
        return 1 - saved

    return share


def count_cost(spec: EncoderSpec) -> dict[str, float]:
    """What budgets refer to: multiply-accumulates and parameters in the convention of table 1."""
    counted = cost(spec)
    return {"macs": counted.table1_macs, "parameters": counted.table1_parameters}


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
    return pruning | {"before": _cost_json(encoder_of(dense)), "after": _cost_json(encoder_of(small))}


def _cost_json(spec: EncoderSpec | ClassifierSpec) -> dict[str, Any]:
    if isinstance(spec, EncoderSpec):
        return cost(spec).to_json()
    with torch.device("meta"):
        model = build(spec)
    return {"deployed": module_cost(model, torch.empty(1, *spec.input))({}), "input": list(spec.input)}


def write_pruning(folder: Path, answer: Mapping[str, Any]) -> None:
    """Write pruning.json and the picture of the widths beside a slim checkpoint."""
    write_file(folder / PRUNING, json_bytes(answer))
    with TemporaryDirectory() as temporary:
        picture = Path(temporary) / WIDTHS
        widths_figure(picture, answer)
        write_file(folder / WIDTHS, picture.read_bytes())


def next_step(out: Path, answer: Mapping[str, Any], *, scratch: bool = False, equal_compute: bool = False) -> str:
    """What to do with a slim checkpoint: the command that trains an agent, or the code that loads a classifier.

    From `scratch` it begins with new weights; so it does for as much compute as the dense network's.
    """
    new = scratch or equal_compute
    if "table1" not in answer["before"]:  # a classifier
        code = f"navprune.rl.checkpoints.load_classifier({str(out)!r})"
        step = f"navprune.models.build.build({code}.spec, seed)  # new weights" if new else code
        return f"slim checkpoint in {out}; load it in Python with\n  {step}"
    words = ["navprune", "train", "--config", f"{out}/config.yaml", f"init={out}", f"run={out}_run"]
    words += ["init_weights=false"] if new else []
    words += [f"trainer.total_frames={answer['training']['equal_compute_frames']}"] if equal_compute else []
    return f"slim checkpoint in {out}; train it with\n  {shlex.join(words)}"


def unpruned(source: Source, config: Config, images: Path | None) -> Spec:
    """The spec that has no weights yet; a classifier's name stands for one of labelled `images`, where given."""
    if source.kind != CLASSIFIER or images is None:
        return source.spec(config)
    shown, labels = read_labelled(images)
    _, channels, height, width = shown.shape
    return classifier_spec(source.text, int(labels.max()) + 1, (channels, height, width))

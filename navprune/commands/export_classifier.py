"""`navprune export` of a classifier: a file that runs without navprune, with the contract that says how to call it."""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch

from navprune.commands.export import (
    TOLERANCE,
    ExportOptions,
    check_asked,
    keep,
    packages,
    told_of_files,
    write_graph,
)
from navprune.costs.latency import threads_of
from navprune.costs.runtimes.onnx import BATCH, onnx_bytes
from navprune.errors import UserError, plain
from navprune.evaluation.exported import CLASSIFIER_CONTRACT, Step, contract_of, step_of
from navprune.models.classifiers import Classifier, ClassifierSpec
from navprune.rl.checkpoints import read_metrics
from navprune.source import CLASSIFIER, FOLDER, Source

IMAGES, LOGITS = "images", "logits"
"""Names of a classifier's input and output."""
CHECKED_BATCHES = (1, 7) * 4
"""Images that a classifier's file is given at once, beside eager."""


@dataclass(frozen=True)
class ImagesCheck:
    """How far a classifier's file was from eager over random `images`: at most, and of how many the class was the same.

    `deviation` is a share of the largest logit, where that is greater than 1; `logits` is the difference itself.
    """

    images: int
    deviation: float
    logits: float
    same_class: int


def export_classifier(source: Source, out: Path, options: ExportOptions) -> dict[str, Any]:
    """Write a classifier as one file (OpenVINO: two) for any number of images, checked beside eager, and its contract.

    Returns the contract. The `mean` and `deviation` of each channel, which images are normalised by, and the `names` of
    the classes are those of the checkpoint's metrics, None where it does not tell them. Raises UserError as
    `run_export`, for int8, and for a network that the format cannot hold.
    """
    check_asked(source, out, options)
    if options.int8:
        raise UserError(f"{source.text} is a classifier, and int8 takes its ranges from a policy's task: leave it out")
    model = cast(Classifier, source.load()).eval()
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / out.name
        _write_classifier(model, trial, options)
        files = {path.name: path.read_bytes() for path in sorted(trial.parent.iterdir())}
        with threads_of(1):
            check = checked_classifier(model, step_of(trial, [LOGITS]))
    if not check.deviation <= TOLERANCE:
        raise UserError(
            f"{out} was not written: it is {check.deviation:.2g} away from the classifier, more than {TOLERANCE:g}; "
            f"try another format, or other versions of {', '.join(packages(options))}"
        )
    metrics = read_metrics(source.folder) if source.kind == FOLDER else {}
    contract = {
        "kind": CLASSIFIER,
        **told_of_files(files, options),
        "source": source.text,
        **told_of_images(model.spec),
        "mean": metrics.get("mean"),
        "deviation": metrics.get("deviation"),
        "names": metrics.get("classes"),
        "check": asdict(check),
        "spec": model.spec.to_json(),
    }
    keep(out, files, contract_of(out, CLASSIFIER_CONTRACT), contract)
    return contract


def told_of_images(spec: ClassifierSpec) -> dict[str, Any]:
    """The part of a classifier's contract that says what goes in and what comes out."""
    meaning = "pixels as the data stores them (bytes: 0 to 255), rows from the top, minus `mean`, over `deviation`"
    images = {"name": IMAGES, "dtype": "float32", "shape": [BATCH, *spec.input], "meaning": meaning}
    scores = "of the classes; softmax makes probabilities of them"
    logits = {"name": LOGITS, "dtype": "float32", "shape": [BATCH, spec.classes], "meaning": scores}
    return {"inputs": [images], "outputs": [logits], "classes": spec.classes}


def checked_classifier(
    model: Classifier, step: Step, batches: Sequence[int] = CHECKED_BATCHES, seed: int = 0
) -> ImagesCheck:
    """Run a classifier's file beside the eager one over batches of noise with the mean 0 and the deviation 1."""
    rng, found = torch.Generator().manual_seed(seed), ImagesCheck(0, 0.0, 0.0, 0)
    for count in batches:
        images = torch.randn(count, *model.spec.input, generator=rng)
        with torch.inference_mode():
            wanted = model(images)
        logits = step({IMAGES: images})[LOGITS]
        away = float((logits - wanted).abs().max())
        share = away / max(1.0, float(wanted.abs().max()))
        found = ImagesCheck(
            found.images + count,
            max(found.deviation, share if share == share else math.inf),
            max(found.logits, away if away == away else math.inf),
            found.same_class + int((logits.argmax(1) == wanted.argmax(1)).sum()),
        )
    return found


def _write_classifier(model: Classifier, file: Path, options: ExportOptions) -> None:
    """Write a classifier in a folder of its own; raises UserError where the format has no words for it."""
    example = torch.zeros(2, *model.spec.input)
    try:
        if options.format == "torch":
            shapes = {IMAGES: {0: torch.export.Dim(BATCH)}}
            torch.export.save(torch.export.export(model, (example,), dynamic_shapes=shapes), file)
        else:
            write_graph(onnx_bytes(model, (example,), [IMAGES], [LOGITS], any_batch=True), file, options)
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(f"{options.format} cannot hold this classifier ({plain(error)}); try --format torch") from None

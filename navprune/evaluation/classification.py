"""Accuracy and cross-entropy of a classifier, with their confidence, over every image of a split."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from navprune.evaluation.statistics import Floats, spreads
from navprune.files import write_file
from navprune.images.measures import PREDICTION, measured
from navprune.images.splits import Images
from navprune.models.classifiers import Classifier
from navprune.models.modes import evaluating
from navprune.progress import ProgressLine

BATCH = 64
"""Images at once; of VGG16 at 224 x 224 they take some 2 GiB."""


@dataclass(frozen=True)
class Classification:
    """What a classifier said of the M images of a split.

    `labels` and `predictions` are int64 [M], numbers of `classes`; `figures` are {measure: float64 [M]}: top1 and top5
    (1 where the label is the likeliest class, or among the five likeliest, else 0) and the cross-entropy in nats.
    `measures` is {name: {"mean", "low", "high"}} with the 95 % interval of the mean over images.
    """

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    figures: dict[str, Floats]
    measures: dict[str, dict[str, float]]
    images_per_second: float

    strata = None
    """Images are drawn alike, whatever their class."""

    @property
    def groups(self) -> list[str]:
        """The class of each image."""
        return [self.classes[label] for label in self.labels]

    def values(self, measure: str) -> Floats:
        """A measure [M]."""
        return self.figures[measure]

    def over(self, runs: Sequence[Any]) -> Classification:
        """This one with the means of several `runs` on the same images, and their mean rate."""
        values = {name: np.stack([run.figures[name] for run in runs]) for name in self.figures}
        rate = sum(run.images_per_second for run in runs) / len(runs)
        return replace(self, measures=spreads(values), images_per_second=rate)

    def to_json(self, split: str) -> dict:
        """Return the summary that `navprune evaluate --json` writes."""
        told = {"split": split, "images": len(self.labels), "classes": len(self.classes)}
        return {**told, "measures": self.measures, "images_per_second": self.images_per_second}

    def write_images(self, path: Path) -> None:
        """Write one JSON line for each image: its place in the split, label, prediction and measures."""
        figures = {name: values.tolist() for name, values in self.figures.items()}
        lines = []
        for index, (label, said) in enumerate(zip(self.labels, self.predictions)):
            record = {"index": index, "label": self.classes[label], "prediction": self.classes[said]}
            lines.append(json.dumps(record | {name: values[index] for name, values in figures.items()}) + "\n")
        write_file(path, "".join(lines).encode())


@torch.inference_mode()
def classify(
    network: Classifier, images: Images, batch: int = BATCH, progress: ProgressLine | None = None
) -> Classification:
    """Let a network tell all `images` apart, on the device where it lies, by so many at once."""
    device, began = next(network.parameters()).device, time.perf_counter()
    parts, done = list[dict[str, torch.Tensor]](), 0
    batches = ((images.views(rows), images.labels[rows]) for rows in torch.arange(len(images)).split(batch))
    with evaluating(network):
        for part in measured(lambda views: network(views.to(device)), batches):
            parts.append(part)
            done += len(part[PREDICTION])
            if progress is not None:
                progress.show(done)
    found = {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}
    predictions = found.pop(PREDICTION)
    rate = len(images) / (time.perf_counter() - began)
    figures = {name: values.astype(np.float64) for name, values in found.items()}
    measures = spreads({name: values[None] for name, values in figures.items()})
    return Classification(images.classes, images.labels.numpy(), predictions, figures, measures, rate)

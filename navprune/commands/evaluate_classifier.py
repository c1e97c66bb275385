"""`navprune evaluate` of a classifier: every image of a split of labelled images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from navprune.commands.classification import check_fits, classifier_of, images_of
from navprune.config import Config
from navprune.errors import UserError
from navprune.evaluation.classification import Classification, classify
from navprune.evaluation.exported import read_exported
from navprune.files import check_writable, json_bytes, write_file
from navprune.images.splits import TEST, Images, open_images
from navprune.models.build import build
from navprune.models.classifiers import Classifier
from navprune.progress import ProgressLine
from navprune.reports.kinds import CLASSIFIER as KIND
from navprune.reports.kinds import Kind
from navprune.rl.checkpoints import FACTS, read_facts, read_metrics
from navprune.rl.devices import default_device
from navprune.source import CLASSIFIER, CONTROL, EXPORTED, FOLDER, Source

PARTED = ("test", "split_seed", "validation", "size")
"""Settings of images by which training images are parted from others, and brought to the network's input."""


@dataclass(frozen=True)
class OpenedClassifier:
    """A classifier that has been read, the images that it is to tell apart, and what a summary tells."""

    kind: ClassVar[Kind] = KIND

    source: Source
    network: Classifier
    split: str
    images: Images
    told: dict[str, Any]

    @property
    def timed(self) -> Classifier:
        """What costs are counted and milliseconds measured of."""
        return self.network

    def conditions(self, *_: object) -> dict[str, Any]:
        """What the numbers of an evaluation depend on beside the network: a digest of the images."""
        return {"images": self.images.digest}


def run_classification(given: OpenedClassifier, out: Path | None = None) -> Classification:
    """Tell all images of the split apart; with `out` write summary.json and images.jsonl there."""
    if out:
        check_writable(out)
    line = ProgressLine(f"evaluating {given.source.place.name}", len(given.images), "images")
    result = classify(given.network.to(default_device()), given.images, progress=line)
    if out:
        told = result.to_json(given.split) | given.told | {"conditions": given.conditions()}
        write_file(out / "summary.json", json_bytes(told))
        result.write_images(out / "images.jsonl")
    return result


def opened_classifier(source: Source, config: Config, split: str = TEST) -> OpenedClassifier:
    """Read a classifier, of a run in training what is its latest now, and the images of a split.

    A classifier's name stands for that of the configuration's images, with random weights. Raises UserError for
    anything else than a classifier of such images.
    """
    images = open_images(images_of(config), split)
    if source.kind == EXPORTED:
        read_exported(source.path)  # which says so where it is a classifier
    if source.kind in (CONTROL, EXPORTED):
        raise UserError(f"{source.text} is no classifier; give a checkpoint of one")
    if source.kind == CLASSIFIER:
        network = build(classifier_of(config, images, source.text), 0)
    else:
        network = source.load(config)
    network = check_fits(network, images, source.text)
    told: dict[str, Any] = {"classifier": source.text, "checkpoint": None, "frames": None}
    if source.kind == FOLDER:
        images = as_learnt(source, images)
        told |= {"checkpoint": str(source.folder), "frames": read_metrics(source.folder).get("frames")}
    return OpenedClassifier(source, network, split, images, told)


def as_learnt(source: Source, images: Images) -> Images:
    """The images normalised as those that the classifier of a checkpoint learnt, where it tells by what.

    Raises UserError where it learnt other classes, or its own images were parted otherwise than these: it may have
    learnt what is held out here.
    """
    facts, trained = read_facts(source.folder), source.config().images
    if facts.keys() != {*FACTS}:
        return images
    if facts["classes"] != list(images.classes):
        own, theirs = next((own, its) for own, its in zip(facts["classes"], images.classes) if own != its)
        raise UserError(f"{source.text} calls a class {own}, and the data {theirs}; give images of its classes")
    for name in PARTED:
        pair = [getattr(config, name) for config in (trained or images.config, images.config)]
        if pair[0] != pair[1]:
            before, asked = ("null" if value is None else value for value in pair)
            raise UserError(f"{source.text} was trained with images.{name}={before}, not {asked}; leave it as it was")
    mean, deviation = (torch.tensor(facts[name])[:, None, None] for name in ("mean", "deviation"))
    return replace(images, mean=mean, deviation=deviation)

"""The labelled images and the classifier that a configuration asks for."""

from __future__ import annotations

from dataclasses import replace

from navprune.config import Config
from navprune.errors import UserError
from navprune.images.config import ImagesConfig
from navprune.images.splits import TRAIN, VAL, Images, open_images
from navprune.models.classifiers import Classifier, ClassifierSpec, classifier_spec


def images_of(config: Config) -> ImagesConfig:
    """The section `images`; raises UserError where the configuration is an agent's."""
    if config.images is None:
        raise UserError(
            "this configuration is an agent's and names no images; give --config digits_resnet20 or its like"
        )
    return config.images


def images_to_look_at(source: str | None, config: Config) -> ImagesConfig | None:
    """The images that pruning looks at: those that the configuration trains on or, of the named `source`, their like.

    Either way what is held out, and what is tested on, is not among them.
    """
    return replace(config.images or ImagesConfig(), source=source) if source else config.images


def training_images(config: Config) -> tuple[Images, Images | None]:
    """The images that are learnt from, and those that are held out meanwhile."""
    images = images_of(config)
    return open_images(images, TRAIN), open_images(images, VAL) if images.validation else None


def classifier_of(config: Config, images: Images, family: str | None = None) -> ClassifierSpec:
    """The architecture that a configuration asks for, or its like of another family, for the images at hand."""
    own = config.classifier
    return classifier_spec(family or own.family, len(images.classes), images.shape, own.width)


def check_fits(network: object, images: Images, title: str) -> Classifier:
    """The network as a classifier; raises UserError where it is none, or one of other images or classes."""
    if not isinstance(network, Classifier):
        raise UserError(f"{title} is no classifier; leave out images, or give one of the same images")
    spec = network.spec
    if (spec.input, spec.classes) != (images.shape, len(images.classes)):
        own, theirs = f"{list(spec.input)} in {spec.classes} classes", f"{list(images.shape)} in {len(images.classes)}"
        raise UserError(f"{title} takes images {own}, and the data has {theirs}; give a classifier of the same data")
    return network

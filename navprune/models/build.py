"""From a spec of any kind to its module, and from JSON to the spec."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from navprune.errors import UserError, plain
from navprune.models.classifiers import Classifier, ClassifierSpec, build_classifier
from navprune.models.encoders import build_encoder
from navprune.models.policy import PointNavPolicy
from navprune.models.spec import EncoderSpec, PolicySpec

FORMAT = 1
"""Version of the files, in `spec.json` and `trainer.pt`; 1 where they name none."""
Spec = EncoderSpec | PolicySpec | ClassifierSpec
Network = PointNavPolicy | Classifier
"""What is trained, and kept in checkpoints."""


def spec_from_json(data: Mapping[str, Any]) -> Spec:
    """The spec of whichever kind that its `to_json` wrote; raises UserError for anything else."""
    if isinstance(data, Mapping) and "encoder" in data:
        return PolicySpec.from_json(data)
    if isinstance(data, Mapping) and "classes" in data:
        return ClassifierSpec.from_json(data)
    return EncoderSpec.from_json(data)


def read_spec_file(path: Path) -> Spec:
    """The spec of whichever kind that a spec.json holds; raises UserError for anything else."""
    try:
        return spec_from_json(known_format(path, json.loads(path.read_text())))
    except (OSError, ValueError) as error:
        raise UserError(f"spec {path} cannot be read ({plain(error)}); write it again with `navprune prune`") from None
    except UserError as error:
        raise UserError(f"spec {path}: {error}") from None


def known_format(path: Path, data: Any, newest: int = FORMAT) -> Any:
    """What a file holds but the version of its format; raises UserError for one that is not known yet."""
    version = data.pop("format", 1) if isinstance(data, dict) else 1
    if version not in range(1, newest + 1):
        raise UserError(f"{path} was written by a newer navprune (its format is {version}); update this one")
    return data


def build(spec: Spec, seed: int | None = None) -> nn.Module:
    """The module of a spec: an encoder, a `PointNavPolicy`, or a classifier.

    With a `seed` its random weights depend on that alone; torch's global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the GPU, too
        if isinstance(spec, ClassifierSpec):
            return build_classifier(spec)
        return build_encoder(spec) if isinstance(spec, EncoderSpec) else PointNavPolicy(spec)

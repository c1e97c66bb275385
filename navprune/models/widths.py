"""The free widths of encoders and classifiers: the handles that pruning uses."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from navprune.errors import UserError
from navprune.models.classifiers import ClassifierSpec
from navprune.models.spec import EncoderSpec

Widened = TypeVar("Widened", bound=EncoderSpec | ClassifierSpec)


def widths(spec: EncoderSpec | ClassifierSpec) -> dict[str, int]:
    """{name: channels}, in the order of execution."""
    return {o.name: o.channels for o in spec.layers} if isinstance(spec, EncoderSpec) else dict(spec.widths)


def with_widths(spec: Widened, channels: Mapping[str, int]) -> Widened:
    """The same network with some widths replaced; norms keep their group size and so have fewer groups.

    So do grouped convolutions. Raises UserError for an unknown name, or a width that is not a positive multiple of
    its group size.
    """
    present = widths(spec)
    for name in channels:
        if name not in present:
            raise UserError(f"{spec.family} has no width {name!r}; it has {', '.join(present)}")
    if not isinstance(spec, EncoderSpec):
        return replace(spec, widths={**present, **channels})
    return replace(spec, layers=tuple(replace(o, channels=channels.get(o.name, o.channels)) for o in spec.layers))

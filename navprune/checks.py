"""What values a setting may have, stated where its field is."""

from collections.abc import Collection
from dataclasses import field, fields
from numbers import Integral, Real
from typing import Any

from navprune.errors import UserError

TINY = 1e-12
"""Least value of what must be above 0."""


def bounded(default: float | None, least: float, most: float = float("inf")) -> Any:
    """Return the field of a number from `least` to `most`, both allowed: whole, or null, where `default` is."""
    return field(default=default, metadata={"range": (least, most)})


def chosen(default: str | None, known: Collection[str | None]) -> Any:
    """Return the field of a value that must be one of `known`."""
    return field(default=default, metadata={"known": tuple(known)})


def check_fields(section: str, config: Any) -> None:
    """Raise UserError naming the first field of a dataclass whose value is not what `bounded` or `chosen` allows.

    `section` is the name of `config` in a configuration file, or "".
    """
    for item in fields(config):
        name, value, asked = f"{section}.{item.name}".lstrip("."), getattr(config, item.name), item.metadata
        if "known" in asked and value not in asked["known"]:
            known = ", ".join("null" if one is None else one for one in asked["known"])
            raise UserError(f"{name} is {value}; known are {known}")
        if "range" in asked and not (value is None and item.default is None):
            (least, most), whole = asked["range"], isinstance(item.default, int)
            if not isinstance(value, Integral if whole else Real) or not least <= float(value) <= most:
                kind = "whole number" if whole else "number"
                limits = f"of at least {least:g}" if most == float("inf") else f"from {least:g} to {most:g}"
                raise UserError(f"{name} is {value}; it must be a {kind} {limits}")

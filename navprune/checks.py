"""Checks of values that a user sets."""

from navprune.errors import UserError


def check_ranges(section: str, config: object, **ranges: tuple[float, float]) -> None:
    """Raise UserError naming the first field of `config` that lies outside its range (both ends allowed).

    `section` is the name of `config` in a configuration file.
    """
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if not low <= value <= high:
            raise UserError(f"{section}.{name} is {value}; it must be from {low} to {high}")

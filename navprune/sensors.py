"""What an agent can see, said once: everyone who names a sensor reads this table.

How a renderer draws them is the renderer's part: on the CPU one function each, in `simulator.images`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, combinations


@dataclass(frozen=True)
class Sensor:
    """An image of H x W pixels with `channels` numbers each, from `low` to `high`.

    dtype: "float32" or "uint8", as NumPy and torch both spell it. An encoder reads bytes as shares of 255.
    surface: whether it shows what a pixel's triangle looks like, and not its distance alone.
    lab: the class of habitat-lab's sensor, None where there is none.
    """

    name: str
    channels: int
    dtype: str
    low: float
    high: float
    surface: bool
    lab: str | None = None

    @property
    def is_bytes(self) -> bool:
        """Whether it holds whole numbers from 0 to 255, as pictures do."""
        return self.dtype == "uint8"


SENSORS = {
    sensor.name: sensor
    for sensor in (
        Sensor("rgb", 3, "uint8", 0, 255, surface=True, lab="HabitatSimRGBSensor"),
        Sensor("depth", 1, "float32", 0, 1, surface=False, lab="HabitatSimDepthSensor"),
    )
}


def channels_of(names: Iterable[str]) -> int:
    """How many channels these sensors have together."""
    return sum(SENSORS[name].channels for name in names)


def with_channels(count: int) -> tuple[str, ...]:
    """The fewest sensors that have so many channels together, first those that habitat-lab has; () where none have.

    In alphabetical order.
    """
    names = sorted(SENSORS, key=lambda name: SENSORS[name].lab is None)
    choices = chain.from_iterable(combinations(names, many) for many in range(1, len(names) + 1))
    return next((tuple(sorted(chosen)) for chosen in choices if channels_of(chosen) == count), ())

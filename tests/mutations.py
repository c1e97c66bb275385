"""Broken copies of a file's bytes or JSON, for tests of readers: each is read or refused in one line."""

import copy
import os
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

COUNT = int(os.environ.get("NAVPRUNE_FUZZ", "300"))
"""How many broken files a fuzz test tries; NAVPRUNE_FUZZ=10000 tries more."""

FIELDS = [
    b"\0" * 4,
    b"\xff" * 4,
    b"\xff" * 8,
    *(struct.pack("<I", value) for value in (1, 2, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000)),
    *(struct.pack("<f", value) for value in (float("nan"), float("inf"), -float("inf"), -1.0, 1e-30, 1e30, 3e38)),
    struct.pack("<d", float("nan")),
    struct.pack("<Q", 1 << 62),
]


def mutants(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Yields `count` broken copies of `data`, a function of the seed.

    Each has undergone one to four changes: bits flipped, a field overwritten with 0, all ones, a huge number or
    NaN, bytes replaced by noise, a chunk doubled, moved over another or cut out, the end cut off. Half of the
    changes fall into the first 256 bytes, where headers are.
    """
    rng = np.random.default_rng(seed)
    changes = (_flip, _overwrite, _overwrite, _noise, _double, _copy, _cut, _truncate)
    for _ in range(count):
        mutant = bytearray(data)
        for _ in range(rng.integers(1, 5)):
            changes[rng.integers(len(changes))](mutant, rng)
        yield bytes(mutant)


ODD = [
    -1,
    0,
    1,
    2,
    4,
    7,
    2**15,
    2**31,
    10**12,
    1.5,
    -1e308,
    float("nan"),
    True,
    None,
    "",
    "x",
    "../x",
    [],
    {},
    [[]],
    [0, 0, 0],
]


def document_mutants(document: Any, count: int, seed: int) -> Iterator[Any]:
    """Yields `count` copies of a JSON document, each with one to three values, of any depth, odd or absent."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        mutant = copy.deepcopy(document)
        for _ in range(rng.integers(1, 4)):
            holders = [part for part in _parts(mutant) if part]
            if holders:
                holder = holders[rng.integers(len(holders))]
                key = list(holder)[rng.integers(len(holder))] if isinstance(holder, dict) else rng.integers(len(holder))
                if rng.random() < 0.2:
                    del holder[key]
                else:
                    holder[key] = copy.deepcopy(ODD[rng.integers(len(ODD))])
        yield mutant


def _parts(value: Any) -> Iterator[Any]:
    """All objects and lists in a JSON value."""
    if isinstance(value, dict | list):
        yield value
        for part in value.values() if isinstance(value, dict) else value:
            yield from _parts(part)


def _place(mutant: bytearray, rng: np.random.Generator, unit: int = 1) -> int:
    """A place in the bytes, a multiple of `unit`."""
    end = max(len(mutant), 1)
    end = min(end, 256) if rng.random() < 0.5 else end
    return int(rng.integers(end)) // unit * unit


def _length(rng: np.random.Generator) -> int:
    return int(2 ** rng.uniform(0, 8))


def _flip(mutant: bytearray, rng: np.random.Generator) -> None:
    if mutant:
        mutant[_place(mutant, rng)] ^= 1 << int(rng.integers(8))


def _overwrite(mutant: bytearray, rng: np.random.Generator) -> None:
    field = FIELDS[rng.integers(len(FIELDS))]
    field = field[: int(rng.choice([1, 2, 4, 8]))] if rng.random() < 0.3 else field
    at = _place(mutant, rng, unit=2)
    mutant[at : at + len(field)] = field


def _noise(mutant: bytearray, rng: np.random.Generator) -> None:
    at, length = _place(mutant, rng), _length(rng)
    mutant[at : at + length] = rng.bytes(length)


def _double(mutant: bytearray, rng: np.random.Generator) -> None:
    at, length = _place(mutant, rng, unit=4), _length(rng)
    mutant[at:at] = mutant[at : at + length]


def _copy(mutant: bytearray, rng: np.random.Generator) -> None:
    source, target, length = _place(mutant, rng, unit=4), _place(mutant, rng, unit=4), _length(rng)
    chunk = mutant[source : source + length]
    mutant[target : target + len(chunk)] = chunk


def _cut(mutant: bytearray, rng: np.random.Generator) -> None:
    at = _place(mutant, rng)
    del mutant[at : at + _length(rng)]


def _truncate(mutant: bytearray, rng: np.random.Generator) -> None:
    del mutant[_place(mutant, rng) :]

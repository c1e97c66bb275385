"""CIFAR's pickles, of Python 2 and 3, as plain values: nothing in them is executed."""

import io
import math
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray


def unpickled(data: bytes) -> dict[str, Any]:
    """The dictionary that a pickle holds, of numbers, lists, bytes, texts and uint8 arrays, by its keys as text.

    Raises nearly anything for a damaged pickle, and UnpicklingError for one that names any class or function but those
    that NumPy writes arrays with.
    """
    held = _Reader(io.BytesIO(data), encoding="bytes").load()
    if not isinstance(held, dict):
        raise pickle.UnpicklingError("it holds no dictionary")
    return {_text(key): value.values if isinstance(value, _Array) else value for key, value in held.items()}


class _Array:
    """Takes what NumPy writes of an array."""

    __slots__ = ("values",)

    def __setstate__(self, state: tuple[int, tuple[int, ...], object, bool, bytes]) -> None:
        _, shape, kind, by_columns, data = state
        if not isinstance(kind, _Bytes) or not isinstance(data, bytes) or len(data) != math.prod(shape):
            raise pickle.UnpicklingError("it holds an array that is not of bytes")
        self.values: NDArray[np.uint8] = np.frombuffer(data, np.uint8).reshape(shape, order="F" if by_columns else "C")


class _Bytes:
    """Stands for the data type uint8."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        """Pass over the byte order, which bytes have none of."""


def _array(kind: object, shape: object, code: object) -> _Array:
    return _Array()


def _type(name: object, align: object, copy: object) -> _Bytes:
    if _text(name) not in ("u1", "|u1"):
        raise pickle.UnpicklingError(f"it holds an array of {_text(name)}, not of bytes")
    return _Bytes()


def _encoded(text: str, encoding: object) -> bytes:
    return text.encode("latin1")  # as Python 3 writes bytes for Python 2


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


CALLED: dict[tuple[str, str], Callable] = {
    ("numpy.core.multiarray", "_reconstruct"): _array,
    ("numpy._core.multiarray", "_reconstruct"): _array,
    ("numpy", "ndarray"): _array,  # only handed to the above
    ("numpy", "dtype"): _type,
    ("_codecs", "encode"): _encoded,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """What stands for a class or function; each time another object, for a pickle may set its attributes."""
        if (module, name) not in CALLED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no such file needs")
        return partial(CALLED[module, name])

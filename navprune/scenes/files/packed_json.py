"""Reads a long list out of a packed JSON file, one item at a time, in little memory whatever the file holds."""

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

# What a file may ask of memory. Habitat's own unpack to 4 to 30 times their size, with episodes of some kilobytes.
SMALL, RATIO = 1 << 24, 100  # a file may unpack to SMALL + RATIO times its size
LONGEST_VALUE = 1 << 20  # characters of one item
PIECE = 1 << 16  # characters read at a time
DECODER = json.JSONDecoder()
WHITE_SPACE = re.compile(r"[ \t\n\r]*")


def listed(path: Path, key: str) -> Iterator[Any]:
    """The items of the list that stands under `key` in the object of a `.json.gz` file.

    Raises LookupError where there is no such list, OSError, EOFError or zlib.error where the file cannot be read or
    unpacked, RecursionError where it is nested too deeply, and ValueError where it is no JSON or asks too much.
    """
    with gzip.open(path, "rt", encoding="utf-8") as file:
        text = _Reader(file, SMALL + RATIO * path.stat().st_size)
        if text.peek() != "{":
            raise LookupError(key) if text.peek() else ValueError("it is empty")
        found = False
        for _ in text.items("{", "}"):
            name = text.value()
            if not text.take(":"):
                raise ValueError("no colon after a key")
            if name == key and text.peek() == "[":
                found = True
                for _ in text.items("[", "]"):
                    yield text.value()
            else:
                text.value()
        if text.peek():
            raise ValueError("text after its end")
        if not found:
            raise LookupError(key)


class _Reader:
    """Reads JSON value by value from a text of which only a piece is in memory.

    Raises ValueError for what is no JSON, for a value of over `LONGEST_VALUE` characters and for more text than
    `limit`: a small file may unpack to a thousand times its size.
    """

    def __init__(self, file: IO[str], limit: int) -> None:
        self._file, self._left = file, limit
        self._text, self._at = "", 0

    def _more(self) -> bool:
        """Read on, as much again as is waiting; False at the end."""
        waiting = self._text[self._at :]
        piece = self._file.read(max(PIECE, len(waiting)))
        self._left -= len(piece)
        if self._left < 0:
            raise ValueError(f"it unpacks to more than {RATIO} times its size")
        self._text, self._at = waiting + piece, 0
        return bool(piece)

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            self._at = WHITE_SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self, character: str) -> bool:
        """Go past the next character if it is this one."""
        found = self.peek() == character
        self._at += found
        return found

    def items(self, opening: str, closing: str) -> Iterator[None]:
        """Stops at each item of a list or object, which must then be read, and goes past the whole."""
        self.take(opening)
        going = not self.take(closing)
        while going:
            yield
            going = self.take(",")
            if not going and not self.take(closing):
                raise ValueError("a comma or bracket is missing")

    def value(self) -> Any:
        """The next value."""
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # It may only be cut off where the piece ends.
                if len(self._text) - self._at > LONGEST_VALUE or not self._more():
                    raise ValueError(error.msg) from None
                continue
            if end < len(self._text):
                self._at = end
                return value
            if not self._more():  # a number may go on after the piece
                self._at = len(self._text)
                return value

"""Reads a large JSON file piece by piece, and says where in the file each piece lies.

The JSON of a panoptic data set lists every segment of every frame. It is walked once for its
structure; a frame's own entry is read again when the frame comes up. Memory is that of one entry,
whatever the length of the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from fcache.errors import LabelError

CHUNK_BYTES = 1 << 18
SPACE = " \t\n\r"


class Span(NamedTuple):
    """Where a value lies in a file, in bytes."""

    start: int
    end: int

    def read(self, file: BinaryIO) -> Any:  # noqa: ANN401 - any JSON value
        """Returns the value."""
        file.seek(self.start)
        return json.loads(file.read(self.end - self.start))


class JsonWalk:
    """A cursor over a JSON file.

    At a value, exactly one of ``members``, ``items`` and ``value`` moves past it.

    Args:
        path: The file.
        what: Names its role in errors.

    Raises:
        LabelError: the file cannot be read.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what = path, what
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise LabelError(f"'{path}', {what}, cannot be read: {error.strerror}.") from error
        # In Latin-1 a character is a byte, and no byte of UTF-8 beyond ASCII looks like syntax.
        self._text = ""
        self._at = 0
        self._offset = 0  # of the text in the file
        self._ended = False
        self._decoder = json.JSONDecoder()

    def __enter__(self) -> JsonWalk:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()

    def members(self) -> Iterator[str]:
        """Yields the keys of an object; the caller moves past each key's value.

        Raises:
            LabelError: there is no object, or the file ends inside it.
        """
        self._expect("{")
        while self._peek() != "}":
            key = self.value()[0]
            if not isinstance(key, str):
                raise self._damage(f"{key!r} is no key")
            self._expect(":")
            yield key
            self._separate("}")
        self._at += 1

    def items(self) -> Iterator[int]:
        """Yields the positions of an array's items; the caller moves past each.

        Raises:
            LabelError: there is no array, or the file ends inside it.
        """
        self._expect("[")
        position = 0
        while self._peek() != "]":
            yield position
            position += 1
            self._separate("]")
        self._at += 1

    def value(self) -> tuple[Any, Span]:
        """Returns the value at the cursor, and where it lies.

        Raises:
            LabelError: there is no whole value.
        """
        self._peek()
        while True:
            try:
                found, end = self._decoder.raw_decode(self._text, self._at)
            except ValueError as error:
                if self._ended:
                    raise self._damage(str(error)) from error
            else:
                # A number at the end of what was read may go on behind it.
                if end < len(self._text) or self._ended:
                    span = Span(self._offset + self._at, self._offset + end)
                    text, self._at = self._text[self._at : end], end
                    return found if text.isascii() else self._as_utf8(text), span
            self._more()

    def _as_utf8(self, text: str) -> Any:  # noqa: ANN401 - any JSON value
        try:
            return json.loads(text.encode("latin-1"))
        except ValueError as error:
            raise self._damage(str(error)) from error

    def _separate(self, closing: str) -> None:
        following = self._peek()
        if following == ",":
            self._at += 1
            if self._peek() == closing:
                raise self._damage(f"',' before '{closing}'")
        elif following != closing:
            raise self._damage(f"{following!r} in place of ',' or '{closing}'")

    def _expect(self, character: str) -> None:
        found = self._peek()
        if found != character:
            raise self._damage(f"{found!r} in place of '{character}'")
        self._at += 1

    def _peek(self) -> str:
        """Returns the next character that is no space, without moving past it."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in SPACE:
                    return self._text[self._at]
                self._at += 1
            if self._ended:
                raise self._damage("the file ends")
            self._more()

    def _more(self) -> None:
        # As much again as is already there: a long value is then parsed a few times only.
        data = self._file.read(max(CHUNK_BYTES, len(self._text) - self._at))
        self._ended = not data
        self._offset += self._at
        self._text = self._text[self._at :] + data.decode("latin-1")
        self._at = 0

    def _damage(self, why: str) -> LabelError:
        return LabelError(
            f"'{self.path}', {self.what}, is not whole JSON of the expected shape: {why}, "
            f"{self._offset + self._at} bytes into it; it may have been cut off."
        )

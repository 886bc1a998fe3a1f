"""Maps of a video that wait on disk, because what they are called is known after the last frame."""

from __future__ import annotations

import struct
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LEVEL = 1  # of zlib: maps are smooth, and are read once
_SIZE = struct.Struct("<I")


class Spool:
    """Frames of maps of one size, in order; a file without a name, which no kill leaves behind.

    Args:
        folder: On whose disk.
        size: Height and width.
        kinds: Data type of each map of a frame.
    """

    def __init__(self, folder: Path, size: tuple[int, int], kinds: Sequence[str]) -> None:
        self._size = size
        self._kinds = [np.dtype(kind) for kind in kinds]
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by ``close``

    def add(self, maps: Sequence[NDArray[np.generic]]) -> None:
        """Adds a frame."""
        for one, kind in zip(maps, self._kinds, strict=True):
            assert (one.shape, one.dtype) == (self._size, kind)
            packed = zlib.compress(one.tobytes(), LEVEL)
            self._file.write(_SIZE.pack(len(packed)) + packed)

    def __iter__(self) -> Iterator[list[NDArray[np.generic]]]:
        """Yields the frames."""
        self._file.seek(0)
        while head := self._file.read(_SIZE.size):
            frame = []
            for number, kind in enumerate(self._kinds):
                if number:
                    head = self._file.read(_SIZE.size)
                packed = self._file.read(_SIZE.unpack(head)[0])
                flat = np.frombuffer(zlib.decompress(packed), kind)
                frame.append(flat.reshape(self._size))
            yield frame

    def close(self) -> None:
        """Gives the disk back."""
        self._file.close()

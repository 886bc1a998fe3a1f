"""Reading a view: clips of stage outputs and pixels, into buffers that are used again.

The fast way is ``preadv`` straight into the caller's buffers, with the offsets from the commit
records; it knows only uncompressed chunks with crc32c. Any other codec chain goes through zarr.
A reader may be used by many threads, and after a fork.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import crc32c
import numpy as np
import numpy.typing as npt

from fcache.errors import CacheCorruptError
from fcache.store.layout import SHARD_ROWS, ArraySpec, Bucket
from fcache.store.open_files import OpenFile, OpenFiles as OpenFiles
from fcache.store.tables import ShardTable

VerifyPolicy = Literal["first", "always", "never"]

MAX_GAP_BYTES = 8192  # pieces of a file closer than this are fetched by one call
MAX_IOVECS = 1000  # below Linux's IOV_MAX of 1024
# Checksums follow the bytes while these are in the CPU's cache. Smaller blocks are 5 % cheaper
# still, but each call gives up the interpreter lock, and a busy thread keeps it for 5 ms.
BLOCK_BYTES = 1 << 20
_GAP = memoryview(bytearray(MAX_GAP_BYTES))


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle on a token grid: first row and column, height and width, in tokens."""

    y: int
    x: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class _Shard:
    """A shard file: where its chunks lie, and which of them were checked by this process.

    Attributes:
        offsets: Of each chunk, bytes; -1 where it is missing.
        crcs: crc32c of each chunk.
        seen: 1 for each chunk that was checked.
    """

    path: Path
    offsets: memoryview
    crcs: memoryview
    seen: bytearray


class _Wanted(NamedTuple):
    """A chunk that is read, and the memory that it or its window fills."""

    offset: int
    chunk: int
    target: memoryview


class ArrayReader:
    """Reads rows of one array of a bucket by their committed offsets."""

    def __init__(self, folder: Path, bucket: Bucket, spec: ArraySpec, files: OpenFiles) -> None:
        self.spec = spec
        self._key = (bucket.name, spec.name)
        self._folder = folder / bucket.name
        self._files = files
        self._shards: dict[int, _Shard] = {}
        self._height, self._width, *_ = spec.chunk_shape
        self._line_bytes = spec.chunk_bytes // self._height
        self._token_bytes = self._line_bytes // self._width

    def read(
        self,
        table: ShardTable,
        rows: Sequence[int],
        positions: Sequence[int],
        out: npt.NDArray[np.generic],
        verify: VerifyPolicy,
        window: Window | None = None,
    ) -> None:
        """Fills ``out`` with rows of the array.

        Args:
            table: Where the chunks lie.
            rows: Rows of the bucket's array, any order.
            positions: Chunks of each row that are wanted (stages of ``tokens``; ``[0]`` else).
            out: ``[len(rows), len(positions), *chunk]``, C order.
            verify: When to check checksums.
            window: Part of each chunk's first two axes.

        Raises:
            CacheCorruptError: a chunk is missing, short, or fails its checksum.
        """
        if not rows:
            return
        if window == Window(0, 0, self._height, self._width):
            window = None
        # reshape would fill a copy of an array with gaps; the cast refuses it.
        data = out.view(np.uint8).data.cast("B")
        size = len(data) // (len(rows) * len(positions))
        per_shard: dict[int, list[_Wanted]] = {}
        start = 0
        for row in rows:
            number, slot = divmod(row, SHARD_ROWS)
            shard = self._shards.get(number) or self._find(table, number)
            wanted = per_shard.setdefault(number, [])
            for chunk in positions:
                chunk += slot * self.spec.chunks_per_row
                wanted.append(_Wanted(shard.offsets[chunk], chunk, data[start : start + size]))
                start += size
        for number, wanted in per_shard.items():
            wanted.sort(key=lambda one: one.offset)
            self._read_shard(self._shards[number], wanted, verify, window)

    def _read_shard(
        self, shard: _Shard, wanted: list[_Wanted], verify: VerifyPolicy, window: Window | None
    ) -> None:
        """Reads chunks of one shard file, given in the order they lie there."""
        if wanted[0].offset < 0:
            raise CacheCorruptError(
                f"'{shard.path}' has no chunk {wanted[0].chunk}; its record lacks it too."
            )
        try:
            file = self._files.get(shard.path)
        except FileNotFoundError:
            raise CacheCorruptError(f"'{shard.path}' is missing, but committed.") from None
        unchecked = []
        for one in wanted:
            if verify == "never" or (verify == "first" and shard.seen[one.chunk]):
                unchecked.append(one)
                continue
            if self._read_checked(file, one, window) != shard.crcs[one.chunk]:
                raise CacheCorruptError(f"'{shard.path}' fails the checksum of chunk {one.chunk}.")
            shard.seen[one.chunk] = 1
        if window is None:
            _read_runs(file, unchecked)
            return
        for one in unchecked:
            self._read_window(file, one, window)

    def _find(self, table: ShardTable, number: int) -> _Shard:
        positions, starts, sums = table.chunks((*self._key, number))
        offsets = np.full(self.spec.shard_chunks, -1, np.int64)
        crcs = np.zeros(self.spec.shard_chunks, np.int64)
        offsets[positions], crcs[positions] = starts, sums
        path = self._folder / self.spec.shard_path(number)
        # Two threads may both get here; setdefault keeps what either has checked.
        shard = _Shard(path, offsets.data, crcs.data, bytearray(self.spec.shard_chunks))
        return self._shards.setdefault(number, shard)

    def _read_checked(self, file: OpenFile, one: _Wanted, window: Window | None) -> int:
        """Reads a chunk; returns its crc32c, of the whole chunk whatever is wanted of it."""
        if window is not None:
            return self._read_lines(file, one, window, (0, self._height), check=True)
        crc = 0
        for start in range(0, len(one.target), BLOCK_BYTES):
            block = one.target[start : start + BLOCK_BYTES]
            file.read([block], one.offset + start)
            crc = crc32c.crc32c(block, crc)
        return crc

    def _read_window(self, file: OpenFile, one: _Wanted, window: Window) -> None:
        start = one.offset + window.y * self._line_bytes + window.x * self._token_bytes
        if window.width == self._width:
            file.read([one.target], start)
        elif (self._width - window.width) * self._token_bytes <= MAX_GAP_BYTES:
            lines = (window.y, window.y + window.height)
            self._read_lines(file, one, window, lines, check=False)
        else:
            size = window.width * self._token_bytes
            preadv, fd, target, line_bytes = os.preadv, file.fd, one.target, self._line_bytes
            for place in range(0, len(target), size):
                piece = target[place : place + size]
                # Hundreds of small reads: the loop for what comes in parts is left to the rest.
                if preadv(fd, [piece], start) != size:
                    file.read([piece], start)
                start += line_bytes

    def _read_lines(
        self, file: OpenFile, one: _Wanted, window: Window, lines: tuple[int, int], check: bool
    ) -> int:
        """Reads whole lines and keeps the window's part of them; returns their crc32c if asked."""
        first, last = lines
        tail = self.spec.chunk_shape[2:]
        height = min(max(1, BLOCK_BYTES // self._line_bytes), last - first)
        scratch = np.empty((height, self._width, *tail), self.spec.dtype)
        target = np.frombuffer(one.target, self.spec.dtype)
        target = target.reshape(window.height, window.width, *tail)
        crc = 0
        for top in range(first, last, height):
            block = scratch[: last - top]
            data = block.view(np.uint8).data.cast("B")
            file.read([data], one.offset + top * self._line_bytes)
            if check:
                crc = crc32c.crc32c(data, crc)
            kept = slice(max(window.y - top, 0), max(window.y + window.height - top, 0))
            part = block[kept, window.x : window.x + window.width]
            into = max(top - window.y, 0)
            target[into : into + len(part)] = part
        return crc


def _read_runs(file: OpenFile, wanted: list[_Wanted]) -> None:
    """Reads every chunk, neighbours by one call; the gap between them lands where nobody looks."""
    start, end = -1, -1
    pieces: list[memoryview] = []
    for offset, _, target in wanted:
        gap = offset - end
        if pieces and 0 <= gap <= MAX_GAP_BYTES and len(pieces) < MAX_IOVECS:
            if gap:
                pieces.append(_GAP[:gap])
        else:
            file.read(pieces, start)
            pieces, start = [], offset
        pieces.append(target)
        end = offset + len(target)
    file.read(pieces, start)

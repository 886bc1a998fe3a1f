"""Reading a view: clips of stage outputs and pixels, into buffers that are used again.

The fast way is ``preadv`` straight into the caller's buffers, with the offsets from the commit
records; it knows only uncompressed chunks with crc32c. Any other codec chain goes through zarr.
A reader may be used by many threads, and after a fork.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import crc32c
import numpy as np
import numpy.typing as npt

from fcache.errors import CacheCorruptError
from fcache.store.layout import SHARD_ROWS, ArraySpec, Bucket
from fcache.store.tables import ShardTable

VerifyPolicy = Literal["first", "always", "never"]

MAX_OPEN_FILES = 512
MAX_GAP_BYTES = 8192  # chunks closer than this are fetched by one call
MAX_IOVECS = 1000  # below Linux's IOV_MAX of 1024


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle on a token grid: first row and column, height and width, in tokens."""

    y: int
    x: int
    height: int
    width: int


class _OpenFile:
    """A descriptor that lives as long as somebody holds it, so eviction cannot pull it away."""

    __slots__ = ("fd",)

    def __init__(self, path: Path) -> None:
        self.fd = -1  # what is left if opening fails
        self.fd = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class OpenFiles:
    """The most recently used shard files, kept open per process."""

    def __init__(self, limit: int = MAX_OPEN_FILES) -> None:
        self._limit = limit
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._files: OrderedDict[Path, _OpenFile] = OrderedDict()

    def get(self, path: Path) -> _OpenFile:
        """Returns the open file, opening it at first use."""
        if self._pid != os.getpid():  # a fork may have copied the lock while it was held
            self._pid, self._lock = os.getpid(), threading.Lock()
        with self._lock:
            file = self._files.get(path)
            if file is None:
                file = self._files[path] = _OpenFile(path)
                if len(self._files) > self._limit:
                    self._files.popitem(last=False)
            else:
                self._files.move_to_end(path)
        return file


@dataclass(frozen=True, slots=True)
class _Fetch:
    offset: int
    target: memoryview


class ArrayReader:
    """Reads rows of one array of a bucket by their committed offsets."""

    def __init__(self, folder: Path, bucket: Bucket, spec: ArraySpec, files: OpenFiles) -> None:
        self.spec = spec
        self._key = (bucket.name, spec.name)
        self._folder = folder / bucket.name
        self._files = files
        self._verified: dict[int, npt.NDArray[np.bool_]] = {}
        self._located: dict[int, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = {}

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
            out: ``[len(rows), len(positions), *chunk]``, C order in its last axes.
            verify: When to check checksums.
            window: Part of each chunk's first two axes.

        Raises:
            CacheCorruptError: a chunk is missing, short, or fails its checksum.
        """
        per_shard: dict[int, list[tuple[int, int]]] = {}
        for place, row in enumerate(rows):
            shard, slot = divmod(row, SHARD_ROWS)
            per_shard.setdefault(shard, []).append((place, slot))
        for shard, wanted in per_shard.items():
            chunks = [
                (slot * self.spec.chunks_per_row + position, out[place, column])
                for place, slot in wanted
                for column, position in enumerate(positions)
            ]
            self._read_shard(table, shard, chunks, verify, window)

    def _read_shard(
        self,
        table: ShardTable,
        shard: int,
        chunks: list[tuple[int, npt.NDArray[np.generic]]],
        verify: VerifyPolicy,
        window: Window | None,
    ) -> None:
        offsets, crcs = self._locate(table, shard)
        path = self._folder / self.spec.shard_path(shard)
        for chunk, _ in chunks:
            if offsets[chunk] < 0:
                raise CacheCorruptError(f"'{path}' has no chunk {chunk}; its record lacks it too.")
        try:
            file = self._files.get(path)
        except FileNotFoundError:
            raise CacheCorruptError(f"'{path}' is missing, but committed.") from None
        seen = self._verified.setdefault(shard, np.zeros(self.spec.shard_chunks, bool))
        if window is None:
            fetches = [_Fetch(int(offsets[chunk]), _bytes(target)) for chunk, target in chunks]
            _fetch(file.fd, fetches, path)
            for chunk, target in chunks:
                if verify == "always" or (verify == "first" and not seen[chunk]):
                    self._check(_bytes(target), int(crcs[chunk]), path, chunk)
                    seen[chunk] = True
            return
        whole = np.empty(self.spec.chunk_shape, self.spec.dtype)
        for chunk, target in chunks:
            if verify == "always" or (verify == "first" and not seen[chunk]):
                # A checksum covers the whole chunk: the first look at it reads all of it.
                _fetch(file.fd, [_Fetch(int(offsets[chunk]), _bytes(whole))], path)
                self._check(_bytes(whole), int(crcs[chunk]), path, chunk)
                seen[chunk] = True
                target[...] = _cut(whole, window)
            else:
                _fetch(file.fd, list(self._segments(int(offsets[chunk]), target, window)), path)

    def _segments(
        self, offset: int, target: npt.NDArray[np.generic], window: Window
    ) -> Iterator[_Fetch]:
        _, width, channels = self.spec.chunk_shape
        token_bytes = channels * target.itemsize
        for line in range(window.height):
            start = ((window.y + line) * width + window.x) * token_bytes
            yield _Fetch(offset + start, _bytes(target[line]))

    def _locate(
        self, table: ShardTable, shard: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Offset (-1 where missing) and checksum of every chunk of a shard."""
        located = self._located.get(shard)
        if located is None:
            positions, starts, sums = table.chunks((*self._key, shard))
            offsets = np.full(self.spec.shard_chunks, -1, np.int64)
            crcs = np.zeros(self.spec.shard_chunks, np.int64)
            offsets[positions], crcs[positions] = starts, sums
            located = self._located[shard] = (offsets, crcs)
        return located

    def _check(self, data: memoryview, crc: int, path: Path, chunk: int) -> None:
        if crc32c.crc32c(data) != crc:
            raise CacheCorruptError(f"'{path}' fails the checksum of chunk {chunk}.")


def _bytes(values: npt.NDArray[np.generic]) -> memoryview:
    return values.reshape(-1).view(np.uint8).data


def _cut(chunk: npt.NDArray[np.generic], window: Window) -> npt.NDArray[np.generic]:
    return chunk[window.y : window.y + window.height, window.x : window.x + window.width]


def _fetch(fd: int, fetches: list[_Fetch], path: Path) -> None:
    """Reads every piece, neighbours by one call; the gap between them lands in a scratch."""
    fetches.sort(key=lambda fetch: fetch.offset)
    scratch = memoryview(bytearray(MAX_GAP_BYTES))
    start, end = -1, -1
    pieces: list[memoryview] = []
    for fetch in fetches:
        gap = fetch.offset - end
        if pieces and 0 <= gap <= MAX_GAP_BYTES and len(pieces) < MAX_IOVECS:
            if gap:
                pieces.append(scratch[:gap])
        else:
            _read_fully(fd, pieces, start, path)
            pieces, start = [], fetch.offset
        pieces.append(fetch.target)
        end = fetch.offset + len(fetch.target)
    _read_fully(fd, pieces, start, path)


def _read_fully(fd: int, pieces: list[memoryview], offset: int, path: Path) -> None:
    while pieces:
        count = os.preadv(fd, pieces, offset)
        if count == 0:
            raise CacheCorruptError(f"'{path}' ends before byte {offset}; it was committed longer.")
        offset += count
        while pieces and count >= len(pieces[0]):
            count -= len(pieces.pop(0))
        if pieces:
            pieces[0] = pieces[0][count:]

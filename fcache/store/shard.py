"""One shard file: written chunk by chunk, read back by its index.

A shard is Zarr's ``sharding_indexed`` with the index at the end and crc32c on chunks and index.
Chunks start at multiples of 4 KiB; the gaps and missing chunks are legal and take no space.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import crc32c
import numpy as np
import numpy.typing as npt

from fcache.errors import CacheCorruptError
from fcache.store.files import flush, make_folder, space_checked, temporary
from fcache.store.layout import ALIGN_BYTES, CRC_BYTES, EMPTY

# Read and checked piece by piece, in memory that stays in the processor's cache: fresh pages for
# every chunk would cost more than reading it.
CHECK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """What a commit record says of one shard file.

    Attributes:
        size_bytes: Size of the file.
        index_crc: crc32c of its index.
        chunks: Position in the shard, offset, size with checksum (bytes) and crc32c of each chunk.
    """

    size_bytes: int
    index_crc: int
    chunks: tuple[tuple[int, int, int, int], ...]


@dataclass(slots=True)
class ShardWriter:
    """Writes one shard file in one pass, holding no more than the chunk at hand.

    Nothing is seen under the final name before ``publish``.
    """

    path: Path
    num_chunks: int
    _fd: int = field(init=False)
    _partial: Path = field(init=False)
    _offset: int = field(default=0, init=False)
    _chunks: list[tuple[int, int, int, int]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._partial = temporary(self.path)
        with space_checked(self.path):
            make_folder(self.path.parent)
            self._fd = os.open(self._partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)

    def put(self, position: int, values: npt.NDArray[np.generic]) -> None:
        """Appends the chunk of a position in the shard, C order.

        Raises:
            NoSpaceError: the disk or quota is full.
        """
        payload = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        crc = crc32c.crc32c(payload)
        start = -(-self._offset // ALIGN_BYTES) * ALIGN_BYTES
        self._write([payload, memoryview(crc.to_bytes(CRC_BYTES, "little"))], start)
        size = len(payload) + CRC_BYTES
        self._chunks.append((position, start, size, crc))
        self._offset = start + size

    def finish(self) -> ShardRecord:
        """Writes the index and flushes to the disk; the file still has its temporary name."""
        index = np.full((self.num_chunks, 2), EMPTY, dtype="<u8")
        for position, start, size, _ in self._chunks:
            index[position] = start, size
        data = index.tobytes()
        crc = crc32c.crc32c(data)
        self._write([memoryview(data + crc.to_bytes(CRC_BYTES, "little"))], self._offset)
        with space_checked(self.path):
            os.fsync(self._fd)
        size = self._offset + len(data) + CRC_BYTES
        return ShardRecord(size, crc, tuple(sorted(self._chunks)))

    def publish(self) -> None:
        """Gives the finished file its final name; a whole file of that name is replaced."""
        with space_checked(self.path):
            self._close()
            self._partial.replace(self.path)
            flush(self.path.parent)

    def discard(self) -> None:
        """Removes the unpublished file."""
        with suppress(OSError):
            self._close()
        with suppress(OSError):
            self._partial.unlink()

    def _close(self) -> None:
        # Forgotten first: after a failed close the number may be another file's.
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _write(self, parts: list[memoryview], offset: int) -> None:
        with space_checked(self.path):
            while parts:
                written = os.pwritev(self._fd, parts, offset)
                offset += written
                while parts and written >= len(parts[0]):
                    written -= len(parts.pop(0))
                if parts:
                    parts[0] = parts[0][written:]


def read_index(fd: int, num_chunks: int, path: Path) -> tuple[npt.NDArray[np.uint64], int]:
    """Returns a shard file's index, ``[num_chunks, 2]`` (offset, size), and its crc32c.

    Raises:
        CacheCorruptError: the file is too short, or the index fails its checksum.
    """
    length = 16 * num_chunks + CRC_BYTES
    size = os.fstat(fd).st_size
    data = os.pread(fd, length, size - length) if size >= length else b""
    stored = int.from_bytes(data[-CRC_BYTES:], "little")
    crc = crc32c.crc32c(data[:-CRC_BYTES])
    if len(data) != length or crc != stored:
        raise CacheCorruptError(f"'{path}' has no valid shard index in its last {length} bytes.")
    return np.frombuffer(data[:-CRC_BYTES], "<u8").reshape(-1, 2), crc


def check_shard(
    path: Path,
    record: ShardRecord,
    num_chunks: int,
    scratch: memoryview | None = None,
    stop: Event | None = None,
) -> Iterator[str]:
    """Yields every way in which a shard file differs from its commit record.

    Reads the whole file once. Bytes between chunks belong to nobody.

    Args:
        path: The file.
        record: What was committed.
        num_chunks: Inner chunks of a full shard.
        scratch: Memory to read into, for who checks many; ``CHECK_BYTES`` of it is best.
        stop: Once it is set, the rest of the file is left unread.
    """
    scratch = memoryview(bytearray(CHECK_BYTES)) if scratch is None else scratch
    try:
        with path.open("rb", buffering=0) as file:
            yield from _differences(file.fileno(), path, record, num_chunks, scratch, stop)
    except FileNotFoundError:
        yield "the file is missing"
    except OSError as error:
        yield f"the file cannot be read: {error.strerror}"


def _differences(
    fd: int,
    path: Path,
    record: ShardRecord,
    num_chunks: int,
    scratch: memoryview,
    stop: Event | None,
) -> Iterator[str]:
    size = os.fstat(fd).st_size
    if size != record.size_bytes:
        yield f"the file has {size:,} bytes, {record.size_bytes:,} were committed"
        return
    try:
        index, index_crc = read_index(fd, num_chunks, path)
    except CacheCorruptError:
        yield "the index fails its checksum"
        return
    expected = np.full((num_chunks, 2), EMPTY, dtype="<u8")
    for position, offset, length, _ in record.chunks:
        expected[position] = offset, length
    if index_crc != record.index_crc or not np.array_equal(index, expected):
        yield "the index is not the one committed"
        return
    for position, offset, length, crc in record.chunks:
        if stop is not None and stop.is_set():
            return
        end = offset + length - CRC_BYTES
        stored = os.pread(fd, CRC_BYTES, end)
        if not _crc_of(fd, offset, end, scratch) == crc == int.from_bytes(stored, "little"):
            yield f"chunk {position} fails its checksum"


def _crc_of(fd: int, offset: int, end: int, scratch: memoryview) -> int:
    """crc32c of the bytes of a file from ``offset`` to ``end``, or to the file's end."""
    crc = 0
    while offset < end:
        count = os.preadv(fd, [scratch[: end - offset]], offset)
        if count == 0:
            break
        crc = crc32c.crc32c(scratch[:count], crc)
        offset += count
    return crc

"""Where the chunks of committed shard files lie, chunk by chunk.

A record is 24 bytes: offset, size with checksum, position in the shard, crc32c. The shards table
says which records are a shard file's, and has a checksum of them.

New records go to a file of their own, with those of the last file if that is small; a large one is
never written again. So folding a few commits into a large view writes little, and who reads for
days keeps what it has opened. Large files are not held in memory: the records of a shard are
fetched when it is first read.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path

import crc32c
import numpy as np
import numpy.typing as npt

from fcache.errors import CacheCorruptError
from fcache.store.files import repair_command

CHUNK = np.dtype([("offset", "<i8"), ("size_bytes", "<i8"), ("position", "<i4"), ("crc32c", "<u4")])
LARGE_BYTES = 1 << 26  # a file of so many is never written again, and not held in memory
IN_MEMORY = 0  # number of the file that is not yet written

Chunks = npt.NDArray[np.void]  # of CHUNK


class ChunkFile:
    """An open file of records, read piece by piece.

    It may be read by many threads and after a fork, and after it was put by.
    """

    def __init__(self, path: Path) -> None:
        self._fd = -1  # what is left if opening fails
        self.path = path
        self._fd = os.open(path, os.O_RDONLY)
        head = io.BytesIO(os.pread(self._fd, _MAX_HEAD_BYTES, 0))
        try:
            np.lib.format.read_magic(head)
            self._shape, _, dtype = np.lib.format.read_array_header_1_0(head)
        except ValueError as error:
            raise _damaged(path, str(error)) from None
        if dtype != CHUNK:
            raise _damaged(path, f"it holds {dtype}")
        self._first_byte = head.tell()

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def read(self, first: int, count: int) -> Chunks:
        """Returns some records.

        Raises:
            CacheCorruptError: the file ends before them.
        """
        size = count * CHUNK.itemsize
        data = os.pread(self._fd, size, self._first_byte + first * CHUNK.itemsize)
        if len(data) != size:
            raise _damaged(self.path, f"it ends before record {first + count}")
        return np.frombuffer(data, CHUNK)


class ChunkRecords:
    """The records of a view, in files and in memory, by the number of the file.

    Attributes:
        loose: Records in memory: of commits that are not folded yet, and those of small files.
        files: Large files.
    """

    def __init__(
        self,
        loose: Mapping[int, Chunks] | None = None,
        files: Mapping[int, ChunkFile] | None = None,
    ) -> None:
        self.loose = dict(loose or {})
        self.files = dict(files or {})

    @property
    def num_fresh(self) -> int:
        """Records that no file holds yet."""
        return len(self.loose.get(IN_MEMORY, ()))

    def plus(self, fresh: Chunks) -> ChunkRecords:
        """These, and more that no file holds yet."""
        held = self.loose.get(IN_MEMORY)
        loose = {**self.loose, IN_MEMORY: fresh if held is None else np.concatenate([held, fresh])}
        return ChunkRecords(loose, self.files)

    def read(self, file: int, first: int, count: int, crc: int) -> Chunks:
        """Returns the records of a shard file.

        Args:
            file: Number of the file that holds them.
            first: The first of them.
            count: How many.
            crc: crc32c of them.

        Raises:
            CacheCorruptError: they fail their checksum.
        """
        if file in self.loose:
            found = self.loose[file][first : first + count]
        else:
            found = self.files[file].read(first, count)
        if checksum(found) != crc:
            where = self.files[file].path if file in self.files else f"chunk file {file}"
            raise CacheCorruptError(f"'{where}' fails the checksum of records from {first} on.")
        return found

    def gather(
        self,
        file: npt.NDArray[np.int32],
        first: npt.NDArray[np.int64],
        count: npt.NDArray[np.int64],
    ) -> Chunks:
        """The records of many shard files one after the other; all must be in memory."""
        starts, parts, held = np.zeros(len(file), np.int64), [np.zeros(0, CHUNK)], 0
        for number, records in self.loose.items():
            starts[file == number] = held
            parts.append(records)
            held += len(records)
        ends = np.cumsum(count)
        places = np.repeat(starts + first - (ends - count), count) + np.arange(count.sum())
        found: Chunks = np.concatenate(parts)[places]
        return found


def checksum(records: Chunks) -> int:
    """crc32c of records as they are stored."""
    return int(crc32c.crc32c(np.ascontiguousarray(records).view(np.uint8).data))


def file_bytes(records: Chunks) -> bytes:
    """The bytes of a file of records, in NumPy's own format."""
    out = io.BytesIO()
    np.lib.format.write_array(out, records, version=(1, 0), allow_pickle=False)
    return out.getvalue()


def parse(data: bytes) -> Chunks:
    """Reads ``file_bytes``."""
    records: Chunks = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    return records


_MAX_HEAD_BYTES = 4096


def _damaged(path: Path, why: str) -> CacheCorruptError:
    # cache/key/index/tables/file
    return CacheCorruptError(
        f"'{path}' is no file of chunk records: {why}.", run=repair_command(path.parents[3])
    )

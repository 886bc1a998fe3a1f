"""Finding the record of a shard file, among millions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from fcache.store.chunks import ChunkRecords, Chunks
from fcache.store.columns import Columns
from fcache.store.shard import ShardRecord

ShardKey = tuple[str, str, int]  # bucket, array, shard number: one file


class ShardTable:
    """Finds the record of a shard file by bucket, array and shard number.

    Holds NumPy arrays: Arrow takes locks inside, which a fork may copy while they are held.

    Args:
        shards: The rows of the shards table.
        chunks: The records of their chunks.
    """

    def __init__(self, shards: Columns, chunks: ChunkRecords) -> None:
        self._chunks = chunks
        self._columns = {name: shards.array(name) for name in _COLUMNS}
        # By bucket and array: the row of each shard, -1 for none; and whether there is one, as
        # bytes, which can be searched.
        self._rows: dict[tuple[str, str], npt.NDArray[np.int32]] = {}
        self._there: dict[tuple[str, str], bytes] = {}
        bucket, buckets = shards.encoded("bucket")
        array, arrays = shards.encoded("array")
        number = shards.array("shard")
        code = bucket * max(1, len(arrays)) + array
        order = np.argsort(code, kind="stable")
        ends = np.searchsorted(code[order], np.arange(len(buckets) * len(arrays) + 1))
        for group in range(len(ends) - 1):
            rows = order[ends[group] : ends[group + 1]]
            if len(rows):
                key = buckets[group // len(arrays)], arrays[group % len(arrays)]
                found = np.full(number[rows].max() + 1, -1, np.int32)
                found[number[rows]] = rows
                self._rows[key], self._there[key] = found, (found >= 0).tobytes()

    def __contains__(self, key: ShardKey) -> bool:
        bucket, array, shard = key
        return self.holds(bucket, array, shard, shard + 1)

    def holds(self, bucket: str, array: str, first: int, end: int) -> bool:
        """Whether the shards of an array from ``first`` on, before ``end``, are all there."""
        there = self._there.get((bucket, array), b"")
        return end <= len(there) and there.find(0, first, end) < 0

    def keys(self) -> Iterator[ShardKey]:
        """Yields every (bucket, array, shard)."""
        for (bucket, array), rows in self._rows.items():
            for shard in np.flatnonzero(rows >= 0).tolist():
                yield bucket, array, shard

    def row(self, key: ShardKey) -> int:
        """Where the table has a shard file.

        Raises:
            KeyError: nowhere.
        """
        bucket, array, shard = key
        if key not in self:
            raise KeyError(key)
        return int(self._rows[bucket, array][shard])

    def record(self, key: ShardKey) -> ShardRecord:
        """The record of a shard file, by (bucket, array, shard).

        Raises:
            KeyError: it is not committed.
            CacheCorruptError: its record is damaged.
        """
        row, found = self.row(key), self._found(key)
        columns = (found[name].tolist() for name in ("position", "offset", "size_bytes", "crc32c"))
        return ShardRecord(
            int(self._columns["size_bytes"][row]),
            int(self._columns["index_crc"][row]),
            tuple(zip(*columns, strict=True)),
        )

    def chunks(self, key: ShardKey) -> tuple[npt.NDArray[np.int64], ...]:
        """Positions, offsets (bytes) and crc32c of the chunks of a shard file.

        Raises:
            KeyError: it is not committed.
            CacheCorruptError: its record is damaged.
        """
        found = self._found(key)
        return tuple(found[name].astype(np.int64) for name in ("position", "offset", "crc32c"))

    def _found(self, key: ShardKey) -> Chunks:
        at = self.row(key)
        names = ("chunk_file", "first_chunk", "num_chunks", "chunks_crc")
        return self._chunks.read(*(int(self._columns[name][at]) for name in names))


_COLUMNS = ("size_bytes", "index_crc", "chunk_file", "first_chunk", "num_chunks", "chunks_crc")

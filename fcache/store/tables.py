"""Parquet tables of a view: every committed frame and shard, and how items ended.

Commit records are small files, one a shard. A job folds them into a new *generation* of three
Parquet tables when it ends; ``CURRENT`` names the generation and its checksums. What is true is
the current generation plus the commit records that lie beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from fcache.errors import CacheCorruptError
from fcache.store.files import seal, unseal, write_whole
from fcache.store.identity import canonical
from fcache.store.layout import SHARD_ROWS, Bucket
from fcache.store.records import FrameRecord, Outcome, Part
from fcache.store.shard import ShardRecord

FRAMES = pa.schema(
    [
        ("bucket", pa.string()),
        ("row", pa.int64()),
        ("item", pa.string()),
        ("index", pa.int32()),
        ("frame_name", pa.string()),
        ("source_index", pa.int32()),
        ("pts_us", pa.int64()),
    ]
)
SHARDS = pa.schema(
    [
        ("bucket", pa.string()),
        ("shard", pa.int32()),
        ("array", pa.string()),
        ("size_bytes", pa.int64()),
        ("index_crc", pa.uint32()),
        ("positions", pa.list_(pa.int32())),
        ("offsets", pa.list_(pa.int64())),
        ("sizes", pa.list_(pa.int64())),
        ("crcs", pa.list_(pa.uint32())),
        ("stats", pa.string()),
        ("provenance", pa.string()),
    ]
)
ENDED = pa.schema([("item", pa.string()), ("num_frames", pa.int32())])


@dataclass(frozen=True, slots=True)
class Tables:
    """Committed frames, shards and ended items as Arrow tables."""

    frames: pa.Table
    shards: pa.Table
    ended: pa.Table

    @classmethod
    def empty(cls) -> Tables:
        """Tables of a view nobody has written to."""
        return cls(FRAMES.empty_table(), SHARDS.empty_table(), ENDED.empty_table())

    @classmethod
    def of_parts(cls, parts: Iterable[Part]) -> Tables:
        """Tables of commit records."""
        parts = list(parts)
        frames = [
            {
                "bucket": part.bucket.name,
                "row": frame.row,
                "item": frame.item,
                "index": frame.index,
                "frame_name": frame.frame_name,
                "source_index": frame.source_index,
                "pts_us": frame.pts_us,
            }
            for part in parts
            for frame in part.frames
        ]
        shards = [
            _shard_row(part, name, record) for part in parts for name, record in part.arrays.items()
        ]
        ended = [
            {"item": item, "num_frames": count}
            for part in parts
            for item, count in part.ended.items()
        ]
        return cls(
            pa.Table.from_pylist(frames, FRAMES),
            pa.Table.from_pylist(shards, SHARDS),
            pa.Table.from_pylist(ended, ENDED),
        )

    def plus(self, newer: Tables) -> Tables:
        """Both together; where both know a shard, ``newer`` stands."""
        if not len(newer.shards):
            return self
        kept = self.without(set(zip(*_columns(newer.shards, "bucket", "shard"), strict=True)))
        return Tables(
            pa.concat_tables([kept.frames, newer.frames]),
            pa.concat_tables([kept.shards, newer.shards]),
            pa.concat_tables([kept.ended, newer.ended]),
        )

    def without(self, shards: Set[tuple[str, int]]) -> Tables:
        """These tables less the given (bucket, shard) row groups."""
        of_shards = zip(*_columns(self.shards, "bucket", "shard"), strict=True)
        buckets = self.frames["bucket"].to_pylist()
        of_frames = zip(
            buckets, (np.asarray(self.frames["row"]) // SHARD_ROWS).tolist(), strict=True
        )
        return Tables(
            self.frames.filter(pa.array([key not in shards for key in of_frames], pa.bool_())),
            self.shards.filter(pa.array([key not in shards for key in of_shards], pa.bool_())),
            self.ended,
        )

    def with_ended(self, outcomes: Iterable[Outcome]) -> Tables:
        """These tables with more ends, one row an item."""
        ended = dict(zip(*_columns(self.ended, "item", "num_frames"), strict=True))
        ended |= {outcome.item: outcome.num_frames for outcome in outcomes}
        rows = [{"item": item, "num_frames": count} for item, count in ended.items()]
        return Tables(self.frames, self.shards, pa.Table.from_pylist(rows, ENDED))

    def save(self, folder: Path) -> None:
        """Writes a new generation and makes it current; the one before the last is removed."""
        before = _current(folder)
        generation = before["generation"] + 1 if before else 1
        files = {}
        for name in ("frames", "shards", "ended"):
            path = folder / f"{name}.{generation:06d}.parquet"
            files[name] = {"name": path.name, "crc32c": _save_table(getattr(self, name), path)}
        write_whole(folder / "CURRENT", seal({"generation": generation, "files": files}))
        for path in folder.glob("*.parquet"):
            if path.suffixes[0] not in {f".{generation:06d}", f".{generation - 1:06d}"}:
                path.unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: Path) -> tuple[int, Tables]:
        """Returns the current generation's number and tables; 0 and empty ones without any.

        Raises:
            CacheCorruptError: a table is missing, or fails its checksum.
        """
        current = _current(folder)
        if current is None:
            return 0, cls.empty()
        tables = {}
        for name, schema in (("frames", FRAMES), ("shards", SHARDS), ("ended", ENDED)):
            entry = current["files"][name]
            tables[name] = _load_table(folder / entry["name"], entry["crc32c"]).cast(schema)
        return current["generation"], cls(**tables)


class ShardTable:
    """Finds the record of a shard file by bucket, array and shard number."""

    def __init__(self, table: pa.Table) -> None:
        keys = zip(*_columns(table, "bucket", "array", "shard"), strict=True)
        self._rows = {key: row for row, key in enumerate(keys)}
        self._size_bytes = np.asarray(table["size_bytes"])
        self._index_crc = np.asarray(table["index_crc"])
        self._lists = {
            name: _flat(table[name]) for name in ("positions", "offsets", "sizes", "crcs")
        }

    def __contains__(self, key: tuple[str, str, int]) -> bool:
        return key in self._rows

    def keys(self) -> Iterable[tuple[str, str, int]]:
        """Every (bucket, array, shard)."""
        return self._rows.keys()

    def record(self, key: tuple[str, str, int]) -> ShardRecord:
        """The record of a shard file, by (bucket, array, shard)."""
        row = self._rows[key]
        columns = [self._list(name, row).tolist() for name in self._lists]
        return ShardRecord(
            int(self._size_bytes[row]),
            int(self._index_crc[row]),
            tuple(zip(*columns, strict=True)),
        )

    def chunks(self, key: tuple[str, str, int]) -> tuple[npt.NDArray[np.int64], ...]:
        """Positions, offsets (bytes) and crc32c of the chunks of a shard file."""
        row = self._rows[key]
        return (
            self._list("positions", row).astype(np.int64),
            self._list("offsets", row),
            self._list("crcs", row).astype(np.int64),
        )

    def _list(self, name: str, row: int) -> npt.NDArray[np.int64]:
        ends, values = self._lists[name]
        return values[ends[row] : ends[row + 1]]


def frame_records(table: pa.Table) -> list[tuple[Bucket, FrameRecord]]:
    """The rows of a frames table as values."""
    return [(Bucket.parse(row.pop("bucket")), FrameRecord(**row)) for row in table.to_pylist()]


def _shard_row(part: Part, name: str, record: ShardRecord) -> dict[str, object]:
    positions, offsets, sizes, crcs = zip(*record.chunks, strict=True)
    return {
        "bucket": part.bucket.name,
        "shard": part.shard,
        "array": name,
        "size_bytes": record.size_bytes,
        "index_crc": record.index_crc,
        "positions": positions,
        "offsets": offsets,
        "sizes": sizes,
        "crcs": crcs,
        "stats": canonical(part.stats).decode(),
        "provenance": canonical(part.provenance).decode(),
    }


def current_generation(folder: Path) -> int:
    """Number of the current generation, 0 without any."""
    current = _current(folder)
    return int(current["generation"]) if current else 0


def _columns(table: pa.Table, *names: str) -> list[list[Any]]:
    return [table[name].to_pylist() for name in names]


def _flat(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns where each row's list starts and ends, and all the lists' values in one array."""
    lists = pa.concat_arrays(column.chunks) if column.num_chunks else column.combine_chunks()
    return np.asarray(lists.offsets), np.asarray(lists.values)


def _current(folder: Path) -> dict[str, Any] | None:
    try:
        return unseal(folder / "CURRENT")
    except FileNotFoundError:
        return None


def _save_table(table: pa.Table, path: Path) -> int:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue()
    write_whole(path, data)
    return int(crc32c.crc32c(data))


def _load_table(path: Path, crc: int) -> pa.Table:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CacheCorruptError(f"'{path}' is missing; 'CURRENT' beside it names it.") from None
    if crc32c.crc32c(data) != crc:
        raise CacheCorruptError(f"'{path}' does not match its checksum; a bit has changed.")
    return pq.read_table(pa.BufferReader(data))

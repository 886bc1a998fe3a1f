"""Parquet tables of a view: every committed frame and shard, and how items ended.

Commit records are small files, one a shard. A job folds them into a new *generation* of three
Parquet tables when it ends; ``CURRENT`` names their files. What is true is the current generation
plus the commit records that lie beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fcache.errors import CacheCorruptError
from fcache.store.current import Current, Table
from fcache.store.files import MIRROR, repair_command, write_twice
from fcache.store.identity import canonical
from fcache.store.layout import SHARD_ROWS
from fcache.store.records import PLACEMENT_FIELDS, Item, Part
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
        ("sha256", pa.string()),
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
SCHEMAS = {"frames": FRAMES, "shards": SHARDS, "ended": ENDED}


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
                "sha256": frame.sha256,
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

    def with_ended(self, num_frames: Mapping[str, int], less: Set[str] = frozenset()) -> Tables:
        """These tables with the lengths of more items, one row an item, and less some others."""
        ended = dict(zip(*_columns(self.ended, "item", "num_frames"), strict=True))
        ended.update(num_frames)
        rows = [(item, count) for item, count in ended.items() if item not in less]
        columns = [list(column) for column in zip(*rows, strict=True)] or [[], []]
        return Tables(self.frames, self.shards, pa.Table.from_arrays(columns, schema=ENDED))

    def save(self, index: Path, items: Mapping[str, Item]) -> None:
        """Puts a new generation in force; the caller holds the view's lock.

        The generation before it stays for those who are reading it; older ones are removed. Where
        each frame lies on its canvas is in the journal; the frames table repeats it for readers
        that know Parquet only.
        """
        whole = Tables(_with_placement(self.frames, items), self.shards, self.ended)
        folder, current = index / "tables", Current.read(index) or Current()
        generation = current.generation + 1
        written = {}
        for name in SCHEMAS:
            path = folder / f"{name}.{generation:06d}.parquet"
            written[name] = Table(path.name, _save_table(index, getattr(whole, name), path))
        replace(current, generation=generation, tables=written).write(index)
        copied = {table.name for table in written.values()}
        kept = copied | {table.name for table in current.tables.values()}
        left = [path for path in folder.glob("*.parquet") if path.name not in kept]
        left += [p for p in (index / MIRROR / "tables").glob("*") if p.name not in copied]
        for path in left:
            path.unlink(missing_ok=True)

    @classmethod
    def load(cls, index: Path) -> tuple[int, Tables]:
        """Returns the current generation's number and tables; 0 and empty ones without any.

        Raises:
            CacheCorruptError: a table is missing, or fails its checksum.
        """
        current = Current.read(index)
        while current is not None and current.tables:
            try:
                tables = {name: _load_table(index, current, name) for name in SCHEMAS}
            except FileNotFoundError as error:
                # Two jobs that end while this reads may take the files away.
                before, current = current, Current.read(index)
                if current == before:
                    raise CacheCorruptError(
                        f"'{error.filename}' is missing; 'CURRENT' names it.",
                        run=repair_command(index.parent.parent),
                    ) from None
            else:
                return current.generation, cls(**tables)
        return 0, cls.empty()


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


def made_with(tables: Tables) -> dict[str, set[str]]:
    """Returns what committed shards were made with: the values of each field of provenance."""
    found: dict[str, set[str]] = {}
    for text in pc.unique(tables.shards["provenance"]).to_pylist():
        for name, value in json.loads(text).items():
            if name not in PASSING:
                found.setdefault(name, set()).add(str(value))
    return found


# Provenance that differs from shard to shard.
PASSING = {"host", "pid", "started_s", "committed_s", "num_frames", "batch"}


def _columns(table: pa.Table, *names: str) -> list[list[Any]]:
    return [table[name].to_pylist() for name in names]


def _flat(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns where each row's list starts and ends, and all the lists' values in one array."""
    lists = pa.concat_arrays(column.chunks) if column.num_chunks else column.combine_chunks()
    return np.asarray(lists.offsets), np.asarray(lists.values)


def _save_table(index: Path, table: pa.Table, path: Path) -> int:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue()
    write_twice(index, path, data)
    return int(crc32c.crc32c(data))


def _load_table(index: Path, current: Current, name: str) -> pa.Table:
    table = current.tables[name]
    path = index / "tables" / table.name
    data = path.read_bytes()
    if crc32c.crc32c(data) != table.crc32c:
        raise CacheCorruptError(
            f"'{path}' does not match its checksum; a bit has changed.",
            run=repair_command(index.parent.parent),
        )
    file, schema = pq.ParquetFile(pa.BufferReader(data)), SCHEMAS[name]
    columns = [column for column in schema.names if column in file.schema_arrow.names]
    # pyarrow 26's threads abort the process at its exit now and then.
    found = file.read(columns, use_threads=False)
    for field in schema:
        if field.name not in found.column_names:  # written before there was such a column
            found = found.append_column(field, pa.nulls(len(found), field.type))
    return found.select(schema.names).cast(schema)


def _with_placement(frames: pa.Table, items: Mapping[str, Item]) -> pa.Table:
    """The frames table with the placement of each frame, null where its item is unknown."""
    placements = [
        dict(items[name].placement) if name in items else {} for name in frames["item"].to_pylist()
    ]
    for column in PLACEMENT_FIELDS:
        kind = pa.bool_() if column == "flip" else pa.int32()
        values = pa.array([placement.get(column) for placement in placements], kind)
        frames = frames.append_column(column, values)
    return frames

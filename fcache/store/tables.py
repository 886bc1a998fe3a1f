"""Parquet tables of a view: every committed frame and shard, and how items ended.

Commit records are small files, one a shard. A job folds them into a new *generation* of tables when
it ends; ``CURRENT`` names their files. What is true is the current generation plus the commit
records that lie beside it.
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

from fcache.errors import CacheCorruptError
from fcache.store.chunks import (
    IN_MEMORY,
    LARGE_BYTES,
    ChunkFile,
    ChunkRecords,
    Chunks,
    file_bytes,
    parse,
)
from fcache.store.columns import Columns, parquet
from fcache.store.current import Current, Table
from fcache.store.files import MIRROR, repair_command, write_twice
from fcache.store.layout import SHARD_ROWS
from fcache.store.older import with_chunk_records
from fcache.store.part_tables import FRAMES, SHARDS, chunks_of, frames_of, shards_of
from fcache.store.records import PLACEMENT_FIELDS, Item, Part
from fcache.store.shard_table import ShardTable as ShardTable

ENDED = pa.schema([("item", pa.string()), ("num_frames", pa.int32())])
SCHEMAS = {"frames": FRAMES, "shards": SHARDS, "ended": ENDED}


@dataclass(frozen=True, slots=True)
class Tables:
    """Committed frames and shards as columns, with the number of frames of items that ended."""

    frames: Columns
    shards: Columns
    ended: Mapping[str, int]
    chunks: ChunkRecords

    @classmethod
    def empty(cls) -> Tables:
        """Tables of a view nobody has written to."""
        return cls(Columns(FRAMES), Columns(SHARDS), {}, ChunkRecords())

    @classmethod
    def of_parts(cls, parts: Iterable[Part]) -> Tables:
        """Tables of commit records."""
        parts = list(parts)
        records = chunks_of(parts)
        ended = {item: count for part in parts for item, count in part.ended.items()}
        return cls(
            Columns(FRAMES, more=frames_of(parts)),
            Columns(SHARDS, more=shards_of(parts, records)),
            ended,
            ChunkRecords({IN_MEMORY: records}),
        )

    def plus(self, newer: Tables) -> Tables:
        """Both together; where both know a shard, ``newer`` stands.

        Args:
            newer: Tables of commit records.
        """
        if not len(newer.shards):
            return self
        groups = set(zip(*(newer.shards[n].to_pylist() for n in ("bucket", "shard")), strict=True))
        kept, rows = self.without(groups), newer.shards.table()
        first = np.asarray(rows["first_chunk"]) + self.chunks.num_fresh
        place = rows.schema.get_field_index("first_chunk")
        rows = rows.set_column(place, SHARDS.field(place), pa.array(first))
        return Tables(
            kept.frames.plus(newer.frames.table()),
            kept.shards.plus(rows),
            {**kept.ended, **newer.ended},
            kept.chunks.plus(newer.chunks.loose[IN_MEMORY]),
        )

    def without(self, shards: Set[tuple[str, int]]) -> Tables:
        """These tables less the given (bucket, shard) row groups."""
        kept = _outside(self.shards, self.shards.array("shard"), shards)
        if kept.all():
            return self
        of_frames = _outside(self.frames, self.frames.array("row") // SHARD_ROWS, shards)
        return replace(self, frames=self.frames.where(of_frames), shards=self.shards.where(kept))

    def with_ended(self, num_frames: Mapping[str, int], less: Set[str] = frozenset()) -> Tables:
        """These tables with the lengths of more items, one row an item, and less some others."""
        if not num_frames and not less:
            return self
        ended = {**self.ended, **num_frames}
        return replace(self, ended={item: n for item, n in ended.items() if item not in less})

    def shard_table(self) -> ShardTable:
        """A look-up of the committed shard files."""
        return ShardTable(self.shards, self.chunks)

    def save(self, index: Path, items: Mapping[str, Item]) -> None:
        """Puts a new generation in force; the caller holds the view's lock.

        The generation before it stays for those who are reading it; older ones are removed. Where
        each frame lies on its canvas is in the journal; the frames table repeats it for readers
        that know Parquet only.
        """
        folder, current = index / "tables", Current.read(index) or Current()
        generation = current.generation + 1
        shards, chunks = self._with_chunk_file(generation)
        written = {}
        if chunks is not None:
            name = f"{_chunk_key(generation)}.npy"
            written[_chunk_key(generation)] = _write(index, name, file_bytes(chunks))
        for number in np.unique(np.asarray(shards["chunk_file"])).tolist():
            if number != generation:
                written[_chunk_key(number)] = current.tables[_chunk_key(number)]
        for name in SCHEMAS:
            table = shards if name == "shards" else self._whole(name, items)
            written[name] = _write(index, f"{name}.{generation:06d}.parquet", parquet(table))
        replace(current, generation=generation, tables=written).write(index)
        copied = {table.name for table in written.values()}
        kept = copied | {table.name for table in current.tables.values()}
        left = [path for path in folder.glob("[!.]*") if path.name not in kept]
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
                return current.generation, _load(index, current)
            except FileNotFoundError as error:
                # Two jobs that end while this reads may take the files away.
                before, current = current, Current.read(index)
                if current == before:
                    raise CacheCorruptError(
                        f"'{error.filename}' is missing; 'CURRENT' names it.",
                        run=repair_command(index.parent.parent),
                    ) from None
        return 0, cls.empty()

    def _whole(self, name: str, items: Mapping[str, Item]) -> pa.Table:
        if name == "frames":
            return _with_placement(self.frames.table(), items)
        return pa.table([list(self.ended), list(self.ended.values())], schema=ENDED)

    def _with_chunk_file(self, generation: int) -> tuple[pa.Table, Chunks | None]:
        """The shards table, and the chunk records that a new file must hold for it, if any."""
        shards = self.shards.table()
        file = np.asarray(shards["chunk_file"])
        if not (file == IN_MEMORY).any():
            return shards, None
        moved = np.isin(file, list(self.chunks.loose))
        first, count = np.asarray(shards["first_chunk"]), np.asarray(shards["num_chunks"])
        records = self.chunks.gather(file[moved], first[moved], count[moved])
        file, first = file.copy(), first.copy()
        file[moved] = generation
        first[moved] = np.cumsum(count[moved]) - count[moved]
        for name, values in (("chunk_file", file), ("first_chunk", first)):
            place = SHARDS.get_field_index(name)
            shards = shards.set_column(place, SHARDS.field(place), pa.array(values))
        return shards, records


def made_with(tables: Tables) -> dict[str, set[str]]:
    """Returns what committed shards were made with: the values of each field of provenance."""
    found: dict[str, set[str]] = {}
    for record in origins(tables):
        for name, value in record.items():
            if name not in PASSING:
                found.setdefault(name, set()).add(str(value))
    return found


def origins(tables: Tables) -> list[dict[str, Any]]:
    """Returns each different provenance of the committed shards, less their times."""
    return [json.loads(text) for text in tables.shards["provenance"].unique().to_pylist()]


# Provenance that differs from worker to worker.
PASSING = {"host", "pid", "batch"}


def _load(index: Path, current: Current) -> Tables:
    found = {name: _load_table(index, current, name) for name in SCHEMAS}
    columns = {name: Columns(schema, found[name]) for name, schema in SCHEMAS.items()}
    loose, files = {}, {}
    for name in current.tables.keys() - SCHEMAS.keys():
        path, number = index / "tables" / current.tables[name].name, int(name.split(".")[1])
        if path.stat().st_size < LARGE_BYTES:
            loose[number] = parse(_load_table(index, current, name))
        else:
            files[number] = ChunkFile(path)
    ended = columns["ended"]
    lengths = dict(zip(ended["item"].to_pylist(), ended["num_frames"].to_pylist(), strict=True))
    shards, chunks = columns["shards"], ChunkRecords(loose, files)
    if "chunk_file" not in shards.names:
        shards, records = with_chunk_records(found["shards"])
        chunks = chunks.plus(records)
    return Tables(columns["frames"], shards, lengths, chunks)


def _load_table(index: Path, current: Current, name: str) -> bytes:
    table = current.tables[name]
    path = index / "tables" / table.name
    data = path.read_bytes()
    if crc32c.crc32c(data) != table.crc32c:
        raise CacheCorruptError(
            f"'{path}' does not match its checksum; a bit has changed.",
            run=repair_command(index.parent.parent),
        )
    return data


def _write(index: Path, name: str, data: bytes) -> Table:
    write_twice(index, index / "tables" / name, data)
    return Table(name, crc32c.crc32c(data))


def _chunk_key(number: int) -> str:
    """What ``CURRENT`` calls a file of chunk records; its name begins with it."""
    return f"chunks.{number:06d}"


def _outside(
    table: Columns, shard: npt.NDArray[np.generic], shards: Set[tuple[str, int]]
) -> npt.NDArray[np.bool_]:
    """Which rows are of none of the (bucket, shard) row groups.

    Args:
        table: Has the bucket of each row.
        shard: The shard of each row.
        shards: The row groups.
    """
    bucket, names = table.encoded("bucket")
    size = int(shard.max(initial=-1)) + 1
    outside = np.ones((len(names), size), np.bool_)
    numbers = {name: number for number, name in enumerate(names)}
    inside = [(numbers[name], one) for name, one in shards if name in numbers and one < size]
    if inside:
        outside[tuple(np.array(inside).T)] = False
    found: npt.NDArray[np.bool_] = outside[bucket, shard]
    return found


def _with_placement(frames: pa.Table, items: Mapping[str, Item]) -> pa.Table:
    """The frames table with the placement of each frame, null where its item is unknown."""
    codes, names = Columns(FRAMES, more=frames).encoded("item")
    placements = [dict(items[name].placement) if name in items else {} for name in names]
    for column in PLACEMENT_FIELDS:
        kind = pa.bool_() if column == "flip" else pa.int32()
        values = pa.array([placement.get(column) for placement in placements], kind)
        frames = frames.append_column(column, values.take(pa.array(codes)))
    return frames

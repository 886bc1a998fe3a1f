"""What commit records say, as rows of tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fcache.store.chunks import CHUNK, IN_MEMORY, Chunks, checksum
from fcache.store.columns import TEXT
from fcache.store.identity import canonical
from fcache.store.records import Part

FRAMES = pa.schema(
    [
        ("bucket", TEXT),
        ("row", pa.int64()),
        ("item", TEXT),
        ("index", pa.int32()),
        ("frame_name", TEXT),
        ("source_index", pa.int32()),
        ("pts_us", pa.int64()),
        ("sha256", pa.string()),
    ]
)
SHARDS = pa.schema(
    [
        ("bucket", TEXT),
        ("shard", pa.int32()),
        ("array", TEXT),
        ("size_bytes", pa.int64()),
        ("index_crc", pa.uint32()),
        ("chunk_file", pa.int32()),
        ("first_chunk", pa.int64()),
        ("num_chunks", pa.int32()),
        ("chunks_crc", pa.uint32()),
        ("stats", pa.string()),
        ("provenance", TEXT),
        ("started_s", pa.float64()),
        ("committed_s", pa.float64()),
        ("num_frames", pa.int32()),
    ]
)
TIMES = ("started_s", "committed_s", "num_frames")  # provenance that differs from shard to shard


def frames_of(parts: Sequence[Part]) -> pa.Table:
    """The rows of the frames table."""
    frames = [frame for part in parts for frame in part.frames]
    columns: dict[str, list[Any]] = {
        name: [getattr(frame, name) for frame in frames] for name in FRAMES.names[1:]
    }
    columns["bucket"] = [part.bucket.name for part in parts for _ in part.frames]
    return _table(columns, FRAMES)


def shards_of(parts: Sequence[Part], chunks: Chunks) -> pa.Table:
    """The rows of the shards table.

    Args:
        parts: The commit records.
        chunks: What ``chunks_of`` makes of them; the rows say where in it they lie.
    """
    columns: dict[str, list[Any]] = {name: [] for name in SHARDS.names}
    first = 0
    for part in parts:
        made = {**split_times(part.provenance), "stats": canonical(part.stats).decode()}
        for array, record in part.arrays.items():
            row = {
                **made,
                "bucket": part.bucket.name,
                "shard": part.shard,
                "array": array,
                "size_bytes": record.size_bytes,
                "index_crc": record.index_crc,
                "chunk_file": IN_MEMORY,
                "first_chunk": first,
                "num_chunks": len(record.chunks),
                "chunks_crc": checksum(chunks[first : first + len(record.chunks)]),
            }
            first += len(record.chunks)
            for name, column in columns.items():
                column.append(row[name])
    return _table(columns, SHARDS)


def chunks_of(parts: Sequence[Part]) -> Chunks:
    """The records of all chunks, in the order of the rows of ``shards_of``."""
    every = [record.chunks for part in parts for record in part.arrays.values()]
    count = sum(map(len, every))
    numbers = chain.from_iterable(chain.from_iterable(every))
    flat: npt.NDArray[np.int64] = np.fromiter(numbers, np.int64, 4 * count)
    chunks = np.empty(count, CHUNK)
    for place, name in enumerate(("position", "offset", "size_bytes", "crc32c")):
        chunks[name] = flat[place::4]
    return chunks


def split_times(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Returns ``TIMES`` of a provenance, None where it has none, and ``provenance`` less them."""
    lasting = {name: value for name, value in provenance.items() if name not in TIMES}
    times = {name: provenance.get(name) for name in TIMES}
    return {**times, "provenance": canonical(lasting).decode()}


def _table(columns: Mapping[str, list[Any]], schema: pa.Schema) -> pa.Table:
    arrays = [pa.array(columns[field.name], field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)

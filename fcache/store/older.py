"""Tables as the first versions wrote them."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fcache.store.chunks import CHUNK, IN_MEMORY, Chunks, checksum
from fcache.store.columns import Columns
from fcache.store.part_tables import SHARDS, TIMES, split_times


def with_chunk_records(data: bytes) -> tuple[Columns, Chunks]:
    """Reads a shards table that holds the chunks of each shard as lists.

    Args:
        data: The Parquet file.

    Returns:
        The table as it is today, and the records that it points to.
    """
    # pyarrow 26's threads abort the process at its exit now and then.
    old = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    columns = {name: old[name] for name in SHARDS.names if name in old.column_names}
    lists = [old[name] for name in ("offsets", "sizes", "positions", "crcs")]
    count = np.asarray(pc.list_value_length(lists[0]), np.int64)
    chunks = np.empty(count.sum(), CHUNK)
    for name, values in zip(CHUNK.names or (), lists, strict=True):
        chunks[name] = np.asarray(pc.list_flatten(values))
    first = np.cumsum(count) - count
    ends = zip(first.tolist(), (first + count).tolist(), strict=True)
    # The text is the same in every array of a row group.
    split = {text: split_times(json.loads(text)) for text in old["provenance"].unique().to_pylist()}
    made = [split[text] for text in old["provenance"].to_pylist()]
    columns |= {name: pa.array([one[name] for one in made]) for name in (*TIMES, "provenance")}
    columns |= {
        "chunk_file": pa.array(np.full(len(old), IN_MEMORY, np.int32)),
        "first_chunk": pa.array(first),
        "num_chunks": pa.array(count),
        "chunks_crc": pa.array([checksum(chunks[start:end]) for start, end in ends]),
    }
    table = pa.table({name: columns[name] for name in SHARDS.names}).cast(SHARDS)
    return Columns(SHARDS, more=table), chunks

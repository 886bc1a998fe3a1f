"""A view whose tables the first versions wrote: shards with lists of their chunks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import crc32c
import numpy as np
import pyarrow as pa

from fcache.store.cache import StoreCache
from fcache.store.columns import parquet
from fcache.store.current import Current, Table
from fcache.store.files import write_twice
from fcache.store.index import ViewIndex
from fcache.store.part_tables import TIMES
from fcache.store.tables import Tables
from tests.store.making import fill, make_cache, request, values

LISTS = {
    "offsets": ("offset", pa.int64()),
    "sizes": ("size_bytes", pa.int64()),
    "positions": ("position", pa.int32()),
    "crcs": ("crc32c", pa.uint32()),
}


def write_as_before(index: ViewIndex) -> None:
    """Folds a view and writes its shards table in the form of the first versions."""
    index.fold()
    _, tables = Tables.load(index.index)
    shards = tables.shards.table()
    where = ("chunk_file", "first_chunk", "num_chunks", "chunks_crc")
    found = zip(*(shards[name].to_pylist() for name in where), strict=True)
    records = [tables.chunks.read(*one) for one in found]
    provenance = [
        {**json.loads(row["provenance"]), **{time: row[time] for time in TIMES}}
        for row in shards.to_pylist()
    ]
    old = shards.drop_columns([*where, *TIMES, "provenance"])
    for name, (field, kind) in LISTS.items():
        chunks = [one[field].tolist() for one in records]
        old = old.append_column(name, pa.array(chunks, pa.list_(kind)))
    old = old.append_column("provenance", pa.array([json.dumps(one) for one in provenance]))
    current = Current.read(index.index)
    assert current is not None
    written = {"frames": current.tables["frames"], "ended": current.tables["ended"]}
    data, name = parquet(old), f"shards.{current.generation:06d}.parquet"
    write_twice(index.index, index.index / "tables" / name, data)
    written["shards"] = Table(name, crc32c.crc32c(data))
    Current(current.generation, written, current.journal).write(index.index)


def test_frames_under_older_tables_are_read(tmp_path: Path) -> None:
    _, index, made = make_cache(tmp_path / "cache")
    write_as_before(index)
    # A process of its own: what other tests import stands in for nothing here.
    code = f"""
from pathlib import Path
from fcache.store.cache import StoreCache
view = StoreCache(Path({str(tmp_path / "cache")!r})).view()
print(sum(float(view.read(view.frames(v), [0, 1]).stages[0].sum(dtype="float64")) for v in "ab"))
"""
    read = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not read.returncode, read.stderr
    expected = sum(
        float(values(index, made[video], frame)[0][0].sum(dtype="float64"))
        for video in "ab"
        for frame in (0, 1)
    )
    assert np.isclose(float(read.stdout), expected, rtol=1e-9)


def test_what_is_folded_into_older_tables_is_written_as_today(tmp_path: Path) -> None:
    _, index, made = make_cache(tmp_path / "cache")
    before = Tables.load(index.index)[1]
    write_as_before(index)
    wanted = request("later", 5)
    item = index.reserve([wanted], [])[wanted.item]
    fill(index, item, 5)
    index.fold()
    _, tables = Tables.load(index.index)
    assert "chunk_file" in tables.shards.names
    assert not len(before.shards)  # nothing was folded yet
    view = StoreCache(tmp_path / "cache").view()
    for video, frames in (("a", 20), ("c/d é", 16)):
        clip = view.read(view.frames(video), list(range(frames)))
        for frame in range(frames):
            stage, pixels = values(index, made[video], frame)
            assert np.array_equal(clip.stages[0][frame], stage[0])
            assert clip.pixels is not None
            assert np.array_equal(clip.pixels[frame], pixels)

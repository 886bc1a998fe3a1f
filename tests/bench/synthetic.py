"""The bookkeeping of a large cache, made without frames: manifest, journal, tables, no shard files.

Videos are folders of frames, as in VIPSeg, so that every frame has a content hash. Each lies in one
of a few sizes. Numbers are drawn from a seed. What a commit record would say is drawn as
columns, since ten million frames would take minutes and gigabytes as objects; ``parts_of`` makes
records of them where there are few.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fcache.extract.request import plan_request, read_request
from fcache.manifest import Manifest, Video
from fcache.store.cache import create_root
from fcache.store.chunks import CHUNK, IN_MEMORY, ChunkRecords, checksum
from fcache.store.columns import Columns
from fcache.store.files import seal
from fcache.store.identity import canonical
from fcache.store.index import ViewIndex
from fcache.store.layout import ALIGN_BYTES, CRC_BYTES, SHARD_ROWS, ArraySpec, Bucket
from fcache.store.part_tables import FRAMES, SHARDS, TIMES
from fcache.store.records import FrameRecord, Item, Part
from fcache.store.tables import Tables

SETTINGS = [
    "model=test_vit",
    "blocks=[1,2,4,5]",
    "weights=random:0",
    "short_side=480",
    "long_side_max=none",
]
SIZES = ((720, 1280), (720, 1280), (720, 1280), (1080, 1920), (480, 854), (720, 406), (720, 960))
NUM_WORKERS = 16


@dataclass(frozen=True)
class Size:
    """How many videos of how many frames together."""

    num_videos: int
    num_frames: int

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Frames of each video: at least one, many short and few long ones."""
        drawn = np.random.default_rng(0).exponential(1.0, self.num_videos)
        spread = drawn / drawn.sum() * (self.num_frames - self.num_videos)
        ends = np.floor(np.cumsum(spread) + 0.5).astype(np.int64)
        return 1 + np.diff(ends, prepend=0)

    def manifest(self) -> Manifest:
        """A manifest that knows every size, length and hash; there are no such files."""
        videos = []
        for number, length in enumerate(self.lengths.tolist()):
            name = f"{number:06d}_clip{number % 97}"
            height, width = SIZES[number % len(SIZES)]
            videos.append(
                Video(
                    id=f"train/{name}",
                    path=f"frames/{name}",
                    kind="frames",
                    sha256=hashlib.sha256(name.encode()).hexdigest(),
                    split="val" if number % 10 == 0 else "train",
                    num_frames=length,
                    height=height,
                    width=width,
                )
            )
        return Manifest(name="synthetic", root="/nowhere", videos=tuple(videos))


def make_cache(folder: Path, size: Size, *, as_parts: bool) -> None:
    """Writes a manifest, a cache in which all of it is done, and the words that would extract it.

    Args:
        folder: Gets ``manifest.json``, ``cache`` and ``words``.
        size: Of the cache.
        as_parts: Whether everything is told by commit records; else it is folded.
    """
    index, items = make_view(folder, size)
    tables = commit_everything(index, items, size)
    if as_parts:
        write_parts(index, parts_of(tables))
    else:
        tables.save(index.index, {item.item: item for item in items})


def make_view(folder: Path, size: Size) -> tuple[ViewIndex, list[Item]]:
    """Writes a view with rows for everything and nothing committed; returns it and its items."""
    path = folder / "manifest.json"
    size.manifest().write(path)
    words = [f"manifest={path}", *SETTINGS]
    (folder / "words").write_text("\n".join(words))
    request = read_request(words)
    plan, manifest = plan_request(request, folder / "cache", trust_manifest=True)
    create_root(plan.cache)
    recipe = request.config.model_dump(mode="json")
    index = ViewIndex.create(plan.cache, plan.identity, {"created_s": 1.0, "recipe": recipe})
    index.embed(manifest.model_dump(mode="json"), manifest.sha256)
    items = index.reserve((s.request for s in plan.sources), (s.name for s in plan.sources))
    return index, [items[source.request.item] for source in plan.sources]


def commit_everything(index: ViewIndex, items: list[Item], size: Size) -> Tables:
    """Returns tables in which every frame of every item is committed.

    Args:
        index: The view.
        items: Its items, each with rows for its frames.
        size: How many those are.
    """
    random, lengths = np.random.default_rng(1), size.lengths
    buckets = sorted({item.bucket for item in items})
    bucket = np.array([buckets.index(item.bucket) for item in items])
    first_row = np.array([item.extents[0][0] for item in items])
    names, ids = [one.name for one in buckets], [item.item for item in items]
    frame_item, frame = _counted(lengths)
    frames = [
        _text(bucket[frame_item], names),
        first_row[frame_item] + frame,
        _text(frame_item, ids),
        frame.astype(np.int32),
        _text(frame, [f"{place:05d}" for place in range(lengths.max())]),
        frame.astype(np.int32),
        pa.nulls(len(frame), pa.int64()),
        _hashes(random.integers(0, 256, (len(frame), 32), np.uint8)),
    ]
    of_item, number = _counted(-(-lengths // SHARD_ROWS))
    held = np.minimum(SHARD_ROWS, lengths[of_item] - number * SHARD_ROWS)
    specs = [index.layout.arrays(one) for one in buckets]
    arrays = [spec.name for spec in specs[0]]
    group, array = (part.ravel() for part in np.indices((len(number), len(arrays))))
    chunks, first, count, size_bytes = _chunks(specs, bucket[of_item][group], array, held[group])
    chunks["crc32c"] = random.integers(0, 1 << 32, len(chunks), np.uint32)
    pieces = zip(first.tolist(), (first + count).tolist(), strict=True)
    largest = np.round(random.random((len(number), 4)), 4).tolist()
    shards = [
        _text(bucket[of_item][group], names),
        (first_row[of_item] // SHARD_ROWS + number)[group].astype(np.int32),
        _text(array, arrays),
        size_bytes,
        random.integers(0, 1 << 32, len(group), np.uint32),
        np.full(len(group), IN_MEMORY, np.int32),
        first,
        count.astype(np.int32),
        pa.array([checksum(chunks[start:end]) for start, end in pieces], pa.uint32()),
        pa.array([canonical({"largest": one}).decode() for one in largest]).take(pa.array(group)),
        _text(group % NUM_WORKERS, [_worker(place) for place in range(NUM_WORKERS)]),
        1.7e9 + 0.5 * group,
        1.7e9 + 0.5 * group + 8,
        held[group].astype(np.int32),
    ]
    return Tables(
        Columns(FRAMES, more=pa.table(frames, schema=FRAMES)),
        Columns(SHARDS, more=pa.table(shards, schema=SHARDS)),
        dict(zip(ids, lengths.tolist(), strict=True)),
        ChunkRecords({IN_MEMORY: chunks}),
    )


def parts_of(tables: Tables) -> Iterator[Part]:
    """Yields tables as the commit records that they could have been folded from."""
    shards = tables.shard_table()
    frames: dict[tuple[str, int], list[FrameRecord]] = {}
    for one in tables.frames.table().to_pylist():
        key = one.pop("bucket"), one["row"] // SHARD_ROWS
        frames.setdefault(key, []).append(FrameRecord(**one))
    rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in tables.shards.table().to_pylist():
        rows.setdefault((row["bucket"], row["shard"]), []).append(row)
    for (bucket, shard), made in rows.items():
        last = frames[bucket, shard][-1]
        ends = last.index == tables.ended[last.item] - 1
        yield Part(
            bucket=Bucket.parse(bucket),
            shard=shard,
            arrays={row["array"]: shards.record((bucket, row["array"], shard)) for row in made},
            frames=tuple(frames[bucket, shard]),
            ended={last.item: tables.ended[last.item]} if ends else {},
            stats=json.loads(made[0]["stats"]),
            provenance={
                **json.loads(made[0]["provenance"]),
                **{name: made[0][name] for name in TIMES},
            },
        )


def write_parts(index: ViewIndex, parts: Iterator[Part]) -> None:
    """Writes commit records, as ``ViewIndex.commit`` does but for waiting for the disk."""
    for part in parts:
        path = index.index / "parts" / part.bucket.name / f"{part.shard:08d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(seal(part.to_json()))


Numbers = npt.NDArray[np.int64]


def _chunks(
    specs: list[tuple[ArraySpec, ...]], bucket: Numbers, array: Numbers, held: Numbers
) -> tuple[npt.NDArray[np.void], Numbers, Numbers, Numbers]:
    """The chunks of shard files: their records, the first and number of each file's, its size."""
    bytes_of = np.array([[spec.chunk_bytes + CRC_BYTES for spec in one] for one in specs])
    per_row = np.array([spec.chunks_per_row for spec in specs[0]])
    size, count = bytes_of[bucket, array], held * per_row[array]
    step = -(-size // ALIGN_BYTES) * ALIGN_BYTES
    of_file, position = _counted(count)
    chunks = np.zeros(len(position), CHUNK)
    chunks["position"], chunks["size_bytes"] = position, size[of_file]
    chunks["offset"] = position * step[of_file]
    index_bytes = np.array([16 * spec.shard_chunks + CRC_BYTES for spec in specs[0]])
    return chunks, np.cumsum(count) - count, count, (count - 1) * step + size + index_bytes[array]


def _counted(counts: Numbers) -> tuple[Numbers, Numbers]:
    """For every one of so many things of each owner: its owner, and which of the owner's it is."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


def _text(codes: Numbers, texts: list[str]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(texts))


def _hashes(drawn: npt.NDArray[np.uint8]) -> pa.Array:
    """Bytes ``[N, 32]`` as 64 hexadecimal digits each."""
    digits = np.frombuffer(b"".join(b"%02x" % byte for byte in range(256)), np.uint8)
    text = np.ascontiguousarray(digits.reshape(256, 2)[drawn])
    ends = np.arange(len(drawn) + 1, dtype=np.int32) * 64
    return pa.StringArray.from_buffers(len(drawn), pa.py_buffer(ends), pa.py_buffer(text))


def _worker(number: int) -> str:
    made = {"fcache": "0.2.0", "torch": "2.15.0", "device": "NVIDIA H100 80GB HBM3", "batch": 16}
    return canonical({**made, "host": f"node{number // 8:02d}", "pid": 1000 + number}).decode()

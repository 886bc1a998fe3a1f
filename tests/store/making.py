"""A small view made without a backbone: known values in every row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fcache.store.cache import StoreCache, create_root
from fcache.store.identity import item_id
from fcache.store.index import ViewIndex
from fcache.store.layout import SHARD_ROWS, Bucket
from fcache.store.records import FrameRecord, Item, ItemRequest, Name
from fcache.store.writer import RowGroup

PLAIN = {
    "layout": 1,
    "tier": "backbone",
    "dtype": "float16",
    "backbone": {
        "kind": "vit",
        "model": "tiny",
        "stages": [{"channels": 6, "stride": 16}] * 4,
    },
    "view": {"short_side": 40},
}
PYRAMID = {
    **PLAIN,
    "backbone": {
        "kind": "pyramid",
        "model": "tiny",
        "stages": [{"channels": 3 + stage, "stride": 4 << stage} for stage in range(4)],
    },
}
BUCKET = Bucket(64, 96)


def request(
    name: str, num_frames: int, bucket: Bucket = BUCKET, selection: dict[str, Any] | None = None
) -> ItemRequest:
    placement = {
        "source_h": 40,
        "source_w": 90,
        "resize_h": 40,
        "resize_w": 90,
        "crop_y": 0,
        "crop_x": 0,
        "crop_h": 40,
        "crop_w": 90,
        "flip": False,
    }
    selection = selection or {"stride": 1}
    return ItemRequest(item_id(name, selection), name, selection, bucket, placement, num_frames)


def values(index: ViewIndex, item: Item, frame: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The stage outputs and pixels that stand for one frame; a pure function of item and frame."""
    random = np.random.default_rng([int(item.item[:8], 16), frame])
    dtype = index.layout.dtype
    stages = []
    for stage, channels in enumerate(index.layout.channels):
        grid = index.layout.grid(item.bucket, stage)
        drawn = random.standard_normal((*grid, channels), np.float32)
        stages.append(
            (drawn.view(np.uint32) >> 16).astype(np.uint16)
            if dtype == "bfloat16"
            else drawn.astype(dtype)
        )
    shape = (item.bucket.height, item.bucket.width, 3)
    return stages, random.integers(0, 256, shape, np.uint8)


def arrays(
    index: ViewIndex, stages: list[np.ndarray], pixels: np.ndarray
) -> dict[str, list[np.ndarray]]:
    """The chunks of one row, as the writer takes them."""
    if index.layout.plain:
        return {"tokens": stages, "pixels": [pixels]}
    return {**{f"stage{s}": [stage] for s, stage in enumerate(stages)}, "pixels": [pixels]}


def fill(index: ViewIndex, item: Item, num_frames: int, shards: set[int] | None = None) -> None:
    """Commits an item's row groups, or some of them."""
    for first, shard in item.shards(num_frames):
        if shards is not None and shard not in shards:
            continue
        with RowGroup(index, item.bucket, shard) as group:
            last = min(first + SHARD_ROWS, num_frames)
            for frame in range(first, last):
                stages, pixels = values(index, item, frame)
                record = FrameRecord(
                    item.row_of(frame), item.item, frame, f"{frame:05d}", frame, frame * 40_000
                )
                group.put(record, arrays(index, stages, pixels), np.ones(4))
            group.commit({item.item: num_frames} if last == num_frames else {}, {"test": True})


def make_cache(
    path: Path, identity: dict[str, Any] = PLAIN, lengths: dict[str, int] | None = None
) -> tuple[StoreCache, ViewIndex, dict[str, Item]]:
    """A cache with one view; returns its items by video id."""
    lengths = lengths or {"a": 20, "b": 3, "c/d é": 16}
    create_root(path)
    index = ViewIndex.create(path, identity, {"fcache": "test"})
    requests = [request(name, length) for name, length in lengths.items()]
    names = [
        Name(name, request.item, "train") for name, request in zip(lengths, requests, strict=True)
    ]
    items = index.reserve(requests, names)
    made = {name.video_id: items[name.item] for name in names}
    for name, length in lengths.items():
        fill(index, made[name], length)
    return StoreCache(path), index, made

"""A cache of ViT-g's shapes made without a backbone, through the real writer.

Values are random bits that differ from frame to frame: nothing here looks at what they mean, and a
byte from the wrong place is noticed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fcache.store.cache import View, create_root
from fcache.store.identity import item_id
from fcache.store.index import ViewIndex
from fcache.store.layout import SHARD_ROWS, Bucket
from fcache.store.reader import OpenFiles
from fcache.store.records import FrameRecord, Item, ItemRequest, Name
from fcache.store.writer import RowGroup

NUM_STAGES = 4
STRIDE = 14


@dataclass(frozen=True)
class Size:
    """What is cached: token grid, channels, and the length of each video in frames."""

    grid: tuple[int, int]
    channels: int
    lengths: tuple[int, ...]

    @property
    def bucket(self) -> Bucket:
        """The canvas."""
        return Bucket(self.grid[0] * STRIDE, self.grid[1] * STRIDE)

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of one frame's tokens, ``(S, h, w, C)``."""
        return (NUM_STAGES, *self.grid, self.channels)

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame's tokens."""
        return 2 * math.prod(self.frame_shape)

    @property
    def num_frames(self) -> int:
        """Frames of all videos."""
        return sum(self.lengths)

    @cached_property
    def _bits(self) -> npt.NDArray[np.uint16]:
        random = np.random.default_rng(0)
        return random.integers(0, 1 << 16, self.frame_shape, np.uint16)

    @cached_property
    def _picture(self) -> npt.NDArray[np.uint8]:
        shape = (self.bucket.height, self.bucket.width, 3)
        return np.random.default_rng(1).integers(0, 256, shape, np.uint8)

    def tokens(self, frame: int) -> npt.NDArray[np.float16]:
        """Tokens of the k-th frame of all, ``[S, h, w, C]``."""
        return (self._bits ^ np.uint16(frame + 1)).view(np.float16)

    def pixels(self, frame: int) -> npt.NDArray[np.uint8]:
        """Canvas of the k-th frame of all, ``[H, W, 3]``."""
        return self._picture ^ np.uint8(frame % 256)

    def first_frame(self, video: int) -> int:
        """The first of a video's frames among those of all."""
        return sum(self.lengths[:video])


FULL = Size(grid=(44, 44), channels=1536, lengths=(28, 22, 14))
QUICK = Size(grid=(6, 8), channels=16, lengths=(28, 22, 3))


def name_of(video: int) -> str:
    """A video's id."""
    return f"video{video}"


def identity(size: Size) -> dict[str, object]:
    """An identity whose layout is ``size``'s."""
    stages = [{"channels": size.channels, "stride": STRIDE}] * NUM_STAGES
    return {
        "layout": 1,
        "tier": "backbone",
        "dtype": "float16",
        "backbone": {"kind": "vit", "model": "bench", "stages": stages},
        "view": {"side": size.bucket.name},
    }


def create_index(root: Path, size: Size) -> tuple[ViewIndex, list[Item]]:
    """An empty view, and an item with its rows for every video."""
    create_root(root)
    index = ViewIndex.create(root, identity(size), {"fcache": "bench"})
    height, width = size.bucket.height, size.bucket.width
    sides = {
        f"{what}_{side}": value
        for what in ("source", "resize", "crop")
        for side, value in (("h", height), ("w", width))
    }
    placement = {**sides, "crop_y": 0, "crop_x": 0, "flip": False}
    requests = [
        ItemRequest(
            item=item_id(name_of(video), {"stride": 1}),
            content=name_of(video),
            selection={"stride": 1},
            bucket=size.bucket,
            placement=placement,
            expected_frames=length,
        )
        for video, length in enumerate(size.lengths)
    ]
    names = [Name(name_of(video), request.item) for video, request in enumerate(requests)]
    items = index.reserve(requests, names)
    return index, [items[request.item] for request in requests]


def put_frame(
    group: RowGroup,
    item: Item,
    frame: int,
    tokens: npt.NDArray[np.float16],
    pixels: npt.NDArray[np.uint8],
) -> None:
    """Puts a video's k-th frame."""
    record = FrameRecord(item.row_of(frame), item.item, frame, f"{frame:05d}", frame, None)
    group.put(record, {"tokens": list(tokens), "pixels": [pixels]}, np.ones(NUM_STAGES))


def make_view(root: Path, size: Size) -> View:
    """A view with every video committed and folded, opened for reading."""
    index, items = create_index(root, size)
    for video, (item, length) in enumerate(zip(items, size.lengths, strict=True)):
        for first, shard in item.shards(length):
            with RowGroup(index, size.bucket, shard) as group:
                last = min(first + SHARD_ROWS, length)
                for frame in range(first, last):
                    number = size.first_frame(video) + frame
                    put_frame(group, item, frame, size.tokens(number), size.pixels(number))
                group.commit({item.item: length} if last == length else {}, {})
    index.fold()
    return View(index.folder, OpenFiles())

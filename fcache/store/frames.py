"""The videos of a view that can be read whole, and where their frames lie."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fcache.store.columns import Columns
from fcache.store.garbage import garbage_kept
from fcache.store.layout import Bucket
from fcache.store.records import Item, standing
from fcache.store.state import ViewState


@dataclass(frozen=True, slots=True)
class VideoFrames:
    """The stored frames of one video, in order.

    Attributes:
        video_id: As the manifest calls it.
        item: The item that holds it: content and selection.
        rows: Row of each frame in its bucket's arrays.
        names: Frame names, which labels join by.
        source_index: Position of each frame in the source.
        pts_us: Time of each frame from the source's first, microseconds; None for image files.
    """

    video_id: str
    split: str | None
    item: Item
    rows: tuple[int, ...]
    names: tuple[str, ...]
    source_index: tuple[int, ...]
    pts_us: tuple[int | None, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def bucket(self) -> Bucket:
        """The canvas."""
        return self.item.bucket

    @property
    def placement(self) -> Mapping[str, int | bool]:
        """How a frame lies on the canvas, pixels."""
        return self.item.placement

    @property
    def draw(self) -> int | None:
        """Which crop of the video, in a view of crops."""
        return self.item.draw

    @property
    def valid(self) -> tuple[int, int]:
        """Height and width of the canvas that the frame covers, pixels; the rest is padding."""
        return int(self.item.placement["crop_h"]), int(self.item.placement["crop_w"])

    def title(self, frame: int) -> str:
        """What a picture of a frame is called: video, which crop of it if any, frame name."""
        crop = "" if self.item.draw is None else f" crop {self.item.draw}"
        return f"{self.video_id}{crop} {self.names[frame]}"


class Entry(NamedTuple):
    """A complete item, the video id that it goes by, and the split."""

    video_id: str
    item: Item
    split: str | None


class Catalogue:
    """Finds the complete videos of a view, and their frames.

    Of a video whose content was replaced, the last complete one is found.

    Attributes:
        state: The view's bookkeeping.
    """

    def __init__(self, state: ViewState, feature_array: str) -> None:
        self.state = state
        self._array = feature_array
        # Made at first use: who asks for figures needs neither. Without a lock: two threads may
        # both make them, and a fork copies no lock that is held.
        self._videos: dict[str, list[tuple[Item, str | None]]] | None = None
        self._frames: FrameTable | None = None

    @property
    def videos(self) -> list[str]:
        """Ids of the videos, in the order they came."""
        return list(self._by_video)

    def entries(self) -> Iterator[Entry]:
        """Yields every video's items: of a view of crops, one for each crop."""
        for video, items in self._by_video.items():
            for item, split in items:
                yield Entry(video, item, split)

    def items(self, video: str) -> list[tuple[Item, str | None]]:
        """The items that go by a video's id, each with its split."""
        return self._by_video.get(video, [])

    def frames(self, video: str, item: Item, split: str | None) -> VideoFrames:
        """Returns the frames of an item, its own and those it borrows, in the source's order."""
        frames = self.frame_table.of(item, self.state.outcomes[item.item].num_frames)
        return VideoFrames(
            video_id=video,
            split=split,
            item=item,
            rows=tuple(frame.row for frame in frames),
            names=tuple(frame.name for frame in frames),
            source_index=tuple(frame.source_index for frame in frames),
            pts_us=tuple(frame.pts_us for frame in frames),
        )

    def sha256(self, video: VideoFrames) -> tuple[str | None, ...]:
        """Content of each frame's file; None for frames of a video file."""
        return self.frame_table.sha256(video.item.bucket, video.rows)

    @property
    def frame_table(self) -> FrameTable:
        """The committed frames of all items."""
        if self._frames is None:
            self._frames = FrameTable(self.state.tables.frames)
        return self._frames

    @property
    def _by_video(self) -> dict[str, list[tuple[Item, str | None]]]:
        if self._videos is None:
            state, items = self.state, self.state.items
            with garbage_kept():
                complete = [n for n in state.names if state.is_complete(items[n.item], self._array)]
                found: dict[str, list[tuple[Item, str | None]]] = {}
                for name in standing(complete, items):
                    found.setdefault(name.video_id, []).append((items[name.item], name.split))
            self._videos = found
        return self._videos


class StoredFrame(NamedTuple):
    """One frame of a view."""

    row: int
    name: str
    source_index: int
    pts_us: int | None


class FrameTable:
    """The committed frames of a view, found by the rows they lie in.

    Holds NumPy arrays: Arrow takes locks inside, which a fork may copy while they are held, and a
    Python object for every cell would take minutes and gigabytes at ten million frames.
    """

    def __init__(self, table: Columns) -> None:
        self._table = table
        codes, buckets = table.encoded("bucket")
        self._first_keys = {name: code << _ROW_BITS for code, name in enumerate(buckets)}
        keys = (codes.astype(np.int64) << _ROW_BITS) + table.array("row")
        # Where the keys lie in the table: a job has added a run that is in order.
        self._order = np.argsort(keys, kind="stable") if (keys[1:] < keys[:-1]).any() else None
        self._keys = keys if self._order is None else keys[self._order]
        self._source_index = table.array("source_index")
        self._timed = np.asarray(table["pts_us"].is_valid())
        self._pts_us = np.asarray(table["pts_us"].fill_null(0))
        self._name, names = table.indexed("frame_name")
        self._names = _Texts(names)
        self._sha256: _Texts | None = None

    def of(self, item: Item, num_own: int | None = None) -> list[StoredFrame]:
        """Returns the committed frames of an item, borrowed ones too, in the source's order.

        Args:
            item: Which item.
            num_own: Only so many of its own frames.
        """
        keys, source_index = self._of(item, num_own)
        places = self._places(keys)
        rows = self._keys[keys] & ((1 << _ROW_BITS) - 1)
        return [
            StoredFrame(row, self._names[name], index, pts if timed else None)
            for name, row, index, pts, timed in zip(
                self._name[places].tolist(),
                rows.tolist(),
                source_index.tolist(),
                self._pts_us[places].tolist(),
                self._timed[places].tolist(),
                strict=True,
            )
        ]

    def extent(self, item: Item, num_own: int) -> tuple[int, int | None]:
        """Returns how many frames an item has, and the time of the last, microseconds."""
        keys, _ = self._of(item, num_own)
        last = self._places(keys[-1:])
        end_us = int(self._pts_us[last[0]]) if self._timed[last].any() else None
        return len(keys), end_us

    def sha256(self, bucket: Bucket, rows: Iterable[int]) -> tuple[str | None, ...]:
        """Content of the file of the frame in each row; None where it has no file of its own."""
        if self._sha256 is None:
            self._sha256 = _Texts(self._table["sha256"])
        texts, keys = self._sha256, self._find(bucket, list(rows))
        places = np.where(keys >= 0, self._places(keys), -1).tolist()
        return tuple(texts[place] or None if place >= 0 else None for place in places)

    def _places(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where in the table the frames lie that are found among the keys."""
        return keys if self._order is None else self._order[keys]

    def _of(
        self, item: Item, num_own: int | None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Where an item's frames lie among the keys, and the positions in their source."""
        start = self._first_keys.get(item.bucket.name, -1 << _ROW_BITS)
        runs = [
            np.arange(*np.searchsorted(self._keys, (start + first, start + first + rows)))
            for first, rows in item.extents
        ]
        keys = np.concatenate([*runs, np.zeros(0, np.int64)])[:num_own]
        source_index = self._source_index[self._places(keys)].astype(np.int64)
        if item.borrowed:
            theirs, rows = np.array(item.borrowed, np.int64).T
            lent = self._find(item.bucket, rows)
            keys = np.concatenate([keys, lent[lent >= 0]])
            source_index = np.concatenate([source_index, theirs[lent >= 0]])
            order = np.argsort(source_index)
            keys, source_index = keys[order], source_index[order]
        return keys, source_index

    def _find(
        self, bucket: Bucket, rows: npt.NDArray[np.int64] | list[int]
    ) -> npt.NDArray[np.int64]:
        """Where the frames of rows lie among the keys, -1 for rows that hold none."""
        wanted = self._first_keys.get(bucket.name, -1 << _ROW_BITS) + np.asarray(rows, np.int64)
        found = np.searchsorted(self._keys, wanted)
        there = found < len(self._keys)
        there[there] = self._keys[found[there]] == wanted[there]
        return np.where(there, found, -1)


_ROW_BITS = 40  # of a key: rows of a bucket, below the number of the bucket


class _Texts:
    """A column of text, decoded cell by cell; it holds the column's memory, and copies nothing."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._ends: list[int] = []
        self._chunks: list[tuple[npt.NDArray[np.int32], memoryview]] = []
        num_rows = 0
        for chunk in column.chunks:
            _, offsets, data = chunk.buffers()
            num_rows += len(chunk)
            self._ends.append(num_rows)
            starts = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
            self._chunks.append((starts, memoryview(data if data is not None else b"")))

    def __getitem__(self, place: int) -> str:
        number = bisect_right(self._ends, place)
        starts, data = self._chunks[number]
        inside = place - (self._ends[number - 1] if number else 0)
        return str(data[starts[inside] : starts[inside + 1]], "utf-8")

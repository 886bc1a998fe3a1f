"""The videos of a view that can be read whole, and where their frames lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

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
        sha256: Content of each frame's file; None for frames of a video file.
    """

    video_id: str
    split: str | None
    item: Item
    rows: tuple[int, ...]
    names: tuple[str, ...]
    source_index: tuple[int, ...]
    pts_us: tuple[int | None, ...]
    sha256: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.rows)

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
    """

    def __init__(self, state: ViewState, feature_array: str) -> None:
        self.state = state
        self._by_video: dict[str, list[tuple[Item, str | None]]] = {}
        items = state.items
        complete = [n for n in state.names if state.is_complete(items[n.item], feature_array)]
        for name in standing(complete, items):
            self._by_video.setdefault(name.video_id, []).append((items[name.item], name.split))
        self._frames = FrameTable(state.tables.frames)

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
        frames = self._frames.of(item, self.state.outcomes[item.item].num_frames)
        return VideoFrames(
            video_id=video,
            split=split,
            item=item,
            rows=tuple(frame.row for frame in frames),
            names=tuple(frame.name for frame in frames),
            source_index=tuple(frame.source_index for frame in frames),
            pts_us=tuple(frame.pts_us for frame in frames),
            sha256=tuple(frame.sha256 for frame in frames),
        )


class StoredFrame(NamedTuple):
    """One frame of a view; ``sha256`` is its file's content, where it has a file of its own."""

    row: int
    name: str
    source_index: int
    pts_us: int | None
    sha256: str | None


class FrameTable:
    """The committed frames of a view, found by item.

    Holds numpy arrays: Arrow takes locks inside, which a fork may copy while they are held, and a
    Python object for every cell would take minutes and gigabytes at ten million frames.
    """

    def __init__(self, table: pa.Table) -> None:
        table = table.combine_chunks()
        self._row = np.asarray(table["row"])
        self._source_index = np.asarray(table["source_index"])
        self._timed = np.asarray(table["pts_us"].is_valid())
        self._pts_us = np.asarray(table["pts_us"].fill_null(0))
        self._name = _Texts(table["frame_name"])
        self._sha256 = _Texts(table["sha256"].fill_null(""))
        self._by_item = _Groups(table["item"], np.asarray(table["index"]))
        self._by_bucket = _Groups(table["bucket"], self._row)

    def of(self, item: Item, num_own: int | None = None) -> list[StoredFrame]:
        """Returns the committed frames of an item, borrowed ones too, in the source's order.

        Args:
            item: Which item.
            num_own: Only so many of its own frames.
        """
        places = self._by_item.places(item.item)[:num_own]
        source_index = self._source_index[places].astype(np.int64)
        if item.borrowed:
            theirs, rows = np.array(item.borrowed, np.int64).T
            held = self._by_bucket.places(item.bucket.name)
            at = np.searchsorted(self._row[held], rows)
            there = at < len(held)
            there[there] = self._row[held[at[there]]] == rows[there]
            places = np.concatenate([places, held[at[there]]])
            source_index = np.concatenate([source_index, theirs[there]])
            order = np.argsort(source_index)
            places, source_index = places[order], source_index[order]
        return [
            StoredFrame(
                row, self._name[at], index, pts if timed else None, self._sha256[at] or None
            )
            for at, row, index, pts, timed in zip(
                places.tolist(),
                self._row[places].tolist(),
                source_index.tolist(),
                self._pts_us[places].tolist(),
                self._timed[places].tolist(),
                strict=True,
            )
        ]


class _Groups:
    """The rows of a table by a name that they share.

    Args:
        names: A column of text.
        within: What rows of one name are sorted by.
    """

    def __init__(self, names: pa.ChunkedArray, within: npt.NDArray[np.generic]) -> None:
        encoded = names.combine_chunks().dictionary_encode()
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.combine_chunks()
        codes = np.asarray(encoded.indices)
        self._order = np.lexsort((within, codes))
        self._numbers = {name: n for n, name in enumerate(encoded.dictionary.to_pylist())}
        self._ends = np.searchsorted(codes[self._order], np.arange(len(self._numbers) + 1))

    def places(self, name: str) -> npt.NDArray[np.int64]:
        """Where the rows of a name lie in the table, in order."""
        number = self._numbers.get(name)
        if number is None:
            return np.zeros(0, np.int64)
        return self._order[self._ends[number] : self._ends[number + 1]]


class _Texts:
    """A column of text, decoded cell by cell."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        chunk = column.cast(pa.large_string()).combine_chunks()
        if isinstance(chunk, pa.ChunkedArray):
            chunk = (
                pa.concat_arrays(chunk.chunks)
                if chunk.num_chunks
                else pa.array([], pa.large_string())
            )
        _, offsets, data = chunk.buffers()
        self._offsets = np.frombuffer(offsets, np.int64)[chunk.offset :].copy()
        self._data = data.to_pybytes() if data else b""

    def __getitem__(self, place: int) -> str:
        return self._data[self._offsets[place] : self._offsets[place + 1]].decode()

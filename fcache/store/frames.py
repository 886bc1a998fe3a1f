"""The videos of a view that can be read whole, and where their frames lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
    def valid(self) -> tuple[int, int]:
        """Height and width of the canvas that the frame covers, pixels; the rest is padding."""
        return int(self.item.placement["crop_h"]), int(self.item.placement["crop_w"])


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
        self._places = _places(state)
        # As plain values: Arrow takes locks inside, which a fork may copy while they are held.
        frames = state.tables.frames
        self._columns = [
            np.array(frames[name].to_pylist(), object)
            for name in ("row", "frame_name", "source_index", "pts_us")
        ]

    @property
    def videos(self) -> list[str]:
        """Ids of the videos, in the order they came."""
        return list(self._by_video)

    def items(self, video: str) -> list[tuple[Item, str | None]]:
        """The items that go by a video's id, each with its split."""
        return self._by_video.get(video, [])

    def frames(self, video: str, item: Item, split: str | None) -> VideoFrames:
        """Returns the frames of an item."""
        num_frames = self.state.outcomes[item.item].num_frames
        places = self._places.get(item.item, np.zeros(0, np.int64))[:num_frames]
        rows, names, source_index, pts_us = (
            tuple(column[places].tolist()) for column in self._columns
        )
        return VideoFrames(
            video_id=video,
            split=split,
            item=item,
            rows=rows,
            names=names,
            source_index=source_index,
            pts_us=pts_us,
        )


def _places(state: ViewState) -> dict[str, npt.NDArray[np.int64]]:
    """Where each item's frames lie in the frames table, in order."""
    table = state.tables.frames
    if not len(table):
        return {}
    items = table["item"].combine_chunks().dictionary_encode()
    codes = np.asarray(items.indices)
    order = np.lexsort((np.asarray(table["index"]), codes))
    ends = np.searchsorted(codes[order], np.arange(len(items.dictionary) + 1))
    names = items.dictionary.to_pylist()
    return {name: order[ends[i] : ends[i + 1]] for i, name in enumerate(names)}

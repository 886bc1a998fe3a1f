"""Frames that a view holds already: a source that has more of them computes the rest."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import zip_longest

from fcache.config import ExtractConfig, Selection
from fcache.sources.content import HashMemo, frame_hashes
from fcache.sources.decode import list_selected
from fcache.sources.listing import Source
from fcache.store.frames import FrameTable
from fcache.store.layout import SHARD_ROWS
from fcache.store.records import PLACEMENT_FIELDS, Item, ItemRequest
from fcache.store.state import ViewState

# A frame stored at another size gives sides that differ by rounding.
MAX_ROUNDING = 1
ROUNDED = {"resize_h", "resize_w", "crop_h", "crop_w"}
OF_SOURCE = {"source_h", "source_w"}


class Held:
    """The committed frames of a view, found by what they show.

    Frames of a folder are the same where video id, frame name and file content are, those of a
    video file where its content and their position are. ``reuse=name`` takes frames of a folder for
    the same that have video id and frame name in common. Images lend and borrow nothing: an image
    is there, or is not.

    Args:
        state: The view's bookkeeping.
        array: Any array of the view.
    """

    def __init__(self, state: ViewState, array: str) -> None:
        self._state = state
        self._array = array
        self._items = state.items
        self._loaded: FrameTable | None = None
        self._loading = threading.Lock()
        self._by_video: dict[str, list[Item]] = {}
        self._by_content: dict[str, list[Item]] = {}
        for name in state.names:
            if not self._items[name.item].packed:
                self._by_video.setdefault(name.video_id, []).append(self._items[name.item])
        for item in state.items.values():
            if not item.packed:
                self._by_content.setdefault(item.content, []).append(item)

    def lend(
        self, request: ItemRequest, source: Source, config: ExtractConfig, memo: HashMemo
    ) -> ItemRequest:
        """Returns the request, less the frames that are there, which it borrows.

        Raises:
            SourceError: the source cannot be listed.
        """
        if source.kind == "frames":
            found, num_frames = self._in_folder(request, source, config, memo)
        elif source.kind == "video" and _counts_frames(config.selection):
            found, num_frames = self._in_video(request, config.selection)
        else:
            return request
        if not found:
            return request
        return replace(
            request, expected_frames=num_frames - len(found), borrowed=tuple(sorted(found.items()))
        )

    def has_lost(self, item: Item) -> bool:
        """Whether shards lack that hold frames an item has borrowed."""
        shards = {row // SHARD_ROWS for _, row in item.borrowed}
        name = item.bucket.name
        return any((name, self._array, shard) not in self._state.shards for shard in shards)

    @property
    def _frames(self) -> FrameTable:
        """Made at first use: most plans of a finished view need none."""
        with self._loading:
            if self._loaded is None:
                self._loaded = FrameTable(self._state.tables.frames)
            return self._loaded

    def _in_folder(
        self, request: ItemRequest, source: Source, config: ExtractConfig, memo: HashMemo
    ) -> tuple[dict[int, int], int]:
        by_name = config.reuse == "name"
        rows: dict[tuple[str, str | None], int] = {}
        for item in self._by_video.get(source.video_id, ()):
            if _lies_alike(item, request, rounding=by_name):
                frames = self._frames.of(item)
                places = [frame.row for frame in frames]
                contents = self._frames.sha256(item.bucket, [] if by_name else places)
                keys = zip_longest((frame.name for frame in frames), contents)
                rows.update(zip(keys, places, strict=True))
        if not rows:
            return {}, request.expected_frames
        selected = list_selected(source.path, "frames", config.selection)
        hashes: Mapping[str, str] = {} if by_name else dict(frame_hashes(source.path, memo))
        wanted = {index: (name, hashes.get(name)) for index, name in selected}
        return {index: rows[key] for index, key in wanted.items() if key in rows}, len(selected)

    def _in_video(self, request: ItemRequest, selection: Selection) -> tuple[dict[int, int], int]:
        found: dict[int, int] = {}
        num_frames: int | None = None
        for item in self._by_content.get(request.content, []):
            if _lies_alike(item, request, rounding=False):
                rows = {frame.source_index: frame.row for frame in self._frames.of(item)}
                found.update((index, rows[index]) for index in _chosen(rows, selection))
            if not item.selection and self._state.is_done(item):
                # Of those, some may lack: their shards may have been found damaged.
                total = self._state.outcomes[item.item].num_frames + len(item.borrowed)
                num_frames = len(_chosen(range(total), selection))
        # Where the source's end is not known, one frame at least is looked for behind the others.
        return found, num_frames or max(request.expected_frames, len(found) + 1)


def _chosen(source_indexes: Iterable[int], selection: Selection) -> list[int]:
    """Those of a source's frames that a selection by positions takes."""
    last = None if selection.max_frames is None else selection.max_frames * selection.stride
    return [
        index
        for index in source_indexes
        if index % selection.stride == 0 and (last is None or index < last)
    ]


def _counts_frames(selection: Selection) -> bool:
    """Whether a selection goes by positions alone: times are not known before decoding."""
    return selection.fps is None and selection.start == 0 and selection.end is None


def _lies_alike(item: Item, request: ItemRequest, *, rounding: bool) -> bool:
    """Whether the frames of an item lie on their canvas as those of a request will."""
    if (item.bucket, item.draw) != (request.bucket, request.draw):
        return False
    fields = set(PLACEMENT_FIELDS) - (OF_SOURCE if rounding else set())
    return all(
        abs(int(item.placement[field]) - int(request.placement[field]))
        <= (MAX_ROUNDING if rounding and field in ROUNDED else 0)
        for field in fields
    )

"""What is in a cache, in rows that commands print."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fcache.store.cache import View
from fcache.store.garbage import garbage_kept
from fcache.store.records import Item, Name, standing
from fcache.store.tables import origins as provenances

VideoState = Literal["complete", "partial", "quarantined"]


@dataclass(frozen=True, slots=True)
class VideoRow:
    """One video of a view, or one crop of it."""

    video_id: str
    draw: int | None
    state: VideoState
    split: str | None
    canvas: str
    num_frames: int
    seconds: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class ViewRow:
    """One view of a cache.

    Attributes:
        derived_from: Key of the view that it is a copy of; None for what was extracted.
        complete: Videos of which every crop and selection is complete.
        partial: Videos of which one is not.
        quarantined: Videos of which one is in quarantine, and none unfinished.
        num_crops: Different crops; 0 in a view of whole frames.
        num_frames: Stored frames; one that several videos share counts once.
        num_borrowed: Frames of complete videos that lie in rows of others.
        num_packed: Complete images that share their shard with others.
        size_bytes: Size of its committed files.
        canvases: Number of frames on each padded canvas.
    """

    key: str
    model: str
    dtype: str
    derived_from: str | None
    complete: int
    partial: int
    quarantined: int
    num_crops: int
    num_frames: int
    num_borrowed: int
    num_packed: int
    size_bytes: int
    canvases: dict[str, int]

    @property
    def state(self) -> str:
        """In one word."""
        if self.partial:
            return "partial"
        return "complete*" if self.quarantined else "complete"


def summarise(view: View) -> ViewRow:
    """Returns the figures of a view."""
    found, items, tables = _Videos(view), view.state.items, view.state.tables
    complete = [items[name] for name in {name.item for name in found.complete}]
    states = found.states()
    bucket, names = tables.frames.encoded("bucket")
    counts = dict(zip(names, np.bincount(bucket, minlength=len(names)).tolist(), strict=True))
    return ViewRow(
        key=view.key,
        model=view.identity["backbone"]["model"],
        dtype=view.identity["dtype"],
        derived_from=view.identity.get("derived_from"),
        complete=states["complete"],
        partial=states["partial"],
        quarantined=states["quarantined"],
        num_crops=len({item.draw for item in items.values()} - {None}),
        num_frames=len(tables.frames),
        num_borrowed=sum(len(item.borrowed) for item in complete),
        num_packed=sum(item.packed for item in complete),
        size_bytes=int(tables.shards.array("size_bytes").sum()),
        canvases={name: counts[name] for name in sorted(counts)},
    )


def list_videos(view: View) -> Iterator[VideoRow]:
    """Yields every video of a view, of crops each, those in quarantine last."""
    found, state = _Videos(view), view.state
    for name in found.standing:
        item = state.items[name.item]
        count, end_us = 0, None
        if name in found.complete:
            own = state.outcomes[name.item].num_frames
            count, end_us = view.catalogue.frame_table.extent(item, own)
        yield VideoRow(
            video_id=name.video_id,
            draw=item.draw,
            state="complete" if name in found.complete else "partial",
            split=name.split,
            canvas=item.bucket.name,
            num_frames=count,
            seconds=None if end_us is None else end_us / 1e6,
            reason="",
        )
    for name, draw, reason in found.quarantined():
        yield VideoRow(name.video_id, draw, "quarantined", name.split, "", 0, None, reason)


def commit_stats(view: View) -> list[dict[str, Any]]:
    """Returns what the commit records tell of their values: one entry a row group."""
    return sampled_stats(view, len(view.state.tables.shards))[0]


def sampled_stats(view: View, most: int) -> tuple[list[dict[str, Any]], float]:
    """Returns what at most so many row groups tell of their values, and which share they are.

    They are spread evenly over all: to read those of a million takes longer than they are worth.
    """
    shards = view.state.tables.shards
    array, names = shards.encoded("array")
    wanted = np.array([name == view.index.feature_array for name in names], np.bool_)
    groups = np.flatnonzero(wanted[array])
    count = min(most, len(groups))
    rows = groups[np.arange(count) * len(groups) // max(1, count)]
    texts = shards["stats"].take(rows).to_pylist()
    found: list[dict[str, Any]] = json.loads(f"[{','.join(texts)}]")
    return found, count / max(1, len(groups))


def origins(view: View) -> list[dict[str, Any]]:
    """Returns what made the committed shards: each different set of versions and settings."""
    seen: dict[str, dict[str, Any]] = {}
    for record in provenances(view.state.tables):
        lasting = {key: value for key, value in record.items() if key not in {"host", "pid"}}
        seen[json.dumps(lasting, sort_keys=True)] = lasting
    return list(seen.values())


class _Videos:
    """Which videos of a view are in which state.

    Attributes:
        standing: The names that stand, less those of items in quarantine.
        complete: Those of them whose every frame can be read, in order.
    """

    def __init__(self, view: View) -> None:
        self._state = state = view.state
        bad, array = state.outcomes.quarantined, view.index.feature_array
        with garbage_kept():
            self._every = standing(state.names, state.items)
            self.standing = [name for name in self._every if name.item not in bad]
            self.complete = dict.fromkeys(
                name for name in self.standing if state.is_complete(state.items[name.item], array)
            )

    def states(self) -> Counter[VideoState]:
        """How many videos are in which state: of several crops or selections, the worst counts."""
        states: dict[str, VideoState] = {
            name.video_id: "quarantined" for name, _, _ in self.quarantined()
        }
        for name in self.standing:
            if name not in self.complete:
                states[name.video_id] = "partial"
            else:
                states.setdefault(name.video_id, "complete")
        return Counter(states.values())

    def quarantined(self) -> Iterator[tuple[Name, int | None, str]]:
        """Yields (name, crop, reason); not of a video whose file has been mended since."""
        bad, items = self._state.outcomes.quarantined, self._state.items
        if not bad:
            return
        mended: set[tuple[str, str | None]] = set()
        for name in self.complete:
            mended |= {(name.video_id, _frames_wanted(items[name.item])), (name.video_id, None)}
        standing_names: dict[str, list[Name]] = {}
        for name in self._every:
            standing_names.setdefault(name.item, []).append(name)
        for key, outcome in bad.items():
            wanted = _frames_wanted(items[key]) if key in items else None
            # A source that was never opened has no name; one that was replaced no standing one.
            names = [Name(outcome.video_id, key)]
            for name in standing_names.get(key, []) if key in items else names:
                if (name.video_id, wanted) not in mended:
                    yield name, items[key].draw if key in items else None, outcome.reason


def _frames_wanted(item: Item) -> str:
    """The item's selection, whatever it does with damage."""
    return json.dumps(
        {key: value for key, value in item.selection.items() if key != "on_error"}, sort_keys=True
    )

"""What is in a cache, in rows that commands print."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc

from fcache.store.cache import View
from fcache.store.records import Item, Name, Outcome, standing

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
    states = _states(view)
    tables, items = view.state.tables, view.state.items
    complete = {entry.item.item: entry.item for entry in view.catalogue.entries()}.values()
    names, counts = np.unique(tables.frames["bucket"].to_pylist(), return_counts=True)
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
        size_bytes=int(sum(tables.shards["size_bytes"].to_pylist())),
        canvases={str(name): int(count) for name, count in zip(names, counts, strict=True)},
    )


def list_videos(view: View) -> Iterator[VideoRow]:
    """Yields every video of a view, of crops each, those in quarantine last."""
    for name in _current_names(view):
        state = _state(view, name)
        frames = view.frames(name.video_id, item=name.item) if state == "complete" else None
        times = [pts for pts in frames.pts_us if pts is not None] if frames else []
        yield VideoRow(
            video_id=name.video_id,
            draw=view.state.items[name.item].draw,
            state=state,
            split=name.split,
            canvas=view.state.items[name.item].bucket.name,
            num_frames=len(frames) if frames else 0,
            seconds=times[-1] / 1e6 if times else None,
            reason="",
        )
    for name, draw, reason in _quarantined(view):
        yield VideoRow(name.video_id, draw, "quarantined", name.split, "", 0, None, reason)


def commit_stats(view: View) -> list[dict[str, Any]]:
    """Returns what the commit records tell of their values: one entry a row group."""
    shards = view.state.tables.shards
    texts = shards.filter(pc.equal(shards["array"], view.index.feature_array))["stats"]
    found: list[dict[str, Any]] = json.loads(f"[{','.join(texts.to_pylist())}]")
    return found


def origins(view: View) -> list[dict[str, Any]]:
    """Returns what made the committed shards: each different set of versions and settings."""
    seen: dict[str, dict[str, Any]] = {}
    for text in view.state.tables.shards["provenance"].to_pylist():
        record = json.loads(text)
        lasting = {key: value for key, value in record.items() if key not in _PASSING}
        seen[json.dumps(lasting, sort_keys=True)] = lasting
    return list(seen.values())


_PASSING = {"host", "pid", "started_s", "committed_s", "num_frames"}


def _states(view: View) -> Counter[VideoState]:
    """How many videos are in which state: of several crops or selections, the worst counts."""
    states: dict[str, VideoState] = {}
    for name, _, _ in _quarantined(view):
        states[name.video_id] = "quarantined"
    for name in _current_names(view):
        state = _state(view, name)
        if state == "partial" or name.video_id not in states:
            states[name.video_id] = state
    return Counter(states.values())


def _state(view: View, name: Name) -> VideoState:
    item = view.state.items[name.item]
    complete = view.state.is_complete(item, view.index.feature_array)
    return "complete" if complete else "partial"


def _ended_badly(view: View) -> dict[str, Outcome]:
    outcomes = view.state.outcomes.items()
    return {item: outcome for item, outcome in outcomes if outcome.status == "quarantined"}


def _current_names(view: View) -> Iterator[Name]:
    """The names that stand, less those of items in quarantine."""
    quarantined, state = _ended_badly(view), view.state
    return (n for n in standing(state.names, state.items) if n.item not in quarantined)


def _quarantined(view: View) -> Iterator[tuple[Name, int | None, str]]:
    """Yields (name, crop, reason); not of a video whose file has been mended since."""
    items, complete = view.state.items, set()
    for name in _current_names(view):
        if _state(view, name) == "complete":
            complete |= {(name.video_id, _frames_wanted(items[name.item])), (name.video_id, None)}
    for key, outcome in _ended_badly(view).items():
        wanted = _frames_wanted(items[key]) if key in items else None
        # A source that was never opened has no name; one that was replaced has no standing one.
        names = [name for name in standing(view.state.names, items) if name.item == key]
        for name in names if key in items else [Name(outcome.video_id, key)]:
            if (name.video_id, wanted) not in complete:
                yield name, items[key].draw if key in items else None, outcome.reason


def _frames_wanted(item: Item) -> str:
    """The item's selection, whatever it does with damage."""
    return json.dumps(
        {key: value for key, value in item.selection.items() if key != "on_error"}, sort_keys=True
    )

"""What is in a cache, in rows that commands print."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fcache.store.cache import View
from fcache.store.records import Item, Name, Outcome, standing

VideoState = Literal["complete", "partial", "quarantined"]


@dataclass(frozen=True, slots=True)
class VideoRow:
    """One video of a view."""

    video_id: str
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
        size_bytes: Size of its committed files.
        canvases: Number of frames on each padded canvas.
    """

    key: str
    model: str
    dtype: str
    complete: int
    partial: int
    quarantined: int
    num_frames: int
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
    states = [_state(view, name) for name in _current_names(view)]
    states += ["quarantined" for _ in _quarantined(view)]
    tables = view.state.tables
    names, counts = np.unique(tables.frames["bucket"].to_pylist(), return_counts=True)
    return ViewRow(
        key=view.key,
        model=view.identity["backbone"]["model"],
        dtype=view.identity["dtype"],
        complete=states.count("complete"),
        partial=states.count("partial"),
        quarantined=states.count("quarantined"),
        num_frames=len(tables.frames),
        size_bytes=int(sum(tables.shards["size_bytes"].to_pylist())),
        canvases={str(name): int(count) for name, count in zip(names, counts, strict=True)},
    )


def list_videos(view: View) -> Iterator[VideoRow]:
    """Yields every video of a view, those in quarantine last."""
    for name in _current_names(view):
        state = _state(view, name)
        frames = view.frames(name.video_id, item=name.item) if state == "complete" else None
        times = [pts for pts in frames.pts_us if pts is not None] if frames else []
        yield VideoRow(
            video_id=name.video_id,
            state=state,
            split=name.split,
            canvas=view.state.items[name.item].bucket.name,
            num_frames=len(frames) if frames else 0,
            seconds=times[-1] / 1e6 if times else None,
            reason="",
        )
    for video_id, split, reason in _quarantined(view):
        yield VideoRow(video_id, "quarantined", split, "", 0, None, reason)


def origins(view: View) -> list[dict[str, Any]]:
    """Returns what made the committed shards: each different set of versions and settings."""
    seen: dict[str, dict[str, Any]] = {}
    for text in view.state.tables.shards["provenance"].to_pylist():
        record = json.loads(text)
        lasting = {key: value for key, value in record.items() if key not in _PASSING}
        seen[json.dumps(lasting, sort_keys=True)] = lasting
    return list(seen.values())


_PASSING = {"host", "pid", "started_s", "committed_s", "num_frames"}


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


def _quarantined(view: View) -> Iterator[tuple[str, str | None, str]]:
    """Yields (video id, split, reason); not of a video whose file has been mended since."""
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
                yield name.video_id, name.split, outcome.reason


def _frames_wanted(item: Item) -> str:
    """The item's selection, whatever it does with damage."""
    return json.dumps(
        {key: value for key, value in item.selection.items() if key != "on_error"}, sort_keys=True
    )

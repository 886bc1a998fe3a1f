"""What is in a cache, in rows that commands print."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fcache.store.cache import View

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
    states = [row.state for row in list_videos(view)]
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
    state = view.state
    quarantined = {
        item: outcome for item, outcome in state.outcomes.items() if outcome.status == "quarantined"
    }
    for name in state.names:
        item = state.items[name.item]
        if name.item in quarantined:
            continue
        complete = state.is_complete(item, view.index.feature_array)
        frames = view.frames(name.video_id, item=name.item) if complete else None
        times = [pts for pts in frames.pts_us if pts is not None] if frames else []
        yield VideoRow(
            video_id=name.video_id,
            state="complete" if complete else "partial",
            split=name.split,
            canvas=item.bucket.name,
            num_frames=len(frames) if frames else 0,
            seconds=times[-1] / 1e6 if times else None,
            reason="",
        )
    for outcome in quarantined.values():
        yield VideoRow(outcome.video_id, "quarantined", None, "", 0, None, outcome.reason)

"""What an extraction would do: pure data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fcache.errors import NoSpaceError
from fcache.extract.calibrate import Calibration
from fcache.extract.pace import Pace, frame_cost
from fcache.sources.listing import Source
from fcache.store.layout import Bucket, ViewLayout
from fcache.store.records import ItemRequest, Name

SourceState = Literal["done", "partial", "new"]


@dataclass(frozen=True, slots=True)
class KnownSource:
    """A source with what a manifest knows of it, so that it need not be read to plan."""

    source: Source
    sha256: str | None = None
    num_frames: int | None = None
    height: int | None = None
    width: int | None = None


@dataclass(frozen=True, slots=True)
class PlannedSource:
    """A readable source and an item it is; in a view of crops it is several.

    Attributes:
        num_frames: Selected frames: counted once the item is done, before as the container says.
        missing_frames: How many of them are not committed.
    """

    source: Source
    sha256: str
    request: ItemRequest
    state: SourceState
    num_frames: int
    missing_frames: int

    @property
    def name(self) -> Name:
        """The name its item goes by."""
        return Name(self.source.video_id, self.request.item, self.source.split)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A source that cannot be used, and why.

    Attributes:
        known: Whether the cache holds it in quarantine already.
    """

    source: Source
    sha256: str | None
    item: str
    reason: str
    known: bool = False


@dataclass(frozen=True, slots=True)
class ExtractPlan:
    """Everything an extraction would do, and what is there.

    Attributes:
        cached_bytes: What the view holds; with ``max_bytes``, what the whole cache holds.
        pace: How fast one worker was at the last commits; None without any.
        calibration: The channel scales of int8.
    """

    cache: Path
    key: str
    identity: Mapping[str, Any]
    sources: tuple[PlannedSource, ...]
    rejected: tuple[Rejected, ...]
    free_bytes: int
    cached_bytes: int
    pace: Pace | None
    calibration: Calibration | None = None

    @property
    def layout(self) -> ViewLayout:
        """What the view stores per frame."""
        return ViewLayout.of(self.identity)

    def todo(self) -> Iterator[PlannedSource]:
        """The sources with frames to compute; of several with the same content, the first."""
        first = {source.request.item: source for source in reversed(self.sources)}
        return (source for source in reversed(first.values()) if source.state != "done")

    @property
    def num_frames(self) -> int:
        """Frames of all readable sources, as far as is known."""
        return sum(source.num_frames for source in self.sources)

    @property
    def borrowed_frames(self) -> int:
        """Frames of what is to be done that are there already, in rows of other items."""
        return sum(len(source.request.borrowed) for source in self.todo())

    @property
    def todo_frames(self) -> int:
        """Frames to compute."""
        return sum(source.missing_frames for source in self.todo())

    @property
    def todo_bytes(self) -> int:
        """Bytes to write."""
        layout = self.layout
        return sum(
            source.missing_frames * layout.frame_bytes(source.request.bucket)
            for source in self.todo()
        )

    def frame_cost(self, bucket: str) -> float:
        """What a frame costs on the canvas of a bucket, by its name."""
        return frame_cost(self.layout, Bucket.parse(bucket))

    @property
    def rate(self) -> float | None:
        """Frames per second that one worker will make; None if not measured.

        Of what is to do: on other canvases than those of the last commits it is another.
        """
        if self.pace is None:
            return None
        if not self.todo_frames:
            return self.pace.frames_per_s
        return self.pace.cost_per_s * self.todo_frames / self.todo_cost

    @property
    def todo_cost(self) -> float:
        """What there is to compute, in units of ``frame_cost``."""
        missing: Counter[Bucket] = Counter()
        for source in self.todo():
            missing[source.request.bucket] += source.missing_frames
        layout = self.layout
        return sum(count * frame_cost(layout, bucket) for bucket, count in missing.items())

    def check_space(self, max_bytes: int | None) -> None:
        """Refuses work that cannot end well.

        Raises:
            NoSpaceError: the disk or the quota does not hold what would be written.
        """
        if self.todo_bytes > self.free_bytes:
            raise NoSpaceError(
                f"'{self.cache}' needs {self.todo_bytes / 1e9:,.2f} GB for {self.todo_frames:,} "
                f"frames, its disk has {self.free_bytes / 1e9:,.2f} GB free. Nothing was written; "
                "a smaller short_side=, fps= or stride= needs less."
            )
        total = self.cached_bytes + self.todo_bytes
        if max_bytes is not None and total > max_bytes:
            raise NoSpaceError(
                f"'{self.cache}' would hold {total:,} bytes ({total / 1e9:,.2f} GB), more than "
                f"max_bytes={max_bytes}. Nothing was written; raise max_bytes= or extract less."
            )

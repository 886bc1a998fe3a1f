"""What an extraction would do: pure data, made without writing anything."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fcache.config import ExtractConfig, Selection, ViewGeometry
from fcache.errors import NoSpaceError, SourceError
from fcache.extract.identity import selection_identity
from fcache.sources.content import HashMemo, content_hash
from fcache.sources.geometry import place
from fcache.sources.listing import Source
from fcache.sources.probe import estimate_frames, probe_source
from fcache.store.identity import item_id, view_key
from fcache.store.index import ViewIndex, ViewState
from fcache.store.layout import SHARD_ROWS, Bucket, ViewLayout
from fcache.store.records import Item, ItemRequest, Name, Outcome

TASK_SHARDS = 64  # a long video is cut, so that workers can share it
READERS = 8  # sources are hashed and probed by threads: it is mostly waiting for a disk
RATE_SHARDS = 64  # the last commits that tell how fast a worker is


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
    """A readable source and the item it is."""

    source: Source
    sha256: str
    request: ItemRequest
    state: str  # done, partial, new, or quarantined
    missing_frames: int

    @property
    def name(self) -> Name:
        """The name its item goes by."""
        return Name(self.source.video_id, self.request.item, self.source.split)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A source that cannot be used, and why."""

    source: Source
    item: str
    reason: str


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Whole shards of one item, for one worker.

    Attributes:
        first_frames: First frame of each missing shard, in order.
        open_ended: Whether the task goes on to the end of the source, past the reserved rows.
        generation: The tables the plan was made from.
    """

    item: Item
    source: Source
    sha256: str
    first_frames: tuple[int, ...]
    open_ended: bool
    generation: int


@dataclass(frozen=True, slots=True)
class ExtractPlan:
    """Everything an extraction would do, and what is there.

    Attributes:
        rate: Frames per second of one worker, measured at the last commits; None without any.
    """

    cache: Path
    key: str
    identity: Mapping[str, Any]
    sources: tuple[PlannedSource, ...]
    rejected: tuple[Rejected, ...]
    free_bytes: int
    cached_bytes: int
    rate: float | None
    generation: int = field(default=0)

    @property
    def layout(self) -> ViewLayout:
        """What the view stores per frame."""
        return ViewLayout.of(self.identity)

    def todo(self) -> Iterator[PlannedSource]:
        """The sources with frames to compute."""
        return (source for source in self.sources if source.state in {"new", "partial"})

    @property
    def num_frames(self) -> int:
        """Frames of all readable sources, as far as is known."""
        return sum(source.request.expected_frames for source in self.sources)

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
                f"'{self.cache}' would hold {total / 1e9:,.2f} GB, max_bytes={max_bytes} allows "
                f"{max_bytes / 1e9:,.2f} GB. Nothing was written; raise max_bytes= or extract less."
            )


def make_plan(
    cache: Path,
    identity: Mapping[str, Any],
    known: Sequence[KnownSource],
    config: ExtractConfig,
    *,
    retry_failed: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ExtractPlan:
    """Reads what is to be extracted and what is there already.

    Sources are hashed, and opened where neither the manifest nor the cache knows their size.

    Args:
        progress: Told how many sources are read, of how many.
    """
    key = view_key(identity)
    index = ViewIndex(cache / key) if (cache / key / "zarr.json").exists() else None
    generation = index.generation() if index else 0
    state = index.load() if index else None
    planned: list[PlannedSource] = []
    rejected: list[Rejected] = []
    memo = HashMemo()
    look = _Look(config.selection, config.geometry, index, state, memo, retry_failed)
    with ThreadPoolExecutor(READERS) as pool:
        for done, found in enumerate(pool.map(look, known), start=1):
            planned.append(found) if isinstance(found, PlannedSource) else rejected.append(found)
            progress(done, len(known))
    memo.save()
    return ExtractPlan(
        cache=cache,
        key=key,
        identity=identity,
        sources=tuple(planned),
        rejected=tuple(rejected),
        free_bytes=_free_bytes(cache),
        cached_bytes=_cached_bytes(state),
        rate=_measured_rate(state),
        generation=generation,
    )


@dataclass(frozen=True, slots=True)
class _Look:
    """Finds out what one source is, and what is cached of it."""

    selection: Selection
    geometry: ViewGeometry
    index: ViewIndex | None
    state: ViewState | None
    memo: HashMemo
    retry_failed: bool

    def __call__(self, known: KnownSource) -> PlannedSource | Rejected:
        source, selection = known.source, selection_identity(self.selection)
        try:
            sha256 = known.sha256 or content_hash(source.path, source.kind, self.memo)
        except SourceError as error:
            nothing = item_id(f"unreadable:{source.video_id}", selection)
            return Rejected(source, nothing, error.message)
        name = item_id(sha256, selection)
        outcome = self.state.outcomes.get(name) if self.state else None
        if outcome and outcome.status == "quarantined" and not self.retry_failed:
            return Rejected(source, name, outcome.reason)
        held = self.state.items.get(name) if self.state else None
        try:
            request = held or self._request(known, name, sha256, selection)
        except SourceError as error:
            return Rejected(source, name, error.message)
        return self._planned(source, sha256, request, held, outcome)

    def _request(
        self, known: KnownSource, name: str, sha256: str, selection: dict[str, Any]
    ) -> ItemRequest:
        height, width, num_frames = known.height, known.width, known.num_frames
        if height is None or width is None or num_frames is None or selection:
            facts = probe_source(known.source.path, known.source.kind)
            height, width = facts.height, facts.width
            num_frames = estimate_frames(facts, self.selection)
        placement = asdict(place(height, width, self.geometry))
        bucket = Bucket(placement.pop("canvas_h"), placement.pop("canvas_w"))
        return ItemRequest(name, sha256, selection, bucket, placement, max(1, num_frames))

    def _planned(
        self,
        source: Source,
        sha256: str,
        request: ItemRequest,
        held: Item | None,
        outcome: Outcome | None,
    ) -> PlannedSource:
        if held is None or self.state is None or self.index is None:
            return PlannedSource(source, sha256, request, "new", request.expected_frames)
        missing = self.state.missing(held, self.index.feature_array)
        if outcome and outcome.status == "done":
            left = sum(min(SHARD_ROWS, outcome.num_frames - first) for first, _ in missing)
            return PlannedSource(source, sha256, held, "partial" if missing else "done", left)
        done = held.num_rows - len(missing) * SHARD_ROWS
        left = max(1, held.expected_frames - done)
        return PlannedSource(source, sha256, held, "partial", left)


def make_tasks(plan: ExtractPlan, items: Mapping[str, Item], state: ViewState) -> list[ShardTask]:
    """Cuts what is missing into tasks, long videos into several.

    Args:
        plan: What to extract.
        items: Every item with its rows, as ``ViewIndex.reserve`` returned them.
        state: The view's bookkeeping.
    """
    array = "tokens" if plan.layout.plain else "stage0"
    tasks = []
    for planned in plan.todo():
        item = items[planned.request.item]
        outcome = state.outcomes.get(item.item)
        ended = outcome is not None and outcome.status == "done"
        firsts = [first for first, _ in state.missing(item, array)]
        cuts = [firsts[i : i + TASK_SHARDS] for i in range(0, len(firsts), TASK_SHARDS)]
        if not ended and (not cuts or cuts[-1][-1] + SHARD_ROWS < item.num_rows):
            cuts.append([])  # every reserved shard is there, but where the video ends is not known
        tasks += [
            ShardTask(
                item=item,
                source=planned.source,
                sha256=planned.sha256,
                first_frames=tuple(cut),
                open_ended=not ended and number == len(cuts) - 1,
                generation=plan.generation,
            )
            for number, cut in enumerate(cuts)
        ]
    return tasks


def _free_bytes(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _cached_bytes(state: ViewState | None) -> int:
    return int(sum(state.tables.shards["size_bytes"].to_pylist())) if state else 0


def _measured_rate(state: ViewState | None) -> float | None:
    """Frames per second of one worker over the last commits."""
    if state is None or not len(state.tables.shards):
        return None
    last = state.tables.shards.slice(max(0, len(state.tables.shards) - RATE_SHARDS))
    records = {text: json.loads(text) for text in last["provenance"].to_pylist()}.values()
    timed = [record for record in records if "committed_s" in record and "num_frames" in record]
    seconds = sum(record["committed_s"] - record["started_s"] for record in timed)
    return sum(record["num_frames"] for record in timed) / seconds if seconds > 0 else None

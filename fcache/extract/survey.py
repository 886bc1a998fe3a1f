"""Finding out what an extraction would do, without writing anything into the cache."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fcache.config import ExtractConfig
from fcache.errors import SourceError
from fcache.extract.identity import item_name, selection_identity
from fcache.extract.plan import (
    ExtractPlan,
    KnownSource,
    PlannedSource,
    Rejected,
    SourceState,
)
from fcache.extract.reuse import Held
from fcache.sources.content import HashMemo, content_hash
from fcache.sources.geometry import draw_crop, place
from fcache.sources.listing import Source
from fcache.sources.probe import estimate_frames, probe_source
from fcache.store.identity import item_id, view_key
from fcache.store.index import ViewIndex, ViewState
from fcache.store.layout import SHARD_ROWS, Bucket
from fcache.store.records import Item, ItemRequest, Outcome

READERS = 8  # sources are hashed and probed by threads: it is mostly waiting for a disk
RATE_SHARDS = 64  # the last commits that tell how fast a worker is


def make_plan(
    cache: Path,
    identity: Mapping[str, Any],
    known: Sequence[KnownSource],
    config: ExtractConfig,
    *,
    retry_failed: bool = False,
    trust_manifest: bool = False,
    first: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ExtractPlan:
    """Reads what is to be extracted and what is there already.

    Sources are hashed where the manifest does not know them, and opened where the cache does not.

    Args:
        retry_failed: Whether what is in quarantine counts as to be done.
        trust_manifest: Take sizes and lengths from the manifest unseen: enough to estimate, but
            rows given to a wrong size would stay wrong.
        first: Stop reading once so many sources are found readable.
        progress: Told how many sources are read, of how many.

    Raises:
        CacheCorruptError: the view's bookkeeping is damaged.
    """
    key = view_key(identity)
    index = ViewIndex(cache / key) if (cache / key / "zarr.json").exists() else None
    state = index.load() if index else None
    memo = HashMemo()
    held = Held(state) if state else None
    look = _Look(config, index, state, held, memo, retry_failed, trust_manifest)
    readable: list[list[PlannedSource]] = []
    rejected: list[Rejected] = []
    step, done = first or max(1, len(known)), 0
    with ThreadPoolExecutor(READERS) as pool:
        while done < len(known) and (first is None or len(readable) < first):
            for found in pool.map(look, known[done : done + step]):
                rejected += [one for one in found if isinstance(one, Rejected)]
                planned = [one for one in found if isinstance(one, PlannedSource)]
                readable += [planned] if planned else []
                done += 1
                progress(done, len(known))
    memo.save()
    return ExtractPlan(
        cache=cache,
        key=key,
        identity=identity,
        sources=tuple(one for planned in readable[:first] for one in planned),
        rejected=tuple(rejected),
        free_bytes=_free_bytes(cache),
        cached_bytes=_cached_bytes(state) + (_other_bytes(cache, key) if config.max_bytes else 0),
        rate=_measured_rate(state),
    )


@dataclass(frozen=True, slots=True)
class _Look:
    """Finds out what one source is, and what is cached of it."""

    config: ExtractConfig
    index: ViewIndex | None
    state: ViewState | None
    held: Held | None
    memo: HashMemo
    retry_failed: bool
    trust_manifest: bool

    def __call__(self, known: KnownSource) -> list[PlannedSource | Rejected]:
        """Returns the source's items: one, or in a view of crops one for each draw."""
        source = known.source
        try:
            sha256 = known.sha256 or content_hash(source.path, source.kind, self.memo)
        except SourceError as error:
            return [self._unreadable(source, error)]
        if self.config.geometry.crop is None:
            return [self._look(known, sha256, None)]
        found: list[PlannedSource | Rejected] = []
        for draw in range(self.config.crops):
            found.append(self._look(known, sha256, draw))
            if isinstance(found[-1], Rejected):  # the source is broken, not this crop of it
                return found[-1:]
        return found

    def _look(self, known: KnownSource, sha256: str, draw: int | None) -> PlannedSource | Rejected:
        source = known.source
        selection = self._selection(sha256, source.video_id, draw)
        name = item_name(self.config, sha256, selection, source.video_id, draw)
        quarantined = self._quarantined(name)
        if quarantined and not self.retry_failed:
            return Rejected(source, sha256, name, quarantined.reason, known=True)
        held = self.state.items.get(name) if self.state else None
        try:
            request = held or self._request(known, name, sha256, selection, draw)
        except SourceError as error:
            if known.sha256 is not None and not self._is_there(known):
                return self._unreadable(source, error)
            return Rejected(source, sha256, name, error.message)
        return self._planned(source, sha256, request, held)

    def _unreadable(self, source: Source, error: SourceError) -> Rejected:
        """A source whose content is not known: it is looked at again by every job."""
        selection = selection_identity(self.config)
        name = item_id(f"unreadable:{source.video_id}", selection)
        return Rejected(source, None, name, error.message, self._quarantined(name) is not None)

    def _is_there(self, known: KnownSource) -> bool:
        """Whether a source holds what its manifest says: only then its damage is the content's."""
        try:
            found = content_hash(known.source.path, known.source.kind, self.memo)
        except SourceError:
            return False
        return found == known.sha256

    def _selection(self, sha256: str, video_id: str, draw: int | None) -> dict[str, Any]:
        """The selection in the item's name.

        A source that is known to be sound to its end needs no ``on_error``: it is not made twice.
        """
        selection = selection_identity(self.config)
        strict = {key: value for key, value in selection.items() if key != "on_error"}
        if strict == selection or self.state is None:
            return selection
        name = item_name(self.config, sha256, strict, video_id, draw)
        outcome = self.state.outcomes.get(name)
        return strict if outcome and outcome.status == "done" else selection

    def _quarantined(self, name: str) -> Outcome | None:
        outcome = self.state.outcomes.get(name) if self.state else None
        return outcome if outcome and outcome.status == "quarantined" else None

    def _request(
        self,
        known: KnownSource,
        name: str,
        sha256: str,
        selection: dict[str, Any],
        draw: int | None,
    ) -> ItemRequest:
        source, geometry = known.source, self.config.geometry
        height, width, num_frames = known.height, known.width, known.num_frames
        trusted = self.trust_manifest and not selection
        if not trusted or height is None or width is None or num_frames is None:
            facts = probe_source(source.path, source.kind)
            height, width = facts.height, facts.width
            if num_frames is None or selection:
                num_frames = estimate_frames(facts, self.config.selection)
        placed = (
            place(height, width, geometry)
            if draw is None
            else draw_crop(source.video_id, draw, height, width, geometry)
        )
        placement = asdict(placed)
        bucket = Bucket(placement.pop("canvas_h"), placement.pop("canvas_w"))
        request = ItemRequest(
            item=name,
            content=sha256,
            selection=selection,
            bucket=bucket,
            placement=placement,
            expected_frames=max(1, num_frames),
            draw=draw,
            packed=source.kind == "image",
        )
        return self.held.lend(request, source, self.config, self.memo) if self.held else request

    def _planned(
        self, source: Source, sha256: str, request: ItemRequest, held: Item | None
    ) -> PlannedSource:
        own, borrowed = request.expected_frames, len(request.borrowed)
        if held is None or self.state is None or self.index is None:
            return PlannedSource(source, sha256, request, "new", own + borrowed, own)
        array = self.index.feature_array
        missing = self.state.missing(held, array)
        if self.state.is_done(held):
            own = self.state.outcomes[held.item].num_frames
            left = sum(min(SHARD_ROWS, own - first) for first, _ in missing)
            state: SourceState = "done" if self.state.is_complete(held, array) else "partial"
            return PlannedSource(source, sha256, held, state, own + borrowed, left)
        # A guess: the container said how many frames there are, and may be wrong.
        left = max(1, own - (held.num_rows - len(missing) * SHARD_ROWS))
        return PlannedSource(source, sha256, held, "partial", own + borrowed, left)


def _free_bytes(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _cached_bytes(state: ViewState | None) -> int:
    return int(sum(state.tables.shards["size_bytes"].to_pylist())) if state else 0


def _other_bytes(cache: Path, key: str) -> int:
    """Bytes committed in the cache's other views."""
    folders = [path.parent for path in cache.glob("*/zarr.json") if path.parent.name != key]
    return sum(_cached_bytes(ViewIndex(folder).load()) for folder in folders)


def _measured_rate(state: ViewState | None) -> float | None:
    """Frames per second of one worker over the last commits."""
    texts = set(state.tables.shards["provenance"].to_pylist()) if state else set()
    records = [record for record in map(json.loads, texts) if record.keys() >= _TIMED]
    records.sort(key=lambda record: float(record["committed_s"]))
    free_s: dict[tuple[str, int], float] = {}
    seconds, num_frames = 0.0, 0
    for record in records[-RATE_SHARDS:]:
        worker = record["host"], record["pid"]
        # A worker opens the next shard while the one before is being committed.
        started_s = max(record["started_s"], free_s.get(worker, 0.0))
        free_s[worker] = record["committed_s"]
        seconds += record["committed_s"] - started_s
        num_frames += record["num_frames"]
    return num_frames / seconds if seconds > 0 else None


_TIMED = {"started_s", "committed_s", "num_frames", "host", "pid"}

"""Finding out what an extraction would do, without writing anything into the cache."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fcache.config import ExtractConfig, Selection, ViewGeometry
from fcache.errors import SourceError
from fcache.extract.identity import selection_identity
from fcache.extract.plan import ExtractPlan, KnownSource, PlannedSource, Rejected
from fcache.sources.content import HashMemo, content_hash
from fcache.sources.geometry import place
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
    look = _Look(
        config.selection, config.geometry, index, state, memo, retry_failed, trust_manifest
    )
    planned: list[PlannedSource] = []
    rejected: list[Rejected] = []
    step, done = first or max(1, len(known)), 0
    with ThreadPoolExecutor(READERS) as pool:
        while done < len(known) and (first is None or len(planned) < first):
            for found in pool.map(look, known[done : done + step]):
                planned.append(found) if isinstance(found, PlannedSource) else rejected.append(
                    found
                )
                done += 1
                progress(done, len(known))
    memo.save()
    return ExtractPlan(
        cache=cache,
        key=key,
        identity=identity,
        sources=tuple(planned[:first]),
        rejected=tuple(rejected),
        free_bytes=_free_bytes(cache),
        cached_bytes=_cached_bytes(state) + (_other_bytes(cache, key) if config.max_bytes else 0),
        rate=_measured_rate(state),
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
    trust_manifest: bool

    def __call__(self, known: KnownSource) -> PlannedSource | Rejected:
        source = known.source
        try:
            sha256 = known.sha256 or content_hash(source.path, source.kind, self.memo)
        except SourceError as error:
            return self._unreadable(source, error)
        selection = self._selection(sha256)
        name = item_id(sha256, selection)
        quarantined = self._quarantined(name)
        if quarantined and not self.retry_failed:
            return Rejected(source, sha256, name, quarantined.reason, known=True)
        held = self.state.items.get(name) if self.state else None
        try:
            request = held or self._request(known, name, sha256, selection)
        except SourceError as error:
            if known.sha256 is not None and not self._is_there(known):
                return self._unreadable(source, error)
            return Rejected(source, sha256, name, error.message)
        return self._planned(source, sha256, request, held)

    def _unreadable(self, source: Source, error: SourceError) -> Rejected:
        """A source whose content is not known: it is looked at again by every job."""
        name = item_id(f"unreadable:{source.video_id}", self._selection(None))
        return Rejected(source, None, name, error.message, self._quarantined(name) is not None)

    def _is_there(self, known: KnownSource) -> bool:
        """Whether a source holds what its manifest says: only then its damage is the content's."""
        try:
            found = content_hash(known.source.path, known.source.kind, self.memo)
        except SourceError:
            return False
        return found == known.sha256

    def _selection(self, sha256: str | None) -> dict[str, Any]:
        """The selection in the item's name.

        A source that is known to be sound to its end needs no ``on_error``: it is not made twice.
        """
        selection = selection_identity(self.selection)
        strict = {key: value for key, value in selection.items() if key != "on_error"}
        if sha256 is None or strict == selection or self.state is None:
            return selection
        outcome = self.state.outcomes.get(item_id(sha256, strict))
        return strict if outcome and outcome.status == "done" else selection

    def _quarantined(self, name: str) -> Outcome | None:
        outcome = self.state.outcomes.get(name) if self.state else None
        return outcome if outcome and outcome.status == "quarantined" else None

    def _request(
        self, known: KnownSource, name: str, sha256: str, selection: dict[str, Any]
    ) -> ItemRequest:
        height, width, num_frames = known.height, known.width, known.num_frames
        trusted = self.trust_manifest and not selection
        if not trusted or height is None or width is None or num_frames is None:
            facts = probe_source(known.source.path, known.source.kind)
            height, width = facts.height, facts.width
            if num_frames is None or selection:
                num_frames = estimate_frames(facts, self.selection)
        placement = asdict(place(height, width, self.geometry))
        bucket = Bucket(placement.pop("canvas_h"), placement.pop("canvas_w"))
        return ItemRequest(name, sha256, selection, bucket, placement, max(1, num_frames))

    def _planned(
        self, source: Source, sha256: str, request: ItemRequest, held: Item | None
    ) -> PlannedSource:
        expected = request.expected_frames
        if held is None or self.state is None or self.index is None:
            return PlannedSource(source, sha256, request, "new", expected, expected)
        missing = self.state.missing(held, self.index.feature_array)
        outcome = self.state.outcomes.get(held.item)
        if outcome and outcome.status == "done":
            total = outcome.num_frames
            left = sum(min(SHARD_ROWS, total - first) for first, _ in missing)
            return PlannedSource(
                source, sha256, held, "partial" if missing else "done", total, left
            )
        # A guess: the container said how many frames there are, and may be wrong.
        left = max(1, expected - (held.num_rows - len(missing) * SHARD_ROWS))
        return PlannedSource(source, sha256, held, "partial", expected, left)


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

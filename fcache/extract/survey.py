"""Finding out what an extraction would do, without writing anything into the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fcache.config import ExtractConfig
from fcache.extract.disk import free_bytes
from fcache.extract.look import Look, Looked
from fcache.extract.pace import measured_pace
from fcache.extract.plan import ExtractPlan, KnownSource, PlannedSource, Rejected
from fcache.extract.reuse import Held
from fcache.sources.content import HashMemo
from fcache.store.identity import view_key
from fcache.store.index import ViewIndex, ViewState
from fcache.store.layout import ViewLayout

READERS = 8  # sources are hashed and probed by threads: it is mostly waiting for a disk
MAX_TOGETHER = 16  # sources for a thread at once: where the manifest knows all, one takes 50 us


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
    held = Held(state, index.feature_array) if state and index else None
    look = Look(config, index, state, held, memo, retry_failed, trust_manifest)
    readable: list[list[PlannedSource]] = []
    rejected: list[Rejected] = []
    step, done = first or max(1, len(known)), 0
    with ThreadPoolExecutor(READERS) as pool:
        while done < len(known) and (first is None or len(readable) < first):
            part = known[done : done + step]
            for found in _looked(look, part, pool):
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
        free_bytes=free_bytes(cache),
        cached_bytes=_cached_bytes(state) + (_other_bytes(cache, key) if config.max_bytes else 0),
        pace=measured_pace(state, ViewLayout.of(identity)),
    )


def _looked(
    look: Look, sources: Sequence[KnownSource], pool: ThreadPoolExecutor
) -> Iterator[list[Looked]]:
    """Looks at several sources at once; where there are many, a thread is given a few."""
    size = max(1, min(MAX_TOGETHER, len(sources) // (READERS * MAX_TOGETHER)))
    together = [sources[i : i + size] for i in range(0, len(sources), size)]
    for found in pool.map(lambda few: [look(one) for one in few], together):
        yield from found


def _cached_bytes(state: ViewState | None) -> int:
    return int(state.tables.shards.array("size_bytes").sum()) if state else 0


def _other_bytes(cache: Path, key: str) -> int:
    """Bytes committed in the cache's other views."""
    folders = [path.parent for path in cache.glob("*/zarr.json") if path.parent.name != key]
    return sum(_cached_bytes(ViewIndex(folder).load()) for folder in folders)

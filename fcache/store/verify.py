"""Checking a view's records: is everything there that was committed, and is it what was committed?

Of every byte but the gaps between chunks it can be told. Files with a second copy are compared with
it, Zarr documents with what the identity and the journal make of them, other records with their own
checksums; shard files are read by ``scrub``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fcache.store.files import is_sealed
from fcache.store.findings import Finding as Finding, Remedy
from fcache.store.index import ViewIndex, ViewState
from fcache.store.journal import read_journal
from fcache.store.layout import SHARD_ROWS, Bucket
from fcache.store.locks import undisturbed
from fcache.store.mirror import Pair, pairs
from fcache.store.records import standing
from fcache.store.scrub import Checked as Checked, check_shards as check_shards

# Records that stand for themselves and are cheap to lose, and what makes them again.
_CHEAP = {
    "quarantine/*.json": "without it the next extract tries the video again",
    "ended/*.json": "without it the next extract finds the video's end again",
}


def check_copies(index: Path) -> tuple[list[Finding], int]:
    """Compares the files that have a second copy with it.

    Args:
        index: The ``index`` folder of a view, readable or not.

    Returns:
        What is wrong, and the number of sound files whose copy lacks or is an older one: a kill
        leaves one so, fcache 0.1 left all.
    """
    findings, num_behind = [], 0
    with undisturbed(index / "lock"):
        for pair in pairs(index):
            condition, _ = pair.look()
            num_behind += condition == "behind"
            if condition == "copy damaged":
                problem = "the second copy fails its checksum; the file is sound"
                findings.append(Finding(pair.copy, problem, remedy="restore"))
            elif condition in {"damaged", "missing"}:
                how = "fails its checksum" if condition == "damaged" else "is missing"
                problem = f"the file {how}; its second copy is sound"
                findings.append(Finding(pair.path, problem, remedy="restore"))
            elif condition == "lost":
                findings.append(_lost(pair, index))
    return findings, num_behind


def check_metadata(index: ViewIndex, state: ViewState) -> Iterator[Finding]:
    """Yields what is wrong with the documents and records of a view that is readable.

    The documents of groups and arrays inside the view are derived from the identity and the
    journal, so each is compared byte for byte.
    """
    yield from _wrong_documents(index)
    yield from check_records(index)
    yield from _misplaced_frames(index, state)


def check_records(index: ViewIndex) -> Iterator[Finding]:
    """Yields the damaged records that have no copy: each can be given up."""
    for pattern, remedy in _CHEAP.items():
        for path in sorted(index.index.glob(pattern)):
            if not is_sound(path):
                problem = f"the record fails its checksum; {remedy}"
                yield Finding(path, problem, remedy="remove")
    for path in sorted(index.index.glob("parts/*/*.json")):
        if not is_sound(path):
            bucket, shard = Bucket.parse(path.parent.name), int(path.stem)
            yield Finding.of_shard(path, "the commit record fails its checksum", bucket, shard)


def unfinished(index: ViewIndex, state: ViewState) -> list[str]:
    """Ids of the videos that are neither complete nor in quarantine."""
    return [
        name.video_id
        for name in standing(state.names, state.items)
        if not state.is_complete(state.items[name.item], index.feature_array)
        and not _quarantined(state, name.item)
    ]


def is_sound(path: Path) -> bool:
    """Whether a record is what was written, or has moved on since it was listed."""
    try:
        return is_sealed(path.read_bytes())
    except FileNotFoundError:
        return True


def _wrong_documents(index: ViewIndex) -> list[Finding]:
    findings = []
    with undisturbed(index.index / "lock"):  # arrays grow before the journal does
        documents = index.documents(read_journal(index.index))
        for path in (index.folder / "zarr.json", index.folder.parent / "zarr.json"):
            documents.pop(path, None)
        for path, document in documents.items():
            if not path.exists():
                findings.append(Finding(path, "the file is missing", remedy="rewrite"))
            elif path.read_bytes() != document:
                problem = "the file is not the one the view's settings make"
                findings.append(Finding(path, problem, remedy="rewrite"))
    return findings


def _lost(pair: Pair, index: Path) -> Finding:
    how = "fails its checksum" if pair.path.exists() else "is missing"
    other = "fails its checksum too" if pair.copy.exists() else "is missing"
    problem = f"the file {how}, and its second copy {other}"
    remedy: Remedy | None = None
    if pair.path.parent.name == "manifests":
        problem, remedy = f"{problem}; the next extract embeds its own manifest", "remove"
    else:
        problem += (
            f"; restore one of them from a backup, or delete '{index.parent}' and extract again"
        )
    return Finding(pair.path, problem, remedy=remedy)


def _misplaced_frames(index: ViewIndex, state: ViewState) -> Iterator[Finding]:
    """Yields the items whose committed frames are not those the journal and their ends say."""
    found: dict[str, list[tuple[int, int, str]]] = {}
    columns = (state.tables.frames[name].to_pylist() for name in ("item", "index", "row", "bucket"))
    for item, place, row, bucket in zip(*columns, strict=True):
        found.setdefault(item, []).append((place, row, bucket))
    for name, frames in found.items():
        item = state.items.get(name)
        if item is None:
            yield Finding(
                index.index / "items",
                f"{len(frames)} frames are committed for item {name}, which the journal does not "
                f"name; restore the journal from a backup, or delete '{index.folder}' and extract "
                "again",
            )
            continue
        for place, row, bucket in frames:
            own = item.row_of(place) if place < item.num_rows else None
            if (row, bucket) == (own, item.bucket.name):
                continue
            problem = f"frame {place} of item {name} is committed in a row that is not its own"
            wrong = {(Bucket.parse(bucket), row // SHARD_ROWS)}
            wrong |= {(item.bucket, own // SHARD_ROWS)} if own is not None else set()
            for group in sorted(wrong):
                yield Finding.of_shard(index.index, problem, *group)
        yield from _absent_frames(index, state, name, {place for place, _, _ in frames})


def _absent_frames(
    index: ViewIndex, state: ViewState, name: str, there: set[int]
) -> Iterator[Finding]:
    item, outcome = state.items[name], state.outcomes.get(name)
    if outcome is None or not state.is_complete(item, index.feature_array):
        return
    absent = sorted(set(range(outcome.num_frames)) - there)
    for first in sorted({frame - frame % SHARD_ROWS for frame in absent}):
        shard = item.row_of(first) // SHARD_ROWS
        problem = f"frames of item {name} from {first} on are not in their commit record"
        yield Finding.of_shard(index.index, problem, item.bucket, shard)


def _quarantined(state: ViewState, item: str) -> bool:
    outcome = state.outcomes.get(item)
    return outcome is not None and outcome.status == "quarantined"

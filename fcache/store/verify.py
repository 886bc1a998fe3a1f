"""Checking a view: is everything there that was committed, and is it what was committed?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fcache.errors import CacheCorruptError
from fcache.store.files import unseal
from fcache.store.index import ViewIndex, ViewState
from fcache.store.journal import read_journal
from fcache.store.layout import SHARD_ROWS, Bucket
from fcache.store.records import standing
from fcache.store.shard import check_shard

# The sealed records that stand for themselves, and what becomes of a view without one.
_RECORDS = {
    "quarantine/*.json": "delete it, and the next extract tries the video again",
    "ended/*.json": "delete it, and the next extract finds the video's end again",
    "manifests/*.json": "delete it, and the next extract embeds its own manifest",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        path: The file.
        problem: What is wrong with it.
        bucket: The row group that must be made again, if that mends it.
        shard: Its number in the bucket.
        videos: Ids of the videos with frames in it.
    """

    path: Path
    problem: str
    bucket: Bucket | None = None
    shard: int | None = None
    videos: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Checked:
    """One shard file that was read, with what was found."""

    size_bytes: int
    findings: tuple[Finding, ...]


def check_metadata(index: ViewIndex, state: ViewState) -> Iterator[Finding]:
    """Yields what is wrong with the documents and records of a view that is readable.

    Every Zarr document is derived from the identity and the journal, so each is compared byte for
    byte, the cache's own among them.
    """
    for path, document in index.documents(read_journal(index.index)).items():
        try:
            same = path.read_bytes() == document
        except FileNotFoundError:
            yield Finding(path, "the file is missing; the next extract writes it")
            continue
        if not same:
            yield Finding(
                path, "the file is not the one the view's settings make; the next extract mends it"
            )
    yield from _damaged_records(index)
    yield from _misplaced_frames(index, state)


def check_shards(index: ViewIndex, state: ViewState) -> Iterator[Checked]:
    """Reads every committed shard file and yields what was found, file by file."""
    owners = _owners(state)
    for key in sorted(state.shards.keys()):
        bucket_name, array, shard = key
        bucket = Bucket.parse(bucket_name)
        spec = next(spec for spec in index.layout.arrays(bucket) if spec.name == array)
        path = index.folder / bucket_name / spec.shard_path(shard)
        record = state.shards.record(key)
        videos = owners.get((bucket_name, shard), ())
        yield Checked(
            record.size_bytes,
            tuple(
                Finding(path, problem, bucket, shard, videos)
                for problem in check_shard(path, record, spec.shard_chunks)
            ),
        )


def unfinished(index: ViewIndex, state: ViewState) -> list[str]:
    """Ids of the videos that are neither complete nor in quarantine."""
    return [
        name.video_id
        for name in standing(state.names, state.items)
        if not state.is_complete(state.items[name.item], index.feature_array)
        and not _quarantined(state, name.item)
    ]


def readable_state(index: ViewIndex) -> tuple[ViewState | None, list[Finding]]:
    """Loads the bookkeeping, with what is damaged in place of an error."""
    try:
        return index.load(), []
    except CacheCorruptError as error:
        return None, list(_damaged_records(index)) or [Finding(index.index, error.message)]


def _damaged_records(index: ViewIndex) -> Iterator[Finding]:
    """Yields the damaged records that can be given up."""
    for pattern, remedy in _RECORDS.items():
        for path in sorted(index.index.glob(pattern)):
            if not _is_sound(path):
                yield Finding(path, f"the record fails its checksum; {remedy}")
    for path in sorted(index.index.glob("parts/*/*.json")):
        if not _is_sound(path):
            bucket, shard = Bucket.parse(path.parent.name), int(path.stem)
            yield Finding(path, "the commit record fails its checksum", bucket, shard)


def _is_sound(path: Path) -> bool:
    try:
        unseal(path)
    except CacheCorruptError:
        return False
    except FileNotFoundError:  # folded into a table since it was listed
        return True
    return True


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
                "name; restore the journal from a copy, or extract into another cache",
            )
            continue
        for place, row, bucket in frames:
            if place >= item.num_rows or (row, bucket) != (item.row_of(place), item.bucket.name):
                problem = f"frame {place} of item {name} is committed in a row that is not its own"
                yield Finding(index.index, problem, Bucket.parse(bucket), row // SHARD_ROWS)
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
        yield Finding(index.index, problem, item.bucket, shard)


def _quarantined(state: ViewState, item: str) -> bool:
    outcome = state.outcomes.get(item)
    return outcome is not None and outcome.status == "quarantined"


def _owners(state: ViewState) -> dict[tuple[str, int], tuple[str, ...]]:
    """Which videos have rows in a shard."""
    names: dict[str, list[str]] = {}
    for name in state.names:
        names.setdefault(name.item, []).append(name.video_id)
    owners: dict[tuple[str, int], tuple[str, ...]] = {}
    for item in state.items.values():
        for _, shard in item.shards():
            key = (item.bucket.name, shard)
            owners[key] = (*owners.get(key, ()), *names.get(item.item, ()))
    return owners

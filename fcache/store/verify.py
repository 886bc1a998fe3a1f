"""Checking a view: is everything there that was committed, and is it what was committed?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fcache.errors import CacheCorruptError
from fcache.store.files import sealed
from fcache.store.index import ViewIndex, ViewState
from fcache.store.layout import SHARD_ROWS, Bucket, group_json
from fcache.store.shard import check_shard


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
    """Yields what is wrong with the Zarr documents of a view.

    Every document is derived from the identity and the journal, so each is compared byte for byte.
    """
    path = index.folder / "zarr.json"
    expected = {path: group_json({"fcache": sealed(index.attributes)})}
    rows: dict[Bucket, int] = {}
    for item in state.items.values():
        end = max(first + count for first, count in item.extents)
        rows[item.bucket] = max(rows.get(item.bucket, 0), end)
    for bucket, end in rows.items():
        folder = index.folder / bucket.name
        expected[folder / "zarr.json"] = group_json({})
        for spec in index.layout.arrays(bucket):
            expected[folder / spec.name / "zarr.json"] = spec.zarr_json(end // SHARD_ROWS)
    for path, document in expected.items():
        try:
            same = path.read_bytes() == document
        except FileNotFoundError:
            yield Finding(path, "the file is missing")
            continue
        if not same:
            yield Finding(path, "the file is not the one the view's settings make")


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
        for name in state.names
        if not state.is_complete(state.items[name.item], index.feature_array)
        and not _quarantined(state, name.item)
    ]


def readable_state(index: ViewIndex) -> tuple[ViewState | None, list[Finding]]:
    """Loads the bookkeeping, with the record that is damaged in place of an error."""
    try:
        return index.load(), []
    except CacheCorruptError as error:
        return None, [Finding(index.index, error.message)]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        return None, [Finding(index.index, f"a record lacks what it must hold: {error!r}")]


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

"""Commit records and ends of videos: folded into a new generation of tables, and taken back.

Whoever calls holds the view's lock: a record must not change between its being read and removed.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from fcache.errors import CacheCorruptError
from fcache.store.files import unseal
from fcache.store.journal import read_journal
from fcache.store.layout import SHARD_ROWS, Bucket
from fcache.store.records import Part
from fcache.store.tables import Tables


def part_path(index: Path, bucket: Bucket, shard: int) -> Path:
    """Where the commit record of a row group lies until it is folded."""
    return index / "parts" / bucket.name / f"{shard:08d}.json"


def fold_records(index: Path) -> None:
    """Makes a new generation of tables of the one in force, the commit records and the ends."""
    paths = sorted((index / "parts").glob("*/*.json"))
    ends = sorted((index / "ended").glob("*.json"))
    if not paths and not ends:
        return
    parts = [Part.from_json(unseal(path)) for path in paths]
    ended = {end["item"]: end["num_frames"] for end in map(unseal, ends)}
    _, tables = Tables.load(index)
    tables = tables.plus(Tables.of_parts(parts)).with_ended(ended)
    tables.save(index, read_journal(index).items)
    for path in (*paths, *ends):
        path.unlink()


def take_back(index: Path, bucket: Bucket, shards: Iterable[int]) -> None:
    """Makes a generation of tables without some row groups; their commit records are removed."""
    numbers = sorted(set(shards))
    paths = [part_path(index, bucket, shard) for shard in numbers]
    paths = [path for path in paths if path.exists()]
    ended: dict[str, int] = {}
    for path in paths:
        with suppress(CacheCorruptError):
            ended |= Part.from_json(unseal(path)).ended
    items = read_journal(index).items
    images = {
        item.item
        for item in items.values()
        if item.packed and item.bucket == bucket and item.row_of(0) // SHARD_ROWS in numbers
    }
    _, tables = Tables.load(index)
    kept = tables.without({(bucket.name, shard) for shard in numbers})
    kept.with_ended(ended, less=images).save(index, items)
    for path in paths:
        path.unlink()

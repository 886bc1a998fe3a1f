"""The bookkeeping of one view: which items have which rows, what is committed, who is writing.

Everything lies in ``<key>/index`` as small sealed files that are only ever added or replaced whole:

    items/<n>.json          journal: rows given to items, and the names they go by
    parts/<bucket>/<n>.json commit records not yet folded into tables
    tables/                 Parquet generations and CURRENT
    quarantine/<item>.json  items that cannot be extracted, with the reason
    ended/<item>.json       ends that no commit record could carry
    claims/                 heartbeats of the jobs at work
    manifests/<sha256>.json manifests the view was built from
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fcache.errors import CacheCorruptError, CacheError, CacheNotFoundError
from fcache.store.files import locked, read_attributes, seal, sealed, unseal, write_whole
from fcache.store.identity import view_key
from fcache.store.layout import (
    LAYOUT_VERSION,
    SHARD_ROWS,
    Bucket,
    ViewLayout,
    group_json,
    num_shards,
)
from fcache.store.records import Item, ItemRequest, Name, Outcome, Part
from fcache.store.tables import ShardTable, Tables, current_generation


@dataclass(slots=True)
class ViewState:
    """What is true of a view at one moment.

    Attributes:
        items: Every item that was given rows, by name.
        names: Every video id, in the order they came.
        tables: Committed frames and shards.
        shards: Lookup of the committed shard files.
        outcomes: How items ended; an item without one is unfinished.
    """

    items: dict[str, Item]
    names: list[Name]
    tables: Tables
    shards: ShardTable
    outcomes: dict[str, Outcome]

    def missing(self, item: Item, array: str) -> list[tuple[int, int]]:
        """The (first frame, shard) of each of the item's shards that is not committed.

        Args:
            item: Which item.
            array: Any array of the view; a row group is committed whole.
        """
        outcome = self.outcomes.get(item.item)
        num_frames = outcome.num_frames if outcome and outcome.status == "done" else None
        name = item.bucket.name
        return [
            (frame, shard)
            for frame, shard in item.shards(num_frames)
            if (name, array, shard) not in self.shards
        ]

    def is_complete(self, item: Item, array: str) -> bool:
        """Whether every frame of an item can be read."""
        outcome = self.outcomes.get(item.item)
        return outcome is not None and outcome.status == "done" and not self.missing(item, array)


class ViewIndex:
    """Reads and appends to the bookkeeping of the view in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = folder / "index"
        self.attributes = _view_attributes(folder)
        self.identity: dict[str, Any] = self.attributes["identity"]
        self.layout = ViewLayout.of(self.identity)

    @classmethod
    def create(
        cls, cache: Path, identity: Mapping[str, Any], provenance: Mapping[str, Any]
    ) -> ViewIndex:
        """Opens the view of an identity, making it if there is none.

        Raises:
            NoSpaceError, CacheError: the folder cannot be written.
        """
        folder = cache / view_key(identity)
        if not (folder / "zarr.json").exists():
            record = {"layout": LAYOUT_VERSION, "identity": identity, "provenance": provenance}
            write_whole(folder / "zarr.json", group_json({"fcache": sealed(record)}))
        return cls(folder)

    @property
    def feature_array(self) -> str:
        """Name of the first feature array."""
        return "tokens" if self.layout.plain else "stage0"

    def load(self) -> ViewState:
        """Reads the bookkeeping.

        Raises:
            CacheCorruptError: a record or a table fails its checksum.
        """
        items, names = self._journal()
        for _ in range(8):  # a job may fold commit records into tables while they are read
            generation, tables = Tables.load(self.index / "tables")
            parts = [Part.from_json(record) for record in self._records("parts/*/*.json")]
            if generation == current_generation(self.index / "tables"):
                break
        tables = tables.plus(Tables.of_parts(parts))
        outcomes = {
            row["item"]: Outcome(row["item"], "done", row["num_frames"])
            for row in tables.ended.to_pylist()
        }
        for pattern in ("ended/*.json", "quarantine/*.json"):
            for record in self._records(pattern):
                outcomes[record["item"]] = Outcome(**record)
        return ViewState(items, names, tables, ShardTable(tables.shards), outcomes)

    def reserve(self, requests: Iterable[ItemRequest], names: Iterable[Name]) -> dict[str, Item]:
        """Gives rows to the items that have none, and records the names; returns all items.

        Rows never move. A video starts on a shard of its own.
        """
        with locked(self.index / "lock"):
            items, known = self._journal()
            used = _rows_used(items.values())
            added = []
            for request in requests:
                if request.item not in items:
                    rows = max(1, num_shards(request.expected_frames)) * SHARD_ROWS
                    first = used.get(request.bucket, 0)
                    used[request.bucket] = first + rows
                    fields = {name: getattr(request, name) for name in _REQUEST_FIELDS}
                    added.append(Item(**fields, extents=((first, rows),)))
                    items[request.item] = added[-1]
            fresh = [name for name in dict.fromkeys(names) if name not in set(known)]
            self._append(added, fresh, used)
        return items

    def extend(self, item: Item, num_frames: int) -> Item:
        """Gives an item more shards at the end of its bucket, for at least ``num_frames`` frames.

        A decoder may find more frames than the container promised.
        """
        with locked(self.index / "lock"):
            items, _ = self._journal()
            item = items[item.item]
            lacking = num_shards(num_frames) * SHARD_ROWS - item.num_rows
            if lacking <= 0:
                return item
            used = _rows_used(items.values())
            first = used.get(item.bucket, 0)
            used[item.bucket] = first + lacking
            item = replace(item, extents=(*item.extents, (first, lacking)))
            self._append([item], [], used)
        return item

    def generation(self) -> int:
        """Number of the current generation of tables."""
        return current_generation(self.index / "tables")

    def is_committed(self, bucket: Bucket, shard: int, known: int) -> bool:
        """Whether somebody has committed a row group that generation ``known`` lacked."""
        if (self.index / "parts" / bucket.name / f"{shard:08d}.json").exists():
            return True
        if self.generation() == known:
            return False
        return (bucket.name, self.feature_array, shard) in self.load().shards

    def commit(self, part: Part) -> None:
        """Writes the commit record of a row group whose files are published."""
        path = self.index / "parts" / part.bucket.name / f"{part.shard:08d}.json"
        write_whole(path, seal(part.to_json()))

    def end(self, outcome: Outcome) -> None:
        """Records how an item ended."""
        done = outcome.status == "done"
        folder = self.index / ("ended" if done else "quarantine")
        write_whole(folder / f"{outcome.item}.json", seal(asdict(outcome)))
        if done:
            self.release(outcome.item)

    def release(self, item: str) -> None:
        """Takes an item out of quarantine."""
        (self.index / "quarantine" / f"{item}.json").unlink(missing_ok=True)

    def fold(self) -> None:
        """Folds commit records into a new generation of tables."""
        with locked(self.index / "lock"):
            paths = sorted((self.index / "parts").glob("*/*.json"))
            ended = sorted((self.index / "ended").glob("*.json"))
            if not paths and not ended:
                return
            parts = [Part.from_json(unseal(path)) for path in paths]
            _, tables = Tables.load(self.index / "tables")
            tables = tables.plus(Tables.of_parts(parts))
            tables.with_ended(Outcome(**unseal(path)) for path in ended).save(self.index / "tables")
            for path in (*paths, *ended):
                path.unlink(missing_ok=True)

    def forget(self, bucket: Bucket, shards: Iterable[int]) -> None:
        """Takes back commits, so that the next job makes these row groups again."""
        gone = {(bucket.name, shard) for shard in shards}
        self.fold()
        with locked(self.index / "lock"):
            _, tables = Tables.load(self.index / "tables")
            tables.without(gone).save(self.index / "tables")

    def embed(self, manifest: Mapping[str, Any], sha256: str) -> None:
        """Keeps the manifest the view was built from."""
        path = self.index / "manifests" / f"{sha256}.json"
        if not path.exists():
            write_whole(path, seal(manifest))

    def manifests(self) -> list[dict[str, Any]]:
        """The embedded manifests, oldest first."""
        paths = sorted((self.index / "manifests").glob("*.json"), key=lambda p: p.stat().st_mtime)
        return [unseal(path) for path in paths]

    def sweep(self, older_than_s: float, now_s: float) -> int:
        """Removes temporary files that dead writers left; returns how many."""
        swept = 0
        for path in self.folder.rglob(".*.tmp"):
            try:
                if now_s - path.stat().st_mtime > older_than_s:
                    path.unlink()
                    swept += 1
            except FileNotFoundError:
                continue
        return swept

    def _append(self, items: list[Item], names: list[Name], used: dict[Bucket, int]) -> None:
        if not items and not names:
            return
        # Arrays grow first: a row that is in the journal must be inside every array.
        for bucket in {item.bucket for item in items}:
            self._grow(bucket, used[bucket] // SHARD_ROWS)
        number = len(list((self.index / "items").glob("*.json")))
        record = {
            "items": [item.to_json() for item in items],
            "names": [asdict(name) for name in names],
        }
        write_whole(self.index / "items" / f"{number:06d}.json", seal(record))

    def _grow(self, bucket: Bucket, shards: int) -> None:
        folder = self.folder / bucket.name
        if not (folder / "zarr.json").exists():
            write_whole(folder / "zarr.json", group_json({}))
        for spec in self.layout.arrays(bucket):
            write_whole(folder / spec.name / "zarr.json", spec.zarr_json(shards))

    def _journal(self) -> tuple[dict[str, Item], list[Name]]:
        items: dict[str, Item] = {}
        names: list[Name] = []
        for record in self._records("items/*.json"):
            for content in record["items"]:
                items[content["item"]] = Item.from_json(content)
            names += [Name(**content) for content in record["names"]]
        return items, names

    def _records(self, pattern: str) -> Iterator[dict[str, Any]]:
        for path in sorted(self.index.glob(pattern)):
            try:
                yield unseal(path)
            except FileNotFoundError:  # folded into a table since it was listed
                continue


_REQUEST_FIELDS = tuple(ItemRequest.__dataclass_fields__)


def _rows_used(items: Iterable[Item]) -> dict[Bucket, int]:
    used: dict[Bucket, int] = {}
    for item in items:
        end = max(first + rows for first, rows in item.extents)
        used[item.bucket] = max(used.get(item.bucket, 0), end)
    return used


def _view_attributes(folder: Path) -> dict[str, Any]:
    """Reads and checks the attributes of a view's group.

    Raises:
        CacheError: no view, or one of a newer layout.
        CacheCorruptError: the attributes fail their checksum, or name another folder.
    """
    path = folder / "zarr.json"
    try:
        record = read_attributes(path)
    except FileNotFoundError:
        raise CacheNotFoundError(f"'{folder}' holds no view.") from None
    if record["layout"] > LAYOUT_VERSION:
        raise CacheError(
            f"'{folder}' has layout {record['layout']}; this fcache reads up to "
            f"{LAYOUT_VERSION}. Update fcache."
        )
    if view_key(record["identity"]) != folder.name:
        raise CacheCorruptError(
            f"'{folder}' holds the view {view_key(record['identity'])}; a folder is named by its "
            "view's identity."
        )
    return record

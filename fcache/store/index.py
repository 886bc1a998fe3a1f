"""The bookkeeping of one view: which items have which rows, what is committed, who is writing.

Everything lies in ``<key>/index`` as small sealed files that are only ever added or replaced whole:

    CURRENT                 what is in force of the tables and the journal
    items/<n>.json          journal: rows given to items, and the names they go by
    parts/<bucket>/<n>.json commit records not yet folded into tables
    tables/                 Parquet generations
    quarantine/<item>.json  items that cannot be extracted, with the reason
    ended/<item>.json       ends that no commit record could carry
    claims/                 heartbeats of the jobs at work
    manifests/<n>.json      manifests the view was built from, oldest first
    mirror/                 second copies of what nothing else could restore
    verify.json             how far an interrupted verify came

Writers hold ``lock`` for each change; readers hold nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fcache.errors import FcacheError
from fcache.store.claims import sweep_claims
from fcache.store.current import Current
from fcache.store.files import (
    TMP_SUFFIX,
    copy_of,
    seal,
    sealed,
    unseal,
    write_twice,
    write_whole,
)
from fcache.store.fold import fold_records, part_path, take_back
from fcache.store.garbage import garbage_kept
from fcache.store.identity import view_key
from fcache.store.journal import Entries, append_journal, read_journal
from fcache.store.layout import (
    LAYOUT_VERSION,
    SHARD_ROWS,
    Bucket,
    ViewLayout,
    group_json,
    num_shards,
)
from fcache.store.locks import locked
from fcache.store.mirror import complete
from fcache.store.records import Item, ItemRequest, Name, Outcome, Part
from fcache.store.root import ROOT_DOCUMENT, view_attributes
from fcache.store.rows import FreeRows
from fcache.store.state import Outcomes, ViewState as ViewState
from fcache.store.tables import ShardTable, Tables


class ViewIndex:
    """Reads and appends to the bookkeeping of the view in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = folder / "index"
        self._lock = self.index / "lock"
        self._folded: tuple[int, ShardTable] | None = None
        self._known: Entries | None = None
        self.attributes = view_attributes(folder)
        self.identity: dict[str, Any] = self.attributes["identity"]
        self.layout = ViewLayout.of(self.identity)

    @classmethod
    def create(
        cls,
        cache: Path,
        identity: Mapping[str, Any],
        provenance: Mapping[str, Any],
        calibration: Mapping[str, Any] | None = None,
    ) -> ViewIndex:
        """Opens the view of an identity, making it if there is none.

        Args:
            cache: The cache's folder.
            identity: What decides the values.
            provenance: Who makes it, with what.
            calibration: Of int8, ``channel_scales`` and how they were found.

        Raises:
            NoSpaceError, CacheError: the folder cannot be written.
        """
        folder = cache / view_key(identity)
        path = folder / "zarr.json"
        # One that lacks beside its second copy was lost: only that is the same again.
        if not path.exists() and not copy_of(folder / "index", path).exists():
            record = {"layout": LAYOUT_VERSION, "identity": identity, "provenance": provenance}
            if calibration is not None:
                record["calibration"] = calibration
            write_whole(path, group_json({"fcache": sealed(record)}))
        return cls(folder)

    @property
    def feature_array(self) -> str:
        """Name of the first feature array."""
        return "tokens" if self.layout.plain else "stage0"

    def load(self) -> ViewState:
        """Reads the bookkeeping.

        Raises:
            CacheCorruptError: a record or a table is missing or fails its checksum.
        """
        with garbage_kept():
            return self._load()

    def _load(self) -> ViewState:
        # Each kind is read before the one its records move into: whatever a job at work folds or
        # ends meanwhile is then met at least once, and a record met twice counts once.
        quarantined = [Outcome(**record) for record in self._records("quarantine/*.json")]
        ended = {record["item"]: record["num_frames"] for record in self._records("ended/*.json")}
        parts = [Part.from_json(record) for record in self._records("parts/*/*.json")]
        generation, tables = Tables.load(self.index)
        journal = read_journal(self.index)
        tables = tables.plus(Tables.of_parts(parts)).with_ended(ended)
        outcomes = Outcomes(tables.ended, {outcome.item: outcome for outcome in quarantined})
        return ViewState(
            journal.items, journal.names, tables, tables.shard_table(), outcomes, generation
        )

    def reserve(self, requests: Iterable[ItemRequest], names: Iterable[Name]) -> dict[str, Item]:
        """Gives rows to the items that have none, and records the names; returns all items.

        Rows never move. A video starts on a shard of its own; images that are reserved together
        share shards.

        Raises:
            ValueError: a name is given to an item that is neither there nor requested.
        """
        with self._journal() as journal:
            rows = FreeRows(journal.rows_used())
            added = []
            for request in requests:
                if request.item not in journal.items:
                    fields = {name: getattr(request, name) for name in _REQUEST_FIELDS}
                    added.append(Item(**fields, extents=rows.take(request)))
                    journal.items[request.item] = added[-1]
            fresh = journal.lacking(names)
            for name in fresh:
                if name.item not in journal.items:
                    raise ValueError(f"video '{name.video_id}' names the unknown item {name.item}")
            self._settle(journal, added, fresh)
        return dict(journal.items)

    def renew(self, items: Iterable[Item]) -> None:
        """Gives images new rows whose shards were committed without them.

        One that another job has given new rows meanwhile keeps those.
        """
        with self._journal() as journal:
            rows = FreeRows(journal.rows_used())
            moved = [
                replace(item, extents=rows.take(item))
                for item in items
                if journal.items[item.item] == item
            ]
            if moved:
                self._settle(journal, moved, [])

    def extend(self, item: Item, num_frames: int) -> Item:
        """Gives an item more shards at the end of its bucket, for at least ``num_frames`` frames.

        A decoder may find more frames than the container promised.
        """
        with self._journal() as journal:
            item = journal.items[item.item]
            lacking = num_shards(num_frames) * SHARD_ROWS - item.num_rows
            if lacking > 0:
                first = journal.rows_used().get(item.bucket, 0)
                item = replace(item, extents=(*item.extents, (first, lacking)))
                self._settle(journal, [item], [])
        return item

    def generation(self) -> int:
        """Number of the current generation of tables."""
        current = Current.read(self.index)
        return current.generation if current else 0

    def is_committed(self, bucket: Bucket, shard: int, known: int) -> bool:
        """Whether somebody has committed a row group that generation ``known`` lacked."""
        if part_path(self.index, bucket, shard).exists():
            return True
        # A commit record that is gone by now went into the tables before it went.
        generation = self.generation()
        if generation == known:
            return False
        if self._folded is None or self._folded[0] != generation:
            generation, tables = Tables.load(self.index)
            self._folded = generation, tables.shard_table()
        return (bucket.name, self.feature_array, shard) in self._folded[1]

    def commit(self, part: Part) -> None:
        """Writes the commit record of a row group whose files are published."""
        record = seal(part.to_json())
        # Under the lock: a fold must not remove a record other than the one it has read.
        with locked(self._lock):
            write_whole(part_path(self.index, part.bucket, part.shard), record)

    def end(self, outcome: Outcome) -> None:
        """Records how an item ended."""
        done = outcome.status == "done"
        folder = self.index / ("ended" if done else "quarantine")
        with locked(self._lock):
            write_whole(folder / f"{outcome.item}.json", seal(asdict(outcome)))
        if done:
            self.release(outcome.item)

    def release(self, item: str) -> None:
        """Takes an item out of quarantine."""
        (self.index / "quarantine" / f"{item}.json").unlink(missing_ok=True)

    def fold(self) -> None:
        """Folds commit records into a new generation of tables."""
        with locked(self._lock):
            fold_records(self.index)

    @contextmanager
    def folding(self) -> Iterator[None]:
        """Folds what is committed in the context, however that ends."""
        try:
            yield
        except BaseException:
            with suppress(FcacheError, OSError):  # what ended it is what is told
                self.fold()
            raise
        self.fold()

    def forget(self, bucket: Bucket, shards: Iterable[int]) -> None:
        """Takes back commits, so that the next job makes these row groups again.

        What they told of the lengths of videos is kept; of an image it is told again. A commit
        record that is damaged is removed.
        """
        with locked(self._lock):
            take_back(self.index, bucket, shards)

    def embed(self, manifest: Mapping[str, Any], sha256: str) -> None:
        """Keeps the manifest the view was built from."""
        with locked(self._lock):
            paths = sorted((self.index / "manifests").glob("*.json"))
            if not paths or unseal(paths[-1])["sha256"] != sha256:
                number = int(paths[-1].stem) + 1 if paths else 0
                path = self.index / "manifests" / f"{number:06d}.json"
                write_twice(self.index, path, seal({"sha256": sha256, "manifest": manifest}))

    def manifests(self) -> list[dict[str, Any]]:
        """The embedded manifests, oldest first."""
        paths = sorted((self.index / "manifests").glob("*.json"))
        return [unseal(path)["manifest"] for path in paths]

    def sweep(self, older_than_s: float, now_s: float) -> int:
        """Removes what dead writers left: claims, stop files, temporary files; returns how many."""
        swept = sweep_claims(self.index)
        left = (*self.folder.rglob(f".*{TMP_SUFFIX}"), *self.index.glob("claims/*.stop"))
        for path in left:
            with suppress(FileNotFoundError):
                if now_s - path.stat().st_mtime > older_than_s:
                    path.unlink()
                    swept += 1
        return swept

    def documents(self, journal: Entries) -> dict[Path, bytes]:
        """Every Zarr document there is: the view's settings and the journal decide them."""
        found = {
            self.folder.parent / "zarr.json": ROOT_DOCUMENT,
            self.folder / "zarr.json": group_json({"fcache": sealed(self.attributes)}),
        }
        for bucket, shards in journal.shards_used().items():
            folder = self.folder / bucket.name
            found[folder / "zarr.json"] = group_json({})
            for spec in self.layout.arrays(bucket):
                found[folder / spec.name / "zarr.json"] = spec.zarr_json(shards)
        return found

    @contextmanager
    def _journal(self) -> Iterator[Entries]:
        """Holds the lock, and the journal as it is.

        Workers give rows often, and read only what was added since they last did.
        """
        with locked(self._lock):
            # Forgotten while it is worked on: a write that fails leaves nothing that is not so.
            known, self._known = self._known, None
            journal = read_journal(self.index, known)
            yield journal
            self._known = journal

    def _settle(self, journal: Entries, items: list[Item], names: list[Name]) -> None:
        """Appends to the journal."""
        journal.add(items, names)
        # Arrays grow first: a row that is in the journal must be inside every array. Documents
        # that a killed job left behind, or that are damaged, are set right by the way.
        for path, document in self.documents(journal).items():
            if not path.exists() or path.read_bytes() != document:
                write_whole(path, document)
        if items or names:
            append_journal(self.index, journal, items, names)
        complete(self.index)

    def _records(self, pattern: str) -> Iterator[dict[str, Any]]:
        for path in sorted(self.index.glob(pattern)):
            try:
                yield unseal(path)
            except FileNotFoundError:  # moved on since it was listed
                continue


_REQUEST_FIELDS = tuple(ItemRequest.__dataclass_fields__)

"""The journal of a view: rows given to items, and the names they go by; only ever added to.

A record holds columns, so that hundreds of thousands of items are read in a second: ``items`` and
``names`` have a list for each field. Placements and selections, which items share, stand in lists
of their own, and the items have their numbers. The first versions wrote an object an item.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

from fcache.errors import CacheCorruptError
from fcache.store.current import Current
from fcache.store.files import repair_command, seal, unseal, write_twice
from fcache.store.garbage import garbage_kept
from fcache.store.identity import canonical
from fcache.store.layout import SHARD_ROWS, Bucket, num_shards
from fcache.store.records import Item, Name, standing


class Entries:
    """What the journal says, taken together.

    Attributes:
        items: Every item with its rows; a later record of an item replaces the earlier.
        num_records: Files of the journal.
    """

    def __init__(self) -> None:
        self.items: dict[str, Item] = {}
        self.num_records = 0
        self._names: dict[tuple[str, str], Name] = {}
        self._last: dict[str, str] = {}  # the item that each video id was last given to
        self._used: dict[Bucket, int] = {}

    @property
    def names(self) -> list[Name]:
        """Every name of an item, in the order they came; of a video's items the last said last."""
        return list(self._names.values())

    def add(self, items: Iterable[Item], names: Iterable[Name]) -> None:
        """Takes in what a record says."""
        ends: dict[Bucket, int] = {}
        for item in items:
            self.items[item.item] = item
            bucket = item.bucket
            for first, rows in item.extents:
                if first + rows > ends.get(bucket, 0):
                    ends[bucket] = first + rows
        for bucket, end in ends.items():
            rows = num_shards(end) * SHARD_ROWS
            self._used[bucket] = max(self._used.get(bucket, 0), rows)
        for name in names:
            key = name.video_id, name.item
            if self._last.get(name.video_id, name.item) != name.item:
                self._names.pop(key, None)  # another item had its name meanwhile: it is last again
            self._last[name.video_id] = name.item
            self._names[key] = name

    def rows_used(self) -> dict[Bucket, int]:
        """Rows given away in each bucket, whole shards of them."""
        return dict(self._used)

    def shards_used(self) -> dict[Bucket, int]:
        """Shards given away in each bucket."""
        return {bucket: rows // SHARD_ROWS for bucket, rows in self._used.items()}

    def lacking(self, names: Iterable[Name]) -> list[Name]:
        """Those of the names that the journal does not say yet, or that it has taken back since.

        Of a video's items of one selection the last named stands: its content may change, and
        change back.
        """
        stand = set(standing(self.names, self.items))
        return [name for name in dict.fromkeys(names) if name not in stand]


def read_journal(index: Path, known: Entries | None = None) -> Entries:
    """Returns all that the journal says.

    Args:
        index: The view's ``index`` folder.
        known: What it said before; it is added to and returned.

    Raises:
        CacheCorruptError: a record is missing or damaged.
    """
    current = Current.read(index) or Current()
    entries = Entries() if known is None else known
    for number in range(entries.num_records):
        if not _path(index, number).exists():
            raise _missing(index, number, current)
    with garbage_kept():
        while True:
            number = entries.num_records
            try:
                record = unseal(_path(index, number))
            except FileNotFoundError:
                if number < current.journal:
                    raise _missing(index, number, current) from None
                return entries
            entries.add(_items_in(record), _names_in(record))
            entries.num_records += 1


def append_journal(
    index: Path, entries: Entries, items: Sequence[Item], names: Sequence[Name]
) -> None:
    """Adds a record; the caller holds the view's lock and has just read ``entries``.

    ``entries`` holds what the record says already.
    """
    current = Current.read(index)
    if current is None:
        current = Current()
        current.write(index)
    write_twice(index, _path(index, entries.num_records), seal(_record(items, names)))
    entries.num_records += 1
    replace(current, journal=entries.num_records).write(index)


def _record(items: Sequence[Item], names: Sequence[Name]) -> dict[str, Any]:
    placements, selections = _Shared(), _Shared()
    columns: dict[str, list[Any]] = {
        "item": [item.item for item in items],
        "content": [item.content for item in items],
        "bucket": [item.bucket.name for item in items],
        "expected_frames": [item.expected_frames for item in items],
        "extents": [item.extents for item in items],
        "placement": [placements.number(i.placement, tuple(i.placement.items())) for i in items],
        "selection": [selections.number(i.selection, canonical(i.selection)) for i in items],
    }
    for field, usual in _SELDOM.items():
        values = [getattr(item, field) for item in items]
        if any(value != usual for value in values):
            columns[field] = values
    return {
        "items": columns,
        "names": {field: [getattr(name, field) for name in names] for field in Name._fields},
        "placements": placements.values,
        "selections": selections.values,
    }


_SELDOM = {"draw": None, "packed": False, "borrowed": ()}  # what most items have


class _Shared:
    """Values that many items have in common, each listed once."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._numbers: dict[Hashable, int] = {}

    def number(self, value: object, key: Hashable) -> int:
        number = self._numbers.setdefault(key, len(self.values))
        if number == len(self.values):
            self.values.append(value)
        return number


def _items_in(record: Mapping[str, Any]) -> Iterator[Item]:
    columns = record["items"]
    if isinstance(columns, list):
        yield from map(Item.from_json, columns)
        return
    count = len(columns["item"])
    buckets = {name: Bucket.parse(name) for name in set(columns["bucket"])}
    placements, selections = record["placements"], record["selections"]
    yield from map(
        Item,
        columns["item"],
        columns["content"],
        map(selections.__getitem__, columns["selection"]),
        map(buckets.__getitem__, columns["bucket"]),
        map(placements.__getitem__, columns["placement"]),
        columns["expected_frames"],
        columns.get("draw") or repeat(None, count),
        columns.get("packed") or repeat(False, count),
        map(_pairs, columns.get("borrowed") or repeat((), count)),
        map(_pairs, columns["extents"]),
    )


def _names_in(record: Mapping[str, Any]) -> Iterator[Name]:
    columns = record["names"]
    if isinstance(columns, list):
        yield from (Name(**content) for content in columns)
    else:
        yield from map(Name, *(columns[field] for field in Name._fields))


def _pairs(lists: Sequence[Sequence[int]]) -> tuple[tuple[int, int], ...]:
    return tuple([(first, second) for first, second in lists]) if lists else ()


def _missing(index: Path, number: int, current: Current) -> CacheCorruptError:
    return CacheCorruptError(
        f"'{_path(index, number)}' is missing; the journal has {current.journal} records.",
        run=repair_command(index.parent.parent),
    )


def _path(index: Path, number: int) -> Path:
    return index / "items" / f"{number:06d}.json"

"""The journal of a view: rows given to items, and the names they go by; only ever added to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fcache.errors import CacheCorruptError
from fcache.store.current import Current
from fcache.store.files import repair_command, seal, unseal, write_twice
from fcache.store.layout import SHARD_ROWS, Bucket, num_shards
from fcache.store.records import Item, Name, standing


@dataclass(slots=True)
class Entries:
    """What the journal says, taken together.

    Attributes:
        items: Every item with its rows; a later record of an item replaces the earlier.
        names: Every name of an item, in the order they came; of a video's items the last
            said comes last.
        num_records: Files of the journal.
    """

    items: dict[str, Item]
    names: list[Name]
    num_records: int

    def rows_used(self) -> dict[Bucket, int]:
        """Rows given away in each bucket, whole shards of them."""
        used: dict[Bucket, int] = {}
        for item in self.items.values():
            end = max((first + rows for first, rows in item.extents), default=0)
            used[item.bucket] = max(used.get(item.bucket, 0), num_shards(end) * SHARD_ROWS)
        return used

    def shards_used(self) -> dict[Bucket, int]:
        """Shards given away in each bucket."""
        return {bucket: rows // SHARD_ROWS for bucket, rows in self.rows_used().items()}

    def lacking(self, names: Iterable[Name]) -> list[Name]:
        """Those of the names that the journal does not say yet, or that it has taken back since.

        Of a video's items of one selection the last named stands: its content may change, and
        change back.
        """
        stand = set(standing(self.names, self.items))
        return [name for name in dict.fromkeys(names) if name not in stand]


def read_journal(index: Path) -> Entries:
    """Returns all that the journal says.

    Raises:
        CacheCorruptError: a record is missing or damaged.
    """
    current = Current.read(index) or Current()
    items: dict[str, Item] = {}
    names: dict[tuple[str, str], Name] = {}
    last: dict[str, tuple[str, str]] = {}
    number = 0
    while True:
        path = _path(index, number)
        try:
            record = unseal(path)
        except FileNotFoundError:
            if number < current.journal:
                raise CacheCorruptError(
                    f"'{path}' is missing; the journal has {current.journal} records.",
                    run=repair_command(index.parent.parent),
                ) from None
            return Entries(items, list(names.values()), number)
        for content in record["items"]:
            items[content["item"]] = Item.from_json(content)
        for content in record["names"]:
            key = content["video_id"], content["item"]
            if last.get(key[0]) != key:
                names.pop(key, None)  # another item had its name meanwhile: it comes last again
            last[key[0]] = key
            names[key] = Name(**content)
        number += 1


def append_journal(
    index: Path, entries: Entries, items: Sequence[Item], names: Sequence[Name]
) -> None:
    """Adds a record; the caller holds the view's lock and has just read ``entries``."""
    current = Current.read(index)
    if current is None:
        current = Current()
        current.write(index)
    record: Mapping[str, object] = {
        "items": [item.to_json() for item in items],
        "names": [asdict(name) for name in names],
    }
    write_twice(index, _path(index, entries.num_records), seal(record))
    replace(current, journal=entries.num_records + 1).write(index)


def _path(index: Path, number: int) -> Path:
    return index / "items" / f"{number:06d}.json"

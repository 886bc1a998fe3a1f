"""Second copies of what nothing else could restore: a view's document and most of its records.

``<key>/index/mirror`` holds, under the same names, the view's ``zarr.json``, ``CURRENT``, the
journal, the tables in force and the embedded manifests. Of the two the file counts and its copy
follows, so readers look at the file alone. Commit records have no copy: a damaged one is given up
and its shard made again. Nor have the documents of arrays, which follow from the identity and the
journal, nor ends of items and quarantines, which the next extract finds again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import crc32c

from fcache.errors import CacheCorruptError
from fcache.store.current import Current
from fcache.store.files import MIRROR, copy_of, is_sealed, sealed, unsealed, write_whole
from fcache.store.layout import group_json

# ``behind``: the copy lacks, or is an older one that is sound in itself; a kill leaves it so.
Condition = Literal["whole", "behind", "copy damaged", "damaged", "missing", "lost"]


@dataclass(frozen=True, slots=True)
class Pair:
    """A file and its second copy.

    Attributes:
        is_sound: Whether bytes are a content such a file has, to the last bit.
    """

    path: Path
    copy: Path
    is_sound: Callable[[bytes], bool]

    def look(self) -> tuple[Condition, bytes]:
        """Returns how the two are, and the bytes that count; of a ``lost`` file, none."""
        data, copied = _read(self.path), _read(self.copy)
        if data is not None and self.is_sound(data):
            if copied == data:
                return "whole", data
            behind = copied is None or self.is_sound(copied)
            return ("behind" if behind else "copy damaged"), data
        if copied is not None and self.is_sound(copied):
            return ("missing" if data is None else "damaged"), copied
        return "lost", b""

    def mend(self) -> None:
        """Restores one of the two from the other; the caller holds the view's lock."""
        condition, data = self.look()
        if condition in {"behind", "copy damaged"}:
            write_whole(self.copy, data)
        elif condition in {"damaged", "missing"}:
            write_whole(self.path, data)


def pairs(index: Path) -> Iterator[Pair]:
    """Yields every file of a view that has a second copy, or should have.

    The view's document comes first, then ``CURRENT``, then what that names: who mends each pair as
    it comes sees the next in its true state.
    """
    document = index.parent / "zarr.json"
    yield Pair(document, copy_of(index, document), _is_view)
    head = Pair(index / "CURRENT", copy_of(index, index / "CURRENT"), is_sealed)
    if head.path.exists() or head.copy.exists():
        yield head
    condition, data = head.look()
    current = Current() if condition == "lost" else Current.from_json(json.loads(data))
    counted = {f"{number:06d}.json" for number in range(current.journal)}
    for kind, names in (("items", counted), ("manifests", set[str]())):
        for folder in (index / kind, index / MIRROR / kind):
            names |= {path.name for path in folder.glob("*.json")}
        for name in sorted(names):
            path = index / kind / name
            yield Pair(path, copy_of(index, path), is_sealed)
    for table in current.tables.values():
        path = index / "tables" / table.name
        yield Pair(path, copy_of(index, path), _has_crc(table.crc32c))


def complete(index: Path) -> None:
    """Writes the second copies that lack or lag; the caller holds the view's lock.

    A copy that is there is taken for sound: only ``verify`` reads it.
    """
    for pair in pairs(index):
        # A journal record, a table, a manifest never change. Of the view's document two jobs that
        # make the view at once may each have written their own.
        if pair.path.name in {"CURRENT", "zarr.json"} or not pair.copy.exists():
            condition, data = pair.look()
            if condition == "behind":
                write_whole(pair.copy, data)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _is_view(data: bytes) -> bool:
    try:
        attributes = unsealed(json.loads(data)["attributes"]["fcache"], Path())
    except (ValueError, KeyError, TypeError, CacheCorruptError):
        return False
    return group_json({"fcache": sealed(attributes)}) == data


def _has_crc(crc: int) -> Callable[[bytes], bool]:
    return lambda data: crc32c.crc32c(data) == crc

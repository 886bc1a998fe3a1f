"""``CURRENT``: which tables and how much journal a view's bookkeeping holds at the least.

It is written before anything else, so that a lost file is told from one that never was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from fcache.errors import CacheCorruptError
from fcache.store.files import MIRROR, repair_command, seal, unseal, write_twice


@dataclass(frozen=True, slots=True)
class Table:
    """A Parquet file of the current generation: its name below ``tables``, and its checksum."""

    name: str
    crc32c: int


@dataclass(frozen=True, slots=True)
class Current:
    """What the current state of a view consists of.

    Attributes:
        generation: Number of the current tables; 0 before the first.
        tables: Their files, by table.
        journal: Records the journal has; one more may lie there that a killed job began.
    """

    generation: int = 0
    tables: Mapping[str, Table] = field(default_factory=dict)
    journal: int = 0

    @classmethod
    def read(cls, index: Path) -> Self | None:
        """Returns what is current; None in a view that has no bookkeeping yet.

        Raises:
            CacheCorruptError: the file is damaged, or missing beside what it should name.
        """
        path = index / "CURRENT"
        for _ in range(2):
            try:
                record = unseal(path)
            except FileNotFoundError:
                # Looked for twice: a first job may have begun between the two looks.
                if not any(any(index.glob(pattern)) for pattern in _NAMED):
                    return None
            else:
                return cls.from_json(record)
        raise CacheCorruptError(
            f"'{path}' is missing; it says which of the records beside it are in force.",
            run=repair_command(index.parent.parent),
        )

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Reads the content of the file."""
        tables = {name: Table(**entry) for name, entry in record["tables"].items()}
        return cls(record["generation"], tables, record["journal"])

    def write(self, index: Path) -> None:
        """Puts this in force; the caller holds the view's lock.

        Nothing that the file of before names may go until this returns: after a kill its second
        copy is still that one.
        """
        write_twice(index, index / "CURRENT", seal(asdict(self)))


_NAMED = ("items/*.json", "tables/*.parquet", "parts/*/*.json", f"{MIRROR}/CURRENT")

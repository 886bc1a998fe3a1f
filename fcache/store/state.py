"""What is true of a view at one moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fcache.store.layout import SHARD_ROWS
from fcache.store.records import Item, Name, Outcome
from fcache.store.tables import ShardTable, Tables


class Outcomes(Mapping[str, Outcome]):
    """How items ended, by item; an item without an outcome is unfinished.

    Args:
        done: Number of frames of the items all of whose frames are known.
        quarantined: Items that cannot be used; they count as nothing else.
    """

    def __init__(self, done: Mapping[str, int], quarantined: Mapping[str, Outcome]) -> None:
        self.quarantined = quarantined
        self._done = done

    def __getitem__(self, item: str) -> Outcome:
        outcome = self.quarantined.get(item)
        return outcome or Outcome(item, "done", self._done[item])

    def __iter__(self) -> Iterator[str]:
        yield from self.quarantined
        yield from (item for item in self._done if item not in self.quarantined)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def num_frames(self, item: str) -> int | None:
        """Own frames of an item that is done; None of any other."""
        return self._done.get(item) if item not in self.quarantined else None


@dataclass(slots=True)
class ViewState:
    """The bookkeeping of a view, as it was read.

    Attributes:
        items: Every item that was given rows, by name.
        names: Every video id of every item, in the order they came.
        tables: Committed frames and shards.
        shards: Lookup of the committed shard files.
        outcomes: How items ended; an item without one is unfinished.
        generation: Number of the tables this was read from; commit records came on top.
    """

    items: dict[str, Item]
    names: list[Name]
    tables: Tables
    shards: ShardTable
    outcomes: Outcomes
    generation: int

    def missing(self, item: Item, array: str) -> list[tuple[int, int]]:
        """The (first own frame, shard) of each shard of the item's own that is to be made.

        Args:
            item: Which item.
            array: Any array of the view; a row group is committed whole.
        """
        num_frames = self.outcomes.num_frames(item.item)
        name = item.bucket.name
        return [
            (frame, shard)
            for frame, shard in item.shards(num_frames)
            if (name, array, shard) not in self.shards or (item.packed and num_frames is None)
        ]

    def is_done(self, item: Item) -> bool:
        """Whether the number of the item's own frames is known, and none of them impossible."""
        return self.outcomes.num_frames(item.item) is not None

    def is_left_out(self, item: Item, array: str) -> bool:
        """Whether the shard of an image was committed without it, so that it needs a new row."""
        if not item.packed or self.is_done(item):
            return False
        return (item.bucket.name, array, item.row_of(0) // SHARD_ROWS) in self.shards

    def is_complete(self, item: Item, array: str) -> bool:
        """Whether every frame of an item can be read, the borrowed ones too."""
        left, name = self.outcomes.num_frames(item.item), item.bucket.name
        if left is None:
            return False
        for first, rows in item.extents:
            shard, end = first // SHARD_ROWS, first + min(rows, left)
            if left > 0 and not self.shards.holds(name, array, shard, -(-end // SHARD_ROWS)):
                return False
            left -= rows
        if left > 0:
            return False
        lent = {row // SHARD_ROWS for _, row in item.borrowed} if item.borrowed else ()
        return all((name, array, shard) in self.shards for shard in lent)

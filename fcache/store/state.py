"""What is true of a view at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from fcache.store.layout import SHARD_ROWS
from fcache.store.records import Item, Name, Outcome
from fcache.store.tables import ShardTable, Tables


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
    outcomes: dict[str, Outcome]
    generation: int

    def missing(self, item: Item, array: str) -> list[tuple[int, int]]:
        """The (first own frame, shard) of each shard of the item's own that is to be made.

        Args:
            item: Which item.
            array: Any array of the view; a row group is committed whole.
        """
        done = self.is_done(item)
        num_frames = self.outcomes[item.item].num_frames if done else None
        name = item.bucket.name
        return [
            (frame, shard)
            for frame, shard in item.shards(num_frames)
            if (name, array, shard) not in self.shards or (item.packed and not done)
        ]

    def is_done(self, item: Item) -> bool:
        """Whether the number of the item's own frames is known, and none of them impossible."""
        outcome = self.outcomes.get(item.item)
        return outcome is not None and outcome.status == "done"

    def is_left_out(self, item: Item, array: str) -> bool:
        """Whether the shard of an image was committed without it, so that it needs a new row."""
        if not item.packed or self.is_done(item):
            return False
        return (item.bucket.name, array, item.row_of(0) // SHARD_ROWS) in self.shards

    def is_complete(self, item: Item, array: str) -> bool:
        """Whether every frame of an item can be read, the borrowed ones too."""
        return (
            self.is_done(item)
            and not self.missing(item, array)
            and all(
                (item.bucket.name, array, shard) in self.shards
                for shard in {row // SHARD_ROWS for _, row in item.borrowed}
            )
        )

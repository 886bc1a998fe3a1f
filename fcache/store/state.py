"""What is true of a view at one moment."""

from __future__ import annotations

from dataclasses import dataclass

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

"""Which rows of a view go where in its copy: items, borrowed frames, row groups."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fcache.store.cache import VideoFrames, View
from fcache.store.frames import Entry
from fcache.store.index import ViewIndex
from fcache.store.layout import SHARD_ROWS, Bucket
from fcache.store.records import FrameRecord, Item, ItemRequest, Name, Outcome
from fcache.store.state import ViewState

REQUEST_FIELDS = ("item", "content", "selection", "bucket", "placement", "draw", "packed")


@dataclass(frozen=True, slots=True)
class CopiedFrame:
    """One frame of a row group of the copy.

    Attributes:
        record: What the copy says of it.
        source_row: Where it lies in the same bucket of the source.
        video: What it is a frame of.
    """

    record: FrameRecord
    source_row: int
    video: VideoFrames


@dataclass(frozen=True, slots=True)
class Group:
    """A row group that is to be written.

    Attributes:
        parts: (item, its first own frame in the group): one of a video, several of images.
    """

    bucket: Bucket
    shard: int
    parts: tuple[tuple[str, int], ...]


class CopyRows:
    """Finds the rows of a copy.

    An item has the frames of its own that it had, and borrows what it borrowed, so that no row is
    written twice. What it borrowed of an item that is not copied becomes its own.

    Args:
        source: The view that is read; its complete videos are copied.
        made: The items that the copy has.

    Attributes:
        made: Likewise; those that ``reserve`` makes come to them.
    """

    def __init__(self, source: View, made: Mapping[str, Item]) -> None:
        self.made = dict(made)
        order = {name: place for place, name in enumerate(source.state.items)}
        # In the order they came: an item comes behind those whose rows it borrows.
        entries = sorted(source.catalogue.entries(), key=lambda entry: order[entry.item.item])
        self._entries: dict[str, list[Entry]] = {}  # several names may stand for an item
        for entry in entries:
            self._entries.setdefault(entry.item.item, []).append(entry)
        self._source = source
        self._owners = _Owners(self.items)
        self._rows: dict[str, dict[int, int]] = {}
        self._last: tuple[str, VideoFrames] | None = None

    @property
    def items(self) -> Iterator[Item]:
        """The items of the source that are copied."""
        return (entries[0].item for entries in self._entries.values())

    @property
    def videos(self) -> set[str]:
        """Ids of the videos that are copied."""
        return {entry.video_id for entries in self._entries.values() for entry in entries}

    def num_own(self, item: Item) -> int:
        """How many of the frames of an item of the source are its own in the copy."""
        total = self._source.state.outcomes[item.item].num_frames + len(item.borrowed)
        made = self.made.get(item.item)
        return total - len(self._lent(item) if made is None else made.borrowed)

    def num_missing(self, item: Item, state: ViewState | None) -> int:
        """How many of them are not committed, by the copy's bookkeeping, if there is some."""
        count, made = self.num_own(item), self.made.get(item.item)
        if state is None or made is None:
            return count
        lacking = (first for first, _ in self._lacking(made, count, state))
        return sum(min(SHARD_ROWS, count - first) for first in lacking)

    def reserve(self, index: ViewIndex) -> None:
        """Gives rows in the copy to what has none, or what its shard was committed without."""
        requests: dict[str, ItemRequest] = {}
        names: list[Name] = []
        for entries in self._entries.values():
            item = entries[0].item
            if item.item not in self.made:
                lent = self._lent(item)
                if any(owner.item in requests for owner in lent.values()):
                    self.made = index.reserve(requests.values(), names)
                    requests, names = {}, []
                requests[item.item] = ItemRequest(
                    **{field: getattr(item, field) for field in REQUEST_FIELDS},
                    expected_frames=self.num_own(item),
                    borrowed=tuple(self._moved(item, lent)),
                )
            names += [Name(entry.video_id, item.item, entry.split) for entry in entries]
        self.made = index.reserve(requests.values(), names)
        state = index.load()
        made = (self.made[item.item] for item in self.items)
        left_out = [item for item in made if state.is_left_out(item, index.feature_array)]
        if left_out:
            index.renew(left_out)
            self.made = index.load().items

    def missing(self, state: ViewState) -> list[Group]:
        """The row groups of the copy that nobody has committed, in the order of the rows.

        Args:
            state: The copy's bookkeeping.
        """
        parts: dict[tuple[Bucket, int], list[tuple[str, int]]] = {}
        for item in self.items:
            made = self.made[item.item]
            for first, shard in self._lacking(made, self.num_own(item), state):
                parts.setdefault((made.bucket, shard), []).append((item.item, first))
        return [Group(*key, tuple(parts[key])) for key in sorted(parts)]

    def unended(self, state: ViewState) -> list[Outcome]:
        """The ends of items that have no row group to tell of them: they borrow every frame."""
        return [
            Outcome(item.item, "done", 0)
            for item in self.items
            if not self.num_own(item) and not state.is_done(self.made[item.item])
        ]

    def frames(self, group: Group) -> list[CopiedFrame]:
        """The frames of a row group, in the order of their rows."""
        found = []
        for name, first in group.parts:
            made, held = self.made[name], self._held(name)
            places, contents = _own(held, made), self._source.catalogue.sha256(held)
            for index, place in enumerate(places[first : first + SHARD_ROWS], start=first):
                record = FrameRecord(
                    row=made.row_of(index),
                    item=name,
                    index=index,
                    frame_name=held.names[place],
                    source_index=held.source_index[place],
                    pts_us=held.pts_us[place],
                    sha256=contents[place],
                )
                found.append(CopiedFrame(record, held.rows[place], held))
        return sorted(found, key=lambda one: one.record.row)

    def ended(self, frames: Sequence[CopiedFrame]) -> dict[str, int]:
        """The items whose last own frame is among those of a row group, with how many they have."""
        last = {one.record.item: (one.record.index + 1, one.video.item) for one in frames}
        return {name: count for name, (count, item) in last.items() if count == self.num_own(item)}

    def _lacking(self, made: Item, num_own: int, state: ViewState) -> Iterator[tuple[int, int]]:
        """Yields (first own frame, shard) of the row groups of an item that are not committed."""
        array = self._source.index.feature_array  # the copy has arrays of the same names
        for first, shard in made.shards(num_own):
            if (made.bucket.name, array, shard) not in state.shards:
                yield first, shard

    def _lent(self, item: Item) -> dict[int, Item]:
        """Of the frames an item borrows, by source index, the copied item whose rows they have."""
        owners = {index: self._owners.of(item.bucket, row) for index, row in item.borrowed}
        return {index: owner for index, owner in owners.items() if owner is not None}

    def _moved(self, item: Item, lent: Mapping[int, Item]) -> Iterator[tuple[int, int]]:
        """Yields (source index, row in the copy) of what an item borrows there."""
        for index, row in item.borrowed:
            if index in lent:
                owner = self.made[lent[index].item]
                if owner.item not in self._rows:
                    held = self._held(owner.item)
                    own = enumerate(_own(held, owner))
                    self._rows[owner.item] = {held.rows[place]: k for k, place in own}
                yield index, owner.row_of(self._rows[owner.item][row])

    def _held(self, name: str) -> VideoFrames:
        """The frames of a copied item; neighbours ask for the same."""
        if self._last is None or self._last[0] != name:
            self._last = name, self._source.catalogue.frames(*self._entries[name][0])
        return self._last[1]


class _Owners:
    """Finds the item that has a row."""

    def __init__(self, items: Iterable[Item]) -> None:
        runs: dict[Bucket, list[tuple[int, int, Item]]] = {}
        for item in items:
            for first, rows in item.extents:
                runs.setdefault(item.bucket, []).append((first, first + rows, item))
        self._runs = {b: sorted(found, key=lambda run: run[0]) for b, found in runs.items()}
        self._firsts = {b: [first for first, _, _ in found] for b, found in self._runs.items()}

    def of(self, bucket: Bucket, row: int) -> Item | None:
        """The item that a row was given to; None if it is none of those asked about."""
        place = bisect_right(self._firsts.get(bucket, []), row) - 1
        if place < 0:
            return None
        _, end, item = self._runs[bucket][place]
        return item if row < end else None


def _own(held: VideoFrames, item: Item) -> list[int]:
    """Positions of the frames that are an item's own in the copy."""
    borrowed = {index for index, _ in item.borrowed}
    return [place for place, index in enumerate(held.source_index) if index not in borrowed]

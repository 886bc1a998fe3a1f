"""The records a view keeps beside its arrays, as values: items, frames, commits, outcomes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, Self

from fcache.store.identity import canonical
from fcache.store.layout import SHARD_ROWS, Bucket
from fcache.store.shard import ShardRecord

PLACEMENT_FIELDS = (
    "source_h",
    "source_w",
    "resize_h",
    "resize_w",
    "crop_y",
    "crop_x",
    "crop_h",
    "crop_w",
    "flip",
)


@dataclass(frozen=True, slots=True)
class ItemRequest:
    """One source's content under one selection, to be given rows in a bucket.

    Attributes:
        item: Its name, from ``identity.item_id``.
        content: sha256 of the source.
        selection: The frame selection, as it entered the name.
        bucket: The canvas its frames are drawn on.
        placement: ``PLACEMENT_FIELDS``, in pixels: how a frame lies on the canvas.
        expected_frames: Frames of its own that the container promises; rows are reserved for
            them, no more.
        draw: Which crop of the video, in a view of crops.
        packed: Whether it is a single image, which shares its shard with others.
        borrowed: ``(source index, row)`` of the frames it has in rows of other items, which were
            there before it; they lie in the same bucket.
    """

    item: str
    content: str
    selection: Mapping[str, Any]
    bucket: Bucket
    placement: Mapping[str, int | bool]
    expected_frames: int
    draw: int | None = None
    packed: bool = False
    borrowed: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Item(ItemRequest):
    """An item with its rows.

    Attributes:
        extents: ``(first row, number of rows)`` runs, in the order its own frames fill them.
    """

    extents: tuple[tuple[int, int], ...] = ()

    @property
    def num_rows(self) -> int:
        """Rows reserved."""
        return sum(rows for _, rows in self.extents)

    def row_of(self, frame: int) -> int:
        """Row of the k-th of the item's own frames.

        Raises:
            IndexError: no row is reserved for it.
        """
        left = frame
        for first, rows in self.extents:
            if left < rows:
                return first + left
            left -= rows
        raise IndexError(f"item {self.item} has {self.num_rows} rows, none for frame {frame}")

    def shards(self, num_frames: int | None = None) -> Iterator[tuple[int, int]]:
        """Yields (first own frame, shard) for every shard of its own, up to ``num_frames``."""
        end = self.num_rows if num_frames is None else num_frames
        for frame in range(0, end, SHARD_ROWS):
            yield frame, self.row_of(frame) // SHARD_ROWS

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Reads an item as the first versions of the journal had it: an object with its fields."""
        pairs = {
            name: tuple((int(first), int(second)) for first, second in content.get(name, ()))
            for name in ("extents", "borrowed")
        }
        return cls(**{**content, "bucket": Bucket.parse(content["bucket"]), **pairs})


class Name(NamedTuple):
    """A video id that stands for an item, as some manifest called it."""

    video_id: str
    item: str
    split: str | None = None


def standing(names: Iterable[Name], items: Mapping[str, Item]) -> list[Name]:
    """The names that stand: of a video's contents under one selection and draw, the last said."""
    last = {}
    spelt: dict[int, bytes] = {}  # many items share a selection, as an object too
    for name in names:
        item = items[name.item]
        selection = spelt.get(id(item.selection))
        if selection is None:
            selection = spelt[id(item.selection)] = canonical(item.selection)
        last[name.video_id, selection, item.draw] = name
    return list(last.values())


@dataclass(frozen=True, slots=True)
class FrameRecord:
    """One stored frame.

    Attributes:
        row: Row in the bucket's arrays.
        index: Position among the item's own frames.
        frame_name: Name that labels join by: a file's stem, or the 5-digit source index.
        source_index: Position in the source, in presentation order.
        pts_us: Time from the source's first frame, microseconds; None for image files.
        sha256: Content of its file, for frames that have one.
    """

    row: int
    item: str
    index: int
    frame_name: str
    source_index: int
    pts_us: int | None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """The commit record of a row group: every file of one shard, and who made it.

    A shard exists only with its part.

    Attributes:
        arrays: Per array, the shard file's record.
        frames: The frames in it.
        ended: Items whose last own frame lies here, with their number of own frames.
        stats: Per stage largest magnitude, and the like: what a look at the values told.
        provenance: Versions, device, host, times: a difference warns, nothing more.
    """

    bucket: Bucket
    shard: int
    arrays: Mapping[str, ShardRecord]
    frames: tuple[FrameRecord, ...]
    ended: Mapping[str, int] = field(default_factory=dict)
    stats: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files of the row group."""
        return sum(record.size_bytes for record in self.arrays.values())

    def to_json(self) -> dict[str, Any]:
        """A JSON object that ``from_json`` reads back."""
        return {**asdict(self), "bucket": self.bucket.name}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Reads ``to_json``."""
        arrays = {
            name: ShardRecord(
                record["size_bytes"],
                record["index_crc"],
                tuple((chunk[0], chunk[1], chunk[2], chunk[3]) for chunk in record["chunks"]),
            )
            for name, record in content["arrays"].items()
        }
        frames = tuple(FrameRecord(**frame) for frame in content["frames"])
        bucket = Bucket.parse(content["bucket"])
        return cls(**{**content, "bucket": bucket, "arrays": arrays, "frames": frames})


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an item ended: all its frames are known, or it is in quarantine with a reason.

    A source that could not be opened has no rows, so its quarantine carries the ``video_id``.
    """

    item: str
    status: Literal["done", "quarantined"]
    num_frames: int = 0
    reason: str = ""
    video_id: str = ""

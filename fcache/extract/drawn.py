"""What decoding hands over: frames on their canvases, and what became of sources and runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fcache.extract.tasks import Member, Run
from fcache.sources.geometry import Placement
from fcache.store.layout import SHARD_ROWS
from fcache.store.records import Item, ItemRequest


@dataclass(frozen=True, slots=True)
class Drawn:
    """A decoded frame on its canvas; what it was decoded to, often larger, is gone.

    Attributes:
        index: Position among the item's own frames.
        name: What labels join by.
        source_index: Position in the source.
        pts_us: Time from the source's first frame, microseconds; None for image files.
        sha256: Content of its file, for frames that have one.
    """

    item: Item
    index: int
    name: str
    source_index: int
    pts_us: int | None
    canvas: npt.NDArray[np.uint8]  # [H, W, 3]
    sha256: str | None = None

    @property
    def place(self) -> int:
        """Position in its shard."""
        row = self.item.row_of(0) if self.item.packed else self.index
        return row % SHARD_ROWS

    @property
    def valid(self) -> tuple[int, int]:
        """Height and width of the canvas that the frame covers, pixels."""
        at = self.item.placement
        return int(at["crop_h"]), int(at["crop_w"])


@dataclass(frozen=True, slots=True)
class Lost:
    """A source that cannot be used.

    Attributes:
        said_of_content: Whether it is the content that the plan saw which is broken.
    """

    member: Member
    reason: str
    said_of_content: bool


@dataclass(frozen=True, slots=True)
class RunEnd:
    """The end of a run, however it ended.

    Attributes:
        num_frames: Own frames of a video whose end was seen; None else.
        busy: Whether shards were left out that another job is writing.
    """

    run: Run
    num_frames: int | None = None
    busy: bool = False


Event = list[Drawn] | Lost | RunEnd


def placement_of(item: ItemRequest) -> Placement:
    """How the item's frames lie on their canvas."""
    sides: Mapping[str, Any] = item.placement
    return Placement(canvas_h=item.bucket.height, canvas_w=item.bucket.width, **sides)


def place_of(drawn: Drawn) -> tuple[str, int]:
    """Tells shards apart: by item and first frame; shared ones by bucket and number."""
    item = drawn.item
    if item.packed:
        return item.bucket.name, item.row_of(0) // SHARD_ROWS
    return item.item, drawn.index - drawn.index % SHARD_ROWS


def lot_of(drawn: Drawn, batch: int) -> tuple[tuple[str, int], int]:
    """Tells batches apart."""
    return place_of(drawn), drawn.place // batch

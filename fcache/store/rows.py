"""Giving rows to items: whole shards to a video, one row of a shared shard to an image."""

from __future__ import annotations

from collections.abc import Mapping

from fcache.store.layout import SHARD_ROWS, Bucket, num_shards
from fcache.store.records import ItemRequest

Extents = tuple[tuple[int, int], ...]


class FreeRows:
    """The rows behind those that are given away.

    A shard that images share is filled by one reservation only: it may be committed before the
    next.

    Args:
        used: Rows given away in each bucket, whole shards of them.
    """

    def __init__(self, used: Mapping[Bucket, int]) -> None:
        self._next = dict(used)
        self._shared: dict[Bucket, int] = {}  # next row of the shard that images are filling

    def take(self, request: ItemRequest) -> Extents:
        """Returns rows for an item, none where every frame is borrowed."""
        if request.packed:
            return ((self._share(request.bucket), 1),)
        if request.expected_frames == 0 and request.borrowed:
            return ()
        rows = max(1, num_shards(request.expected_frames)) * SHARD_ROWS
        return ((self._reserve(request.bucket, rows), rows),)

    def _share(self, bucket: Bucket) -> int:
        row = self._shared.get(bucket, 0)
        if row % SHARD_ROWS == 0:
            row = self._reserve(bucket, SHARD_ROWS)
        self._shared[bucket] = row + 1
        return row

    def _reserve(self, bucket: Bucket, rows: int) -> int:
        first = self._next.get(bucket, 0)
        self._next[bucket] = first + rows
        return first

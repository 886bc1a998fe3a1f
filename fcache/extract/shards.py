"""Writing behind: the shards of a task, one open at a time, from a thread."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fcache.errors import FeatureError
from fcache.extract.drawn import Drawn, place_of
from fcache.extract.precision import merge_errors
from fcache.extract.producer import Produced
from fcache.extract.tasks import VideoRun
from fcache.report import Report
from fcache.store.claims import Claims
from fcache.store.index import ViewIndex
from fcache.store.layout import SHARD_ROWS, Bucket
from fcache.store.records import FrameRecord, Item, Outcome
from fcache.store.writer import RowGroup

# What is computed and not yet written. A commit flushes files to the disk, which takes as long as
# several batches of a fast device; a shard of ViT-g at 518 px has 280 MB.
BEHIND_BYTES = 256 << 20


@dataclass(slots=True)
class _Open:
    """A shard that is being written.

    Attributes:
        video: The item whose shard it is; None where images share it.
        group: Its files. The writing thread opens them: making folders durable takes as long as a
            device's batch. None before, and where they could not be opened.
        lacks: Whether frames could not be written: what follows must not publish the others.
    """

    bucket: Bucket
    shard: int
    video: str | None
    group: RowGroup | None = None
    lacks: bool = False
    errors: list[npt.NDArray[np.float64]] = field(default_factory=list)


class ShardSequence:
    """The shards of a task, in order.

    A full shard is committed when a frame of another one comes, or the run's end does: the record
    of a video's last shard says how many frames it has.

    Args:
        index: The view's bookkeeping.
        claims: This writer's claims.
        generation: The tables that lacked the task's shards.
        provenance: Goes into every commit record.
        report: Told of every commit.

    Attributes:
        refused: Why an item's features were not stored, by item.
        spent: Seconds the caller spent on what, since the last commit; the next record tells.
    """

    def __init__(
        self,
        index: ViewIndex,
        claims: Claims,
        generation: int,
        provenance: Mapping[str, Any],
        report: Report,
    ) -> None:
        self.refused: dict[str, str] = {}
        self.spent = dict.fromkeys(("decode", "compute", "write"), 0.0)
        self._index = index
        self._claims = claims
        self._generation = generation
        self._provenance = provenance
        self._report = report
        self._at: tuple[str, int] | None = None
        self._open: _Open | None = None
        self._taken: set[tuple[str, int]] = set()  # claimed, and not yet turned to
        self._grown: dict[str, Item] = {}  # items that were given more rows
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fcache-write")
        self._pending: deque[tuple[int, Future[None]]] = deque()  # with the bytes they hold

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(wait=True)
        self._drop()

    def is_open(self, bucket: Bucket, shard: int) -> bool:
        """Whether a shard is neither committed nor held by another job; from any thread."""
        return self._claims.is_free(bucket.name, shard) and not self._is_there(bucket, shard)

    def opens(self, drawn: Drawn) -> bool:
        """Whether a frame is in another shard than the one turned to."""
        return place_of(drawn) != self._at

    def take(self, bucket: Bucket, shard: int) -> bool:
        """Claims a shard, ahead of its turn; False if it is not open. From any thread.

        Claiming waits for the disk, and for whoever commits meanwhile.
        """
        place = bucket.name, shard
        if place not in self._taken and self._claims.take(*place):
            self._taken.add(place)
            if self._is_there(bucket, shard):
                self._taken.discard(place)
                self._claims.release(*place)
        return place in self._taken

    def turn_to(self, drawn: Drawn) -> bool:
        """Opens the shard of a frame; False if another job holds it, or has committed it."""
        if not self.opens(drawn):
            return self._open is not None
        self._commit({})
        self._at = place_of(drawn)
        item = self._grown.get(drawn.item.item, drawn.item)
        first = drawn.index - drawn.index % SHARD_ROWS
        if not item.packed and drawn.index >= item.num_rows:
            # The container promised fewer frames; a quarter more saves asking at every shard.
            item = self._index.extend(item, drawn.index + max(1, drawn.index // 4))
            self._grown[item.item] = item
        shard = item.row_of(first) // SHARD_ROWS
        if self.take(item.bucket, shard):
            self._taken.discard((item.bucket.name, shard))
            self._open = _Open(item.bucket, shard, None if item.packed else item.item)
            self._submit(self._begin, self._open)
        return self._open is not None

    def put(self, batch: Sequence[Drawn], produced: Produced, places: Sequence[int]) -> None:
        """Hands frames of the open shard to the writing thread.

        Args:
            batch: The frames.
            produced: What was computed.
            places: Where each frame is in that.

        Raises:
            NoSpaceError: an earlier batch could not be written.
        """
        assert self._open is not None
        records = [self._record(drawn) for drawn in batch]
        size = sum(array.nbytes for chunks in produced.arrays.values() for array in chunks)
        self._submit(self._write, self._open, records, batch, produced, places, size_bytes=size)

    def end_video(self, run: VideoRun, num_frames: int | None) -> None:
        """Commits a video's last shard and, where the source's end was seen, the item's length."""
        item = run.member.item.item
        if num_frames is None:
            self._commit({})
        elif self._open is not None:
            self._commit({item: num_frames})
        elif run.open_ended:
            self._wait(0)
            if item not in self.refused:
                self._index.end(Outcome(item, "done", num_frames))
        self._at = None

    def commit(self) -> None:
        """Commits the open shard, which is whole."""
        self._commit({})
        self._at = None

    def give_up(self) -> None:
        """Drops the open shard: its source turned out to be broken."""
        self._wait(0)
        self._drop()
        self._at = None

    def finish(self) -> None:
        """Waits until everything is written.

        Raises:
            NoSpaceError: it could not be.
        """
        self._wait(0)

    def _is_there(self, bucket: Bucket, shard: int) -> bool:
        return self._index.is_committed(bucket, shard, self._generation)

    def _drop(self) -> None:
        if self._open is not None:
            if self._open.group is not None:
                self._open.group.discard()
            self._claims.release(self._open.bucket.name, self._open.shard)
            self._open = None

    def _record(self, drawn: Drawn) -> FrameRecord:
        item = self._grown.get(drawn.item.item, drawn.item)
        return FrameRecord(
            row=item.row_of(drawn.index),
            item=item.item,
            index=drawn.index,
            frame_name=drawn.name,
            source_index=drawn.source_index,
            pts_us=drawn.pts_us,
            sha256=drawn.sha256,
        )

    def _commit(self, ended: Mapping[str, int]) -> None:
        if self._open is not None:
            spent = {name: round(seconds, 4) for name, seconds in self.spent.items()}
            self.spent = dict.fromkeys(self.spent, 0.0)
            self._submit(self._publish, self._open, ended, spent)
            self._open = None

    def _begin(self, at: _Open) -> None:
        at.group = RowGroup(self._index, at.bucket, at.shard)

    def _write(
        self,
        at: _Open,
        records: Sequence[FrameRecord],
        batch: Sequence[Drawn],
        produced: Produced,
        places: Sequence[int],
    ) -> None:
        for record, drawn, place in zip(records, batch, places, strict=True):
            if at.group is None or at.video in self.refused:
                return
            arrays = {
                name: [stage[place] for stage in stages] for name, stages in produced.arrays.items()
            }
            try:
                at.group.put(record, {**arrays, "pixels": [drawn.canvas]}, produced.largest[place])
            except FeatureError as error:
                self.refused[record.item] = error.message
                continue
            except BaseException:
                at.lacks = True
                raise
            if produced.errors is not None:
                at.errors.append(produced.errors[place])

    def _publish(self, at: _Open, ended: Mapping[str, int], spent: Mapping[str, float]) -> None:
        group = at.group
        try:
            if group is None:
                return
            # Of images the others stay; a video's shard lacks frames without which it is nothing.
            if at.lacks or at.video in self.refused or not group.frames:
                group.discard()
                return
            if at.video is None:
                ended = dict.fromkeys((frame.item for frame in group.frames), 1)
            stats: dict[str, Any] = {"seconds": spent}
            if at.errors:
                stats["errors"] = merge_errors(at.errors).tolist()  # precision.ERROR_COLUMNS
            about = {**self._provenance, "num_frames": len(group.frames)}
            part = group.commit(ended, about, stats)
        except BaseException:
            if group is not None:
                group.discard()
            raise
        finally:
            self._claims.release(at.bucket.name, at.shard)
        self._report(
            {
                "event": "commit",
                "bucket": group.bucket.name,
                "shard": group.shard,
                "frames": len(part.frames),
                "bytes": part.size_bytes,
            }
        )

    def _submit(self, work: Callable[..., Any], *args: object, size_bytes: int = 0) -> None:
        self._wait(BEHIND_BYTES)
        self._pending.append((size_bytes, self._thread.submit(work, *args)))

    def _wait(self, allowed_bytes: int) -> None:
        """Waits until no more than this is to be written; for 0 until nothing is to be done."""
        began_s = time.monotonic()
        while self._pending and (
            self._pending[0][1].done()
            or not allowed_bytes
            or sum(size for size, _ in self._pending) > allowed_bytes
        ):
            self._pending.popleft()[1].result()
        self.spent["write"] += time.monotonic() - began_s

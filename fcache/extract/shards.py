"""Writing behind: the shards of a task, one open at a time, from a thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from fcache.errors import FeatureError
from fcache.extract.precision import merge_errors
from fcache.extract.prefetch import Drawn, place_of
from fcache.extract.producer import Produced
from fcache.extract.tasks import VideoRun
from fcache.store.claims import Claims
from fcache.store.index import ViewIndex
from fcache.store.layout import SHARD_ROWS, Bucket
from fcache.store.records import FrameRecord, Item, Outcome
from fcache.store.writer import RowGroup

Wanted = Literal["mine", "theirs", "there"]
Report = Callable[[dict[str, Any]], None]


@dataclass(slots=True)
class _Open:
    """A shard that is being written.

    Attributes:
        video: The item whose shard it is; None where images share it.
    """

    group: RowGroup
    video: str | None
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
        self._wanted: Wanted = "there"
        self._open: _Open | None = None
        self._grown: dict[str, Item] = {}  # items that were given more rows
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fcache-write")
        self._pending: list[Future[None]] = []

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

    def turn_to(self, drawn: Drawn) -> Wanted:
        """Opens the shard of a frame; ``theirs`` if a live job holds it, ``there`` if committed."""
        if not self.opens(drawn):
            return self._wanted
        self._commit({})
        self._at = place_of(drawn)
        item = self._grown.get(drawn.item.item, drawn.item)
        first = drawn.index - drawn.index % SHARD_ROWS
        if not item.packed and drawn.index >= item.num_rows:
            # The container promised fewer frames; a quarter more saves asking at every shard.
            item = self._index.extend(item, drawn.index + max(1, drawn.index // 4))
            self._grown[item.item] = item
        shard = item.row_of(first) // SHARD_ROWS
        if not self._claims.take(item.bucket.name, shard):
            self._wanted = "theirs"
        elif self._is_there(item.bucket, shard):
            self._claims.release(item.bucket.name, shard)
            self._wanted = "there"
        else:
            group = RowGroup(self._index, item.bucket, shard)
            self._open = _Open(group, None if item.packed else item.item)
            self._wanted = "mine"
        return self._wanted

    def put(self, batch: Sequence[Drawn], produced: Produced) -> None:
        """Hands frames of the open shard to the writing thread, at most one batch behind.

        Raises:
            NoSpaceError: an earlier batch could not be written.
        """
        assert self._open is not None
        self._submit(self._write, self._open, [self._record(one) for one in batch], batch, produced)

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
            self._open.group.discard()
            self._claims.release(self._open.group.bucket.name, self._open.group.shard)
            self._open = None

    def _record(self, drawn: Drawn) -> FrameRecord:
        item = self._grown.get(drawn.item.item, drawn.item)
        return FrameRecord(
            row=item.row_of(drawn.index),
            item=item.item,
            index=drawn.index,
            frame_name=drawn.frame.name,
            source_index=drawn.frame.source_index,
            pts_us=drawn.frame.pts_us,
            sha256=drawn.sha256,
        )

    def _commit(self, ended: Mapping[str, int]) -> None:
        if self._open is not None:
            spent = {name: round(seconds, 4) for name, seconds in self.spent.items()}
            self.spent = dict.fromkeys(self.spent, 0.0)
            self._submit(self._publish, self._open, ended, spent)
            self._open = None

    def _write(
        self,
        at: _Open,
        records: Sequence[FrameRecord],
        batch: Sequence[Drawn],
        produced: Produced,
    ) -> None:
        for place, (record, drawn) in enumerate(zip(records, batch, strict=True)):
            if at.video in self.refused:
                return
            arrays = {
                name: [stage[place] for stage in stages] for name, stages in produced.arrays.items()
            }
            try:
                at.group.put(record, {**arrays, "pixels": [drawn.canvas]}, produced.largest[place])
            except FeatureError as error:
                self.refused[record.item] = error.message
                continue
            if produced.errors is not None:
                at.errors.append(produced.errors[place])

    def _publish(self, at: _Open, ended: Mapping[str, int], spent: Mapping[str, float]) -> None:
        group = at.group
        try:
            # Of images the others stay; a video's shard lacks frames without which it is nothing.
            if at.video in self.refused or not group.frames:
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
            group.discard()
            raise
        finally:
            self._claims.release(group.bucket.name, group.shard)
        self._report(
            {
                "event": "commit",
                "bucket": group.bucket.name,
                "shard": group.shard,
                "frames": len(part.frames),
                "bytes": part.size_bytes,
            }
        )

    def _submit(self, work: Callable[..., Any], *args: object) -> None:
        self._wait(1)
        self._pending.append(self._thread.submit(work, *args))

    def _wait(self, allowed: int) -> None:
        began_s = time.monotonic()
        while len(self._pending) > allowed:
            self._pending.pop(0).result()
        self.spent["write"] += time.monotonic() - began_s

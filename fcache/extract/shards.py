"""Writing behind: the shards of a task, one open at a time, from a thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal, Self

from fcache.extract.prefetch import Drawn
from fcache.extract.producer import Produced
from fcache.extract.tasks import ShardTask
from fcache.store.claims import Claims
from fcache.store.index import ViewIndex
from fcache.store.layout import SHARD_ROWS
from fcache.store.records import FrameRecord, Outcome
from fcache.store.writer import RowGroup

Wanted = Literal["mine", "theirs", "there"]
Report = Callable[[dict[str, Any]], None]


class ShardSequence:
    """The shards of a task, in order.

    A full shard is committed when a frame of the next one comes, or the end does: the record of
    the last shard says how many frames the item has.

    Args:
        task: Which shards.
        index: The view's bookkeeping.
        claims: This writer's claims.
        provenance: Goes into every commit record.
        report: Told of every commit.
    """

    def __init__(
        self,
        task: ShardTask,
        index: ViewIndex,
        claims: Claims,
        provenance: Mapping[str, Any],
        report: Report,
    ) -> None:
        self._task = task
        self._item = task.item
        self._index = index
        self._claims = claims
        self._provenance = provenance
        self._report = report
        self._first: int | None = None
        self._wanted: Wanted = "there"
        self._group: RowGroup | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fcache-write")
        self._pending: list[Future[None]] = []
        self._broken = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(wait=True)
        if self._group is not None:
            self._group.discard()

    def turn_to(self, frame: int) -> Wanted:
        """Opens the shard of a frame; ``theirs`` if a live job holds it, ``there`` if committed."""
        first = frame - frame % SHARD_ROWS
        if first == self._first:
            return self._wanted
        self._commit({})
        self._first = first
        if frame >= self._item.num_rows:
            # The container promised fewer frames; a quarter more saves asking at every shard.
            self._item = self._index.extend(self._item, frame + max(1, frame // 4))
        shard = self._item.row_of(first) // SHARD_ROWS
        bucket = self._item.bucket
        if not self._claims.take(bucket.name, shard):
            self._wanted = "theirs"
        elif self._index.is_committed(bucket, shard, self._task.generation):
            self._claims.release(bucket.name, shard)
            self._wanted = "there"
        else:
            self._group = RowGroup(self._index, bucket, shard)
            self._wanted = "mine"
        return self._wanted

    def put(self, batch: list[Drawn], produced: Produced) -> None:
        """Hands frames of the open shard to the writing thread, at most one batch behind.

        Raises:
            FeatureError, NoSpaceError: an earlier batch could not be written.
        """
        assert self._group is not None
        self._submit(self._write, self._group, self._rows(batch), batch, produced)

    def finish(self, num_frames: int | None) -> None:
        """Commits the last shard and, where the source's end was seen, the item's length."""
        item = self._item.item
        if num_frames is None:
            self._commit({})
        elif self._group is not None:
            self._commit({item: num_frames})
        elif self._task.open_ended:
            self._index.end(Outcome(item, "done", num_frames))
        self._wait(0)

    def _rows(self, batch: list[Drawn]) -> list[int]:
        return [self._item.row_of(drawn.index) for drawn in batch]

    def _commit(self, ended: Mapping[str, int]) -> None:
        if self._group is not None:
            self._submit(self._publish, self._group, ended)
            self._group = None

    def _write(
        self, group: RowGroup, rows: list[int], batch: list[Drawn], produced: Produced
    ) -> None:
        try:
            for place, (row, drawn) in enumerate(zip(rows, batch, strict=True)):
                stages = [stage[place] for stage in produced.stages]
                record = _record(self._item.item, row, drawn)
                group.put(record, stages, drawn.canvas, produced.largest[place])
        except BaseException:
            self._broken = True
            raise

    def _publish(self, group: RowGroup, ended: Mapping[str, int]) -> None:
        if self._broken:  # the shard lacks frames, which ``put`` or ``finish`` will tell
            group.discard()
            return
        try:
            about = {**self._provenance, "num_frames": group.num_frames}
            part = group.commit(ended, about)
        except BaseException:
            group.discard()
            raise
        finally:
            self._claims.release(group.bucket.name, group.shard)
        self._report(
            {
                "event": "commit",
                "video": self._task.source.video_id,
                "shard": group.shard,
                "frames": len(part.frames),
                "bytes": part.size_bytes,
            }
        )

    def _submit(self, work: Callable[..., None], *args: object) -> None:
        self._wait(1)
        self._pending.append(self._thread.submit(work, *args))

    def _wait(self, allowed: int) -> None:
        while len(self._pending) > allowed:
            self._pending.pop(0).result()


def _record(item: str, row: int, drawn: Drawn) -> FrameRecord:
    return FrameRecord(
        row=row,
        item=item,
        index=drawn.index,
        frame_name=drawn.frame.name,
        source_index=drawn.frame.source_index,
        pts_us=drawn.frame.pts_us,
    )

"""Decoding ahead: the frames of a task on their canvases, from a thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any, cast

from fcache.config import Selection
from fcache.errors import SourceError
from fcache.extract.drawn import Drawn, Event, Lost, RunEnd, lot_of, placement_of
from fcache.extract.tasks import ImageRun, Member, ShardTask, VideoRun
from fcache.sources.content import HashMemo, content_hash, folder_content
from fcache.sources.decode import Frame, decode
from fcache.sources.geometry import draw
from fcache.store.layout import SHARD_ROWS, Bucket
from fcache.store.records import Item

AHEAD = 32  # frames decoded before they are asked for: two batches of the largest size

IsOpen = Callable[[Bucket, int], bool]


class Prefetch:
    """The wanted frames of a task in order, decoded and drawn a few ahead.

    Args:
        task: What to decode.
        selection: Which frames of a source were asked for.
        is_open: Whether a shard is neither committed nor another job's: others are not decoded.
        take: Claims a shard whose frames come next, and says whether it was open.
        memo: Remembers the hashes of sources.
    """

    def __init__(
        self,
        task: ShardTask,
        selection: Selection,
        is_open: IsOpen,
        take: IsOpen,
        memo: HashMemo,
    ) -> None:
        self._waited_s = 0.0
        self._task = task
        self._selection = selection
        self._is_open = is_open
        self._take = take
        self._memo = memo
        self._queue: queue.Queue[Drawn | Lost | RunEnd | BaseException | None] = queue.Queue(AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._decode, name="fcache-decode", daemon=True)
        self._thread.start()

    def events(self, batch: int) -> Iterator[Event]:
        """Yields frames in batches, and what became of runs.

        A batch begins at every ``batch``-th row of a shard, whatever lacks before it.
        """
        held: list[Drawn] = []
        while (got := self._next()) is not None:
            if held and not (
                isinstance(got, Drawn) and lot_of(held[-1], batch) == lot_of(got, batch)
            ):
                yield held
                held = []
            if isinstance(got, Drawn):
                held.append(got)
            else:
                yield got

    def take_waited_s(self) -> float:
        """How long frames were waited for since this was last asked, seconds."""
        waited_s, self._waited_s = self._waited_s, 0.0
        return waited_s

    def close(self) -> None:
        """Stops decoding and closes the source."""
        self._closed.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue

    def _next(self) -> Drawn | Lost | RunEnd | None:
        began_s = time.monotonic()
        got = self._queue.get()
        self._waited_s += time.monotonic() - began_s
        if isinstance(got, BaseException):
            raise got
        return got

    def _decode(self) -> None:
        try:
            for run in self._task.runs:
                if self._closed.is_set():
                    return
                if isinstance(run, VideoRun):
                    self._decode_video(run)
                else:
                    self._decode_images(run)
            self._queue.put(None)
        except BaseException as error:
            self._queue.put(error)  # raised again by the thread that iterates

    def _decode_images(self, run: ImageRun) -> None:
        is_open = all(self._take(*shard) for shard in run.shards)
        for member in run.members if is_open else ():
            if self._closed.is_set():
                return
            if self._hashes(member) is not None:
                try:
                    (frame,) = decode(member.source.path, "image", self._selection)
                    assert frame is not None
                    self._put(member.item, 0, frame, member.sha256)
                except SourceError as error:
                    self._queue.put(Lost(member, error.message, said_of_content=True))
        self._queue.put(RunEnd(run, busy=not is_open))

    def _decode_video(self, run: VideoRun) -> None:
        shards = dict(zip(run.first_frames, run.shards, strict=True))
        left = {first: shard for first, shard in shards.items() if self._is_open(*shard)}
        num_frames = None
        if _end(run, left) != 0:
            hashes = self._hashes(run.member)
            if hashes is not None:
                try:
                    num_frames = self._decode_frames(run, left, hashes)
                except SourceError as error:
                    self._queue.put(Lost(run.member, error.message, said_of_content=True))
        self._queue.put(RunEnd(run, num_frames, busy=len(left) < len(shards)))

    def _hashes(self, member: Member) -> Mapping[str, str] | None:
        """The content of each frame that has a file of its own, by name.

        None, and told, where a source does not hold the bytes the plan saw.
        """
        source = member.source
        frames: Mapping[str, str] = {}
        try:
            if source.kind == "frames":
                folder = folder_content(source.path, self._memo)
                found, frames = folder.sha256, dict(folder.frames)
            else:
                found = content_hash(source.path, source.kind, self._memo)
        except SourceError as error:
            self._queue.put(Lost(member, error.message, said_of_content=False))
            return None
        if found != member.sha256:
            reason = (
                f"'{source.path}' has changed: its content hashes to {found[:12]}, expected "
                f"{member.sha256[:12]}. Make a new manifest, or restore the file."
            )
            self._queue.put(Lost(member, reason, said_of_content=False))
            return None
        return {source.path.stem: found} if source.kind == "image" else frames

    def _decode_frames(
        self, run: VideoRun, left: dict[int, tuple[Bucket, int]], hashes: Mapping[str, str]
    ) -> int | None:
        """Decodes shards of a run; returns the number of own frames if the end was seen.

        Args:
            run: The run.
            left: Its open shards, by first own frame; loses those another job begins meanwhile.
            hashes: Content of each frame, by name.
        """
        item, source = run.member.item, run.member.source
        borrowed = {source_index for source_index, _ in item.borrowed}

        def is_wanted(index: int) -> bool:
            if index in left and not self._take(*left[index]):
                del left[index]
            past_rows = run.open_ended and index >= item.num_rows
            return past_rows or index - index % SHARD_ROWS in left

        frames = decode(
            source.path,
            source.kind,
            self._selection,
            wanted=is_wanted,
            skip=borrowed.__contains__ if borrowed else None,
        )
        count = 0
        with closing(cast("Any", frames)):
            for index, frame in enumerate(frames):
                end = _end(run, left)
                if self._closed.is_set() or (end is not None and index >= end):
                    return None
                if frame is not None:
                    self._put(item, index, frame, hashes.get(frame.name))
                count = index + 1
        return count

    def _put(self, item: Item, index: int, frame: Frame, sha256: str | None) -> None:
        placement = placement_of(item)
        height, width = frame.rgb.shape[:2]
        planned = placement.source_h, placement.source_w
        if (height, width) != planned:
            raise SourceError(
                f"frame {frame.source_index} is {width}x{height}, the plan expected "
                f"{planned[1]}x{planned[0]} (width x height)."
            )
        canvas = draw(frame.rgb, placement)
        self._queue.put(
            Drawn(item, index, frame.name, frame.source_index, frame.pts_us, canvas, sha256)
        )


def _end(run: VideoRun, left: Mapping[int, object]) -> int | None:
    """The own frame before which decoding ends; None for the end of the source.

    Of the shards of a run, whoever writes the last looks for the end of the source.
    """
    if run.open_ended and (not run.first_frames or run.first_frames[-1] in left):
        return None
    return max(left) + SHARD_ROWS if left else 0

"""Decoding ahead: the frames of a task on their canvases, from a thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fcache.config import Selection
from fcache.errors import SourceError
from fcache.extract.tasks import ImageRun, Member, Run, ShardTask, VideoRun
from fcache.sources.content import HashMemo, content_hash, frame_hashes
from fcache.sources.decode import Frame, decode
from fcache.sources.geometry import Placement, draw
from fcache.store.layout import SHARD_ROWS, Bucket
from fcache.store.records import Item, ItemRequest

AHEAD = 8  # frames decoded before they are asked for

IsOpen = Callable[[Bucket, int], bool]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A decoded frame on its canvas.

    Attributes:
        index: Position among the item's own frames.
        sha256: Content of its file, for frames that have one.
    """

    item: Item
    index: int
    frame: Frame
    canvas: npt.NDArray[np.uint8]  # [H, W, 3]
    sha256: str | None = None

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


class Prefetch:
    """The wanted frames of a task in order, decoded and drawn a few ahead.

    Args:
        task: What to decode.
        selection: Which frames of a source were asked for.
        is_open: Whether a shard is neither committed nor another job's: others are not decoded.
        memo: Remembers the hashes of sources.

    """

    def __init__(
        self, task: ShardTask, selection: Selection, is_open: IsOpen, memo: HashMemo
    ) -> None:
        self._waited_s = 0.0
        self._task = task
        self._selection = selection
        self._is_open = is_open
        self._memo = memo
        self._queue: queue.Queue[Drawn | Lost | RunEnd | BaseException | None] = queue.Queue(AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._decode, name="fcache-decode", daemon=True)
        self._thread.start()

    def events(self, batch: int) -> Iterator[Event]:
        """Yields frames in batches, never across the start of a shard, and what became of runs."""
        held: list[Drawn] = []
        while (got := self._next()) is not None:
            if held and (
                not isinstance(got, Drawn)
                or len(held) == batch
                or place_of(held[-1]) != place_of(got)
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
        is_open = all(self._is_open(*shard) for shard in run.shards)
        for member in run.members if is_open else ():
            if self._closed.is_set():
                return
            if self._is_sound(member):
                try:
                    (frame,) = decode(member.source.path, "image", Selection())
                    assert frame is not None
                    self._put(member.item, 0, frame, member.sha256)
                except SourceError as error:
                    self._queue.put(Lost(member, error.message, said_of_content=True))
        self._queue.put(RunEnd(run, busy=not is_open))

    def _decode_video(self, run: VideoRun) -> None:
        shards = zip(run.first_frames, run.shards, strict=True)
        left = tuple(first for first, shard in shards if self._is_open(*shard))
        busy = len(left) < len(run.first_frames)
        if not left and not run.open_ended:
            self._queue.put(RunEnd(run, busy=busy))
            return
        num_frames = None
        if self._is_sound(run.member):
            try:
                num_frames = self._decode_frames(replace(run, first_frames=left))
            except SourceError as error:
                self._queue.put(Lost(run.member, error.message, said_of_content=True))
        self._queue.put(RunEnd(run, num_frames, busy))

    def _is_sound(self, member: Member) -> bool:
        """Whether a source holds the bytes the plan saw; tells if not."""
        source = member.source
        try:
            found = content_hash(source.path, source.kind, self._memo)
        except SourceError as error:
            self._queue.put(Lost(member, error.message, said_of_content=False))
            return False
        if found != member.sha256:
            reason = (
                f"'{source.path}' has changed: its content hashes to {found[:12]}, expected "
                f"{member.sha256[:12]}. Make a new manifest, or restore the file."
            )
            self._queue.put(Lost(member, reason, said_of_content=False))
        return found == member.sha256

    def _decode_frames(self, run: VideoRun) -> int | None:
        """Decodes the shards of a run; returns the number of own frames if the end was seen."""
        item, source = run.member.item, run.member.source
        hashes = self._hashes(run.member)
        borrowed = {source_index for source_index, _ in item.borrowed}
        firsts = set(run.first_frames)
        last = max(firsts, default=0) + SHARD_ROWS

        def is_wanted(index: int) -> bool:
            past_rows = run.open_ended and index >= item.num_rows
            return past_rows or index - index % SHARD_ROWS in firsts

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
                if self._closed.is_set() or (not run.open_ended and index >= last):
                    return None
                if frame is not None:
                    self._put(item, index, frame, hashes.get(frame.name))
                count = index + 1
        return count

    def _hashes(self, member: Member) -> Mapping[str, str]:
        source = member.source
        if source.kind == "video":
            return {}
        if source.kind == "image":
            return {source.path.stem: member.sha256}
        return dict(frame_hashes(source.path, self._memo))

    def _put(self, item: Item, index: int, frame: Frame, sha256: str | None) -> None:
        placement = placement_of(item)
        height, width = frame.rgb.shape[:2]
        planned = placement.source_h, placement.source_w
        if (height, width) != planned:
            raise SourceError(
                f"frame {frame.source_index} is {width}x{height}, the plan expected "
                f"{planned[1]}x{planned[0]} (width x height)."
            )
        self._queue.put(Drawn(item, index, frame, draw(frame.rgb, placement), sha256))


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

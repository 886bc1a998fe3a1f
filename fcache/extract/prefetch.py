"""Decoding ahead: the frames of a task on their canvases, from a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fcache.config import Selection
from fcache.errors import SourceError
from fcache.extract.tasks import ShardTask
from fcache.sources.decode import Frame, decode
from fcache.sources.geometry import Placement, draw
from fcache.store.layout import SHARD_ROWS

AHEAD = 8  # frames decoded before they are asked for


@dataclass(frozen=True, slots=True)
class Drawn:
    """A decoded frame on its canvas.

    Attributes:
        index: Position among the source's selected frames.
    """

    index: int
    frame: Frame
    canvas: npt.NDArray[np.uint8]  # [H, W, 3]


class Prefetch:
    """The wanted frames of a task in order, decoded and drawn a few ahead.

    Attributes:
        num_frames: Selected frames of the source, once it was read to its end; None before.
    """

    def __init__(self, task: ShardTask, selection: Selection, placement: Placement) -> None:
        self.num_frames: int | None = None
        self._task = task
        self._selection = selection
        self._placement = placement
        self._firsts = set(task.first_frames)
        self._queue: queue.Queue[Drawn | BaseException | None] = queue.Queue(AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._decode, name="fcache-decode", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Drawn]:
        while (got := self._queue.get()) is not None:
            if isinstance(got, BaseException):
                raise got
            yield got

    def batches(self, size: int) -> Iterator[list[Drawn]]:
        """Groups the frames by ``size``, never across the start of a shard."""
        batch: list[Drawn] = []
        for drawn in self:
            if batch and (len(batch) == size or drawn.index % SHARD_ROWS == 0):
                yield batch
                batch = []
            batch.append(drawn)
        if batch:
            yield batch

    def close(self) -> None:
        """Stops decoding and closes the source."""
        self._closed.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue

    def _decode(self) -> None:
        try:
            self._decode_all()
            self._queue.put(None)
        except BaseException as error:
            self._queue.put(error)  # raised again by the thread that iterates

    def _decode_all(self) -> None:
        source = self._task.source
        last = max(self._firsts, default=0) + SHARD_ROWS
        frames = decode(source.path, source.kind, self._selection, wanted=self._is_wanted)
        count = 0
        with closing(cast("Any", frames)):
            for index, frame in enumerate(frames):
                if self._closed.is_set() or (not self._task.open_ended and index >= last):
                    return
                if frame is not None:
                    self._check_size(frame)
                    self._queue.put(Drawn(index, frame, draw(frame.rgb, self._placement)))
                count = index + 1
        self.num_frames = count

    def _is_wanted(self, index: int) -> bool:
        past_rows = self._task.open_ended and index >= self._task.item.num_rows
        return past_rows or index - index % SHARD_ROWS in self._firsts

    def _check_size(self, frame: Frame) -> None:
        height, width = frame.rgb.shape[:2]
        planned = self._placement.source_h, self._placement.source_w
        if (height, width) != planned:
            raise SourceError(
                f"frame {frame.source_index} is {width}x{height}, the plan expected "
                f"{planned[1]}x{planned[0]} (width x height)."
            )

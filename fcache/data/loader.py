"""Reads the clips of step after step, ahead of the training, into memory that is used again."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import count, islice
from types import TracebackType
from typing import Self

import torch

from fcache.data.arena import Arena
from fcache.data.batch import (
    DeviceBatch as DeviceBatch,
    MicroBatch as MicroBatch,
    StepBatch as StepBatch,
)
from fcache.data.features import CachedFeatures, Features
from fcache.data.sampling import ClipRequest, Clips
from fcache.data.targets import NO_TARGETS, ClipLabels, ClipTargets
from fcache.errors import ConfigError
from fcache.store.cache import Clip, View


class ClipLoader:
    """Iterates the steps of one rank.

    Micro-batch ``i`` of a step is read by rank ``i % world_size``. What is read does not depend on
    the number of readers, and a loader that starts at a step goes on as one that came there.

    Args:
        source: A view, or other features.
        sampler: The clips of every step.
        labels: Of the clips; None where they are only looked at.
        first_step: Where to start.
        end_step: Where to stop; never by default.
        rank: Which rank's part.
        world_size: Number of ranks.
        micro_batch: Clips of a micro-batch.
        num_readers: Reader threads.
        ahead: Steps that are read while one is used; 0 reads when asked.
        pin_memory: Whether memory is page-locked, for copies to a GPU beside its work.

    Raises:
        ConfigError: micro-batches of all ranks do not fill the batch.
    """

    def __init__(
        self,
        source: View | Features,
        sampler: Clips,
        labels: ClipLabels | None,
        *,
        first_step: int = 0,
        end_step: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        micro_batch: int = 1,
        num_readers: int = 2,
        ahead: int = 1,
        pin_memory: bool = False,
    ) -> None:
        if sampler.batch % (micro_batch * world_size):
            raise ConfigError(
                f"batch={sampler.batch} is not filled by {world_size} ranks with micro-batches of "
                f"micro_batch={micro_batch} clips; expected a multiple of "
                f"{micro_batch * world_size}."
            )
        if pin_memory and not torch.cuda.is_available():
            raise ConfigError("pin_memory=true needs a CUDA device, and there is none.")
        self.source = CachedFeatures(source) if isinstance(source, View) else source
        self.sampler = sampler
        self.labels = labels
        self.first_step, self.end_step = first_step, end_step
        self.rank, self.world_size = rank, world_size
        self.micro_batch = micro_batch
        self.waited_s = 0.0
        self._ahead, self._pin_memory = ahead, pin_memory
        self._readers = ThreadPoolExecutor(num_readers, thread_name_prefix="fcache-reader")
        self._closed = False

    def __iter__(self) -> Iterator[StepBatch]:
        """Yields the steps; each is valid until the next is asked for.

        Raises:
            Exception: what a reader met, in this thread.
        """
        free = [_Slot(pin_memory=self._pin_memory) for _ in range(self._ahead + 1)]
        reading = deque[_Reading]()
        endless = count(self.first_step)
        steps = endless if self.end_step is None else iter(range(self.first_step, self.end_step))
        try:
            while not self._closed:
                reading.extend(self._begin(step, free.pop()) for step in islice(steps, len(free)))
                if not reading:
                    return
                one = reading[0]
                began = time.perf_counter()
                batches = tuple(part.wait(self.source) for part in one.parts)
                waited_s = time.perf_counter() - began
                reading.popleft()
                self.waited_s += waited_s
                yield StepBatch(one.step, batches, waited_s)
                for batch in batches:
                    for copied in batch.copies:
                        copied.synchronize()
                free.append(one.slot)
        finally:
            for one in reading:
                one.stop()

    def close(self) -> None:
        """Stops the readers, when each has finished its clip; iterating is over."""
        self._closed = True
        self._readers.shutdown(wait=True, cancel_futures=True)

    def _begin(self, step: int, slot: _Slot) -> _Reading:
        """Has the readers fill a slot with this rank's part of a step."""
        clips, size = self.sampler.clips(step), self.micro_batch
        groups = [clips[first : first + size] for first in range(0, len(clips), size)]
        mine = groups[self.rank :: self.world_size]
        parts = [
            self._begin_part(requests, memory)
            for requests, memory in zip(mine, slot.memory(len(mine)), strict=True)
        ]
        return _Reading(step, slot, parts)

    def _begin_part(self, requests: tuple[ClipRequest, ...], memory: _Memory) -> _Part:
        memory.features.reset()
        num_frames = len(requests[0].frames)
        clip = self.source.empty(requests, memory.features.take)
        futures = [
            self._readers.submit(
                self._read,
                request,
                clip.rows(index * num_frames, (index + 1) * num_frames),
                masks,
            )
            for index, (request, masks) in enumerate(
                zip(requests, memory.masks(len(requests)), strict=True)
            )
        ]
        return _Part(clip, requests, futures)

    def _read(self, request: ClipRequest, out: Clip, masks: Arena) -> ClipTargets:
        """Fills a clip; runs in a reader."""
        masks.reset()
        self.source.read(request, out)
        if self.labels is None:
            return NO_TARGETS
        return self.labels.read(request, stride=self.source.stride, allocate=masks.take)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Memory:
    """The memory of one micro-batch."""

    def __init__(self, *, pin_memory: bool) -> None:
        self._pin_memory = pin_memory
        self.features = Arena(pin_memory=pin_memory)
        self._masks: list[Arena] = []

    def masks(self, num_clips: int) -> list[Arena]:
        """Memory for the masks of each clip."""
        while len(self._masks) < num_clips:
            self._masks.append(Arena(pin_memory=self._pin_memory))
        return self._masks[:num_clips]


class _Slot:
    """The memory of one step."""

    def __init__(self, *, pin_memory: bool) -> None:
        self._pin_memory = pin_memory
        self._memory: list[_Memory] = []

    def memory(self, num_parts: int) -> list[_Memory]:
        """Memory for each micro-batch."""
        while len(self._memory) < num_parts:
            self._memory.append(_Memory(pin_memory=self._pin_memory))
        return self._memory[:num_parts]


@dataclass(frozen=True, slots=True)
class _Part:
    """A micro-batch that readers fill."""

    clip: Clip
    requests: tuple[ClipRequest, ...]
    futures: list[Future[ClipTargets]]

    def wait(self, source: Features) -> MicroBatch:
        targets = tuple(future.result() for future in self.futures)
        return MicroBatch(self.clip, self.requests, targets, source)


@dataclass(frozen=True, slots=True)
class _Reading:
    """A step that readers fill."""

    step: int
    slot: _Slot
    parts: list[_Part]

    def stop(self) -> None:
        """Returns when no reader works at it."""
        futures = [future for part in self.parts for future in part.futures]
        # One that was cancelled is never told so once its executor is shut down.
        wait([future for future in futures if not future.cancel()])

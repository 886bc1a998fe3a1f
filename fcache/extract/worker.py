"""One task on one worker: decode, compute, write; the frozen network is kept between tasks.

Decoding runs a few frames ahead in a thread, writing a batch behind in another, so that the device
waits for neither, also between one video of the task and the next. A shard is computed whole, in
fixed batches from its first frame on, so that an interrupted extraction and an uninterrupted one
store the same bits.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fcache.config import Selection
from fcache.errors import FeatureError
from fcache.extract.drawn import Drawn, Event, Lost, RunEnd
from fcache.extract.mixing import Mixer
from fcache.extract.prefetch import Prefetch
from fcache.extract.producer import BackboneProducer, Produced, Producer, ProducerSettings
from fcache.extract.shards import ShardSequence
from fcache.extract.tasks import ShardTask, VideoRun
from fcache.report import Report
from fcache.sources.content import HashMemo
from fcache.sources.versions import decoder_versions
from fcache.store.claims import Claims
from fcache.store.index import ViewIndex
from fcache.store.records import Item, Outcome

Status = Literal["done", "quarantined", "busy", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What every task of a job shares.

    Attributes:
        view: The view's folder.
        batch: Frames computed together; divides the rows of a shard.
        mix: Whether images of different sizes are computed together.
        stop_file: While it exists, no new shard is begun.
    """

    view: Path
    producer: ProducerSettings
    selection: Selection
    batch: int
    stop_file: Path
    mix: bool = False


@dataclass(slots=True)
class TaskResult:
    """How a task ended for one source; all that goes back to the job.

    Attributes:
        status: ``busy`` if another live job holds one of the shards, ``stopped`` if the job asked,
            ``failed`` if the worker broke down over it.
        reason: Why the source is in quarantine, or failed.
    """

    video_id: str
    item: str
    status: Status = "done"
    reason: str = ""


_producers: dict[ProducerSettings, Producer] = {}
_device = threading.Lock()  # a worker with several threads still has one


def producer_of(settings: ProducerSettings) -> Producer:
    """Returns this process's producer, building it at first use."""
    if settings not in _producers:
        _producers.clear()  # the one before would only hold memory
        _producers[settings] = BackboneProducer(settings)
    return _producers[settings]


def run_task(task: ShardTask, settings: WorkerSettings, report: Report) -> list[TaskResult]:
    """Computes and commits the shards of a task; returns how it ended for each source.

    A source that cannot be used, or features that cannot be stored, put the video in quarantine;
    that is a result, not an error.

    Args:
        task: Which shards of which sources.
        settings: The job's.
        report: Told when the network is ready, and of every commit.

    Raises:
        NoSpaceError: the disk is full; committed shards stay.
        FcacheError: what keeps the whole job from working.
    """
    results = {
        member.item.item: TaskResult(member.source.video_id, member.item.item)
        for member in task.members
    }
    if settings.stop_file.exists():
        for result in results.values():
            result.status = "stopped"
    else:
        _TaskRun(task, settings, results, report).work()
    return list(results.values())


class _TaskRun:
    """One task at work: frames go from the decoder through the network to the shards."""

    def __init__(
        self,
        task: ShardTask,
        settings: WorkerSettings,
        results: dict[str, TaskResult],
        report: Report,
    ) -> None:
        self._task = task
        self._settings = settings
        self._results = results
        self._report = report
        self._index = ViewIndex(settings.view)
        if settings.producer not in _producers:
            with _device:  # nothing is claimed or decoded while the network is loaded
                producer_of(settings.producer)

    def work(self) -> None:
        """Goes on to the end of the task, or to the shard before which the job is stopped.

        Of two tasks at once, one decodes its first frames or writes its last while the other
        computes.
        """
        about: dict[str, Any] = {**_here(), "batch": self._settings.batch}
        memo = _memo()
        with (
            Claims(self._index.index) as claims,
            ShardSequence(
                self._index, claims, self._task.generation, about, self._report
            ) as shards,
            closing(
                Prefetch(self._task, self._settings.selection, shards.is_open, shards.take, memo)
            ) as frames,
        ):
            with _device:
                self._producer = producer_of(self._settings.producer)
                kinds = {member.source.kind for member in self._task.members}
                network = self._producer.provenance
                if self._settings.mix and "image" in kinds:
                    network = self._producer.mixed_provenance
                provenance = {**decoder_versions(kinds), **network}
                about |= provenance  # goes into the records of the shards
                self._report({"event": "ready", "provenance": provenance})
                self._move(frames, shards)
            shards.finish()
        memo.save()
        for item, reason in shards.refused.items():
            self._quarantine(self._results[item], reason)

    def _move(self, frames: Prefetch, shards: ShardSequence) -> None:
        num_ended = 0
        for event, produced in self._mixed(frames.events(self._settings.batch), shards):
            shards.spent["decode"] += frames.take_waited_s()
            if isinstance(event, Lost):
                self._lose(event, shards)
            elif isinstance(event, RunEnd):
                self._end(event, shards)
                num_ended += 1
            elif shards.opens(event[0]) and self._settings.stop_file.exists():
                shards.commit()
                left = (member for run in self._task.runs[num_ended:] for member in run.members)
                self._put_off((member.item for member in left), "stopped")
                return
            else:
                self._compute(event, produced, shards)

    def _mixed(
        self, events: Iterator[Event], shards: ShardSequence
    ) -> Iterator[tuple[Event, Produced | None]]:
        """Yields each event, with what was computed of it together with others."""
        if not self._settings.mix:
            yield from ((event, None) for event in events)
            return
        mixer = Mixer(self._producer, self._settings.batch, self._report)
        for event, produced in mixer.events(events):
            shards.spent["compute"] += mixer.take_spent_s()
            yield event, produced

    def _compute(
        self, batch: list[Drawn], produced: Produced | None, shards: ShardSequence
    ) -> None:
        item = batch[0].item
        if item.item in shards.refused:
            return
        if shards.turn_to(batch[0]):
            if produced is not None:
                shards.put(batch, produced, range(len(batch)))
                return
            for part, computed, places in self._produce(batch, shards):
                shards.put(part, computed, places)
        else:
            # Held by another job, or committed by it, perhaps without these frames.
            self._put_off((drawn.item for drawn in batch), "busy")

    def _produce(
        self, batch: list[Drawn], shards: ShardSequence
    ) -> Iterator[tuple[list[Drawn], Produced, Sequence[int]]]:
        """Yields the batch computed, and where in that its frames are.

        Of images that share it, those that can be stored.
        """
        laid, places = _laid_out(batch, self._settings.batch)
        canvases = np.stack([drawn.canvas for drawn in laid])
        valid = [drawn.valid for drawn in laid]
        began_s = time.monotonic()
        try:
            produced = self._producer.produce(canvases, valid, self._report)
        except FeatureError as error:
            if batch[0].item.packed and len(batch) > 1:
                for drawn in batch:
                    yield from self._produce([drawn], shards)
            else:
                shards.refused[batch[0].item.item] = error.message
        else:
            shards.spent["compute"] += time.monotonic() - began_s
            yield batch, produced, places

    def _lose(self, lost: Lost, shards: ShardSequence) -> None:
        result = self._results[lost.member.item.item]
        if not lost.member.item.packed:
            shards.give_up()
        if lost.said_of_content:
            self._quarantine(result, lost.reason)
        else:
            # Says nothing about the content the plan saw, so nothing is recorded against it.
            result.status, result.reason = "quarantined", lost.reason

    def _end(self, end: RunEnd, shards: ShardSequence) -> None:
        if isinstance(end.run, VideoRun):
            shards.end_video(end.run, end.num_frames)
        else:
            shards.commit()
        if end.busy:
            self._put_off((member.item for member in end.run.members), "busy")

    def _put_off(self, items: Iterable[Item], status: Status) -> None:
        """Says that items are to be looked at again; what is broken stays so."""
        for result in (self._results[item.item] for item in items):
            if result.status == "done":
                result.status = status

    def _quarantine(self, result: TaskResult, reason: str) -> None:
        result.status, result.reason = "quarantined", reason
        self._index.end(Outcome(result.item, "quarantined", 0, reason, video_id=result.video_id))


def _laid_out(batch: list[Drawn], size: int) -> tuple[list[Drawn], list[int]]:
    """Returns the frames to compute together, and where those of the batch are among them.

    Images keep the places of their rows, and one stands in where another lacks: the last bit of
    what a network gives may depend on how many frames it is given, so not on who is there.
    """
    if not batch[0].item.packed:
        return batch, list(range(len(batch)))
    places = [drawn.place % size for drawn in batch]
    laid = [batch[0]] * size
    for place, drawn in zip(places, batch, strict=True):
        laid[place] = drawn
    return laid, places


@cache
def _memo() -> HashMemo:
    """This process's memory of hashes; its file can be large, so it is read once."""
    return HashMemo()


def _here() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}

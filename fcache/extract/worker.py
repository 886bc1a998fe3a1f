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
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fcache.config import Selection
from fcache.errors import FeatureError
from fcache.extract.prefetch import Drawn, Lost, Prefetch, RunEnd
from fcache.extract.producer import BackboneProducer, Produced, Producer, ProducerSettings
from fcache.extract.shards import Report, ShardSequence
from fcache.extract.tasks import ShardTask, VideoRun
from fcache.sources.content import HashMemo
from fcache.store.claims import Claims
from fcache.store.index import ViewIndex
from fcache.store.records import Outcome

Status = Literal["done", "quarantined", "busy", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What every task of a job shares.

    Attributes:
        view: The view's folder.
        batch: Frames computed together; divides the rows of a shard.
        stop_file: While it exists, no new shard is begun.
    """

    view: Path
    producer: ProducerSettings
    selection: Selection
    batch: int
    stop_file: Path


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
_one_task = threading.Lock()  # a worker with several threads still has one device


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
    with _one_task:
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
        self._producer = producer_of(settings.producer)
        self._index = ViewIndex(settings.view)

    def work(self) -> None:
        """Goes on to the end of the task, or to the shard before which the job is stopped."""
        provenance, memo = self._producer.provenance, _memo()
        self._report({"event": "ready", "provenance": provenance})
        about = {**_here(), **provenance, "batch": self._settings.batch}
        with (
            Claims(self._index.index) as claims,
            ShardSequence(
                self._index, claims, self._task.generation, about, self._report
            ) as shards,
            closing(Prefetch(self._task, self._settings.selection, shards.is_open, memo)) as frames,
        ):
            self._move(frames, shards)
            shards.finish()
        memo.save()
        for item, reason in shards.refused.items():
            self._quarantine(self._results[item], reason)

    def _move(self, frames: Prefetch, shards: ShardSequence) -> None:
        num_ended = 0
        for event in frames.events(self._settings.batch):
            shards.spent["decode"] += frames.take_waited_s()
            if isinstance(event, Lost):
                self._lose(event, shards)
            elif isinstance(event, RunEnd):
                self._end(event, shards)
                num_ended += 1
            elif shards.opens(event[0]) and self._settings.stop_file.exists():
                shards.commit()
                for run in self._task.runs[num_ended:]:
                    for member in run.members:
                        self._results[member.item.item].status = "stopped"
                return
            else:
                self._compute(event, shards)

    def _compute(self, batch: list[Drawn], shards: ShardSequence) -> None:
        item = batch[0].item
        if item.item in shards.refused:
            return
        wanted = shards.turn_to(batch[0])
        if wanted == "theirs":
            for drawn in batch:
                self._results[drawn.item.item].status = "busy"
        if wanted == "mine":
            for part, produced in self._produce(batch, shards):
                shards.put(part, produced)

    def _produce(
        self, batch: list[Drawn], shards: ShardSequence
    ) -> Iterator[tuple[list[Drawn], Produced]]:
        """Yields the batch computed; of images that share it, those that can be stored."""
        canvases = np.stack([drawn.canvas for drawn in batch])
        valid = [drawn.valid for drawn in batch]
        began_s = time.monotonic()
        try:
            produced = self._producer.produce(canvases, valid, self._report)
            shards.spent["compute"] += time.monotonic() - began_s
            yield batch, produced
        except FeatureError as error:
            if batch[0].item.packed and len(batch) > 1:
                for drawn in batch:
                    yield from self._produce([drawn], shards)
            else:
                shards.refused[batch[0].item.item] = error.message

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
        for member in end.run.members if end.busy else ():
            self._results[member.item.item].status = "busy"

    def _quarantine(self, result: TaskResult, reason: str) -> None:
        result.status, result.reason = "quarantined", reason
        self._index.end(Outcome(result.item, "quarantined", 0, reason, video_id=result.video_id))


@cache
def _memo() -> HashMemo:
    """This process's memory of hashes; its file can be large, so it is read once."""
    return HashMemo()


def _here() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}

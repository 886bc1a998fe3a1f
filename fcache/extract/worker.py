"""One task on one worker: decode, compute, write; the frozen network is kept between tasks.

Decoding runs a few frames ahead in a thread, writing a batch behind in another, so that the device
waits for neither. A shard is computed whole, in fixed batches from its first frame on, so that an
interrupted extraction and an uninterrupted one store the same bits.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fcache.config import Selection
from fcache.errors import FeatureError, SourceError
from fcache.extract.prefetch import Prefetch
from fcache.extract.producer import BackboneProducer, Producer, ProducerSettings
from fcache.extract.shards import Report, ShardSequence
from fcache.extract.tasks import ShardTask
from fcache.sources.content import HashMemo, content_hash
from fcache.sources.geometry import Placement
from fcache.store.claims import Claims
from fcache.store.index import ViewIndex
from fcache.store.layout import SHARD_ROWS
from fcache.store.records import Item, Outcome

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
    """How a task ended; all that goes back to the job.

    Attributes:
        status: ``busy`` if another live job holds one of the shards, ``stopped`` if the job asked,
            ``failed`` if the worker broke down over it.
        reason: Why the video is in quarantine, or failed.
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


def run_task(task: ShardTask, settings: WorkerSettings, report: Report) -> TaskResult:
    """Computes and commits the shards of a task.

    A source that cannot be used, or features that cannot be stored, put the video in quarantine;
    that is a result, not an error.

    Args:
        task: Which shards of which source.
        settings: The job's.
        report: Told when the network is ready, and of every commit.

    Raises:
        NoSpaceError: the disk is full; committed shards stay.
        FcacheError: what keeps the whole job from working.
    """
    result = TaskResult(task.source.video_id, task.item.item)
    with _one_task:
        if settings.stop_file.exists():
            result.status = "stopped"
            return result
        index = ViewIndex(settings.view)
        try:
            _check_content(task)
        except SourceError as error:
            # Says nothing about the content the plan saw, so nothing is recorded against it.
            result.status, result.reason = "quarantined", error.message
            return result
        try:
            _compute(task, settings, index, result, report)
        except (SourceError, FeatureError) as error:
            result.status, result.reason = "quarantined", error.message
            index.end(
                Outcome(result.item, "quarantined", 0, error.message, video_id=result.video_id)
            )
    return result


def _compute(
    task: ShardTask,
    settings: WorkerSettings,
    index: ViewIndex,
    result: TaskResult,
    report: Report,
) -> None:
    """Moves frames from the decoder through the network to the shards, a batch at a time."""
    producer = producer_of(settings.producer)
    report({"event": "ready"})
    placement = _placement(task.item)
    valid = (placement.crop_h, placement.crop_w)
    provenance = {**_here(), **producer.provenance, "batch": settings.batch}
    with (
        closing(Prefetch(task, settings.selection, placement)) as frames,
        Claims(index.index) as claims,
        ShardSequence(task, index, claims, provenance, report) as shards,
    ):
        for batch in frames.batches(settings.batch):
            if batch[0].index % SHARD_ROWS == 0 and settings.stop_file.exists():
                shards.finish(None)
                result.status = "stopped"
                return
            wanted = shards.turn_to(batch[0].index)
            if wanted != "mine":
                result.status = "busy" if wanted == "theirs" else result.status
                continue
            canvases = np.stack([drawn.canvas for drawn in batch])
            shards.put(batch, producer.produce(canvases, [valid] * len(batch)))
        shards.finish(frames.num_frames)


def _check_content(task: ShardTask) -> None:
    """Refuses a source whose bytes are not those the plan saw.

    Raises:
        SourceError: the content differs, or cannot be read.
    """
    found = content_hash(task.source.path, task.source.kind, _memo())
    _memo().save()
    if found != task.sha256:
        raise SourceError(
            f"'{task.source.path}' has changed: its content hashes to {found[:12]}, expected "
            f"{task.sha256[:12]}. Make a new manifest, or restore the file."
        )


@cache
def _memo() -> HashMemo:
    """This process's memory of hashes; its file can be large, so it is read once."""
    return HashMemo()


def _placement(item: Item) -> Placement:
    sides: Mapping[str, Any] = item.placement
    return Placement(canvas_h=item.bucket.height, canvas_w=item.bucket.width, **sides)


def _here() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}

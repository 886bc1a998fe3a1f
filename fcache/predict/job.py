"""A whole prediction: every window is read once for all heads, every video written when it ends."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcache.config import PredictConfig
from fcache.data.batch import DeviceBatch
from fcache.data.loader import ClipLoader
from fcache.data.sampling import ClipsInOrder
from fcache.errors import InterruptedJobError
from fcache.interrupt import StopRequest, interruptible
from fcache.predict.part import video_part
from fcache.predict.plan import PredictPlan, Prepared
from fcache.predict.schedule import VideoSchedule
from fcache.report import Report
from fcache.train.lease import leased


@dataclass(frozen=True, slots=True)
class HeadResult:
    """What one head left.

    Attributes:
        head: The run, or the file of weights.
        out: The folder of its predictions.
        format: Their layout.
        num_videos: Videos there, those of earlier calls too.
        num_frames: Frames there.
    """

    head: Path
    out: Path
    format: str
    num_videos: int
    num_frames: int

    def to_json(self) -> dict[str, Any]:
        """Returns it in JSON's types."""
        return {
            "head": str(self.head),
            "out": str(self.out),
            "format": self.format,
            "videos": self.num_videos,
            "frames": self.num_frames,
        }


def run_prediction(plan: PredictPlan, *, report: Report = lambda event: None) -> list[HeadResult]:
    """Predicts what lacks, and puts the lists of segments together.

    Args:
        plan: Of ``plan_prediction``.
        report: Told events: ``start``, ``frames``, ``video``, ``stopping``, ``note``.

    Raises:
        CacheCorruptError: stored bytes are not what was committed.
        ConfigError: another process predicts into a folder, or began other predictions there.
        FeatureError: a head gives numbers that are not finite; names the video.
        InterruptedJobError: Ctrl-C; the finished videos stay.
        NoSpaceError: the disk is full; the finished videos stay.
        SourceError: a video is no longer what it was when it was looked at; names it, and the
            finished videos stay.
    """
    config, inputs = plan.config, plan.inputs
    with ExitStack() as stack:
        for one in plan.prepared:
            stack.enter_context(one.folder.held())
            one.folder.check(one.facts)
            one.folder.begin(one.facts)
        todo = plan.todo()
        requests = [request for planned, _ in todo for request in planned.requests()]
        report({"event": "start", **plan.to_json()})
        notes = [f"left out: video '{video}': {reason}" for video, reason in inputs.lost]
        notes += [note for one in plan.prepared for note in one.head.notes]
        if inputs.cache is not None:
            out = plan.prepared[0].folder.path
            missed = stack.enter_context(leased(inputs.cache, out, [inputs.view.key]))
            notes += [f"no lease in the cache: {missed}"] if missed else []
        for note in notes:
            report({"event": "note", "text": note})
        stop = stack.enter_context(interruptible(lambda: report({"event": "stopping"})))
        loader = stack.enter_context(
            ClipLoader(
                inputs.features(all(one.head.reads_pixels for one in plan.prepared)),
                ClipsInOrder(requests),
                None,
                end_step=len(requests),
                num_readers=1 if inputs.in_order else config.num_readers,
                ahead=config.ahead,
                pin_memory=plan.device.type == "cuda",
            )
        )
        batches = (batch.to(plan.device) for step in loader for batch in step.micro_batches)
        for planned, heads in todo:
            _predict_video(planned, heads, config, batches, stop, report)
        results = []
        for one in plan.prepared:
            one.folder.finish(one.head.categories, zipped=config.zip)
            results.append(_result(one))
        return results


def _predict_video(
    planned: VideoSchedule,
    heads: Sequence[Prepared],
    config: PredictConfig,
    batches: Iterator[DeviceBatch],
    stop: StopRequest,
    report: Report,
) -> None:
    """Reads a video's windows, once for all heads, and those that were not held once more."""
    began = time.perf_counter()
    windows = planned.windows
    with ExitStack() as stack:
        parts = [stack.enter_context(video_part(one, planned, config)) for one in heads]
        for window in windows:
            batch = next(batches)
            for part in parts:
                part.see(window, batch)
            _told(window, stop, report)
        for part in parts:
            part.place_held(batch.pixels.device)
        for number in planned.windows_again:
            batch = next(batches)
            for part in parts:
                part.place(number, windows[number], batch)
            _told(windows[number], stop, report)
        for part in parts:
            part.finish()
    report(
        {
            "event": "video",
            "video": planned.video.video_id,
            "frames": planned.num_frames,
            "seconds": time.perf_counter() - began,
        }
    )


def _told(window: Sequence[int], stop: StopRequest, report: Report) -> None:
    report({"event": "frames", "frames": len(window)})
    if stop.asked:
        raise InterruptedJobError(
            "interrupted; the videos that were finished stay. The same command goes on with the "
            "others."
        )


def _result(one: Prepared) -> HeadResult:
    records = one.folder.records()
    return HeadResult(
        one.head.path,
        one.folder.path,
        one.folder.format.name,
        len(records),
        sum(record.num_frames for record in records),
    )

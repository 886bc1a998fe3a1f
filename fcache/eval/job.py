"""Scores many videos, on as many processes as asked for."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from multiprocessing.synchronize import Event
from typing import Any, Protocol, Self, TypeVar

from fcache.interrupt import without_interrupts

FRAMES_PER_TASK = 16  # a video of VIPSeg, or some images


class FramePairs(Protocol):
    """A video of frames with their predictions; sent to workers, so it names files."""

    @property
    def id(self) -> str:
        """The video."""

    @property
    def num_frames(self) -> int:
        """T."""

    def frame(self, position: int, /) -> Any:  # noqa: ANN401 - a frame of the score's own kind
        """Reads a frame."""


class Score(Protocol):
    """What accumulates scores; sent between workers."""

    def add(self, frame: Any, /) -> None:  # noqa: ANN401 - a frame of the score's own kind
        """Adds the next frame of the video."""

    def end_video(self) -> None:
        """Ends the video."""

    def merge(self, other: Self, /) -> None:
        """Adds the finished videos of another worker."""


S = TypeVar("S", bound=Score)


def score_videos(
    videos: Sequence[FramePairs],
    make: Callable[[], S],
    *,
    num_workers: int = 1,
    on_video: Callable[[str], object] | None = None,
) -> S:
    """Returns the scores of videos.

    Every number is the same, to the bit, whatever ``num_workers`` is. Where it is broken off, by
    an error or by Ctrl-C, workers end at their next frame; they end with this process, too.

    Args:
        videos: The videos; a worker reads a few at a time, each frame once.
        make: Makes an empty score. With several workers it is pickled: a class, a module's
            function, or a ``functools.partial`` of one.
        num_workers: Processes; with fewer videos than that, threads that read ahead.
        on_video: Told the id of each video when its scores are in.

    Raises:
        FcacheError: what reading or scoring a video raises; the rest is given up.
        ValueError: there is to be no worker.
    """
    if num_workers < 1:
        raise ValueError(f"num_workers={num_workers}; expected at least 1")
    tasks = list(_tasks(videos))
    total = make()
    with closing(_scores(tasks, make, num_workers)) as scores:
        for task, score in zip(tasks, scores, strict=True):
            total.merge(score)
            if on_video is not None:
                for video in task:
                    on_video(video.id)
    return total


def _tasks(videos: Sequence[FramePairs]) -> Iterator[list[FramePairs]]:
    """Divides videos, in order, by their lengths alone, so that sums do not hang on workers."""
    task: list[FramePairs] = []
    for video in videos:
        task.append(video)
        if sum(member.num_frames for member in task) >= FRAMES_PER_TASK:
            yield task
            task = []
    if task:
        yield task


def _score(videos: Sequence[FramePairs], make: Callable[[], S], num_threads: int) -> S:
    score = make()
    for video in videos:
        for frame in _frames(video, num_threads):
            if _stop is not None and _stop.is_set():
                raise _BrokenOffError
            score.add(frame)
        score.end_video()
    return score


def _frames(video: FramePairs, num_threads: int) -> Iterator[Any]:
    """Reads a video's frames in order, with several threads a few of them ahead."""
    if num_threads == 1:
        yield from map(video.frame, range(video.num_frames))
        return
    with ThreadPoolExecutor(num_threads) as pool:
        ahead: deque[Future[Any]] = deque()
        for position in range(video.num_frames):
            ahead.append(pool.submit(video.frame, position))
            if len(ahead) > num_threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _scores(
    tasks: Sequence[Sequence[FramePairs]], make: Callable[[], S], num_workers: int
) -> Generator[S, None, None]:
    # Pillow decodes outside Python's lock, so threads help where there are fewer videos than cores.
    num_threads = max(1, num_workers // max(1, len(tasks)))
    if num_workers == 1 or len(tasks) < 2:
        yield from (_score(task, make, num_threads) for task in tasks)
        return
    # A fork would inherit threads of libraries that the caller has loaded.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    count = min(num_workers, len(tasks))
    pool = ProcessPoolExecutor(count, context, _begin_worker, (stop,))
    try:
        with without_interrupts():  # workers are started here
            futures = deque(pool.submit(_score, task, make, num_threads) for task in tasks)
        while futures:
            yield futures.popleft().result()
    finally:
        stop.set()
        # Workers that are just starting still need the event: wait until all are gone.
        pool.shutdown(wait=True, cancel_futures=True)


_stop: Event | None = None  # in a worker: set when the job is broken off


class _BrokenOffError(Exception):
    """The job was broken off; nobody waits for this score."""


def _begin_worker(stop: Event) -> None:
    global _stop
    _stop = stop
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

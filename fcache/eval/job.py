"""Scores many videos, on as many processes as asked for."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, Protocol, Self, TypeVar

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

    Every number is the same, to the bit, whatever ``num_workers`` is.

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
    for task, score in zip(tasks, _scores(tasks, make, num_workers), strict=True):
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
) -> Iterator[S]:
    # Pillow decodes outside Python's lock, so threads help where there are fewer videos than cores.
    num_threads = max(1, num_workers // max(1, len(tasks)))
    if num_workers == 1 or len(tasks) < 2:
        yield from (_score(task, make, num_threads) for task in tasks)
        return
    # A fork would inherit threads of libraries that the caller has loaded.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(num_workers, len(tasks)), context) as pool:
        futures = [pool.submit(_score, task, make, num_threads) for task in tasks]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()

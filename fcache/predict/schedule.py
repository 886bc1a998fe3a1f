"""Which frames of which videos are read in which order: known before the first is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fcache.data.canvas import ENLARGED
from fcache.data.footage import Footage
from fcache.data.sampling import ClipRequest

MASK_STRIDE = 4  # pixels of the canvas to one of a mask
FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class VideoSchedule:
    """The windows of one video.

    Attributes:
        video: Its frames.
        num_frames: How many of them, from the first.
        window: Frames of a window; the last may have fewer.
        num_held: Frames whose masks are held between the passes: whole windows.
        again: Whether there is a second pass.
    """

    video: Footage
    num_frames: int
    window: int
    num_held: int
    again: bool

    @property
    def frame_names(self) -> tuple[str, ...]:
        """Of the frames that are predicted."""
        return tuple(self.video.names[: self.num_frames])

    @property
    def windows(self) -> list[tuple[int, ...]]:
        """Positions of the frames of each window."""
        starts = range(0, self.num_frames, self.window)
        return [tuple(range(first, min(first + self.window, self.num_frames))) for first in starts]

    @property
    def windows_again(self) -> list[int]:
        """Numbers of the windows that are predicted a second time."""
        first = -(-self.num_held // self.window)
        return list(range(first, len(self.windows))) if self.again else []

    @property
    def num_reads(self) -> int:
        """Frames that are read, those twice that are predicted twice."""
        windows = self.windows
        return self.num_frames + sum(len(windows[number]) for number in self.windows_again)

    def requests(self) -> Iterator[ClipRequest]:
        """Yields what is read, in order."""
        windows = self.windows
        for window in (*windows, *(windows[number] for number in self.windows_again)):
            yield ClipRequest(self.video, window)


def schedule(
    video: Footage,
    *,
    num_queries: Sequence[int],
    stride: int,
    window: int,
    held_bytes: int,
    max_frames: int | None,
) -> VideoSchedule:
    """Returns the windows of a video.

    Args:
        video: Its frames.
        num_queries: Of each head that links frames; none where no head does.
        stride: Stored pixels of a token of the coarsest stage.
        window: Frames at once.
        held_bytes: Memory for masks between the passes.
        max_frames: At most so many frames.
    """
    num_frames = len(video.names) if max_frames is None else min(max_frames, len(video.names))
    bucket = video.bucket
    pixels = bucket.height * bucket.width
    if stride == ENLARGED:
        pixels = pixels * 16 * 16 // ENLARGED**2
    frame_bytes = sum(num_queries) * pixels // MASK_STRIDE**2 * FLOAT_BYTES
    num_held = num_frames
    if frame_bytes * num_frames > held_bytes:
        num_held = held_bytes // frame_bytes // window * window
    return VideoSchedule(video, num_frames, window, num_held, again=bool(num_queries))

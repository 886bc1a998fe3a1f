"""Video files as pictures in presentation order, up to the first sign of damage.

**Order and time.** Pictures come in the order the decoder presents them, whatever the timestamps
say. A picture without a timestamp is one frame period after the one before it; a timestamp that
goes back is raised to the one before it. A variable rate is kept. The count and rate in the
container's header are never used to decide what is there.

``reader.py`` says what counts as damage and what damage cannot be seen.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from fcache.errors import SourceError
from fcache.sources.colour import displayed_size
from fcache.sources.container import has_index, open_video
from fcache.sources.reader import PictureReader


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded, unconverted picture.

    Attributes:
        time: Seconds from the first picture; never falls.
        tick: Resolution of the source's clock, in seconds.
    """

    pixels: VideoFrame
    source_index: int
    time: Fraction
    tick: Fraction


def read_pictures(path: Path) -> Generator[Picture]:
    """Yields a video's pictures in presentation order, lazily.

    Closing the generator closes the file.

    Raises:
        SourceError: the file cannot be opened; or, after the sound prefix, what breaks it.
    """
    with open_video(path) as (container, stream):
        clock = _Clock(stream)
        size: tuple[int, int] | None = None
        source_index = 0
        reader = PictureReader(path, container, stream)
        for pixels in reader.pictures():
            shown = displayed_size(pixels)
            size = size or shown
            if shown != size:
                raise SourceError(
                    f"the size changes: frame {source_index} is {shown[1]}x{shown[0]}, "
                    f"the first was {size[1]}x{size[0]} (width x height)."
                )
            yield Picture(pixels, source_index, clock.time(pixels), clock.tick)
            source_index += 1
        if reader.broken:
            raise SourceError(reader.explain(source_index))
        if source_index == 0:
            raise SourceError("no frames: the video stream decodes to nothing.")


def frame_period(stream: VideoStream) -> Fraction | None:
    """Returns seconds a frame by the container's rate, None where it states none."""
    rate = stream.average_rate or stream.guessed_rate
    return None if not rate else 1 / Fraction(rate)


def promised_frames(container: InputContainer, stream: VideoStream) -> int | None:
    """Returns how many frames the container says there are; None where nothing says.

    MP4, MOV and AVI: entries of the index, which is truer than the header's count. Others: a
    header's count, else duration times rate.
    """
    if has_index(container) and len(stream.index_entries):
        return sum(not entry.is_discard for entry in stream.index_entries)
    if stream.frames:
        return stream.frames
    period = frame_period(stream)
    if container.duration is None or period is None:
        return None
    return max(1, round(Fraction(container.duration, av.time_base) / period))


class _Clock:
    """Turns timestamps into seconds from the first picture that never fall."""

    def __init__(self, stream: VideoStream) -> None:
        self._period = frame_period(stream) or Fraction(0)
        self.tick = Fraction(stream.time_base or 0)
        self._first: Fraction | None = None
        self._last: Fraction | None = None

    def time(self, picture: VideoFrame) -> Fraction:
        # A flushed picture does not carry its own time base.
        stated = None if picture.pts is None else picture.pts * self.tick
        if self._last is None:
            self._first, self._last = stated, Fraction(0)
            return self._last
        if stated is None:
            self._last += self._period
        else:
            # The first picture had no timestamp: count from where this one puts it.
            if self._first is None:
                self._first = stated - self._last - self._period
            self._last = max(self._last, stated - self._first)
        return self._last

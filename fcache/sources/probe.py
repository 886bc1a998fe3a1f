"""What a source says about itself, checked by reading its first frame."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from fcache.config import Selection
from fcache.errors import SourceError
from fcache.manifest import SourceKind
from fcache.sources.colour import displayed_size
from fcache.sources.container import open_video
from fcache.sources.images import frame_files, read_image
from fcache.sources.video import frame_period, promised_frames, read_pictures

__all__ = ["SourceFacts", "estimate_frames", "frame_files", "probe_source"]


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """Facts of one source.

    Attributes:
        height: Pixels, as displayed.
        width: Pixels, as displayed.
        num_frames: Frames of the whole source by its index, header or listing; a hint, since
            headers lie. None where nothing says.
        fps: Average rate by the container; None for images and where nothing says.
        decoder: ``"pyav"`` or ``"pillow"``.
    """

    height: int
    width: int
    num_frames: int | None
    fps: float | None
    decoder: str


def probe_source(path: Path, kind: SourceKind) -> SourceFacts:
    """Returns the facts of a source; the size is that of its first decoded frame.

    Raises:
        SourceError: missing, empty, unreadable, not a video or image, or without a sound frame.
            Damage further on is found by decoding.
    """
    if kind == "video":
        return _probe_video(path)
    files = [path] if kind == "image" else frame_files(path)
    height, width = read_image(files[0]).shape[:2]
    return SourceFacts(height, width, num_frames=len(files), fps=None, decoder="pillow")


def estimate_frames(facts: SourceFacts, selection: Selection) -> int:
    """Returns about how many frames a selection will take, at least 1.

    The whole source counts as one frame where nothing says how many it has.
    """
    num_frames = float(facts.num_frames or 1)
    if facts.fps:
        seconds = num_frames / facts.fps
        end = seconds if selection.end is None else min(selection.end, seconds)
        seconds = max(0.0, end - selection.start)
        num_frames = seconds * min(selection.fps or facts.fps, facts.fps)
    # A rounding error of the division must not add a frame.
    estimate = math.ceil(num_frames / selection.stride - 1e-6)
    if selection.max_frames is not None:
        estimate = min(estimate, selection.max_frames)
    return max(1, estimate)


def _probe_video(path: Path) -> SourceFacts:
    with closing(read_pictures(path)) as pictures:
        first = next(pictures, None)
    if first is None:
        raise SourceError("no frames: the video stream decodes to nothing.")
    height, width = displayed_size(first.pixels)
    with open_video(path) as (container, stream):
        period = frame_period(stream)
        return SourceFacts(
            height=height,
            width=width,
            num_frames=promised_frames(container, stream),
            fps=None if period is None else float(1 / period),
            decoder="pyav",
        )

"""One decoded frame, as every reader of this room yields it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded frame.

    Attributes:
        rgb: As displayed: rotation side data or EXIF orientation applied, pixel aspect not.
        source_index: Position in presentation order in the source, from 0.
        pts_us: Microseconds from the source's first frame; None where the source has no clock.
        name: The 5-digit ``source_index`` for a video file; the file's stem for an image.
    """

    rgb: np.ndarray  # [height, width, 3] uint8
    source_index: int
    pts_us: int | None
    name: str

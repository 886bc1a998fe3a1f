"""Decoded pictures as displayed RGB.

FFmpeg's software scaler converts any pixel format. Its bit-exact, accurately rounding paths are
asked for: the fast ones differ between CPUs. A tagged colour matrix and range are respected; an
untagged matrix is BT.601 and an untagged range limited, as FFmpeg's own tools assume. Transfer
curve and primaries (HDR) are not converted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import av
import numpy as np
from av.buffer import Buffer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from fcache.errors import SourceError

EXACT = (
    Interpolation.BILINEAR
    | Interpolation.FULL_CHR_H_INT  # without it subsampled formats lose up to 2 levels a channel
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
)


def to_rgb(picture: VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """Returns a picture as displayed, [height, width, 3] uint8.

    Raises:
        SourceError: FFmpeg has no conversion from this pixel format or colour matrix.
    """
    try:
        rgb = reformatter.reformat(picture, format="rgb24", interpolation=EXACT, threads=1)
    except av.error.FFmpegError as error:
        raise SourceError(
            f"pixels of format '{picture.format.name}' cannot become RGB: {error.strerror}."
        ) from None
    return _upright(rgb.to_ndarray(), _axes(picture))


def displayed_size(picture: VideoFrame) -> tuple[int, int]:
    """Returns (height, width) of a picture as displayed."""
    exchanged = _axes(picture)[0, 0] == 0
    size = (picture.height, picture.width)
    return size[::-1] if exchanged else size


def _axes(picture: VideoFrame) -> np.ndarray:
    """Returns where the picture's axes point when displayed: [[a, b], [c, d]] of -1, 0, 1.

    A stored pixel (x, y) is shown at (a x + c y, b x + d y), up to a shift. Angles between quarter
    turns become the nearest quarter turn.
    """
    identity = np.eye(2, dtype=np.int8)
    side_data = cast("Mapping[str, Buffer]", picture.side_data)  # PyAV's own type names one key
    if "DISPLAYMATRIX" not in side_data:
        return identity
    matrix = np.frombuffer(bytes(side_data["DISPLAYMATRIX"]), dtype=np.int32)
    a, b, _, c, d = (int(value) for value in matrix[:5])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        axes = np.array([[np.sign(a), 0], [0, np.sign(d)]], dtype=np.int8)
    else:
        axes = np.array([[0, np.sign(b)], [np.sign(c), 0]], dtype=np.int8)
    return axes if abs(axes).sum() == 2 else identity


def _upright(rgb: np.ndarray, axes: np.ndarray) -> np.ndarray:
    if axes[0, 0] == 0:
        rgb = rgb.transpose(1, 0, 2)
    right, down = axes.sum(axis=0)  # the one entry of each column: does x (y) grow as displayed
    return np.ascontiguousarray(rgb[:: int(down), :: int(right)])

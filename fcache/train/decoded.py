"""Videos decoded by the loader's readers, for a backbone in the loop.

A clip of a folder opens its own frames. A clip of a video file decodes the file from its first
frame to the clip's last, since what a decoder shows after a jump depends on the jump: half of the
file for an average clip, which frame folders or a cache spare.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fcache.config import LiveExtract, Selection
from fcache.data.sampling import ClipRequest
from fcache.data.windows import Window
from fcache.errors import SourceError
from fcache.sources.decode import decode
from fcache.sources.geometry import Placement, draw
from fcache.sources.listing import Source
from fcache.store.identity import view_key
from fcache.store.layout import Bucket, ViewLayout


@dataclass(frozen=True, slots=True)
class LiveView:
    """A backbone under one geometry, computed in the loop.

    Attributes:
        identity: Everything that decides the values.
        extract: The settings that it follows from.
    """

    identity: Mapping[str, Any]
    extract: LiveExtract

    @property
    def key(self) -> str:
        """Names what decides the values."""
        return view_key(self.identity)

    @property
    def layout(self) -> ViewLayout:
        """The shapes of its stage outputs."""
        return ViewLayout.of(self.identity)


@dataclass(frozen=True, slots=True, eq=False)
class DecodedVideo:
    """The selected frames of a source, on one canvas.

    Attributes:
        names: Of the selected frames.
        placed: How a frame lies on the canvas.
        draw: Which crop; None for a full view.
    """

    source: Source
    names: tuple[str, ...]
    placed: Placement
    draw: int | None = None

    @property
    def video_id(self) -> str:
        """As the manifest calls it."""
        return self.source.video_id

    @property
    def split(self) -> str | None:
        """Which part of the data set it is of, where that is known."""
        return self.source.split

    @property
    def bucket(self) -> Bucket:
        """The canvas."""
        return Bucket(self.placed.canvas_h, self.placed.canvas_w)

    @property
    def placement(self) -> Mapping[str, int | bool]:
        """How a frame lies on the canvas, pixels."""
        return asdict(self.placed)

    @property
    def valid(self) -> tuple[int, int]:
        """Height and width of the canvas that the frame covers, pixels."""
        return self.placed.crop_h, self.placed.crop_w


class DecodedCanvases:
    """Decodes clips, each in the thread that reads it.

    Args:
        selection: Which frames of a source count.
        stride: Pixels of the canvas to a token of the coarsest stage, in which windows are given.
    """

    def __init__(self, selection: Selection, stride: int) -> None:
        self.selection = selection
        self.stride = stride

    def read(self, request: ClipRequest, window: Window | None, out: npt.NDArray[np.uint8]) -> None:
        """Fills ``out`` [T, H, W, 3] with the canvas, or with a window of it.

        Raises:
            SourceError: the video is broken, or no longer what it was; names it.
        """
        video = request.video
        assert isinstance(video, DecodedVideo)
        y, x = (0, 0) if window is None else (self.stride * side for side in window[:2])
        height, width = out.shape[1:3]
        try:
            for position, canvas in self._canvases(video, set(request.frames)):
                part = canvas[y : y + height, x : x + width]
                for row, wanted in zip(out, request.frames, strict=True):
                    if wanted == position:
                        row[...] = part
        except SourceError as error:
            raise SourceError(
                f"video '{video.video_id}' ('{video.source.path}') cannot be trained on: "
                f"{error.message} Training stopped and its last checkpoint stays; expected the "
                "video mended, or left out of the manifest. It was sound as far as it was looked "
                "at before the run: video files whole, images of folders by their headers."
            ) from error

    def _canvases(
        self, video: DecodedVideo, wanted: set[int]
    ) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        """Yields position and canvas of the wanted frames, decoding no further than the last."""
        at, last = video.placed, max(wanted)
        frames = decode(
            video.source.path, video.source.kind, self.selection, wanted=wanted.__contains__
        )
        num_frames = 0
        with closing(cast("Any", frames)):
            for position, frame in enumerate(frames):
                num_frames = position + 1
                if frame is not None:
                    height, width = frame.rgb.shape[:2]
                    if (height, width) != (at.source_h, at.source_w):
                        raise SourceError(
                            f"frame {frame.source_index} is {width}x{height}, expected "
                            f"{at.source_w}x{at.source_h} (width x height)."
                        )
                    yield position, draw(frame.rgb, at)
                if position == last:
                    return
        raise SourceError(
            f"it was said to have {len(video.names)} frames, and ends after {num_frames}."
        )

"""Writes the maps of one video: a PNG for each frame, and a line of its record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fcache.manifest import Category
from fcache.models.panoptic import PredictedSegment
from fcache.predict.folder import VideoPlace
from fcache.predict.formats import Format
from fcache.predict.maps import FrameMap
from fcache.predict.pictures import SegmentColors, segment_rows, write_categories, write_ids


class VideoWriter:
    """Takes the frames of a video in their order.

    Args:
        form: The layout.
        video_id: The video.
        frame_names: Of its frames.
        categories: In model order.
        place: Where PNGs go.
        record: Where lines go.
    """

    def __init__(
        self,
        form: Format,
        video_id: str,
        frame_names: Sequence[str],
        categories: Sequence[Category],
        place: VideoPlace,
        record: BinaryIO,
    ) -> None:
        self.form, self.video_id, self.frame_names = form, video_id, frame_names
        self.categories, self.place, self.record = categories, place, record
        self.num_segments = 0
        self._named: tuple[PredictedSegment, ...] | None = None
        self._ids: NDArray[np.int32] = np.zeros(1, np.int32)

    def write(self, made: FrameMap) -> None:
        """Writes a frame."""
        png, rows = self.place.png(made.position), []
        if made.ids is not None:
            if made.segments is not self._named:  # those of a linked video are one tuple
                self._ids = SegmentColors(self.categories).ids(made.segments)
                self._named = made.segments
                self.num_segments += len(made.segments)
            write_ids(png, self._ids[made.ids])
            rows = segment_rows(made.ids, made.segments, self._ids, self.categories)
        else:
            assert made.categories is not None
            write_categories(png, made.categories, self.categories)
        name = self.frame_names[made.position]
        entry = self.form.entry(self.video_id, name, self.place.names[made.position], rows)
        self.record.write(json.dumps(entry).encode() + b"\n")

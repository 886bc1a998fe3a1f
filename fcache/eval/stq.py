"""Segmentation and tracking quality: STQ, AQ and SQ.

Weber et al., STEP: Segmenting and Tracking Every Pixel, 2021; the official numbers are those of
VIPSeg's ``eval_stq_vspw.py`` and the evaluator class it shares with deeplab2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fcache.eval.association import PairSums, TrackColumns, association
from fcache.eval.histogram import Counts
from fcache.eval.quirks import TEXTS, Definition, Places, Quirk, changed
from fcache.eval.semantic import category_iou
from fcache.eval.tables import FrameTable
from fcache.manifest import Category

NO_UNION = "no labelled pixel; the official script divides 0 by 0"


@dataclass(frozen=True, slots=True)
class VideoStq:
    """Scores of one video, 0..1; SQ and STQ are NaN without a labelled pixel."""

    video_id: str
    stq: float
    aq: float
    sq: float
    num_frames: int


@dataclass(frozen=True, slots=True)
class StqResult:
    """STQ of a run, 0..1.

    Attributes:
        stq: sqrt(aq * sq).
        aq: Association quality, pooled over the tracks of all videos; 0 without a track.
        sq: Mean IoU over categories in truth or prediction.
        iou: [K] IoU of each category, NaN where it is in neither.
        num_tracks: True tracks that were scored.
        videos: The scores of each video.
        quirks: What in the official script changed STQ.
        undefined: By score, why it is NaN.
    """

    stq: float
    aq: float
    sq: float
    iou: NDArray[np.float64] = field(repr=False)
    num_tracks: int
    videos: tuple[VideoStq, ...] = field(repr=False)
    quirks: tuple[Quirk, ...]
    undefined: dict[str, str]


class SegmentationTrackingQuality:
    """Accumulates STQ of videos, given frame by frame as tables.

    Holds one number for each pair of a true and a predicted track that overlap in the video.

    Args:
        categories: As given to the ``Tabulator``.
        definition: ``official``; or ``clean``, where crowd is what ``iscrowd`` says, and predicted
            void is an error of the true category and no category of its own.
    """

    def __init__(self, categories: Sequence[Category], definition: Definition = "official") -> None:
        num_categories = len(categories)
        # Void is category K, which is no thing.
        self.is_thing = np.array([*(category.isthing for category in categories), False], np.bool_)
        self.definition: Definition = definition
        self.confusion: Counts = np.zeros((num_categories + 1,) * 2, np.int64)
        self.association = 0.0
        self.num_tracks = 0
        self.videos: list[VideoStq] = []
        self._differences: dict[str, tuple[float, int]] = {}
        self._places: dict[str, Places] = {}
        self._pairs = PairSums(void=num_categories)
        self._place = ""
        self._video_id = ""
        self._num_frames = 0

    def add(self, table: FrameTable) -> None:
        """Adds the next frame of the video."""
        self._place = self._place or table.place
        self._video_id = table.video_id
        self._num_frames += 1
        self._pairs.add(
            self._pairs.truth.rows_of(table.truth)[table.truth_at],
            self._pairs.prediction.rows_of(table.prediction)[table.prediction_at],
            table.pixels,
        )

    def end_video(self) -> None:
        """Ends the video and scores its tracks."""
        if not self._num_frames:
            return
        pairs = self._pairs.sums()
        left, right = self._pairs.truth.columns(), self._pairs.prediction.columns()
        size = len(self.confusion)
        cells = left.category[pairs[0]] * size + right.category[pairs[1]]
        confusion = np.bincount(cells, pairs[2], minlength=size * size).astype(np.int64)
        confusion = confusion.reshape(size, size)
        confusion[-1] = 0  # true void is not scored
        self.confusion += confusion
        value, tracks = self._associate(left, right, pairs)
        self.association += value
        self.num_tracks += tracks
        aq, sq = value / max(tracks, 1), self._sq(confusion)
        self.videos.append(VideoStq(self._video_id, math.sqrt(aq * sq), aq, sq, self._num_frames))
        if self.definition == "official" and confusion[:, -1].any():
            self._places.setdefault("stq_void_column_counts", Places()).add(self._place)
        self._pairs = PairSums(void=size - 1)
        self._place, self._num_frames = "", 0

    def _associate(
        self, left: TrackColumns, right: TrackColumns, pairs: tuple[Counts, Counts, Counts]
    ) -> tuple[float, int]:
        """Returns the video's association and number of tracks; notes what quirks did to them."""

        def score(crowd: NDArray[np.bool_]) -> tuple[float, int]:
            return association(left, right, pairs, crowd, self.is_thing)

        if self.definition == "clean":
            return score(left.listed_crowd)
        value = score(left.number == 0)
        self._differs("stq_first_thing_is_crowd", score(np.zeros_like(left.listed_crowd)), value)
        if left.listed_crowd.any():
            listed = score((left.number == 0) | left.listed_crowd)
            self._differs("stq_ignores_iscrowd", listed, value)
        return value

    def merge(self, other: SegmentationTrackingQuality) -> None:
        """Adds the finished videos of another worker.

        Raises:
            ValueError: a video is not ended.
        """
        self._check_ended()
        other._check_ended()
        self.confusion += other.confusion
        self.association += other.association
        self.num_tracks += other.num_tracks
        self.videos += other.videos
        for name, (value, tracks) in other._differences.items():
            total = self._differences.get(name, (0.0, 0))
            self._differences[name] = (total[0] + value, total[1] + tracks)
        for name, place in other._places.items():
            self._places.setdefault(name, Places()).add(place.first, place.count)

    def result(self) -> StqResult:
        """Returns the scores of the videos so far.

        Raises:
            ValueError: a video is not ended.
        """
        self._check_ended()
        aq, sq = self.association / max(self.num_tracks, 1), self._sq(self.confusion)
        stq = math.sqrt(aq * sq)
        quirks = []
        for name in (name for name in TEXTS if name in self._differences):
            value, tracks = self._differences[name]
            without = (self.association + value) / max(self.num_tracks + tracks, 1)
            quirks += changed("STQ", name, stq, math.sqrt(without * sq), self._places[name])
        without = math.sqrt(aq * _mean_iou(self.confusion, void_is_category=False))
        places = self._places.get("stq_void_column_counts", Places())
        quirks += changed("STQ", "stq_void_column_counts", stq, without, places)
        reasons = dict.fromkeys(("STQ", "SQ"), NO_UNION) if math.isnan(sq) else {}
        return StqResult(
            stq=stq,
            aq=aq,
            sq=sq,
            iou=category_iou(self.confusion)[:-1],
            num_tracks=self.num_tracks,
            videos=tuple(self.videos),
            quirks=tuple(quirks),
            undefined=reasons,
        )

    def _sq(self, confusion: Counts) -> float:
        return _mean_iou(confusion, void_is_category=self.definition == "official")

    def _differs(self, name: str, other: tuple[float, int], value: tuple[float, int]) -> None:
        difference = (other[0] - value[0], other[1] - value[1])
        if difference == (0.0, 0):
            return
        total = self._differences.get(name, (0.0, 0))
        self._differences[name] = (total[0] + difference[0], total[1] + difference[1])
        self._places.setdefault(name, Places()).add(self._place)

    def _check_ended(self) -> None:
        if self._num_frames:
            raise ValueError(f"a video is open after {self._num_frames} frames; call end_video()")


def _mean_iou(confusion: Counts, *, void_is_category: bool) -> float:
    iou = category_iou(confusion)
    iou = iou if void_is_category else iou[:-1]
    known = iou[~np.isnan(iou)]
    return float(known.mean()) if len(known) else math.nan

"""Video semantic segmentation: mIoU, weighted IoU and VC_n from one reading of the frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fcache.errors import LabelError
from fcache.eval.consistency import LEADERBOARD_CLIPS, VcResult, VideoConsistency
from fcache.eval.histogram import PairCounts, pair_counts
from fcache.eval.quirks import Definition, Places, Quirk, changed
from fcache.eval.semantic import ConfusionMatrix, NoCellError
from fcache.eval.tables import place
from fcache.manifest import Category

IGNORE = -1
NO_LABEL = "no labelled pixel"


class SemanticPair(Protocol):
    """A frame's true and predicted labels."""

    @property
    def video_id(self) -> str:
        """The video."""

    @property
    def frame_name(self) -> str:
        """The frame, without suffix."""

    @property
    def truth(self) -> NDArray[np.integer[Any]]:
        """[height, width] labels as stored, void included."""

    @property
    def prediction(self) -> NDArray[np.integer[Any]]:
        """[height, width] category ids."""

    @property
    def after_gap(self) -> bool:
        """Whether frames are missing between the last one and this."""


@dataclass(frozen=True, slots=True)
class VssResult:
    """Semantic scores of a run, 0..1.

    Attributes:
        miou: Mean IoU over categories in the truth.
        weighted_iou: IoU weighted by the categories' share of the truth.
        pixel_accuracy: Share of labelled pixels predicted right.
        category_accuracy: Mean over categories in the truth of the share predicted right.
        iou: By category id, NaN for a category in neither truth nor prediction.
        truth_pixels: By category id.
        num_frames: Frames scored.
        consistency: VC_n.
        quirks: What in the official scripts changed a score, VC_n included.
        undefined: By score, why it is NaN, VC_n included.
    """

    miou: float
    weighted_iou: float
    pixel_accuracy: float
    category_accuracy: float
    iou: dict[int, float] = field(repr=False)
    truth_pixels: dict[int, int] = field(repr=False)
    num_frames: int
    consistency: VcResult
    quirks: tuple[Quirk, ...]
    undefined: dict[str, str]


class VideoSemanticQuality:
    """Accumulates semantic scores of videos, given frame by frame.

    Args:
        categories: The data set's categories; their ids are the values of predictions.
        offset: What true labels add to a category id; 1 in VSPW.
        void: True labels that belong to no category though an id and the offset make them.
        clip_frames: The n whose VC_n is wanted; none for frames that are no video.
        definition: ``official`` or ``clean``. A predicted value of no category is a miss of the
            true category; officially it is counted under another one, or ends the script.

    Raises:
        ValueError: there is no category.
    """

    def __init__(
        self,
        categories: Sequence[Category],
        *,
        offset: int = 0,
        void: Sequence[int] = (),
        clip_frames: Sequence[int] = LEADERBOARD_CLIPS,
        definition: Definition = "official",
    ) -> None:
        if not categories:
            raise ValueError("no categories; expected at least one")
        self.definition: Definition = definition
        self.offset = offset
        self.category_ids = sorted(category.id for category in categories)
        num_values = self.category_ids[-1] + 1
        # Predictions may hold more values than categories; those have no entry here.
        self._id_of = np.full(offset + num_values, IGNORE, np.int32)
        for number in self.category_ids:
            if number + offset not in void:
                self._id_of[number + offset] = number
        # Without a hole, labels are ids by arithmetic, ten times faster than by table.
        self._plain = bool((self._id_of[offset:] == np.arange(num_values)).all())
        self.missing = ConfusionMatrix(num_values, IGNORE, outside="miss")
        self.spilling = ConfusionMatrix(num_values, IGNORE, outside="official")
        self.consistency = VideoConsistency(clip_frames, definition) if clip_frames else None
        self.num_frames = 0
        self._raised = ""
        self._spills = Places()

    def add(self, pair: SemanticPair) -> None:
        """Adds the next frame of the video.

        Raises:
            LabelError: the sizes differ.
        """
        where = place(pair.video_id, pair.frame_name)
        if pair.truth.shape != pair.prediction.shape:
            height, width = pair.prediction.shape
            raise LabelError(
                f"{where}: the prediction is {height}x{width} and the ground truth "
                f"{pair.truth.shape[0]}x{pair.truth.shape[1]} (height x width); expected the "
                "same size."
            )
        self.num_frames += 1
        raw = pair_counts(pair.truth, pair.prediction)
        pairs = PairCounts(self._ids(raw.truth), raw.prediction, raw.pixels)
        self._count(pairs, where)
        if self.consistency is not None:
            labelled, right = self._masks(pair.truth, pair.prediction)
            self.consistency.add(
                pair.truth,
                pair.prediction,
                labelled,
                right,
                place=where,
                after_gap=pair.after_gap,
            )

    def end_video(self) -> None:
        """Ends the video; clips do not run across videos."""
        if self.consistency is not None:
            self.consistency.end_video()

    def merge(self, other: VideoSemanticQuality) -> None:
        """Adds the finished videos of another worker.

        Raises:
            ValueError: a video is not ended, or the clip lengths differ.
        """
        self.missing.merge(other.missing)
        self.spilling.merge(other.spilling)
        self.num_frames += other.num_frames
        self._raised = self._raised or other._raised
        if other._spills.count:
            self._spills.add(other._spills.first, other._spills.count)
        if self.consistency is not None and other.consistency is not None:
            self.consistency.merge(other.consistency)

    def result(self) -> VssResult:
        """Returns the scores of the videos so far.

        Raises:
            ValueError: a video is not ended.
        """
        matrix = self.spilling if self.definition == "official" else self.missing
        vc = VcResult({}, {}, (), {}) if self.consistency is None else self.consistency.result()
        scores = _scores(matrix)
        undefined = dict.fromkeys((name for name in scores if np.isnan(scores[name])), NO_LABEL)
        quirks: list[Quirk] = []
        if self.definition == "official" and self._raised:
            scores = dict.fromkeys(scores, np.nan)
            undefined = dict.fromkeys(scores, self._raised)
        elif self.definition == "official":
            without = _scores(self.missing)
            for name in ("mIoU", "weighted IoU"):
                quirks += changed(
                    name, "pred_value_spills", scores[name], without[name], self._spills
                )
        return VssResult(
            miou=scores["mIoU"],
            weighted_iou=scores["weighted IoU"],
            pixel_accuracy=scores["pixel accuracy"],
            category_accuracy=scores["category accuracy"],
            iou={
                number: np.nan if self._raised else float(matrix.iou[number])
                for number in self.category_ids
            },
            truth_pixels={number: int(matrix.truth_pixels[number]) for number in self.category_ids},
            num_frames=self.num_frames,
            consistency=vc,
            quirks=(*quirks, *vc.quirks),
            undefined={**undefined, **vc.undefined},
        )

    def _count(self, pairs: PairCounts, where: str) -> None:
        missed = int(self.missing.missed.sum())
        self.missing.add_pairs(pairs)
        if self.definition == "clean":
            return
        if int(self.missing.missed.sum()) > missed:
            self._spills.add(where)
        try:
            self.spilling.add_pairs(pairs)
        except NoCellError as error:
            self._raised = self._raised or f"{where}: {error}"

    def _ids(self, labels: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        known = labels.clip(0, len(self._id_of) - 1)
        return np.where(known == labels, self._id_of[known], IGNORE).astype(np.int64)

    def _masks(
        self, truth: NDArray[np.integer[Any]], prediction: NDArray[np.integer[Any]]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        if self._plain and truth.dtype.kind == "u":
            # Unsigned numbers wrap: what is below the offset lands far above every id.
            ids = truth - truth.dtype.type(self.offset)
            labelled = ids < len(self.category_ids)
            right = ids == prediction
            right &= labelled
            return labelled, right
        known = self._ids(truth)
        return known != IGNORE, known == prediction


def _scores(matrix: ConfusionMatrix) -> dict[str, float]:
    return {
        "mIoU": matrix.miou,
        "weighted IoU": matrix.weighted_iou,
        "pixel accuracy": matrix.pixel_accuracy,
        "category accuracy": matrix.category_accuracy,
    }

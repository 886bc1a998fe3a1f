"""One frame's panoptic maps as a small table: segments, and the pixels that pairs of them share.

Every panoptic score is computed from these tables, so a frame's maps are read and counted once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fcache.errors import LabelError
from fcache.eval.histogram import Counts, pair_counts
from fcache.manifest import Category

VOID = -1  # pixels of id 0
UNLISTED = -2  # pixels of a true id that the JSON does not list

Ids = NDArray[np.integer[Any]]


class SegmentList(Protocol):
    """The segments that a frame's JSON lists, as columns in its order."""

    @property
    def ids(self) -> Ids:
        """[S] R + 256 G + 65536 B."""

    @property
    def category_ids(self) -> Ids:
        """[S] category ids of the data set."""

    @property
    def is_crowd(self) -> NDArray[np.bool_]:
        """[S]."""

    @property
    def areas(self) -> Ids:
        """[S] pixels as the JSON states them, -1 where it does not."""


class PanopticPair(Protocol):
    """A frame's true and predicted segments."""

    @property
    def video_id(self) -> str:
        """The video, or the image."""

    @property
    def frame_name(self) -> str:
        """The frame, without suffix."""

    @property
    def truth_ids(self) -> Ids:
        """[height, width] segment ids, 0 for void."""

    @property
    def prediction_ids(self) -> Ids:
        """[height, width] segment ids, 0 for void."""

    @property
    def truth_segments(self) -> SegmentList:
        """What the ground truth's JSON lists."""

    @property
    def prediction_segments(self) -> SegmentList:
        """What the prediction's JSON lists."""


@dataclass(frozen=True, slots=True)
class Segments:
    """Segments of one frame, as columns in the JSON's order."""

    ids: Counts  # [S]
    category: Counts  # [S] position in the list of categories
    is_crowd: NDArray[np.bool_]  # [S]
    stated: Counts  # [S] pixels as the JSON states them, -1 where it does not
    counted: Counts  # [S] pixels in the map


@dataclass(frozen=True, slots=True)
class FrameTable:
    """What a frame's two maps have in common.

    Attributes:
        video_id: The video.
        frame_name: The frame.
        truth_at: [P] row of ``truth``, ``VOID`` or ``UNLISTED``.
        prediction_at: [P] row of ``prediction``, or ``VOID``.
        pixels: [P] pixels that the pair shares.
    """

    video_id: str
    frame_name: str
    truth: Segments
    prediction: Segments
    truth_at: Counts
    prediction_at: Counts
    pixels: Counts

    @property
    def place(self) -> str:
        """Names video and frame in messages."""
        return place(self.video_id, self.frame_name)


def place(video_id: str, frame_name: str) -> str:
    """Names a frame, or an image where both names are one, in messages."""
    if video_id == frame_name:
        return f"image '{video_id}'"
    return f"video '{video_id}' frame '{frame_name}'"


class Tabulator:
    """Makes frame tables of one data set.

    Args:
        categories: Its categories; positions in this list are the category indices of all scores.
    """

    def __init__(self, categories: Sequence[Category]) -> None:
        self._index_of = {category.id: index for index, category in enumerate(categories)}

    def table(self, pair: PanopticPair) -> FrameTable:
        """Returns the table of a frame.

        A true id that the JSON does not list and a listed true segment without pixels are kept:
        the scores say what they are worth.

        Raises:
            LabelError: the sizes differ, a list names an id twice, the void id or an unknown
                category, or the prediction's map and list name different ids.
        """
        where = place(pair.video_id, pair.frame_name)
        if pair.truth_ids.shape != pair.prediction_ids.shape:
            raise LabelError(
                f"{where}: the prediction is {_size(pair.prediction_ids)} and the ground truth "
                f"{_size(pair.truth_ids)} (height x width); expected the same size."
            )
        truth_ids, prediction_ids, pixels = pair_counts(pair.truth_ids, pair.prediction_ids)
        truth_at = _rows(pair.truth_segments.ids, truth_ids)
        prediction_at = _rows(pair.prediction_segments.ids, prediction_ids)
        truth = self._segments(pair.truth_segments, truth_at, pixels, f"{where}, ground truth")
        what = f"{where}, prediction"
        prediction = self._segments(pair.prediction_segments, prediction_at, pixels, what)
        _check_prediction(prediction, prediction_at, prediction_ids, where)
        return FrameTable(
            pair.video_id, pair.frame_name, truth, prediction, truth_at, prediction_at, pixels
        )

    def _segments(self, listed: SegmentList, at: Counts, pixels: Counts, what: str) -> Segments:
        ids = listed.ids.tolist()
        if len(set(ids)) < len(ids):
            twice = next(number for number, count in Counter(ids).items() if count > 1)
            raise LabelError(f"{what}: segment id {twice} is listed twice; expected each once.")
        if 0 in ids:
            raise LabelError(f"{what}: a segment has id 0, which is void; expected ids from 1.")
        try:
            category = [self._index_of[number] for number in listed.category_ids.tolist()]
        except KeyError as error:
            raise LabelError(
                f"{what}: category id {error} is none of the {len(self._index_of)} categories."
            ) from None
        listed_at = at >= 0
        counted = np.bincount(at[listed_at], weights=pixels[listed_at], minlength=len(ids))
        return Segments(
            ids=np.asarray(ids, np.int64),
            category=np.asarray(category, np.int64),
            is_crowd=np.asarray(listed.is_crowd, np.bool_),
            stated=listed.areas.astype(np.int64),
            counted=counted.astype(np.int64),
        )


def _rows(listed: Ids, ids: Counts) -> Counts:
    """Returns the row of each id in a list, ``VOID`` for id 0 and ``UNLISTED`` for others."""
    order = np.argsort(listed, kind="stable")
    known = listed[order].astype(np.int64)
    rows = np.full(len(ids), UNLISTED, np.int64)
    if len(known):
        near = np.searchsorted(known, ids).clip(max=len(known) - 1)
        rows = np.where(known[near] == ids, order[near], rows)
    rows[ids == 0] = VOID
    return rows


def _check_prediction(prediction: Segments, at: Counts, ids: Counts, where: str) -> None:
    unlisted = ids[at == UNLISTED]
    if len(unlisted):
        raise LabelError(
            f"{where}: the prediction's map holds segment id {int(unlisted[0])}, which its JSON "
            f"does not list; expected one of its {len(prediction.ids)} listed ids or 0."
        )
    absent = prediction.ids[prediction.counted == 0]
    if len(absent):
        raise LabelError(
            f"{where}: the prediction's JSON lists segment id {int(absent[0])}, of which its map "
            "has no pixel; expected only segments that are in the map."
        )


def _size(ids: Ids) -> str:
    return "x".join(map(str, ids.shape))

"""Panoptic quality from counts of matched and unmatched segments, per category and in groups."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fcache.eval.histogram import Counts

Numbers = NDArray[np.float64]

EMPTY = "no segment of these categories was scored; the official script raises ZeroDivisionError"


@dataclass(slots=True)
class MatchCounts:
    """Matches per category, of one window or of many."""

    iou: Numbers  # [K] sum over matches
    tp: Counts  # [K]
    fp: Counts  # [K]
    fn: Counts  # [K]

    @classmethod
    def zeros(cls, num_categories: int) -> MatchCounts:
        """Counts of nothing."""
        tp, fp, fn = np.zeros((3, num_categories), np.int64)
        return cls(np.zeros(num_categories), tp, fp, fn)

    def __iadd__(self, other: MatchCounts) -> MatchCounts:
        self.iou += other.iou
        self.tp += other.tp
        self.fp += other.fp
        self.fn += other.fn
        return self

    def __add__(self, other: MatchCounts) -> MatchCounts:
        return MatchCounts(
            self.iou + other.iou, self.tp + other.tp, self.fp + other.fp, self.fn + other.fn
        )

    def __sub__(self, other: MatchCounts) -> MatchCounts:
        return MatchCounts(
            self.iou - other.iou, self.tp - other.tp, self.fp - other.fp, self.fn - other.fn
        )

    def any(self) -> bool:
        """Whether a count differs from zero."""
        return any(column.any() for column in (self.iou, self.tp, self.fp, self.fn))


@dataclass(frozen=True, slots=True)
class Quality:
    """Means over the categories of a group that were scored; NaN, and a reason, without one.

    Attributes:
        pq: Panoptic quality, 0..1.
        sq: Segmentation quality: mean IoU of matches; 0 for a category without one.
        rq: Recognition quality, the F1 score of matching.
        num_categories: Categories with a true or a wrongly predicted segment.
        undefined: Why the values are NaN; empty where they are not.
    """

    pq: float
    sq: float
    rq: float
    num_categories: int
    undefined: str = ""


@dataclass(frozen=True, slots=True)
class PanopticQuality:
    """Panoptic quality of a run, 0..1.

    Attributes:
        all: Over all categories.
        things: Over things.
        stuff: Over stuff.
        pq: [K], NaN for a category that was not scored.
        sq: [K], likewise.
        rq: [K], likewise.
        counts: The counts they come from.
    """

    all: Quality
    things: Quality
    stuff: Quality
    pq: Numbers = field(repr=False)
    sq: Numbers = field(repr=False)
    rq: Numbers = field(repr=False)
    counts: MatchCounts = field(repr=False)


def panoptic_quality(counts: MatchCounts, is_thing: NDArray[np.bool_]) -> PanopticQuality:
    """Returns PQ, SQ and RQ of counts (Kirillov et al. 2019, equation 2).

    Args:
        counts: Matches per category.
        is_thing: [K].
    """
    weight = counts.tp + 0.5 * counts.fp + 0.5 * counts.fn
    scored = weight > 0
    pq, sq, rq = (np.where(scored, 0.0, np.nan) for _ in range(3))
    np.divide(counts.iou, weight, out=pq, where=scored)
    np.divide(counts.iou, counts.tp, out=sq, where=counts.tp > 0)
    np.divide(counts.tp, weight, out=rq, where=scored)

    def group(members: NDArray[np.bool_]) -> Quality:
        rows = np.flatnonzero(scored & members)
        if not len(rows):
            return Quality(np.nan, np.nan, np.nan, 0, EMPTY)
        means = [float(column[rows].mean()) for column in (pq, sq, rq)]
        return Quality(means[0], means[1], means[2], len(rows))

    return PanopticQuality(
        group(np.ones_like(is_thing)), group(is_thing), group(~is_thing), pq, sq, rq, counts
    )

"""How well predicted tracks cover true ones over a whole video: the AQ half of STQ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcache.eval.histogram import Counts, sum_by_key
from fcache.eval.tables import Segments

PENDING_ROWS = 1 << 16  # rows kept as they came before equal pairs are added up


@dataclass(frozen=True, slots=True)
class TrackColumns:
    """The tracks of one side of a video. Row 0 is void."""

    category: Counts  # [tracks] category index, K for void
    number: Counts  # [tracks] in order of first appearance, -1 for void
    listed_crowd: NDArray[np.bool_]  # [tracks]


class Tracks:
    """Numbers the segments of one side in the order in which the video's JSON lists them.

    A track is an id with one category: an id that changes its category is two, of one number.

    Args:
        void: The category of void.
    """

    def __init__(self, void: int) -> None:
        self._rows = [(void, -1, False)]
        self._row_of: dict[tuple[int, int, bool], int] = {}
        self._number_of: dict[int, int] = {}

    def rows_of(self, segments: Segments) -> Counts:  # [S + 2]
        """Returns the track of each segment; two more entries make every negative row void."""
        listed = zip(
            segments.ids.tolist(),
            segments.category.tolist(),
            segments.is_crowd.tolist(),
            strict=True,
        )
        rows = []
        for number, category, crowd in listed:
            order = self._number_of.setdefault(number, len(self._number_of))
            row = self._row_of.setdefault((number, category, crowd), len(self._rows))
            if row == len(self._rows):
                self._rows.append((category, order, crowd))
            rows.append(row)
        return np.array([*rows, 0, 0], np.int64)

    def columns(self) -> TrackColumns:
        """Returns the tracks so far."""
        category, number, crowd = zip(*self._rows, strict=True)
        return TrackColumns(np.array(category), np.array(number), np.array(crowd, np.bool_))


class PairSums:
    """Pixels that each true and each predicted track of a video share.

    Args:
        void: The category of void.
    """

    def __init__(self, void: int) -> None:
        self.truth = Tracks(void)
        self.prediction = Tracks(void)
        self._keys: list[Counts] = []
        self._pixels: list[Counts] = []
        self._num_rows = 0

    def add(self, rows: Counts, columns: Counts, pixels: Counts) -> None:
        """Adds pixels of pairs (true track, predicted track)."""
        self._keys.append((rows << 32) + columns)
        self._pixels.append(pixels)
        self._num_rows += len(pixels)
        if self._num_rows > PENDING_ROWS and len(self._keys) > 1:
            self._add_up()

    def sums(self) -> tuple[Counts, Counts, Counts]:
        """Returns true track, predicted track and pixels of every pair that occurred."""
        if len(self._keys) != 1:
            self._add_up()
        keys, pixels = self._keys[0], self._pixels[0]
        return keys >> 32, keys & 0xFFFFFFFF, pixels

    def _add_up(self) -> None:
        nothing = np.zeros(0, np.int64)
        keys, pixels = sum_by_key(
            np.concatenate([*self._keys, nothing]), np.concatenate([*self._pixels, nothing])
        )
        self._keys, self._pixels = [keys], [pixels]
        # Pairs that stay apart must not be sorted again at every frame.
        self._num_rows = 0


def association(
    left: TrackColumns,
    right: TrackColumns,
    pairs: tuple[Counts, Counts, Counts],  # true track, predicted track, pixels
    crowd: NDArray[np.bool_],  # [true tracks] a thing of these is crowd
    is_thing: NDArray[np.bool_],  # [K + 1]
) -> tuple[float, int]:
    """Returns the sum over true tracks of their association, and how many tracks there are.

    A true track of g pixels scores the sum over predicted tracks of TPA * IoU / g, where TPA are
    the pixels they share, whatever their categories (STEP, equation 3). Pixels on crowd count for
    neither side; predicted pixels on stuff and void do.
    """
    rows, columns, pixels = pairs
    on_thing = is_thing[left.category][rows]
    on_crowd = on_thing & crowd[rows]
    of_truth = on_thing & ~on_crowd
    of_prediction = is_thing[right.category][columns] & ~on_crowd
    left_track, right_track = _joined(left)[rows], _joined(right)[columns]
    left_size = np.bincount(left_track[of_truth], pixels[of_truth])
    right_size = np.bincount(right_track[of_prediction], pixels[of_prediction])
    both = of_truth & of_prediction
    keys, shared = sum_by_key((left_track[both] << 32) + right_track[both], pixels[both])
    left_track, right_track = keys >> 32, keys & 0xFFFFFFFF
    truth = left_size[left_track]
    iou = shared / (truth + right_size[right_track] - shared)
    return float((shared * iou / truth).sum()), int(np.count_nonzero(left_size))


def _joined(tracks: TrackColumns) -> Counts:  # [tracks]
    """Returns one number for all rows that differ in their crowd flag alone."""
    keys = (tracks.category << 32) + tracks.number + 1
    joined: Counts = np.unique(keys, return_inverse=True)[1]
    return joined

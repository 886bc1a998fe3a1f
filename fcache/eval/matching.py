"""Matching of segments (one frame) or tubes (a window of frames), as VPQ and PQ count it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from fcache.errors import LabelError
from fcache.eval.histogram import Counts, sum_by_key
from fcache.eval.quality import MatchCounts
from fcache.eval.tables import UNLISTED, VOID, FrameTable, Segments


@dataclass(frozen=True, slots=True)
class Rules:
    """Which quirks of the published scripts hold; the names are those of ``quirks.TEXTS``.

    All of them give the official numbers. Without: areas are counted in the maps, a tube is an id
    with one category, every crowd region excuses, and pixels of unlisted true ids are void.
    """

    gt_area_from_json: bool = True
    pred_category_first_frame_wins: bool = True
    last_crowd_per_class_wins: bool = True
    gt_png_id_not_in_json: bool = True

    def without(self, name: str) -> Rules:
        """Returns the rules with one quirk less."""
        return replace(self, **{name: False})


OFFICIAL = Rules()
CLEAN = Rules(**{field.name: False for field in fields(Rules)})


@dataclass(frozen=True, slots=True)
class _Tubes:
    """Segments of a window joined over its frames."""

    of_row: Counts  # [rows of all frames] the tube of each segment
    first: Counts  # [tubes] the row at which it appears first
    category: Counts  # [tubes]
    is_crowd: NDArray[np.bool_]  # [tubes]
    area: Counts  # [tubes] pixels
    present: NDArray[np.bool_]  # [tubes] false for a true tube without a pixel, where that counts


def match(window: Sequence[FrameTable], rules: Rules, num_categories: int) -> MatchCounts:
    """Returns the matches of a window of frames of one video.

    A true and a predicted tube of one category match where their IoU, void pixels left out of the
    union, is over one half: strictly, so that each has one match at most (metrics of Kirillov et
    al. 2019 and Kim et al. 2020).

    Raises:
        LabelError: an official area is needed that the JSON does not state.
    """
    if rules.gt_area_from_json:
        _check_stated(window)
    truth = _tubes([table.truth for table in window], rules, stated=rules.gt_area_from_json)
    prediction = _tubes([table.prediction for table in window], rules, stated=False)
    rows, columns, pixels = _shared(window, truth, prediction)
    if not rules.gt_png_id_not_in_json:
        rows = np.where(rows == UNLISTED, VOID, rows)

    num_predicted = len(prediction.area)
    on_void = _pixels_of(columns, pixels, (rows == VOID) & (columns >= 0), num_predicted)
    both = (rows >= 0) & (columns >= 0)
    left, right, shared = rows[both], columns[both], pixels[both]
    same = (truth.category[left] == prediction.category[right]) & ~truth.is_crowd[left]
    union = truth.area[left] + prediction.area[right] - shared - on_void[right]
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = shared / union
    hit = same & (iou > 0.5)

    counts = MatchCounts.zeros(num_categories)
    categories = truth.category[left[hit]]
    counts.iou += np.bincount(categories, weights=iou[hit], minlength=num_categories)
    counts.tp += np.bincount(categories, minlength=num_categories)
    missed = truth.present & ~truth.is_crowd
    missed[left[hit]] = False
    counts.fn += np.bincount(truth.category[missed], minlength=num_categories)
    wrong = np.ones(num_predicted, np.bool_)
    wrong[right[hit]] = False
    on_crowd = _pixels_of(
        right, shared, _excusing(truth, prediction, left, right, rules), num_predicted
    )
    wrong &= ~((on_void + on_crowd) / np.maximum(prediction.area, 1) > 0.5)
    counts.fp += np.bincount(prediction.category[wrong], minlength=num_categories)
    return counts


def active(window: Sequence[FrameTable]) -> list[str]:
    """Returns the names of the rules' quirks that may change a window's matches."""
    truths = [table.truth for table in window]
    names = []
    if any((truth.stated != truth.counted).any() for truth in truths):
        names.append("gt_area_from_json")
    sides = (truths, [table.prediction for table in window])
    if len(window) > 1 and any(map(_changes_category, sides)):
        names.append("pred_category_first_frame_wins")
    if sum(int(truth.is_crowd.sum()) for truth in truths) > 1:
        names.append("last_crowd_per_class_wins")
    if any((table.truth_at == UNLISTED).any() for table in window):
        names.append("gt_png_id_not_in_json")
    return names


def _changes_category(frames: Sequence[Segments]) -> bool:
    ids, category, is_crowd = _columns(frames)
    _, first, tube = np.unique(ids, return_index=True, return_inverse=True)
    changes = (category[first][tube] != category) | (is_crowd[first][tube] != is_crowd)
    return bool(changes.any())


def _columns(frames: Sequence[Segments]) -> tuple[Counts, Counts, NDArray[np.bool_]]:
    return (
        np.concatenate([frame.ids for frame in frames]),
        np.concatenate([frame.category for frame in frames]),
        np.concatenate([frame.is_crowd for frame in frames]),
    )


def _tubes(frames: Sequence[Segments], rules: Rules, *, stated: bool) -> _Tubes:
    ids, category, is_crowd = _columns(frames)
    areas = np.concatenate([frame.stated if stated else frame.counted for frame in frames])
    # Ids have 24 bits, so an id with its category and crowd flag fits one number.
    split = (ids << 32) + (category << 1) + is_crowd
    keys = ids if rules.pred_category_first_frame_wins else split
    _, first, tube = np.unique(keys, return_index=True, return_inverse=True)
    area = np.bincount(tube, weights=areas, minlength=len(first)).astype(np.int64)
    present = np.ones(len(first), np.bool_) if stated else area > 0
    return _Tubes(tube, first, category[first], is_crowd[first], area, present)


def _shared(
    window: Sequence[FrameTable], truth: _Tubes, prediction: _Tubes
) -> tuple[Counts, Counts, Counts]:
    """Returns pixels shared over the window: true tubes, predicted tubes (or void), pixels."""
    rows = _tubes_at([table.truth_at for table in window], truth, [t.truth for t in window])
    columns = _tubes_at(
        [table.prediction_at for table in window], prediction, [t.prediction for t in window]
    )
    pixels = np.concatenate([table.pixels for table in window])
    if len(window) == 1:
        return rows, columns, pixels
    width = len(prediction.area) + 1
    keys, sums = sum_by_key((rows - UNLISTED) * width + (columns - VOID), pixels)
    return keys // width + UNLISTED, keys % width + VOID, sums


def _tubes_at(ats: Sequence[Counts], tubes: _Tubes, frames: Sequence[Segments]) -> Counts:
    starts = np.cumsum([0, *(len(frame.ids) for frame in frames[:-1])])
    moved = [np.where(at < 0, at, at + start) for at, start in zip(ats, starts, strict=True)]
    at = np.concatenate(moved)
    listed = at >= 0
    at[listed] = tubes.of_row[at[listed]]
    return at


def _pixels_of(
    columns: Counts, pixels: Counts, chosen: NDArray[np.bool_], num_tubes: int
) -> Counts:
    sums = np.bincount(columns[chosen], weights=pixels[chosen], minlength=num_tubes)
    return sums.astype(np.int64)


def _excusing(
    truth: _Tubes, prediction: _Tubes, left: Counts, right: Counts, rules: Rules
) -> NDArray[np.bool_]:
    """Returns which shared areas lie on a crowd region that excuses the predicted tube."""
    excuses = truth.is_crowd.copy()
    if rules.last_crowd_per_class_wins and excuses.any():
        crowds = np.flatnonzero(excuses)
        last = {int(truth.category[i]): i for i in crowds[np.argsort(truth.first[crowds])]}
        excuses[:] = False
        excuses[list(last.values())] = True
    chosen: NDArray[np.bool_] = excuses[left] & (truth.category[left] == prediction.category[right])
    return chosen


def _check_stated(window: Sequence[FrameTable]) -> None:
    for table in window:
        unstated = table.truth.ids[table.truth.stated < 0]
        if len(unstated):
            raise LabelError(
                f"{table.place}: the ground truth's JSON states no area for segment id "
                f"{int(unstated[0])}, and the official scores are computed from it; "
                "score with the clean definition, which counts pixels."
            )

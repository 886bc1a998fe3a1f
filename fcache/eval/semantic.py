"""Semantic scores from pixel counts: mIoU, weighted IoU, accuracy, and what guessing would score.

The defaults are those of the VSPW evaluator: pixels whose true label is no category are dropped,
and the mean is over the categories that occur in the truth.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fcache.eval.histogram import Counts, PairCounts, pair_counts

Outside = Literal["refuse", "miss", "official"]


def confusion(
    truth: NDArray[np.integer],  # any shape
    prediction: NDArray[np.integer],  # the same shape
    num_categories: int,
    ignore: int = 255,
    *,
    outside: Outside = "refuse",
) -> Counts:  # [K, K]
    """Counts pixels by (true category, predicted category).

    Pixels are dropped where the true label is ``ignore`` or not in 0..K-1.

    Args:
        truth: True labels, 0..K-1.
        prediction: Predicted labels.
        num_categories: K.
        ignore: The true label that is not scored.
        outside: What a labelled pixel with a prediction not in 0..K-1 is. ``refuse`` raises;
            ``miss`` leaves it out of the counts (``ConfusionMatrix`` keeps it as a miss);
            ``official`` repeats the VSPW evaluator, whose index K * truth + prediction runs on
            into the rows of other categories.

    Raises:
        ValueError: the shapes differ, or a prediction is outside what ``outside`` allows.
    """
    pairs = pair_counts(truth, prediction)
    return confusion_of_pairs(pairs, num_categories, ignore, outside=outside)


def confusion_of_pairs(
    pairs: PairCounts, num_categories: int, ignore: int = 255, *, outside: Outside = "refuse"
) -> Counts:  # [K, K]
    """Counts pixels by (true category, predicted category) from pixels by pair of values.

    Raises:
        ValueError: as for ``confusion``.
    """
    rows, columns, pixels = _labelled(pairs, num_categories, ignore)
    beyond = (columns < 0) | (columns >= num_categories)
    if outside == "miss":
        rows, columns, pixels = rows[~beyond], columns[~beyond], pixels[~beyond]
    elif outside == "refuse" and beyond.any():
        raise ValueError(
            f"prediction holds {int(columns[beyond][0])} on a labelled pixel; "
            f"expected 0..{num_categories - 1}"
        )
    cells = num_categories * rows + columns
    if cells.size and (cells.min() < 0 or cells.max() >= num_categories**2):
        worst = cells.argmax() if cells.max() >= num_categories**2 else cells.argmin()
        raise NoCellError(
            f"prediction holds {int(columns[worst])} on a pixel of category "
            f"{int(rows[worst])}; the official evaluator has no cell for that"
        )
    counts = np.bincount(cells, weights=pixels, minlength=num_categories**2)
    return counts.astype(np.int64).reshape(num_categories, num_categories)


def _labelled(pairs: PairCounts, num_categories: int, ignore: int) -> PairCounts:
    truth = pairs.truth
    labelled = (truth != ignore) & (truth >= 0) & (truth < num_categories)
    return PairCounts(*(column[labelled] for column in pairs))


class NoCellError(ValueError):
    """A prediction for which the official evaluator raises."""


class ConfusionMatrix:
    """Pixel counts of many frames, and the scores they give.

    Attributes:
        counts: [K, K] int64, rows true, columns predicted.
        missed: [K] int64, labelled pixels predicted as no category (``outside="miss"``). They
            count against the true category and for no predicted one.
    """

    def __init__(
        self, num_categories: int, ignore: int = 255, *, outside: Outside = "miss"
    ) -> None:
        self.ignore = ignore
        self.outside: Outside = outside
        self.counts: Counts = np.zeros((num_categories, num_categories), np.int64)
        self.missed: Counts = np.zeros(num_categories, np.int64)

    @property
    def num_categories(self) -> int:
        """K."""
        return len(self.missed)

    def add(self, truth: NDArray[np.integer], prediction: NDArray[np.integer]) -> None:
        """Counts the pixels of one frame (or any stack of frames)."""
        self.add_pairs(pair_counts(truth, prediction))

    def add_pairs(self, pairs: PairCounts) -> None:
        """Counts pixels given by pair of values.

        Raises:
            ValueError: as for ``confusion``; nothing is counted then.
        """
        num_categories = self.num_categories
        self.counts += confusion_of_pairs(pairs, num_categories, self.ignore, outside=self.outside)
        if self.outside == "miss":
            rows, columns, pixels = _labelled(pairs, num_categories, self.ignore)
            lost = (columns < 0) | (columns >= num_categories)
            missed = np.bincount(rows[lost], weights=pixels[lost], minlength=num_categories)
            self.missed += missed.astype(np.int64)

    def merge(self, other: ConfusionMatrix) -> None:
        """Adds the counts of another matrix, for instance another worker's."""
        self.counts += other.counts
        self.missed += other.missed

    @property
    def truth_pixels(self) -> Counts:
        """[K] labelled pixels of each true category."""
        pixels: Counts = self.counts.sum(1) + self.missed
        return pixels

    @property
    def iou(self) -> NDArray[np.float64]:
        """[K] intersection over union; NaN for a category in neither truth nor prediction."""
        return category_iou(self.counts, self.missed)

    @property
    def miou(self) -> float:
        """Mean IoU over the categories in the truth, 0..1; NaN without a labelled pixel."""
        return mean_iou(self.counts, self.missed)

    @property
    def weighted_iou(self) -> float:
        """IoU weighted by each category's share of the truth, 0..1; 0 without a labelled pixel."""
        truth = self.truth_pixels
        present = truth > 0
        return float((truth[present] / max(1, truth.sum())) @ self.iou[present])

    @property
    def pixel_accuracy(self) -> float:
        """Share of labelled pixels predicted right, 0..1; NaN without a labelled pixel."""
        total = int(self.truth_pixels.sum())
        return float(np.trace(self.counts) / total) if total else float("nan")

    @property
    def category_accuracy(self) -> float:
        """Mean over the categories in the truth of the share predicted right, 0..1."""
        truth = self.truth_pixels
        present = truth > 0
        if not present.any():
            return float("nan")
        return float((np.diag(self.counts)[present] / truth[present]).mean())


def category_iou(
    counts: NDArray[np.int64] | NDArray[np.float64],  # [K, K]
    missed: NDArray[np.int64] | None = None,  # [K]
) -> NDArray[np.float64]:  # [K]
    """IoU of every category, NaN where it is in neither truth nor prediction."""
    hit = np.diag(counts).astype(np.float64)
    union = counts.sum(0) + counts.sum(1) - hit + (0 if missed is None else missed)
    iou: NDArray[np.float64] = np.full(len(hit), np.nan)
    np.divide(hit, union, out=iou, where=union > 0)
    return iou


def mean_iou(
    counts: NDArray[np.int64] | NDArray[np.float64],  # [K, K]
    missed: NDArray[np.int64] | None = None,  # [K]
) -> float:
    """Mean IoU over the categories that occur in the truth; NaN without one.

    A category that is predicted but absent from the truth lowers others, through their unions,
    and is no term of the mean itself; STQ's segmentation quality differs here.
    """
    present = counts.sum(1) + (0 if missed is None else missed) > 0
    return float(category_iou(counts, missed)[present].mean()) if present.any() else float("nan")


def prior_counts(
    truth_pixels: NDArray[np.integer],  # [K] of the scored frames
    train_pixels: NDArray[np.integer],  # [K] of the training frames
) -> NDArray[np.float64]:  # [K, K]
    """Expected counts of the baseline that draws every pixel from the training frequencies.

    Raises:
        ValueError: the training frames have no labelled pixel.
    """
    total = int(train_pixels.sum())
    if total == 0:
        raise ValueError("train_pixels sums to 0; expected at least one labelled pixel")
    return np.outer(truth_pixels, train_pixels / total)

"""mIoU, weighted IoU and accuracy against hand counts and against the official evaluator."""

import json
import math

import numpy as np
import pytest

from fcache.eval.semantic import (
    ConfusionMatrix,
    category_iou,
    confusion,
    mean_iou,
    prior_counts,
)
from tests.shared import SHARED, needs_shared

OFFICIAL_CASES = [
    "absent", "all_short", "all_void", "easy", "hard", "identical", "medium", "nan_clip",
    "nonvoid_identical", "pred255", "short", "static_wrong",
]  # fmt: skip


def test_counts_have_truth_in_rows_and_drop_ignored_pixels():
    truth = np.array([[0, 0, 1], [2, 255, 252]], np.uint8)
    prediction = np.array([[0, 1, 1], [0, 2, 2]], np.uint8)
    assert confusion(truth, prediction, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_ignore_may_be_a_value_below_the_number_of_categories():
    truth = np.array([0, 1, 1], np.uint8)
    assert confusion(truth, truth, 2, ignore=0).tolist() == [[0, 0], [0, 2]]


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"truth is \(2,\) and prediction \(3,\)"):
        confusion(np.zeros(2, np.uint8), np.zeros(3, np.uint8), 2)


def test_a_prediction_of_no_category_is_refused_by_name():
    with pytest.raises(ValueError, match=r"prediction holds 255 .* expected 0\.\.1"):
        confusion(np.array([1, 0]), np.array([1, 255]), 2)


def test_a_prediction_of_no_category_on_an_ignored_pixel_is_fine():
    assert confusion(np.array([255, 0]), np.array([255, 0]), 2).sum() == 1


def test_a_missed_pixel_counts_against_its_true_category_only():
    matrix = ConfusionMatrix(2)
    matrix.add(np.array([0, 0, 1, 1]), np.array([0, 255, 1, 1]))
    assert matrix.missed.tolist() == [1, 0]
    assert matrix.iou.tolist() == [0.5, 1.0]
    assert matrix.pixel_accuracy == 0.75
    assert matrix.weighted_iou == 0.75
    assert matrix.category_accuracy == 0.75


def test_a_category_in_neither_is_nan_and_one_only_predicted_is_zero_outside_the_mean():
    matrix = ConfusionMatrix(4)
    matrix.add(np.array([0, 0, 0, 1]), np.array([0, 0, 2, 1]))
    assert np.array_equal(matrix.iou, [2 / 3, 1.0, 0.0, math.nan], equal_nan=True)
    assert matrix.miou == pytest.approx((2 / 3 + 1) / 2, abs=1e-15)


def test_adding_frames_one_by_one_or_merging_equals_adding_their_stack():
    rng = np.random.default_rng(0)
    truth = rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), (6, 9, 7))
    prediction = rng.integers(0, 6, (6, 9, 7)).astype(np.uint8)
    stacked, first, second = (ConfusionMatrix(4) for _ in range(3))
    stacked.add(truth, prediction)
    for index in range(6):
        (first if index < 2 else second).add(truth[index], prediction[index])
    first.merge(second)
    assert np.array_equal(first.counts, stacked.counts)
    assert np.array_equal(first.missed, stacked.missed)
    assert stacked.missed.sum() > 0
    assert stacked.truth_pixels.sum() == (truth != 255).sum()


def test_without_a_labelled_pixel_scores_are_nan_and_weighted_iou_is_zero():
    matrix = ConfusionMatrix(3)
    matrix.add(np.full((4, 4), 255, np.uint8), np.zeros((4, 4), np.uint8))
    assert math.isnan(matrix.miou)
    assert math.isnan(matrix.pixel_accuracy)
    assert math.isnan(matrix.category_accuracy)
    assert matrix.weighted_iou == 0.0


def test_baselines_score_what_painting_and_drawing_would():
    rng = np.random.default_rng(1)
    truth = rng.choice(3, 200_000, p=[0.6, 0.3, 0.1]).astype(np.uint8)
    pixels = np.bincount(truth, minlength=3)
    train = np.array([50, 40, 10])

    painted = confusion(truth, np.zeros_like(truth), 3)
    assert mean_iou(painted) == pytest.approx(pixels[0] / pixels.sum() / 3)

    drawn = confusion(truth, rng.choice(3, truth.size, p=train / 100).astype(np.uint8), 3)
    assert np.abs(category_iou(prior_counts(pixels, train)) - category_iou(drawn)).max() < 0.01
    with pytest.raises(ValueError, match="sums to 0"):
        prior_counts(pixels, np.zeros(3, np.int64))


@needs_shared
@pytest.mark.parametrize("case", OFFICIAL_CASES)
def test_scores_equal_the_official_evaluator(case):
    folder = SHARED / "vectors" / "metrics"
    expected = json.loads((folder / f"vss_{case}.json").read_text())["expected"]
    matrix = ConfusionMatrix(124, outside="official")
    with np.load(folder / f"vss_{case}.npz") as arrays:
        for index in range(len(arrays.files) // 2):
            raw = arrays[f"gt_{index}"].astype(np.int64)
            truth = np.where((raw >= 1) & (raw <= 124), raw - 1, 255)
            matrix.add(truth, arrays[f"pred_{index}"])

    def close(value: float, wanted: float | None) -> bool:
        return math.isnan(value) if wanted is None else abs(value - wanted) <= 1e-12

    assert close(matrix.miou, expected["mIoU"])
    assert close(matrix.weighted_iou, expected["wIoU"])
    assert close(matrix.pixel_accuracy, expected["pixel_acc"])
    assert close(matrix.category_accuracy, expected["class_acc"])
    assert matrix.truth_pixels.sum() == expected["gt_pixels"]
    for category, iou in expected["iou_per_gt_class"].items():
        assert close(matrix.iou[int(category)], iou)


@needs_shared
def test_counting_void_predictions_as_misses_differs_from_the_official_spill():
    path = SHARED / "vectors" / "metrics" / "vss_pred255"
    expected = json.loads(path.with_suffix(".json").read_text())["expected"]
    with np.load(path.with_suffix(".npz")) as arrays:
        raw, prediction = arrays["gt_0"].astype(np.int64), arrays["pred_0"]
    truth = np.where((raw >= 1) & (raw <= 124), raw - 1, 255)
    matrix = ConfusionMatrix(124)
    matrix.add(truth, prediction)
    assert matrix.missed.sum() == ((truth != 255) & (prediction == 255)).sum() > 0
    assert abs(matrix.miou - expected["mIoU"]) > 1e-3

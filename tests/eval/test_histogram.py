"""Joint histograms against counting pixel by pixel."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fcache.eval.histogram import pair_counts, sum_by_key


def slow(truth: np.ndarray, prediction: np.ndarray) -> dict[tuple[int, int], int]:
    return Counter(zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True))


def found(truth: np.ndarray, prediction: np.ndarray) -> dict[tuple[int, int], int]:
    pairs = pair_counts(truth, prediction)
    assert (pairs.pixels > 0).all()
    left, right, pixels = (column.tolist() for column in pairs)
    assert sorted(zip(left, right, strict=True)) == list(zip(left, right, strict=True))
    return dict(zip(zip(left, right, strict=True), pixels, strict=True))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint32, np.int64])
@pytest.mark.parametrize("run", [1, 7])
def test_counts_equal_counting_pixel_by_pixel(dtype, run):
    rng = np.random.default_rng(run)
    high = min(np.iinfo(dtype).max, (1 << 24) - 1)
    values = rng.integers(0, high, 9, endpoint=True).astype(dtype)
    truth, prediction = (np.repeat(rng.choice(values, (13, 5)), run, axis=1) for _ in range(2))
    assert found(truth, prediction) == slow(truth, prediction)


def test_the_largest_and_the_smallest_ids_are_kept_apart():
    truth = np.array([[0, 0xFFFFFF, 0xFFFFFF]], np.uint32)
    prediction = np.array([[0xFFFFFF, 0, 0xFFFFFF]], np.uint32)
    top = 0xFFFFFF
    assert found(truth, prediction) == {(0, top): 1, (top, 0): 1, (top, top): 1}


def test_negative_values_count_like_others():
    truth, prediction = np.array([-5, -5, 3]), np.array([2, 2, -9])
    assert found(truth, prediction) == {(-5, 2): 2, (3, -9): 1}


def test_no_pixel_gives_no_pair_and_other_shapes_are_refused():
    assert found(np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8)) == {}
    with pytest.raises(ValueError, match=r"truth is \(2,\) and prediction \(3,\)"):
        pair_counts(np.zeros(2, np.uint8), np.zeros(3, np.uint8))


def test_sums_by_key_add_up_equal_keys():
    keys, sums = sum_by_key(np.array([5 << 40, 1, 5 << 40]), np.array([2, 3, 4]))
    assert (keys.tolist(), sums.tolist()) == ([1, 5 << 40], [3, 6])

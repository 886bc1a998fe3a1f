from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fcache.models import HungarianMatcher, Prediction, SeededDraw
from fcache.models.matcher import _pairwise_cross_entropy, _pairwise_dice
from tests.models.tiny import rectangles, two_targets


def perfect(targets, num_queries=8, num_categories=5):
    """Queries 3, 4, ... of each image answer exactly for its segments."""
    classes = torch.zeros(len(targets), num_queries, num_categories + 1)
    masks = torch.full((len(targets), num_queries, 16, 24), -8.0)
    for image, target in enumerate(targets):
        for index, (category, mask) in enumerate(zip(target.classes, target.masks, strict=True)):
            classes[image, 3 + index, category] = 9
            masks[image, 3 + index] = mask[2::4, 2::4].float() * 16 - 8
    return Prediction(classes, masks)


def test_segments_find_the_queries_that_predict_them() -> None:
    targets = two_targets()
    draw = SeededDraw(0, 0, ["a", "b"])
    layers = [perfect(targets), perfect(targets)]
    for matches in HungarianMatcher(200)(layers, targets, draw):
        assert [match.queries.tolist() for match in matches] == [[3, 4], [3, 4, 5]]
        assert [match.segments.tolist() for match in matches] == [[0, 1], [0, 1, 2]]


def test_costs_equal_their_definitions_pair_by_pair() -> None:
    logits, inside = torch.randn(4, 50) * 3, torch.rand(3, 50)
    cross_entropy = _pairwise_cross_entropy(logits, inside)
    dice = _pairwise_dice(logits.sigmoid(), inside)
    for query in range(4):
        for segment in range(3):
            x, t = logits[query], inside[segment]
            expected = F.binary_cross_entropy_with_logits(x, t)
            torch.testing.assert_close(cross_entropy[query, segment], expected)
            p = x.sigmoid()
            expected = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
            torch.testing.assert_close(dice[query, segment], expected)


def test_more_segments_than_queries_leave_segments_without_a_query() -> None:
    target = rectangles(*[(4 * i, 0, 4 * i + 4, 96) for i in range(6)], classes=[0] * 6)
    prediction = Prediction(torch.randn(1, 4, 6), torch.randn(1, 4, 16, 24))
    [[match]] = HungarianMatcher(64)([prediction], [target], SeededDraw(0, 0, ["a"]))
    assert match.queries.tolist() == [0, 1, 2, 3]
    assert len(set(match.segments.tolist())) == 4


def test_an_image_without_segments_has_an_empty_match() -> None:
    prediction = Prediction(torch.randn(1, 4, 6), torch.randn(1, 4, 16, 24))
    empty = rectangles(classes=[])
    [[match]] = HungarianMatcher(64)([prediction], [empty], SeededDraw(0, 0, ["a"]))
    assert match.queries.shape == match.segments.shape == (0,)
    assert match.queries.dtype == torch.int64


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite_still_match(value) -> None:
    prediction = Prediction(torch.full((2, 8, 6), value), torch.full((2, 8, 16, 24), value))
    [matches] = HungarianMatcher(64)([prediction], two_targets(), SeededDraw(0, 0, ["a", "b"]))
    assert [len(match.queries) for match in matches] == [2, 3]


def test_points_outside_the_valid_area_do_not_count() -> None:
    half = rectangles((0, 0, 64, 48), classes=[1])
    half = type(half)(half.classes, half.masks, extent=(0.5, 1.0))
    # Query 0 is right everywhere; query 1 only in the padding, query 2 only in the valid half.
    masks = torch.full((1, 3, 16, 24), -9.0)
    masks[0, 0, :, :12] = 9
    masks[0, 1, :, 12:] = 9
    masks[0, 2] = 9
    costs = HungarianMatcher(64).costs(
        Prediction(torch.zeros(1, 3, 6), masks), 0, half, torch.rand(1, 64, 2) * 0.95
    )
    assert costs[2, 0] <= costs[0, 0] + 0.05
    assert costs[1, 0] > costs[0, 0] + 5

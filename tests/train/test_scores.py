from __future__ import annotations

import math

import pytest
import torch

from fcache.manifest import Category
from fcache.models import Targets
from fcache.models.panoptic import PanopticMap, PredictedSegment
from fcache.train.distributed import World
from fcache.train.scores import ImageScores

CATEGORIES = tuple(Category(id=10 + k, name=f"k{k}", isthing=k < 2) for k in range(3))


def truth(*rows: tuple[int, str]) -> Targets:
    """Segments on one row of pixels: (class, ``#`` where it is)."""
    masks = torch.tensor([[[c == "#" for c in row]] for _, row in rows], dtype=torch.bool)
    width = len(rows[0][1]) if rows else 4
    classes = torch.tensor([category for category, _ in rows], dtype=torch.int64)
    return Targets(classes, masks.reshape(len(rows), 1, width))


def predicted(ids: list[int], *categories: int) -> PanopticMap:
    segments = tuple(
        PredictedSegment(number, category, CATEGORIES[category].isthing, number)
        for number, category in enumerate(categories, 1)
    )
    return PanopticMap(torch.tensor([[ids]], dtype=torch.int32), segments)


def semantic(*values: int) -> torch.Tensor:
    return torch.tensor([values])


def scores(kind: str = "panoptic") -> ImageScores:
    return ImageScores(CATEGORIES, kind)


def test_perfect_frame_scores_one() -> None:
    found = scores()
    found.add(
        "a", truth((0, "##.."), (2, "..##")), semantic(0, 0, 2, 2), predicted([1, 1, 2, 2], 0, 2)
    )
    metrics = found.metrics()
    assert metrics == pytest.approx(
        {"pq": 1, "sq": 1, "rq": 1, "pq_things": 1, "pq_stuff": 1, "miou": 1}
    )


def test_quality_is_that_of_matches_over_half() -> None:
    found = scores()
    # 3 of 4 pixels: IoU 0.75; the second prediction is a false positive of class 1.
    found.add("a", truth((0, "####....")), semantic(*[0] * 8), predicted([1] * 3 + [0] * 5, 0))
    found.add("b", truth((0, "####....")), semantic(*[0] * 8), predicted([1] * 8, 1))
    metrics = found.metrics()
    # Void leaves the false positive half of its pixels on the segment: not over half on void.
    assert metrics["pq"] == pytest.approx((0.75 / 1.5 + 0) / 2)
    assert metrics["pq_stuff"] != metrics["pq_stuff"]


def test_void_is_not_scored() -> None:
    found = scores()
    # What is predicted on unlabelled pixels alone counts neither for nor against.
    found.add("a", truth((0, "##..")), semantic(0, 0, 1, 2), predicted([1, 1, 2, 2], 0, 1))
    assert found.metrics()["pq"] == 1
    assert found.metrics()["miou"] == 1


def test_segment_that_is_absent_from_the_frame_is_no_truth_there() -> None:
    found = scores()
    found.add(
        "a", truth((0, "####"), (1, "....")), semantic(0, 0, 0, 0), predicted([1, 1, 1, 1], 0)
    )
    assert found.metrics()["pq"] == 1


def test_frame_without_segments_and_prediction_counts_nothing() -> None:
    found = scores()
    found.add("a", truth(), semantic(0, 0, 0, 0), predicted([0, 0, 0, 0]))
    assert found.num_frames == 1
    assert math.isnan(found.metrics()["pq"])
    assert math.isnan(found.metrics()["miou"])


def test_semantic_labels_have_no_pq() -> None:
    found = scores("semantic")
    assert not found.wants_segments
    found.add("a", truth((0, "##.."), (2, "..##")), semantic(0, 2, 2, 2), None)
    assert found.metrics() == {"miou": pytest.approx((0.5 + 2 / 3) / 2)}


def test_joined_counts_of_one_rank_are_its_own() -> None:
    found = scores()
    found.add("a", truth((0, "####....")), semantic(*[0] * 8), predicted([1] * 3 + [0] * 5, 0))
    joined = found.joined(World())
    assert joined.metrics() == pytest.approx(found.metrics(), nan_ok=True)
    assert joined.num_frames == 1
